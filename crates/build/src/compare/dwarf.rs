//! The debug information of an object, where there is any. Nothing relies on it alone, and what does not read is left out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use gimli::{DebuggingInformationEntry, Dwarf, EndianSlice, LittleEndian, Unit};
use livegraft_patchfile::elf::SymPlace;
use livegraft_patchfile::ranges_of;

use super::module::Module;

pub(super) type Slice<'d> = EndianSlice<'d, LittleEndian>;
pub(super) type Entry<'d> = DebuggingInformationEntry<Slice<'d>>;

/// More rows, entries or ranges than that are taken for damage.
const MOST: usize = 1 << 23;

/// The debug sections with their relocations applied. An address is a section's number in the upper half, an offset in it
/// in the lower.
pub(super) struct Sections(HashMap<String, Vec<u8>>);

impl Sections {
    /// `None` without debug information.
    pub fn read(module: &Module<'_>) -> Option<Sections> {
        let mut sections = HashMap::new();
        for section in module
            .image
            .sections
            .iter()
            .filter(|s| s.name.starts_with(".debug_"))
        {
            // Compressed sections are not read.
            if section.flags & object::elf::SHF_COMPRESSED.0 != 0 {
                return None;
            }
            let mut data = section.data.to_vec();
            for rela in &section.relas {
                let Some(symbol) = module.image.symbols.get(rela.symbol) else {
                    continue;
                };
                let base = match symbol.place {
                    SymPlace::Section(s) if module.section(s).is_some_and(|s| s.is_alloc()) => {
                        (s as u64) << 32
                    }
                    _ => 0,
                };
                let value = base
                    .wrapping_add(symbol.value)
                    .wrapping_add_signed(rela.addend);
                let width = match rela.r_type {
                    1 => 8,
                    10 | 11 => 4,
                    _ => continue,
                };
                let Ok(at) = usize::try_from(rela.offset) else {
                    continue;
                };
                let Some(end) = at.checked_add(width) else {
                    continue;
                };
                if let (Some(field), Some(value)) =
                    (data.get_mut(at..end), value.to_le_bytes().get(..width))
                {
                    field.copy_from_slice(value);
                }
            }
            // COMDAT groups may hold further ones; the unit's own is the first.
            sections.entry(section.name.clone()).or_insert(data);
        }
        sections
            .contains_key(".debug_info")
            .then_some(Sections(sections))
    }

    pub fn dwarf(&self) -> Option<Dwarf<Slice<'_>>> {
        let section = |id: gimli::SectionId| -> Result<Slice<'_>, ()> {
            let data = self.0.get(id.name()).map_or(&[][..], Vec::as_slice);
            Ok(EndianSlice::new(data, LittleEndian))
        };
        Dwarf::load(section).ok()
    }
}

/// The units of an object.
pub(super) fn units<'d>(dwarf: &Dwarf<Slice<'d>>) -> Vec<Unit<Slice<'d>>> {
    let mut headers = dwarf.units();
    let mut units = Vec::new();
    while let (Ok(Some(header)), true) = (headers.next(), units.len() < 1 << 16) {
        if let Ok(unit) = dwarf.unit(header) {
            units.push(unit);
        }
    }
    units
}

/// Which line of the source an instruction is from.
pub(super) struct LineTable {
    /// By section, sorted: offset, line, which of the files.
    rows: HashMap<u64, Vec<(u64, u64, usize)>>,
    files: Vec<PathBuf>,
}

impl LineTable {
    pub fn read(module: &Module<'_>) -> Option<LineTable> {
        let sections = Sections::read(module)?;
        let dwarf = sections.dwarf()?;
        let mut rows: HashMap<u64, Vec<(u64, u64, usize)>> = HashMap::new();
        let mut files = Vec::new();
        let mut budget = super::declared::PATHS;
        let mut count = 0usize;
        for unit in units(&dwarf) {
            let mut numbers: HashMap<u64, usize> = HashMap::new();
            for (number, file) in super::declared::files(&dwarf, &unit, &mut budget) {
                numbers.insert(number, files.len());
                files.push(file);
            }
            let Some(program) = unit.line_program.clone() else {
                continue;
            };
            let mut program = program.rows();
            while let Ok(Some((_, row))) = program.next_row() {
                count = count.saturating_add(1);
                if count > MOST {
                    return None;
                }
                let line = if row.end_sequence() {
                    0
                } else {
                    row.line().map_or(0, |l| l.get())
                };
                let file = numbers.get(&row.file_index()).copied();
                rows.entry(row.address() >> 32).or_default().push((
                    row.address() & 0xffff_ffff,
                    line,
                    file.unwrap_or(usize::MAX),
                ));
            }
        }
        for rows in rows.values_mut() {
            // Stable: of several rows at one address the last counts.
            rows.sort_by_key(|r| r.0);
        }
        (count != 0).then_some(LineTable { rows, files })
    }

    pub fn line(&self, section: usize, offset: u64) -> Option<u64> {
        self.row(section, offset).map(|(line, _)| line)
    }

    /// The file and the line.
    pub fn place(&self, section: usize, offset: u64) -> Option<(&Path, u64)> {
        let (line, file) = self.row(section, offset)?;
        Some((self.files.get(file)?, line))
    }

    fn row(&self, section: usize, offset: u64) -> Option<(u64, usize)> {
        let rows = self.rows.get(&(section as u64))?;
        let next = rows.partition_point(|r| r.0 <= offset);
        let (_, line, file) = *rows.get(next.checked_sub(1)?)?;
        (line != 0).then_some((line, file))
    }
}

/// Functions that were inlined: section, offsets, the name, how deep.
pub(super) struct Inlined {
    ranges: Vec<(u64, u64, String, isize)>,
    places: HashMap<String, Vec<u64>>,
}

impl Inlined {
    pub fn read(module: &Module<'_>) -> Option<Inlined> {
        let sections = Sections::read(module)?;
        let dwarf = sections.dwarf()?;
        let mut ranges = Vec::new();
        for unit in units(&dwarf) {
            let mut entry = Entry::null();
            let Ok(mut entries) = unit.entries_raw(None) else {
                continue;
            };
            while !entries.is_empty() && ranges.len() < MOST {
                match entries.read_entry(&mut entry) {
                    Ok(true) if entry.tag() == gimli::DW_TAG_inlined_subroutine => {}
                    Ok(_) => continue,
                    Err(_) => break,
                }
                let Some(name) = origin_name(&dwarf, &unit, &entry) else {
                    continue;
                };
                let Some(mut covered) = ranges_of(&dwarf, &unit, &entry) else {
                    continue;
                };
                while let (Ok(Some(range)), true) = (covered.next(), ranges.len() < MOST) {
                    ranges.push((range.begin, range.end, name.clone(), entry.depth()));
                }
            }
        }
        ranges.sort_by_key(|r| r.0);
        let mut places: HashMap<String, Vec<u64>> = HashMap::new();
        for (begin, _, name, _) in &ranges {
            match places.get_mut(name) {
                // Of so many places some tell enough.
                Some(known) if known.len() < 1 << 12 => known.push(*begin),
                Some(_) => {}
                None => drop(places.insert(name.clone(), vec![*begin])),
            }
        }
        Some(Inlined { ranges, places })
    }

    /// Where a function was inlined: section and offset.
    pub fn places(&self, name: &str) -> impl Iterator<Item = (usize, u64)> + '_ {
        let named = self.places.get(name).map_or(&[][..], Vec::as_slice);
        named
            .iter()
            .map(|at| ((at >> 32) as usize, at & 0xffff_ffff))
    }

    /// The innermost function that was inlined at a place.
    pub fn at(&self, section: usize, offset: u64) -> Option<&str> {
        let address = ((section as u64) << 32).checked_add(offset)?;
        let end = self.ranges.partition_point(|r| r.0 <= address);
        let around = self
            .ranges
            .get(..end)?
            .iter()
            .rev()
            .take(4096)
            .filter(|r| address < r.1);
        around.max_by_key(|r| r.3).map(|r| r.2.as_str())
    }
}

fn origin_name<'d>(
    dwarf: &Dwarf<Slice<'d>>,
    unit: &Unit<Slice<'d>>,
    entry: &Entry<'d>,
) -> Option<String> {
    let mut entry = entry.clone();
    for _ in 0..8 {
        if let Some(name) = name(dwarf, unit, &entry) {
            return Some(name);
        }
        let next = entry.attr_value(gimli::DW_AT_abstract_origin);
        match next.or_else(|| entry.attr_value(gimli::DW_AT_specification))? {
            gimli::AttributeValue::UnitRef(offset) => entry = unit.entry(offset).ok()?,
            _ => return None,
        }
    }
    None
}

/// An entry's own name.
pub(super) fn name<'d>(
    dwarf: &Dwarf<Slice<'d>>,
    unit: &Unit<Slice<'d>>,
    entry: &Entry<'d>,
) -> Option<String> {
    let value = entry.attr_value(gimli::DW_AT_name)?;
    let text = dwarf.attr_string(unit, value).ok()?;
    let text = text.to_string_lossy();
    (text.len() <= 1 << 12).then(|| text.into_owned())
}

/// Whether an object comes from an assembler source.
pub(super) fn is_assembly(module: &Module<'_>) -> bool {
    let Some(sections) = Sections::read(module) else {
        return false;
    };
    let Some(dwarf) = sections.dwarf() else {
        return false;
    };
    let languages: Vec<_> = units(&dwarf)
        .iter()
        .filter_map(|unit| {
            let mut entries = unit.entries();
            let entry = entries.next_dfs().ok()??;
            entry.attr_value(gimli::DW_AT_language)
        })
        .collect();
    !languages.is_empty()
        && languages
            .iter()
            .all(|l| *l == gimli::AttributeValue::Language(gimli::DW_LANG_Mips_Assembler))
}
