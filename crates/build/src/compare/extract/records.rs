//! What the names in an extract do not say: two sections that are not loaded. Each is an array of records of 40 bytes:
//!
//! | offset | field |
//! |---|---|
//! | 0 | R_X86_64_64: the symbol in this object |
//! | 8, 16 | R_X86_64_64: the name in the original object; the name of its source file (0 for a global symbol) |
//! | 24 | `st_size` in the original object |
//! | 32 | `st_type` |
//! | 36 | 0, or which of the file's local symbols of this name and type it is, counted from 1 in the order of the symbol table |
//!
//! [`REPLACED_SECTION`]: functions that replace one; [`LOCALS_SECTION`]: undefined symbols that mean a local one.

use std::borrow::Cow;
use std::collections::HashMap;

use livegraft_patchfile::elf::{Rela, SymPlace};
use object::elf;

use super::{Output, section};
use crate::compare::module::{Item, Module};

/// See the module.
pub const REPLACED_SECTION: &str = ".livegraft.replaced";
/// See the module.
pub const LOCALS_SECTION: &str = ".livegraft.locals";
/// R_X86_64_64.
const ABS64: u32 = 1;
/// Where the records' names are.
const NAMES_SECTION: &str = ".livegraft.names";

/// What is said of a symbol beyond its name.
pub(super) struct Record {
    symbol: usize,
    name: String,
    file: Option<String>,
    size: u64,
    kind: u8,
    occurrence: u32,
}

/// Local symbols by the number of their STT_FILE symbol, name and type.
pub(super) type Locals<'m> = HashMap<(Option<usize>, &'m str, u8), Vec<usize>>;

pub(super) fn locals<'m>(module: &'m Module<'_>) -> Locals<'m> {
    let mut locals: Locals<'m> = HashMap::new();
    let mut file = None;
    for (number, symbol) in module.image.symbols.iter().enumerate() {
        if symbol.kind == elf::STT_FILE.0 {
            file = Some(number);
        } else if symbol.bind == elf::STB_LOCAL.0 && symbol.place != SymPlace::Undefined {
            let key = (file, symbol.name.as_str(), symbol.kind);
            locals.entry(key).or_default().push(number);
        }
    }
    locals
}

impl Output<'_, '_> {
    pub(super) fn record(&self, symbol: usize, old: &Item) -> Record {
        let table = &self.old.image.symbols;
        let kind = table.get(old.symbol).map_or(0, |s| s.kind);
        let key = (old.file, old.name.as_str(), kind);
        let same = self.locals.get(&key).map_or(&[][..], Vec::as_slice);
        let occurrence = match same {
            [_] | [] => 0,
            several => several
                .iter()
                .position(|&n| n == old.symbol)
                .map_or(0, |n| n as u32 + 1),
        };
        Record {
            symbol,
            name: old.name.clone(),
            file: self
                .old
                .file_of(old)
                .filter(|_| !old.global)
                .map(str::to_owned),
            size: old.size,
            kind,
            occurrence,
        }
    }

    pub(super) fn write_records(&mut self) {
        let [replaced, locals] = std::mem::take(&mut self.records);
        let names = self.add_section(section(
            NAMES_SECTION,
            elf::SHT_PROGBITS.0,
            0,
            Cow::Borrowed(&[]),
        ));
        let names_symbol = self.section_symbol(names);
        let mut text: Vec<u8> = Vec::new();
        for (name, records) in [(REPLACED_SECTION, replaced), (LOCALS_SECTION, locals)] {
            let mut sec = section(name, elf::SHT_PROGBITS.0, 0, Cow::Borrowed(&[]));
            let mut data = Vec::new();
            for record in &records {
                let at = data.len() as u64;
                let mut point = |offset: u64, symbol, addend| {
                    let offset = at.saturating_add(offset);
                    sec.relas.push(Rela {
                        offset,
                        r_type: ABS64,
                        symbol,
                        addend,
                        via: 0,
                    });
                };
                point(0, record.symbol, 0);
                for (offset, name) in [(8, Some(&record.name)), (16, record.file.as_ref())] {
                    if let Some(name) = name {
                        point(offset, names_symbol, text.len() as i64);
                        text.extend_from_slice(name.as_bytes());
                        text.push(0);
                    }
                }
                data.extend_from_slice(&[0; 24]);
                data.extend_from_slice(&record.size.to_le_bytes());
                data.extend_from_slice(&u32::from(record.kind).to_le_bytes());
                data.extend_from_slice(&record.occurrence.to_le_bytes());
            }
            sec.align = 8;
            sec.size = data.len() as u64;
            sec.data = Cow::Owned(data);
            self.add_section(sec);
        }
        if let Some(sec) = self.image.sections.get_mut(names) {
            sec.size = text.len() as u64;
            sec.data = Cow::Owned(text);
        }
    }
}
