//! An ELF file that is read piece by piece, each piece bounded and checked: files are untrusted, and large.

use object::read::{CompressedData, CompressionFormat};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use super::ObjectError;
use super::raw::{align_up, string_at, u16_at, u32_at, u64_at};

/// Smaller pieces are read by whole blocks, and kept.
const BLOCK: u64 = 16 * 1024;
/// Larger tables than this are taken for damage.
const MAX_TABLE: u64 = 512 << 20;
/// Sections and segments beyond these numbers are taken for damage.
const MAX_SEGMENTS: u16 = 4096;
const MAX_NOTES: u64 = 1 << 20;

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_DYNAMIC: u32 = 2;
pub(crate) const PT_INTERP: u32 = 3;
pub(crate) const PT_NOTE: u32 = 4;
pub(crate) const PT_TLS: u32 = 7;
pub(crate) const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
pub(crate) const PT_GNU_RELRO: u32 = 0x6474_e552;
pub(crate) const SHT_SYMTAB: u32 = 2;
pub(crate) const SHT_RELA: u32 = 4;
pub(crate) const SHT_NOTE: u32 = 7;
pub(crate) const SHT_NOBITS: u32 = 8;
pub(crate) const SHT_DYNSYM: u32 = 11;
pub(crate) const SHF_ALLOC: u64 = 2;
const SHF_COMPRESSED: u64 = 0x800;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PF_X: u32 = 1;

/// A program header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub svma: u64,
    pub file_size: u64,
    pub mem_size: u64,
    pub align: u64,
}

impl Segment {
    pub fn is_exec(&self) -> bool {
        self.flags & PF_X != 0
    }

    pub fn svma_range(&self) -> Range<u64> {
        self.svma..self.svma.saturating_add(self.mem_size)
    }
}

/// A section header.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub name: String,
    pub kind: u32,
    pub flags: u64,
    pub svma: u64,
    pub offset: u64,
    pub size: u64,
    pub link: u32,
}

/// An opened ELF file for x86-64.
#[derive(Debug)]
pub(crate) struct ElfFile {
    file: File,
    len: u64,
    path: PathBuf,
    is_dyn: bool,
    section_headers: (u64, u64, usize),
    segments: Vec<Segment>,
    sections: OnceLock<Vec<Section>>,
    /// What small reads have met, by its place in the file.
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl ElfFile {
    /// Opens the regular file at `at`; errors call it `shown`.
    pub fn open(at: &Path, shown: &Path) -> Result<ElfFile, ObjectError> {
        let failed = |source| ObjectError::Open {
            path: shown.to_path_buf(),
            source,
        };
        // Looked at before it is opened: to open a device can change its state.
        if !std::fs::metadata(at).map_err(failed)?.is_file() {
            return Err(ObjectError::NotRegular {
                path: shown.to_path_buf(),
            });
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(at)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(ObjectError::NotRegular {
                path: shown.to_path_buf(),
            });
        }
        ElfFile::parse(file, metadata.len(), shown)
    }

    fn parse(file: File, len: u64, shown: &Path) -> Result<ElfFile, ObjectError> {
        let mut elf = ElfFile {
            file,
            len,
            path: shown.to_path_buf(),
            is_dyn: false,
            section_headers: (0, 0, 0),
            segments: Vec::new(),
            sections: OnceLock::new(),
            blocks: Mutex::default(),
        };
        let path = || shown.to_path_buf();
        if len < 20 {
            return Err(ObjectError::NotElf { path: path() });
        }
        let ident = elf.read(0, 20, "the ELF header")?;
        if !ident.starts_with(b"\x7fELF") {
            return Err(ObjectError::NotElf { path: path() });
        }
        if ident.get(4) != Some(&2) {
            return Err(ObjectError::Is32Bit { path: path() });
        }
        let machine = u16_at(&ident, 18).unwrap_or_default();
        if machine != EM_X86_64 || ident.get(5) != Some(&1) {
            return Err(ObjectError::WrongMachine {
                path: path(),
                machine,
            });
        }
        let damaged = |what| ObjectError::Damaged { path: path(), what };
        let header = elf.read(0, 64, "the ELF header")?;
        let kind = u16_at(&header, 16).unwrap_or_default();
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(damaged(
                "a program (it is neither an executable nor a shared object, which)",
            ));
        }
        elf.is_dyn = kind == ET_DYN;
        let header_u64 = |at| u64_at(&header, at).unwrap_or_default();
        let header_u16 = |at| u16_at(&header, at).unwrap_or_default();
        let count = header_u16(56);
        if header_u16(54) != 56 || count > MAX_SEGMENTS {
            return Err(damaged("the table of segments"));
        }
        let table = elf.read(
            header_u64(32),
            u64::from(count).saturating_mul(56),
            "the table of segments",
        )?;
        for raw in table.chunks_exact(56) {
            let segment = parse_segment(raw).ok_or_else(|| damaged("the table of segments"))?;
            if segment.svma.checked_add(segment.mem_size).is_none() {
                return Err(damaged("a segment"));
            }
            elf.segments.push(segment);
        }
        if header_u16(58) == 64 {
            let (offset, count) = (header_u64(40), u64::from(header_u16(60)));
            elf.section_headers = (offset, count, usize::from(header_u16(62)));
        }
        Ok(elf)
    }

    /// The path that the target's maps give.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The opened file's device and inode.
    pub fn metadata(&self) -> std::io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    /// ET_DYN.
    pub fn is_dyn(&self) -> bool {
        self.is_dyn
    }

    /// The program headers.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The first segment of a kind.
    pub fn segment(&self, kind: u32) -> Option<&Segment> {
        self.segments.iter().find(|s| s.kind == kind)
    }

    /// `size` bytes at `offset`; `what` names them in an error.
    pub fn read(&self, offset: u64, size: u64, what: &'static str) -> Result<Vec<u8>, ObjectError> {
        let path = || self.path.clone();
        if offset.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(ObjectError::Damaged { path: path(), what });
        }
        let length = match usize::try_from(size) {
            Ok(length) if size <= MAX_TABLE => length,
            _ => {
                return Err(ObjectError::TooLarge {
                    path: path(),
                    what,
                    size,
                });
            }
        };
        let read = if size <= BLOCK {
            self.read_blocks(offset..offset.saturating_add(size))
        } else {
            let mut bytes = vec![0; length];
            let read = self.file.read_exact_at(&mut bytes, offset);
            read.map(|()| bytes)
        };
        read.map_err(|source| ObjectError::Read {
            path: path(),
            what,
            source,
        })
    }

    /// Small pieces are asked for by the thousand.
    fn read_blocks(&self, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        let mut blocks = self.blocks.lock().unwrap_or_else(|e| e.into_inner());
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let first = at - at % BLOCK;
            let block = match blocks.entry(first) {
                Entry::Occupied(block) => block.into_mut(),
                Entry::Vacant(room) => {
                    let size = BLOCK.min(self.len.saturating_sub(first));
                    let mut block = vec![0; size as usize];
                    self.file.read_exact_at(&mut block, first)?;
                    room.insert(block)
                }
            };
            let end = range.end.min(first + BLOCK);
            let piece = block.get((at - first) as usize..(end - first) as usize);
            bytes.extend_from_slice(piece.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            at = end;
        }
        Ok(bytes)
    }

    /// At most `limit` bytes at `offset`: what is left of the file there.
    pub fn read_up_to(
        &self,
        offset: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, ObjectError> {
        self.read(offset, limit.min(self.len.saturating_sub(offset)), what)
    }

    /// Offset in the file of an svma, and how many bytes of its segment follow in the file.
    pub fn offset_of(&self, svma: u64) -> Option<(u64, u64)> {
        self.segments
            .iter()
            .filter(|s| s.kind == PT_LOAD)
            .find_map(|s| {
                let inside = svma
                    .checked_sub(s.svma)
                    .filter(|&inside| inside < s.file_size)?;
                Some((
                    s.offset.checked_add(inside)?,
                    s.file_size.checked_sub(inside)?,
                ))
            })
    }

    /// `size` bytes that the file holds for `svma`.
    pub fn read_svma(
        &self,
        svma: u64,
        size: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, ObjectError> {
        match self.offset_of(svma) {
            Some((offset, left)) if size <= left => self.read(offset, size, what),
            _ => Err(ObjectError::Damaged {
                path: self.path.clone(),
                what,
            }),
        }
    }

    /// The bytes that the file has for `svma`, at most `limit` of them.
    pub fn read_svma_up_to(
        &self,
        svma: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, ObjectError> {
        let left = self.offset_of(svma).map_or(0, |(_, left)| left);
        self.read_svma(svma, limit.min(left), what)
    }

    /// The section headers; none when they are stripped or damaged, since nothing at run time needs them.
    pub fn sections(&self) -> &[Section] {
        self.sections
            .get_or_init(|| self.parse_sections().unwrap_or_default())
    }

    fn parse_sections(&self) -> Result<Vec<Section>, ObjectError> {
        let (offset, count, names_index) = self.section_headers;
        let table = self.read(offset, count.saturating_mul(64), "the table of sections")?;
        let names = match names_index
            .checked_mul(64)
            .and_then(|at| parse_section(table.get(at..)?, &[]))
        {
            Some(names) if names.kind != SHT_NOBITS => {
                self.read(names.offset, names.size, "section names")?
            }
            _ => Vec::new(),
        };
        Ok(table
            .chunks_exact(64)
            .filter_map(|raw| parse_section(raw, &names))
            .collect())
    }

    /// A section's contents; empty for SHT_NOBITS.
    pub fn section_data(
        &self,
        section: &Section,
        what: &'static str,
    ) -> Result<Vec<u8>, ObjectError> {
        if section.kind == SHT_NOBITS {
            return Ok(Vec::new());
        }
        self.read(section.offset, section.size, what)
    }

    /// A section's contents, decompressed if need be, if they have at most `limit` bytes.
    pub fn uncompressed(&self, section: &Section, limit: u64) -> Option<Vec<u8>> {
        const HEADER: usize = 24;
        if section.size > limit {
            return None;
        }
        let bytes = self.section_data(section, "a section").ok()?;
        if section.flags & SHF_COMPRESSED == 0 {
            return Some(bytes);
        }
        let format = match u32_at(&bytes, 0)? {
            1 => CompressionFormat::Zlib,
            2 => CompressionFormat::Zstandard,
            _ => return None,
        };
        let compressed = CompressedData {
            format,
            data: bytes.get(HEADER..)?,
            uncompressed_size: u64_at(&bytes, 8).filter(|&size| size <= limit)?,
        };
        Some(compressed.decompress().ok()?.into_owned())
    }

    /// All notes as (name without NUL, type, description); unreadable ones are left out.
    pub fn notes(&self) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
        let mut places: Vec<(u64, u64, u64)> = Vec::new();
        let segments = self.segments.iter().filter(|s| s.kind == PT_NOTE);
        places.extend(segments.map(|s| (s.offset, s.file_size, s.align)));
        if places.is_empty() {
            let sections = self.sections().iter().filter(|s| s.kind == SHT_NOTE);
            places.extend(sections.map(|s| (s.offset, s.size, 4)));
        }
        let mut notes = Vec::new();
        for (offset, size, align) in places {
            if let Ok(bytes) = self.read(offset, size.min(MAX_NOTES), "notes") {
                parse_notes(&bytes, if align == 8 { 8 } else { 4 }, &mut notes);
            }
        }
        notes
    }

    /// The description of NT_GNU_BUILD_ID; empty when there is none.
    pub fn build_id(&self) -> Vec<u8> {
        let found = self
            .notes()
            .into_iter()
            .find(|(name, kind, _)| name == b"GNU" && *kind == 3);
        found.map(|(_, _, id)| id).unwrap_or_default()
    }
}

fn parse_segment(raw: &[u8]) -> Option<Segment> {
    Some(Segment {
        kind: u32_at(raw, 0)?,
        flags: u32_at(raw, 4)?,
        offset: u64_at(raw, 8)?,
        svma: u64_at(raw, 16)?,
        file_size: u64_at(raw, 32)?,
        mem_size: u64_at(raw, 40)?,
        align: u64_at(raw, 48)?,
    })
}

fn parse_section(raw: &[u8], names: &[u8]) -> Option<Section> {
    let name = string_at(names, usize::try_from(u32_at(raw, 0)?).ok()?);
    Some(Section {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: u32_at(raw, 4)?,
        flags: u64_at(raw, 8)?,
        svma: u64_at(raw, 16)?,
        offset: u64_at(raw, 24)?,
        size: u64_at(raw, 32)?,
        link: u32_at(raw, 40)?,
    })
}

fn parse_notes(bytes: &[u8], align: u64, notes: &mut Vec<(Vec<u8>, u32, Vec<u8>)>) {
    let mut rest = bytes;
    while let Some((note, tail)) = parse_note(rest, align) {
        notes.push(note);
        rest = tail;
    }
}

type Note = (Vec<u8>, u32, Vec<u8>);

fn parse_note(bytes: &[u8], align: u64) -> Option<(Note, &[u8])> {
    let name_size = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let desc_size = usize::try_from(u32_at(bytes, 4)?).ok()?;
    let kind = u32_at(bytes, 8)?;
    let name_end = 12usize.checked_add(name_size)?;
    let name = bytes.get(12..name_end)?;
    let desc_start = usize::try_from(align_up(u64::try_from(name_end).ok()?, align)?).ok()?;
    let desc_end = desc_start.checked_add(desc_size)?;
    let desc = bytes.get(desc_start..desc_end)?;
    let next = usize::try_from(align_up(u64::try_from(desc_end).ok()?, align)?).ok()?;
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Some((
        (name.to_vec(), kind, desc.to_vec()),
        bytes.get(next..).unwrap_or_default(),
    ))
}
