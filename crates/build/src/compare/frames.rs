//! The call frame information of each function: entries of `.eh_frame`, and the exception tables that they name.

use std::collections::HashMap;

use livegraft_patchfile::elf::Rela;

use super::module::{Meaning, Module};
use super::pair::{Pair, Range};

/// One FDE and its CIE, as ranges of `.eh_frame`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub section: usize,
    pub cie: (u64, u64),
    pub fde: (u64, u64),
    /// The exception table (LSDA): section and offset.
    pub lsda: Option<(usize, u64)>,
}

/// The frames of a module by the item that they describe.
pub(super) struct Frames {
    pub of: HashMap<usize, Frame>,
    /// Where exception tables begin, by section, sorted.
    tables: HashMap<usize, Vec<u64>>,
}

impl Frames {
    /// Entries that can't be understood describe nothing.
    pub fn new(module: &Module<'_>) -> Self {
        let mut of = HashMap::new();
        let mut tables: HashMap<usize, Vec<u64>> = HashMap::new();
        for number in 0..module.image.sections.len() {
            let is_frames = module
                .section(number)
                .is_some_and(|s| s.name == ".eh_frame" && s.is_alloc());
            if is_frames {
                for (item, frame) in entries(module, number) {
                    if let Some((section, at)) = frame.lsda {
                        tables.entry(section).or_default().push(at);
                    }
                    of.insert(item, frame);
                }
            }
        }
        for list in tables.values_mut() {
            list.sort_unstable();
            list.dedup();
        }
        Frames { of, tables }
    }

    /// The exception table of an item.
    pub fn table(&self, module: &Module<'_>, item: usize) -> Option<Range> {
        let (section, start) = self.of.get(&item)?.lsda?;
        let end = module.section(section)?.size;
        let list = self.tables.get(&section)?;
        let next = list.get(list.partition_point(|&at| at <= start)).copied();
        let len = next.unwrap_or(end).min(end).checked_sub(start)?;
        Some(Range {
            section,
            start,
            len,
        })
    }
}

fn word(data: &[u8], at: u64) -> Option<u32> {
    let bytes = data.get(usize::try_from(at).ok()?..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

fn entries(module: &Module<'_>, number: usize) -> Vec<(usize, Frame)> {
    let mut found = Vec::new();
    let Some(section) = module.section(number) else {
        return found;
    };
    let data = &section.data;
    let mut at = 0u64;
    while let Some(length) = word(data, at) {
        let body = at.saturating_add(4);
        let end = body.saturating_add(u64::from(length));
        // 0 ends the section; 64-bit entries are used by no compiler.
        if length < 4 || length == u32::MAX || end > data.len() as u64 {
            break;
        }
        let id = word(data, body).unwrap_or(0);
        if id != 0
            && let Some(cie) = body.checked_sub(u64::from(id))
            && let Some(cie_length) = word(data, cie)
        {
            let cie = (
                cie,
                cie.saturating_add(4).saturating_add(u64::from(cie_length)),
            );
            let relas = module.relas(number, at, end);
            let begin = body.saturating_add(4);
            let describes = relas
                .iter()
                .find(|r| r.offset == begin)
                .and_then(|r| place(module, r));
            if let Some((code, start)) = describes
                && let Some(item) = module.item_at(code, start)
                && module.item(item).is_some_and(|i| i.start == start)
                && cie.1 <= data.len() as u64
            {
                // The other relocation of an FDE is its exception table; code addresses occur only at its start.
                let lsda = relas
                    .iter()
                    .filter(|r| r.offset > begin)
                    .find_map(|r| place(module, r));
                found.push((
                    item,
                    Frame {
                        section: number,
                        cie,
                        fde: (at, end),
                        lsda,
                    },
                ));
            }
        }
        at = end;
    }
    found
}

/// The section and offset that a relocation of call frame information leads to.
fn place(module: &Module<'_>, rela: &Rela) -> Option<(usize, u64)> {
    match module.meaning(rela.symbol, rela.addend) {
        Meaning::Item(item, at) => {
            let item = module.item(item)?;
            Some((item.section?, item.start.checked_add_signed(at)?))
        }
        Meaning::Anonymous(section, at) => Some((section, u64::try_from(at).ok()?)),
        _ => None,
    }
}

/// Whether two functions handle the same exceptions in the same way.
pub(super) fn same_tables(
    pair: &Pair<'_, '_>,
    frames: &[Frames; 2],
    old: usize,
    new: usize,
) -> bool {
    let [a, b] = frames;
    match (a.table(pair.old, old), b.table(pair.new, new)) {
        (None, None) => true,
        (Some(mut x), Some(mut y)) => {
            // Padding behind a table belongs to the next one.
            x.len = trimmed(pair.old, x);
            y.len = trimmed(pair.new, y);
            pair.same_bytes(x, y, None)
        }
        _ => false,
    }
}

fn trimmed(module: &Module<'_>, range: Range) -> u64 {
    let end = range.start.saturating_add(range.len);
    let relas = module.relas(range.section, range.start, end);
    let floor = relas
        .last()
        .map_or(range.start, |r| r.offset.saturating_add(8));
    let data = super::pair::bytes(module, range).unwrap_or(&[]);
    let zeros = data.iter().rev().take_while(|&&b| b == 0).count() as u64;
    range
        .len
        .saturating_sub(zeros)
        .max(floor.min(end).saturating_sub(range.start))
}
