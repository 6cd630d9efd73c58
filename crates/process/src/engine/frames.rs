//! Patch code for the program's own unwinder: exceptions, pthread_cancel and backtrace() pass through code only when its
//! call frame information is found. That of objects the unwinder finds by itself; ours must be registered, by a call of
//! a function in the target, on a task that is in a place where that is safe.

use super::Engine;
use crate::arch;
use crate::error::Error;
use crate::link::{Linked, Resolver, Value};
use crate::object::{LoadedObject, Objects};
use crate::process::{Stat, Task};
use crate::remote::{self, Caller, Unfinished};
use crate::state::{Purpose, Region, State};
use crate::sys;
use crate::tracer::{Stopped, Stopping};
use crate::unwind::Frame;
use livegraft_model::PatchId;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What libgcc keeps about a registered section: six words (unwind-dw2-fde.h, `struct object`), with room to grow.
const NOTE: u64 = 64;
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

/// An unwinder of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// The object that it is in.
    object: String,
    /// Address of the function that registers a section.
    function: u64,
    /// And of that which takes it back.
    forget: Option<u64>,
}

/// Call frame information of a patch.
#[derive(Debug)]
pub(super) struct Information {
    /// Begins and ends.
    pub sections: Vec<(u64, u64)>,
    /// The unwinders that know it.
    pub told: Vec<u64>,
}

/// What a load would have a task register, and whether one could.
#[derive(Debug, Clone)]
pub struct Registering {
    /// The unwinders' objects.
    pub object: String,
    /// The task that would be asked to.
    pub task: Option<i32>,
    /// Where there is none: what is in the way, of one of them.
    pub why: Option<String>,
}

/// Which unwinders have been told, and where they keep notes.
pub(super) type Told = (Vec<u64>, Vec<u64>);

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

/// A function of an object that others can call, or of a static program.
fn function(object: &LoadedObject, name: &str) -> Option<Range<u64>> {
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

fn is_unwinder(object: &LoadedObject) -> bool {
    let name = object.name();
    name.starts_with("libgcc_s") || name.starts_with("libunwind")
}

fn is_loader(object: &LoadedObject) -> bool {
    object.name().starts_with("ld-") || object.name().starts_with("ld.so")
}

fn is_libc(object: &LoadedObject) -> bool {
    let name = object.name();
    name.starts_with("libc.") || name.starts_with("libc-") || name.starts_with("libpthread")
}

/// The unwinders that can be told of code that they don't find by themselves.
fn unwinders(objects: &Objects) -> Vec<Known> {
    let candidates = objects
        .iter()
        .filter(|o| o.is_executable() || is_unwinder(o));
    candidates
        .filter_map(|object| {
            let llvm = function(object, "__unw_add_dynamic_eh_frame_section");
            // LLVM's has functions of libgcc's names that do nothing, or something else.
            let is_llvm = llvm.is_some() || function(object, "__unw_getcontext").is_some();
            let gcc = || function(object, "__register_frame_info").filter(|_| !is_llvm);
            let forget = match is_llvm {
                true => "__unw_remove_dynamic_eh_frame_section",
                false => "__deregister_frame_info",
            };
            Some(Known {
                object: object.name().to_owned(),
                function: llvm.or_else(gcc)?.start,
                forget: function(object, forget).map(|range| range.start),
            })
        })
        .collect()
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
    /// Tells the program's unwinders of a new patch, before any task can run its code; returns who has been told, and where
    /// they keep notes about it.
    ///
    /// # Errors
    /// As [`Engine::register_again`].
    pub(super) fn register_new(
        &mut self,
        objects: &Objects,
        linked: &Linked,
        block: &Range<u64>,
        regions: &[Region],
    ) -> Result<Told, Error> {
        let of_patch = |region: &&Region| block.contains(&region.start);
        let keep: Vec<Region> = regions.iter().filter(of_patch).copied().collect();
        let sections = linked
            .eh_frames
            .iter()
            .map(|range| (range.start, range.end));
        self.register(objects, &sections.collect::<Vec<_>>(), &[], &keep)
    }

    /// Tells unwinders that have come since then of patches that are there.
    ///
    /// # Errors
    /// [`Error::NoSafeTask`]: nobody was told. [`Error::NotRegistered`]: that is not certain.
    pub(super) fn register_again(
        &mut self,
        patches: &[PatchId],
        objects: &Objects,
    ) -> Result<(), Error> {
        for &id in patches {
            let Some(image) = self.state.image(id) else {
                continue;
            };
            let (sections, told) = (image.eh_frames.clone(), image.unwinders.clone());
            let (now, notes) = self.register(objects, &sections, &told, &[])?;
            if now.is_empty() {
                continue;
            }
            let image = self.state.images.iter_mut().find(|image| image.id == id);
            if let Some(image) = image {
                image.unwinders.extend(now);
                image.notes.extend(notes);
            }
            self.commit()?;
        }
        Ok(())
    }

    /// `keep`: from the call on these may be used, so nobody may take them away.
    fn register(
        &mut self,
        objects: &Objects,
        sections: &[(u64, u64)],
        told: &[u64],
        keep: &[Region],
    ) -> Result<Told, Error> {
        let mut untold = unwinders(objects);
        untold.retain(|unwinder| !told.contains(&unwinder.function));
        let sections: Vec<u64> = sections
            .iter()
            .filter(|(start, end)| start < end)
            .map(|&(start, _)| start)
            .collect();
        if untold.is_empty() || sections.is_empty() {
            return Ok(Told::default());
        }
        self.prepare_unwinds()?;
        let notes = (untold.len() as u64).saturating_mul(sections.len() as u64);
        let len = notes.saturating_mul(NOTE).next_multiple_of(arch::PAGE);
        let region = self.plan_anywhere(len, Purpose::Frames)?;
        self.state.regions.push(region);
        self.commit()?;
        self.map(&[region])?;
        let mut calls = Vec::new();
        let mut note = region.start;
        for unwinder in &untold {
            for &section in &sections {
                calls.push((unwinder, unwinder.function, [section, note, 0, 0, 0, 0]));
                note = note.saturating_add(NOTE);
            }
        }
        // What is registered must stay, whatever becomes of us and of the load. Recorded before it is done.
        let kept: Vec<u64> = keep.iter().chain([&region]).map(|r| r.start).collect();
        let called = self.call_each(objects, &calls, &mut |state, told| {
            for region in &mut state.regions {
                region.reachable |= kept.contains(&region.start);
            }
            told.extend(&kept);
        });
        if matches!(called, Err(Error::NoSafeTask { .. })) {
            self.unmap(&[region])?;
            self.state.regions.retain(|r| r.start != region.start);
            self.commit()?;
        }
        called?;
        let told = untold.iter().map(|unwinder| unwinder.function).collect();
        Ok((told, Vec::from([region.start])))
    }

    /// Has the unwinders forget a patch whose memory is to go. `Some`: they may still know it, and why.
    ///
    /// # Errors
    /// [`Error::Exited`], and when the process can't be read.
    pub(super) fn unregister(&mut self, id: PatchId) -> Result<Option<String>, Error> {
        let Some(image) = self.state.image(id).cloned() else {
            return Ok(None);
        };
        let name = "the program's unwinder knows its call frame information";
        if image.forgetting {
            return Ok(Some(format!("{name}, for all that is recorded")));
        }
        let objects = self.objects()?;
        // One that is not there any more knows nothing.
        let mut known = unwinders(&objects);
        known.retain(|unwinder| image.unwinders.contains(&unwinder.function));
        let mut calls = Vec::new();
        for unwinder in &known {
            let Some(forget) = unwinder.forget else {
                return Ok(Some(format!("{name}, and has no way to forget it")));
            };
            let sections = image.eh_frames.iter().filter(|(start, end)| start < end);
            calls.extend(sections.map(|&(at, _)| (unwinder, forget, [at, 0, 0, 0, 0, 0])));
        }
        let forgetting = |state: &mut State, forgetting: bool| {
            let image = state.images.iter_mut().find(|image| image.id == id);
            if let Some(image) = image {
                image.forgetting = forgetting;
            }
        };
        if !calls.is_empty() {
            match self.call_each(&objects, &calls, &mut |state, _| forgetting(state, true)) {
                Ok(()) => forgetting(&mut self.state, false),
                Err(error @ (Error::NoSafeTask { .. } | Error::NotRegistered { .. })) => {
                    return Ok(Some(format!("{name} ({error})")));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Has a task make calls of unwinders' functions, as soon as there is one that can. `record` changes what is recorded
    /// before the first of them.
    fn call_each(
        &mut self,
        objects: &Objects,
        calls: &[(&Known, u64, [u64; 6])],
        record: &mut dyn FnMut(&mut State, &mut Vec<u64>),
    ) -> Result<(), Error> {
        let errno = errno_offset(objects, &self.process.memory);
        let mut unwinders: Vec<&Known> = calls.iter().map(|&(unwinder, ..)| unwinder).collect();
        unwinders.dedup();
        let stopped = self.safe_task(objects, &unwinders)?;
        let (pid, tid) = (self.process.pid, stopped.tid);
        let caller = Caller::new(&self.process, &self.gadgets, stopped, errno);
        let mut caller = caller.map_err(|(why, stopped)| {
            drop(stopped);
            no_safe_task(pid, &unwinders, format!("task {tid}: {why}"))
        })?;
        record(&mut self.state, &mut self.told);
        if let Some(registry) = &mut self.registry {
            registry
                .commit(&self.process.memory, &self.state)
                .map_err(Error::io("recording"))?;
        }
        for &(unwinder, function, arguments) in calls {
            let called = caller.call(function, arguments);
            called.map_err(|unfinished| match unfinished {
                Unfinished::Gone => Error::Exited(pid),
                Unfinished::Late | Unfinished::Faulted(_) => Error::NotRegistered {
                    pid,
                    tid,
                    object: unwinder.object.clone(),
                    late: unfinished == Unfinished::Late,
                },
            })?;
        }
        Ok(())
    }

    /// Whether a load would have a task register any of this, and which one could right now: nobody is asked to.
    pub(super) fn would_register(
        &mut self,
        objects: &Objects,
        wanted: &[Information],
    ) -> Result<Option<Registering>, Error> {
        let mut untold = unwinders(objects);
        untold.retain(|unwinder| {
            let mut unknown = wanted
                .iter()
                .filter(|information| !information.told.contains(&unwinder.function));
            unknown.any(|unknown| unknown.sections.iter().any(|(start, end)| start < end))
        });
        if untold.is_empty() {
            return Ok(None);
        }
        let object = names(&untold.iter().collect::<Vec<_>>());
        let (task, why) = match self.safe_task_now(objects, &Places::of(objects))? {
            Ok(stopped) => (Some(stopped.tid), None),
            Err(why) => (None, Some(why)),
        };
        Ok(Some(Registering { object, task, why }))
    }

    /// Stops a task that is in a place where it can call a function of an unwinder.
    fn safe_task(
        &mut self,
        objects: &Objects,
        unwinders: &[&Known],
    ) -> Result<Box<Stopped>, Error> {
        let places = Places::of(objects);
        let deadline = Instant::now() + SEARCH;
        loop {
            match self.safe_task_now(objects, &places)? {
                Ok(stopped) => return Ok(stopped),
                Err(why) if Instant::now() >= deadline => {
                    return Err(no_safe_task(self.process.pid, unwinders, why));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Stops such a task if there is one at this look; else what is in the way, of one of them.
    fn safe_task_now(
        &mut self,
        objects: &Objects,
        places: &Places<'_>,
    ) -> Result<Result<Box<Stopped>, String>, Error> {
        let mut why = String::from("it has none that can be stopped");
        let tasks = self.process.tasks()?.tasks;
        let own = tasks.into_iter().filter(|t| t.pid == self.process.pid);
        let mut candidates: Vec<(u32, Task)> =
            own.map(|task| (remote::suitability(&task), task)).collect();
        candidates.retain(|&(suitability, _)| suitability < u32::MAX);
        candidates.sort_unstable();
        for (_, task) in candidates.into_iter().take(MOST_TASKS) {
            let Stopping::Stopped(stopped) = self.tracer.stop(task, remote::options(task)) else {
                continue;
            };
            match self.doubt(&stopped, places) {
                None => return Ok(Ok(stopped)),
                Some((doubt, site)) => {
                    drop(stopped);
                    why = spoken(objects, task, doubt, site);
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
}

/// The objects that unwinders are in.
fn names(unwinders: &[&Known]) -> String {
    let objects = unwinders.iter().map(|known| known.object.as_str());
    objects.collect::<Vec<_>>().join(", ")
}

fn no_safe_task(pid: i32, unwinders: &[&Known], why: String) -> Error {
    let object = names(unwinders);
    Error::NoSafeTask { pid, object, why }
}

impl Engine {
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
fn errno_offset(objects: &Objects, memory: &crate::memory::Memory) -> Option<i64> {
    let libc = objects.iter().find(|o| is_libc(o)).map(LoadedObject::name);
    match Resolver::new(objects, memory).livepatch(libc, "errno", 0) {
        Ok(Value::Tls { tp_offset, .. }) => tp_offset,
        _ => None,
    }
}
