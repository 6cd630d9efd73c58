//! One object as functions and variables, and what its relocations mean.

use std::collections::HashMap;

use livegraft_patchfile::elf::{Image, Rela, Sec, SymPlace};
use object::elf;

use super::error::{Error, Side};
use super::names;

/// A function or a variable.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub kind: Kind,
    /// `None`: a COMMON symbol.
    pub section: Option<usize>,
    pub start: u64,
    pub size: u64,
    /// The symbol that names it, and others at the same place.
    pub symbol: usize,
    pub aliases: Vec<usize>,
    pub name: String,
    pub key: String,
    pub global: bool,
    /// Others may define it too: weak, or STB_GNU_UNIQUE.
    pub shared: bool,
    /// The symbol does not say its size: what lies before the next one counts.
    pub guessed: bool,
    /// The number of the STT_FILE symbol that it follows, if it is local.
    pub file: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Function,
    Ifunc,
    Variable,
    ThreadLocal,
}

impl Kind {
    pub fn is_code(self) -> bool {
        matches!(self, Kind::Function | Kind::Ifunc)
    }
}

/// What a field of code or data refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An undefined symbol plus an offset.
    Extern(usize, i64),
    /// An item plus an offset, which may lie outside of it.
    Item(usize, i64),
    /// Content of a section that no symbol names: strings, constants, jump tables.
    Anonymous(usize, i64),
    /// A string or constant of a section whose content the linker merges, by where it begins, plus an offset, which may
    /// lie outside of it: what lies there in this object says nothing (gABI, SHF_MERGE).
    Piece(usize, u64, i64),
    /// A number.
    Absolute(i64),
}

/// An object, read and sorted.
pub(super) struct Module<'a> {
    pub image: Image<'a>,
    pub items: Vec<Item>,
    /// The items of each section by their start.
    by_section: Vec<Vec<usize>>,
    /// The item of each symbol.
    of_symbol: Vec<Option<usize>>,
    /// The functions of each name.
    functions: HashMap<String, Vec<usize>>,
    /// Where the addresses of anonymous content are taken, by section, sorted.
    taken: HashMap<usize, Vec<u64>>,
    /// Sections of what the compiler copies into local variables: see [`Module::is_nameless`].
    nameless: Vec<bool>,
}

impl<'a> Module<'a> {
    pub fn read(bytes: &'a [u8], side: Side) -> Result<Self, Error> {
        if bytes.starts_with(b"BC\xc0\xde") {
            return Err(Error::Lto { side });
        }
        let why = |e: livegraft_patchfile::Error| {
            use livegraft_patchfile::Error as E;
            match e {
                E::NotElf => "it is not an ELF file".to_owned(),
                E::Truncated => "it is cut off".to_owned(),
                E::WrongMachine => "it is not for 64-bit x86-64".to_owned(),
                E::NotRelocatable => "it is already linked".to_owned(),
                E::Malformed(why) => why,
                other => other.to_string(),
            }
        };
        let image = Image::read(bytes).map_err(|e| Error::Object { side, why: why(e) })?;
        Module::new(image, side)
    }

    fn new(mut image: Image<'a>, side: Side) -> Result<Self, Error> {
        for section in &mut image.sections {
            if section.name.starts_with(".gnu.lto_") {
                return Err(Error::Lto { side });
            }
            let failed = |why| Error::Section {
                side,
                section: section.name.clone(),
                why,
            };
            if !section.is_alloc() {
                continue;
            }
            if section.size > 1 << 32 {
                return Err(failed("it is larger than 4 GiB"));
            }
            section.relas.sort_by_key(|r| r.offset);
            let beyond = |r: &Rela| {
                let width = livegraft_patchfile::relocation_width(r.r_type).unwrap_or(1);
                let end = r.offset.checked_add(width);
                end.is_none_or(|end| end > section.data.len() as u64)
            };
            if section.relas.iter().any(beyond) {
                return Err(failed("a relocation lies outside of it"));
            }
        }
        let mut module = Module {
            by_section: vec![Vec::new(); image.sections.len()],
            of_symbol: vec![None; image.symbols.len()],
            image,
            items: Vec::new(),
            functions: HashMap::new(),
            taken: HashMap::new(),
            nameless: Vec::new(),
        };
        module.collect(side)?;
        module.find_nameless();
        for (number, item) in module.items.iter().enumerate() {
            if item.kind.is_code() {
                let list = module.functions.entry(item.name.clone()).or_default();
                list.push(number);
            }
        }
        module.find_taken();
        Ok(module)
    }

    fn collect(&mut self, side: Side) -> Result<(), Error> {
        let mut at: HashMap<(usize, u64, Kind), usize> = HashMap::new();
        let mut file = None;
        for (number, symbol) in self.image.symbols.iter().enumerate() {
            if symbol.kind == elf::STT_FILE.0 {
                file = Some(number);
                continue;
            }
            let section = match symbol.place {
                SymPlace::Section(section) => Some(section),
                SymPlace::Common => None,
                _ => continue,
            };
            let holder = section.and_then(|s| self.image.sections.get(s));
            // Labels that an assembler usually leaves out name nothing.
            if symbol.name.starts_with(".L") || names::is_unnamed(&symbol.name) {
                continue;
            }
            if holder.is_some_and(|s| !s.is_alloc()) {
                continue;
            }
            let exec = holder.is_some_and(|s| s.flags & elf::SHF_EXECINSTR.0 != 0);
            let kind = match elf::SymbolType(symbol.kind) {
                elf::STT_FUNC if exec => Kind::Function,
                elf::STT_GNU_IFUNC if exec => Kind::Ifunc,
                elf::STT_OBJECT | elf::STT_COMMON => Kind::Variable,
                elf::STT_TLS => Kind::ThreadLocal,
                _ => continue,
            };
            let start = if section.is_some() { symbol.value } else { 0 };
            let end = start.checked_add(symbol.size);
            if let Some(holder) = holder
                && end.is_none_or(|end| end > holder.size)
            {
                return Err(Error::Section {
                    side,
                    section: holder.name.clone(),
                    why: "a symbol lies outside of it",
                });
            }
            let global = symbol.bind != elf::STB_LOCAL.0;
            let shared = symbol.bind == elf::STB_WEAK.0 || symbol.bind == elf::STB_GNU_UNIQUE.0;
            if let Some(section) = section
                && let Some(&known) = at.get(&(section, start, kind))
                && let Some(item) = self.items.get_mut(known)
            {
                item.size = item.size.max(symbol.size);
                let better = (global && !item.global)
                    || (global == item.global && item.name.ends_with(".localalias"));
                let other = if better {
                    let old = std::mem::replace(&mut item.symbol, number);
                    item.name.clone_from(&symbol.name);
                    item.key = names::key(&symbol.name);
                    (item.global, item.shared) = (global, shared);
                    item.file = file.filter(|_| !global);
                    old
                } else {
                    number
                };
                item.aliases.push(other);
                if let Some(of) = self.of_symbol.get_mut(number) {
                    *of = Some(known);
                }
                continue;
            }
            let item = self.items.len();
            if let Some(section) = section {
                at.insert((section, start, kind), item);
                if let Some(list) = self.by_section.get_mut(section) {
                    list.push(item);
                }
            }
            if let Some(of) = self.of_symbol.get_mut(number) {
                *of = Some(item);
            }
            self.items.push(Item {
                kind,
                section,
                start,
                size: symbol.size,
                symbol: number,
                aliases: Vec::new(),
                name: symbol.name.clone(),
                key: names::key(&symbol.name),
                global,
                shared,
                guessed: false,
                file: file.filter(|_| !global),
            });
        }
        for (number, list) in self.by_section.iter_mut().enumerate() {
            list.sort_by_key(|&i| self.items.get(i).map(|i| (i.start, i.size)));
            let mut end = self.image.sections.get(number).map_or(0, |s| s.size);
            for &i in list.iter().rev() {
                let Some(item) = self.items.get_mut(i) else {
                    continue;
                };
                if item.size == 0 && item.kind.is_code() {
                    item.size = end.saturating_sub(item.start);
                    item.guessed = true;
                }
                end = end.min(item.start);
            }
        }
        Ok(())
    }

    pub fn item(&self, number: usize) -> Option<&Item> {
        self.items.get(number)
    }

    pub fn section(&self, number: usize) -> Option<&Sec<'a>> {
        self.image.sections.get(number)
    }

    pub fn functions(&self) -> impl Iterator<Item = (usize, &Item)> {
        self.items
            .iter()
            .enumerate()
            .filter(|(_, i)| i.kind.is_code())
    }

    /// The functions of a name.
    pub fn functions_named(&self, name: &str) -> &[usize] {
        self.functions.get(name).map_or(&[], Vec::as_slice)
    }

    /// The items of a section by their start.
    pub fn items_in(&self, section: usize) -> &[usize] {
        self.by_section.get(section).map_or(&[], Vec::as_slice)
    }

    /// The code or the initial value of an item; empty for what is all zeros.
    pub fn bytes(&self, item: &Item) -> &[u8] {
        let section = item.section.and_then(|s| self.section(s));
        let range = item.start as usize..item.start.saturating_add(item.size) as usize;
        section.and_then(|s| s.data.get(range)).unwrap_or(&[])
    }

    /// The relocations of `start..end` in a section.
    pub fn relas(&self, section: usize, start: u64, end: u64) -> &[Rela] {
        let relas = self
            .section(section)
            .map_or(&[][..], |s| s.relas.as_slice());
        let from = relas.partition_point(|r| r.offset < start);
        let to = relas.partition_point(|r| r.offset < end).max(from);
        relas.get(from..to).unwrap_or(&[])
    }

    /// The relocations of an item.
    pub fn relas_of(&self, item: &Item) -> &[Rela] {
        let end = item.start.saturating_add(item.size);
        item.section.map_or(&[], |s| self.relas(s, item.start, end))
    }

    /// What a symbol plus an addend means. The addend is the one that counts: for a field that is relative to the program
    /// counter, without the distance from the field to the next instruction.
    pub fn meaning(&self, symbol: usize, addend: i64) -> Meaning {
        let Some(sym) = self.image.symbols.get(symbol) else {
            return Meaning::Absolute(addend);
        };
        let value = sym.value as i64;
        match sym.place {
            SymPlace::Undefined | SymPlace::Livepatch if symbol == 0 => Meaning::Absolute(addend),
            SymPlace::Undefined | SymPlace::Livepatch => Meaning::Extern(symbol, addend),
            SymPlace::Absolute => Meaning::Absolute(value.wrapping_add(addend)),
            SymPlace::Common => match self.of_symbol.get(symbol).copied().flatten() {
                Some(item) => Meaning::Item(item, addend),
                None => Meaning::Absolute(addend),
            },
            SymPlace::Section(section) => {
                if let Some(item) = self.of_symbol.get(symbol).copied().flatten() {
                    return Meaning::Item(item, addend);
                }
                let merged = |s: &Sec<'_>| s.flags & elf::SHF_MERGE.0 != 0;
                if addend != 0
                    && sym.kind != elf::STT_SECTION.0
                    && self.section(section).is_some_and(merged)
                {
                    return Meaning::Piece(section, sym.value, addend);
                }
                self.at(section, value.wrapping_add(addend))
            }
        }
    }

    /// What lies at an offset of a section.
    pub fn at(&self, section: usize, offset: i64) -> Meaning {
        let list = self.items_in(section);
        let holder = self.section(section);
        // A section of its own: an offset before it or behind it means the item too.
        if let [only] = list
            && let (Some(item), Some(holder)) = (self.items.get(*only), holder)
            && item.start == 0
            && holder.size.saturating_sub(item.size) < holder.align.max(16)
        {
            return Meaning::Item(*only, offset);
        }
        let Ok(place) = u64::try_from(offset) else {
            return Meaning::Anonymous(section, offset);
        };
        let next = list.partition_point(|&i| self.items.get(i).is_some_and(|i| i.start <= place));
        let before = next.checked_sub(1).and_then(|n| list.get(n)).copied();
        match before.and_then(|n| Some((n, self.items.get(n)?))) {
            Some((n, item)) if place <= item.start.saturating_add(item.size) => {
                Meaning::Item(n, place.saturating_sub(item.start) as i64)
            }
            _ => Meaning::Anonymous(section, offset),
        }
    }

    /// The function or variable that contains a place.
    pub fn item_at(&self, section: usize, offset: u64) -> Option<usize> {
        let list = self.items_in(section);
        let next = list.partition_point(|&i| self.items.get(i).is_some_and(|i| i.start <= offset));
        let item = *list.get(next.checked_sub(1)?)?;
        let found = self.items.get(item)?;
        (offset < found.start.saturating_add(found.size)).then_some(item)
    }

    /// Where the address of anonymous content is taken (rather than a few bytes of it loaded): what lies between two
    /// such places is reached by the first.
    fn find_nameless(&mut self) {
        let sections = &self.image.sections;
        let of_variables =
            |s: &Sec<'_>| s.name.starts_with(".data.") || s.name.starts_with(".bss.");
        let apart = sections.iter().any(of_variables);
        let shared = [".data", ".data.rel", ".data.rel.local"];
        let mut nameless: Vec<bool> = sections
            .iter()
            .map(|s| apart && shared.contains(&s.name.as_str()))
            .collect();
        for symbol in &self.image.symbols {
            if let SymPlace::Section(section) = symbol.place
                && symbol.kind != elf::STT_SECTION.0
                && let Some(nameless) = nameless.get_mut(section)
            {
                *nameless = false;
            }
        }
        self.nameless = nameless;
    }

    /// Whether a section that can be written to has no variables. Where each variable has a section of its own, gcc puts
    /// into the common one what it fills a local array with, without a name: nothing in the source can write to it.
    pub fn is_nameless(&self, section: usize) -> bool {
        self.nameless.get(section).copied().unwrap_or(false)
    }

    fn find_taken(&mut self) {
        let mut taken: HashMap<usize, Vec<u64>> = HashMap::new();
        for section in self.image.sections.iter().filter(|s| s.is_alloc()) {
            let exec = section.flags & elf::SHF_EXECINSTR.0 != 0;
            for rela in &section.relas {
                let Some(SymPlace::Section(to)) =
                    self.image.symbols.get(rela.symbol).map(|s| s.place)
                else {
                    continue;
                };
                let plain = self.image.sections.get(to).is_some_and(is_plain_constant);
                if !plain && !self.is_nameless(to) {
                    continue;
                }
                if exec && is_pc_relative(rela.r_type) && !is_lea(&section.data, rela.offset) {
                    continue;
                }
                let correction = if exec && is_pc_relative(rela.r_type) {
                    4
                } else {
                    0
                };
                if let Meaning::Anonymous(to, at) =
                    self.meaning(rela.symbol, rela.addend.wrapping_add(correction))
                    && let Ok(at) = u64::try_from(at)
                {
                    taken.entry(to).or_default().push(at);
                }
            }
        }
        for list in taken.values_mut() {
            list.sort_unstable();
            list.dedup();
        }
        self.taken = taken;
    }

    /// How far the content goes whose address is `offset`.
    pub fn extent(&self, section: usize, offset: u64) -> u64 {
        let end = self.section(section).map_or(0, |s| s.size);
        let list = self.taken.get(&section).map_or(&[][..], Vec::as_slice);
        let next = list.get(list.partition_point(|&at| at <= offset)).copied();
        let items = self.items_in(section);
        let first =
            items.partition_point(|&i| self.items.get(i).is_some_and(|i| i.start <= offset));
        let item = items
            .get(first)
            .and_then(|&i| self.items.get(i))
            .map(|i| i.start);
        next.unwrap_or(end).min(item.unwrap_or(end)).min(end)
    }

    /// The name of the source file of a local item.
    pub fn file_of(&self, item: &Item) -> Option<&str> {
        let symbol = self.image.symbols.get(item.file?)?;
        Some(symbol.name.as_str())
    }
}

/// `lea disp(%rip), %reg` around a field.
fn is_lea(code: &[u8], field: u64) -> bool {
    let field = field as usize;
    let opcode = field.checked_sub(2).and_then(|at| code.get(at));
    let rex = field.checked_sub(3).and_then(|at| code.get(at));
    opcode == Some(&0x8d) && rex.is_some_and(|b| b & 0xf0 == 0x40)
}

/// Read-only content that is neither strings nor constants of one size.
pub(super) fn is_plain_constant(section: &Sec<'_>) -> bool {
    section.is_alloc()
        && section.flags & (elf::SHF_EXECINSTR.0 | elf::SHF_MERGE.0) == 0
        && is_constant(section)
}

/// What a program can't change.
pub(super) fn is_constant(section: &Sec<'_>) -> bool {
    section.flags & elf::SHF_WRITE.0 == 0 || section.name.starts_with(".data.rel.ro")
}

/// Whether a field holds a distance from itself.
pub(super) fn is_pc_relative(r_type: u32) -> bool {
    // PC32, PLT32, GOTPCREL, TLSGD, TLSLD, GOTTPOFF, PC64, GOTPC32, GOTPC32_TLSDESC, GOTPCRELX, REX_GOTPCRELX
    matches!(
        r_type,
        2 | 4 | 9 | 13 | 15 | 19 | 20 | 22 | 24 | 26 | 34 | 41 | 42 | 43 | 44 | 45
    )
}
