//! The tasks of a process as the model's [`Target`]: visits carry out its verdicts.

use super::Engine;
use super::door::{self, at_call, has_no_clock};
use super::pinned::{Pins, Seeming, Unproven};
use super::together::Sighting;
use crate::arch::{AtCall, Pin};
use crate::boost;
use crate::error::Error;
use crate::process::Task;
use crate::stack::{self, Hit, Ranges, Watched};
use crate::tracer::Stopping;
use crate::unwind::Stack;
use livegraft_model::{
    Listing, Look, Operation, Outcome, Pause, Standing, Target, UniverseId, Verdict, Version,
    Visit, converge,
};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A running task is left alone at least this long between two visits: less would starve it.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// A busy task that was told to switch itself is not visited more often than this.
const LONGEST_INTERVAL: Duration = Duration::from_millis(200);
/// See [`Convergence::free_from_stub`].
const MOST_IN_STUB: u32 = 4;
/// After time has run out, functions are looked at so many times at the most, so that a task can be told to switch itself.
const MOST_LATE_LESSONS: u32 = 4;
/// One that can't switch itself must be met at a good moment: without `wrgsbase` nobody can, and one that has dead words
/// on its stack can't tell them from live ones.
const SHORT_INTERVAL: Duration = Duration::from_millis(1);

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

/// What the loop remembers of a task that is not there yet.
#[derive(Debug, Clone, Copy)]
struct Seen {
    hit: Option<Hit>,
    /// The stack that the task was on.
    stack: (u64, u64),
    armed: bool,
    at: Instant,
    interval: Duration,
    soon: bool,
    dead: Dead,
    /// How often in a row it was found in the self-switch.
    in_stub: u32,
}

/// Whether there are dead words among those that seemed to hold a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dead {
    /// Its stack can't be unwound yet, or its functions have not been looked at yet.
    Unknown,
    None,
    Some,
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

/// See the module.
pub(super) struct Convergence<'a> {
    engine: &'a mut Engine,
    to: UniverseId,
    heading: Operation,
    deadline: Option<Instant>,
    watch: Watch<'a>,
    switching: Ranges,
    watched: HashMap<UniverseId, Watched>,
    placed: HashMap<UniverseId, (u64, u64)>,
    seen: HashMap<Task, Seen>,
    arrived: HashSet<Task>,
    busy: u32,
    /// Of the task that is being visited, see [`Seen`].
    in_stub: u32,
    pool_short: bool,
    must_unwind: bool,
    can_switch: bool,
    /// Where tasks wait that can't switch themselves, and the gs bases of those that have been told to.
    waiting_places: Vec<Range<u64>>,
    waiting: HashMap<Task, u64>,
    kept_waiting: Instant,
    pause: Duration,
    pins: Pins,
    /// How often functions have been looked at for that.
    learned: u32,
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
        let (to, heading) = (open.to, open.heading());
        let switching = self.switching_ranges();
        let waiting_places = match at_call() {
            AtCall::Switch => Vec::new(),
            AtCall::Wait => self.waiting_places(),
        };
        let mut convergence = Convergence {
            engine: self,
            to,
            heading,
            deadline,
            watch,
            switching,
            watched: HashMap::new(),
            placed: HashMap::new(),
            seen: HashMap::new(),
            arrived: HashSet::new(),
            busy: 0,
            in_stub: 0,
            pool_short: false,
            must_unwind: false,
            can_switch: at_call() == AtCall::Switch,
            waiting_places,
            waiting: HashMap::new(),
            kept_waiting: Instant::now(),
            pause: SHORTEST_PAUSE,
            pins: Pins::default(),
            learned: 0,
        };
        let outcome = converge(&mut convergence, to, open.forced)?;
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

impl Convergence<'_> {
    /// Until time runs out.
    fn left(&self) -> Option<Duration> {
        let at = self.deadline?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn is_late(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }

    fn blocked(&self, task: Task, visit: &Visit) -> Blocked {
        let seen = self.seen.get(&task);
        let hit = seen.and_then(|seen| seen.hit);
        Blocked {
            tid: task.tid,
            name: task.name(),
            seconds: self.engine.waited(),
            function: match (hit, visit) {
                (Some(hit), _) => self.engine.describe(&hit),
                (None, Visit::Unstoppable) => "unknown: the task can't be stopped".to_owned(),
                (None, _) => "unknown: the task is switching".to_owned(),
            },
            address: hit.map_or(0, |hit| hit.address),
            stack: hit.and_then(|hit| hit.stack),
            armed: seen.is_some_and(|seen| seen.armed),
        }
    }

    /// The ranges for the stub, in the pool.
    fn placed(&mut self, from: UniverseId) -> Result<Option<(u64, u64)>, Error> {
        if let Some(&placed) = self.placed.get(&from) {
            return Ok(Some(placed));
        }
        let ranges = self.engine.replaced_ranges(from, self.to, true);
        let placed = self
            .engine
            .place_ranges(&ranges)?
            .map(|at| (at, ranges.len() as u64));
        if let Some(placed) = placed {
            self.placed.insert(from, placed);
        }
        Ok(placed)
    }

    /// Gives a stopped task a private table. Without room in the pool it stays as it is.
    fn arm(
        &mut self,
        from: UniverseId,
        stack: (u64, u64),
        pins: &[Pin],
    ) -> Result<Option<u64>, Error> {
        let gs = match self.placed(from)? {
            Some(ranges) => {
                let to = self.to;
                self.engine.private_table(from, to, stack, ranges, pins)?
            }
            None => None,
        };
        self.pool_short |= gs.is_none();
        Ok(gs)
    }

    /// Whether there are dead words of which the task has not been told.
    fn dead(&self, task: Task, all: &[Hit], live: &[Hit]) -> Dead {
        match self.pins.knows(task, all, live) {
            true => Dead::None,
            false => Dead::Some,
        }
    }

    fn remember(
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

    /// Whether a task that can't switch itself is not to be told to wait either.
    fn must_not_wait(&self, task: Task) -> bool {
        self.waiting_places.is_empty() || has_no_clock(task)
    }

    /// Those that were told to wait at their calls go on doing so for as long as we are at work.
    fn keep_waiting(&mut self) -> Result<(), Error> {
        if self.can_switch || self.kept_waiting.elapsed() < door::REMIND {
            return Ok(());
        }
        self.kept_waiting = Instant::now();
        let mut waiting = self.waiting.values();
        waiting.try_for_each(|&gs| self.engine.keep_waiting(gs))
    }

    /// How long a task that can't switch itself is left alone. Many of them share the visits.
    fn between_chances(&self) -> Duration {
        let all = SHORT_INTERVAL.saturating_mul(self.busy.max(1));
        all.min(LONGEST_INTERVAL)
    }

    /// A task that is found in the self-switch again and again hardly does anything else: something on its stack keeps it
    /// from switching, and each call searches the whole of it. Its order is taken back, so that it can be met elsewhere.
    fn free_from_stub(&mut self, task: Task, standing: Standing, gs: u64) -> Result<(), Error> {
        let before = self.seen.get(&task).map_or(0, |seen| seen.in_stub);
        self.in_stub = before + 1;
        if self.in_stub >= MOST_IN_STUB && matches!(standing, Standing::Waiting { .. }) {
            self.engine.disarm_one(gs)?;
        }
        Ok(())
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
}

impl Target for Convergence<'_> {
    type Task = Task;
    type Error = Error;

    fn tasks(&mut self) -> Result<Listing<Task>, Error> {
        boost::adapt_priority();
        self.keep_waiting()?;
        let listing = self.engine.process.tasks()?;
        let left = listing.tasks.len().saturating_sub(self.arrived.len());
        (self.watch)(self.arrived.len(), left);
        Ok(listing)
    }

    fn visit(
        &mut self,
        task: Task,
        judge: &mut dyn FnMut(Standing, Look) -> Verdict,
    ) -> Result<Visit, Error> {
        let stopped = match self.engine.tracer.stop(task, 0) {
            Stopping::Stopped(stopped) => stopped,
            Stopping::Gone => return Ok(Visit::Gone),
            Stopping::Late | Stopping::Denied(_) => {
                if !self.engine.is_alive() {
                    return Err(Error::Exited(self.engine.process.pid));
                }
                self.remember(task, None, (0, 0), false, true, Dead::None);
                return Ok(Visit::Unstoppable);
            }
        };
        let regs = stopped.regs;
        let pid = self.engine.process.pid;
        if regs.rip == 0 && regs.rsp == 0 {
            return Ok(Visit::Gone); // an io_uring worker runs no user code
        }
        if task.pid != pid && !self.engine.process.shares_memory_with(task.pid) {
            return Ok(Visit::Gone); // a vfork child that executed another program
        }
        let Some(standing) = self.engine.standing(regs.gs_base) else {
            // Its gs base is its own. It has left our universes, and must not call what leads through them; on the way
            // out it is left alone.
            if self.heading == Operation::Unload {
                return Ok(Visit::Gone);
            }
            let (tid, value) = (task.tid, regs.gs_base);
            return Err(Error::GsInUse { tid, value });
        };
        if standing == Standing::In(self.to) {
            let verdict = judge(standing, Look::default());
            drop(stopped);
            self.arrived.insert(task);
            return Ok(Visit::Judged(verdict));
        }
        let from = standing.runs();
        let (engine, to) = (&*self.engine, self.to);
        if engine.state.model.universe(from).is_none() {
            return Err(Error::Registry {
                pid,
                why: format!("task {} is in a universe that it does not record", task.tid),
            });
        }
        let replaced = self
            .watched
            .entry(from)
            .or_insert_with(|| engine.watched(from, to));
        let restorers = &engine.gadgets.restorers;
        let waits = engine.before_waiting(&self.waiting_places, &regs);
        let regs = waits.unwrap_or(regs);
        let checked = stack::check(&engine.process, &regs, restorers, replaced, &self.switching);
        let Ok(mut found) = checked else {
            drop(stopped);
            if !self.engine.is_alive() {
                return Err(Error::Exited(pid));
            }
            // Ending, executing another program, or on a stack that is none.
            self.remember(task, None, (0, 0), false, true, Dead::None);
            return Ok(Visit::Unstoppable);
        };
        let all = found.hits.clone();
        let stack = self.engine.dismiss_dead(&regs, &mut found.hits);
        let on_stack = found.hits.iter().all(|hit| hit.stack.is_some());
        let mut dead = if !all.is_empty() && on_stack && self.engine.unwinder.is_none() {
            self.must_unwind = true;
            Dead::Unknown
        } else {
            self.dead(task, &all, &found.hits)
        };
        let look = Look {
            holds_replaced: !found.hits.is_empty(),
            mid_switch: found.mid_switch,
        };
        let verdict = judge(standing, look);
        let mut carried_out = verdict;
        match verdict {
            Verdict::Move => {
                let gs = self.engine.gs_of(to).ok_or(Error::Exited(pid))?;
                if stopped.set_gs_base(gs).is_err() {
                    return Ok(Visit::Gone);
                }
            }
            Verdict::Arm if dead == Dead::Unknown => carried_out = Verdict::Again,
            Verdict::Arm if !self.can_switch && self.must_not_wait(task) => {}
            Verdict::Arm => {
                let all = Seeming {
                    task,
                    regs: &regs,
                    bounds: found.stack,
                    hits: &all,
                };
                match self.pins.for_task(self.engine, &all, stack) {
                    Ok(pins) => match self.arm(from, found.stack, &pins)? {
                        Some(gs) => {
                            if stopped.set_gs_base(gs).is_err() {
                                return Ok(Visit::Gone);
                            }
                            self.waiting.insert(task, gs);
                            self.pins.told(task, &pins);
                            dead = self.dead(task, all.hits, &found.hits);
                        }
                        None => carried_out = Verdict::Again,
                    },
                    // What is dead would keep it from switching itself.
                    Err(unproven) => {
                        carried_out = Verdict::Again;
                        dead = match unproven {
                            Unproven::Yet => Dead::Unknown,
                            Unproven::Ever => Dead::Some,
                        };
                        self.must_unwind |= self.engine.unwinder.is_none();
                    }
                }
            }
            Verdict::Again => self.free_from_stub(task, standing, regs.gs_base)?,
            Verdict::Wait => drop(self.waiting.insert(task, regs.gs_base)),
            Verdict::Settled => {}
        }
        drop(stopped);
        match carried_out {
            Verdict::Move | Verdict::Settled => {
                self.seen.remove(&task);
                self.waiting.remove(&task);
                self.arrived.insert(task);
            }
            _ => {
                let armed = self.can_switch && matches!(carried_out, Verdict::Arm | Verdict::Wait);
                let soon = carried_out == Verdict::Again && dead != Dead::Some;
                let hit = found.hits.first().copied();
                self.remember(task, hit, found.stack, armed, soon, dead);
            }
        }
        Ok(Visit::Judged(carried_out))
    }

    fn has_run(&mut self, task: Task) -> bool {
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

    fn pause(&mut self, _round: u32, settled: usize, busy: usize) -> Result<Pause, Error> {
        (self.watch)(settled, busy);
        self.busy = u32::try_from(busy).unwrap_or(u32::MAX);
        if std::mem::take(&mut self.must_unwind) {
            // However long that takes: before time runs out whoever is held shall be told to switch itself, and was not.
            boost::adapt_priority();
            self.engine.prepare_unwinds()?;
        } else if self.pins.must_learn() && (self.learned < MOST_LATE_LESSONS || !self.is_late()) {
            // The same.
            self.learned += 1;
            boost::adapt_priority();
            self.pins.learn(self.engine)?;
        } else if std::mem::take(&mut self.pool_short) {
            let ranges: usize = self
                .watched
                .values()
                .map(|watched| watched.replaced.len())
                .sum::<usize>()
                + self.engine.gadgets.restorers.len();
            self.engine.grow_pool(busy as u64 + 1, ranges as u64)?;
        } else {
            let left = self.left();
            if left == Some(Duration::ZERO) {
                return Ok(Pause::Expired);
            }
            let pause = if self.engine.tracer.has_late() {
                SHORTEST_PAUSE
            } else {
                self.pause
            };
            let at_any_moment = |seen: &Seen| seen.soon || seen.dead == Dead::Some;
            let pause = if !self.can_switch || self.seen.values().any(at_any_moment) {
                pause.min(SHORT_INTERVAL)
            } else {
                pause
            };
            std::thread::sleep(left.unwrap_or(pause).min(pause));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        Ok(Pause::GoOn)
    }
}
