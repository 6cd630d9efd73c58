//! The ELF objects of a running process: where they are, what they define, and what the dynamic loader resolved.
//!
//! Files are opened through `/proc/PID/map_files` and `/proc/PID/exe`, so what is read is what is mapped, even when an
//! upgrade has replaced it or it lies in a container. Everything read is untrusted.

mod dynamic;
mod error;
mod file;
mod loaded;
mod maps;
mod pads;
mod parts;
pub(crate) mod raw;
mod references;
mod switching;
mod symbols;

use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use dynamic::{Slot, SlotKind};
pub use error::ObjectError;
pub(crate) use file::{PT_LOAD, PT_TLS};
pub(crate) use loaded::is_split_body;
pub use loaded::{Found, LoadedObject};
pub use maps::{Mapping, read_mappings};
pub use parts::{ExitTo, TailExit, WaysOut};
pub use switching::{StackSwitching, Suspended};
pub(crate) use symbols::Symbol;
pub use symbols::SymbolKind;

use dynamic::Dynamic;
use file::{ElfFile, PT_NOTE};
use raw::{align_up, u64_at};

const PAGE: u64 = 4096;

/// Reads the memory of the target.
pub trait ReadMemory {
    /// Fills `buf` from `avma` on, or fails as a whole.
    fn read_memory(&self, avma: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// The objects of a process.
#[derive(Debug)]
pub struct Objects {
    /// Sorted by address.
    objects: Vec<LoadedObject>,
    executable: usize,
    skipped: Vec<ObjectError>,
}

impl Objects {
    /// Finds the objects in the mappings of a live task (`/proc/PID/task/TID`).
    ///
    /// Headers are read now, symbols and relocations when they are first asked for. An object other than the executable
    /// that cannot be opened is left out and listed by [`Objects::skipped`].
    pub fn read(task_dir: &Path, maps: &[Mapping]) -> Result<Objects, ObjectError> {
        let phdr = auxv_phdr(task_dir);
        let exe_file = executable_id(task_dir, maps, phdr).ok_or(ObjectError::NoExecutable)?;
        let mut objects: Vec<LoadedObject> = Vec::new();
        let mut skipped = Vec::new();
        for (id, group) in files(maps) {
            let is_exe = id == exe_file;
            // Only memory that holds code, or is interleaved with code that replaced the file's own, can be an object.
            if !is_exe && !maps.iter().any(|m| m.exec && spans(&group, m)) {
                continue;
            }
            if let Err(error) = read_file(task_dir, maps, &group, is_exe, &mut objects) {
                match error {
                    error if is_exe => return Err(error),
                    ObjectError::NotElf { .. } => {}
                    error => skipped.push(error),
                }
            }
        }
        objects.sort_by_key(|object| object.span.start);
        // A file can be loaded twice (dlmopen): the program is the copy that the kernel started.
        let started = |o: &LoadedObject| phdr.is_none_or(|avma| o.span.contains(&avma));
        let executable = objects.iter().position(|o| o.is_executable && started(o));
        let executable = executable.ok_or(ObjectError::NoExecutable)?;
        for (index, object) in objects.iter_mut().enumerate() {
            object.is_executable = index == executable;
        }
        Ok(Objects {
            objects,
            executable,
            skipped,
        })
    }

    /// The program itself.
    pub fn executable(&self) -> &LoadedObject {
        &self.objects[self.executable]
    }

    /// `None` is the executable; else a library by its soname, or by the name of its file.
    pub fn by_name(&self, name: Option<&str>) -> Option<&LoadedObject> {
        let Some(name) = name else {
            return Some(self.executable());
        };
        let libraries = || self.objects.iter().filter(|o| !o.is_executable);
        let file_name = |o: &&LoadedObject| o.path.file_name().is_some_and(|file| file == name);
        libraries()
            .find(|o| o.name == name)
            .or_else(|| libraries().find(file_name))
    }

    /// The object whose segments contain an address.
    pub fn containing(&self, avma: u64) -> Option<&LoadedObject> {
        let end = self.objects.partition_point(|o| o.span.start <= avma);
        let last = self.objects.get(end.checked_sub(1)?)?;
        last.span.contains(&avma).then_some(last)
    }

    /// All objects, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &LoadedObject> {
        self.objects.iter()
    }

    /// Why mapped files with code in them are not among the objects.
    pub fn skipped(&self) -> &[ObjectError] {
        &self.skipped
    }
}

type FileId = ((u32, u32), u64);

/// The private file mappings, by file.
fn files(maps: &[Mapping]) -> Vec<(FileId, Vec<&Mapping>)> {
    let mut groups: std::collections::BTreeMap<FileId, Vec<&Mapping>> =
        std::collections::BTreeMap::new();
    for mapping in maps.iter().filter(|m| m.inode != 0 && !m.shared) {
        groups
            .entry((mapping.dev, mapping.inode))
            .or_default()
            .push(mapping);
    }
    groups.into_iter().collect()
}

/// Whether a mapping lies between the first and the last of a file's.
fn spans(group: &[&Mapping], mapping: &Mapping) -> bool {
    let first = group.first().is_some_and(|m| m.start <= mapping.start);
    first && group.last().is_some_and(|m| mapping.end <= m.end)
}

/// The avma of the program headers that the kernel told the program about.
fn auxv_phdr(task_dir: &Path) -> Option<u64> {
    const AT_PHDR: u64 = 3;
    let auxv = std::fs::read(task_dir.join("auxv")).ok()?;
    auxv.chunks_exact(16)
        .find(|pair| u64_at(pair, 0) == Some(AT_PHDR))
        .and_then(|pair| u64_at(pair, 8))
}

fn executable_id(task_dir: &Path, maps: &[Mapping], phdr: Option<u64>) -> Option<FileId> {
    let by_phdr = phdr.and_then(|avma| maps.iter().find(|m| m.contains(avma) && m.inode != 0));
    let inode = || {
        std::fs::metadata(task_dir.join("exe"))
            .ok()
            .map(|metadata| metadata.ino())
    };
    let mapping = by_phdr.or_else(|| {
        let inode = inode()?;
        maps.iter().find(|m| m.inode == inode && m.inode != 0)
    });
    mapping.map(|m| (m.dev, m.inode))
}

/// Adds every loaded instance of one mapped file.
fn read_file(
    task_dir: &Path,
    maps: &[Mapping],
    group: &[&Mapping],
    is_exe: bool,
    objects: &mut Vec<LoadedObject>,
) -> Result<(), ObjectError> {
    let Some(first) = group.first() else {
        return Ok(());
    };
    let path = first.path.clone().unwrap_or_default();
    let mut loaded_until = 0;
    let mut opened = Some(open_mapped(task_dir, first, is_exe)?);
    for mapping in group {
        if mapping.start < loaded_until {
            continue;
        }
        let elf = match opened.take() {
            Some(elf) => elf,
            None => open_mapped(task_dir, first, is_exe)?,
        };
        let Some((bias, span)) = placement(&elf, mapping, maps) else {
            opened = Some(elf);
            continue;
        };
        loaded_until = span.end;
        let dynamic = Dynamic::read(&elf)?;
        let file_name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let name = dynamic
            .soname
            .clone()
            .filter(|_| !is_exe)
            .unwrap_or(file_name);
        objects.push(LoadedObject {
            name,
            path: path.clone(),
            build_id: elf.build_id(),
            bias,
            span,
            is_executable: is_exe,
            elf,
            dynamic,
            root: task_dir.join("root"),
            symtab: OnceLock::new(),
            dynsym: OnceLock::new(),
            slots: OnceLock::new(),
            frames: OnceLock::new(),
            references: OnceLock::new(),
            relative_words: OnceLock::new(),
        });
    }
    Ok(())
}

/// The bias and the span (avma) of an object whose first segment is this mapping, if it is loaded there: a file that
/// was only mapped to be read has no executable memory where its code belongs.
fn placement(elf: &ElfFile, mapping: &Mapping, maps: &[Mapping]) -> Option<(u64, Range<u64>)> {
    let loads = || {
        elf.segments()
            .iter()
            .filter(|s| s.kind == PT_LOAD && s.mem_size > 0)
    };
    let page = |address: u64| address & !(PAGE - 1);
    let first = loads().next()?;
    if mapping.offset != page(first.offset) {
        return None;
    }
    let bias = mapping.start.wrapping_sub(page(first.svma));
    if !elf.is_dyn() && bias != 0 {
        return None;
    }
    let end = loads().map(|s| s.svma_range().end).max()?;
    let span_end = align_up(end, PAGE)?.wrapping_add(bias);
    if span_end <= mapping.start {
        return None;
    }
    let code = loads().find(|s| s.is_exec())?.svma.wrapping_add(bias);
    maps.iter()
        .any(|m| m.exec && m.contains(code))
        .then_some((bias, mapping.start..span_end))
}

/// Opens the very file that is mapped.
fn open_mapped(task_dir: &Path, mapping: &Mapping, is_exe: bool) -> Result<ElfFile, ObjectError> {
    let shown = mapping.path.clone().unwrap_or_default();
    if is_exe {
        // Also right when the program was started through a symbolic link, or is deleted.
        if let Ok(elf) = ElfFile::open(&task_dir.join("exe"), &shown) {
            let same_inode = elf
                .metadata()
                .is_ok_and(|metadata| metadata.ino() == mapping.inode);
            if same_inode || headers_match(&elf, task_dir, mapping) {
                return Ok(elf);
            }
        }
    }
    let link = map_files(task_dir).join(format!("{:x}-{:x}", mapping.start, mapping.end));
    match ElfFile::open(&link, &shown) {
        Err(ObjectError::Open { .. }) => {}
        opened => return opened,
    }
    let relative = shown.strip_prefix("/").unwrap_or(&shown);
    let elf = ElfFile::open(&task_dir.join("root").join(relative), &shown)?;
    let same_file = elf.metadata().is_ok_and(|metadata| {
        let dev = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        metadata.ino() == mapping.inode && dev == mapping.dev
    });
    // The device in maps is not stat's on btrfs and overlayfs; equal headers and notes, build-id included, then tell.
    if same_file || headers_match(&elf, task_dir, mapping) {
        return Ok(elf);
    }
    Err(ObjectError::Replaced { path: shown })
}

/// `map_files` exists per process only.
fn map_files(task_dir: &Path) -> PathBuf {
    let task = task_dir
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|name| name == "task"));
    task.and_then(Path::parent)
        .unwrap_or(task_dir)
        .join("map_files")
}

/// Whether the target's memory at the mapping begins as the file does: ELF header, program headers and notes.
fn headers_match(elf: &ElfFile, task_dir: &Path, mapping: &Mapping) -> bool {
    let Ok(memory) = std::fs::File::open(task_dir.join("mem")) else {
        return false;
    };
    let length = mapping.end.saturating_sub(mapping.start);
    let same = |offset: u64, size: u64| {
        let end = offset.checked_add(size);
        let Some(at) = mapping
            .start
            .checked_add(offset)
            .filter(|_| end.is_some_and(|end| end <= length))
        else {
            return false;
        };
        let Ok(expected) = elf.read(offset, size, "headers") else {
            return false;
        };
        let mut found = vec![0; expected.len()];
        memory.read_exact_at(&mut found, at).is_ok() && found == expected
    };
    let headers = u64::try_from(elf.segments().len())
        .unwrap_or(u64::MAX)
        .saturating_mul(56)
        .saturating_add(64);
    let notes: Vec<_> = elf
        .segments()
        .iter()
        .filter(|s| s.kind == PT_NOTE)
        .collect();
    mapping.offset == 0
        && same(0, headers)
        && !elf.build_id().is_empty()
        && notes
            .iter()
            .all(|note| note.file_size <= PAGE && same(note.offset, note.file_size))
}

#[cfg(test)]
mod tests {
    use super::dynamic::read_slots;
    use super::*;

    /// A file as if it were loaded at 0x1000_0000.
    fn loaded(path: &Path) -> Option<LoadedObject> {
        let elf = ElfFile::open(path, path).ok()?;
        let mapping = Mapping {
            start: 0x1000_0000,
            end: 0x2000_0000,
            read: true,
            write: false,
            exec: true,
            shared: false,
            offset: 0,
            dev: (0, 0),
            inode: 1,
            path: None,
            deleted: false,
        };
        let _ = placement(&elf, &mapping, std::slice::from_ref(&mapping));
        let dynamic = Dynamic::read(&elf).ok()?;
        let _ = read_slots(&elf, &dynamic);
        Some(LoadedObject {
            name: "damaged".into(),
            path: path.to_path_buf(),
            build_id: elf.build_id(),
            bias: 0x1000_0000,
            span: 0..u64::MAX,
            is_executable: false,
            elf,
            dynamic,
            root: PathBuf::from("/nonexistent"),
            symtab: OnceLock::new(),
            dynsym: OnceLock::new(),
            slots: OnceLock::new(),
            frames: OnceLock::new(),
            references: OnceLock::new(),
            relative_words: OnceLock::new(),
        })
    }

    /// Everything that reads a file, on a file with damaged bytes: errors are fine, a panic or an endless loop is not.
    fn exercise(path: &Path) {
        let Some(object) = loaded(path) else {
            return;
        };
        let mut room = 1 << 24;
        if let Some(mut section) = object.debug_sections(&mut room) {
            let _ = (section(".debug_info"), section(".debug_line"));
        }
        let _ = (
            object.lookup("main", 0),
            object.lookup("f", 3),
            object.split_bodies("f", 0x1000_1000..0x1000_2000),
            object.tail_exits(std::slice::from_ref(&(0x1000_1000..0x1000_2000))),
            object.parts_by_branches(0x1000_1000..0x1000_2000),
            object.functions(),
        );
        let _ = (
            object.symbolize(0x1000_1234),
            object.stack_switching(),
            object.interpreter(),
        );
        let _ = (object.code_ranges(), object.code(0x1000_1000..0x1000_2000));
        let _ = (
            object.exported("f"),
            object.own_definition("f"),
            object.slots().len(),
        );
    }

    #[test]
    fn damaged_files_are_survived() {
        let in_memory = tempfile::tempdir_in("/dev/shm");
        let dir = in_memory.or_else(|_| tempfile::tempdir()).unwrap();
        let (source, built) = (dir.path().join("f.c"), dir.path().join("f.so"));
        std::fs::write(
            &source,
            "extern int puts(const char *); int f(void) { return puts(\"f\"); }",
        )
        .unwrap();
        let compiled = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&built)
            .arg(&source)
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no C compiler");
            return;
        }
        let intact = std::fs::read(&built).unwrap();
        let damaged = dir.path().join("damaged.so");
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..4000_usize {
            let mut bytes = intact.clone();
            // Headers and tables first, each byte in turn; then anywhere, and cut short.
            if let Some(byte) = bytes.get_mut(round % 2000) {
                *byte = if round < 2000 {
                    0xff
                } else {
                    random().to_le_bytes()[0]
                };
            }
            for _ in 0..round % 4 {
                let at = usize::try_from(random()).unwrap() % bytes.len();
                bytes[at] = random().to_le_bytes()[0];
            }
            if round % 50 == 49 {
                bytes.truncate(usize::try_from(random()).unwrap() % intact.len());
            }
            std::fs::write(&damaged, &bytes).unwrap();
            exercise(&damaged);
        }
    }

    #[test]
    fn stubs_are_named_by_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let (source, built) = (dir.path().join("f.c"), dir.path().join("f.so"));
        let text = "extern int puts(const char *), rand(void);
                    int f(void) { return puts(\"f\") + rand() + 1; }";
        std::fs::write(&source, text).unwrap();
        let kinds: [&[&str]; 3] = [
            &["-fcf-protection=full", "-Wl,-z,ibtplt"],
            &["-fcf-protection=none", "-Wl,-z,now"],
            &["-fcf-protection=none", "-Wl,-z,lazy", "-Wl,-s"],
        ];
        for flags in kinds {
            let mut compiler = std::process::Command::new("gcc");
            compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&built);
            let compiled = compiler.args(flags).arg(&source).status();
            if !compiled.is_ok_and(|status| status.success()) {
                eprintln!("skipped: no C compiler");
                return;
            }
            let object = loaded(&built).unwrap();
            let sections = object.elf.sections().iter();
            let stubs = sections.filter(|section| section.name.starts_with(".plt"));
            let mut names: Vec<(String, u64)> = stubs
                .flat_map(|section| (section.svma..section.svma + section.size).step_by(8))
                .filter_map(|svma| object.symbolize(svma + 0x1000_0000))
                .filter(|(_, offset)| *offset == 0)
                .collect();
            names.sort();
            names.dedup();
            let of = |name: &str| (format!("{name}@plt"), 0);
            assert!(names.contains(&of("puts")), "{flags:?}: {names:?}");
            assert!(names.contains(&of("rand")), "{flags:?}: {names:?}");
        }
    }

    #[test]
    fn what_is_no_64_bit_x86_program_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let opened = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            ElfFile::open(&path, &path).unwrap_err()
        };
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x01\x01");
        header[18] = 3;
        assert!(matches!(opened(&header), ObjectError::Is32Bit { .. }));
        header[4] = 2;
        assert!(matches!(
            opened(&header),
            ObjectError::WrongMachine { machine: 3, .. }
        ));
        header[18] = 62;
        assert!(matches!(opened(&header), ObjectError::Damaged { .. }));
        assert!(matches!(
            opened(b"#!/bin/sh\nexec something"),
            ObjectError::NotElf { .. }
        ));
        assert!(matches!(opened(b""), ObjectError::NotElf { .. }));
        assert!(matches!(
            ElfFile::open(Path::new("/dev/null"), &path),
            Err(ObjectError::NotRegular { .. })
        ));
        assert!(matches!(
            ElfFile::open(Path::new("/nonexistent"), &path),
            Err(ObjectError::Open { .. })
        ));
    }
}
