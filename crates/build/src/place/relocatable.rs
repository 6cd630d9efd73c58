//! A relocatable object: its sections with what relocations leave open in them, and its symbols.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;

use object::LittleEndian as Le;
use object::elf::{self, FileHeader64};
use object::read::elf::{
    FileHeader as _, Rela as _, SectionHeader as _, SectionTable, Sym as _, SymbolTable,
};

use super::{Object, Refusal};

/// An object file. Sections and symbols keep the numbers that they have in the file.
pub(super) struct Relocatable<'a> {
    pub name: &'a str,
    pub sections: Vec<Section<'a>>,
    pub symbols: Vec<Symbol<'a>>,
    /// The relocations of .eh_frame, by offset.
    pub eh_frame: Vec<Relocation>,
}

/// A section that the linker brings into the program, or anything else (`placed` is false then).
pub(super) struct Section<'a> {
    pub name: &'a [u8],
    pub data: &'a [u8],
    pub size: u64,
    pub align: u64,
    pub kind: Kind,
    /// SHF_WRITE.
    pub write: bool,
    /// Has an address of its own, which is to be found.
    pub placed: bool,
    /// By offset.
    pub relocations: Vec<Relocation>,
    /// The first relocation that is not understood.
    pub unknown: Option<u32>,
    /// The symbol that names its COMDAT group: of several copies one is kept.
    pub comdat: Option<&'a [u8]>,
}

/// What the linker does with a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Code,
    Data,
    /// SHT_NOBITS.
    Zero,
    /// SHF_TLS; `true`: SHT_NOBITS.
    ThreadLocal(bool),
    /// SHF_MERGE: taken apart, and each piece found again by its content. The size of a piece; 0: strings.
    Merged(u64, u64),
    /// Not in the program, or made anew by the linker.
    Other,
}

/// A relocation of a section.
#[derive(Clone, Copy)]
pub(super) struct Relocation {
    pub offset: u32,
    pub symbol: u32,
    pub addend: i64,
    pub form: Form,
}

/// How the linker writes a relocation's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Abs64,
    /// Zero extended.
    Abs32,
    /// Sign extended.
    Abs32S,
    Pc32,
    Pc64,
    /// What says nothing about where anything lies; its width.
    Opaque(u8),
    /// A slot of the GOT. `prefix`: bytes before the field that may be rewritten, 0 where nothing may.
    Got {
        prefix: u8,
    },
    /// Thread-local sequences: general dynamic, local dynamic, initial exec, and through a descriptor.
    TlsGd,
    TlsLd,
    TlsIe,
    TlsDesc,
    TlsDescCall,
    /// The call to __tls_get_addr that ends one of them.
    TlsCall,
    TpOff32,
    TpOff64,
    DtpOff32,
    DtpOff64,
}

impl Form {
    fn new(r_type: elf::RelocationType, code: bool) -> Option<Form> {
        Some(match r_type {
            elf::R_X86_64_64 => Form::Abs64,
            elf::R_X86_64_32 => Form::Abs32,
            elf::R_X86_64_32S => Form::Abs32S,
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => Form::Pc32,
            elf::R_X86_64_PC64 => Form::Pc64,
            elf::R_X86_64_SIZE32 | elf::R_X86_64_GOTPC32 => Form::Opaque(4),
            elf::R_X86_64_SIZE64 => Form::Opaque(8),
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX if code => Form::Got { prefix: 2 },
            elf::R_X86_64_REX_GOTPCRELX if code => Form::Got { prefix: 3 },
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
                Form::Got { prefix: 0 }
            }
            elf::R_X86_64_TLSGD => Form::TlsGd,
            elf::R_X86_64_TLSLD => Form::TlsLd,
            elf::R_X86_64_GOTTPOFF => Form::TlsIe,
            elf::R_X86_64_GOTPC32_TLSDESC => Form::TlsDesc,
            elf::R_X86_64_TLSDESC_CALL => Form::TlsDescCall,
            elf::R_X86_64_TPOFF32 => Form::TpOff32,
            elf::R_X86_64_TPOFF64 => Form::TpOff64,
            elf::R_X86_64_DTPOFF32 => Form::DtpOff32,
            elf::R_X86_64_DTPOFF64 => Form::DtpOff64,
            _ => return None,
        })
    }

    /// The bytes, from the field on, that the linker may write: before it, and after its start.
    fn reach(self, after: &[u8]) -> (u32, u32) {
        match self {
            Form::Abs64 | Form::Pc64 | Form::TpOff64 | Form::DtpOff64 => (0, 8),
            Form::Opaque(width) => (0, width.into()),
            Form::Got { prefix } => (prefix.into(), 4),
            Form::TlsGd => (4, 12),
            Form::TlsLd if after.get(4) == Some(&0xff) => (3, 10),
            Form::TlsLd => (3, 9),
            Form::TlsIe | Form::TlsDesc => (3, 4),
            Form::TlsDescCall => (0, 2),
            _ => (0, 4),
        }
    }
}

/// A symbol of an object.
pub(super) struct Symbol<'a> {
    pub name: &'a [u8],
    pub place: Place,
    pub value: u64,
    pub size: u64,
    pub kind: elf::SymbolType,
    pub local: bool,
    pub weak: bool,
}

/// `st_shndx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Undefined,
    Absolute,
    Common,
    Section(u32),
}

impl<'a> Relocatable<'a> {
    /// Reads an object and checks every index and range in it.
    pub fn read(object: &Object<'a>) -> Result<Relocatable<'a>, Refusal> {
        let (file, bytes) = (object.name, object.bytes);
        let malformed = |why: &str| Refusal::Malformed {
            file: file.to_owned(),
            why: why.to_owned(),
        };
        let header = super::header(file, bytes)?;
        if header.e_type(Le) != elf::ET_REL {
            return Err(Refusal::NotObject {
                file: file.to_owned(),
            });
        }
        let table = header
            .sections(Le, bytes)
            .map_err(|_| malformed("its section table is cut off"))?;
        let symtab = table
            .symbols(Le, bytes, elf::SHT_SYMTAB)
            .map_err(|_| malformed("its symbol table is cut off"))?;
        let mut relocatable = Relocatable {
            name: file,
            sections: sections(&table, bytes, object, &malformed)?,
            symbols: symbols(&symtab, table.len(), &malformed)?,
            eh_frame: Vec::new(),
        };
        relocatable.read_groups(&table, bytes, &malformed)?;
        relocatable.read_relocations(&table, &symtab, bytes, &malformed)?;
        Ok(relocatable)
    }

    fn read_groups(
        &mut self,
        table: &SectionTable<'a, FileHeader64<Le>>,
        bytes: &'a [u8],
        malformed: &dyn Fn(&str) -> Refusal,
    ) -> Result<(), Refusal> {
        for section in table.iter() {
            let group = section
                .group(Le, bytes)
                .map_err(|_| malformed("a group is cut off"))?;
            let Some((flag, members)) = group else {
                continue;
            };
            if flag.0 & elf::GRP_COMDAT.0 == 0 {
                continue;
            }
            let signature = usize::try_from(section.sh_info(Le))
                .ok()
                .and_then(|n| self.symbols.get(n))
                .ok_or_else(|| malformed("a group has no name"))?;
            // A group that is named by a section, as some assemblers do.
            let name = match signature.place {
                Place::Section(at) if signature.name.is_empty() => self
                    .sections
                    .get(at as usize)
                    .map_or(signature.name, |s| s.name),
                _ => signature.name,
            };
            for member in members {
                let number = member.get(Le) as usize;
                if let Some(section) = self.sections.get_mut(number) {
                    section.comdat = Some(name);
                }
            }
        }
        Ok(())
    }

    fn read_relocations(
        &mut self,
        table: &SectionTable<'a, FileHeader64<Le>>,
        symtab: &SymbolTable<'a, FileHeader64<Le>>,
        bytes: &'a [u8],
        malformed: &dyn Fn(&str) -> Refusal,
    ) -> Result<(), Refusal> {
        let symbols = self.symbols.len();
        for section in table.iter() {
            // Which section it is that is damaged.
            let malformed = |why: &str| {
                let name = table.section_name(Le, section).unwrap_or_default();
                let name = String::from_utf8_lossy(name.get(..256).unwrap_or(name));
                malformed(&format!("section `{name}`: {why}"))
            };
            let number = section.sh_info(Le) as usize;
            let Some(to) = self.sections.get_mut(number).filter(|_| number != 0) else {
                continue;
            };
            let frames = to.name == b".eh_frame";
            if !to.placed && !frames {
                continue;
            }
            if section.sh_type(Le) == elf::SHT_REL {
                return Err(malformed("it has relocations without addends"));
            }
            let relas = section
                .rela(Le, bytes)
                .map_err(|_| malformed("its size is not that of whole relocations"))?;
            let Some((relas, link)) = relas else {
                continue;
            };
            if link != symtab.section() {
                return Err(malformed("it does not name the symbol table"));
            }
            if !to.relocations.is_empty() {
                return Err(malformed(
                    "it is the second list of relocations of a section",
                ));
            }
            to.relocations.reserve_exact(relas.len());
            for rela in relas {
                let r_type = rela.r_type(Le, false);
                if r_type == elf::R_X86_64_NONE {
                    continue;
                }
                let symbol = rela.r_sym(Le, false);
                if symbol as usize >= symbols {
                    return Err(malformed("a relocation names a symbol that does not exist"));
                }
                let offset = u32::try_from(rela.r_offset(Le))
                    .map_err(|_| malformed("a relocation lies outside of what it changes"))?;
                let Some(form) = Form::new(r_type, to.kind == Kind::Code) else {
                    to.unknown.get_or_insert(r_type.0);
                    continue;
                };
                let relocation = Relocation {
                    offset,
                    symbol,
                    addend: rela.r_addend(Le),
                    form,
                };
                if frames {
                    self.eh_frame.push(relocation);
                    continue;
                }
                if to.mask(&relocation).is_none() {
                    return Err(malformed("a relocation lies outside of what it changes"));
                }
                to.relocations.push(relocation);
            }
            self.eh_frame.sort_by_key(|r| r.offset);
            to.relocations.sort_by_key(|r| r.offset);
            to.mark_calls();
        }
        Ok(())
    }

    /// The section that defines a symbol.
    pub fn section_of(&self, symbol: &Symbol<'_>) -> Option<(usize, &Section<'a>)> {
        match symbol.place {
            Place::Section(number) => {
                let number = number as usize;
                Some((number, self.sections.get(number)?))
            }
            _ => None,
        }
    }

    /// The function or variable of a section that contains an offset, and where it begins.
    pub fn symbol_at(&self, section: usize, offset: u64) -> Option<&Symbol<'a>> {
        let within = |symbol: &&Symbol<'a>| {
            symbol.place == Place::Section(u32::try_from(section).unwrap_or(u32::MAX))
                && symbol.kind != elf::STT_SECTION
                && !symbol.name.is_empty()
                && symbol.value <= offset
        };
        let sized = |s: &&Symbol<'a>| offset < s.value.saturating_add(s.size.max(1));
        let all = || self.symbols.iter().filter(within);
        all()
            .filter(sized)
            .max_by_key(|s| s.value)
            .or_else(|| all().max_by_key(|s| s.value))
    }
}

impl Section<'_> {
    /// The bytes that the linker may write because of a relocation; nothing where they are not in the section.
    pub fn mask(&self, relocation: &Relocation) -> Option<Range<usize>> {
        let at = relocation.offset as usize;
        let after = self.data.get(at..)?;
        let (before, behind) = relocation.form.reach(after);
        let end = at.checked_add(behind as usize)?;
        let range = at.checked_sub(before as usize)?..end;
        (end <= self.data.len()).then_some(range)
    }

    /// The stretches that no relocation touches: what the linker copies as it is.
    pub fn fixed(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let masks = self.relocations.iter().filter_map(|r| self.mask(r));
        let end = self.data.len();
        let mut start = 0usize;
        masks
            .chain(std::iter::once(end..end))
            .filter_map(move |mask| {
                let fixed = start..mask.start;
                start = start.max(mask.end);
                (fixed.start < fixed.end).then_some(fixed)
            })
    }

    /// A number that two sections share whose fixed bytes are to be looked for in the same places.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.data, self.align).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether two sections' fixed bytes are to be looked for in the same places.
    pub fn is_alike(&self, other: &Section<'_>) -> bool {
        let mut pairs = self.relocations.iter().zip(&other.relocations);
        self.data == other.data
            && self.align == other.align
            && self.relocations.len() == other.relocations.len()
            && pairs.all(|(a, b)| (a.offset, a.form) == (b.offset, b.form))
    }

    /// Finds the calls that belong to thread-local sequences, which the linker rewrites together with them.
    fn mark_calls(&mut self) {
        let mut sequence: Option<usize> = None;
        for index in 0..self.relocations.len() {
            let Some(relocation) = self.relocations.get(index) else {
                break;
            };
            let end = sequence.take().unwrap_or(0);
            if (relocation.offset as usize) < end
                && matches!(relocation.form, Form::Pc32 | Form::Got { .. })
            {
                if let Some(relocation) = self.relocations.get_mut(index) {
                    relocation.form = Form::TlsCall;
                }
            } else if matches!(relocation.form, Form::TlsGd | Form::TlsLd) {
                sequence = self.mask(relocation).map(|mask| mask.end);
            }
        }
    }
}

fn sections<'a>(
    table: &SectionTable<'a, FileHeader64<Le>>,
    bytes: &'a [u8],
    object: &Object<'a>,
    malformed: &dyn Fn(&str) -> Refusal,
) -> Result<Vec<Section<'a>>, Refusal> {
    let mut sections = Vec::with_capacity(table.len());
    let mut total = 0usize;
    for (number, section) in table.iter().enumerate() {
        let name = table
            .section_name(Le, section)
            .map_err(|_| malformed(&format!("section {number}: it has no name")))?;
        let malformed = |why: &str| {
            let name = String::from_utf8_lossy(name.get(..256).unwrap_or(name));
            malformed(&format!("section `{name}`: {why}"))
        };
        if name.starts_with(b".gnu.lto_") {
            return Err(Refusal::Lto {
                object: object.name.to_owned(),
            });
        }
        let kind = kind(section, name);
        let data = if kind == Kind::Other {
            &[]
        } else {
            section
                .data(Le, bytes)
                .map_err(|_| malformed("it reaches beyond the end of the file"))?
        };
        total = total.saturating_add(data.len());
        let align = section.sh_addralign(Le).max(1);
        if !align.is_power_of_two() {
            return Err(malformed("its alignment is impossible"));
        }
        sections.push(Section {
            name,
            data,
            size: section.sh_size(Le),
            align,
            kind,
            write: section.sh_flags(Le).0 & elf::SHF_WRITE.0 != 0,
            placed: !matches!(kind, Kind::Other | Kind::Merged(..)) && section.sh_size(Le) != 0,
            relocations: Vec::new(),
            unknown: None,
            comdat: name.starts_with(b".gnu.linkonce.").then_some(name),
        });
    }
    // Sections that share bytes would make the work more than the file's size.
    if total > bytes.len() {
        return Err(malformed("its sections overlap"));
    }
    Ok(sections)
}

fn kind(section: &elf::SectionHeader64<Le>, name: &[u8]) -> Kind {
    let flags = section.sh_flags(Le).0;
    let has = |flag: elf::SectionFlags| flags & flag.0 != 0;
    let sh_type = section.sh_type(Le);
    let zero = sh_type == elf::SHT_NOBITS;
    let known = matches!(
        sh_type,
        elf::SHT_PROGBITS
            | elf::SHT_NOBITS
            | elf::SHT_INIT_ARRAY
            | elf::SHT_FINI_ARRAY
            | elf::SHT_PREINIT_ARRAY
    );
    if !has(elf::SHF_ALLOC) || !known || name == b".eh_frame" || name.starts_with(b".note.") {
        return Kind::Other;
    }
    if has(elf::SHF_TLS) {
        Kind::ThreadLocal(zero)
    } else if zero {
        Kind::Zero
    } else if has(elf::SHF_EXECINSTR) {
        Kind::Code
    } else if has(elf::SHF_MERGE) && has(elf::SHF_STRINGS) {
        Kind::Merged(0, section.sh_entsize(Le).max(1))
    } else if has(elf::SHF_MERGE) && section.sh_entsize(Le) != 0 {
        Kind::Merged(section.sh_entsize(Le), 1)
    } else {
        Kind::Data
    }
}

fn symbols<'a>(
    table: &SymbolTable<'a, FileHeader64<Le>>,
    sections: usize,
    malformed: &dyn Fn(&str) -> Refusal,
) -> Result<Vec<Symbol<'a>>, Refusal> {
    let mut symbols = Vec::with_capacity(table.len());
    for (index, symbol) in table.enumerate() {
        let name = table.symbol_name(Le, symbol).map_err(|_| {
            malformed("section `.symtab`: the name of a symbol is not in its table of names")
        })?;
        let section = table.symbol_section(Le, symbol, index).map_err(|_| {
            malformed("section `.symtab`: the section number of a symbol is cut off")
        })?;
        let place = match (section, symbol.st_shndx(Le)) {
            (Some(section), _) if section.0 < sections => {
                Place::Section(u32::try_from(section.0).unwrap_or(u32::MAX))
            }
            (Some(_), _) => {
                return Err(malformed(
                    "section `.symtab`: a symbol is in a section that does not exist",
                ));
            }
            (None, elf::SHN_ABS) => Place::Absolute,
            // SHN_X86_64_LCOMMON of -mcmodel=medium.
            (None, elf::SHN_COMMON | elf::SymbolSection(0xff02)) => Place::Common,
            (None, _) => Place::Undefined,
        };
        symbols.push(Symbol {
            name,
            place,
            value: symbol.st_value(Le),
            size: symbol.st_size(Le),
            kind: symbol.st_type(),
            local: symbol.st_bind() == elf::STB_LOCAL,
            weak: symbol.st_bind() == elf::STB_WEAK || symbol.st_bind() == elf::STB_GNU_UNIQUE,
        });
    }
    Ok(symbols)
}
