//! An open transition: its tasks are visited until all are in its target.

mod convergence;
mod seen;

use super::Engine;
use super::together::Sighting;
use crate::error::Error;
use crate::process::Task;
use crate::stack::{self, Hit, Ranges, Watched};
use crate::tracer::Stopping;
use crate::unwind::Stack;
use convergence::Convergence;
use livegraft_model::{Outcome, Standing, UniverseId, Version, converge};
use std::time::{Duration, Instant};

/// A task that has not moved, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocked {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// How long it has been waited for.
    pub seconds: f64,
    /// The function that holds it: `foo`, or why nothing is known.
    pub function: String,
    /// The code address that was found; 0 when nothing is known.
    pub address: u64,
    /// The stack address where it was found; `None`: in a register.
    pub stack: Option<u64>,
    /// It will switch itself at its next call.
    pub armed: bool,
}

pub(super) type Watch<'a> = &'a mut dyn FnMut(usize, usize);

/// What a run of visits came to.
#[derive(Debug, Default)]
pub(super) struct Converged {
    /// How many tasks are in the transition's target.
    pub arrived: usize,
    /// Nobody is left.
    pub complete: bool,
    /// Who is left, as far as is known.
    pub blocked: Vec<Blocked>,
}

/// What a look at one task found.
pub(super) struct Examined {
    pub standing: Standing,
    /// Where stacks are switched.
    pub seen: Option<Sighting>,
    /// What holds it.
    pub hit: Option<Hit>,
    pub stack: Stack,
}

impl Engine {
    /// Brings every task to the open transition's target.
    pub(super) fn converge(
        &mut self,
        deadline: Option<Instant>,
        watch: Watch<'_>,
    ) -> Result<Converged, Error> {
        let Some(open) = self.state.model.transition().cloned() else {
            return Ok(Converged::default());
        };
        if let Some(switching) = self.switching(None)? {
            return self.converge_together(switching, deadline, watch);
        }
        let mut convergence = Convergence::new(self, &open, deadline, watch);
        let outcome = converge(&mut convergence, open.to, open.forced)?;
        let mut converged = Converged {
            arrived: convergence.arrived.len(),
            complete: outcome == Outcome::Complete,
            blocked: Vec::new(),
        };
        if let Outcome::Expired(left) = outcome {
            let blocked = left
                .iter()
                .map(|busy| convergence.blocked(busy.task, &busy.visit));
            converged.blocked = blocked.collect();
        }
        self.tracer.release_late();
        Ok(converged)
    }

    /// What a look at one task finds while a transition is open, changing nothing; its stack, if it has not moved and
    /// unwinds are prepared.
    pub(super) fn examine(&mut self, task: Task, to: UniverseId) -> Option<Examined> {
        let Stopping::Stopped(stopped) = self.tracer.stop(task, 0) else {
            return None;
        };
        let regs = stopped.regs;
        let standing = self.standing(regs.gs_base)?;
        let watched = self.watched(standing.runs(), to);
        let switching = Ranges::default();
        let found = stack::check(
            &self.process,
            &regs,
            &self.gadgets.restorers,
            &watched,
            &switching,
        );
        let mut hits = found.map(|found| found.hits).unwrap_or_default();
        let mut stack = Stack::default();
        if standing.runs() != to {
            stack = self.unwind(&regs);
            self.dismiss(&stack, &mut hits);
        }
        let switches = matches!(self.switching, Some(Some(_)));
        let seen = switches.then(|| self.see(&regs, standing, to));
        if let Some(seen) = &seen {
            hits.clone_from(&seen.hits);
        }
        drop(stopped);
        Some(Examined {
            standing,
            seen,
            hit: hits.first().copied(),
            stack,
        })
    }

    /// What must not be found in a task that moves.
    pub(super) fn watched(&self, from: UniverseId, to: UniverseId) -> Watched {
        Watched {
            replaced: self.replaced_ranges(from, to, false),
            entering: self.entering_ranges(from, to),
        }
    }

    /// For how long the open transition has been waited for, in seconds.
    pub(super) fn waited(&self) -> f64 {
        let began = Duration::from_millis(self.state.began_ms);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap_or(began).saturating_sub(began).as_secs_f64()
    }

    /// In words, for the user: which body of which function.
    pub(super) fn describe(&self, hit: &Hit) -> String {
        let function = self.state.display(hit.slot);
        match hit.version {
            Version::Original => function,
            Version::Patched(patch) => {
                let name = self
                    .state
                    .model
                    .patch(patch)
                    .map_or("?", |patch| patch.name.as_str());
                format!("{function} of patch {name}")
            }
        }
    }
}
