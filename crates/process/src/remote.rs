//! Remote calls: system calls that a task of the target makes for us.
//!
//! A task that is stopped is given the registers of a call at a `syscall; ret` and a stack pointer below its red zone,
//! where a signal frame with its own complete context waits behind the address of the C library's `rt_sigreturn`
//! trampoline. If we die at any moment, the task makes at most that one call and returns into its own context.

mod function;

pub use function::{Caller, Unfinished};

use crate::arch::{self, nr};
use crate::error::Error;
use crate::object::Mapping;
use crate::process::{Process, Task};
use crate::sys::{self, Stop};
use crate::tracer::{Stopped, Stopping, Tracer};
use std::io;
use std::time::Duration;

const CALL_BOUND: Duration = Duration::from_secs(5);
/// A call that stops more often is given up.
const MOST_STOPS: usize = 1000;
/// Room below the frame, for what calls read.
const BELOW_FRAME: u64 = 256;
/// So much of a stack is searched for a signal frame.
const SEARCHED: u64 = 1 << 20;
const SCAN_LIMIT: u64 = 16 << 20;

/// Code of the target that remote calls and the stack check need.
#[derive(Debug, Clone, Default)]
pub struct Gadgets {
    syscall: u64,
    restorer: u64,
    keeper: Option<arch::Keeper>,
    /// All `rt_sigreturn` trampolines of the C library: a word on a stack that equals one marks a signal frame.
    pub restorers: Vec<u64>,
}

impl Gadgets {
    /// Address of a `syscall; ret`; 0 when there is none.
    pub fn syscall(&self) -> u64 {
        self.syscall
    }

    /// Whether there is code that keeps what a function returns.
    pub fn can_ask(&self) -> bool {
        self.keeper.is_some()
    }

    /// Looks for them in the dynamic loader and the C library.
    pub fn find(process: &Process, maps: &[Mapping]) -> Option<Gadgets> {
        let code: Vec<&Mapping> = maps
            .iter()
            .filter(|mapping| mapping.exec && mapping.inode != 0)
            .collect();
        let library: Vec<&Mapping> = code.iter().copied().filter(|m| is_c_library(m)).collect();
        // A static program has its C library in it.
        let code = if library.is_empty() { code } else { library };
        let mut found = Gadgets::default();
        for mapping in code {
            let length = mapping.end.saturating_sub(mapping.start).min(SCAN_LIMIT);
            let Ok(code) = process.memory.read_vec(mapping.start, length as usize) else {
                continue;
            };
            if found.syscall == 0
                && let Some(at) = memchr::memmem::find(&code, &arch::SYSCALL_GADGET)
            {
                found.syscall = mapping.start + at as u64;
            }
            found.keeper = found
                .keeper
                .or_else(|| arch::Keeper::find(mapping.start, &code));
            let all = memchr::memmem::find_iter(&code, &arch::RESTORER);
            found
                .restorers
                .extend(all.map(|at| mapping.start + at as u64));
        }
        found.restorer = *found.restorers.first()?;
        (found.syscall != 0).then_some(found)
    }
}

/// Whether a mapping is of the C library or the dynamic loader, by its file's name.
pub(crate) fn is_c_library(mapping: &Mapping) -> bool {
    const NAMES: [&str; 7] = [
        "ld-linux",
        "ld-2",
        "ld.so",
        "libc.so",
        "libc-",
        "libpthread",
        "ld-musl",
    ];
    let path = mapping.path.as_deref();
    let name = path.and_then(|path| path.file_name()?.to_str());
    name.is_some_and(|name| NAMES.iter().any(|prefix| name.starts_with(prefix)))
}

/// A task that makes calls for us, until it is dropped.
#[derive(Debug)]
pub struct Host<'a> {
    process: &'a Process,
    gadgets: &'a Gadgets,
    task: Box<Stopped>,
    mask: u64,
    frame: u64,
}

/// How a task must be seized that makes calls: filters, which are a task's own, do not judge them.
pub fn options(task: Task) -> i64 {
    let mode = crate::process::status_field(&task.dir(), "Seccomp");
    let filtered = mode.is_some_and(|mode| mode != "0");
    sys::O_TRACESYSGOOD | if filtered { sys::O_SUSPEND_SECCOMP } else { 0 }
}

/// How well a task would do: lower is better.
pub fn suitability(task: &Task) -> u32 {
    let Ok(text) = crate::process::read_proc(&task.dir().join("syscall")) else {
        return u32::MAX;
    };
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_ascii_whitespace();
    let parse = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    match words.next().map(|number| (number, number.parse::<u64>())) {
        // An untimed futex: the kernel restarts it without any record of its own.
        Some((_, Ok(nr::FUTEX))) => match words.nth(3).and_then(parse) {
            Some(0) => 0,
            _ => 2,
        },
        // If we die during the call, what it was sleeping in ends with EINTR: it can't be restarted a second time.
        Some((_, Ok(nr::RESTART_SYSCALL))) => 4,
        Some((_, Ok(_))) => 1,
        Some(("running", _)) => 3,
        _ => u32::MAX,
    }
}

/// The lowest address that may be written on a task's stack. On an alternate signal stack that is its own begin, which
/// the handler's frame names: what lies below it may be anything. Any other stack is as good as the kernel finds it when
/// it delivers a signal, for which it needs as much room as we do.
fn lowest_of_stack(process: &Process, gadgets: &Gadgets, regs: &sys::Registers) -> Option<u64> {
    let (low, high) = process.mapping_at(regs.rsp).ok()?;
    let end = high.min(regs.rsp.saturating_add(SEARCHED));
    let from = regs.rsp & !7;
    let len = usize::try_from(end.checked_sub(from)?).ok()?;
    let stack = process.memory.read_vec(from, len).ok()?;
    let words = stack
        .chunks_exact(8)
        .map(|word| word.try_into().map(u64::from_le_bytes));
    let frames = (from..)
        .step_by(8)
        .zip(words.map(Result::unwrap_or_default))
        .filter(|(_, word)| gadgets.restorers.contains(word));
    let alternate = frames.filter_map(|(at, _)| {
        let (start, size) = arch::alternate_stack(at, |at| process.memory.read_u64(at).ok())?;
        (start..=start.saturating_add(size))
            .contains(&regs.rsp)
            .then_some(start)
    });
    Some(alternate.fold(low, u64::max))
}

/// Writes the frame, with so much room below it; returns the task's signal mask and the frame's address.
fn prepare(
    process: &Process,
    gadgets: &Gadgets,
    task: &Stopped,
    room: u64,
) -> Result<(u64, u64), &'static str> {
    let regs = &task.regs;
    if !arch::is_64_bit(regs) || regs.rip == 0 {
        return Err("it runs no 64-bit user code");
    }
    if let Some(area) = sys::rseq_area(task.tid)
        && process.memory.read_u64(area.wrapping_add(8)).unwrap_or(1) != 0
    {
        return Err("it is in a restartable sequence");
    }
    let xstate =
        sys::extended_state(task.tid).map_err(|_| "its floating point state can't be read")?;
    if arch::uses_amx(&xstate) {
        return Err("it uses AMX tiles");
    }
    let mask = sys::signal_mask(task.tid).map_err(|_| "its signal mask can't be read")?;
    let (frame, bytes) = arch::frame(regs, mask, &xstate, gadgets.restorer)
        .ok_or("its floating point state can't be kept")?;
    let lowest = lowest_of_stack(process, gadgets, regs).ok_or("it has no stack")?;
    if frame.saturating_sub(room) < lowest {
        return Err("its stack is nearly full");
    }
    process
        .memory
        .write(frame, &bytes)
        .map_err(|_| "its stack can't be written")?;
    Ok((mask, frame))
}

impl<'a> Host<'a> {
    /// Stops a task that can make calls, the best that there is.
    ///
    /// # Errors
    /// [`Error::NoHost`]; [`Error::Exited`].
    pub fn find(
        process: &'a Process,
        gadgets: &'a Gadgets,
        tracer: &'a mut Tracer,
    ) -> Result<Host<'a>, Error> {
        let mut why = String::from("it has no task that is suitable");
        let mut filtered = None;
        for _ in 0..50 {
            let mut candidates = Vec::new();
            for task in process.some_tasks()? {
                let suitability = suitability(&task);
                if suitability < u32::MAX {
                    candidates.push((suitability, task));
                }
                if suitability == 0 || candidates.len() >= 64 {
                    break;
                }
            }
            candidates.sort_unstable();
            for (_, task) in candidates {
                let options = options(task);
                let suspends = options & sys::O_SUSPEND_SECCOMP != 0;
                let stopped = match tracer.stop(task, options) {
                    Stopping::Stopped(stopped) => stopped,
                    Stopping::Gone => continue,
                    // Nobody else traces it, and it was stopped before: it is the filter that we may not suspend.
                    Stopping::Denied(0) if suspends => {
                        filtered = Some(task.tid);
                        continue;
                    }
                    Stopping::Late => {
                        why = format!("task {} does not stop", task.tid);
                        continue;
                    }
                    Stopping::Denied(_) => {
                        why = format!("task {} can't be seized", task.tid);
                        continue;
                    }
                };
                match Host::new(process, gadgets, stopped) {
                    Ok(host) => return Ok(host),
                    Err((reason, _)) => why = format!("task {}: {reason}", task.tid),
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = process.pid;
        Err(match filtered {
            Some(tid) => Error::Filtered { pid, tid },
            None => Error::NoHost { pid, why },
        })
    }

    /// Makes a stopped task the host, or gives it back with the reason why it can't be.
    ///
    /// # Errors
    /// In words.
    pub fn new(
        process: &'a Process,
        gadgets: &'a Gadgets,
        task: Box<Stopped>,
    ) -> Result<Host<'a>, (&'static str, Box<Stopped>)> {
        match prepare(process, gadgets, &task, BELOW_FRAME) {
            Ok((mask, frame)) => Ok(Host {
                process,
                gadgets,
                task,
                mask,
                frame,
            }),
            Err(reason) => Err((reason, task)),
        }
    }

    /// Puts bytes where calls can read them until the host is dropped; returns their address.
    ///
    /// # Errors
    /// [`Error::Io`]: the stack is full.
    pub fn place(&self, bytes: &[u8]) -> Result<u64, Error> {
        let at = self.frame.wrapping_sub(BELOW_FRAME) & !15;
        if bytes.len() as u64 > BELOW_FRAME {
            return Err(Error::io("writing to a stack")(
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        self.process
            .memory
            .write(at, bytes)
            .map_err(Error::io("writing to a stack"))?;
        Ok(at)
    }

    /// Reads what a call has written to where bytes were placed.
    ///
    /// # Errors
    /// [`Error::Io`]: the process has left this memory.
    pub fn read_placed<const N: usize>(&self, at: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        let read = self.process.memory.read(at, &mut bytes);
        read.map(|()| bytes).map_err(Error::io("reading a stack"))
    }

    /// Makes one system call and returns what it returned.
    ///
    /// # Errors
    /// [`Error::RemoteCall`] with `what` when the kernel refuses; [`Error::Exited`] when the task is gone.
    pub fn call(&mut self, what: &str, number: u64, args: [u64; 6]) -> Result<u64, Error> {
        let pid = self.process.pid;
        let result = self.perform(number, args).map_err(|_| Error::Exited(pid))? as i64;
        if (-4095..0).contains(&result) {
            let source = io::Error::from_raw_os_error(-result as i32);
            return Err(Error::RemoteCall {
                pid,
                what: what.to_owned(),
                source,
            });
        }
        Ok(result as u64)
    }

    fn perform(&mut self, number: u64, args: [u64; 6]) -> io::Result<u64> {
        let tid = self.task.tid;
        let gadget = self.gadgets.syscall;
        sys::set_registers(
            tid,
            &arch::prepare_call(&self.task.regs, gadget, self.frame),
        )?;
        sys::set_signal_mask(tid, u64::MAX)?;
        // To the entry of the call, then to its exit. A group stop may come between, and a SIGSTOP, which no mask keeps
        // away: it is passed on, and the task takes part in the stop once it is let go.
        let (mut at_exit, mut pass_on) = (false, 0);
        for _ in 0..MOST_STOPS {
            sys::resume_to_syscall(tid, std::mem::take(&mut pass_on))?;
            match self.task.wait(CALL_BOUND)? {
                Some(Stop::Syscall) if at_exit => return Ok(sys::registers(tid)?.rax),
                // As late as can be: if we die from here on, a filter judges the call.
                Some(Stop::Syscall) => {
                    let mut regs = sys::registers(tid)?;
                    arch::replace_call(&mut regs, self.frame, number, args);
                    sys::set_registers(tid, &regs)?;
                    at_exit = true;
                }
                Some(Stop::Signal(libc::SIGSTOP)) => pass_on = libc::SIGSTOP,
                Some(Stop::Event | Stop::Other | Stop::Signal(_)) => {}
                Some(Stop::Exited) | None => break,
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn finish(&mut self) -> io::Result<()> {
        let tid = self.task.tid;
        to_event_stop(&mut self.task)?;
        sys::set_signal_mask(tid, self.mask)?;
        self.task.restore()
    }
}

/// Back to an event stop, where the kernel looks again whether a call is to be restarted.
fn to_event_stop(task: &mut Stopped) -> io::Result<()> {
    let tid = task.tid;
    sys::interrupt(tid)?;
    sys::resume(tid, 0)?;
    loop {
        match task.wait(CALL_BOUND)? {
            Some(Stop::Event) => return Ok(()),
            Some(Stop::Signal(signal)) => sys::resume(tid, signal)?,
            Some(Stop::Syscall | Stop::Other) => sys::resume(tid, 0)?,
            Some(Stop::Exited) | None => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // When this fails the task is gone.
        let _ = self.finish();
    }
}
