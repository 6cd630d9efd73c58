//! One ELF object as it is loaded in the target.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::dynamic::{Dynamic, Slot, read_slots, relative_words};
use super::file::{ElfFile, PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD, PT_NOTE, SHT_NOBITS, SHT_SYMTAB};
use super::raw::string_at;
use super::references::{Frames, References};
use super::symbols::{Symbol, SymbolKind, SymbolTable};
use super::{ObjectError, PAGE, StackSwitching, switching};
use crate::unwind::Module;

const STV_PROTECTED: u8 = 3;

/// The executable or a shared library of a process.
///
/// An svma is an address as the file numbers it, an avma one in the process; `avma = svma + bias`, modulo 2^64.
#[derive(Debug)]
pub struct LoadedObject {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) build_id: Vec<u8>,
    pub(super) bias: u64,
    pub(super) span: Range<u64>,
    pub(super) is_executable: bool,
    pub(super) elf: ElfFile,
    pub(super) dynamic: Dynamic,
    /// The target's root directory, for separate debug files.
    pub(super) root: PathBuf,
    pub(super) symtab: OnceLock<Option<SymbolTable>>,
    pub(super) dynsym: OnceLock<Option<SymbolTable>>,
    pub(super) slots: OnceLock<Vec<Slot>>,
    pub(super) frames: OnceLock<Option<Frames>>,
    pub(super) references: OnceLock<Option<References>>,
    pub(super) relative_words: OnceLock<Vec<(u64, u64)>>,
}

/// A symbol that a lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its value, in the file's numbering (for a thread-local symbol an offset in the module's storage).
    pub svma: u64,
    /// Its size in bytes; 0 when the symbol table does not say.
    pub size: u64,
    /// What it stands for.
    pub kind: SymbolKind,
}

impl LoadedObject {
    /// The soname of a library, or the file's name where there is none; the file's name of the executable.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path in the target's maps.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// NT_GNU_BUILD_ID; empty when the file has none.
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// avma - svma, modulo 2^64.
    pub fn bias(&self) -> u64 {
        self.bias
    }

    /// From the first to the last page of its segments (avma).
    pub fn span(&self) -> Range<u64> {
        self.span.clone()
    }

    /// Whether it is the program itself.
    pub fn is_executable(&self) -> bool {
        self.is_executable
    }

    /// The address in the process of an address in the file.
    pub fn avma(&self, svma: u64) -> u64 {
        svma.wrapping_add(self.bias)
    }

    /// The address in the file of an address in the process.
    pub fn svma(&self, avma: u64) -> u64 {
        avma.wrapping_sub(self.bias)
    }

    /// What the file has for a range (avma) of an executable segment; nothing when any byte of it lies elsewhere, or
    /// the file cannot be read.
    pub fn code(&self, avma: Range<u64>) -> Option<Vec<u8>> {
        let svma = self.svma(avma.start);
        let size = avma.end.checked_sub(avma.start)?;
        let end = svma.checked_add(size)?;
        let in_text = |s: &&super::file::Segment| {
            let file_end = s.svma.saturating_add(s.file_size);
            s.kind == PT_LOAD && s.is_exec() && s.svma <= svma && end <= file_end
        };
        self.elf.segments().iter().find(in_text)?;
        self.elf.read_svma(svma, size, "code").ok()
    }

    /// The page at an address (avma) as the file has it: what was mapped there, neighbouring sections included.
    pub fn page(&self, avma: u64) -> Option<Vec<u8>> {
        let page = self.svma(avma) & !(PAGE - 1);
        let holds = |s: &&super::file::Segment| {
            let end = s.svma.saturating_add(s.file_size);
            s.kind == PT_LOAD && s.svma & !(PAGE - 1) <= page && page < end
        };
        let segment = self.elf.segments().iter().find(holds)?;
        let offset = segment.offset.wrapping_sub(segment.svma).wrapping_add(page);
        let mut bytes = self.elf.read_up_to(offset, PAGE, "code").ok()?;
        bytes.resize(PAGE as usize, 0);
        Some(bytes)
    }

    /// Its call frame information; `None` where it has none, or none that can be read.
    pub fn unwind_info(&self) -> Option<Module> {
        let sections = self.elf.sections();
        let section = sections.iter().find(|s| s.name == ".eh_frame");
        let hdr = self.elf.segment(PT_GNU_EH_FRAME).and_then(|segment| {
            let bytes = self
                .elf
                .read(segment.offset, segment.file_size, ".eh_frame_hdr");
            Some((bytes.ok()?, segment.svma))
        });
        let pointed = hdr.as_ref().and_then(|(bytes, svma)| {
            let bases = gimli::BaseAddresses::default().set_eh_frame_hdr(*svma);
            let hdr = gimli::EhFrameHdr::new(bytes, gimli::LittleEndian);
            hdr.parse(&bases, 8).ok()?.eh_frame_ptr().direct().ok()
        });
        let svma = pointed.or(section.map(|section| section.svma))?;
        let limit = section
            .filter(|section| section.svma == svma)
            .map_or(u64::MAX, |section| section.size);
        let eh_frame = self.elf.read_svma_up_to(svma, limit, ".eh_frame").ok()?;
        Some(Module {
            code: self.code_ranges(),
            bias: self.bias,
            eh_frame: (eh_frame, svma),
            eh_frame_hdr: hdr,
        })
    }

    /// Bytes (avma) that tell this object from any other that may come to its place: its build-id note, or its ELF
    /// header where there is none.
    pub fn identity(&self) -> Option<(u64, Vec<u8>)> {
        let notes = self.elf.segments().iter().filter(|s| s.kind == PT_NOTE);
        let mut with_id = notes.filter_map(|s| {
            let bytes = self
                .elf
                .read(s.offset, s.file_size.min(PAGE), "notes")
                .ok()?;
            let found = memchr::memmem::find(&bytes, &self.build_id).is_some();
            (found && !self.build_id.is_empty()).then(|| (self.avma(s.svma), bytes))
        });
        with_id.next().or_else(|| {
            let first = self.elf.segments().iter().find(|s| s.kind == PT_LOAD)?;
            let bytes = self
                .elf
                .read(first.offset, first.file_size.min(64), "the ELF header")
                .ok()?;
            Some((self.avma(first.svma), bytes))
        })
    }

    /// The executable segments (avma).
    pub fn code_ranges(&self) -> Vec<Range<u64>> {
        let segments = self
            .elf
            .segments()
            .iter()
            .filter(|s| s.kind == PT_LOAD && s.is_exec());
        segments
            .map(|s| self.avma(s.svma)..self.avma(s.svma_range().end))
            .collect()
    }

    /// No program interpreter: a static or static-pie program (or a library).
    pub fn is_static(&self) -> bool {
        self.elf.segment(PT_INTERP).is_none()
    }

    /// Loaded at an address that the kernel or the loader chose.
    pub fn is_pie(&self) -> bool {
        self.elf.is_dyn()
    }

    /// The dynamic loader that the program asks for.
    pub fn interpreter(&self) -> Option<PathBuf> {
        let segment = self.elf.segment(PT_INTERP)?;
        let bytes = self
            .elf
            .read(
                segment.offset,
                segment.file_size.min(4096),
                "the interpreter",
            )
            .ok()?;
        Some(PathBuf::from(
            String::from_utf8_lossy(string_at(&bytes, 0)).into_owned(),
        ))
    }

    /// DT_NEEDED, in order.
    pub fn needed(&self) -> &[String] {
        &self.dynamic.needed
    }

    /// Whether there is a .symtab, here or in a separate debug file; without one static functions have no names.
    pub fn has_symtab(&self) -> bool {
        self.symtab().is_some()
    }

    /// What a compiler has made of the body of a coroutine of C++20: a function with a suffix to its name, to which
    /// suspended ones hold a pointer. That itself counts as well.
    pub fn coroutine_part(&self, function: &str) -> Option<String> {
        // Clang: `NAME.resume`. GCC: a function of the same name without its arguments, which takes a pointer to a
        // `NAME.Frame`, with `.actor`.
        const SUFFIXES: [&str; 5] = [
            ".Frame.actor",
            ".Frame.destroy",
            ".resume",
            ".destroy",
            ".cleanup",
        ];
        let symbols = self.symtab()?;
        let frame = format!("{}{function}", function.len() + ".Frame".len());
        SUFFIXES.iter().find_map(|suffix| {
            let mut names = symbols.names_ending(suffix);
            let name = names.find(|name| {
                let stem = name.get(..name.len() - suffix.len()).unwrap_or_default();
                let owner = stem == function.as_bytes() || stem.ends_with(frame.as_bytes());
                owner || *name == function.as_bytes()
            })?;
            Some(String::from_utf8_lossy(name).into_owned())
        })
    }

    /// What makes stacks here that are no task's (Go, coroutines, fibers), if anything does. All of its code is looked
    /// through (0.4 ns a byte).
    pub fn stack_switching(&self) -> Option<StackSwitching> {
        switching::find(self)
    }

    /// A defined function or object by name: in .symtab (the file's own or its debug file's), else in .dynsym.
    ///
    /// `sympos` 0: the name must be unique. N: the Nth symbol of that name, in the order of the symbol table.
    pub fn lookup(&self, name: &str, sympos: u64) -> Result<Found, ObjectError> {
        let none = || {
            let hint = if self.has_symtab() {
                "; check its spelling, or whether the compiler inlined it everywhere"
            } else {
                "; it is stripped: only exported symbols are known, install its debug symbols for the others"
            };
            ObjectError::NoSymbol {
                object: self.name.clone(),
                name: name.to_owned(),
                hint,
            }
        };
        for table in [self.symtab(), self.dynsym()].into_iter().flatten() {
            let all: Vec<Symbol<'_>> = table.named(name).filter(|s| s.defined).collect();
            if all.is_empty() {
                continue;
            }
            let (object, name) = (self.name.clone(), name.to_owned());
            let count = u64::try_from(all.len()).unwrap_or(u64::MAX);
            let Some(position) = sympos.checked_sub(1) else {
                return match unique(&all) {
                    Some(symbol) => Ok(found(symbol)),
                    None => Err(ObjectError::Ambiguous {
                        object,
                        name,
                        count,
                    }),
                };
            };
            let nth = usize::try_from(position).ok().and_then(|at| all.get(at));
            return match nth {
                Some(symbol) => Ok(found(*symbol)),
                None => Err(ObjectError::NoOccurrence {
                    object,
                    name,
                    count,
                    sympos,
                }),
            };
        }
        Err(none())
    }

    /// The function that contains an address and the offset in it, as far as the symbol tables know; `puts@plt` for
    /// the stub through which `puts` is called.
    pub fn symbolize(&self, avma: u64) -> Option<(String, u64)> {
        let svma = self.svma(avma);
        let named = [self.symtab(), self.dynsym()]
            .into_iter()
            .flatten()
            .find_map(|table| {
                let symbol = table.function_at(svma)?;
                let name = String::from_utf8_lossy(symbol.name).into_owned();
                Some((name, svma.checked_sub(symbol.svma)?))
            });
        named.or_else(|| self.plt_stub(svma))
    }

    /// The variable that contains an address and the offset in it, as far as the symbol tables know.
    pub fn variable_at(&self, avma: u64) -> Option<(String, u64)> {
        let svma = self.svma(avma);
        let mut tables = [self.symtab(), self.dynsym()].into_iter().flatten();
        tables.find_map(|table| {
            let mut symbols = table.iter();
            let symbol = symbols.find(|symbol| {
                let offset = svma.checked_sub(symbol.svma);
                symbol.defined
                    && symbol.kind == SymbolKind::Other
                    && offset.is_some_and(|offset| offset < symbol.size)
            })?;
            let name = String::from_utf8_lossy(symbol.name).into_owned();
            Some((name, svma.wrapping_sub(symbol.svma)))
        })
    }

    /// A stub jumps through a word that the dynamic loader fills in (x86-64 psABI, 5.2): that says whose it is.
    fn plt_stub(&self, svma: u64) -> Option<(String, u64)> {
        [16, 8].into_iter().find_map(|size: u64| {
            let start = svma & !(size - 1);
            let code = self.code(self.avma(start)..self.avma(start.checked_add(size)?))?;
            // [endbr64] [bnd] jmp *displacement(%rip)
            let code = code.strip_prefix(b"\xf3\x0f\x1e\xfa").unwrap_or(&code);
            let code = code.strip_prefix(b"\xf2").unwrap_or(code);
            let displacement = code.strip_prefix(b"\xff\x25")?.first_chunk::<4>()?;
            let next = start
                .checked_add(size)?
                .checked_sub(u64::try_from(code.len().checked_sub(6)?).ok()?)?;
            let word = next.wrapping_add_signed(i64::from(i32::from_le_bytes(*displacement)));
            let slot = self.slots().iter().find(|slot| slot.svma == word)?;
            let symbol = self.dynsym()?.get(slot.symbol)?;
            let name = String::from_utf8_lossy(symbol.name);
            let named = slot.symbol != 0 && !name.is_empty();
            named.then(|| Some((format!("{name}@plt"), svma.checked_sub(start)?)))?
        })
    }

    /// Reads the sections of the DWARF by name: the file's own, else its separate debug file's. `None` where neither
    /// has any. A section that is not there, or would be larger than what is left of `room`, is empty.
    pub(crate) fn debug_sections<'a>(
        &'a self,
        room: &'a mut u64,
    ) -> Option<impl FnMut(&'static str) -> Vec<u8> + 'a> {
        let separate = || self.debug_file().filter(has_debug_info);
        let separate = if has_debug_info(&self.elf) {
            None
        } else {
            Some(separate()?)
        };
        Some(move |name: &'static str| {
            let elf = separate.as_ref().unwrap_or(&self.elf);
            let sections = elf.sections().iter();
            let section = sections
                .filter(|section| section.name == name)
                .max_by_key(|s| s.size);
            let bytes = section.and_then(|section| elf.uncompressed(section, *room));
            let bytes = bytes.unwrap_or_default();
            *room = room.saturating_sub(bytes.len() as u64);
            bytes
        })
    }

    /// The stretch of its code (avma) with call frame information of its own that an address lies in.
    pub fn stretch_at(&self, avma: u64) -> Option<Range<u64>> {
        let range = self.frames()?.at(self.svma(avma))?;
        Some(self.avma(range.start)..self.avma(range.end))
    }

    /// The exact range (avma) of the function whose symbol contains an address.
    pub fn function_range(&self, avma: u64) -> Option<Range<u64>> {
        let svma = self.svma(avma);
        [self.symtab(), self.dynsym()]
            .into_iter()
            .flatten()
            .find_map(|table| {
                let symbol = table.function_at(svma)?;
                Some(self.avma(symbol.svma)..self.avma(symbol.svma.checked_add(symbol.size)?))
            })
    }

    /// The ranges (avma) of its functions, one for each start: what symbols and call frame information have. PLT stubs are
    /// none.
    pub fn entries(&self) -> Vec<Range<u64>> {
        let tables = [self.symtab(), self.dynsym()];
        let symbols = tables.into_iter().flatten().flat_map(|table| table.iter());
        let named = symbols.filter(|symbol| {
            let function = matches!(
                symbol.kind,
                SymbolKind::Function | SymbolKind::IndirectFunction
            );
            symbol.defined && symbol.size > 0 && function
        });
        let named = named.filter_map(|symbol| {
            let start = self.avma(symbol.svma);
            Some(start..start.checked_add(symbol.size)?)
        });
        let mut all: Vec<Range<u64>> = named.chain(self.functions()).collect();
        let sections = self.elf.sections().iter();
        let stubs: Vec<Range<u64>> = sections
            .filter(|section| section.name.starts_with(".plt"))
            .map(|s| self.avma(s.svma)..self.avma(s.svma).saturating_add(s.size))
            .collect();
        all.retain(|range| !stubs.iter().any(|stubs| stubs.contains(&range.start)));
        all.sort_by_key(|range| (range.start, range.end));
        all.dedup_by_key(|range| range.start);
        all
    }

    /// Whether the dynamic loader may bind the object's own references to the name to another object.
    pub(crate) fn is_interposable(&self, name: &str) -> bool {
        let exported = self.dynsym().is_some_and(|table| {
            table
                .named(name)
                .any(|s| s.defined && !s.local && s.visibility != STV_PROTECTED)
        });
        exported && !self.is_executable && !self.dynamic.symbolic
    }

    /// The definition of the default version of a name that other objects can bind to.
    pub(crate) fn exported(&self, name: &str) -> Option<Symbol<'_>> {
        self.dynsym()?
            .named(name)
            .find(|s| s.defined && !s.local && !s.old_version && is_visible(s))
    }

    /// The definition that a reference from the object's own source would mean, static symbols included.
    pub(crate) fn own_definition(&self, name: &str) -> Result<Option<Symbol<'_>>, ObjectError> {
        let all: Vec<Symbol<'_>> = match self.symtab() {
            Some(table) => table.named(name).filter(|s| s.defined).collect(),
            None => Vec::new(),
        };
        let (locals, globals): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| s.local);
        let exported = || self.dynsym()?.named(name).find(|s| s.defined && !s.local);
        if let Some(symbol) = unique(&globals).or_else(exported) {
            return Ok(Some(symbol));
        }
        let candidates = if globals.is_empty() { locals } else { globals };
        match (candidates.len(), unique(&candidates)) {
            (0, _) => Ok(None),
            (_, Some(symbol)) => Ok(Some(symbol)),
            (count, None) => Err(ObjectError::Ambiguous {
                object: self.name.clone(),
                name: name.to_owned(),
                count: u64::try_from(count).unwrap_or(u64::MAX),
            }),
        }
    }

    pub(crate) fn elf(&self) -> &ElfFile {
        &self.elf
    }

    pub(crate) fn dynamic(&self) -> &Dynamic {
        &self.dynamic
    }

    /// Words that the dynamic loader fills in, sorted by symbol; none when they cannot be read.
    pub(crate) fn slots(&self) -> &[Slot] {
        self.slots
            .get_or_init(|| read_slots(&self.elf, &self.dynamic).unwrap_or_default())
    }

    /// Its call frame information, read once.
    pub(super) fn frames(&self) -> Option<&Frames> {
        let frames = self.frames.get_or_init(|| Frames::read(self));
        frames.as_ref()
    }

    /// Who refers to what in it: all of its code is read for that, once.
    pub(super) fn references(&self) -> Option<&References> {
        let read = || Some(References::read(self, self.frames()?));
        self.references.get_or_init(read).as_ref()
    }

    /// Words that hold addresses of its own, sorted, as (svma, svma).
    pub(super) fn relative_words(&self) -> &[(u64, u64)] {
        let read = || relative_words(&self.elf, &self.dynamic);
        self.relative_words.get_or_init(read)
    }

    pub(crate) fn dynsym(&self) -> Option<&SymbolTable> {
        self.dynsym
            .get_or_init(|| self.dynamic.symbol_table(&self.elf).ok().flatten())
            .as_ref()
    }

    pub(crate) fn symtab(&self) -> Option<&SymbolTable> {
        let read = || section_symbols(&self.elf).or_else(|| section_symbols(&self.debug_file()?));
        self.symtab.get_or_init(read).as_ref()
    }

    /// The separate debug file of the same build-id, in the target's file system or in ours.
    fn debug_file(&self) -> Option<ElfFile> {
        let (first, rest) = self.build_id.split_first()?;
        let hex: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        let relative = format!("usr/lib/debug/.build-id/{first:02x}/{hex}.debug");
        [self.root.as_path(), Path::new("/")]
            .iter()
            .find_map(|root| {
                let path = root.join(&relative);
                let elf = ElfFile::open(&path, &path).ok()?;
                (elf.build_id() == self.build_id).then_some(elf)
            })
    }
}

fn has_debug_info(elf: &ElfFile) -> bool {
    let mut sections = elf.sections().iter();
    sections.any(|s| s.name == ".debug_info" && s.kind != SHT_NOBITS && s.size > 0)
}

fn is_visible(symbol: &Symbol<'_>) -> bool {
    matches!(symbol.visibility, 0 | STV_PROTECTED)
}

fn found(symbol: Symbol<'_>) -> Found {
    Found {
        svma: symbol.svma,
        size: symbol.size,
        kind: symbol.kind,
    }
}

/// The only symbol, not counting versions kept for old callers and repetitions of the same symbol.
fn unique<'a>(symbols: &[Symbol<'a>]) -> Option<Symbol<'a>> {
    let has_default = symbols.iter().any(|s| !s.old_version);
    let mut rest = symbols.iter().filter(|s| !has_default || !s.old_version);
    let first = rest.next()?;
    rest.all(|s| s.svma == first.svma && s.kind == first.kind)
        .then_some(*first)
}

fn section_symbols(elf: &ElfFile) -> Option<SymbolTable> {
    let table = elf.sections().iter().find(|s| s.kind == SHT_SYMTAB)?;
    let strings = elf.sections().get(usize::try_from(table.link).ok()?)?;
    let symbols = elf.section_data(table, "the symbol table").ok()?;
    let strings = elf.section_data(strings, "the string table").ok()?;
    Some(SymbolTable::new(symbols, strings, Vec::new()))
}

/// Whether `candidate` was split off `function`: its name goes on with `.cold` or `.part`.
///
/// `f.constprop.0` and `f.isra.0` are other versions of `f` with callers of their own, not parts of it.
pub(crate) fn is_split_body(candidate: &[u8], function: &[u8]) -> bool {
    let suffix = candidate
        .strip_prefix(function)
        .and_then(|rest| rest.strip_prefix(b"."));
    let first = suffix.and_then(|suffix| suffix.split(|&b| b == b'.').next());
    matches!(first, Some(b"cold" | b"part"))
}

#[cfg(test)]
mod tests {
    use super::is_split_body;

    #[test]
    fn parts_of_a_function_are_told_from_its_clones() {
        for part in [
            "f.cold",
            "f.cold.1",
            "f.part.0",
            "f.part.0.cold",
            "f.part.3.isra.0",
        ] {
            assert!(is_split_body(part.as_bytes(), b"f"), "{part}");
        }
        for other in [
            "f",
            "f.constprop.0",
            "f.isra.0.cold",
            "fg.cold",
            "f_cold",
            "f.coldest",
            "f.",
        ] {
            assert!(!is_split_body(other.as_bytes(), b"f"), "{other}");
        }
        assert!(is_split_body(b"f.isra.0.cold", b"f.isra.0"));
    }
}
