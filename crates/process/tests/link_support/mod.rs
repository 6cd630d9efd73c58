//! Programs to link patches into, and what is needed to compile and run them.
#![allow(dead_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use livegraft_patchfile::{Input, Object, Patch, Place, Relocation, Section, Symbol, Target, pack};
use livegraft_process::link::{Layout, LinkError, Linked, Resolver, link};
use livegraft_process::object::{Objects, ReadMemory, read_mappings};
use object::LittleEndian as Le;
use object::elf::{FileHeader64, SHN_COMMON};
use object::read::elf::{FileHeader as _, Rela as _, SectionHeader as _, Sym as _};

pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/link_programs")
}

pub fn has(compiler: &str) -> bool {
    let found = Command::new(compiler)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success());
    if !found {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "{compiler} is missing"
        );
        eprintln!("skipped: {compiler} is missing");
    }
    found
}

/// Runs a compiler in `dir`; `false` when it refuses.
pub fn compile(dir: &Path, compiler: &str, args: &[&str]) -> bool {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
    let output = Command::new(compiler)
        .current_dir(dir)
        .arg("-I")
        .arg(programs())
        .arg("-I")
        .arg(include)
        .args(args)
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!(
            "{compiler} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    output.status.success()
}

/// Memory of a process through /proc/PID/mem.
pub struct Memory(File);

impl ReadMemory for Memory {
    fn read_memory(&self, avma: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buf, avma)
    }
}

/// A running program; it ends with the value.
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub path: PathBuf,
    image: PathBuf,
}

impl Running {
    pub fn start(dir: &Path, name: &str, envs: &[(&str, &str)]) -> Running {
        let path = dir.join(name);
        let mut child = Command::new(&path)
            .envs(envs.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let image = dir.join(format!("{name}.image"));
        let mut running = Running {
            child,
            input,
            output,
            path,
            image,
        };
        assert_eq!(running.line(), "ready");
        running
    }

    /// A server that is given a moment to start, and is asked nothing.
    pub fn serve(path: &Path, args: &[&str]) -> Running {
        let mut child = Command::new(path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (path, image) = (path.to_path_buf(), PathBuf::new());
        let mut running = Running {
            child,
            input,
            output,
            path,
            image,
        };
        loop {
            let mut line = String::new();
            assert_ne!(
                running.output.read_line(&mut line).unwrap(),
                0,
                "the server ended"
            );
            if line.contains("Server initialized") {
                break;
            }
        }
        running
    }

    /// The name of the running program's file.
    pub fn target_name(&self) -> String {
        let exe = std::fs::read_link(self.task_dir().join("exe")).unwrap();
        exe.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What the program answers.
    pub fn ask(&mut self, command: &str) -> String {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{command}").unwrap();
        let mut answer = String::new();
        loop {
            let line = self.line();
            match line.as_str() {
                "done" => return answer,
                "" => panic!(
                    "{}: no answer to `{command}`, only `{answer}`",
                    self.path.display()
                ),
                line => {
                    answer.push_str(line);
                    answer.push('\n');
                }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn task_dir(&self) -> PathBuf {
        let pid = self.pid();
        PathBuf::from(format!("/proc/{pid}/task/{pid}"))
    }

    pub fn memory(&self) -> Memory {
        Memory(File::open(self.task_dir().join("mem")).unwrap())
    }

    pub fn objects(&self) -> Objects {
        let maps = read_mappings(&self.task_dir()).unwrap();
        Objects::read(&self.task_dir(), &maps).unwrap()
    }

    /// A hole of that size, the first above `from`.
    pub fn hole(&self, from: u64, size: u64) -> u64 {
        let mut at = from;
        for mapping in read_mappings(&self.task_dir()).unwrap() {
            if mapping.start >= at + size + 0x10000 {
                break;
            }
            at = at.max(mapping.end + 0x10000);
        }
        at
    }

    /// Maps a linked patch into the program.
    pub fn map(&mut self, linked: &Linked) {
        let base = linked.segments[0].avma;
        let size: u64 = linked.segments.iter().map(|s| s.mem_size).sum();
        let mut image = vec![0; size as usize];
        for segment in &linked.segments {
            let at = (segment.avma - base) as usize;
            image[at..at + segment.bytes.len()].copy_from_slice(&segment.bytes);
        }
        std::fs::write(&self.image, image).unwrap();
        let command = format!("map {base:x} {size:x} {}", self.image.display());
        assert_eq!(self.ask(&command), "mapped\n");
    }

    pub fn unmap(&mut self, linked: &Linked) {
        let base = linked.segments[0].avma;
        let size: u64 = linked.segments.iter().map(|s| s.mem_size).sum();
        self.ask(&format!("unmap {base:x} {size:x}"));
    }

    /// Links a patch at the first hole above `from`.
    pub fn link(&self, patch: &Patch, from: u64) -> Result<Linked, LinkError> {
        let layout = Layout::of(patch)?;
        let (objects, memory) = (self.objects(), self.memory());
        let base = self.hole(
            if layout.needs_low { 0x1000_0000 } else { from },
            layout.total_size,
        );
        link(patch, &layout, base, &Resolver::new(&objects, &memory))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Packs an object file against target files and reads the result.
pub fn packed(object: &Path, targets: &[&Path]) -> Result<Patch, livegraft_patchfile::Error> {
    let bytes = std::fs::read(object).unwrap();
    let files: Vec<Vec<u8>> = targets
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let targets: Vec<Target<'_>> = targets
        .iter()
        .zip(&files)
        .map(|(path, bytes)| Target {
            path,
            bytes,
            debug: None,
            symbols: None,
        })
        .collect();
    Patch::parse(&pack(
        &[Input {
            path: object,
            bytes: &bytes,
        }],
        &targets,
    )?)
}

/// An object file as it is, without `pack`: what it does not define stays undefined, its klp structs become plain data.
pub fn unpacked(object: &Path, patched: &[Option<&str>]) -> Patch {
    let bytes = std::fs::read(object).unwrap();
    let header = FileHeader64::<Le>::parse(&*bytes).unwrap();
    let table = header.sections(Le, &*bytes).unwrap();
    let (mut sections, mut loaded) = (Vec::new(), vec![None; table.len()]);
    for (index, section) in table.enumerate() {
        let flags = section.sh_flags(Le).0;
        if flags & 2 != 0 && section.sh_type(Le).0 != 7 {
            loaded[index.0] = Some(sections.len());
            sections.push(Section {
                name: String::from_utf8_lossy(table.section_name(Le, section).unwrap())
                    .into_owned(),
                write: flags & 1 != 0,
                exec: flags & 4 != 0,
                align: section.sh_addralign(Le),
                size: section.sh_size(Le),
                data: section.data(Le, &*bytes).unwrap().into(),
            });
        }
    }
    let names = table.symbols(Le, &*bytes, object::elf::SHT_SYMTAB).unwrap();
    let place = |symbol: &object::elf::Sym64<Le>| match symbol.st_shndx(Le).0 {
        0 => Place::Undefined,
        0xfff1 => Place::Absolute(symbol.st_value(Le)),
        index => match loaded.get(usize::from(index)).copied().flatten() {
            Some(at) => Place::Section(at, symbol.st_value(Le)),
            None => Place::NotLoaded,
        },
    };
    let symbols = names.iter().map(|symbol| Symbol {
        name: String::from_utf8_lossy(symbol.name(Le, names.strings()).unwrap()).into_owned(),
        place: place(symbol),
        size: symbol.st_size(Le),
        weak: symbol.st_bind() == object::elf::STB_WEAK,
        shared: false,
        func: symbol.st_type() == object::elf::STT_FUNC,
        tls: symbol.st_type() == object::elf::STT_TLS,
    });
    assert!(
        names
            .iter()
            .all(|symbol| symbol.st_shndx(Le).0 != SHN_COMMON.0)
    );
    let symbols: Vec<Symbol> = symbols.collect();
    let mut relocations = Vec::new();
    for section in table.iter() {
        let Some((relas, _)) = section.rela(Le, &*bytes).unwrap() else {
            continue;
        };
        let Some(at) = loaded[section.sh_info(Le) as usize] else {
            continue;
        };
        relocations.extend(relas.iter().map(|rela| Relocation {
            section: at,
            offset: rela.r_offset(Le),
            r_type: rela.r_type(Le, false).0,
            symbol: rela.r_sym(Le, false) as usize,
            addend: rela.r_addend(Le),
        }));
    }
    let objects = patched.iter().map(|name| Object {
        name: name.map(str::to_owned),
        builds: Vec::new(),
        funcs: Vec::new(),
        callbacks: Vec::new(),
    });
    Patch {
        format_version: 1,
        digest: [1; 32],
        replace: false,
        immediate: false,
        states: Vec::new(),
        objects: objects.collect(),
        sections,
        symbols,
        relocations,
    }
}

/// The index of a symbol of the patch.
pub fn symbol(patch: &Patch, name: &str) -> usize {
    patch
        .symbols
        .iter()
        .position(|symbol| symbol.name == name)
        .unwrap()
}

/// The object file as it is, and packed, where `pack` takes it.
pub fn both(object: &Path, patched: Option<&str>, targets: &[&Path]) -> Vec<Patch> {
    let mut patches = vec![unpacked(object, &[patched])];
    match packed(object, targets) {
        Ok(patch) => patches.push(patch),
        Err(error) => assert!(error.to_string().contains("-mcmodel"), "{error}"),
    }
    patches
}
