//! What a build executes: its compiler calls, its linker and archiver calls, and what changed a linked file later.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use livegraft_observe::{Pid, Process, Watcher};
use serde::{Deserialize, Serialize};

use super::arguments::{expand, is_compiler, is_launcher, launched};
use super::rustc::is_rustc;

/// Paths need not be UTF-8.
pub(crate) mod path {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(from).map(PathBuf::from)
    }
}

/// A call of a compiler driver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Its working directory, as it saw it.
    #[serde(with = "path")]
    pub directory: PathBuf,
    /// Its arguments, the driver first, response files replaced by what was in them, ccache and its kin left out.
    pub arguments: Vec<OsString>,
    /// Its environment: an index into [`Record::environments`].
    pub(crate) environment: usize,
    /// Its exit code; `None` if a signal ended it.
    pub exit: Option<i32>,
}

/// A call of a linker or archiver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Link {
    /// What it made, as it saw it.
    #[serde(with = "path")]
    pub(crate) output: PathBuf,
    /// Relocatable objects and archives that went into it.
    pub(crate) inputs: Vec<OsString>,
    /// The compiler driver that called it.
    pub(crate) driver: Option<usize>,
    /// An archive.
    pub(crate) archive: bool,
    /// It has left out the symbol table.
    pub(crate) stripped: bool,
    /// It has left out what nothing refers to (`--gc-sections`), and has symbols for all that it has not left out.
    pub(crate) collected: bool,
    /// It has ended well.
    pub(crate) success: bool,
    /// Name of a copy that was made before strip or another tool changed it.
    pub(crate) kept: Option<String>,
    /// Names of copies of the inputs that rustc made for this link, and removes after it.
    pub(crate) temporaries: Vec<String>,
}

/// A program that was executed to compile or link: where another stands there later, another would compile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    size: u64,
    changed: i64,
    nanoseconds: i64,
}

impl Stamp {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            size: metadata.size(),
            changed: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        })
    }
}

/// What was seen of one build.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) calls: Vec<Call>,
    pub(crate) links: Vec<Link>,
    pub(crate) environments: Vec<Vec<OsString>>,
    pub(crate) programs: BTreeMap<OsString, Stamp>,
}

/// What a process is, as long as it lives.
enum Open {
    Compiler(usize),
    Linker(usize),
}

/// Writes a [`Record`].
pub(crate) struct Recorder<'a> {
    pub(crate) record: Record,
    known: HashMap<Vec<OsString>, usize>,
    open: HashMap<Pid, Open>,
    /// Where to copy what will be gone.
    keep: PathBuf,
    /// Linked files that are about to change will be wanted.
    keeps_linked: bool,
    /// Told of each compiler call: how many there are.
    progress: &'a mut (dyn FnMut(usize) + Send),
}

const LINKERS: &[&str] = &[
    "ld", "ld.bfd", "ld.gold", "ld.lld", "lld", "mold", "ld.mold",
];
const ARCHIVERS: &[&str] = &["ar", "gcc-ar", "llvm-ar"];
/// They change a linked file in place.
const CHANGERS: &[&str] = &[
    "strip",
    "objcopy",
    "eu-strip",
    "llvm-strip",
    "llvm-objcopy",
    "sstrip",
    "chrpath",
    "patchelf",
    "dwz",
    "debugedit",
];

/// `x86_64-linux-gnu-ld.bfd`, `llvm-ar-14`: a tool's name with a target before it or a version behind it.
fn is_one_of(program: &OsStr, tools: &[&str]) -> bool {
    let name = Path::new(program).file_name().unwrap_or(program);
    let Some(name) = name.to_str() else {
        return false;
    };
    let name = (name.rsplit_once('-'))
        .filter(|(_, version)| version.starts_with(|c: char| c.is_ascii_digit()))
        .map_or(name, |(name, _)| name);
    (tools.iter()).any(|tool| {
        name.strip_suffix(tool)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
    })
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(
        keep: PathBuf,
        keeps_linked: bool,
        progress: &'a mut (dyn FnMut(usize) + Send),
    ) -> Self {
        Self {
            record: Record::default(),
            known: HashMap::new(),
            open: HashMap::new(),
            keep,
            keeps_linked,
            progress,
        }
    }

    /// The compiler call that a process is part of.
    fn call(&self, process: &Process) -> Option<usize> {
        std::iter::once(process.pid)
            .chain(process.ancestors())
            .find_map(|pid| match self.open.get(&pid) {
                Some(Open::Compiler(call)) => Some(*call),
                _ => None,
            })
    }

    fn stamp(&mut self, process: &Process) {
        if let Ok(program) = process.program()
            && !self.record.programs.contains_key(program.as_os_str())
            && let Some(stamp) = Stamp::of(&process.reach(&program))
        {
            self.record.programs.insert(program.into(), stamp);
        }
    }

    fn expanded(process: &Process, arguments: Vec<OsString>) -> Vec<OsString> {
        expand(arguments, &|path| fs::read(process.reach(path)).ok())
    }

    fn compiler(&mut self, process: &Process, arguments: Vec<OsString>) {
        let (Ok(directory), Ok(environment)) = (process.directory(), process.environment()) else {
            return;
        };
        let next = self.known.len();
        let environment = *self.known.entry(environment).or_insert(next);
        let mut arguments = Self::expanded(process, arguments);
        if let Some(place) = launched(&arguments) {
            arguments.drain(..place);
        }
        self.open
            .insert(process.pid, Open::Compiler(self.record.calls.len()));
        self.record.calls.push(Call {
            directory,
            arguments,
            environment,
            exit: None,
        });
        (self.progress)(self.record.calls.len());
    }

    fn linker(&mut self, process: &Process, arguments: Vec<OsString>, driver: Option<usize>) {
        let Ok(directory) = process.directory() else {
            return;
        };
        let arguments = Self::expanded(process, arguments);
        let archive = is_one_of(&arguments[0], ARCHIVERS);
        let found = if archive {
            archived(&arguments)
        } else {
            linked(&arguments, &|path| is_input(&process.reach(path)))
        };
        let Some((output, inputs)) = found else {
            return;
        };
        // A wrapper that becomes the linker is one with it.
        let number = match self.open.get(&process.pid) {
            Some(Open::Linker(number)) => *number,
            _ => self.record.links.len(),
        };
        let has = |names: &[&str]| arguments.iter().any(|a| names.iter().any(|name| a == name));
        let stripped = has(&["-s", "--strip-all"]);
        let temporaries = self.temporaries(process, driver, number, &inputs);
        self.open.insert(process.pid, Open::Linker(number));
        let link = Link {
            output: directory.join(output),
            inputs: inputs
                .iter()
                .map(|input| directory.join(input).into())
                .collect(),
            driver,
            archive,
            stripped,
            collected: has(&["--gc-sections"])
                && !stripped
                && !has(&["-x", "--discard-all", "--no-gc-sections"])
                && !arguments
                    .iter()
                    .any(|a| a.as_bytes().starts_with(b"--retain-symbols-file")),
            success: false,
            kept: None,
            temporaries,
        };
        match self.record.links.get_mut(number) {
            Some(known) => *known = link,
            None => self.record.links.push(link),
        }
    }

    /// Copies the objects that rustc gives to a linker and then removes. The linker waits meanwhile.
    fn temporaries(
        &self,
        process: &Process,
        driver: Option<usize>,
        number: usize,
        inputs: &[PathBuf],
    ) -> Vec<String> {
        let call = driver.and_then(|driver| self.record.calls.get(driver));
        if !call.is_some_and(|call| is_rustc(&call.arguments[0])) {
            return Vec::new();
        }
        let objects = inputs.iter().filter(|input| {
            let name = input.file_name().unwrap_or_default().as_bytes();
            name.ends_with(b".rcgu.o")
        });
        let mut kept = Vec::new();
        for object in objects {
            let name = format!("{number}-{}.rcgu.o", kept.len());
            let copied = fs::create_dir_all(&self.keep)
                .and_then(|()| fs::copy(process.reach(object), self.keep.join(&name)));
            // What is missing is missed by whoever needs it.
            if copied.is_ok() {
                kept.push(name);
            }
        }
        kept
    }

    /// Copies what a tool is about to change, if a linker has made it. The tool waits meanwhile.
    fn changer(&mut self, process: &Process, arguments: &[OsString]) {
        if !self.keeps_linked {
            return;
        }
        let keep = self.keep.clone();
        let same = |a: &fs::Metadata, b: &fs::Metadata| a.dev() == b.dev() && a.ino() == b.ino();
        for argument in &arguments[1..] {
            let file = process.reach(Path::new(argument));
            let Ok(metadata) = fs::metadata(&file) else {
                continue;
            };
            let links = self.record.links.iter_mut().enumerate().rev();
            let made = links
                .filter(|(_, link)| link.success && !link.archive)
                .find(|(_, link)| {
                    fs::metadata(process.reach(&link.output))
                        .is_ok_and(|found| same(&found, &metadata))
                });
            if let Some((number, link)) = made
                && link.kept.is_none()
            {
                let name = number.to_string();
                if fs::create_dir_all(&keep)
                    .and_then(|()| fs::copy(&file, keep.join(&name)))
                    .is_ok()
                {
                    link.kept = Some(name);
                }
            }
        }
    }

    /// The record, when the build is over.
    pub(crate) fn finish(mut self) -> Record {
        let mut environments = vec![Vec::new(); self.known.len()];
        for (environment, index) in self.known {
            environments[index] = environment;
        }
        self.record.environments = environments;
        self.record
    }
}

impl Watcher for Recorder<'_> {
    fn executed(&mut self, process: &Process) {
        // Most programs of a build are none of ours, and all wait for us.
        let Ok(program) = process.name() else {
            return;
        };
        let driver = self.call(process);
        let links = is_one_of(&program, LINKERS) || is_one_of(&program, ARCHIVERS);
        if driver.is_some() && !links {
            // cc1, as, collect2; what ccache calls; what a driver's wrapper calls.
            self.stamp(process);
            return;
        }
        let changes = is_one_of(&program, CHANGERS);
        if !(links || changes || is_compiler(&program) || is_launcher(&program)) {
            return;
        }
        let Some(arguments) = process.arguments().ok().filter(|all| !all.is_empty()) else {
            return;
        };
        if links {
            self.stamp(process);
            self.linker(process, arguments, driver);
        } else if is_compiler(&program) || launched(&arguments).is_some() {
            self.stamp(process);
            self.compiler(process, arguments);
        } else if changes {
            self.changer(process, &arguments);
        }
    }

    fn ended(&mut self, pid: Pid, status: ExitStatus) {
        match self.open.remove(&pid) {
            Some(Open::Compiler(call)) => self.record.calls[call].exit = status.code(),
            Some(Open::Linker(link)) => {
                self.record.links[link].success = status.success() && status.signal().is_none()
            }
            None => {}
        }
    }
}

/// A relocatable object or an archive.
fn is_input(path: &Path) -> bool {
    let mut start = [0; 18];
    let Ok(mut file) = fs::File::open(path) else {
        return false;
    };
    let read = file.read(&mut start).unwrap_or(0);
    let start = &start[..read];
    start.starts_with(b"!<arch>\n")
        || start.starts_with(b"!<thin>\n")
        // ET_REL
        || (start.starts_with(b"\x7fELF") && start.get(16) == Some(&1))
}

/// Output and inputs of a linker's command line.
fn linked(
    arguments: &[OsString],
    is_input: &dyn Fn(&Path) -> bool,
) -> Option<(PathBuf, Vec<PathBuf>)> {
    let mut output = PathBuf::from("a.out");
    let mut inputs = Vec::new();
    let mut searched: Vec<PathBuf> = Vec::new();
    let mut shared = true;
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        let bytes = argument.as_bytes();
        match bytes {
            b"-r" | b"-i" | b"--relocatable" | b"--version" | b"-v" | b"-V" => {}
            b"-o" | b"--output" => output = rest.next()?.into(),
            b"-L" => searched.extend(rest.next().map(PathBuf::from)),
            b"-static" | b"-Bstatic" | b"-dn" | b"-non_shared" => shared = false,
            b"-Bdynamic" | b"-dy" | b"-call_shared" => shared = true,
            b"-l" => inputs.extend(
                rest.next()
                    .and_then(|name| library(name.as_bytes(), &searched, shared, is_input)),
            ),
            _ if bytes.starts_with(b"--output=") => output = OsStr::from_bytes(&bytes[9..]).into(),
            _ if bytes.starts_with(b"-L") => searched.push(OsStr::from_bytes(&bytes[2..]).into()),
            _ if bytes.starts_with(b"-l") => {
                inputs.extend(library(&bytes[2..], &searched, shared, is_input))
            }
            _ if bytes.starts_with(b"-") => {}
            // A value of an option is no object.
            _ if is_input(Path::new(argument)) => inputs.push(argument.into()),
            _ => {}
        }
    }
    (!inputs.is_empty()).then_some((output, inputs))
}

/// The archive that `-lNAME` means, if it means one of the directories that the build names.
fn library(
    name: &[u8],
    searched: &[PathBuf],
    shared: bool,
    is_input: &dyn Fn(&Path) -> bool,
) -> Option<PathBuf> {
    for directory in searched {
        let file = |end: &[u8]| match name.strip_prefix(b":") {
            Some(name) => directory.join(OsStr::from_bytes(name)),
            None => directory.join(OsStr::from_bytes(&[b"lib", name, end].concat())),
        };
        if shared && !name.starts_with(b":") && file(b".so").exists() {
            return None;
        }
        if is_input(&file(b".a")) {
            return Some(file(b".a"));
        }
    }
    None
}

/// Archive and members of an archiver's command line, if it adds members.
fn archived(arguments: &[OsString]) -> Option<(PathBuf, Vec<PathBuf>)> {
    let mut rest = arguments
        .iter()
        .skip(1)
        .filter(|a| !a.as_bytes().starts_with(b"--"))
        .peekable();
    let operation = rest.next()?.as_bytes();
    let letters = operation.strip_prefix(b"-").unwrap_or(operation);
    if !letters.iter().any(|l| matches!(l, b'r' | b'q')) {
        return None;
    }
    // GNU ar takes modifiers apart as well: `ar -r -c lib.a`.
    while rest.peek().is_some_and(|a| a.as_bytes().starts_with(b"-")) {
        rest.next();
    }
    if letters
        .iter()
        .any(|l| matches!(l, b'a' | b'b' | b'i' | b'N'))
    {
        rest.next();
    }
    let archive = rest.next()?.into();
    Some((archive, rest.map(PathBuf::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn tools_are_known_by_name() {
        for name in [
            "/usr/bin/ld",
            "x86_64-linux-gnu-ld.bfd",
            "ld.lld-14",
            "ld.gold",
        ] {
            assert!(is_one_of(OsStr::new(name), LINKERS), "{name}");
        }
        for name in ["ldd", "mould", "build", "ld.so", "ld-linux"] {
            assert!(!is_one_of(OsStr::new(name), LINKERS), "{name}");
        }
        assert!(is_one_of(
            OsStr::new("x86_64-linux-gnu-gcc-ar-12"),
            ARCHIVERS
        ));
        assert!(!is_one_of(OsStr::new("tar"), ARCHIVERS));
        assert!(!is_one_of(OsStr::new("xstrip"), CHANGERS));
    }

    #[test]
    fn links_and_archives() {
        let object = |path: &Path| path.extension().is_some_and(|e| e == "o" || e == "a");
        let (output, inputs) = linked(
            &line(
                "ld -pie -o prog -z now -m elf_x86_64 crt1.o -L dir -lfoo a.o --as-needed libx.a",
            ),
            &object,
        )
        .expect("a link");
        assert_eq!(output, Path::new("prog"));
        assert_eq!(
            inputs,
            ["crt1.o", "dir/libfoo.a", "a.o", "libx.a"].map(PathBuf::from)
        );
        assert!(linked(&line("ld --version"), &object).is_none());
        assert!(linked(&line("ld a.o -o"), &object).is_none());

        let (archive, members) = archived(&line("ar rcs libx.a a.o b.o")).expect("an archive");
        assert_eq!(archive, Path::new("libx.a"));
        assert_eq!(members, ["a.o", "b.o"].map(PathBuf::from));
        assert_eq!(
            archived(&line("ar -r -c libx.a a.o"))
                .expect("an archive")
                .0,
            Path::new("libx.a")
        );
        assert!(archived(&line("ar t libx.a")).is_none());
        assert!(archived(&line("ar")).is_none());
    }
}
