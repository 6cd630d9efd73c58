//! Visits: seize, interrupt, look, decide, detach. Nothing stays attached between two visits, because an attached
//! task stops at every signal it receives.

use crate::arch;
use crate::boost::{self, Booster, Loan};
use crate::process::{Stat, Task};
use crate::sys::{self, Registers, Stop, Tid};
use std::cell::{Cell, OnceCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long one visit waits for a task that does not run to stop. A vfork parent does not stop until its child execs.
const PATIENCE: Duration = Duration::from_millis(20);
/// A task that has not stopped by then waits for its turn on a processor: we lend it our priority.
const PROMPT: Duration = Duration::from_micros(300);
/// How long a visit waits for a task that only needs its turn: it is not standing still for us meanwhile.
const TURN: Duration = Duration::from_secs(2);

/// What the visits of one command cost the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number of stops.
    pub stops: u64,
    /// The longest stop of any task, from when it stood still until it went on. (Until it has had its turn on a
    /// processor to stop, it is not standing still for us.)
    pub longest_stop: Duration,
    /// The most tasks that were stopped at once.
    pub most_stopped: u64,
    /// Tasks that stopped when nobody waited for that any more: a vfork parent can't before its child executes a program.
    /// Another may stand still just then.
    pub late: u64,
}

/// A task that stands still until this is dropped.
#[derive(Debug)]
pub struct Stopped {
    cost: Rc<Cell<Cost>>,
    standing: Rc<Cell<u64>>,
    /// Its number.
    pub tid: Tid,
    /// Its registers. With a call in them that our interruption ended and that nobody would restart, `rax` says
    /// already that it is to be restarted; the task's own is put right when it goes on.
    pub regs: Registers,
    repair: bool,
    since: Instant,
    booster: Lender,
    loan: Option<Loan>,
    _hurry: Rc<Hurry>,
}

/// The thread that lends our priority, started when it is first needed.
#[derive(Debug, Clone, Default)]
struct Lender(Rc<OnceCell<Option<Booster>>>);

impl Lender {
    fn lend(&self, tid: Tid) -> Option<Loan> {
        self.0.get_or_init(Booster::start).as_ref()?.lend(tid)
    }
}

/// What trying to stop a task came to.
#[derive(Debug)]
pub enum Stopping {
    /// It stands still.
    Stopped(Box<Stopped>),
    /// It ended, or is ending.
    Gone,
    /// It did not stop in time.
    Late,
    /// It can't be seized: another tracer (its number), or no permission (0).
    Denied(i32),
}

/// Stops tasks, one at a time.
#[derive(Debug, Default)]
pub struct Tracer {
    cost: Rc<Cell<Cost>>,
    booster: Lender,
    /// Seized, told to stop, and not there yet.
    late: BTreeSet<Tid>,
    /// How many stand still.
    standing: Rc<Cell<u64>>,
    /// Nobody is let go but by whoever holds him.
    holding: bool,
}

impl Tracer {
    /// Gets ready for a machine on which tasks wait for their turn.
    pub fn expect_crowds(&self) {
        self.booster.0.get_or_init(Booster::start);
    }

    /// What the visits cost so far.
    pub fn cost(&self) -> Cost {
        self.cost.get()
    }

    /// Stops one task.
    pub fn stop(&mut self, task: Task, options: i64) -> Stopping {
        if let Err(why) = self.attach(task, options) {
            return why;
        }
        let hurry = Rc::new(Hurry::begin());
        match self.order(task) {
            Ok(asked) => self.await_stop(task, asked, None, hurry),
            Err(why) => why,
        }
    }

    /// Stops many tasks at once: all are attached before the first is told to stop, and all are told before the first is
    /// waited for, so that they stand still for little longer than it takes to look at them.
    pub fn stop_all(&mut self, tasks: &[(Task, i64)]) -> Vec<(Task, Stopping)> {
        let mut attached = Vec::with_capacity(tasks.len());
        let mut all = Vec::with_capacity(tasks.len());
        for &(task, options) in tasks {
            match self.attach(task, options) {
                Ok(()) => attached.push(task),
                Err(why) => all.push((task, why)),
            }
        }
        let hurry = Rc::new(Hurry::begin());
        let mut told = Vec::with_capacity(attached.len());
        for task in attached {
            match self.order(task) {
                Ok(asked) => told.push((task, asked)),
                Err(why) => all.push((task, why)),
            }
        }
        for (task, asked) in told {
            // When it stopped is not known; not before it was told to.
            let stopping = self.await_stop(task, Instant::now(), Some(asked), hurry.clone());
            all.push((task, stopping));
        }
        all
    }

    fn attach(&mut self, task: Task, options: i64) -> Result<(), Stopping> {
        self.release_late();
        if self.late.contains(&task.tid) {
            return Err(Stopping::Late);
        }
        match sys::seize(task.tid, options) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(denied(task)),
            Err(_) => Err(Stopping::Gone),
        }
    }

    fn order(&mut self, task: Task) -> Result<Instant, Stopping> {
        let asked = Instant::now();
        if sys::interrupt(task.tid).is_err() {
            self.forget(task.tid);
            return Err(Stopping::Gone);
        }
        Ok(asked)
    }

    /// Waits for a task that was told to stop, from `asked` on. It has stood still since it was seen to, or `since`.
    fn await_stop(
        &mut self,
        task: Task,
        asked: Instant,
        since: Option<Instant>,
        hurry: Rc<Hurry>,
    ) -> Stopping {
        let tid = task.tid;
        let mut bound = PROMPT;
        let mut loan = None;
        loop {
            match sys::wait(tid, bound.saturating_sub(asked.elapsed())) {
                Ok(Some(Stop::Event)) => break,
                Ok(Some(Stop::Signal(signal))) => drop(sys::resume(tid, signal)),
                Ok(Some(Stop::Syscall | Stop::Other)) => drop(sys::resume(tid, 0)),
                Ok(Some(Stop::Exited)) | Err(_) => {
                    return Stopping::Gone;
                }
                Ok(None) if bound == PROMPT => {
                    bound = PATIENCE;
                    loan = self.booster.lend(tid);
                }
                Ok(None) if bound == PATIENCE && needs_its_turn(task) => bound = TURN,
                Ok(None) => {
                    self.late.insert(tid);
                    return Stopping::Late;
                }
            }
        }
        let seen = Instant::now();
        // Before it can run again: with our priority, in a loop, it would keep its processor for itself.
        drop(loan);
        let Ok(mut regs) = sys::registers(tid) else {
            self.forget(tid);
            return Stopping::Gone;
        };
        let repair = arch::needs_eintr_repair(&regs);
        if repair {
            regs.rax = arch::repair_eintr();
        }
        self.standing.set(self.standing.get() + 1);
        let at_once = self.standing.get() + self.release_late();
        let mut cost = self.cost.get();
        cost.stops += 1;
        cost.most_stopped = cost.most_stopped.max(at_once);
        self.cost.set(cost);
        Stopping::Stopped(Box::new(Stopped {
            cost: self.cost.clone(),
            standing: self.standing.clone(),
            tid,
            regs,
            repair,
            since: since.unwrap_or(seen),
            booster: self.booster.clone(),
            loan: None,
            _hurry: hurry,
        }))
    }

    /// Lets go of a task that may or may not be stopped.
    fn forget(&mut self, tid: Tid) {
        let _ = sys::wait(tid, Duration::ZERO);
        let _ = sys::detach(tid);
        self.late.remove(&tid);
    }

    /// Lets go of tasks that did not stop in time and have stopped since; returns how many. One that still has not is
    /// let go by a later visit, or by the end of this process.
    pub fn release_late(&mut self) -> u64 {
        if self.holding {
            return 0;
        }
        let mut released = 0;
        self.late
            .retain(|&tid| match sys::wait(tid, Duration::ZERO) {
                Ok(None) => true,
                Ok(Some(Stop::Signal(signal))) => sys::resume(tid, signal).is_ok(),
                Ok(Some(Stop::Syscall | Stop::Other)) => sys::resume(tid, 0).is_ok(),
                Ok(Some(Stop::Event)) => {
                    if sys::registers(tid).is_ok_and(|regs| arch::needs_eintr_repair(&regs)) {
                        let _ = sys::set_register(tid, arch::RAX, arch::repair_eintr());
                    }
                    let _ = sys::detach(tid);
                    released += 1;
                    false
                }
                Ok(Some(Stop::Exited)) | Err(_) => false,
            });
        let mut cost = self.cost.get();
        cost.late += released;
        self.cost.set(cost);
        released
    }

    /// From now on, or no more, tasks that stop late stay stopped.
    pub fn hold_late(&mut self, holding: bool) {
        self.holding = holding;
    }

    /// Whether a task that did not stop in time may be standing still by now.
    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }
}

/// Above what is lent: nobody whom we have lent our priority keeps us from running.
const FIRST: i32 = boost::LENT + 1;

/// Runs this thread before ordinary ones until dropped.
#[derive(Debug)]
struct Hurry;

impl Hurry {
    fn begin() -> Hurry {
        sys::run_first(Some(FIRST));
        Hurry
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        sys::run_first(None);
    }
}

fn needs_its_turn(task: Task) -> bool {
    Stat::read(&task.dir().join("stat")).is_some_and(|stat| stat.state == 'R')
}

fn denied(task: Task) -> Stopping {
    let dead = Stat::read(&task.dir().join("stat")).is_none_or(|stat| stat.is_dead());
    if dead {
        return Stopping::Gone;
    }
    let tracer = crate::process::status_field(&task.dir(), "TracerPid");
    Stopping::Denied(tracer.and_then(|pid| pid.parse().ok()).unwrap_or(0))
}

impl Stopped {
    /// Sets the gs base: the task's universe.
    ///
    /// # Errors
    /// ESRCH: it was killed meanwhile.
    pub fn set_gs_base(&self, value: u64) -> std::io::Result<()> {
        sys::set_register(self.tid, arch::GS_BASE, value)
    }

    /// Puts all registers back as they were found, a call that is to be restarted included.
    ///
    /// # Errors
    /// ESRCH: it was killed meanwhile.
    pub fn restore(&mut self) -> std::io::Result<()> {
        self.repair = false;
        sys::set_registers(self.tid, &self.regs)
    }

    /// Leaves the task as it is now when it is let go.
    pub fn forsake(&mut self) {
        self.repair = false;
    }

    /// Waits for the next report of a task that was let run for a moment, on our priority when that takes long.
    ///
    /// # Errors
    /// ECHILD: it is gone.
    pub fn wait(&mut self, bound: Duration) -> std::io::Result<Option<Stop>> {
        match sys::wait(self.tid, PROMPT)? {
            None => {
                if self.loan.is_none() {
                    self.loan = self.booster.lend(self.tid);
                }
                sys::wait(self.tid, bound)
            }
            stop => Ok(stop),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.repair {
            let _ = sys::set_register(self.tid, arch::RAX, self.regs.rax);
        }
        self.loan = None;
        let _ = sys::detach(self.tid);
        self.standing.set(self.standing.get().saturating_sub(1));
        let mut cost = self.cost.get();
        cost.longest_stop = cost.longest_stop.max(self.since.elapsed());
        self.cost.set(cost);
    }
}
