//! Tasks in a safe place: where a task of the target can be made to call a function without waiting for a lock that it
//! holds itself, of the C library, the dynamic loader, an allocator or an unwinder.

use super::Engine;
use crate::arch;
use crate::error::Error;
use crate::link::{Resolver, Value};
use crate::object::{LoadedObject, Objects};
use crate::process::{Process, Stat, Task};
use crate::remote::{self, Caller, Gadgets};
use crate::sys;
use crate::tracer::{Stopped, Stopping};
use crate::unwind::Frame;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long a task in a safe place is waited for.
const SEARCH: Duration = Duration::from_secs(2);
/// Between two looks at all tasks.
const PAUSE: Duration = Duration::from_millis(5);
/// So many tasks are looked at in one round.
const MOST_TASKS: usize = 64;
/// The thread control block of glibc is smaller, and its list of robust futexes lies in it.
const THREAD_BLOCK: u64 = 4096;
/// A wait in the C library has at most so many frames of its own.
const WAIT_FRAMES: usize = 6;

/// Functions of the C library that wait in `futex` for the program's own sake, and hold nothing meanwhile.
const FUTEX_WAITS: [&str; 14] = [
    "pthread_cond_wait",
    "pthread_cond_timedwait",
    "pthread_cond_clockwait",
    "pthread_join",
    "pthread_timedjoin_np",
    "pthread_clockjoin_np",
    "pthread_barrier_wait",
    "sem_wait",
    "sem_timedwait",
    "sem_clockwait",
    "cnd_wait",
    "cnd_timedwait",
    "thrd_join",
    "syscall",
];

/// Functions of the C library that a signal interrupts while they wait, or that let one in, and that hold nothing: a
/// program that works in its signal handlers was interrupted in one of them.
const LET_SIGNALS_IN: [&str; 27] = [
    "select",
    "pselect",
    "poll",
    "ppoll",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "pause",
    "sigsuspend",
    "sigprocmask",
    "pthread_sigmask",
    "sigtimedwait",
    "sigwaitinfo",
    "sigwait",
    "nanosleep",
    "clock_nanosleep",
    "usleep",
    "sleep",
    "read",
    "recv",
    "recvfrom",
    "recvmsg",
    "accept",
    "accept4",
    "wait4",
    "waitpid",
    "waitid",
];

/// Where an unwinder in the program itself is entered.
const UNWINDING: [&str; 14] = [
    "_Unwind_RaiseException",
    "_Unwind_Resume",
    "_Unwind_Resume_or_Rethrow",
    "_Unwind_ForcedUnwind",
    "_Unwind_Backtrace",
    "_Unwind_Find_FDE",
    "__register_frame",
    "__register_frame_info",
    "__register_frame_info_bases",
    "__register_frame_table",
    "__register_frame_info_table",
    "__deregister_frame",
    "__deregister_frame_info",
    "__deregister_frame_info_bases",
];

/// Where a thread's first function is called from, in a static program.
const THREAD_STARTS: [&str; 4] = ["clone3", "__clone3", "clone", "__clone"];

/// The objects in whose code a task must not be, by what they are.
struct Places<'a> {
    objects: &'a Objects,
    /// Functions (avma) that wait in `futex`.
    waiting: Vec<Range<u64>>,
    /// Functions that hold nothing when a signal interrupts them.
    interrupted: Vec<Range<u64>>,
    /// Entrances of an unwinder in the program itself.
    unwinding: Vec<Range<u64>>,
    allocators: Vec<&'a LoadedObject>,
    /// Where threads begin in a static program.
    starts: Vec<Range<u64>>,
}

/// Why no task was found at a look.
enum Obstacle {
    /// This one has a filter that must not judge our calls.
    Filtered(i32),
    /// What was said of one of them.
    Doubt(String),
}

/// A function of an object that others can call, or of a static program.
pub(super) fn function(object: &LoadedObject, name: &str) -> Option<Range<u64>> {
    let found = if object.is_executable() {
        object.own_definition(name).ok().flatten()
    } else {
        object.exported(name)
    }?;
    let start = object.avma(found.svma);
    let inside = object
        .code_ranges()
        .iter()
        .any(|code| code.contains(&start));
    inside.then(|| start..start.saturating_add(found.size.max(1)))
}

pub(super) fn is_unwinder(object: &LoadedObject) -> bool {
    let name = object.name();
    name.starts_with("libgcc_s") || name.starts_with("libunwind")
}

pub(super) fn is_loader(object: &LoadedObject) -> bool {
    object.name().starts_with("ld-") || object.name().starts_with("ld.so")
}

pub(super) fn is_libc(object: &LoadedObject) -> bool {
    let name = object.name();
    name.starts_with("libc.") || name.starts_with("libc-") || name.starts_with("libpthread")
}

pub(super) fn is_libm(object: &LoadedObject) -> bool {
    let name = object.name();
    name.starts_with("libm.") || name.starts_with("libm-")
}

impl<'a> Places<'a> {
    fn of(objects: &'a Objects) -> Places<'a> {
        let executable = objects.executable();
        let of_libc = |o: &&LoadedObject| is_libc(o) || (o.is_executable() && o.is_static());
        let libc: Vec<&LoadedObject> = objects.iter().filter(of_libc).collect();
        let called = |names: &'static [&'static str]| {
            let libc = libc.iter();
            libc.flat_map(|o| names.iter().filter_map(|name| function(o, name)))
        };
        let unwinding = UNWINDING
            .iter()
            .filter_map(|name| function(executable, name));
        let starts = THREAD_STARTS
            .iter()
            .filter(|_| executable.is_static())
            .filter_map(|name| function(executable, name));
        let allocates = |o: &&LoadedObject| !is_libc(o) && function(o, "malloc").is_some();
        Places {
            objects,
            waiting: called(&FUTEX_WAITS).collect(),
            interrupted: called(&FUTEX_WAITS)
                .chain(called(&LET_SIGNALS_IN))
                .collect(),
            unwinding: unwinding.collect(),
            starts: starts.collect(),
            allocators: objects.iter().filter(allocates).collect(),
        }
    }

    /// Whether a stack that is complete began as a thread's does, and not as that of a coroutine: nobody knows how much
    /// room there is on one of those.
    fn is_threads(&self, frames: &[Frame]) -> bool {
        let in_libc = |frame: &Frame| {
            let object = self.objects.containing(frame.site());
            object.is_some_and(is_libc)
        };
        match frames {
            [.., inner, outer] => {
                let starts = |range: &Range<u64>| range.contains(&outer.site());
                (in_libc(inner) && in_libc(outer)) || self.starts.iter().any(starts)
            }
            _ => false,
        }
    }

    /// The frame, of those that are within the dynamic loader or an unwinder, where locks of theirs may be held.
    fn forbidden<'f>(&self, frames: &'f [Frame]) -> Option<&'f Frame> {
        frames.iter().find(|frame| {
            let site = frame.site();
            let object = self.objects.containing(site);
            object.is_some_and(|o| is_loader(o) || is_unwinder(o))
                || self.unwinding.iter().any(|range| range.contains(&site))
        })
    }

    /// Whether a task that sleeps in `futex` does so for the program's own sake.
    fn waits_for_program(&self, frames: &[Frame]) -> bool {
        frames.iter().take(WAIT_FRAMES).any(|frame| {
            let within = |range: &Range<u64>| range.contains(&frame.site());
            self.waiting.iter().any(within)
        })
    }

    /// The frame where a task may be within an allocator or the C library. `waits`: it does not run, but sleeps in a
    /// call that is not made with a lock of theirs held.
    fn busy<'f>(&self, frames: &'f [Frame], waits: bool) -> Option<&'f Frame> {
        let mut runs = frames.split_inclusive(|frame| frame.signal);
        let handler = runs.next().filter(|_| !waits);
        let now = handler.and_then(|run| self.unsure(run));
        // Who was interrupted by a signal goes on when the handler returns, and holds meanwhile what it held.
        now.or_else(|| {
            runs.find_map(|run| {
                let within = |frame: &&Frame| {
                    let of_function = |range: &Range<u64>| range.contains(&frame.site());
                    self.interrupted.iter().any(of_function)
                };
                let harmless = run.iter().take_while(within).count();
                self.unsure(run.get(harmless..).unwrap_or_default())
            })
        })
    }

    /// Of frames without a signal's in between, the one that is in code where locks may be held.
    fn unsure<'f>(&self, run: &'f [Frame]) -> Option<&'f Frame> {
        let object = |frame: &Frame| self.objects.containing(frame.site());
        let in_libc = |frame: &Frame| object(frame).is_some_and(is_libc);
        let own = match run.last() {
            // The kernel called the first function: a handler.
            Some(last) if last.signal => run.len().saturating_sub(1),
            // What called the task's first function is not meant. `_start` is the outermost, and not the C library's.
            _ => {
                let outer = run.iter().rev().skip(1).take_while(|f| in_libc(f)).count();
                run.len().saturating_sub(outer).saturating_sub(1)
            }
        };
        let unsure = |frame: &&Frame| match object(frame) {
            Some(object) => {
                is_libc(object)
                    || object.is_static()
                    || self.allocators.iter().any(|o| std::ptr::eq(*o, object))
            }
            // A patch's.
            None => false,
        };
        run.iter().take(own).find(unsure)
    }
}

impl Engine {
    /// Stops a task that is in a safe place, as soon as there is one. `purpose` begins the refusal: what can't be done
    /// without.
    ///
    /// # Errors
    /// [`Error::NoSafeTask`]; [`Error::Filtered`].
    pub(super) fn safe_task(
        &mut self,
        objects: &Objects,
        purpose: &str,
    ) -> Result<Box<Stopped>, Error> {
        self.prepare_unwinds()?;
        let places = Places::of(objects);
        let deadline = Instant::now() + SEARCH;
        loop {
            match self.look_for_safe_task(objects, &places)? {
                Ok(stopped) => return Ok(stopped),
                Err(obstacle) if Instant::now() >= deadline => {
                    let pid = self.process.pid;
                    return Err(match obstacle {
                        Obstacle::Filtered(tid) => Error::Filtered { pid, tid },
                        Obstacle::Doubt(why) => no_safe_task(pid, purpose, why),
                    });
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// The task that could be asked right now, or what is in the way, of one of them; nobody is asked to do anything.
    pub(super) fn safe_task_now(
        &mut self,
        objects: &Objects,
    ) -> Result<Result<i32, String>, Error> {
        let found = self.look_for_safe_task(objects, &Places::of(objects))?;
        Ok(found
            .map(|stopped| stopped.tid)
            .map_err(|obstacle| match obstacle {
                Obstacle::Filtered(tid) => {
                    format!("task {tid} has a seccomp filter, which livegraft may not suspend")
                }
                Obstacle::Doubt(why) => why,
            }))
    }

    /// One look at all tasks.
    fn look_for_safe_task(
        &mut self,
        objects: &Objects,
        places: &Places<'_>,
    ) -> Result<Result<Box<Stopped>, Obstacle>, Error> {
        let mut why = Obstacle::Doubt(String::from("it has none that can be stopped"));
        let tasks = self.process.tasks()?.tasks;
        let own = tasks.into_iter().filter(|t| t.pid == self.process.pid);
        let mut candidates: Vec<(u32, Task)> =
            own.map(|task| (remote::suitability(&task), task)).collect();
        candidates.retain(|&(suitability, _)| suitability < u32::MAX);
        candidates.sort_unstable();
        for (_, task) in candidates.into_iter().take(MOST_TASKS) {
            let options = remote::options(task);
            let stopped = match self.tracer.stop(task, options) {
                Stopping::Stopped(stopped) => stopped,
                // Nobody else traces it: it is the filter that we may not suspend.
                Stopping::Denied(0) if options & sys::O_SUSPEND_SECCOMP != 0 => {
                    why = Obstacle::Filtered(task.tid);
                    continue;
                }
                _ => continue,
            };
            match self.doubt(&stopped, places) {
                None => return Ok(Ok(stopped)),
                Some((doubt, site)) => {
                    drop(stopped);
                    if let Obstacle::Doubt(why) = &mut why {
                        *why = spoken(objects, task, doubt, site);
                    }
                }
            }
        }
        Ok(Err(why))
    }

    /// Why a stopped task may hold a lock that an unwinder, the dynamic loader or an allocator wants; `None` when it
    /// certainly holds none. With an address in the code that is to blame.
    fn doubt(
        &mut self,
        stopped: &Stopped,
        places: &Places<'_>,
    ) -> Option<(&'static str, Option<u64>)> {
        let regs = &stopped.regs;
        let block = regs.fs_base..regs.fs_base.saturating_add(THREAD_BLOCK);
        if !sys::robust_list(stopped.tid).is_some_and(|list| block.contains(&list)) {
            return Some(("is no thread of the GNU C library", None));
        }
        let stack = self.unwind(regs);
        if !stack.complete {
            let last = stack.frames.last().map(Frame::site);
            return Some(("has a stack that can't be unwound beyond", last));
        }
        let frames = stack.frames.as_slice();
        if !self.is_on_its_stack(stopped, frames, places) {
            return Some(("is not on its thread's stack", None));
        }
        if let Some(frame) = places.forbidden(frames) {
            return Some(("is in", Some(frame.site())));
        }
        let waits =
            arch::waits(regs) || (arch::waits_in_futex(regs) && places.waits_for_program(frames));
        let busy = places.busy(frames, waits)?;
        let interrupted = frames
            .iter()
            .take_while(|frame| *frame != busy)
            .any(|frame| frame.signal);
        match interrupted {
            true => Some(("is in a signal handler that interrupted", Some(busy.site()))),
            false => Some(("is in", Some(busy.site()))),
        }
    }

    /// Whether a task runs on the stack that it was begun with.
    fn is_on_its_stack(&self, stopped: &Stopped, frames: &[Frame], places: &Places<'_>) -> bool {
        let Some(outermost) = frames.last() else {
            return false;
        };
        let sp = stopped.regs.rsp;
        let Ok(stack) = self.process.mapping_at(sp) else {
            return false;
        };
        // The program's first task: its first frame is where the kernel let it begin.
        let stat = Stat::read(&self.process.live().join("stat"));
        let first = stat.is_some_and(|stat| {
            (outermost.low..=outermost.high.saturating_add(16)).contains(&stat.start_stack)
                && (stack.0..stack.1).contains(&outermost.low)
        });
        // A thread's stack ends below its thread control block.
        let end = stopped.regs.fs_base;
        let below = outermost.high <= end && sp < end && end < stack.1;
        first || (below && places.is_threads(frames))
    }
}

/// Makes that task call functions. `errno`: of [`errno_offset`], which takes too long to be asked while a task stands still.
///
/// # Errors
/// [`Error::NoSafeTask`].
pub(super) fn caller<'a>(
    process: &'a Process,
    gadgets: &Gadgets,
    stopped: Box<Stopped>,
    errno: Option<i64>,
    purpose: &str,
) -> Result<Caller<'a>, Error> {
    let (pid, tid) = (process.pid, stopped.tid);
    Caller::new(process, gadgets, stopped, errno).map_err(|(why, stopped)| {
        drop(stopped);
        no_safe_task(pid, purpose, format!("task {tid}: {why}"))
    })
}

fn no_safe_task(pid: i32, purpose: &str, why: String) -> Error {
    let purpose = purpose.to_owned();
    Error::NoSafeTask { pid, purpose, why }
}

/// One task, and why it is in no safe place, in words.
fn spoken(objects: &Objects, task: Task, doubt: &str, site: Option<u64>) -> String {
    let place = site.map(|site| match objects.containing(site) {
        Some(object) => match object.symbolize(site) {
            Some((function, _)) => format!(" {function} ({})", object.name()),
            None => format!(" {}", object.name()),
        },
        None => format!(" {site:#x}"),
    });
    format!(
        "task {} ({}) {doubt}{}",
        task.tid,
        task.name(),
        place.unwrap_or_default()
    )
}

/// Where the C library keeps errno, from the thread pointer on.
pub(super) fn errno_offset(objects: &Objects, memory: &crate::memory::Memory) -> Option<i64> {
    let libc = objects.iter().find(|o| is_libc(o)).map(LoadedObject::name);
    match Resolver::new(objects, memory).livepatch(libc, "errno", 0) {
        Ok(Value::Tls { tp_offset, .. }) => tp_offset,
        _ => None,
    }
}
