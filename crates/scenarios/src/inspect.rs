//! Looks at a process from outside: mappings, text, tasks.

use crate::sys::{self, Uprobe};
use object::{Object, ObjectSegment, ObjectSymbol};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// `r-xp` and so on.
    pub permissions: String,
    /// Where in the file it starts.
    pub offset: u64,
    /// The file, or `[heap]` and the like; may be empty.
    pub name: String,
}

fn is_dead(task: &Path) -> bool {
    let status = fs::read_to_string(task.join("status")).unwrap_or_default();
    status.contains("State:\tZ") || status.contains("State:\tX")
}

/// The directory of a task that lives: a main task that has ended shows nothing.
fn live(pid: i32) -> PathBuf {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let tasks = tasks(pid).into_iter();
    let mut dirs = tasks.map(|tid| process.join(format!("task/{tid}")));
    dirs.find(|dir| !is_dead(dir)).unwrap_or(process)
}

/// Takes a uprobe out, and waits until its byte has left the text: the kernel does that some time after the close.
pub fn remove(probe: std::io::Result<Uprobe>, pid: i32, address: u64) {
    drop(probe);
    until_removed(pid, address);
}

/// Waits until no breakpoint is at an address.
pub fn until_removed(pid: i32, address: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while read(pid, address, 1) == [0xcc] {
        assert!(Instant::now() < deadline, "the uprobe stays");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A process' mappings now.
pub fn maps(pid: i32) -> Vec<Mapping> {
    let text =
        fs::read_to_string(live(pid).join("maps")).unwrap_or_else(|e| panic!("maps of {pid}: {e}"));
    let number = |digits: &str| {
        u64::from_str_radix(digits, 16).expect("the kernel writes hexadecimal numbers")
    };
    text.lines()
        .map(|line| {
            let mut words = line.splitn(6, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (start, end) = word().split_once('-').expect("a range");
            let (permissions, offset, _device, inode_and_name) = (word(), word(), word(), word());
            let name = format!("{inode_and_name} {}", word());
            let name = name
                .split_once(' ')
                .map(|(_, name)| name.trim())
                .unwrap_or_default();
            Mapping {
                start: number(start),
                end: number(end),
                permissions: permissions.to_owned(),
                offset: number(offset),
                name: name.to_owned(),
            }
        })
        .collect()
}

/// Whatever of `new` is not in `old`, address by address.
fn added(old: &[Mapping], new: &[Mapping]) -> Vec<Mapping> {
    let mut rest = Vec::new();
    for mapping in new {
        let mut at = mapping.start;
        let overlapping = old
            .iter()
            .filter(|o| o.start < mapping.end && o.end > mapping.start);
        for overlap in overlapping {
            if overlap.start > at {
                rest.push(Mapping {
                    start: at,
                    end: overlap.start,
                    ..mapping.clone()
                });
            }
            at = at.max(overlap.end);
        }
        if at < mapping.end {
            rest.push(Mapping {
                start: at,
                ..mapping.clone()
            });
        }
    }
    rest
}

/// What a process looked like before anything was done to it.
#[derive(Debug, Clone)]
pub struct Baseline {
    pid: i32,
    maps: Vec<Mapping>,
    /// The files with code in them, as long as they are what is mapped.
    files: BTreeMap<String, Arc<fs::File>>,
}

impl Baseline {
    /// Takes one now.
    pub fn take(pid: i32) -> Self {
        let maps = maps(pid);
        let code = maps
            .iter()
            .filter(|m| m.permissions.contains('x') && m.name.starts_with('/'));
        let files = code.filter_map(|mapping| {
            let file = fs::File::open(&mapping.name).ok()?;
            Some((mapping.name.clone(), Arc::new(file)))
        });
        Self {
            pid,
            files: files.collect(),
            maps,
        }
    }

    /// Of one file's mappings only.
    pub fn of_file(pid: i32, file: &Path) -> Self {
        let mut baseline = Self::take(pid);
        baseline.maps.retain(|m| Path::new(&m.name) == file);
        baseline
    }

    /// The first place where an executable segment differs from its file, in words.
    pub fn text_difference(&self) -> Option<String> {
        let memory = fs::File::open(live(self.pid).join("mem")).expect("the process lives");
        let code = self
            .maps
            .iter()
            .filter(|m| m.permissions.contains('x') && m.name.starts_with('/'));
        for mapping in code {
            let length = (mapping.end - mapping.start) as usize;
            let (mut now, mut file) = (vec![0; length], vec![0; length]);
            if let Err(error) = memory.read_exact_at(&mut now, mapping.start) {
                return Some(format!(
                    "{:#x} ({}) can't be read: {error}",
                    mapping.start, mapping.name
                ));
            }
            let opened = self.files.get(&mapping.name);
            let opened = opened.unwrap_or_else(|| panic!("{} is not there", mapping.name));
            read_up_to(opened, mapping.offset, &mut file);
            if now == file {
                continue;
            }
            if let Some(at) = (0..length).find(|&i| now[i] != file[i]) {
                let address = mapping.start + at as u64;
                return Some(format!(
                    "{address:#x} ({}): {:#04x}, file {:#04x}",
                    mapping.name, now[at], file[at]
                ));
            }
        }
        None
    }

    /// Whether the mappings are what they were, line by line; else what is different.
    pub fn maps_difference(&self) -> Option<String> {
        let now = maps(self.pid);
        let gone: Vec<_> = self.maps.iter().filter(|m| !now.contains(m)).collect();
        let new: Vec<_> = now.iter().filter(|m| !self.maps.contains(m)).collect();
        (!gone.is_empty() || !new.is_empty()).then(|| format!("gone: {gone:x?}; new: {new:x?}"))
    }

    /// Mappings that were not there and that `list --json` does not account for. Growth of heap and stack is the
    /// program's own; so is everything that does not look like ours, if the program maps memory itself.
    pub fn unaccounted(&self, listed: &Value, maps_memory: bool) -> Vec<Mapping> {
        let mut known = self.maps.clone();
        known.extend(listed_mappings(listed));
        known.sort_by_key(|mapping| mapping.start);
        let own = |m: &Mapping| {
            m.name == "[heap]"
                || m.name == "[stack]"
                // The kernel's, as soon as somebody has set one.
                || m.name == "[uprobes]"
                || maps_memory && !m.name.contains("livegraft")
        };
        added(&known, &maps(self.pid))
            .into_iter()
            .filter(|m| !own(m))
            .collect()
    }

    /// What was added to the process, in bytes, as the kernel counts it.
    pub fn added_bytes(&self) -> u64 {
        added(&self.maps, &maps(self.pid))
            .iter()
            .map(|m| m.end - m.start)
            .sum()
    }
}

fn read_up_to(file: &fs::File, offset: u64, into: &mut [u8]) {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) => panic!("a program's file: {error}"),
        }
    }
}

/// The mappings that `list --json` names for a process.
pub fn listed_mappings(listed: &Value) -> Vec<Mapping> {
    let mappings = listed["memory"]["mappings"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let address = |value: &Value| {
        let text = value
            .as_str()
            .unwrap_or_else(|| panic!("{value} is no address"));
        u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    let one = |value: &Value| Mapping {
        start: address(&value["start"]),
        end: address(&value["end"]),
        permissions: String::new(),
        offset: 0,
        name: value["what"].as_str().unwrap_or_default().to_owned(),
    };
    mappings.iter().map(one).collect()
}

/// The tasks of a process.
pub fn tasks(pid: i32) -> Vec<i32> {
    let entries =
        fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|e| panic!("tasks of {pid}: {e}"));
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The fields of /proc/PID/status or /proc/PID/task/TID/status; empty if there is none.
pub fn status(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Tasks that somebody traces or has stopped, in words.
pub fn disturbed_tasks(pid: i32) -> Vec<String> {
    let mut found = Vec::new();
    for tid in tasks(pid) {
        let status = status(&format!("/proc/{pid}/task/{tid}/status"));
        let field = |key: &str| status.get(key).map_or("", String::as_str);
        let stopped = field("State").starts_with(['t', 'T']);
        if stopped || !["0", ""].contains(&field("TracerPid")) {
            found.push(format!(
                "task {tid}: state {}, traced by {}",
                field("State"),
                field("TracerPid")
            ));
        }
    }
    found
}

/// Tasks whose gs base is not 0. Interrupts each task for a moment.
pub fn foreign_gs_bases(pid: i32) -> Vec<String> {
    let visit = |tid: i32| match sys::bare_visit(tid) {
        Ok(0) => None,
        Ok(base) => Some(format!("task {tid}: gs base {base:#x}")),
        // It has ended since, or it is an io_uring worker.
        Err(_) if !Path::new(&format!("/proc/{pid}/task/{tid}")).exists() => None,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
        Err(_) if is_dead(&Path::new("/proc").join(format!("{pid}/task/{tid}"))) => None,
        Err(error) => Some(format!("task {tid}: {error}")),
    };
    tasks(pid).into_iter().filter_map(visit).collect()
}

/// Size and address of a function as the executable numbers it.
pub fn symbol(exe: &Path, name: &str) -> (u64, u64) {
    let bytes = fs::read(exe).unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
    let file = object::File::parse(&*bytes).unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .unwrap_or_else(|| panic!("no {name}"));
    (symbol.size(), symbol.address())
}

/// The one symbol of an executable whose name has all of these in it: a name that the compiler has mangled.
pub fn symbol_like(exe: &Path, parts: &[&str]) -> String {
    let bytes = fs::read(exe).unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
    let file = object::File::parse(&*bytes).unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
    let names = file.symbols().filter_map(|symbol| symbol.name().ok());
    let fits = |name: &&str| parts.iter().all(|part| name.contains(part));
    let found: Vec<&str> = names.filter(fits).collect();
    let [name] = found.as_slice() else {
        panic!("{parts:?}: {found:?}")
    };
    (*name).to_owned()
}

/// Where a function of an executable lies in its file, and where in a process that runs it.
pub fn function(pid: i32, exe: &Path, name: &str) -> (u64, u64) {
    let bytes = fs::read(exe).unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
    let file = object::File::parse(&*bytes).unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .unwrap_or_else(|| panic!("no {name}"));
    let inside = |start: u64, size: u64| (start..start + size).contains(&symbol.address());
    let segment = file
        .segments()
        .find(|s| inside(s.address(), s.size()))
        .expect("the symbol lies in a segment");
    let offset = symbol.address() - segment.address() + segment.file_range().0;
    let canonical = exe.canonicalize().expect("the executable is there");
    let mapping = maps(pid).into_iter().find(|m| {
        Path::new(&m.name) == canonical
            && m.permissions.contains('x')
            && (m.offset..m.offset + m.end - m.start).contains(&offset)
    });
    let mapping = mapping.unwrap_or_else(|| panic!("{} is not mapped in {pid}", exe.display()));
    (offset, mapping.start + offset - mapping.offset)
}

/// Reads the memory of a process.
pub fn read(pid: i32, address: u64, length: usize) -> Vec<u8> {
    let memory = fs::File::open(live(pid).join("mem"));
    let memory = memory.unwrap_or_else(|e| panic!("memory of {pid}: {e}"));
    let mut bytes = vec![0; length];
    memory
        .read_exact_at(&mut bytes, address)
        .unwrap_or_else(|e| panic!("{address:#x}: {e}"));
    bytes
}

/// Changes one byte of a process; gives the byte that was there.
pub fn poke(pid: i32, address: u64, byte: u8) -> u8 {
    let memory = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(live(pid).join("mem"));
    let memory = memory.unwrap_or_else(|e| panic!("memory of {pid}: {e}"));
    let mut before = [0];
    memory
        .read_exact_at(&mut before, address)
        .unwrap_or_else(|e| panic!("{address:#x}: {e}"));
    memory
        .write_all_at(&[byte], address)
        .unwrap_or_else(|e| panic!("{address:#x}: {e}"));
    before[0]
}
