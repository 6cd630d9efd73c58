//! Where functions are declared, what was inlined into them, and what types their variables have: by debug information.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use gimli::{AttributeValue, Dwarf, Unit};

use super::dwarf::{Entry, Sections, Slice, name, units};
use super::module::{Item, Module};
use super::types::Structs;
use livegraft_patchfile::ranges_of;

/// More entries than that are taken for damage.
const MOST: usize = 1 << 23;
/// Bytes of all paths of an object's files.
pub(super) const PATHS: usize = 1 << 26;
/// How many references from one entry to the next are followed.
const DEPTH: usize = 8;

/// A function of the source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Decl {
    /// As the source calls it.
    pub name: String,
    /// The name that tells it from others: that of its symbol, where that is another one.
    pub key: String,
    /// The file, as the compiler saw it.
    pub file: PathBuf,
    pub line: u64,
}

/// A function that has code of its own.
#[derive(Debug, Default)]
pub(super) struct Concrete {
    pub decl: Option<Decl>,
    /// What is inlined into it, at any depth.
    pub inlined: BTreeSet<Decl>,
    /// Of the structs that were asked for those that its variables are or lead to.
    pub structs: BTreeSet<String>,
}

/// The functions of an object.
#[derive(Debug, Default)]
pub(super) struct Declared {
    concrete: Vec<Concrete>,
    /// By section, upper half, and offset of each of its ranges.
    at: HashMap<u64, usize>,
    /// Every function of which the source of a body is known, by its key.
    pub known: BTreeMap<String, Decl>,
    /// Lines at which functions are declared, by file.
    lines: BTreeMap<PathBuf, BTreeSet<u64>>,
}

impl Declared {
    /// `None` without debug information. `structs`: those that are looked for in the types of variables.
    pub fn read(module: &Module<'_>, structs: &BTreeSet<String>) -> Option<Declared> {
        let sections = Sections::read(module)?;
        let dwarf = sections.dwarf()?;
        let mut declared = Declared::default();
        let (mut budget, mut paths) = (MOST, PATHS);
        for unit in units(&dwarf) {
            let reader = Reader {
                dwarf: &dwarf,
                unit: &unit,
                files: files(&dwarf, &unit, &mut paths),
            };
            declared.add(&reader, structs, &mut budget)?;
        }
        Some(declared)
    }

    fn add(
        &mut self,
        reader: &Reader<'_, '_>,
        structs: &BTreeSet<String>,
        budget: &mut usize,
    ) -> Option<()> {
        let leading = Structs::leading(reader.dwarf, reader.unit, structs)?;
        let mut entry = Entry::null();
        let mut entries = reader.unit.entries_raw(None).ok()?;
        // The functions with code that the entry lies in.
        let mut around: Vec<(isize, usize)> = Vec::new();
        while !entries.is_empty() {
            *budget = budget.checked_sub(1)?;
            if !entries.read_entry(&mut entry).ok()? {
                continue;
            }
            let depth = entry.depth();
            around.retain(|(outer, _)| *outer < depth);
            let inside = around.last().map(|(_, function)| *function);
            match entry.tag() {
                gimli::DW_TAG_subprogram => {
                    let is_declaration = entry.attr_value(gimli::DW_AT_declaration).is_some();
                    let decl = reader.decl(&entry).filter(|_| !is_declaration);
                    if let Some(decl) = &decl {
                        self.known.insert(decl.key.clone(), decl.clone());
                        let lines = self.lines.entry(decl.file.clone()).or_default();
                        lines.insert(decl.line);
                    }
                    let Some(mut ranges) = ranges_of(reader.dwarf, reader.unit, &entry) else {
                        continue;
                    };
                    let number = self.concrete.len();
                    let mut any = false;
                    while let Ok(Some(range)) = ranges.next() {
                        *budget = budget.checked_sub(1)?;
                        any |= range.begin < range.end;
                        self.at.insert(range.begin, number);
                    }
                    if any {
                        self.concrete.push(Concrete {
                            decl,
                            ..Concrete::default()
                        });
                        around.push((depth, number));
                    }
                }
                gimli::DW_TAG_inlined_subroutine => {
                    let function = inside.and_then(|f| self.concrete.get_mut(f));
                    if let Some((function, decl)) = function.zip(reader.decl(&entry)) {
                        function.inlined.insert(decl);
                    }
                }
                gimli::DW_TAG_variable | gimli::DW_TAG_formal_parameter => {
                    let function = inside.and_then(|f| self.concrete.get_mut(f));
                    let to = reader.type_of(&entry).and_then(|to| leading.get(&to));
                    if let Some((function, to)) = function.zip(to) {
                        function.structs.extend(to.iter().cloned());
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// The function whose code, or a part of it, an item is.
    pub fn of(&self, item: &Item) -> Option<&Concrete> {
        let at = ((item.section? as u64) << 32).checked_add(item.start)?;
        self.concrete.get(*self.at.get(&at)?)
    }

    /// The lines at which the functions of a file are declared.
    pub fn lines(&self, file: &Path) -> impl Iterator<Item = u64> {
        self.lines.get(file).into_iter().flatten().copied()
    }
}

struct Reader<'u, 'd> {
    dwarf: &'u Dwarf<Slice<'d>>,
    unit: &'u Unit<Slice<'d>>,
    files: HashMap<u64, PathBuf>,
}

impl Reader<'_, '_> {
    /// Where a function is declared: by the entry, or by those that it refers to.
    fn decl(&self, entry: &Entry<'_>) -> Option<Decl> {
        let (mut found, mut symbol) = (None, None);
        let (mut file, mut line) = (None, None);
        let mut entry = self.unit.entry(entry.offset()).ok()?;
        for _ in 0..DEPTH {
            found = found.or_else(|| name(self.dwarf, self.unit, &entry));
            symbol = symbol.or_else(|| {
                let value = entry.attr_value(gimli::DW_AT_linkage_name)?;
                let text = self.dwarf.attr_string(self.unit, value).ok()?;
                Some(text.to_string_lossy().into_owned())
            });
            let number = |at| entry.attr_value(at).and_then(|v| v.udata_value());
            // A definition has a place of its own, in another file perhaps.
            if line.is_none() {
                line = number(gimli::DW_AT_decl_line);
                file = match entry.attr_value(gimli::DW_AT_decl_file) {
                    Some(AttributeValue::FileIndex(index)) => Some(index),
                    _ => None,
                }
                .or(file);
            } else if file.is_none()
                && let Some(AttributeValue::FileIndex(index)) =
                    entry.attr_value(gimli::DW_AT_decl_file)
            {
                file = Some(index);
            }
            match origin(&entry) {
                Some(offset) => entry = self.unit.entry(offset).ok()?,
                None => break,
            }
        }
        let name = found?;
        Some(Decl {
            key: symbol.unwrap_or_else(|| name.clone()),
            name,
            file: self.files.get(&file?)?.clone(),
            line: line?,
        })
    }

    fn type_of(&self, entry: &Entry<'_>) -> Option<usize> {
        let mut entry = self.unit.entry(entry.offset()).ok()?;
        for _ in 0..DEPTH {
            match entry.attr_value(gimli::DW_AT_type) {
                Some(AttributeValue::UnitRef(to)) => return Some(to.0),
                Some(_) => return None,
                None => entry = self.unit.entry(origin(&entry)?).ok()?,
            }
        }
        None
    }
}

fn origin(entry: &Entry<'_>) -> Option<gimli::UnitOffset> {
    let next = entry.attr_value(gimli::DW_AT_abstract_origin);
    match next.or_else(|| entry.attr_value(gimli::DW_AT_specification))? {
        AttributeValue::UnitRef(offset) => Some(offset),
        _ => None,
    }
}

/// The files of a unit by their numbers. `budget`: bytes that their paths may have.
pub(super) fn files<'d>(
    dwarf: &Dwarf<Slice<'d>>,
    unit: &Unit<Slice<'d>>,
    budget: &mut usize,
) -> HashMap<u64, PathBuf> {
    let Some(program) = &unit.line_program else {
        return HashMap::new();
    };
    let header = program.header();
    let text = |value| {
        let text = dwarf.attr_string(unit, value).ok()?;
        let text = text.to_string_lossy();
        (text.len() <= 1 << 12).then(|| text.into_owned())
    };
    let root = unit
        .comp_dir
        .map(|dir| dir.to_string_lossy().into_owned())
        .filter(|dir| dir.len() <= 1 << 12);
    let root = root.unwrap_or_default();
    let count = header.file_names().len().min(1 << 16) as u64;
    let named = (0..=count).filter_map(|index| {
        let file = header.file(index)?;
        let name = text(file.path_name())?;
        let directory = file.directory(header).and_then(text).unwrap_or_default();
        let path = Path::new(&root).join(directory).join(name);
        Some((index, path))
    });
    let fits = |(_, path): &(u64, PathBuf)| {
        let left = budget.checked_sub(path.as_os_str().len().saturating_add(1));
        *budget = left.unwrap_or(0);
        left.is_some()
    };
    named.take_while(fits).collect()
}
