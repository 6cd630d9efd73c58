//! The cheap proof: a build of the same program, linked the same way but not stripped, is the target to the last
//! byte that is loaded; then its symbol table is the target's.

use std::collections::HashMap;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions};
use livegraft_patchfile::{Fingerprint, SymbolKind, TargetSymbol};
use object::LittleEndian as Le;
use object::elf::{self, FileHeader64, SectionHeader64};
use object::read::elf::{ProgramHeader as _, SectionHeader as _, Sym as _, SymbolTable};

use super::linked::Linked;
use super::placement::fingerprint;
use super::refusal::SideBySide;
use super::{Located, Refusal, explain};

/// The symbols of a target that is proven to be what was built.
pub struct Symbols<'a> {
    target: Linked<'a>,
    symbols: Vec<Symbol<'a>>,
    by_name: HashMap<&'a str, Vec<u32>>,
}

/// A definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// The source file of a static one, as STT_FILE says it: without a directory.
    pub file: Option<&'a str>,
    /// Where it is.
    pub located: Located,
    /// Not static.
    pub global: bool,
}

/// Where two files that should be the same differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum Difference {
    #[error(transparent)]
    Unusable(#[from] Refusal),
    #[error("the target and the build are laid out differently ({why})")]
    Layout { why: String },
    #[error("section {section} differs at {svma:#x}, in `{function}`:{side}")]
    Code {
        section: String,
        svma: u64,
        function: String,
        side: Box<SideBySide>,
    },
    #[error("section {section} differs at {svma:#x}{symbol}: {contents}")]
    Data {
        section: String,
        svma: u64,
        /// ", in `x`" or nothing.
        symbol: String,
        /// What was built, and what is in the target.
        contents: String,
    },
}

/// Compares all that is loaded of the target with what the build linked; the build-id may differ.
///
/// # Errors
/// The first difference.
pub fn identical<'a>(target: &'a [u8], linked: &'a [u8]) -> Result<Symbols<'a>, Difference> {
    let target = Linked::read("the target", target)?;
    let built = Linked::read("the linked build", linked)?;
    let malformed = |why: &str| Refusal::Malformed {
        file: "the linked build".to_owned(),
        why: why.to_owned(),
    };
    let table = built
        .sections
        .symbols(Le, built.bytes, elf::SHT_SYMTAB)
        .map_err(|_| malformed("its symbol table is cut off"))?;
    if table.is_empty() {
        return Err(Difference::Unusable(Refusal::NoSymbols {
            file: "the linked build".to_owned(),
        }));
    }
    let symbols = symbols(&table, built.sections.len());
    same_segments(&target, &built)?;
    same_sections(&target, &built)?;
    let mut sections: Vec<(&str, &'a SectionHeader64<Le>)> = Vec::new();
    let mut covered = 0u64;
    for section in built.sections.iter() {
        let loaded = section.sh_flags(Le).0 & elf::SHF_ALLOC.0 != 0;
        if loaded && section.sh_type(Le) != elf::SHT_NOBITS {
            let name = built.sections.section_name(Le, section).unwrap_or_default();
            let name = std::str::from_utf8(name).map_err(|_| malformed("a name is not UTF-8"))?;
            covered = covered.saturating_add(section.sh_size(Le));
            sections.push((name, section));
        }
    }
    let loaded: u64 = built.segments.iter().map(|s| s.data.len() as u64).sum();
    if covered > loaded {
        return Err(malformed("its sections overlap").into());
    }
    let id = id_range(&built);
    sections.sort_by_key(|(_, section)| section.sh_addr(Le));
    for (name, section) in sections {
        let (svma, size) = (section.sh_addr(Le), section.sh_size(Le));
        let outside = || Difference::Layout {
            why: format!("section {name} is not loaded"),
        };
        let built_bytes = built.at(svma, size).ok_or_else(outside)?;
        let runs = target.at(svma, size).ok_or_else(outside)?;
        if built_bytes == runs {
            continue;
        }
        let differs = built_bytes.iter().zip(runs).zip(svma..);
        let first = differs
            .filter(|((a, b), at)| a != b && !id.contains(at))
            .map(|(_, at)| at)
            .next();
        if let Some(at) = first {
            return Err(difference(&target, &built, &symbols, (name, section), at));
        }
    }
    let mut by_name: HashMap<&str, Vec<u32>> = HashMap::new();
    for (number, symbol) in (0u32..).zip(&symbols) {
        by_name.entry(symbol.name).or_default().push(number);
    }
    Ok(Symbols {
        target,
        symbols,
        by_name,
    })
}

/// The program headers say the same of memory.
fn same_segments(target: &Linked<'_>, built: &Linked<'_>) -> Result<(), Difference> {
    let differ = |why: String| Err(Difference::Layout { why });
    if target.headers.len() != built.headers.len() {
        return differ(format!(
            "{} program headers in the target, {} in the build",
            target.headers.len(),
            built.headers.len()
        ));
    }
    let says = |header: &elf::ProgramHeader64<Le>| {
        let p_type = header.p_type(Le);
        // `strip` writes the exact size where a linker had rounded it; what is there is compared below.
        let size = match p_type {
            elf::PT_LOAD | elf::PT_DYNAMIC => header.p_memsz(Le),
            elf::PT_TLS => header
                .p_memsz(Le)
                .checked_next_multiple_of(header.p_align(Le).max(1))
                .unwrap_or(u64::MAX),
            _ => 0,
        };
        (p_type.0, header.p_flags(Le).0, header.p_vaddr(Le), size)
    };
    let mut pairs = target.headers.iter().zip(built.headers).enumerate();
    match pairs.find(|(_, (a, b))| says(a) != says(b)) {
        Some((number, (a, b))) => differ(format!(
            "program header {number} is at {:#x} with {} bytes in the target, at {:#x} with {} bytes in the build",
            a.p_vaddr(Le),
            a.p_memsz(Le),
            b.p_vaddr(Le),
            b.p_memsz(Le)
        )),
        None => Ok(()),
    }
}

/// Where the target still has a section table, its loaded sections are those of the build.
fn same_sections(target: &Linked<'_>, built: &Linked<'_>) -> Result<(), Difference> {
    if target.sections.is_empty() {
        return Ok(());
    }
    let list = |linked: &Linked<'_>| {
        let loaded = linked
            .sections
            .iter()
            .filter(|s| s.sh_flags(Le).0 & elf::SHF_ALLOC.0 != 0);
        // Other flags say what links to what, which `strip` may lose.
        let kept = elf::SHF_WRITE.0 | elf::SHF_EXECINSTR.0 | elf::SHF_TLS.0;
        let mut list: Vec<_> = loaded
            .map(|s| {
                let zero = s.sh_type(Le) == elf::SHT_NOBITS;
                (s.sh_addr(Le), s.sh_size(Le), s.sh_flags(Le).0 & kept, zero)
            })
            .collect();
        list.sort_unstable();
        list
    };
    let (ours, theirs) = (list(target), list(built));
    if ours == theirs {
        return Ok(());
    }
    let first = ours.iter().zip(&theirs).find(|(a, b)| a != b);
    Err(Difference::Layout {
        why: match first {
            Some((a, b)) => format!(
                "a section at {:#x} with {} bytes in the target is at {:#x} with {} bytes in the build",
                a.0, a.1, b.0, b.1
            ),
            None => format!(
                "{} loaded sections in the target, {} in the build",
                ours.len(),
                theirs.len()
            ),
        },
    })
}

/// Where the build-id is, in a file of this layout.
fn id_range(linked: &Linked<'_>) -> Range<u64> {
    let id = linked.build_id;
    let within = |data: &[u8]| {
        (id.as_ptr() as usize)
            .checked_sub(data.as_ptr() as usize)
            .filter(|into| *into < data.len())
    };
    let start = linked.segments.iter().find_map(|segment| {
        let into = within(segment.data).filter(|_| !id.is_empty())?;
        segment.svma.checked_add(into as u64)
    });
    let start = start.unwrap_or(0);
    start..start.saturating_add(id.len() as u64)
}

fn difference(
    target: &Linked<'_>,
    built: &Linked<'_>,
    symbols: &[Symbol<'_>],
    (section, header): (&str, &SectionHeader64<Le>),
    at: u64,
) -> Difference {
    let contains = |symbol: &&Symbol<'_>| {
        let Located { svma, size, kind } = symbol.located;
        kind != SymbolKind::ThreadLocal && svma <= at && at < svma.saturating_add(size.max(1))
    };
    let symbol = symbols.iter().find(contains);
    if header.sh_flags(Le).0 & elf::SHF_EXECINSTR.0 != 0 {
        let start = symbol.map_or(header.sh_addr(Le), |symbol| symbol.located.svma);
        let code = built.from(start).unwrap_or_default();
        let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        while decoder.can_decode() && decoder.ip() <= at {
            instruction = decoder.decode();
        }
        return Difference::Code {
            section: section.to_owned(),
            svma: instruction.ip(),
            function: symbol.map_or(section, |symbol| symbol.name).to_owned(),
            side: Box::new(SideBySide {
                offset: instruction.ip().saturating_sub(start),
                built: explain::text(&instruction),
                runs: explain::instruction_at(target, instruction.ip()),
                because: None,
            }),
        };
    }
    let bytes = |linked: &Linked<'_>| {
        let bytes = linked.from(at).unwrap_or_default().iter().take(8);
        let bytes: Vec<String> = bytes.map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    };
    Difference::Data {
        section: section.to_owned(),
        svma: at,
        symbol: symbol.map_or(String::new(), |symbol| format!(", in `{}`", symbol.name)),
        contents: format!(
            "{} was built, {} is in the target",
            bytes(built),
            bytes(target)
        ),
    }
}

fn symbols<'a>(table: &SymbolTable<'a, FileHeader64<Le>>, sections: usize) -> Vec<Symbol<'a>> {
    let mut symbols = Vec::new();
    let mut file = None;
    for symbol in table.iter() {
        let name = table
            .symbol_name(Le, symbol)
            .ok()
            .and_then(|name| std::str::from_utf8(name).ok());
        let kind = match symbol.st_type() {
            elf::STT_FILE => {
                file = name.filter(|name| !name.is_empty());
                continue;
            }
            elf::STT_FUNC => SymbolKind::Function,
            elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
            elf::STT_OBJECT | elf::STT_COMMON => SymbolKind::Variable,
            elf::STT_TLS => SymbolKind::ThreadLocal,
            elf::STT_NOTYPE => SymbolKind::Label,
            _ => continue,
        };
        let shndx = symbol.st_shndx(Le);
        let defined = shndx != elf::SHN_UNDEF && usize::from(shndx.0) < sections.max(0xff00);
        let Some(name) = name.filter(|name| defined && shndx != elf::SHN_ABS && !name.is_empty())
        else {
            continue;
        };
        let global = symbol.st_bind() != elf::STB_LOCAL;
        symbols.push(Symbol {
            name: name.split('@').next().unwrap_or(name),
            file: file.filter(|_| !global),
            located: Located {
                svma: symbol.st_value(Le),
                size: symbol.st_size(Le),
                kind,
            },
            global,
        });
    }
    symbols
}

impl<'a> Symbols<'a> {
    /// NT_GNU_BUILD_ID of the target; empty where it has none.
    pub fn build_id(&self) -> &'a [u8] {
        self.target.build_id
    }

    /// All definitions, in the order of the symbol table.
    pub fn iter(&self) -> impl Iterator<Item = &Symbol<'a>> {
        self.symbols.iter()
    }

    /// The definitions of a name, in the order of the symbol table.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Symbol<'a>> {
        let numbers = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        numbers
            .iter()
            .filter_map(|&number| self.symbols.get(number as usize))
    }

    /// The one definition of a name: with a file (STT_FILE), the static one of that file, else the global one or the
    /// only static one.
    ///
    /// # Errors
    /// [`Refusal::NoSymbol`] and [`Refusal::SeveralSymbols`].
    pub fn find(&self, file: Option<&str>, name: &str) -> Result<Located, Refusal> {
        let fits = |symbol: &&Symbol<'a>| file.is_none_or(|file| symbol.file == Some(file));
        let mut found: Vec<&Symbol<'a>> = self.named(name).filter(fits).collect();
        if file.is_none() && found.iter().any(|symbol| symbol.global) {
            found.retain(|symbol| symbol.global);
        }
        let object = || file.unwrap_or("the target").to_owned();
        match found.as_slice() {
            [first, rest @ ..] if rest.iter().all(|s| s.located == first.located) => {
                Ok(first.located)
            }
            [] => Err(Refusal::NoSymbol {
                object: object(),
                symbol: name.to_owned(),
            }),
            several => Err(Refusal::SeveralSymbols {
                object: object(),
                symbol: name.to_owned(),
                count: several.len(),
            }),
        }
    }

    /// What a patch records of a function that it replaces.
    pub fn fingerprint(&self, function: &Located) -> Option<Fingerprint> {
        fingerprint(&self.target, function)
    }

    /// The symbols as `pack` takes them for a target that has none of its own.
    pub fn recovered(&self) -> Vec<TargetSymbol<'a>> {
        let symbol = |symbol: &Symbol<'a>| TargetSymbol {
            name: symbol.name,
            svma: symbol.located.svma,
            size: symbol.located.size,
            kind: symbol.located.kind,
            global: symbol.global,
            file: symbol.file,
            dynamic: false,
            interposable: false,
        };
        self.symbols.iter().map(symbol).collect()
    }
}
