//! The loop that brings every task to the transition's target (`klp_try_complete_transition`).

use crate::{Look, Standing, UniverseId, Verdict};
use std::collections::HashMap;
use std::hash::Hash;

/// One reading of the list of tasks.
#[derive(Debug, Clone)]
pub struct Listing<T> {
    /// The tasks, each once.
    pub tasks: Vec<T>,
    /// The list is proven to name every task that was there at one moment of its reading (it can miss some while tasks
    /// die).
    pub complete: bool,
}

/// How a visit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visit {
    /// The task was stopped, the verdict given and carried out.
    Judged(Verdict),
    /// It ended, or runs no user code: it counts no more.
    Gone,
    /// It could not be stopped within the bound that a visit has; try again later.
    Unstoppable,
}

/// What to do after a round that left somebody behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Look again.
    GoOn,
    /// Time is up; the transition stays open.
    Expired,
}

/// A task that has not moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy<T> {
    /// Which.
    pub task: T,
    /// What its last visit said.
    pub visit: Visit,
}

/// How [`converge`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Nobody is left outside the target universe.
    Complete,
    /// Time ran out; these are left.
    Expired(Vec<Busy<T>>),
}

/// Who has tasks that can be stopped and looked at, one at a time.
pub trait Target {
    /// Names one task; another task that gets the same number later must differ.
    type Task: Copy + Eq + Hash;
    /// What can go wrong beyond a single task.
    type Error;

    /// Reads the list of tasks, those that share the memory from other processes included.
    ///
    /// # Errors
    /// When the list can't be read, the process being gone for example.
    fn tasks(&mut self) -> Result<Listing<Self::Task>, Self::Error>;

    /// Stops the task, asks `judge` with what it found, carries the verdict out and lets the task go on.
    ///
    /// # Errors
    /// When the task is in no state that the transition can leave it in.
    fn visit(
        &mut self,
        task: Self::Task,
        judge: &mut dyn FnMut(Standing, Look) -> Verdict,
    ) -> Result<Visit, Self::Error>;

    /// Whether another look may find something else: the task has run since its last visit.
    fn has_run(&mut self, task: Self::Task) -> bool;

    /// Called after each round that left `busy` tasks behind; `settled` have arrived.
    ///
    /// # Errors
    /// When waiting is pointless.
    fn pause(&mut self, round: u32, settled: usize, busy: usize) -> Result<Pause, Self::Error>;
}

/// So many calm rounds in a row end the loop although no list was proven complete: a live task that each of them missed
/// would have to be missed by every one. Measured under churn one reading in two hundred misses a task.
const CALM_ROUNDS: u32 = 16;

/// Visits tasks until nobody can be left outside of `to`: a task that is there stays there, and what it creates begins
/// there. A round is calm when all that it visited were found in `to` already. One calm round over a complete list that
/// named nobody new is proof. So are two over lists that did: a task which switches itself may have created another
/// right before its first visit found it settled, and that other is on the next list. Tasks that come and go meanwhile
/// are looked at, and do not keep the loop from ending. In a `forced` transition nobody is busy.
///
/// # Errors
/// Whatever the target reports; the transition stays open then.
pub fn converge<T: Target>(
    target: &mut T,
    to: UniverseId,
    forced: bool,
) -> Result<Outcome<T::Task>, T::Error> {
    let mut settled: HashMap<T::Task, u32> = HashMap::new();
    let mut busy: HashMap<T::Task, Visit> = HashMap::new();
    let mut round = 0u32;
    let (mut calm, mut proven) = (0u32, 0u32);
    loop {
        let listing = target.tasks()?;
        let (mut moved, mut fresh) = (0usize, 0usize);
        let mut left = HashMap::new();
        for &task in &listing.tasks {
            if let Some(seen) = settled.get_mut(&task) {
                *seen = round;
                continue;
            }
            if let Some(last) = busy.get(&task)
                && !target.has_run(task)
            {
                left.insert(task, last.clone());
                continue;
            }
            let mut judge = |standing, look| Verdict::of(standing, look, to, forced);
            match target.visit(task, &mut judge)? {
                Visit::Judged(verdict @ (Verdict::Settled | Verdict::Move)) => {
                    if verdict == Verdict::Move || busy.contains_key(&task) {
                        moved += 1;
                    } else {
                        fresh += 1;
                    }
                    settled.insert(task, round);
                }
                Visit::Gone => {}
                other => {
                    left.insert(task, other);
                }
            }
        }
        // A number that is not listed any more may come back as another task.
        settled.retain(|_, seen| *seen == round);
        busy = left;
        if moved == 0 && busy.is_empty() {
            calm += 1;
            proven += u32::from(listing.complete);
            if listing.complete && fresh == 0 || proven >= 2 || calm >= CALM_ROUNDS {
                return Ok(Outcome::Complete);
            }
        } else {
            (calm, proven) = (0, 0);
        }
        if (!busy.is_empty() || !listing.complete)
            && target.pause(round, settled.len(), busy.len())? == Pause::Expired
        {
            let left = busy
                .into_iter()
                .map(|(task, visit)| Busy { task, visit })
                .collect();
            return Ok(Outcome::Expired(left));
        }
        round = round.wrapping_add(1);
    }
}

/// Asked with where the tasks are and what they hold, and with whether a suspended stack holds a replaced version.
pub type JudgeAll<'a> = dyn FnMut(&[(Standing, Look)], bool) -> Verdict + 'a;

/// Who has tasks that can only be moved all at once, see [`Verdict::of_all`].
pub trait Assembly {
    /// What can go wrong beyond a single task.
    type Error;

    /// Stops everybody, asks `judge`, carries the verdict out and lets all go on. `None`: not all could be stopped.
    ///
    /// # Errors
    /// When the tasks are in no state that the transition can leave them in.
    fn meet(&mut self, judge: &mut JudgeAll<'_>) -> Result<Option<Verdict>, Self::Error>;

    /// Called after each meeting at which nobody moved.
    ///
    /// # Errors
    /// When waiting is pointless.
    fn pause(&mut self) -> Result<Pause, Self::Error>;
}

/// Brings everybody to `to` in one motion; `false`: time ran out, and nobody has moved. What a task that has moved
/// creates begins in `to`, and nobody was left behind, so one meeting at which all move is the end of it.
///
/// # Errors
/// Whatever the target reports; the transition stays open then.
pub fn converge_together<T: Assembly>(
    target: &mut T,
    to: UniverseId,
    forced: bool,
) -> Result<bool, T::Error> {
    let mut judge = |tasks: &[(Standing, Look)], held| Verdict::of_all(tasks, held, to, forced);
    loop {
        if let Some(Verdict::Move | Verdict::Settled) = target.meet(&mut judge)? {
            return Ok(true);
        }
        if target.pause()? == Pause::Expired {
            return Ok(false);
        }
    }
}
