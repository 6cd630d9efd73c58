//! Waiting until nobody stands in padding.
//!
//! An entry of which the first instruction is short jumps to padding near by, and from there on. When it is taken back, a
//! task may be between the two jumps; so the entry is put back first, then every task is seen outside of the padding,
//! and then that is put back.

use super::Engine;
use crate::error::Error;
use crate::process::Task;
use crate::stack::{self, Ranges, Watched};
use crate::tracer::Stopping;
use livegraft_model::{
    Listing, Look, Outcome, Pause, Standing, Target, UniverseId, Verdict, Visit, converge,
};
use std::time::{Duration, Instant};

/// A task that is longer in the padding was stopped or interrupted there.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_micros(50);

/// The tasks, some of which may be in the padding. They are led nowhere: who is outside has arrived.
struct Leaving<'a> {
    engine: &'a mut Engine,
    watched: Watched,
    deadline: Instant,
}

const OUTSIDE: UniverseId = UniverseId(0);
const INSIDE: UniverseId = UniverseId(1);

impl Engine {
    /// Whether every task was seen outside of the padding, which nobody enters any more. A task that a signal handler
    /// interrupted there is inside.
    pub(super) fn is_padding_left(&mut self, padding: Ranges) -> Result<bool, Error> {
        let mut leaving = Leaving {
            engine: self,
            watched: Watched {
                replaced: Ranges::default(),
                entering: padding,
            },
            deadline: Instant::now() + PATIENCE,
        };
        let outcome = converge(&mut leaving, OUTSIDE, false)?;
        self.tracer.release_late();
        Ok(outcome == Outcome::Complete)
    }
}

impl Target for Leaving<'_> {
    type Task = Task;
    type Error = Error;

    fn tasks(&mut self) -> Result<Listing<Task>, Error> {
        self.engine.process.tasks()
    }

    fn visit(
        &mut self,
        task: Task,
        judge: &mut dyn FnMut(Standing, Look) -> Verdict,
    ) -> Result<Visit, Error> {
        let stopped = match self.engine.tracer.stop(task, 0) {
            Stopping::Stopped(stopped) => stopped,
            Stopping::Gone => return Ok(Visit::Gone),
            Stopping::Late | Stopping::Denied(_) => return Ok(Visit::Unstoppable),
        };
        let regs = stopped.regs;
        if regs.rip == 0 && regs.rsp == 0 {
            return Ok(Visit::Gone);
        }
        let restorers = &self.engine.gadgets.restorers;
        let switching = Ranges::default();
        let process = &self.engine.process;
        let found = stack::check(process, &regs, restorers, &self.watched, &switching);
        drop(stopped);
        let Ok(found) = found else {
            return Ok(Visit::Unstoppable);
        };
        let inside = !found.hits.is_empty();
        let look = Look {
            holds_replaced: inside,
            mid_switch: inside,
        };
        let standing = Standing::In(if inside { INSIDE } else { OUTSIDE });
        Ok(Visit::Judged(judge(standing, look)))
    }

    fn has_run(&mut self, _task: Task) -> bool {
        true
    }

    fn pause(&mut self, _round: u32, _settled: usize, _busy: usize) -> Result<Pause, Error> {
        if Instant::now() > self.deadline {
            return Ok(Pause::Expired);
        }
        std::thread::sleep(PAUSE);
        Ok(Pause::GoOn)
    }
}
