//! ELF64 x86-64 relocatable objects as plain checked data: what the compiler made, and the patch file itself.

use std::borrow::Cow;

use object::elf;
use object::elf::{FileHeader64, SectionHeader64};
use object::read::elf::{FileHeader as _, Rela as _, SectionHeader as _, SectionTable, Sym as _};
use object::{LittleEndian as Le, SectionIndex};

use crate::Error;
use crate::relocation;

/// SHF_RELA_LIVEPATCH: relocations that need a symbol of the target (include/uapi/linux/elf.h).
pub(crate) const SHF_RELA_LIVEPATCH: u64 = 0x0010_0000;
/// SHN_LIVEPATCH: a symbol of the target (include/uapi/linux/elf.h).
pub(crate) const SHN_LIVEPATCH: u16 = 0xff20;
pub(crate) const SHF_WRITE: u64 = elf::SHF_WRITE.0;
pub(crate) const SHF_ALLOC: u64 = elf::SHF_ALLOC.0;
pub(crate) const SHF_EXEC: u64 = elf::SHF_EXECINSTR.0;
pub(crate) const SHF_INFO_LINK: u64 = elf::SHF_INFO_LINK.0;
pub(crate) const SHF_GROUP: u64 = elf::SHF_GROUP.0;
pub(crate) const SHF_TLS: u64 = elf::SHF_TLS.0;
pub(crate) const SHT_RELA: u32 = elf::SHT_RELA.0;
pub(crate) const SHT_NOTE: u32 = elf::SHT_NOTE.0;
pub(crate) const SHT_NOBITS: u32 = elf::SHT_NOBITS.0;
pub(crate) const SHT_PROGBITS: u32 = elf::SHT_PROGBITS.0;
pub(crate) const SHT_X86_64_UNWIND: u32 = elf::SHT_X86_64_UNWIND.0;

/// A relocatable object. Sections and symbols keep the numbers they have in the file; number 0 is the null entry.
pub struct Image<'a> {
    /// The section table.
    pub sections: Vec<Sec<'a>>,
    /// The symbol table.
    pub symbols: Vec<Sym>,
}

/// A section with the relocations that apply to it.
#[derive(Clone)]
pub struct Sec<'a> {
    /// Its name.
    pub name: String,
    /// `sh_type`.
    pub sh_type: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// `sh_addralign`, at least 1; unchecked otherwise.
    pub align: u64,
    /// `sh_size`; larger than `data` for SHT_NOBITS.
    pub size: u64,
    /// `sh_entsize`.
    pub entsize: u64,
    /// `sh_link`.
    pub link: u32,
    /// The bytes; empty for SHT_NOBITS.
    pub data: Cow<'a, [u8]>,
    /// The relocations that apply to it; their offsets are unchecked.
    pub relas: Vec<Rela>,
}

/// A relocation of a section.
#[derive(Clone, Copy)]
pub struct Rela {
    /// `r_offset`, in the section.
    pub offset: u64,
    /// R_X86_64_*.
    pub r_type: u32,
    /// Index into [`Image::symbols`].
    pub symbol: usize,
    /// `r_addend`.
    pub addend: i64,
    /// The section that it was read from.
    pub via: usize,
}

/// A symbol.
#[derive(Clone)]
pub struct Sym {
    /// Its name; empty for section symbols.
    pub name: String,
    /// STB_*.
    pub bind: u8,
    /// STT_*.
    pub kind: u8,
    /// `st_other`: the visibility.
    pub other: u8,
    /// `st_shndx`.
    pub place: SymPlace,
    /// `st_value`: an offset in its section; unchecked.
    pub value: u64,
    /// `st_size`; unchecked.
    pub size: u64,
}

/// `st_shndx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymPlace {
    /// SHN_UNDEF.
    Undefined,
    /// SHN_ABS.
    Absolute,
    /// SHN_COMMON.
    Common,
    /// SHN_LIVEPATCH: a symbol of the target.
    Livepatch,
    /// Index into [`Image::sections`].
    Section(usize),
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed(why.into())
}

/// Checks that the bytes are a whole ELF64 x86-64 relocatable object; nothing beyond the section table is looked at.
pub(crate) fn header(bytes: &[u8]) -> Result<&FileHeader64<Le>, Error> {
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(Error::NotElf);
    }
    if bytes.len() < 64 {
        return Err(Error::Truncated);
    }
    if bytes.get(4) != Some(&2) || bytes.get(5) != Some(&1) {
        return Err(Error::WrongMachine);
    }
    let header = FileHeader64::<Le>::parse(bytes).map_err(|_| Error::NotElf)?;
    if header.e_machine(Le) != elf::EM_X86_64 {
        return Err(Error::WrongMachine);
    }
    if header.e_type(Le) != elf::ET_REL {
        return Err(Error::NotRelocatable);
    }
    let len = bytes.len() as u64;
    let table = u64::from(header.e_shnum(Le)).checked_mul(64);
    let end = table.and_then(|size| header.e_shoff(Le).checked_add(size));
    if end.is_none_or(|end| end > len) {
        return Err(Error::Truncated);
    }
    Ok(header)
}

/// Which sections share bytes.
fn overlap(table: &SectionTable<'_, FileHeader64<Le>>) -> String {
    let range = |section| SectionHeader64::<Le>::file_range(section, Le);
    let ranges = table.iter().filter_map(|s| Some((range(s)?, s)));
    let mut ranges: Vec<_> = ranges.filter(|((_, size), _)| *size != 0).collect();
    ranges.sort_by_key(|((offset, _), _)| *offset);
    let name = |section| {
        let name = table.section_name(Le, section).unwrap_or_default();
        let name = name.get(..256).unwrap_or(name);
        String::from_utf8_lossy(name).into_owned()
    };
    for ((before, section), (after, next)) in ranges.iter().zip(ranges.iter().skip(1)) {
        if before.0.saturating_add(before.1) > after.0 {
            return format!("sections `{}` and `{}` overlap", name(section), name(next));
        }
    }
    "its sections overlap".to_owned()
}

impl<'a> Image<'a> {
    /// Reads and checks everything but the meaning of relocations.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let header = header(bytes)?;
        let table = header
            .sections(Le, bytes)
            .map_err(|e| malformed(e.to_string()))?;
        let len = bytes.len() as u64;
        // What is wrong in a section, with its name or at least its number.
        let at = |index: usize, why: &str| {
            let section = table.section(SectionIndex(index)).ok();
            let name = section.and_then(|s| table.section_name(Le, s).ok());
            let name = name.and_then(|name| std::str::from_utf8(name).ok());
            match name.filter(|name| !name.is_empty() && name.len() <= 256) {
                Some(name) => malformed(format!("section `{name}`: {why}")),
                None => malformed(format!("section {index}: {why}")),
            }
        };
        let mut total = 0u64;
        for (index, section) in table.iter().enumerate() {
            if let Some((offset, size)) = section.file_range(Le) {
                if offset.checked_add(size).is_none_or(|end| end > len) {
                    return Err(at(index, "it reaches beyond the end of the file"));
                }
                // Sections that share bytes would make the work quadratic in the file's size.
                total = total.saturating_add(size);
            }
        }
        if total > len {
            return Err(malformed(overlap(&table)));
        }
        let mut names = NameBudget(len.saturating_mul(4).saturating_add(1 << 20));
        let mut sections = Vec::with_capacity(table.len());
        for (index, section) in table.iter().enumerate() {
            let name = table
                .section_name(Le, section)
                .map_err(|_| at(index, "its name is not in the table of names"))?;
            let data = section
                .data(Le, bytes)
                .map_err(|_| at(index, "it reaches beyond the end of the file"))?;
            sections.push(Sec {
                name: names.take(name)?,
                sh_type: section.sh_type(Le).0,
                flags: section.sh_flags(Le).0,
                align: section.sh_addralign(Le).max(1),
                size: section.sh_size(Le),
                entsize: section.sh_entsize(Le),
                link: section.sh_link(Le),
                data: Cow::Borrowed(data),
                relas: Vec::new(),
            });
        }
        let symtab = table.symbols(Le, bytes, elf::SHT_SYMTAB).map_err(|_| {
            let is_symtab = |s: &&SectionHeader64<Le>| s.sh_type(Le) == elf::SHT_SYMTAB;
            let index = table.iter().position(|s| is_symtab(&s)).unwrap_or(0);
            at(
                index,
                "its size, its entries or its table of names are impossible",
            )
        })?;
        let symbols_at = symtab.section().0;
        let mut symbols = Vec::with_capacity(symtab.len());
        for (index, symbol) in symtab.enumerate() {
            let name = symtab.symbol_name(Le, symbol).map_err(|_| {
                at(
                    symbols_at,
                    "the name of a symbol is not in its table of names",
                )
            })?;
            let section = symtab
                .symbol_section(Le, symbol, index)
                .map_err(|_| at(symbols_at, "the section number of a symbol is cut off"))?
                .map(|s| s.0);
            let name = names.take(name)?;
            let place = match (section, symbol.st_shndx(Le)) {
                (Some(section), _) if section < sections.len() => SymPlace::Section(section),
                (Some(_), _) => {
                    let why = format!("symbol `{name}` is in a section that does not exist");
                    return Err(at(symbols_at, &why));
                }
                (None, elf::SHN_UNDEF) => SymPlace::Undefined,
                (None, elf::SHN_ABS) => SymPlace::Absolute,
                // 0xff02 is SHN_X86_64_LCOMMON of -mcmodel=medium.
                (None, elf::SHN_COMMON | elf::SymbolSection(0xff02)) => SymPlace::Common,
                (None, elf::SymbolSection(SHN_LIVEPATCH)) => SymPlace::Livepatch,
                (None, other) => {
                    let number = other.0;
                    let why = format!("symbol `{name}` has the unknown section number {number:#x}");
                    return Err(at(symbols_at, &why));
                }
            };
            symbols.push(Sym {
                name,
                bind: symbol.st_bind().0,
                kind: symbol.st_type().0,
                other: symbol.st_other().0,
                place,
                value: symbol.st_value(Le),
                size: symbol.st_size(Le),
            });
        }
        for (via, section) in table.iter().enumerate() {
            if section.sh_type(Le) == elf::SHT_REL {
                return Err(at(via, "it has relocations without addends (SHT_REL)"));
            }
            let Some((relas, link)) = section
                .rela(Le, bytes)
                .map_err(|_| at(via, "its size is not that of whole relocations"))?
            else {
                continue;
            };
            let to = section.sh_info(Le) as usize;
            if link.0 == 0 || link.0 != symtab.section().0 {
                return Err(at(via, "it does not name the symbol table"));
            }
            let Some(target) = sections.get_mut(to).filter(|_| to != 0) else {
                return Err(at(via, "it does not name the section that it changes"));
            };
            target.relas.reserve_exact(relas.len());
            for rela in relas {
                let symbol = rela.r_sym(Le, false) as usize;
                let r_type = rela.r_type(Le, false).0;
                if symbol >= symbols.len().max(1) {
                    return Err(at(via, "a relocation names a symbol that does not exist"));
                }
                if r_type != relocation::NONE {
                    target.relas.push(Rela {
                        offset: rela.r_offset(Le),
                        r_type,
                        symbol,
                        addend: rela.r_addend(Le),
                        via,
                    });
                }
            }
        }
        Ok(Image { sections, symbols })
    }

    /// The first section of a name.
    pub fn section_named(&self, name: &str) -> Option<usize> {
        self.sections.iter().position(|s| s.name == name)
    }

    /// Where a relocation's symbol plus addend lies.
    pub fn points_to(&self, rela: &Rela) -> Option<(usize, u64)> {
        let symbol = self.symbols.get(rela.symbol)?;
        let SymPlace::Section(section) = symbol.place else {
            return None;
        };
        Some((section, symbol.value.checked_add_signed(rela.addend)?))
    }
}

impl Sec<'_> {
    /// SHF_ALLOC.
    pub fn is_alloc(&self) -> bool {
        self.flags & SHF_ALLOC != 0
    }
}

/// String tables share tails, so a small file can name very much: names together may not be much more than the file.
struct NameBudget(u64);

impl NameBudget {
    fn take(&mut self, name: &[u8]) -> Result<String, Error> {
        self.0 = self
            .0
            .checked_sub(name.len() as u64)
            .ok_or_else(|| malformed("its names are longer than the file"))?;
        let name = std::str::from_utf8(name).map_err(|_| malformed("a name is not UTF-8"))?;
        Ok(name.to_owned())
    }
}
