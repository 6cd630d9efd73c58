//! A process and its tasks, as /proc shows them.

use crate::error::Error;
use crate::memory::Memory;
use crate::sys::{self, Tid};
use livegraft_model::Listing;
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Reads a small file of /proc in as few calls as it takes; most need one.
pub fn read_proc(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut text = vec![0; 4096];
    let mut filled = 0;
    while let Some(room) = text.get_mut(filled..) {
        match file.read(room)? {
            0 => break,
            got => filled += got,
        }
        if filled == text.len() {
            text.resize(filled.saturating_mul(2), 0);
        }
    }
    text.truncate(filled);
    Ok(text)
}

fn read_proc_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_proc(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Names one task. The inode of its /proc directory tells a recycled number from the task that had it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Task {
    /// The process that it belongs to: another one for children that share the memory (vfork, CLONE_VM).
    pub pid: i32,
    /// Its own number.
    pub tid: Tid,
    /// Inode of /proc/PID/task/TID.
    pub inode: u64,
}

impl Task {
    /// Its directory below /proc.
    pub fn dir(&self) -> PathBuf {
        task_dir(self.pid, self.tid)
    }

    /// The name in `comm`, for the user.
    pub fn name(&self) -> String {
        fs::read_to_string(self.dir().join("comm"))
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    }

    /// Its number as it sees it itself: in the innermost namespace.
    pub fn own_number(&self) -> Option<u32> {
        let numbers = status_field(&self.dir(), "NSpid")?;
        numbers.split_ascii_whitespace().next_back()?.parse().ok()
    }

    /// Whether it is still there, and no other task has its number.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(self.dir()).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// The stack pointer and program counter with which it sleeps in a system call; `None` when it runs, or waits for
    /// its turn on a processor, or is stopped. Tells without stopping it that nothing has changed; it proves no more.
    pub fn asleep_at(&self) -> Option<(u64, u64)> {
        let text = read_proc_text(&self.dir().join("syscall")).ok()?;
        let mut words = text.split_ascii_whitespace().rev();
        let mut next = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let (pc, sp) = (next()?, next()?);
        Some((sp, pc))
    }
}

/// What of /proc/PID/stat matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Field 3.
    pub state: char,
    /// Field 4.
    pub parent: i32,
    /// Field 9.
    pub flags: u64,
    /// Field 22, in clock ticks since boot.
    pub start_time: u64,
    /// Field 28, the first task's first stack pointer; 0 when we may not know.
    pub start_stack: u64,
}

impl Stat {
    /// Reads and parses a `stat` file; the name in it may contain anything.
    pub fn read(path: &Path) -> Option<Stat> {
        let text = read_proc(path).ok()?;
        let after = text.iter().rposition(|&byte| byte == b')')?;
        let text = std::str::from_utf8(text.get(after.checked_add(2)?..)?).ok()?;
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        Some(Stat {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
            start_stack: fields.get(25)?.parse().ok()?,
        })
    }

    /// PF_KTHREAD.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }

    /// PF_EXITING.
    fn is_exiting(&self) -> bool {
        self.flags & 0x4 != 0
    }

    /// Zombie or dead.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// A field of a `status` file.
pub fn status_field(dir: &Path, name: &str) -> Option<String> {
    let status = read_proc_text(&dir.join("status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
}

/// An open process: everything that is done to a target goes through this.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// `comm` of the leader.
    pub name: String,
    /// A task that lived when it was last looked for (the leader may be a zombie), see [`Process::live`].
    live: Cell<Tid>,
    /// Start time of the process, in clock ticks since boot.
    pub start_time: u64,
    /// Its memory.
    pub memory: Memory,
    maps: File,
}

impl Process {
    /// Opens a process.
    ///
    /// # Errors
    /// [`Error::NoProcess`], [`Error::KernelThread`], [`Error::Zombie`], [`Error::NoPermission`].
    pub fn open(pid: i32) -> Result<Process, Error> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let stat = Stat::read(&dir.join("stat")).ok_or(Error::NoProcess(pid))?;
        if status_field(&dir, "Tgid").is_some_and(|tgid| tgid != pid.to_string()) {
            return Err(Error::NotALeader {
                tid: pid,
                pid: status_field(&dir, "Tgid").unwrap_or_default(),
            });
        }
        if stat.is_kernel_thread() {
            return Err(Error::KernelThread(pid));
        }
        let denied = |source: io::Error| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Error::NoPermission(pid),
            Some(libc::ENOENT | libc::ESRCH) => Error::NoProcess(pid),
            _ => Error::Io {
                what: format!("process {pid}"),
                source,
            },
        };
        let tid = live_task(pid).map_err(denied)?.ok_or(Error::Zombie(pid))?;
        let live = task_dir(pid, tid);
        let memory = Memory::open(&live).map_err(denied)?;
        let maps = File::open(live.join("maps")).map_err(denied)?;
        let name = fs::read_to_string(dir.join("comm"))
            .unwrap_or_default()
            .trim_end()
            .to_owned();
        Ok(Process {
            pid,
            name,
            live: Cell::new(tid),
            start_time: stat.start_time,
            memory,
            maps,
        })
    }

    /// A task that lives: whatever is asked of the process is asked of that.
    pub fn live_tid(&self) -> Tid {
        let tid = self.live.get();
        let lives = Stat::read(&task_dir(self.pid, tid).join("stat"));
        if lives.is_none_or(|stat| stat.is_dead())
            && let Ok(Some(other)) = live_task(self.pid)
        {
            self.live.set(other);
        }
        self.live.get()
    }

    /// /proc/PID/task/TID of a task that lives.
    pub fn live(&self) -> PathBuf {
        task_dir(self.pid, self.live_tid())
    }

    /// /proc/TID of a task that lives: some files are there and not below /proc/PID/task.
    pub fn live_process(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.live_tid()))
    }

    /// Whether any task is left that is neither ending nor killed: what was done to a process that is about to end was
    /// not done.
    pub fn goes_on(&self) -> bool {
        const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);
        let goes_on = |task: &Task| {
            let stat = Stat::read(&task.dir().join("stat"));
            let pending = status_field(&task.dir(), "SigPnd");
            let pending = pending.and_then(|mask| u64::from_str_radix(&mask, 16).ok());
            stat.is_some_and(|stat| !stat.is_dead() && !stat.is_exiting())
                && pending.is_some_and(|mask| mask & SIGKILL == 0)
        };
        self.tasks()
            .is_ok_and(|listing| listing.tasks.iter().any(goes_on))
    }

    /// Whether another process runs in the same memory.
    pub fn shares_memory_with(&self, pid: i32) -> bool {
        sys::same_memory(self.live_tid(), pid)
    }

    /// /proc/PID.
    pub fn dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.pid))
    }

    /// The mapping around an address, as it is now.
    ///
    /// # Errors
    /// ENOENT: nothing is mapped there.
    pub fn mapping_at(&self, address: u64) -> io::Result<(u64, u64)> {
        match sys::query_mapping(&self.maps, address) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                // Before Linux 6.11 there is only the text.
                crate::object::read_mappings(&self.live())?
                    .iter()
                    .find(|mapping| (mapping.start..mapping.end).contains(&address))
                    .map(|mapping| (mapping.start, mapping.end))
                    .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
            }
            other => other,
        }
    }

    /// The mappings that may not be replaced (mseal, `sl` among the VmFlags of smaps).
    pub fn sealed_ranges(&self) -> Vec<Range<u64>> {
        let Ok(smaps) = File::open(self.live().join("smaps")) else {
            return Vec::new();
        };
        let mut sealed = Vec::new();
        let mut mapping = None;
        for line in io::BufReader::new(smaps).lines().map_while(Result::ok) {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                let is_sealed = flags.split_ascii_whitespace().any(|flag| flag == "sl");
                sealed.extend(mapping.take().filter(|_| is_sealed));
            } else if let Some((start, rest)) = line.split_once('-') {
                let number = |text| u64::from_str_radix(text, 16).ok();
                let end = rest.split(' ').next().and_then(number);
                if let (Some(start), Some(end)) = (number(start), end) {
                    mapping = Some(start..end);
                }
            }
        }
        sealed
    }

    /// The number of an open file whose name begins so.
    pub fn open_file_named(&self, prefix: &str) -> Option<u64> {
        fs::read_dir(self.live().join("fd"))
            .ok()?
            .filter_map(Result::ok)
            .find_map(|entry| {
                let link = fs::read_link(entry.path()).ok()?;
                link.to_str()?.starts_with(prefix).then_some(())?;
                entry.file_name().to_str()?.parse().ok()
            })
    }

    /// Whether any task of it is traced already, and by whom.
    pub fn tracer(&self) -> Option<i32> {
        status_field(&self.live(), "TracerPid")?
            .parse()
            .ok()
            .filter(|&pid| pid != 0)
    }

    /// Other processes that run in the same memory (vfork children until they exec, CLONE_VM without CLONE_THREAD).
    fn sharers(&self) -> Vec<i32> {
        // Kernel threads and zombies have no memory; a task that lives has.
        let live = self.live_tid();
        all_processes()
            .filter(|&other| other != self.pid && sys::same_memory(live, other))
            .collect()
    }

    /// Some tasks of the process itself, most often all.
    ///
    /// # Errors
    /// [`Error::Exited`] when the process is gone.
    pub fn some_tasks(&self) -> Result<Vec<Task>, Error> {
        let mut tasks = Vec::new();
        read_tasks(self.pid, &mut tasks).map_err(|_| Error::Exited(self.pid))?;
        Ok(tasks)
    }

    /// All tasks that run in this memory. See [`list_tasks`] for when the listing counts as complete.
    ///
    /// # Errors
    /// [`Error::Exited`] when the process is gone.
    pub fn tasks(&self) -> Result<Listing<Task>, Error> {
        let mut tasks = Vec::new();
        let mut complete = list_tasks(self.pid, &mut tasks).map_err(|_| Error::Exited(self.pid))?;
        for pid in self.sharers() {
            // One that ended meanwhile has no tasks any more.
            complete &= list_tasks(pid, &mut tasks).unwrap_or(true);
        }
        Ok(Listing { tasks, complete })
    }
}

/// Adds the tasks of a process, and says whether that is proven to be all of them. The kernel can leave live tasks out
/// when others die while it lists them (fs/proc/base.c, next_tid). The proof: all that were listed and are still there
/// afterwards are as many as the kernel counted in between.
fn list_tasks(pid: i32, tasks: &mut Vec<Task>) -> io::Result<bool> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let first = tasks.len();
    read_tasks(pid, tasks)?;
    let counted = status_field(&dir, "Threads").and_then(|text| text.parse::<usize>().ok());
    let listed = tasks.get(first..).unwrap_or_default();
    if counted.is_none_or(|counted| listed.len() < counted) {
        return Ok(false);
    }
    let alive = listed.iter().filter(|task| task.is_there()).count();
    Ok(counted == Some(alive))
}

/// Adds the tasks of a process, as far as the kernel lists them.
fn read_tasks(pid: i32, tasks: &mut Vec<Task>) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        if let Some(tid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            tasks.push(Task {
                pid,
                tid,
                inode: entry.ino(),
            });
        }
    }
    Ok(())
}

fn task_dir(pid: i32, tid: Tid) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/task/{tid}"))
}

/// A task of the process that is neither a zombie nor dead.
fn live_task(pid: i32) -> io::Result<Option<Tid>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let mut tids = tasks.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(tids.find(|&tid| {
        let stat = Stat::read(&task_dir(pid, tid).join("stat"));
        stat.is_some_and(|stat| !stat.is_dead())
    }))
}

/// The numbers of all processes.
pub fn all_processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
