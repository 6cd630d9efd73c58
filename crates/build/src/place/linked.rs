//! A linked file: what is mapped where, and what the dynamic loader is told to put there.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use object::elf::{self, FileHeader64, ProgramHeader64, Sym64};
use object::read::elf::{
    FileHeader as _, ProgramHeader as _, Rela as _, SectionHeader as _, SectionTable, Sym as _,
};
use object::{LittleEndian as Le, pod};

use super::Refusal;

/// An executable or a shared library. All addresses are svmas.
pub(super) struct Linked<'a> {
    pub segments: Vec<Segment<'a>>,
    pub headers: &'a [ProgramHeader64<Le>],
    pub tls: Option<Tls>,
    pub build_id: &'a [u8],
    /// Thread-local variables lie at a fixed distance from the thread pointer.
    pub executable: bool,
    pub sections: SectionTable<'a, FileHeader64<Le>>,
    pub bytes: &'a [u8],
    /// Sorted by address.
    dynamic: Vec<Dynamic>,
    names: Option<Names>,
    imports: HashSet<&'a [u8]>,
}

/// A PT_LOAD.
pub(super) struct Segment<'a> {
    pub svma: u64,
    pub mem_size: u64,
    pub data: &'a [u8],
    pub exec: bool,
}

/// PT_TLS.
#[derive(Clone, Copy)]
pub(super) struct Tls {
    pub svma: u64,
    pub mem_size: u64,
    align: u64,
}

/// A relocation that the dynamic loader makes.
#[derive(Clone, Copy)]
pub(super) struct Dynamic {
    at: u64,
    pub r_type: elf::RelocationType,
    symbol: u32,
    pub addend: i64,
}

/// DT_SYMTAB and DT_STRTAB.
struct Names {
    symbols: u64,
    strings: u64,
    strings_size: u64,
}

/// More entries than any dynamic section has.
const MAX_DYNAMIC: usize = 4096;

impl<'a> Linked<'a> {
    /// Reads what is needed of a linked file; `file` is its name for messages.
    pub fn read(file: &str, bytes: &'a [u8]) -> Result<Linked<'a>, Refusal> {
        let malformed = |why: &str| Refusal::Malformed {
            file: file.to_owned(),
            why: why.to_owned(),
        };
        let header = super::header(file, bytes)?;
        if !matches!(header.e_type(Le), elf::ET_EXEC | elf::ET_DYN) {
            return Err(Refusal::NotLinked {
                file: file.to_owned(),
            });
        }
        let headers = header
            .program_headers(Le, bytes)
            .map_err(|_| malformed("its program headers are cut off"))?;
        let mut segments: Vec<Segment<'a>> = Vec::new();
        let mut total = 0usize;
        for load in headers.iter().filter(|h| h.p_type(Le) == elf::PT_LOAD) {
            let data = load
                .data(Le, bytes)
                .map_err(|()| malformed("a segment reaches beyond the end of the file"))?;
            let (svma, mem_size) = (load.p_vaddr(Le), load.p_memsz(Le));
            if svma.checked_add(mem_size).is_none() || (data.len() as u64) > mem_size {
                return Err(malformed("the range of a segment is impossible"));
            }
            let exec = load.p_flags(Le).0 & elf::PF_X.0 != 0;
            total = total.saturating_add(data.len());
            segments.push(Segment {
                svma,
                mem_size,
                data,
                exec,
            });
        }
        // Segments that share bytes would make the work more than the file's size. Neighbours may share a page.
        let shared = (headers.len() as u64).saturating_mul(8192);
        if (total as u64) > (bytes.len() as u64).saturating_add(shared) || segments.len() > 1024 {
            return Err(malformed("its segments overlap"));
        }
        let tls = headers
            .iter()
            .find(|h| h.p_type(Le) == elf::PT_TLS)
            .map(|h| Tls {
                svma: h.p_vaddr(Le),
                mem_size: h.p_memsz(Le),
                align: h.p_align(Le).max(1),
            });
        let mut linked = Linked {
            segments,
            headers,
            tls,
            build_id: build_id(headers, bytes),
            executable: header.e_type(Le) == elf::ET_EXEC,
            sections: header.sections(Le, bytes).unwrap_or_default(),
            bytes,
            dynamic: Vec::new(),
            names: None,
            imports: HashSet::new(),
        };
        linked.read_dynamic(&malformed)?;
        Ok(linked)
    }

    fn read_dynamic(&mut self, malformed: &dyn Fn(&str) -> Refusal) -> Result<(), Refusal> {
        let Some(segment) = self
            .headers
            .iter()
            .find(|h| h.p_type(Le) == elf::PT_DYNAMIC)
        else {
            return Ok(());
        };
        let data = segment
            .data(Le, self.bytes)
            .map_err(|()| malformed("its dynamic section is cut off"))?;
        let mut tags: HashMap<i64, u64> = HashMap::new();
        for entry in data.chunks_exact(16).take(MAX_DYNAMIC) {
            let (Some(tag), Some(value)) = (u64_at(entry, 0), u64_at(entry, 8)) else {
                break;
            };
            if tag == 0 {
                break;
            }
            tags.entry(tag.cast_signed()).or_insert(value);
        }
        let tag = |tag: elf::DynamicTag| tags.get(&tag.0).copied();
        let interp = self.headers.iter().any(|h| h.p_type(Le) == elf::PT_INTERP);
        let pie = tag(elf::DT_FLAGS_1).is_some_and(|flags| flags & elf::DF_1_PIE.0 != 0);
        self.executable |= pie || (interp && tag(elf::DT_SONAME).is_none());
        if let (Some(symbols), Some(strings), Some(strings_size)) =
            (tag(elf::DT_SYMTAB), tag(elf::DT_STRTAB), tag(elf::DT_STRSZ))
        {
            self.names = Some(Names {
                symbols,
                strings,
                strings_size,
            });
        }
        let mut ranges = vec![(tag(elf::DT_RELA), tag(elf::DT_RELASZ))];
        // Some linkers count the PLT's relocations among the others.
        let inside = match (ranges.first(), tag(elf::DT_JMPREL)) {
            (Some((Some(start), Some(size))), Some(jumps)) => {
                (*start..start.saturating_add(*size)).contains(&jumps)
            }
            _ => false,
        };
        if !inside {
            ranges.push((tag(elf::DT_JMPREL), tag(elf::DT_PLTRELSZ)));
        }
        for (start, size) in ranges {
            let (Some(start), Some(size)) = (start, size) else {
                continue;
            };
            let data = self
                .at(start, size)
                .ok_or_else(|| malformed("its dynamic relocations are not in the file"))?;
            let count = data.len() / size_of::<elf::Rela64<Le>>();
            let (relas, _) = pod::slice_from_bytes::<elf::Rela64<Le>>(data, count)
                .map_err(|()| malformed("its dynamic relocations are cut off"))?;
            self.dynamic.extend(relas.iter().map(|rela| Dynamic {
                at: rela.r_offset(Le),
                r_type: rela.r_type(Le, false),
                symbol: rela.r_sym(Le, false),
                addend: rela.r_addend(Le),
            }));
        }
        self.dynamic.sort_unstable_by_key(|dynamic| dynamic.at);
        let undefined = |d: &&Dynamic| {
            self.symbol_of(d)
                .is_some_and(|symbol| symbol.st_shndx(Le) == elf::SHN_UNDEF)
        };
        let imports = self.dynamic.iter().filter(undefined);
        self.imports = imports.filter_map(|d| self.name_of(d)).collect();
        Ok(())
    }

    /// The bytes that the file has for a range.
    pub fn at(&self, svma: u64, size: u64) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            let into = usize::try_from(svma.checked_sub(segment.svma)?).ok()?;
            let end = into.checked_add(usize::try_from(size).ok()?)?;
            segment.data.get(into..end)
        })
    }

    /// The bytes that the file has from an address on.
    pub fn from(&self, svma: u64) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            let into = usize::try_from(svma.checked_sub(segment.svma)?).ok()?;
            segment.data.get(into..).filter(|bytes| !bytes.is_empty())
        })
    }

    /// Whether all of a range is memory that begins as zeroes, in the file or not.
    pub fn is_zero(&self, range: Range<u64>) -> bool {
        self.segments.iter().any(|segment| {
            let inside = segment.svma <= range.start
                && range.end <= segment.svma.saturating_add(segment.mem_size);
            let into = usize::try_from(range.start.wrapping_sub(segment.svma)).unwrap_or(0);
            let size = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
            let in_file = segment.data.get(into..).unwrap_or_default();
            inside && in_file.iter().take(size).all(|&byte| byte == 0)
        })
    }

    /// The relocation that the dynamic loader makes at an address.
    pub fn dynamic_at(&self, svma: u64) -> Option<&Dynamic> {
        let first = self.dynamic.partition_point(|d| d.at < svma);
        self.dynamic.get(first).filter(|d| d.at == svma)
    }

    /// Whether the dynamic loader writes words of the file into a range; copies of a library's variables are none.
    pub fn written(&self, range: Range<u64>) -> bool {
        let first = self.dynamic.partition_point(|d| d.at < range.start);
        let inside = self.dynamic.iter().skip(first);
        inside
            .take_while(|d| d.at < range.end)
            .any(|d| d.r_type != elf::R_X86_64_COPY)
    }

    /// The name that the dynamic loader looks up for a relocation.
    pub fn name_of(&self, dynamic: &Dynamic) -> Option<&'a [u8]> {
        let names = self.names.as_ref()?;
        let symbol = self.symbol_of(dynamic)?;
        if symbol.st_bind() == elf::STB_LOCAL {
            return None;
        }
        let name = u64::from(symbol.st_name(Le));
        let left = names.strings_size.checked_sub(name)?;
        let text = self.from(names.strings.checked_add(name)?)?;
        let text = text
            .get(..usize::try_from(left).ok()?.min(text.len()))
            .unwrap_or(text);
        let end = memchr::memchr(0, text).filter(|&end| end != 0)?;
        text.get(..end)
    }

    /// Where a thread-local variable lies for which the dynamic loader looks up no name.
    pub fn thread_local(&self, dynamic: &Dynamic) -> u64 {
        let local = self
            .symbol_of(dynamic)
            .filter(|symbol| symbol.st_type() == elf::STT_TLS);
        local
            .map_or(0, |symbol| symbol.st_value(Le))
            .wrapping_add_signed(dynamic.addend)
    }

    fn symbol_of(&self, dynamic: &Dynamic) -> Option<&'a Sym64<Le>> {
        let names = self.names.as_ref().filter(|_| dynamic.symbol != 0)?;
        let offset = u64::from(dynamic.symbol).checked_mul(24)?;
        let symbol = self.at(names.symbols.checked_add(offset)?, 24)?;
        pod::from_bytes::<Sym64<Le>>(symbol)
            .ok()
            .map(|(symbol, _)| symbol)
    }

    /// The function that a PLT stub leads to: `[endbr64] [bnd] jmp *slot(%rip)` through a slot that the dynamic loader
    /// fills in.
    pub fn stub(&self, svma: u64) -> Option<&'a [u8]> {
        let mut at = svma;
        let mut code = self.from(svma)?;
        for prefix in [b"\xf3\x0f\x1e\xfa".as_slice(), b"\xf2"] {
            if let Some(rest) = code.strip_prefix(prefix) {
                code = rest;
                at = at.wrapping_add(prefix.len() as u64);
            }
        }
        let field = code.strip_prefix(b"\xff\x25")?.first_chunk::<4>()?;
        let slot = at
            .wrapping_add(6)
            .wrapping_add_signed(i64::from(i32::from_le_bytes(*field)));
        let dynamic = self.dynamic_at(slot)?;
        matches!(
            dynamic.r_type,
            elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT
        )
        .then(|| self.name_of(dynamic))?
    }

    /// Whether what nobody exports, and the dynamic loader may find by this name, can lie at an address: of a function
    /// only a stub for it can, which may be of a kind that is not understood, and not the copy of another variable.
    pub fn may_be(&self, name: &[u8], svma: u64) -> bool {
        let copy = self
            .dynamic_at(svma)
            .filter(|d| d.r_type == elf::R_X86_64_COPY);
        if let Some(copy) = copy {
            return self.name_of(copy) == Some(name);
        }
        !self.imports.contains(name) || (svma.is_multiple_of(16) && self.in_plt(svma))
    }

    /// Whether the section table is gone.
    pub fn has_no_sections(&self) -> bool {
        self.sections.is_empty()
    }

    /// Whether a stub for an import can lie at an address. A function of a library that is linked in may look like one.
    pub fn in_plt(&self, svma: u64) -> bool {
        self.sections.iter().any(|section| {
            let name = self.sections.section_name(Le, section);
            let into = svma.checked_sub(section.sh_addr(Le));
            name.is_ok_and(|name| name.starts_with(b".plt"))
                && into.is_some_and(|into| into < section.sh_size(Le))
        })
    }

    /// What this file itself exports: name, address.
    pub fn exports(&self) -> Vec<(&'a [u8], u64)> {
        let Ok(table) = self.sections.symbols(Le, self.bytes, elf::SHT_DYNSYM) else {
            return Vec::new();
        };
        let defined = |symbol: &&'a Sym64<Le>| {
            let kind = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_OBJECT);
            kind && !matches!(symbol.st_shndx(Le), elf::SHN_UNDEF | elf::SHN_ABS)
        };
        let named = table.iter().filter(defined).filter_map(|symbol| {
            let name = table.symbol_name(Le, symbol).ok()?;
            Some((name, symbol.st_value(Le)))
        });
        named.collect()
    }

    /// The distance from the start of the TLS block to the thread pointer, in an executable.
    pub fn tls_size(&self) -> u64 {
        let round = |tls: Tls| {
            tls.mem_size
                .checked_next_multiple_of(tls.align)
                .unwrap_or(0)
        };
        self.tls.map_or(0, round)
    }
}

fn build_id<'a>(headers: &'a [ProgramHeader64<Le>], bytes: &'a [u8]) -> &'a [u8] {
    for header in headers {
        let Ok(Some(mut notes)) = header.notes(Le, bytes) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(Le) == elf::NT_GNU_BUILD_ID {
                return note.desc();
            }
        }
    }
    &[]
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i64> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(i64::from(i32::from_le_bytes(*bytes)))
}
