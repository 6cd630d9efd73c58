//! What the commands do: load, unload, resume, reverse.

use super::transition::Converged;
use super::{Blocked, Engine};
use crate::error::Error;
use crate::process::{Stat, all_processes};
use crate::state::{Method, State};
use livegraft_model::{Operation, PatchId, Refusal};
use livegraft_patchfile::Patch;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What to do when time runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// Bring everyone back.
    Reverse,
    /// Leave the transition open: tasks go on switching themselves.
    Leave,
}

/// How a command is to be carried out.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a transition may take.
    pub timeout: Duration,
    /// And then.
    pub on_timeout: OnTimeout,
    /// Insist on one entry method.
    pub entry: Option<Method>,
    /// All tasks may be stopped at once where code may sleep on stacks that no task owns.
    pub together: bool,
}

/// Called while tasks move: how many have arrived, how many are left.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The patch is loaded.
    Loaded,
    /// The patch is unloaded.
    Unloaded,
    /// Everyone was brought back, as `reverse` was told to.
    TakenBack,
    /// Time ran out and everyone was brought back.
    Reversed,
    /// Time ran out and the transition is open.
    TimedOut,
}

/// One function in a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Its name.
    pub name: String,
    /// `None`: the executable.
    pub object: Option<String>,
    /// How its entry is redirected.
    pub entry: &'static str,
}

/// What was done, and what it cost the target.
#[derive(Debug, Clone)]
pub struct Report {
    /// The patch's name.
    pub patch: String,
    /// The process.
    pub pid: i32,
    /// How it ended.
    pub ended: Ended,
    /// Tasks that live in the target universe.
    pub tasks: usize,
    /// The patch's functions.
    pub functions: Vec<Reported>,
    /// From the first visit to the last.
    pub transition: Duration,
    /// Stops of tasks, all together.
    pub stops: u64,
    /// The longest of them.
    pub longest_stop: Duration,
    /// The most at once.
    pub most_stopped: u64,
    /// Of the stops those that nobody waited for any more: see [`crate::tracer::Cost`].
    pub late_stops: u64,
    /// Forked children that were brought along.
    pub children: usize,
    /// Who has not moved; when everyone was brought back, who held the transition up.
    pub blocked: Vec<Blocked>,
    /// Nobody is left, in the process and in its forked children.
    pub complete: bool,
    /// Functions whose entries something else has changed since: they run whatever that makes of them.
    pub foreign: Vec<String>,
    /// Busy tasks can switch themselves, see [`super::TransitionView`].
    pub self_switch: bool,
}

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What a run of visits came to.
struct Moved {
    tasks: usize,
    children: usize,
    blocked: Vec<Blocked>,
    /// Here, and in all children.
    complete: bool,
}

impl Engine {
    /// Loads a patch.
    ///
    /// # Errors
    /// Every refusal; the target is as it was then, unless the sentence says otherwise.
    pub fn load(
        &mut self,
        patch: &Patch,
        name: &str,
        options: &Options,
        progress: &mut Progress<'_>,
    ) -> Result<Report, Error> {
        self.together = options.together;
        let id = self.open_load(patch, name, options.entry)?;
        self.run(id, options, progress)
    }

    /// Unloads a patch: newer ones stay. One whose load is still open is taken back.
    ///
    /// # Errors
    /// [`Refusal::NotLoaded`], [`Refusal::TransitionOpen`].
    pub fn unload(
        &mut self,
        name: &str,
        options: &Options,
        progress: &mut Progress<'_>,
    ) -> Result<Report, Error> {
        let open = self.state.model.transition().cloned();
        if let Some(open) = open {
            let patch = self.state.model.patch(open.patch);
            if patch.is_none_or(|patch| patch.name != name) {
                return Err(self.busy());
            }
            if open.heading() == Operation::Load {
                self.turn_round()?;
            }
            return self.run(open.patch, options, progress);
        }
        self.together = options.together;
        let id = self.state.model.begin_unload(name)?.patch;
        self.may_move_together(None)?;
        self.compare_entries(id)?;
        self.open_universe()?;
        self.run(id, options, progress)
    }

    /// Takes up a transition that a controller left open. `None`: there was nothing to do.
    ///
    /// # Errors
    /// When the process can't be visited.
    pub fn resume(
        &mut self,
        options: &Options,
        progress: &mut Progress<'_>,
    ) -> Result<Option<Report>, Error> {
        let Some(open) = self.state.model.transition().cloned() else {
            if self.registry.is_none() {
                return Err(Error::NotPatched(self.process.pid));
            }
            self.commit_idle()?;
            return Ok(None);
        };
        // Else it would be completed with a function that nobody redirects, or that can't be put back.
        self.compare_entries(open.patch)?;
        self.run(open.patch, options, progress).map(Some)
    }

    /// Turns the open transition round and brings everyone back.
    ///
    /// # Errors
    /// [`Refusal::NothingOpen`].
    pub fn reverse(
        &mut self,
        options: &Options,
        progress: &mut Progress<'_>,
    ) -> Result<Report, Error> {
        let open = self
            .state
            .model
            .transition()
            .cloned()
            .ok_or(Refusal::NothingOpen)?;
        self.turn_round()?;
        // Turning round again when time runs out would undo what was asked for.
        let options = Options {
            on_timeout: OnTimeout::Leave,
            ..*options
        };
        let mut report = self.run(open.patch, &options, progress)?;
        if report.ended != Ended::TimedOut {
            report.ended = Ended::TakenBack;
        }
        Ok(report)
    }

    /// Moves every task that the open transition still waits for, whatever is on its stack. The patch is never freed.
    ///
    /// # Errors
    /// [`Refusal::NothingOpen`].
    pub fn force(
        &mut self,
        options: &Options,
        progress: &mut Progress<'_>,
    ) -> Result<Report, Error> {
        let id = self.state.model.force()?.patch;
        self.compare_entries(id)?;
        self.commit()?;
        let options = Options {
            on_timeout: OnTimeout::Leave,
            ..*options
        };
        self.run(id, &options, progress)
    }

    fn busy(&self) -> Error {
        let open = self
            .state
            .model
            .transition()
            .and_then(|open| self.state.model.patch(open.patch));
        Refusal::TransitionOpen(open.map_or_else(String::new, |patch| patch.name.clone())).into()
    }

    /// Records that tasks go back to where they came from.
    fn turn_round(&mut self) -> Result<(), Error> {
        self.disarm()?;
        self.state.model.reverse()?;
        self.commit()
    }

    /// Drives the open transition to its end, or until time runs out.
    fn run(
        &mut self,
        id: PatchId,
        options: &Options,
        progress: &mut Progress<'_>,
    ) -> Result<Report, Error> {
        let began = Instant::now();
        let before = self.tracer.cost();
        let asked = self.heading();
        let mut moved = self.bring_all_or_back(options.timeout, progress)?;
        let mut turned = false;
        let open = self.state.model.transition().is_some();
        if open && options.on_timeout == OnTimeout::Reverse {
            turned = true;
            let held_up = std::mem::take(&mut moved.blocked);
            self.turn_round()?;
            moved = self.bring_all_or_back(options.timeout, progress)?;
            if moved.complete {
                moved.blocked = held_up;
            }
        }
        let left = self.state.model.transition().is_some();
        if left {
            self.commit_idle()?;
        }
        let ended = match (left, turned, asked) {
            (true, ..) => Ended::TimedOut,
            (false, true, _) => Ended::Reversed,
            (false, false, Operation::Load) => Ended::Loaded,
            (false, false, Operation::Unload) => Ended::Unloaded,
        };
        let cost = self.tracer.cost();
        let model = &self.state.model;
        let patch = model
            .patch(id)
            .map_or_else(String::new, |patch| patch.name.clone());
        Ok(Report {
            patch,
            pid: self.process.pid,
            ended,
            tasks: moved.tasks,
            functions: functions_of(&self.state, id),
            transition: began.elapsed(),
            stops: cost.stops,
            longest_stop: cost.longest_stop.max(before.longest_stop),
            most_stopped: cost.most_stopped,
            late_stops: cost.late,
            children: moved.children,
            complete: moved.complete,
            blocked: moved.blocked,
            self_switch: crate::sys::has_fsgsbase(),
            foreign: match ended {
                Ended::Loaded => self.foreign_entries(id),
                _ => Vec::new(),
            },
        })
    }

    fn heading(&self) -> Operation {
        self.state
            .model
            .transition()
            .map_or(Operation::Load, |open| open.heading())
    }

    /// As [`Engine::bring_all`]. Where a task turns up that uses `%gs`, nobody may be led to a patch: everyone else goes
    /// back, as far as time allows.
    fn bring_all_or_back(
        &mut self,
        timeout: Duration,
        progress: &mut Progress<'_>,
    ) -> Result<Moved, Error> {
        match self.bring_all(timeout, progress) {
            Err(error @ Error::GsInUse { .. }) => {
                self.turn_round()?;
                if !self.bring_all(timeout, progress)?.complete {
                    self.commit_idle()?;
                }
                Err(error)
            }
            other => other,
        }
    }

    /// Moves the tasks, closes the transition when all have moved, and does the same in the children that were forked
    /// while it was open.
    fn bring_all(
        &mut self,
        timeout: Duration,
        progress: &mut Progress<'_>,
    ) -> Result<Moved, Error> {
        let deadline = Instant::now().checked_add(timeout);
        let heading = self.heading();
        let converged = self.converge(deadline, progress)?;
        let mut moved = Moved {
            tasks: converged.arrived,
            children: 0,
            blocked: converged.blocked,
            complete: converged.complete,
        };
        if moved.complete {
            if !self.process.goes_on() {
                return Err(Error::Exited(self.process.pid));
            }
            self.close()?;
            self.bring_children(heading, deadline, &mut moved);
        }
        Ok(moved)
    }

    /// Closes the open transition: every task is where it leads.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        self.state.model.complete()?;
        let live: Vec<_> = self.state.model.universes().map(|(id, _)| id).collect();
        self.state.tables.retain(|(id, _)| live.contains(id));
        self.commit()?;
        self.apply_edits(false)?;
        self.commit_idle()
    }

    /// Records that nobody is at work any more.
    pub(super) fn commit_idle(&mut self) -> Result<(), Error> {
        self.commit_as(None)
    }

    /// A child that was forked while the transition was open has a copy of everything, the open transition included,
    /// and is nobody else's.
    fn bring_children(&mut self, heading: Operation, deadline: Option<Instant>, moved: &mut Moved) {
        let mut tried = std::collections::BTreeSet::new();
        loop {
            let found: Vec<i32> = all_processes()
                .filter(|pid| !tried.contains(pid) && self.is_child(*pid))
                .collect();
            if found.is_empty() {
                return;
            }
            for pid in found {
                tried.insert(pid);
                // One that has ended, or that somebody else takes care of, is none of ours.
                let Ok(mut child) = Engine::change(pid) else {
                    continue;
                };
                if let Ok(Some(converged)) = child.follow(heading, deadline) {
                    moved.children += 1;
                    moved.complete &= converged.complete;
                    moved.blocked.extend(converged.blocked);
                }
            }
        }
    }

    /// As a child: brings the copy of the parent's transition to the parent's end.
    fn follow(
        &mut self,
        heading: Operation,
        deadline: Option<Instant>,
    ) -> Result<Option<Converged>, Error> {
        if self.state.model.transition().is_none() {
            return Ok(None);
        }
        if self.heading() != heading {
            self.turn_round()?;
        }
        let converged = self.converge(deadline, &mut |_, _| ())?;
        if converged.complete {
            self.close()?;
        } else {
            self.commit_idle()?;
        }
        Ok(Some(converged))
    }

    /// Whether a process began while our transition was open and has a copy of our record, the transition included. It
    /// may be anybody's process: nothing of it is changed, and it is not locked, before that is certain.
    fn is_child(&self, pid: i32) -> bool {
        let dir = Path::new("/proc").join(pid.to_string());
        let young = || {
            let stat = Stat::read(&dir.join("stat"))?;
            let ours = stat.start_time.saturating_add(2) >= self.state.began_ticks;
            Some(ours && !stat.is_kernel_thread() && !stat.is_dead())
        };
        let recorded = || {
            let memory = crate::memory::Memory::open(&dir).ok()?;
            let registry = self.registry.as_ref()?;
            registry
                .is_at_same_place(&memory)
                .then(|| Engine::inspect(pid).ok())?
        };
        pid != self.process.pid
            && young() == Some(true)
            && !self.process.shares_memory_with(pid)
            && recorded().is_some_and(|other| {
                other.state.instance == self.state.instance
                    && other.state.model.transition().is_some()
            })
    }
}

fn functions_of(state: &State, id: PatchId) -> Vec<Reported> {
    let slots = state
        .image(id)
        .map(|image| image.functions.as_slice())
        .unwrap_or_default();
    let mut all: Vec<Reported> = slots
        .iter()
        .filter_map(|function| state.entry(function.slot))
        .map(|entry| Reported {
            name: entry.function.clone(),
            object: entry.object.clone(),
            entry: entry.method.name(),
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}
