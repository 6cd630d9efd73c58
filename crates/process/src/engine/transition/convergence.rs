//! The tasks of a process as the model's [`Target`]: visits carry out its verdicts.

use super::seen::{
    Dead, LONGEST_PAUSE, MOST_IN_STUB, MOST_LATE_LESSONS, SHORT_INTERVAL, SHORTEST_PAUSE, Seen,
};
use super::{Blocked, Watch};
use crate::arch::{AtCall, Pin};
use crate::boost;
use crate::engine::Engine;
use crate::engine::door::{self, at_call, has_no_clock};
use crate::engine::pinned::{Pins, Seeming, Unproven};
use crate::error::Error;
use crate::process::Task;
use crate::stack::{self, Hit, Ranges, Watched};
use crate::sys::Registers;
use crate::tracer::{Stopped, Stopping};
use crate::unwind::Stack;
use livegraft_model::{
    Listing, Look, Operation, Pause, Standing, Target, Transition, UniverseId, Verdict, Visit,
};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// See the module.
pub(super) struct Convergence<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) to: UniverseId,
    pub(super) heading: Operation,
    pub(super) deadline: Option<Instant>,
    pub(super) watch: Watch<'a>,
    pub(super) switching: Ranges,
    pub(super) watched: HashMap<UniverseId, Watched>,
    pub(super) placed: HashMap<UniverseId, (u64, u64)>,
    pub(super) seen: HashMap<Task, Seen>,
    pub(super) arrived: HashSet<Task>,
    pub(super) busy: u32,
    /// Of the task that is being visited, see [`Seen`].
    pub(super) in_stub: u32,
    pub(super) pool_short: bool,
    pub(super) must_unwind: bool,
    pub(super) can_switch: bool,
    /// Where tasks wait that can't switch themselves, and the gs bases of those that have been told to.
    pub(super) waiting_places: Vec<Range<u64>>,
    pub(super) waiting: HashMap<Task, u64>,
    pub(super) kept_waiting: Instant,
    pub(super) pause: Duration,
    pub(super) pins: Pins,
    /// How often functions have been looked at for that.
    pub(super) learned: u32,
}

/// What a look at a stopped task has found.
struct Found {
    task: Task,
    standing: Standing,
    /// As they will be when a call that waits for us goes on.
    regs: Registers,
    look: Look,
    /// The stack that it is on.
    stack: (u64, u64),
    /// Words that seem to hold it.
    all: Vec<Hit>,
    /// Those of them that are not dead.
    live: Vec<Hit>,
    /// Its stack, if it has been unwound.
    unwound: Stack,
    dead: Dead,
}

impl<'a> Convergence<'a> {
    /// Of a transition that is open.
    pub(super) fn new(
        engine: &'a mut Engine,
        open: &Transition,
        deadline: Option<Instant>,
        watch: Watch<'a>,
    ) -> Self {
        let (to, heading) = (open.to, open.heading());
        let switching = engine.switching_ranges();
        let waiting_places = match at_call() {
            AtCall::Switch => Vec::new(),
            AtCall::Wait => engine.waiting_places(),
        };
        Self {
            engine,
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
        }
    }

    /// Until time runs out.
    fn left(&self) -> Option<Duration> {
        let at = self.deadline?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn is_late(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }

    pub(super) fn blocked(&self, task: Task, visit: &Visit) -> Blocked {
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

    fn cannot_stop(&mut self, task: Task) -> Result<Visit, Error> {
        if !self.engine.is_alive() {
            return Err(Error::Exited(self.engine.process.pid));
        }
        self.remember(task, None, (0, 0), false, true, Dead::None);
        Ok(Visit::Unstoppable)
    }

    /// Where a stopped task stands; `None`: it is none of this process, or has left it.
    fn standing(&self, task: Task, regs: &Registers) -> Result<Option<Standing>, Error> {
        let pid = self.engine.process.pid;
        if regs.rip == 0 && regs.rsp == 0 {
            return Ok(None); // an io_uring worker runs no user code
        }
        if task.pid != pid && !self.engine.process.shares_memory_with(task.pid) {
            return Ok(None); // a vfork child that executed another program
        }
        let Some(standing) = self.engine.standing(regs.gs_base) else {
            // Its gs base is its own. It has left our universes, and must not call what leads through them; on the way
            // out it is left alone.
            if self.heading == Operation::Unload {
                return Ok(None);
            }
            let (tid, value) = (task.tid, regs.gs_base);
            return Err(Error::GsInUse { tid, value });
        };
        if standing != Standing::In(self.to)
            && self.engine.state.model.universe(standing.runs()).is_none()
        {
            return Err(Error::Registry {
                pid,
                why: format!("task {} is in a universe that it does not record", task.tid),
            });
        }
        Ok(Some(standing))
    }

    /// Looks for what holds a stopped task; `None`: it has no stack that can be read.
    fn look_at(
        &mut self,
        task: Task,
        regs: &Registers,
        standing: Standing,
    ) -> Result<Option<Found>, Error> {
        let (engine, from, to) = (&*self.engine, standing.runs(), self.to);
        let replaced = self
            .watched
            .entry(from)
            .or_insert_with(|| engine.watched(from, to));
        let restorers = &engine.gadgets.restorers;
        let waits = engine.before_waiting(&self.waiting_places, regs);
        let regs = waits.unwrap_or(*regs);
        let checked = stack::check(&engine.process, &regs, restorers, replaced, &self.switching);
        let Ok(checked) = checked else {
            return Ok(None);
        };
        let (all, mut live) = (checked.hits.clone(), checked.hits);
        let unwound = self.engine.dismiss_dead(&regs, &mut live);
        let on_stack = live.iter().all(|hit| hit.stack.is_some());
        let dead = if !all.is_empty() && on_stack && self.engine.unwinder.is_none() {
            self.must_unwind = true;
            Dead::Unknown
        } else {
            self.dead(task, &all, &live)
        };
        let look = Look {
            holds_replaced: !live.is_empty(),
            mid_switch: checked.mid_switch,
        };
        Ok(Some(Found {
            task,
            standing,
            regs,
            look,
            stack: checked.stack,
            all,
            live,
            unwound,
            dead,
        }))
    }

    /// Carries out a verdict as far as it can be; what was done, or `None`: the task is gone.
    fn carry_out(
        &mut self,
        stopped: &Stopped,
        found: &mut Found,
        verdict: Verdict,
    ) -> Result<Option<Verdict>, Error> {
        let task = found.task;
        match verdict {
            Verdict::Move => {
                let gs = self.engine.gs_of(self.to);
                let gs = gs.ok_or(Error::Exited(self.engine.process.pid))?;
                if stopped.set_gs_base(gs).is_err() {
                    return Ok(None);
                }
            }
            Verdict::Arm if found.dead == Dead::Unknown => return Ok(Some(Verdict::Again)),
            Verdict::Arm if !self.can_switch && self.must_not_wait(task) => {}
            Verdict::Arm => return self.tell(stopped, found),
            Verdict::Again => self.free_from_stub(task, found.standing, found.regs.gs_base)?,
            Verdict::Wait => drop(self.waiting.insert(task, found.regs.gs_base)),
            Verdict::Settled => {}
        }
        Ok(Some(verdict))
    }

    /// Tells a stopped task to switch itself, or to wait at its next call. As [`Self::carry_out`].
    fn tell(&mut self, stopped: &Stopped, found: &mut Found) -> Result<Option<Verdict>, Error> {
        let seeming = Seeming {
            task: found.task,
            regs: &found.regs,
            bounds: found.stack,
            hits: &found.all,
        };
        let unwound = std::mem::take(&mut found.unwound);
        let pins = match self.pins.for_task(self.engine, &seeming, unwound) {
            Ok(pins) => pins,
            // What is dead would keep it from switching itself.
            Err(unproven) => {
                found.dead = match unproven {
                    Unproven::Yet => Dead::Unknown,
                    Unproven::Ever => Dead::Some,
                };
                self.must_unwind |= self.engine.unwinder.is_none();
                return Ok(Some(Verdict::Again));
            }
        };
        let Some(gs) = self.arm(found.standing.runs(), found.stack, &pins)? else {
            return Ok(Some(Verdict::Again));
        };
        if stopped.set_gs_base(gs).is_err() {
            return Ok(None);
        }
        self.waiting.insert(found.task, gs);
        self.pins.told(found.task, &pins);
        found.dead = self.dead(found.task, &found.all, &found.live);
        Ok(Some(Verdict::Arm))
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
            Stopping::Late | Stopping::Denied(_) => return self.cannot_stop(task),
        };
        let Some(standing) = self.standing(task, &stopped.regs)? else {
            return Ok(Visit::Gone);
        };
        if standing == Standing::In(self.to) {
            let verdict = judge(standing, Look::default());
            drop(stopped);
            self.arrived.insert(task);
            return Ok(Visit::Judged(verdict));
        }
        let Some(mut found) = self.look_at(task, &stopped.regs, standing)? else {
            drop(stopped);
            // Ending, executing another program, or on a stack that is none.
            return self.cannot_stop(task);
        };
        let verdict = judge(standing, found.look);
        let carried_out = self.carry_out(&stopped, &mut found, verdict)?;
        drop(stopped);
        let Some(carried_out) = carried_out else {
            return Ok(Visit::Gone);
        };
        match carried_out {
            Verdict::Move | Verdict::Settled => {
                self.seen.remove(&task);
                self.waiting.remove(&task);
                self.arrived.insert(task);
            }
            _ => {
                let armed = self.can_switch && matches!(carried_out, Verdict::Arm | Verdict::Wait);
                let soon = carried_out == Verdict::Again && found.dead != Dead::Some;
                let hit = found.live.first().copied();
                self.remember(task, hit, found.stack, armed, soon, found.dead);
            }
        }
        Ok(Visit::Judged(carried_out))
    }

    fn has_run(&mut self, task: Task) -> bool {
        self.may_have_run(task)
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
