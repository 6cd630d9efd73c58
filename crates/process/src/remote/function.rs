//! Remote calls of functions: what a task of the target calls for us, in its own libc.
//!
//! As with a system call the task is given the registers of the call and a stack below its red zone. The function's
//! return address is the C library's `rt_sigreturn` trampoline, and what follows is a signal frame with the task's own
//! context: if we die, the task finishes the function and then goes on where it was. All signals are blocked meanwhile
//! but those of faults: for a fault whose signal is blocked the kernel forgets the program's handler.
//!
//! What a function returns would be lost in the trampoline. Where it matters the function returns to a few instructions
//! of the C library before, which store it on the stack, below the frame ([`arch::Keeper`]).
//!
//! Which task may call what is for the caller to know: one that holds a lock which the function takes never returns.

use super::{CALL_BOUND, Gadgets, MOST_STOPS, prepare, to_event_stop};
use crate::arch::{self, Keeper};
use crate::process::Process;
use crate::sys::{self, Stop};
use crate::tracer::Stopped;
use std::io;
use std::time::{Duration, Instant};

/// Room that a function gets on the stack.
const FUNCTION_ROOM: u64 = 16 * 1024;

/// For so long a function that decides something may think.
const DECISION_BOUND: Duration = Duration::from_secs(1);
/// The signals of faults.
const FAULTS: [i32; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// Why a call came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished {
    /// It takes too long: the task goes on with it on its own.
    Late,
    /// It caused this signal, which was not delivered.
    Faulted(i32),
    /// The task is gone.
    Gone,
}

/// A task that calls functions for us, until it is dropped.
#[derive(Debug)]
pub struct Caller<'a> {
    process: &'a Process,
    restorer: u64,
    keeper: Option<Keeper>,
    task: Box<Stopped>,
    mask: u64,
    frame: u64,
    extended: Vec<u8>,
    /// Address and value of the task's errno.
    errno: Option<(u64, Vec<u8>)>,
    /// It is on its own with a call that did not end, or gone.
    lost: bool,
}

impl<'a> Caller<'a> {
    /// Makes a stopped task call functions, or gives it back with the reason why it can't. `errno`: offset of that
    /// variable from the thread pointer.
    ///
    /// # Errors
    /// In words.
    pub fn new(
        process: &'a Process,
        gadgets: &Gadgets,
        task: Box<Stopped>,
        errno: Option<i64>,
    ) -> Result<Caller<'a>, (&'static str, Box<Stopped>)> {
        let Ok(extended) = sys::extended_state(task.tid) else {
            return Err(("its floating point state can't be read", task));
        };
        let errno = errno.and_then(|offset| {
            let at = task.regs.fs_base.wrapping_add_signed(offset);
            Some((at, process.memory.read_vec(at, 4).ok()?))
        });
        match prepare(process, gadgets, &task, FUNCTION_ROOM) {
            Ok((mask, frame)) => Ok(Caller {
                process,
                restorer: gadgets.restorer,
                keeper: gadgets.keeper,
                task,
                mask,
                frame,
                extended,
                errno,
                lost: false,
            }),
            Err(reason) => Err((reason, task)),
        }
    }

    /// Calls a function that returns nothing. One that takes too long is left to the task.
    ///
    /// # Errors
    /// [`Unfinished`]; no more calls can be made then, unless it was a fault.
    pub fn call(&mut self, function: u64, args: [u64; 6]) -> Result<(), Unfinished> {
        if self.lost {
            return Err(Unfinished::Gone);
        }
        let regs = arch::prepare_function_call(&self.task.regs, function, self.frame, args);
        let outcome = self.perform(&regs, CALL_BOUND);
        match outcome {
            Err(Unfinished::Late) => self.let_go(),
            Err(Unfinished::Gone) => self.lost = true,
            Ok(()) | Err(Unfinished::Faulted(_)) => {}
        }
        outcome
    }

    /// Calls a function that takes nothing, decides something, and holds nothing while it does: one that takes too long
    /// is broken off. `None`: the C library has no code that keeps what it returns.
    ///
    /// # Errors
    /// [`Unfinished`]; after [`Unfinished::Gone`] no more calls can be made.
    pub fn ask(&mut self, function: u64) -> Option<Result<u64, Unfinished>> {
        let keeper = self.keeper?;
        if self.lost {
            return Some(Err(Unfinished::Gone));
        }
        let (regs, words, kept) = keeper.prepare(&self.task.regs, function, self.frame);
        let memory = &self.process.memory;
        let outcome = memory
            .write(regs.rsp, &words)
            .map_err(|_| Unfinished::Gone)
            .and_then(|()| self.perform(&regs, DECISION_BOUND))
            .and_then(|()| memory.read_u64(kept).map_err(|_| Unfinished::Gone));
        match outcome {
            Err(Unfinished::Late) => self.break_off(),
            Err(Unfinished::Gone) => self.lost = true,
            Ok(_) | Err(Unfinished::Faulted(_)) => {}
        }
        Some(outcome)
    }

    /// The mask during a call: a signal of a fault that waits already would be taken for the function's.
    fn call_mask(&self) -> io::Result<u64> {
        const MOST: u64 = 4096;
        let mut waiting = sys::pending_signals(self.task.tid, false, MOST)?;
        waiting.extend(sys::pending_signals(self.task.tid, true, MOST)?);
        let waits = |signal: i32| waiting.iter().any(|info| info[0] as u32 == signal as u32);
        let open = FAULTS.iter().filter(|&&signal| !waits(signal));
        Ok(open.fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1))))
    }

    fn perform(&mut self, regs: &sys::Registers, bound: Duration) -> Result<(), Unfinished> {
        let tid = self.task.tid;
        let gone = |_: io::Error| Unfinished::Gone;
        let mask = self.call_mask().map_err(gone)?;
        // In this order: if we die in between, the frame puts the mask back, which nobody else would.
        sys::set_registers(tid, regs).map_err(gone)?;
        sys::set_signal_mask(tid, mask).map_err(gone)?;
        let deadline = Instant::now() + bound;
        let mut pass_on = 0;
        for _ in 0..MOST_STOPS {
            sys::resume_to_syscall(tid, std::mem::take(&mut pass_on)).map_err(gone)?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.task.wait(left).map_err(gone)? {
                // A call that the function makes, or the end of one.
                Some(Stop::Syscall) => {
                    let regs = sys::registers(tid).map_err(gone)?;
                    if arch::has_returned(&regs, self.frame) {
                        let parked = arch::before_return(&regs, self.restorer);
                        return sys::set_registers(tid, &parked).map_err(gone);
                    }
                }
                // No mask keeps it away: the task takes part in the stop once it is let go.
                Some(Stop::Signal(libc::SIGSTOP)) => pass_on = libc::SIGSTOP,
                // Somebody has sent it, and the program gets it as it would have.
                Some(Stop::Signal(signal)) if sys::was_sent(tid) => pass_on = signal,
                // All others are blocked: it is the function's own fault.
                Some(Stop::Signal(signal)) => return Err(Unfinished::Faulted(signal)),
                Some(Stop::Event | Stop::Other) => {}
                Some(Stop::Exited) => return Err(Unfinished::Gone),
                None => return Err(Unfinished::Late),
            }
        }
        Err(Unfinished::Late)
    }

    /// Stops the task in the middle of its call, so that it can be put back to where it was.
    fn break_off(&mut self) {
        let tid = self.task.tid;
        let mut pass_on = 0;
        let _ = sys::interrupt(tid);
        for _ in 0..MOST_STOPS {
            match self.task.wait(CALL_BOUND) {
                Ok(Some(Stop::Event)) => return,
                Ok(Some(Stop::Syscall | Stop::Other)) => {}
                Ok(Some(Stop::Signal(signal))) if signal == libc::SIGSTOP || sys::was_sent(tid) => {
                    pass_on = signal;
                }
                // A fault at the last moment.
                Ok(Some(Stop::Signal(_))) => return,
                Ok(Some(Stop::Exited) | None) | Err(_) => break,
            }
            let _ = sys::resume(tid, std::mem::take(&mut pass_on));
        }
        self.lost = true;
    }

    /// Leaves the task to its call: it returns into its own context when that ends.
    fn let_go(&mut self) {
        const STOPPING: Duration = Duration::from_millis(100);
        let tid = self.task.tid;
        self.lost = true;
        let _ = sys::interrupt(tid);
        for _ in 0..MOST_STOPS {
            match self.task.wait(STOPPING) {
                Ok(Some(Stop::Syscall | Stop::Other)) => drop(sys::resume(tid, 0)),
                Ok(Some(Stop::Signal(signal))) => drop(sys::resume(tid, signal)),
                // One that does not stop is let go when we end.
                Ok(Some(Stop::Event | Stop::Exited) | None) | Err(_) => return,
            }
        }
    }

    /// Back to an event stop, where the kernel looks again whether a call is to be restarted, and to all that was.
    fn finish(&mut self) -> io::Result<()> {
        let tid = self.task.tid;
        to_event_stop(&mut self.task)?;
        if let Some((at, value)) = &self.errno {
            self.process.memory.write(*at, value)?;
        }
        sys::set_extended_state(tid, &self.extended)?;
        sys::set_signal_mask(tid, self.mask)?;
        self.task.restore()
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.lost {
            self.task.forsake();
        } else {
            // When this fails the task is gone.
            let _ = self.finish();
        }
    }
}
