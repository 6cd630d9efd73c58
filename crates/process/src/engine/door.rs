//! Where tasks can't set their gs base themselves (no FSGSBASE): a busy task waits a moment at its next call of a replaced
//! function that finds its stack clean, so that a visit can move it. A task that sleeps within a function, and calls it
//! again as soon as it has returned, would hardly ever be met outside of it otherwise.

use super::Engine;
use crate::arch::{self, AtCall, SWITCH_HEADER, WAITING_WORDS};
use crate::error::Error;
use crate::process::{Task, status_field};
use crate::state::Purpose;
use crate::sys::{self, Registers};
use std::ops::Range;
use std::time::Duration;

/// How long tasks go on waiting when the controller does not put that off, in ticks of the time stamp counter: 50 ms at
/// 5 GHz.
const OPEN: u64 = 1 << 28;
/// How often it is put off.
pub(super) const REMIND: Duration = Duration::from_millis(10);
/// Offset of the time in the header (`gs_to`).
const UNTIL: u64 = 8;

/// How tasks leave the old version on this machine.
pub(super) fn at_call() -> AtCall {
    if sys::has_fsgsbase() {
        AtCall::Switch
    } else {
        AtCall::Wait
    }
}

/// Until when tasks may wait that are told so now.
pub(super) fn until() -> u64 {
    sys::time_stamp().saturating_add(OPEN)
}

/// Whether a task must not be told to wait: in seccomp's strict mode it can't read the time stamp counter.
pub(super) fn has_no_clock(task: Task) -> bool {
    status_field(&task.dir(), "Seccomp").is_none_or(|mode| mode == "1")
}

impl Engine {
    /// Where tasks wait in each stub; empty where a stub is not as we would write it, and nobody must be sent there.
    pub(super) fn waiting_places(&self) -> Vec<Range<u64>> {
        let Ok(stub) = arch::stub(self.state.low, AtCall::Wait) else {
            return Vec::new();
        };
        let mut places = Vec::new();
        for region in &self.state.regions {
            if region.purpose == Purpose::Trampolines && region.reachable {
                match self.memory().read_vec(region.start, stub.code.len()) {
                    Ok(code) if code == stub.code => {}
                    _ => return Vec::new(),
                }
                let at = |offset| region.start.saturating_add(offset);
                places.push(at(stub.waiting.start)..at(stub.waiting.end));
            }
        }
        places
    }

    /// The registers of a task that waits as they were when it called: it is at the function's entry, and neither the
    /// stub's frame nor the red zone below the return address are of its stack.
    pub(super) fn before_waiting(
        &self,
        places: &[Range<u64>],
        regs: &Registers,
    ) -> Option<Registers> {
        places.iter().find(|place| place.contains(&regs.rip))?;
        let mut words = [0; WAITING_WORDS];
        for (at, word) in (regs.rsp..).step_by(8).zip(&mut words) {
            *word = self.memory().read_u64(at).ok()?;
        }
        let (mut before, thunk) = arch::before_waiting(regs, &words);
        let mut entries = self.state.entries.iter();
        before.rip = entries.find(|entry| entry.thunk == thunk)?.at;
        Some(before)
    }

    /// The task with this gs base may wait at its calls a while longer.
    pub(super) fn keep_waiting(&self, gs: u64) -> Result<(), Error> {
        let header = gs
            .wrapping_add(self.state.low)
            .wrapping_sub(SWITCH_HEADER)
            .wrapping_add(UNTIL);
        self.write(header, &until().to_le_bytes())
    }
}
