//! When a task that has not moved is looked at again.

use super::convergence::Convergence;
use crate::process::Task;
use crate::stack::Hit;
use std::time::{Duration, Instant};

/// A running task is left alone at least this long between two visits: less would starve it.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// A busy task that was told to switch itself is not visited more often than this.
pub(super) const LONGEST_INTERVAL: Duration = Duration::from_millis(200);
/// See [`Convergence::free_from_stub`].
pub(super) const MOST_IN_STUB: u32 = 4;
/// After time has run out, functions are looked at so many times at the most, so that a task can be told to switch itself.
pub(super) const MOST_LATE_LESSONS: u32 = 4;
/// One that can't switch itself must be met at a good moment: without `wrgsbase` nobody can, and one that has dead words
/// on its stack can't tell them from live ones.
pub(super) const SHORT_INTERVAL: Duration = Duration::from_millis(1);

/// What the loop remembers of a task that is not there yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) hit: Option<Hit>,
    /// The stack that the task was on.
    pub(super) stack: (u64, u64),
    pub(super) armed: bool,
    pub(super) at: Instant,
    pub(super) interval: Duration,
    pub(super) soon: bool,
    pub(super) dead: Dead,
    /// How often in a row it was found in the self-switch.
    pub(super) in_stub: u32,
}

/// Whether there are dead words among those that seemed to hold a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dead {
    /// Its stack can't be unwound yet, or its functions have not been looked at yet.
    Unknown,
    None,
    Some,
}

impl Convergence<'_> {
    pub(super) fn remember(
        &mut self,
        task: Task,
        hit: Option<Hit>,
        stack: (u64, u64),
        armed: bool,
        soon: bool,
        dead: Dead,
    ) {
        let longest = match dead {
            _ if !self.can_switch => self.between_chances(),
            Dead::Some => SHORT_INTERVAL,
            _ => LONGEST_INTERVAL,
        };
        let interval = match self.seen.get(&task) {
            Some(seen) if !soon => (seen.interval * 2).min(longest),
            _ => SHORTEST_PAUSE,
        };
        let seen = Seen {
            hit,
            stack,
            armed,
            at: Instant::now(),
            interval,
            soon,
            dead,
            in_stub: std::mem::take(&mut self.in_stub),
        };
        self.seen.insert(task, seen);
    }

    /// How long a task that can't switch itself is left alone. Many of them share the visits.
    fn between_chances(&self) -> Duration {
        let all = SHORT_INTERVAL.saturating_mul(self.busy.max(1));
        all.min(LONGEST_INTERVAL)
    }

    /// Whether what held the task when it was looked at holds it still, as far as can be told without stopping it: it
    /// sleeps on the same stack, below the word that was found, and the word is there.
    fn is_still_held(&self, task: Task, seen: &Seen) -> bool {
        let (Some(hit), Some((sp, pc))) = (seen.hit, task.asleep_at()) else {
            return false;
        };
        let stack = seen.stack.0..seen.stack.1;
        match hit.stack {
            Some(at) => {
                stack.contains(&sp)
                    && (sp..stack.end).contains(&at)
                    && self.engine.memory().read_u64(at).ok() == Some(hit.address)
            }
            None => pc == hit.address,
        }
    }

    /// See [`livegraft_model::Target::has_run`].
    pub(super) fn may_have_run(&mut self, task: Task) -> bool {
        let Some(mut seen) = self.seen.get(&task).copied() else {
            return true;
        };
        if seen.soon {
            return true;
        }
        if seen.at.elapsed() < seen.interval {
            return false;
        }
        if seen.dead == Dead::Unknown && self.engine.unwinder.is_some() {
            return true;
        }
        let held = self.is_still_held(task, &seen);
        if held {
            // A look without a stop is cheap, but not for thousands.
            let longest = if self.can_switch {
                LONGEST_PAUSE + Duration::from_micros(200).saturating_mul(self.busy)
            } else {
                self.between_chances()
            };
            seen.at = Instant::now();
            seen.interval = (seen.interval * 2).min(longest).min(LONGEST_INTERVAL);
            self.seen.insert(task, seen);
        }
        !held
    }
}
