//! Remote calls of functions: what a task of the target calls for us, in its own libc.
//!
//! As with a system call the task is given the registers of the call and a stack below its red zone. The function's
//! return address is the C library's `rt_sigreturn` trampoline, and what follows is a signal frame with the task's own
//! context: if we die, the task finishes the function and then goes on where it was. All signals are blocked meanwhile.
//!
//! Which task may call what is for the caller to know: one that holds a lock which the function takes never returns.

use super::{CALL_BOUND, Gadgets, MOST_STOPS, prepare, to_event_stop};
use crate::arch;
use crate::process::Process;
use crate::sys::{self, Stop};
use crate::tracer::Stopped;
use std::io;
use std::time::{Duration, Instant};

/// Room that a function gets on the stack.
const FUNCTION_ROOM: u64 = 16 * 1024;

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

    /// Calls a function that returns nothing.
    ///
    /// # Errors
    /// [`Unfinished`]; no more calls can be made then.
    pub fn call(&mut self, function: u64, args: [u64; 6]) -> Result<(), Unfinished> {
        if self.lost {
            return Err(Unfinished::Gone);
        }
        let outcome = self.perform(function, args);
        match outcome {
            Err(Unfinished::Late) => self.let_go(),
            Err(Unfinished::Gone) => self.lost = true,
            Ok(()) | Err(Unfinished::Faulted(_)) => {}
        }
        outcome
    }

    fn perform(&mut self, function: u64, args: [u64; 6]) -> Result<(), Unfinished> {
        let tid = self.task.tid;
        let gone = |_: io::Error| Unfinished::Gone;
        let regs = arch::prepare_function_call(&self.task.regs, function, self.frame, args);
        sys::set_signal_mask(tid, u64::MAX).map_err(gone)?;
        sys::set_registers(tid, &regs).map_err(gone)?;
        let deadline = Instant::now() + CALL_BOUND;
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
                // All others are blocked: it is the function's own fault.
                Some(Stop::Signal(signal)) => return Err(Unfinished::Faulted(signal)),
                Some(Stop::Event | Stop::Other) => {}
                Some(Stop::Exited) => return Err(Unfinished::Gone),
                None => return Err(Unfinished::Late),
            }
        }
        Err(Unfinished::Late)
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
