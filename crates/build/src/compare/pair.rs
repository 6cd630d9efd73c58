//! Whether two references mean the same: the same symbol, or content that is the same.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};

use livegraft_patchfile::elf::Sec;
use object::elf;

use super::module::{Item, Meaning, Module, is_constant, is_pc_relative};

/// How many pointers are followed from one constant to the next.
const DEPTH: usize = 48;

/// Two objects and which item of one is which of the other.
pub(super) struct Pair<'m, 'a> {
    pub old: &'m Module<'a>,
    pub new: &'m Module<'a>,
    /// For each item of the original its counterpart.
    pub forward: Vec<Option<usize>>,
    /// For each item of the patched object its counterpart.
    pub backward: Vec<Option<usize>>,
    constants: RefCell<HashMap<(usize, usize), bool>>,
    /// Bytes of content that may still be compared.
    budget: Cell<u64>,
}

/// Where two functions that are being compared have the same instructions.
#[derive(Clone, Copy)]
pub(super) struct Labels<'l> {
    pub old: usize,
    pub new: usize,
    /// The offsets of the instructions, padding left out.
    pub old_at: &'l [u32],
    pub new_at: &'l [u32],
}

impl Labels<'_> {
    /// Whether two offsets are the same instruction.
    pub fn same(&self, old: i64, new: i64) -> bool {
        let index = |at: &[u32], offset: i64| {
            let offset = u32::try_from(offset).ok()?;
            Some(at.partition_point(|&a| a < offset))
        };
        match (index(self.old_at, old), index(self.new_at, new)) {
            (Some(a), Some(b)) => a == b,
            _ => old == new,
        }
    }
}

/// A stretch of a section.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub section: usize,
    pub start: u64,
    pub len: u64,
}

impl<'m, 'a> Pair<'m, 'a> {
    pub fn new(old: &'m Module<'a>, new: &'m Module<'a>) -> Self {
        let size = |m: &Module<'_>| -> u64 {
            let data = m.image.sections.iter().map(|s| s.data.len() as u64);
            data.fold(0, u64::saturating_add)
        };
        let budget = size(old)
            .saturating_add(size(new))
            .saturating_mul(16)
            .saturating_add(1 << 24);
        Pair {
            forward: vec![None; old.items.len()],
            backward: vec![None; new.items.len()],
            old,
            new,
            constants: RefCell::default(),
            budget: Cell::new(budget),
        }
    }

    /// With what is known of each item of the patched object.
    pub fn tied(old: &'m Module<'a>, new: &'m Module<'a>, backward: &[Option<usize>]) -> Self {
        let mut pair = Pair::new(old, new);
        for (number, old) in backward.iter().enumerate() {
            if let Some(old) = *old {
                pair.tie(old, number);
            }
        }
        pair
    }

    pub fn tie(&mut self, old: usize, new: usize) {
        if let (Some(f), Some(b)) = (self.forward.get_mut(old), self.backward.get_mut(new)) {
            (*f, *b) = (Some(new), Some(old));
        }
    }

    /// The counterpart of an item of the patched object.
    pub fn old_of(&self, new: usize) -> Option<usize> {
        self.backward.get(new).copied().flatten()
    }

    /// The same, itself.
    pub fn old_item_of(&self, new: usize) -> Option<&'m Item> {
        self.old.item(self.old_of(new)?)
    }

    /// The counterpart of an item of the original.
    pub fn new_of(&self, old: usize) -> Option<usize> {
        self.forward.get(old).copied().flatten()
    }

    /// Takes apart what only the objects have: gives the items of the patched one whose counterparts are not in the target,
    /// by name and source file.
    pub fn untie(&mut self, absent: &BTreeSet<(String, Option<String>)>) -> BTreeSet<usize> {
        let mut untied = BTreeSet::new();
        for (number, item) in self.old.items.iter().enumerate() {
            let file = self.old.file_of(item).map(str::to_owned);
            let pair = self.forward.get_mut(number);
            if absent.contains(&(item.name.clone(), file))
                && let Some(new) = pair.and_then(Option::take)
            {
                if let Some(back) = self.backward.get_mut(new) {
                    *back = None;
                }
                untied.insert(new);
            }
        }
        untied
    }

    /// Whether the budget is used up: then what was found is worth nothing.
    pub fn exhausted(&self) -> bool {
        self.budget.get() == 0
    }

    fn spend(&self, bytes: u64) -> bool {
        self.budget
            .set(self.budget.get().saturating_sub(bytes.saturating_add(1)));
        !self.exhausted()
    }

    /// Whether two references mean the same. `access`: how many bytes are loaded; `None` if the address is taken.
    pub fn same(
        &self,
        old: Meaning,
        new: Meaning,
        access: Option<u64>,
        labels: Option<&Labels<'_>>,
    ) -> bool {
        self.same_at(old, new, access, labels, DEPTH)
    }

    fn same_at(
        &self,
        old: Meaning,
        new: Meaning,
        access: Option<u64>,
        labels: Option<&Labels<'_>>,
        depth: usize,
    ) -> bool {
        // Of what is loaded the bytes themselves are looked at.
        let loaded = |meaning| match meaning {
            Meaning::Piece(section, start, at) if access.is_some() => {
                Meaning::Anonymous(section, (start as i64).wrapping_add(at))
            }
            other => other,
        };
        match (loaded(old), loaded(new)) {
            (Meaning::Extern(a, x), Meaning::Extern(b, y)) => {
                let name =
                    |m: &'m Module<'a>, s: usize| m.image.symbols.get(s).map(|s| s.name.as_str());
                x == y && name(self.old, a) == name(self.new, b)
            }
            (Meaning::Absolute(a), Meaning::Absolute(b)) => a == b,
            (Meaning::Item(a, x), Meaning::Item(b, y)) => {
                if self.new_of(a) != Some(b) {
                    return false;
                }
                if let Some(labels) = labels.filter(|l| l.old == a && l.new == b) {
                    return labels.same(x, y);
                }
                x == y && self.same_private_constant(a, b, depth)
            }
            (Meaning::Anonymous(a, x), Meaning::Anonymous(b, y)) => {
                match (u64::try_from(x), u64::try_from(y)) {
                    (Ok(x), Ok(y)) => self.same_content((a, x), (b, y), access, labels, depth),
                    _ => false,
                }
            }
            (Meaning::Piece(a, x, i), Meaning::Piece(b, y, j)) => {
                i == j && self.same_content((a, x), (b, y), None, labels, depth)
            }
            _ => false,
        }
    }

    /// A static constant that changed is another constant: the patch brings the new one.
    fn same_private_constant(&self, old: usize, new: usize, depth: usize) -> bool {
        let (Some(a), Some(b)) = (self.old.item(old), self.new.item(new)) else {
            return false;
        };
        if !is_private_constant(self.old, a) || !is_private_constant(self.new, b) {
            return true;
        }
        if let Some(&known) = self.constants.borrow().get(&(old, new)) {
            return known;
        }
        let Some(depth) = depth.checked_sub(1) else {
            return false;
        };
        // A constant that points to itself is the same if all else is.
        self.constants.borrow_mut().insert((old, new), true);
        let same = self.same_value_at(a, b, depth);
        self.constants.borrow_mut().insert((old, new), same);
        same
    }

    /// Whether two variables begin with the same value, pointers by what they point to.
    pub fn same_value(&self, old: &Item, new: &Item) -> bool {
        self.same_value_at(old, new, DEPTH)
    }

    fn same_value_at(&self, old: &Item, new: &Item, depth: usize) -> bool {
        if old.size != new.size {
            return false;
        }
        let (Some(a), Some(b)) = (old.section, new.section) else {
            return old.section == new.section;
        };
        let range = |section, item: &Item| Range {
            section,
            start: item.start,
            len: item.size,
        };
        self.same_range(range(a, old), range(b, new), None, depth)
    }

    /// Whether two stretches hold the same bytes and refer to the same.
    pub fn same_bytes(&self, old: Range, new: Range, labels: Option<&Labels<'_>>) -> bool {
        self.same_range(old, new, labels, DEPTH)
    }

    fn same_range(
        &self,
        old: Range,
        new: Range,
        labels: Option<&Labels<'_>>,
        depth: usize,
    ) -> bool {
        if old.len != new.len || !self.spend(old.len) {
            return false;
        }
        let (Some(a), Some(b)) = (bytes(self.old, old), bytes(self.new, new)) else {
            return false;
        };
        let zeros = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
        let equal = match (a.is_empty(), b.is_empty()) {
            (true, false) => zeros(b),
            (false, true) => zeros(a),
            _ => a == b,
        };
        if !equal {
            return false;
        }
        let end = |r: Range| r.start.saturating_add(r.len);
        let a = self.old.relas(old.section, old.start, end(old));
        let b = self.new.relas(new.section, new.start, end(new));
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                let (x, y) = (
                    a.offset.wrapping_sub(old.start),
                    b.offset.wrapping_sub(new.start),
                );
                // A table of distances counts them from its own start.
                let table =
                    |m: &Module<'_>, r: Range| m.section(r.section).is_some_and(is_exceptions);
                let counts = is_pc_relative(a.r_type) && !table(self.old, old);
                let from = if counts { x as i64 } else { 0 };
                let meant = |m: &Module<'_>, r: &livegraft_patchfile::elf::Rela| {
                    m.meaning(r.symbol, r.addend.wrapping_sub(from))
                };
                x == y
                    && a.r_type == b.r_type
                    && self.same_at(meant(self.old, a), meant(self.new, b), None, labels, depth)
            })
    }

    fn same_content(
        &self,
        old: (usize, u64),
        new: (usize, u64),
        access: Option<u64>,
        labels: Option<&Labels<'_>>,
        depth: usize,
    ) -> bool {
        let Some(depth) = depth.checked_sub(1) else {
            return false;
        };
        let (Some(a), Some(b)) = (
            content(self.old, old, access),
            content(self.new, new, access),
        ) else {
            return false;
        };
        if a.before != b.before {
            return false;
        }
        if is_rust_location(self.old, a.range) && is_rust_location(self.new, b.range) {
            // Which file it is counts; the line and the column do not.
            let file = |r: Range| Range { len: 16, ..r };
            return self.same_range(file(a.range), file(b.range), labels, depth);
        }
        self.same_range(a.range, b.range, labels, depth)
    }
}

/// A stretch of content, and how far into it a reference leads.
pub(super) struct Content {
    pub range: Range,
    pub before: u64,
}

/// What a reference to anonymous content reaches.
pub(super) fn content(
    module: &Module<'_>,
    (number, at): (usize, u64),
    access: Option<u64>,
) -> Option<Content> {
    let section = module.section(number)?;
    if section.flags & elf::SHF_EXECINSTR.0 != 0 || !section.is_alloc() || at > section.size {
        return None;
    }
    let (start, len) = match access {
        Some(len) => (at, len),
        None if is_string_section(section) => (at, string_len(section, at)?),
        None if section.flags & elf::SHF_MERGE.0 != 0 && section.entsize != 0 => {
            let into = at.checked_rem(section.entsize)?;
            (at.checked_sub(into)?, section.entsize)
        }
        // What a program may write to has an identity, and needs a name.
        None if !is_constant(section) && !module.is_nameless(number) => {
            // But a pointer that the compiler made for itself, as clang does for exception tables.
            let end = at.checked_add(8)?;
            match module.relas(number, at, end) {
                [rela] if rela.offset == at && rela.r_type == 1 => (at, 8),
                _ => return None,
            }
        }
        None => (at, module.extent(number, at).checked_sub(at)?),
    };
    let end = start.checked_add(len)?;
    (end <= section.size).then_some(Content {
        range: Range {
            section: number,
            start,
            len,
        },
        before: at.checked_sub(start)?,
    })
}

/// Exception tables, where each distance counts from its own place.
pub(super) fn is_exceptions(section: &Sec<'_>) -> bool {
    section.name.starts_with(".gcc_except_table")
}

pub(super) fn is_string_section(section: &Sec<'_>) -> bool {
    let both = elf::SHF_MERGE.0 | elf::SHF_STRINGS.0;
    section.flags & both == both
}

/// The length of a string with its end.
fn string_len(section: &Sec<'_>, at: u64) -> Option<u64> {
    let width = match section.entsize {
        0 | 1 => 1usize,
        2 => 2,
        4 => 4,
        _ => return None,
    };
    let text = section.data.get(usize::try_from(at).ok()?..)?;
    let end = text
        .chunks_exact(width)
        .position(|c| c.iter().all(|&b| b == 0))?;
    Some(end.checked_add(1)?.checked_mul(width)? as u64)
}

/// A constant that nobody outside of the object can name.
pub(super) fn is_private_constant(module: &Module<'_>, item: &Item) -> bool {
    let section = item.section.and_then(|s| module.section(s));
    !item.global && !item.kind.is_code() && section.is_some_and(is_constant)
}

/// The bytes of a stretch; empty where they are zeros by definition.
pub(super) fn bytes<'m>(module: &'m Module<'_>, range: Range) -> Option<&'m [u8]> {
    let section = module.section(range.section)?;
    if section.sh_type == elf::SHT_NOBITS.0 {
        return Some(&[]);
    }
    let end = range.start.checked_add(range.len)?;
    section
        .data
        .get(usize::try_from(range.start).ok()?..usize::try_from(end).ok()?)
}

/// `core::panic::Location`: a `.rs` file's name, its length, a line, a column.
fn is_rust_location(module: &Module<'_>, range: Range) -> bool {
    let (24, Some(data)) = (range.len, bytes(module, range)) else {
        return false;
    };
    let [rela] = module.relas(range.section, range.start, range.start.saturating_add(24)) else {
        return false;
    };
    let len = data
        .get(8..16)
        .and_then(|b| b.first_chunk())
        .map(|b| u64::from_le_bytes(*b));
    let (Some(len @ 4..=4096), true) = (len, rela.offset == range.start) else {
        return false;
    };
    let Meaning::Anonymous(section, at) = module.meaning(rela.symbol, rela.addend) else {
        return false;
    };
    let name = u64::try_from(at).ok().and_then(|start| {
        bytes(
            module,
            Range {
                section,
                start,
                len,
            },
        )
    });
    name.is_some_and(|name| name.ends_with(b".rs") || name.ends_with(b".rs\0"))
}
