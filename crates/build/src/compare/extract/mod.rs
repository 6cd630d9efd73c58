//! A relocatable object with only what a patch needs.
//!
//! It holds the new versions of the changed functions under their old names, as local symbols: who refers to such a
//! function, by a call or by its address, means its entry in the target, an undefined symbol, as everybody else does. A
//! part that was split off, and a table that leads into a function, mean the version that they belong to.
//!
//! What names alone do not say is in two sections more: see [`records`]; what people want to know of it in a third:
//! [`changes`].

mod frames;
mod records;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use livegraft_patchfile::elf::{Image, Rela, Sec, Sym, SymPlace};
use livegraft_patchfile::{changes, write_object};
use object::elf;

use crate::compare::code::{decode, is_near_branch};
use crate::compare::decide::part_owner;
use crate::compare::module::{Item, Meaning, Module, is_pc_relative};
use crate::compare::pair::is_string_section;
use crate::compare::plan::{Plan, Reference, of_content, of_item};
use crate::compare::{Comparison, Error, NoTexts, Texts};
use records::Record;

pub use records::{LOCALS_SECTION, REPLACED_SECTION};

/// Writes what a patch needs of the patched object.
///
/// # Errors
/// [`Error::Unnamed`] for what no symbol of the target can name, [`Error::Write`].
pub fn extract(comparison: &Comparison<'_>) -> Result<Vec<u8>, Error> {
    extract_with(comparison, comparison.source(), &NoTexts)
}

/// The same of a source file that is known: its path, for people, and its text.
///
/// # Errors
/// As above.
pub fn extract_with(
    comparison: &Comparison<'_>,
    path: &Path,
    texts: &dyn Texts,
) -> Result<Vec<u8>, Error> {
    comparison.complete.clone()?;
    let table = &comparison.patched.image.symbols;
    let undefined = table.iter().filter(|s| s.place == SymPlace::Undefined);
    let mut out = Output {
        externs: undefined.map(|s| s.name.as_str()).collect(),
        locals: records::locals(&comparison.original),
        old: &comparison.original,
        new: &comparison.patched,
        plan: &comparison.plan,
        image: Image {
            sections: Vec::new(),
            symbols: Vec::new(),
        },
        items: HashMap::new(),
        pieces: BTreeMap::new(),
        undefined: HashMap::new(),
        names: HashSet::new(),
        records: [Vec::new(), Vec::new()],
    };
    out.image
        .sections
        .push(section("", 0, 0, Cow::Borrowed(&[])));
    out.image.symbols.push(symbol(
        String::new(),
        elf::STB_LOCAL.0,
        0,
        SymPlace::Undefined,
    ));
    out.place();
    out.relocate()?;
    out.frames()?;
    out.write_records();
    let said = comparison.record(path, texts);
    out.add_section(changes::section(&[said]));
    let keep = |n: usize| vec![true; n];
    let count = out.image.symbols.len();
    write_object(
        &out.image,
        &keep(out.image.sections.len()),
        &keep(count),
        &vec![None; count],
    )
    .map_err(|e| Error::Write(e.to_string()))
}

fn section<'a>(name: &str, sh_type: u32, flags: u64, data: Cow<'a, [u8]>) -> Sec<'a> {
    Sec {
        name: name.to_owned(),
        sh_type,
        flags,
        align: 1,
        size: data.len() as u64,
        entsize: 0,
        link: 0,
        data,
        relas: Vec::new(),
    }
}

fn symbol(name: String, bind: u8, kind: u8, place: SymPlace) -> Sym {
    Sym {
        name,
        bind,
        kind,
        other: 0,
        place,
        value: 0,
        size: 0,
    }
}

struct Output<'c, 'a> {
    old: &'c Module<'a>,
    new: &'c Module<'a>,
    plan: &'c Plan,
    image: Image<'a>,
    /// For each item that comes along its section and symbol.
    items: HashMap<usize, (usize, usize)>,
    /// For each stretch of content, by section and start: end, section here, section symbol, offset there.
    pieces: BTreeMap<(usize, u64), (u64, usize, usize, u64)>,
    /// Undefined symbols by what they mean: a symbol of the patched object, or an item.
    undefined: HashMap<Result<usize, usize>, usize>,
    names: HashSet<String>,
    /// What the patched object means in other objects.
    externs: HashSet<&'c str>,
    /// The local symbols of the original.
    locals: records::Locals<'c>,
    records: [Vec<Record>; 2],
}

impl<'c, 'a> Output<'c, 'a> {
    fn add_section(&mut self, section: Sec<'a>) -> usize {
        self.image.sections.push(section);
        self.image.sections.len().saturating_sub(1)
    }

    fn add_symbol(&mut self, symbol: Sym) -> usize {
        if symbol.bind != elf::STB_LOCAL.0 {
            self.names.insert(symbol.name.clone());
        }
        self.image.symbols.push(symbol);
        self.image.symbols.len().saturating_sub(1)
    }

    fn section_symbol(&mut self, section: usize) -> usize {
        let place = SymPlace::Section(section);
        self.add_symbol(symbol(
            String::new(),
            elf::STB_LOCAL.0,
            elf::STT_SECTION.0,
            place,
        ))
    }

    /// Gives everything that comes along its section.
    fn place(&mut self) {
        let (plan, new) = (self.plan, self.new);
        for &number in &plan.items {
            let Some(item) = new.item(number) else {
                continue;
            };
            let sym = new.image.symbols.get(item.symbol);
            let kind = sym.map_or(0, |s| s.kind);
            let counterpart = plan.old_of(number).and_then(|o| self.old.item(o));
            let replaces = item.kind.is_code() && counterpart.is_some();
            let name = counterpart.map_or_else(|| item.name.clone(), |o| o.name.clone());
            let from = item.section.and_then(|s| new.section(s));
            let at = match from {
                Some(from) => {
                    let range = item.start as usize..item.start.saturating_add(item.size) as usize;
                    let data = match &from.data {
                        Cow::Borrowed(data) => Cow::Borrowed(data.get(range).unwrap_or(&[])),
                        Cow::Owned(data) => Cow::Owned(data.get(range).unwrap_or(&[]).to_vec()),
                    };
                    let drop = elf::SHF_MERGE.0
                        | elf::SHF_STRINGS.0
                        | elf::SHF_GROUP.0
                        | elf::SHF_INFO_LINK.0;
                    let flags = from.flags & !drop & !elf::SHF_LINK_ORDER.0;
                    let kept = section_name(&from.name, &name);
                    let mut sec = section(&kept, from.sh_type, flags, data);
                    sec.size = item.size;
                    sec.align = alignment(from.align, item.start);
                    sec
                }
                None => {
                    let align = sym.map_or(1, |s| s.value.max(1));
                    let flags = elf::SHF_ALLOC.0 | elf::SHF_WRITE.0;
                    let mut sec = section(
                        &format!(".bss.{name}"),
                        elf::SHT_NOBITS.0,
                        flags,
                        Cow::Borrowed(&[]),
                    );
                    sec.size = item.size;
                    sec.align = if align.is_power_of_two() { align } else { 1 };
                    sec
                }
            };
            let here = self.add_section(at);
            let private = replaces || !item.global || counterpart.is_some() && !item.shared;
            let bind = if private {
                elf::STB_LOCAL.0
            } else {
                sym.map_or(elf::STB_GLOBAL.0, |s| s.bind)
            };
            let kind = if kind == elf::STT_COMMON.0 {
                elf::STT_OBJECT.0
            } else {
                kind
            };
            let defined = Sym {
                size: item.size,
                other: if private {
                    0
                } else {
                    sym.map_or(0, |s| s.other)
                },
                ..symbol(name, bind, kind, SymPlace::Section(here))
            };
            let defined = self.add_symbol(defined);
            self.items.insert(number, (here, defined));
            // Other names of the same new thing.
            if !private {
                for alias in item
                    .aliases
                    .iter()
                    .filter_map(|&a| new.image.symbols.get(a))
                {
                    if alias.bind != elf::STB_LOCAL.0 {
                        let place = SymPlace::Section(here);
                        let alias = Sym {
                            place,
                            value: 0,
                            ..alias.clone()
                        };
                        self.add_symbol(alias);
                    }
                }
            }
            if let Some(old) = counterpart.filter(|_| plan.replaced.contains(&number)) {
                let record = self.record(defined, old);
                self.records[0].push(record);
            }
            let merged = plan.merged.iter().filter(|(_, n)| *n == number);
            for old in merged.filter_map(|(o, _)| self.old.item(*o)) {
                let record = self.record(defined, old);
                self.records[0].push(record);
            }
        }
        self.place_content();
    }

    /// Strings and constants, in one section for each that they come from.
    fn place_content(&mut self) {
        let (plan, new) = (self.plan, self.new);
        for (&number, stretches) in &plan.content {
            let Some(from) = new.section(number) else {
                continue;
            };
            let drop =
                elf::SHF_MERGE.0 | elf::SHF_STRINGS.0 | elf::SHF_GROUP.0 | elf::SHF_LINK_ORDER.0;
            let mut sec = section(
                &from.name,
                from.sh_type,
                from.flags & !drop & !elf::SHF_INFO_LINK.0,
                Cow::Borrowed(&[]),
            );
            sec.align = alignment(from.align, 0);
            let here = self.add_section(sec);
            let symbol = self.section_symbol(here);
            let mut data = Vec::new();
            for (&start, &end) in stretches {
                // Strings need no alignment beyond that of their characters.
                let align = if is_string_section(from) {
                    from.entsize.clamp(1, 4)
                } else {
                    from.align.clamp(1, 64)
                };
                let align = if align.is_power_of_two() {
                    align as usize
                } else {
                    1
                };
                // The place within an aligned block stays.
                let into = (start as usize).checked_rem(align).unwrap_or(0);
                let at = data.len().next_multiple_of(align).saturating_add(into);
                data.resize(at, 0);
                data.extend_from_slice(from.data.get(start as usize..end as usize).unwrap_or(&[]));
                self.pieces
                    .insert((number, start), (end, here, symbol, at as u64));
            }
            if let Some(sec) = self.image.sections.get_mut(here) {
                sec.size = data.len() as u64;
                sec.data = Cow::Owned(data);
            }
        }
    }

    fn relocate(&mut self) -> Result<(), Error> {
        let (plan, new) = (self.plan, self.new);
        for &number in &plan.items {
            let (Some(item), Some(&(here, _))) = (new.item(number), self.items.get(&number)) else {
                continue;
            };
            self.check_branches(number, item)?;
            for reference in of_item(new, number) {
                let offset = reference.rela.offset.saturating_sub(item.start);
                self.relocate_one(here, offset, &reference, Some(number))?;
            }
        }
        let pieces: Vec<_> = self.pieces.iter().map(|(k, v)| (*k, *v)).collect();
        for ((number, start), (end, here, _, at)) in pieces {
            for reference in of_content(new, number, start, end) {
                let offset = reference
                    .rela
                    .offset
                    .saturating_sub(start)
                    .saturating_add(at);
                self.relocate_one(here, offset, &reference, None)?;
            }
        }
        Ok(())
    }

    fn relocate_one(
        &mut self,
        here: usize,
        offset: u64,
        reference: &Reference,
        within: Option<usize>,
    ) -> Result<(), Error> {
        let r_type = reference.rela.r_type;
        let (symbol, to) = self.refer(reference.meaning, within, is_pc_relative(r_type))?;
        if let Some(sec) = self.image.sections.get_mut(here) {
            sec.relas.push(Rela {
                offset,
                r_type,
                symbol,
                addend: to.wrapping_sub(reference.from),
                via: 0,
            });
        }
        Ok(())
    }

    /// The symbol here, and the offset from it, that something in the patched object is. `within`: the item that refers
    /// to it.
    fn refer(
        &mut self,
        meaning: Meaning,
        within: Option<usize>,
        relative: bool,
    ) -> Result<(usize, i64), Error> {
        let new = self.new;
        match meaning {
            Meaning::Extern(number, at) => Ok((self.undefined_symbol(number), at)),
            Meaning::Absolute(value) => Ok((0, value)),
            Meaning::Anonymous(section, at) => self.refer_to_content(within, section, at),
            Meaning::Piece(section, start, at) => {
                let start = i64::try_from(start).unwrap_or(-1);
                let (symbol, here) = self.refer_to_content(within, section, start)?;
                Ok((symbol, here.wrapping_add(at)))
            }
            Meaning::Item(number, at) => {
                let Some(item) = new.item(number) else {
                    return Ok((0, at));
                };
                let here = self.items.get(&number).copied();
                let counterpart = self.plan.old_of(number);
                // From its own parts and tables, and into its middle, a function means its version here.
                let owner = |i: usize| new.item(i).and_then(|i| part_owner(new, i));
                let family =
                    within.is_none_or(|w| owner(w) == Some(number) || owner(number) == Some(w));
                let own = match within {
                    None => relative || at != 0,
                    // A table of labels is data.
                    Some(w) => {
                        let data = new.item(w).is_some_and(|i| !i.kind.is_code());
                        family || (at != 0 && (w == number || data))
                    }
                };
                let replaced = item.kind.is_code() && counterpart.is_some();
                if let Some((_, symbol)) = here.filter(|_| !replaced || own) {
                    return Ok((symbol, at));
                }
                if item.kind.is_code() && at != 0 {
                    return Err(self.unnamed(within, format!("the middle of `{}`", item.name)));
                }
                let Some(old) = counterpart.and_then(|o| self.old.item(o)) else {
                    return Err(self.unnamed(within, format!("`{}`", item.name)));
                };
                Ok((self.undefined_item(number, item, old), at))
            }
        }
    }

    /// The symbol here, and the offset from it, of a place in content that was taken over.
    fn refer_to_content(
        &self,
        within: Option<usize>,
        section: usize,
        at: i64,
    ) -> Result<(usize, i64), Error> {
        let piece = u64::try_from(at).ok().and_then(|p| {
            let (&(s, start), &(end, _, symbol, there)) =
                self.pieces.range(..=(section, p)).next_back()?;
            let here = there.wrapping_add(p.wrapping_sub(start)) as i64;
            (s == section && p <= end).then_some((symbol, here))
        });
        let name = self.new.section(section).map_or("", |s| s.name.as_str());
        piece.ok_or_else(|| self.unnamed(within, format!("a place in section `{name}`")))
    }

    fn unnamed(&self, within: Option<usize>, what: String) -> Error {
        let function = within
            .and_then(|w| self.new.item(w))
            .map_or("a constant", |i| i.name.as_str());
        Error::Unnamed {
            function: function.to_owned(),
            what,
        }
    }

    fn undefined_symbol(&mut self, number: usize) -> usize {
        if let Some(&known) = self.undefined.get(&Ok(number)) {
            return known;
        }
        let Some(sym) = self.new.image.symbols.get(number) else {
            return 0;
        };
        let sym = Sym {
            value: 0,
            size: 0,
            ..sym.clone()
        };
        let made = self.add_symbol(sym);
        self.undefined.insert(Ok(number), made);
        made
    }

    /// An undefined symbol for something that the target has.
    fn undefined_item(&mut self, number: usize, item: &Item, old: &Item) -> usize {
        if let Some(&known) = self.undefined.get(&Err(number)) {
            return known;
        }
        let mut name = old.name.clone();
        let mut count = 1u32;
        while self.names.contains(&name) || (!old.global && self.externs.contains(name.as_str())) {
            count = count.saturating_add(1);
            name = format!("{}.livegraft.{count}", old.name);
        }
        let sym = self.new.image.symbols.get(item.symbol);
        let kind = sym.map_or(0, |s| s.kind);
        let bind = if old.global {
            sym.map_or(elf::STB_GLOBAL.0, |s| s.bind)
        } else {
            elf::STB_GLOBAL.0
        };
        let bind = if bind == elf::STB_GNU_UNIQUE.0 {
            elf::STB_GLOBAL.0
        } else {
            bind
        };
        // Only a thread-local symbol must be known as what it is; an undefined function may be anything.
        let kind = if kind == elf::STT_TLS.0 {
            kind
        } else {
            elf::STT_NOTYPE.0
        };
        let made = self.add_symbol(symbol(name, bind, kind, SymPlace::Undefined));
        self.undefined.insert(Err(number), made);
        if !old.global {
            let record = self.record(made, old);
            self.records[1].push(record);
        }
        made
    }

    /// A short branch to another function can't be moved.
    fn check_branches(&self, number: usize, item: &Item) -> Result<(), Error> {
        if !item.kind.is_code() {
            return Ok(());
        }
        let Some(code) = decode(self.new, number) else {
            return Err(self.unnamed(Some(number), "bytes that are no instructions".to_owned()));
        };
        for step in code.steps.iter().filter(|s| is_near_branch(&s.ins)) {
            let fields = code.fields(self.new, step).unwrap_or_default();
            let inside = step.ins.near_branch_target() < item.size;
            let short = step.offsets.immediate_size() != 4;
            if fields.is_empty() && !inside && short {
                return Err(
                    self.unnamed(Some(number), "another function by a short jump".to_owned())
                );
            }
        }
        Ok(())
    }
}

/// The name of a section of one item: that of the section it comes from, with its own name.
fn section_name(from: &str, item: &str) -> String {
    if from.ends_with(item) && !item.is_empty() {
        return from.to_owned();
    }
    let kinds = [
        ".text",
        ".rodata",
        ".data.rel.ro",
        ".data",
        ".bss",
        ".tbss",
        ".tdata",
    ];
    let kind = kinds.iter().find(|k| from.starts_with(**k));
    kind.map_or_else(|| from.to_owned(), |k| format!("{k}.{item}"))
}

/// The alignment that an offset of an aligned section has.
fn alignment(section: u64, offset: u64) -> u64 {
    let section = if section.is_power_of_two() {
        section.min(4096)
    } else {
        1
    };
    if offset == 0 {
        section
    } else {
        section.min(1 << offset.trailing_zeros().min(12))
    }
}
