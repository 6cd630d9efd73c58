//! An ELF object of the target: the executable or a shared library, as a file.

use std::collections::HashMap;
use std::path::Path;

use object::elf::{self, FileHeader64, ProgramHeader64};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _, Sym as _, SymbolTable};
use object::{LittleEndian as Le, Object as _};

use crate::read::spoken;
use crate::{Error, counted};

/// A target object with its symbols.
pub struct TargetElf<'a> {
    /// Where the file is; for messages.
    pub path: &'a Path,
    /// NT_GNU_BUILD_ID.
    pub build_id: &'a [u8],
    /// `None`: an executable; else the name by which a `klp_object` means this library: DT_SONAME, or the file's name.
    pub object: Option<String>,
    /// All definitions that have a name: `.symtab`, then `.dynsym`, each in its own order.
    pub symbols: Vec<TargetSymbol<'a>>,
    /// `symbols` are no symbol table's: nobody who has only the file can find them.
    pub(crate) recovered: bool,
    pub(crate) bytes: &'a [u8],
    segments: &'a [ProgramHeader64<Le>],
    by_name: HashMap<&'a str, Vec<usize>>,
}

/// What a symbol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// STT_FUNC.
    Function,
    /// STT_GNU_IFUNC: a function that chooses a function.
    Ifunc,
    /// STT_OBJECT.
    Variable,
    /// STT_TLS.
    ThreadLocal,
    /// STT_NOTYPE: a label.
    Label,
}

/// A definition in a target object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetSymbol<'a> {
    /// Without a version suffix (`@GLIBC_2.2.5`).
    pub name: &'a str,
    /// `st_value`; for thread-local variables an offset in the TLS block.
    pub svma: u64,
    /// `st_size`.
    pub size: u64,
    /// `st_type`.
    pub kind: SymbolKind,
    /// STB_GLOBAL, STB_WEAK or STB_GNU_UNIQUE.
    pub global: bool,
    /// For a local symbol of `.symtab` the source file that it is from (STT_FILE).
    pub file: Option<&'a str>,
    /// From `.dynsym` (else from `.symtab`).
    pub dynamic: bool,
    /// In `.dynsym` with STV_DEFAULT: another object may define it instead.
    pub interposable: bool,
}

impl SymbolKind {
    /// What an ELF symbol of this type is; `None` for what has no meaning of its own (sections, files).
    /// That of an `st_type`; `None` for files, sections and the like.
    pub fn from_st_type(st_type: u8) -> Option<SymbolKind> {
        Some(match elf::SymbolType(st_type) {
            elf::STT_FUNC => SymbolKind::Function,
            elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
            elf::STT_OBJECT => SymbolKind::Variable,
            elf::STT_TLS => SymbolKind::ThreadLocal,
            elf::STT_NOTYPE => SymbolKind::Label,
            _ => return None,
        })
    }

    /// `st_type`.
    pub(crate) fn st_type(self) -> u8 {
        let st_type = match self {
            SymbolKind::Function => elf::STT_FUNC,
            SymbolKind::Ifunc => elf::STT_GNU_IFUNC,
            SymbolKind::Variable => elf::STT_OBJECT,
            SymbolKind::ThreadLocal => elf::STT_TLS,
            SymbolKind::Label => elf::STT_NOTYPE,
        };
        st_type.0
    }

    /// With its article.
    pub(crate) fn spoken(self) -> &'static str {
        match self {
            SymbolKind::Function => "a function",
            SymbolKind::Ifunc => "an indirect function (ifunc)",
            SymbolKind::Variable => "a variable",
            SymbolKind::ThreadLocal => "a thread-local variable",
            SymbolKind::Label => "a label without type",
        }
    }
}

impl<'a> TargetElf<'a> {
    /// Reads an executable or a shared library. `debug`: its separate debug file, if there is one with the same
    /// build-id, which gives the symbols then.
    ///
    /// # Errors
    /// [`Error::BadTarget`] and [`Error::NoBuildId`].
    pub fn parse(path: &'a Path, bytes: &'a [u8], debug: Option<&'a [u8]>) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadTarget {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        if !bytes.starts_with(&elf::ELFMAG) {
            return Err(bad(
                "it is not an ELF file; give the executable or shared library itself",
            ));
        }
        if bytes.get(4) == Some(&1) {
            return Err(bad("it is a 32-bit file; only 64-bit x86-64 is supported"));
        }
        let broken = |error: object::Error| {
            bad(&format!(
                "its ELF structure is damaged ({error}); give an intact file"
            ))
        };
        let header = FileHeader64::<Le>::parse(bytes).map_err(broken)?;
        if bytes.get(5) != Some(&1) || header.e_machine(Le) != elf::EM_X86_64 {
            return Err(bad("it is for another machine; only x86-64 is supported"));
        }
        if !matches!(header.e_type(Le), elf::ET_EXEC | elf::ET_DYN) {
            return Err(bad(
                "it is neither an executable nor a shared library; give the linked file",
            ));
        }
        let file = ElfFile64::<Le>::parse(bytes).map_err(broken)?;
        let segments = header.program_headers(Le, bytes).map_err(broken)?;
        let build_id = file.build_id().map_err(broken)?.filter(|id| !id.is_empty());
        let build_id = build_id.ok_or_else(|| Error::NoBuildId {
            path: path.to_owned(),
        })?;
        if build_id.len() > 255 {
            return Err(bad(
                "its build-id is longer than 255 bytes; link it with -Wl,--build-id",
            ));
        }
        let object = object_name(path, header, segments, &file, bytes);
        let debug = debug
            .and_then(|d| ElfFile64::<Le>::parse(d).ok())
            .filter(|d| d.build_id().ok().flatten() == Some(build_id));
        let mut symbols = Vec::new();
        if let Some(debug) = &debug {
            definitions(debug.elf_symbol_table(), false, &mut symbols);
        }
        if symbols.is_empty() {
            definitions(file.elf_symbol_table(), false, &mut symbols);
        }
        definitions(file.elf_dynamic_symbol_table(), true, &mut symbols);
        let by_name = index(&symbols);
        Ok(TargetElf {
            path,
            build_id,
            object,
            symbols,
            recovered: false,
            bytes,
            segments,
            by_name,
        })
    }

    /// The same target with symbols that were proven to be its own, instead of those of its `.symtab`.
    pub fn with_symbols(mut self, symbols: &[TargetSymbol<'a>]) -> Self {
        let dynamic = self.symbols.iter().filter(|symbol| symbol.dynamic);
        self.symbols = symbols.iter().chain(dynamic).copied().collect();
        self.by_name = index(&self.symbols);
        self.recovered = true;
        self
    }

    /// The definitions of a name that `sympos` counts: those of `.symtab`, or if it has none those of `.dynsym`, in the
    /// order of the table.
    pub fn occurrences(&self, name: &str) -> Vec<&TargetSymbol<'a>> {
        let all = || {
            let numbers = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
            numbers.iter().filter_map(|&n| self.symbols.get(n))
        };
        let in_symtab: Vec<_> = all().filter(|s| !s.dynamic).collect();
        if in_symtab.is_empty() {
            all().collect()
        } else {
            in_symtab
        }
    }

    /// Whether a dynamic symbol of that name can be defined by another object instead of this library.
    pub fn interposable(&self, name: &str) -> bool {
        let numbers = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        self.object.is_some()
            && numbers
                .iter()
                .filter_map(|&n| self.symbols.get(n))
                .any(|s| s.interposable)
    }

    /// Finds the definition that a name and sympos mean.
    ///
    /// # Errors
    /// [`Error::MissingSymbol`], [`Error::AmbiguousFunc`], [`Error::SymposRange`].
    pub fn find(&self, name: &str, sympos: u64) -> Result<&TargetSymbol<'a>, Error> {
        let found = self.occurrences(name);
        let object = || spoken(self.object.as_deref());
        let symbol = || name.to_owned();
        let Some(first) = found.first() else {
            return Err(Error::MissingSymbol {
                object: object(),
                symbol: symbol(),
            });
        };
        let count = found.len();
        if sympos == 0 {
            // The same thing listed twice is no ambiguity.
            return if found
                .iter()
                .all(|s| s.svma == first.svma && s.kind == first.kind)
            {
                Ok(first)
            } else {
                let candidates = candidates(&found);
                Err(Error::AmbiguousFunc {
                    object: object(),
                    symbol: symbol(),
                    count,
                    candidates,
                })
            };
        }
        let number = usize::try_from(sympos).ok().and_then(|n| n.checked_sub(1));
        number.and_then(|n| found.get(n)).copied().ok_or_else(|| {
            let candidates = candidates(&found);
            Error::SymposRange {
                object: object(),
                symbol: symbol(),
                sympos,
                count,
                candidates,
            }
        })
    }

    /// The bytes of the file that are mapped at an address.
    pub fn bytes_at(&self, svma: u64, size: u64) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            if segment.p_type(Le) != elf::PT_LOAD {
                return None;
            }
            let into = svma.checked_sub(segment.p_vaddr(Le))?;
            if into.checked_add(size)? > segment.p_filesz(Le) {
                return None;
            }
            let start = usize::try_from(segment.p_offset(Le).checked_add(into)?).ok()?;
            self.bytes
                .get(start..start.checked_add(usize::try_from(size).ok()?)?)
        })
    }

    /// The executable segments: address and bytes.
    pub(crate) fn code(&self) -> impl Iterator<Item = (u64, &'a [u8])> + '_ {
        self.segments
            .iter()
            .filter(|s| s.p_type(Le) == elf::PT_LOAD && s.p_flags(Le).0 & elf::PF_X.0 != 0)
            .filter_map(|s| Some((s.p_vaddr(Le), self.bytes_at(s.p_vaddr(Le), s.p_filesz(Le))?)))
    }
}

fn index<'a>(symbols: &[TargetSymbol<'a>]) -> HashMap<&'a str, Vec<usize>> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, symbol) in symbols.iter().enumerate() {
        by_name.entry(symbol.name).or_default().push(number);
    }
    by_name
}

/// `number at address` for each candidate, as for a message.
fn candidates(found: &[&TargetSymbol<'_>]) -> String {
    let mut list: Vec<String> = found
        .iter()
        .take(8)
        .enumerate()
        .map(|(i, s)| {
            let size = counted(s.size, "byte", "bytes");
            format!("{}: {:#x}, {size}", i.saturating_add(1), s.svma)
        })
        .collect();
    if found.len() > 8 {
        list.push("...".to_owned());
    }
    list.join("; ")
}

/// DF_1_PIE tells an executable from a library also when it is static; else it has an interpreter and no soname
/// (libc.so.6 has both).
fn object_name(
    path: &Path,
    header: &FileHeader64<Le>,
    segments: &[ProgramHeader64<Le>],
    file: &ElfFile64<'_, Le>,
    bytes: &[u8],
) -> Option<String> {
    let mut soname = None;
    let mut pie = false;
    if let Ok(table) = file.elf_section_table().dynamic_table(Le, bytes) {
        let strings = table.strings();
        for entry in table.iter() {
            let value = entry.val;
            if entry.tag == elf::DT_FLAGS_1 {
                pie = value & elf::DF_1_PIE.0 != 0;
            } else if entry.tag == elf::DT_SONAME {
                let name = u32::try_from(value)
                    .ok()
                    .and_then(|at| strings.get(at).ok());
                soname = name
                    .and_then(|n| std::str::from_utf8(n).ok())
                    .map(str::to_owned);
            }
        }
    }
    let interp = segments.iter().any(|s| s.p_type(Le) == elf::PT_INTERP);
    if header.e_type(Le) == elf::ET_EXEC || pie || (interp && soname.is_none()) {
        return None;
    }
    soname.or_else(|| Some(path.file_name()?.to_string_lossy().into_owned()))
}

fn definitions<'a>(
    table: &SymbolTable<'a, FileHeader64<Le>>,
    dynamic: bool,
    symbols: &mut Vec<TargetSymbol<'a>>,
) {
    let mut file = None;
    for symbol in table.iter() {
        if symbol.st_type() == elf::STT_FILE {
            let name = table.symbol_name(Le, symbol).ok();
            file = name.and_then(|n| std::str::from_utf8(n).ok());
            continue;
        }
        let Some(kind) = SymbolKind::from_st_type(symbol.st_type().0) else {
            continue;
        };
        let shndx = symbol.st_shndx(Le);
        if shndx == elf::SHN_UNDEF || shndx == elf::SHN_ABS {
            continue;
        }
        let name = table
            .symbol_name(Le, symbol)
            .ok()
            .and_then(|n| std::str::from_utf8(n).ok());
        let Some(name) = name.map(|n| n.split('@').next().unwrap_or(n)) else {
            continue;
        };
        if name.is_empty() {
            continue;
        }
        let global = symbol.st_bind() != elf::STB_LOCAL;
        symbols.push(TargetSymbol {
            name,
            svma: symbol.st_value(Le),
            size: symbol.st_size(Le),
            kind,
            global,
            file: file.filter(|_| !global),
            dynamic,
            interposable: dynamic && global && symbol.st_visibility() == elf::STV_DEFAULT,
        });
    }
}
