//! Source lines and inlined functions from the DWARF of one object.
//!
//! The files are untrusted, so the entries are walked with a list instead of by recursion (one byte can nest them one
//! deeper), each unit is read once, and everything is paid from a [`Budget`]. What does not read is left out.

use gimli::{
    AbbreviationsCacheStrategy, AttributeValue, DebugInfoOffset, DebuggingInformationEntry, Dwarf,
    EndianRcSlice, LittleEndian, Reader as _, SectionId, Unit, UnitHeader, UnitOffset, UnitType,
};
use livegraft_patchfile::ranges_of;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

type Reader = EndianRcSlice<LittleEndian>;
type Entry = DebuggingInformationEntry<Reader>;
type Offset = UnitOffset<usize>;

/// Functions within functions, beyond which the rest is left out.
const MOST_INLINED: usize = 64;
/// A name that refers to another entry, which refers to another one, is followed so far.
const MOST_HOPS: usize = 16;
/// Units beyond this number, and ranges of all of them, are taken for damage.
const MOST_UNITS: usize = 1 << 20;
const MOST_RANGES: usize = 1 << 22;
/// A longer name or path is cut.
const LONGEST_NAME: usize = 1 << 14;
/// Units that claim the same address, beyond which nobody is asked any more.
const MOST_CANDIDATES: usize = 4;

/// How much longer names are looked for: they are a courtesy, and nobody shall wait for them.
#[derive(Debug)]
pub(super) struct Budget {
    until: Instant,
    steps: u32,
    spent: bool,
}

impl Budget {
    pub fn new(time: Duration) -> Budget {
        Budget {
            until: Instant::now() + time,
            steps: 0,
            spent: false,
        }
    }

    /// One step of work; `None` when there is no time left for it.
    pub fn step(&mut self) -> Option<()> {
        self.steps = self.steps.wrapping_add(1);
        if self.steps % 1024 == 1 {
            self.spent |= Instant::now() >= self.until;
        }
        (!self.spent).then_some(())
    }
}

/// A place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub file: Option<String>,
    pub line: Option<u64>,
}

/// A function at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function {
    /// As the compiler named it: mangled where the language does that.
    pub name: Option<String>,
    pub place: Place,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Debug {
    dwarf: Dwarf<Reader>,
    /// In the order of their offsets.
    headers: Vec<UnitHeader<Reader>>,
    /// (svma range, index of the unit).
    ranges: Vec<(Range<u64>, usize)>,
    units: HashMap<usize, Option<Rc<Indexed>>>,
    ranges_left: usize,
}

/// A unit that has been asked.
#[derive(Debug)]
struct Indexed {
    unit: Unit<Reader>,
    /// The functions that have code, by where it begins.
    functions: OnceCell<Vec<(Range<u64>, Offset)>>,
    /// The line table, by where the rows begin.
    rows: OnceCell<Vec<Row>>,
}

/// svma range, file, line.
type Row = (Range<u64>, u64, Option<u64>);

/// A function that contains the address, on the way inwards.
struct Enclosing {
    depth: isize,
    name: Option<String>,
    call: (Option<u64>, Option<u64>),
}

impl Debug {
    /// From the sections of a file; a section that is not there is empty.
    pub fn open(
        mut section: impl FnMut(&'static str) -> Vec<u8>,
        budget: &mut Budget,
    ) -> Option<Debug> {
        let load = |id: SectionId| -> Result<Reader, ()> {
            let bytes = match id {
                SectionId::DebugLoc | SectionId::DebugLocLists | SectionId::DebugTypes => {
                    Vec::new()
                }
                SectionId::DebugMacinfo | SectionId::DebugMacro | SectionId::DebugNames => {
                    Vec::new()
                }
                id => section(id.name()),
            };
            Ok(EndianRcSlice::new(Rc::from(bytes), LittleEndian))
        };
        let mut dwarf = Dwarf::load(load).ok()?;
        dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
        let mut debug = Debug {
            dwarf,
            headers: Vec::new(),
            ranges: Vec::new(),
            units: HashMap::new(),
            ranges_left: MOST_RANGES,
        };
        let mut headers = debug.dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            budget.step()?;
            if debug.headers.len() >= MOST_UNITS {
                break;
            }
            debug.headers.push(header);
        }
        debug.read_ranges(budget)?;
        Some(debug)
    }

    /// Which unit speaks of which code: .debug_aranges where it does, else the units themselves.
    fn read_ranges(&mut self, budget: &mut Budget) -> Option<()> {
        let mut told = vec![false; self.headers.len()];
        let mut sets = self.dwarf.debug_aranges.headers();
        while let Ok(Some(set)) = sets.next() {
            budget.step()?;
            let Some(unit) = self.unit_at(set.debug_info_offset()) else {
                continue;
            };
            let mut entries = set.entries();
            while let Some(range) = entries.next().transpose() {
                budget.step()?;
                if let Ok(range) = range.map(|entry| entry.range()) {
                    self.add_range(range, unit);
                    if let Some(told) = told.get_mut(unit) {
                        *told = true;
                    }
                }
            }
        }
        for (index, header) in self.headers.clone().into_iter().enumerate() {
            budget.step()?;
            let is_program = matches!(
                header.type_(),
                UnitType::Compilation | UnitType::Skeleton(_)
            );
            if !is_program || told.get(index) == Some(&true) {
                continue;
            }
            let Ok(unit) = self.dwarf.unit(header) else {
                continue;
            };
            let mut entries = unit.entries();
            let root = entries.next_dfs().ok().flatten();
            let Some(mut ranges) = root.and_then(|root| ranges_of(&self.dwarf, &unit, root)) else {
                continue;
            };
            while let Ok(Some(range)) = ranges.next() {
                budget.step()?;
                self.add_range(range, index);
            }
        }
        Some(())
    }

    fn add_range(&mut self, range: gimli::Range, unit: usize) {
        if range.begin < range.end && self.ranges_left > 0 {
            self.ranges_left -= 1;
            self.ranges.push((range.begin..range.end, unit));
        }
    }

    /// The unit that an offset in .debug_info lies in.
    fn unit_at(&self, offset: DebugInfoOffset) -> Option<usize> {
        let begins = |header: &UnitHeader<Reader>| header.debug_info_offset();
        let end = self
            .headers
            .partition_point(|header| begins(header) <= Some(offset));
        end.checked_sub(1)
    }

    fn unit(&mut self, index: usize) -> Option<Rc<Indexed>> {
        if let Some(known) = self.units.get(&index) {
            return known.clone();
        }
        let header = self.headers.get(index).cloned();
        let unit = header.and_then(|header| self.dwarf.unit(header).ok());
        let unit = unit.map(|unit| {
            Rc::new(Indexed {
                unit,
                functions: OnceCell::new(),
                rows: OnceCell::new(),
            })
        });
        self.units.insert(index, unit.clone());
        unit
    }

    /// The functions that an address (svma) is in, innermost first: all but the last are inlined. Empty where nothing
    /// is known; the last has no name where only the line is.
    pub fn functions_at(&mut self, svma: u64, budget: &mut Budget) -> Vec<Function> {
        let claims = |(range, unit): &(Range<u64>, usize)| range.contains(&svma).then_some(*unit);
        let claimed = self.ranges.iter().filter_map(claims);
        let candidates: Vec<usize> = claimed.take(MOST_CANDIDATES).collect();
        for index in candidates {
            let Some(indexed) = self.unit(index) else {
                continue;
            };
            let chain = self.enclosing(&indexed, svma, budget).unwrap_or_default();
            let place = self.place_at(&indexed, svma, budget);
            if !chain.is_empty() || place.is_some() {
                return self.unfold(&indexed.unit, chain, place.unwrap_or_default());
            }
        }
        Vec::new()
    }

    /// Where a function was called is the place of the one around it.
    fn unfold(
        &self,
        unit: &Unit<Reader>,
        chain: Vec<Enclosing>,
        innermost: Place,
    ) -> Vec<Function> {
        if chain.is_empty() {
            return Vec::from([Function {
                name: None,
                place: innermost,
            }]);
        }
        let mut place = innermost;
        let inwards = chain.into_iter().rev().map(|function| {
            let (file, line) = function.call;
            let caller = Place {
                file: file.and_then(|file| self.path_of(unit, file)),
                line,
            };
            Function {
                name: function.name,
                place: std::mem::replace(&mut place, caller),
            }
        });
        inwards.collect()
    }

    /// The function that contains the address, and those that are inlined there, outermost first.
    fn enclosing(
        &mut self,
        indexed: &Indexed,
        svma: u64,
        budget: &mut Budget,
    ) -> Option<Vec<Enclosing>> {
        let unit = &indexed.unit;
        if indexed.functions.get().is_none() {
            let functions = self.index_functions(unit, budget);
            let _ = indexed.functions.set(functions);
        }
        let functions = indexed.functions.get()?;
        let end = functions.partition_point(|(range, _)| range.start <= svma);
        let near = functions.get(..end)?.iter().rev().take(16);
        let (_, offset) = near.into_iter().find(|(range, _)| range.contains(&svma))?;
        let mut entries = unit.entries_raw(Some(*offset)).ok()?;
        let top = entries.next_depth();
        let mut entry = Entry::null();
        let mut chain: Vec<Enclosing> = Vec::new();
        while !entries.is_empty() {
            budget.step()?;
            if !chain.is_empty() && entries.next_depth() <= top {
                break;
            }
            if !entries.read_entry(&mut entry).ok()? {
                continue;
            }
            let inlined = entry.tag() == gimli::DW_TAG_inlined_subroutine;
            let is_outermost = chain.is_empty();
            if !(is_outermost || inlined && self.covers(unit, &entry, svma, budget)) {
                continue;
            }
            let depth = entry.depth();
            while chain.len() > 1 && chain.last().is_some_and(|last| last.depth >= depth) {
                chain.pop();
            }
            if chain.len() > MOST_INLINED {
                break;
            }
            chain.push(Enclosing {
                depth,
                name: self.name_of(unit, &entry),
                call: call_site(&entry),
            });
        }
        Some(chain)
    }

    fn index_functions(
        &mut self,
        unit: &Unit<Reader>,
        budget: &mut Budget,
    ) -> Vec<(Range<u64>, Offset)> {
        let mut functions = Vec::new();
        let mut entry = Entry::null();
        let Ok(mut entries) = unit.entries_raw(None) else {
            return functions;
        };
        // Damage ends the list; what was read before it holds.
        while !entries.is_empty() && budget.step().is_some() {
            match entries.read_entry(&mut entry) {
                Ok(true) if entry.tag() == gimli::DW_TAG_subprogram => {}
                Ok(_) => continue,
                Err(_) => break,
            }
            let Some(mut ranges) = ranges_of(&self.dwarf, unit, &entry) else {
                continue;
            };
            while let (Ok(Some(range)), Some(())) = (ranges.next(), budget.step()) {
                if range.begin < range.end && self.ranges_left > 0 {
                    self.ranges_left -= 1;
                    functions.push((range.begin..range.end, entry.offset()));
                }
            }
        }
        functions.sort_by_key(|(range, _)| range.start);
        functions
    }

    fn covers(&self, unit: &Unit<Reader>, entry: &Entry, svma: u64, budget: &mut Budget) -> bool {
        let Some(mut ranges) = ranges_of(&self.dwarf, unit, entry) else {
            return false;
        };
        while let (Ok(Some(range)), Some(())) = (ranges.next(), budget.step()) {
            if (range.begin..range.end).contains(&svma) {
                return true;
            }
        }
        false
    }

    /// The mangled name where there is one; it may be that of the entry that this one is an instance of.
    fn name_of(&mut self, unit: &Unit<Reader>, entry: &Entry) -> Option<String> {
        let mut other: Option<Rc<Indexed>> = None;
        let mut entry = entry.clone();
        let mut plain = None;
        for _ in 0..MOST_HOPS {
            let unit = other.as_ref().map_or(unit, |other| &other.unit);
            let named = |at| {
                let value = entry.attr_value(at)?;
                text(&self.dwarf.attr_string(unit, value).ok()?)
            };
            let mangled = named(gimli::DW_AT_linkage_name);
            if let Some(name) = mangled.or_else(|| named(gimli::DW_AT_MIPS_linkage_name)) {
                return Some(name);
            }
            plain = plain.or_else(|| named(gimli::DW_AT_name));
            let origin = entry.attr_value(gimli::DW_AT_abstract_origin);
            let Some(next) = origin.or_else(|| entry.attr_value(gimli::DW_AT_specification)) else {
                break;
            };
            let found = match next {
                AttributeValue::UnitRef(offset) => unit.entry(offset).ok(),
                AttributeValue::DebugInfoRef(offset) => {
                    let index = self.unit_at(offset)?;
                    let indexed = self.unit(index)?;
                    let offset = offset.to_unit_offset(&indexed.unit.header)?;
                    let found = indexed.unit.entry(offset).ok();
                    other = Some(indexed);
                    found
                }
                _ => None,
            };
            let Some(found) = found else { break };
            entry = found;
        }
        plain
    }

    /// What the line table says of an address.
    fn place_at(&self, indexed: &Indexed, svma: u64, budget: &mut Budget) -> Option<Place> {
        let rows = indexed
            .rows
            .get_or_init(|| read_rows(&indexed.unit, budget));
        let end = rows.partition_point(|(range, ..)| range.start <= svma);
        let near = rows.get(..end)?.iter().rev().take(16);
        let (_, file, line) = near.into_iter().find(|(range, ..)| range.contains(&svma))?;
        Some(Place {
            file: self.path_of(&indexed.unit, *file),
            line: *line,
        })
    }

    fn path_of(&self, unit: &Unit<Reader>, file: u64) -> Option<String> {
        let header = unit.line_program.as_ref()?.header();
        let file = header.file(file)?;
        let string = |value| text(&self.dwarf.attr_string(unit, value).ok()?);
        let mut path = PathBuf::new();
        if let Some(directory) = unit.comp_dir.as_ref().and_then(text) {
            path.push(directory);
        }
        // Directory 0 is the one in which the compiler ran.
        let directory = file
            .directory(header)
            .filter(|_| file.directory_index() != 0);
        if let Some(directory) = directory.and_then(string) {
            path.push(directory);
        }
        path.push(string(file.path_name())?);
        Some(tidy(&path))
    }
}

/// File and line of the call that an inlined function stands for.
fn call_site(entry: &Entry) -> (Option<u64>, Option<u64>) {
    let file = match entry.attr_value(gimli::DW_AT_call_file) {
        Some(AttributeValue::FileIndex(file)) => Some(file),
        Some(value) => value.udata_value(),
        None => None,
    };
    let line = entry.attr_value(gimli::DW_AT_call_line);
    (
        file,
        line.and_then(|line| line.udata_value())
            .filter(|&line| line > 0),
    )
}

fn read_rows(unit: &Unit<Reader>, budget: &mut Budget) -> Vec<Row> {
    let mut table: Vec<Row> = Vec::new();
    let Some(program) = unit.line_program.clone() else {
        return table;
    };
    let mut rows = program.rows();
    let mut before: Option<(u64, u64, Option<u64>)> = None;
    while let (Ok(Some((_, row))), Some(())) = (rows.next_row(), budget.step()) {
        let before_it = before.filter(|(start, ..)| *start < row.address());
        table.extend(before_it.map(|(start, file, line)| (start..row.address(), file, line)));
        let line = row.line().map(std::num::NonZeroU64::get);
        before = (!row.end_sequence()).then(|| (row.address(), row.file_index(), line));
    }
    table.sort_by_key(|(range, ..)| range.start);
    table
}

fn text(string: &Reader) -> Option<String> {
    let bytes = string.to_slice().ok()?;
    let bytes = bytes.get(..LONGEST_NAME).unwrap_or(&bytes);
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// The path without what goes down and up again.
fn tidy(path: &Path) -> String {
    let mut tidied = PathBuf::new();
    for component in path.components() {
        let can_go_up = matches!(tidied.components().next_back(), Some(Component::Normal(_)));
        match component {
            Component::CurDir => {}
            Component::ParentDir if can_go_up => {
                tidied.pop();
            }
            other => tidied.push(other),
        }
    }
    tidied.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
