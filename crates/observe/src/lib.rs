//! Runs a command and tells of each program that it or anybody below it executes, and of each end.
//!
//! ptrace without system call stops: a process stops when it has executed a program, when it creates a task and when it
//! gets a signal, so what is statically linked, called by absolute path or through a wrapper is seen as well, nothing in
//! the command's environment is changed, and what is read from /proc about a process is what the kernel holds. Tracees
//! die with the tracer (PTRACE_O_EXITKILL), however that dies.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

mod sys;

/// Why a command could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("can't start the command: {0}")]
    Start(io::Error),
    /// ptrace was refused.
    #[error(
        "can't observe the build: {0}; this needs ptrace of one's own children, which a sandbox or kernel.yama.ptrace_scope may forbid"
    )]
    Trace(io::Error),
    /// The flag was set.
    #[error("interrupted")]
    Interrupted,
}

/// A number that stands for one process in one observation.
pub type Pid = i32;

/// A process that stands still right after it has executed a program.
#[derive(Debug)]
pub struct Process<'a> {
    /// Its number, until [`Watcher::ended`].
    pub pid: Pid,
    parents: &'a HashMap<Pid, Pid>,
}

impl Process<'_> {
    /// The process that created it, the one that created that, and so on, as far as they live.
    pub fn ancestors(&self) -> impl Iterator<Item = Pid> {
        std::iter::successors(self.parents.get(&self.pid), |pid| self.parents.get(pid)).copied()
    }

    /// The first of its arguments: the program as it was called. Much cheaper than all of them.
    ///
    /// # Errors
    /// It was killed meanwhile.
    pub fn name(&self) -> io::Result<OsString> {
        match sys::first_argument(self.pid) {
            Some(name) => Ok(OsString::from_vec(name)),
            None => Ok(self.arguments()?.into_iter().next().unwrap_or_default()),
        }
    }

    /// Its arguments, the program's name first.
    ///
    /// # Errors
    /// It was killed meanwhile.
    pub fn arguments(&self) -> io::Result<Vec<OsString>> {
        Ok(strings(fs::read(self.path("cmdline"))?))
    }

    /// Its environment, as it was given.
    ///
    /// # Errors
    /// It was killed meanwhile.
    pub fn environment(&self) -> io::Result<Vec<OsString>> {
        Ok(strings(fs::read(self.path("environ"))?))
    }

    /// Its working directory, as it sees it itself.
    ///
    /// # Errors
    /// It was killed meanwhile.
    pub fn directory(&self) -> io::Result<PathBuf> {
        fs::read_link(self.path("cwd"))
    }

    /// The program that it executes (for a script, its interpreter), without symbolic links.
    ///
    /// # Errors
    /// It was killed meanwhile.
    pub fn program(&self) -> io::Result<PathBuf> {
        fs::read_link(self.path("exe"))
    }

    /// Where a path that it names is to be found by us, who may have another root or other mounts.
    #[must_use]
    pub fn reach(&self, path: &std::path::Path) -> PathBuf {
        match path.strip_prefix("/") {
            Ok(below) => self.path("root").join(below),
            Err(_) => self.path("cwd").join(path),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }
}

fn strings(bytes: Vec<u8>) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    (bytes.split(|byte| *byte == 0))
        .map(|part| OsString::from_vec(part.to_vec()))
        .collect()
}

/// Who wants to know. Processes wait for what it does.
pub trait Watcher: Send {
    /// A process stands right after it has executed a program: all that ended before has been told.
    fn executed(&mut self, process: &Process);
    /// A process has ended. Its parent may know already.
    fn ended(&mut self, pid: Pid, status: ExitStatus);
}

/// Stops itself until it is traced, then becomes the command.
const LAUNCH: &str = "kill -STOP $$; exec \"$@\"";

/// A command that is observed from its first program on. `stdin`, `stdout`, directory and environment may be set on it.
#[must_use]
pub fn command(argv: &[OsString]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(LAUNCH).arg("sh").args(argv);
    command
}

/// Runs what [`command`] has made until it ends. What it leaves running in the background is killed then: its
/// directories are about to go.
///
/// Where the flag is set meanwhile all of it is killed.
///
/// # Errors
/// [`Error`]; nothing of the command runs any more.
pub fn run(
    command: Command,
    watcher: &mut dyn Watcher,
    interrupt: &AtomicBool,
) -> Result<ExitStatus, Error> {
    let root = &OnceLock::<sys::Handle>::new();
    let done = &AtomicBool::new(false);
    // A thread of its own has no other children that a wait could bring, and ptrace is a matter of threads.
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if interrupt.load(Ordering::Relaxed)
                    && let Some(root) = root.get()
                {
                    let _ = root.kill();
                }
                thread::park_timeout(Duration::from_millis(20));
            }
        });
        let tracer = scope.spawn(move || {
            let _done = Done(done);
            trace(command, watcher, root)
        });
        tracer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if interrupt.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    result
}

/// Says that the tracer is gone, a panic of the watcher included.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn trace(
    mut command: Command,
    watcher: &mut dyn Watcher,
    handle: &OnceLock<sys::Handle>,
) -> Result<ExitStatus, Error> {
    let mut child = command.spawn().map_err(Error::Start)?;
    let root = child.id().cast_signed();
    let adopted = sys::Handle::open(root).and_then(|opened| {
        let _ = handle.set(opened);
        sys::adopt(root)
    });
    if let Err(error) = adopted {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::Trace(error));
    }
    let mut tree = Tree::default();
    tree.tasks.insert(root, root);
    let mut result = None;
    while let Some((tid, event)) = sys::wait().map_err(Error::Trace)? {
        match event {
            sys::Event::Ended(status) => {
                tree.early.remove(&tid);
                let process = tree.tasks.remove(&tid);
                // Its creator was killed maybe, and will not tell of whoever waits here.
                for tid in tree.meet_early() {
                    let _ = sys::go_on(tid, 0);
                }
                if process == Some(tid) {
                    let status = ExitStatus::from_raw(status);
                    tree.parents
                        .retain(|child, parent| *child != tid && *parent != tid);
                    watcher.ended(tid, status);
                    if tid == root {
                        result = Some(status);
                        tree.kill();
                    }
                }
                continue;
            }
            sys::Event::Executed(former) => {
                if former != tid {
                    tree.tasks.remove(&former);
                }
                tree.tasks.insert(tid, tid);
                if result.is_none() {
                    watcher.executed(&Process {
                        pid: tid,
                        parents: &tree.parents,
                    });
                }
            }
            sys::Event::Created { child, fork } => {
                tree.created(tid, child, fork);
                if tree.early.remove(&child) {
                    let _ = sys::go_on(child, 0);
                }
            }
            sys::Event::Began if !tree.tasks.contains_key(&tid) => {
                // Its creator's event, which says whose it is, is about to come.
                tree.early.insert(tid);
                if result.is_none() {
                    continue;
                }
                let _ = tree.meet_early();
            }
            sys::Event::Began => {}
            sys::Event::Halted => {
                let _ = sys::listen(tid);
                continue;
            }
            sys::Event::Signal(signal) => {
                let _ = sys::go_on(tid, signal);
                continue;
            }
        }
        if result.is_some() {
            tree.kill();
        }
        // What fails here was killed meanwhile, and its end comes.
        let _ = sys::go_on(tid, 0);
    }
    result.ok_or_else(|| Error::Trace(io::Error::other("the command was lost")))
}

/// The tasks that live.
#[derive(Default)]
struct Tree {
    /// Task -> process.
    tasks: HashMap<Pid, Pid>,
    /// Process -> who created it.
    parents: HashMap<Pid, Pid>,
    /// Tasks that have begun before their creators told of them, and stand still until they do.
    early: HashSet<Pid>,
    /// Those that were looked up instead; their creators may still tell.
    met: HashSet<Pid>,
}

impl Tree {
    /// Looks up those that were seen before their creators told of them.
    fn meet_early(&mut self) -> Vec<Pid> {
        let early: Vec<Pid> = self.early.drain().collect();
        for &tid in &early {
            let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
            let number = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<Pid>().ok()
            };
            let process = number("Tgid:").unwrap_or(tid);
            self.met.insert(tid);
            self.tasks.insert(tid, process);
            if process == tid
                && let Some(parent) = number("PPid:")
            {
                self.parents.insert(tid, parent);
            }
        }
        early
    }

    fn created(&mut self, creator: Pid, child: Pid, fork: bool) {
        let ended =
            self.met.remove(&child) && !fs::exists(format!("/proc/{child}")).unwrap_or(true);
        if ended || self.tasks.contains_key(&child) {
            return;
        }
        let creator = self.tasks.get(&creator).copied().unwrap_or(creator);
        let thread = !fork && fs::exists(format!("/proc/{creator}/task/{child}")).unwrap_or(false);
        if thread {
            self.tasks.insert(child, creator);
        } else {
            self.tasks.insert(child, child);
            self.parents.insert(child, creator);
        }
    }

    /// Kills all that are left. None of them was waited for, so the numbers are theirs.
    fn kill(&self) {
        for tid in self.tasks.keys() {
            let _ = sys::kill(*tid, libc::SIGKILL);
        }
    }
}
