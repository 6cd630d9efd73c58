//! Universes, and the one rule about tasks: who may move.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A small integer that stands for one redirected function of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u32);

/// Names a patch within one process; never used twice there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PatchId(pub u32);

/// Names a universe within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UniverseId(pub u32);

impl UniverseId {
    /// The original code: the universe of every task that nobody ever touched.
    pub const ORIGINAL: UniverseId = UniverseId(0);
}

/// One body of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Version {
    /// The body that the object came with.
    Original,
    /// The body that a patch brings.
    Patched(PatchId),
}

/// A table slot -> version. A slot that is not named runs the original.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Universe {
    patched: BTreeMap<Slot, PatchId>,
}

impl Universe {
    /// The universe that a stack of patches makes: the newest on a slot wins. `stack` is oldest first.
    pub fn of_stack<'a, I>(stack: I) -> Self
    where
        I: IntoIterator<Item = (PatchId, &'a [Slot])>,
    {
        let mut patched = BTreeMap::new();
        for (patch, slots) in stack {
            for &slot in slots {
                patched.insert(slot, patch);
            }
        }
        Universe { patched }
    }

    /// Which version a task of this universe runs.
    pub fn version(&self, slot: Slot) -> Version {
        self.patched
            .get(&slot)
            .map_or(Version::Original, |&patch| Version::Patched(patch))
    }

    /// The slots that do not run the original, with the patch whose version they run.
    pub fn patched(&self) -> impl Iterator<Item = (Slot, PatchId)> + '_ {
        self.patched.iter().map(|(&slot, &patch)| (slot, patch))
    }

    /// The versions of this universe that a move to `next` replaces: what must not be on the stack of a task that
    /// makes it. Every slot that differs counts, whatever its age: the kernel's check of only the next older
    /// version is the hole for which `immediate` was removed there.
    pub fn replaced_by(&self, next: &Universe) -> Vec<(Slot, Version)> {
        let slots: std::collections::BTreeSet<Slot> = self
            .patched
            .keys()
            .chain(next.patched.keys())
            .copied()
            .collect();
        slots
            .into_iter()
            .filter(|&slot| self.version(slot) != next.version(slot))
            .map(|slot| (slot, self.version(slot)))
            .collect()
    }
}

/// Where a task was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// In a universe.
    In(UniverseId),
    /// In a private copy of `from` whose slots lead to the self-switch: it runs `from` and moves itself to `to` at
    /// the first call of a replaced function that finds the stack clean.
    Waiting {
        /// The universe that it runs.
        from: UniverseId,
        /// The universe that it was told to switch to.
        to: UniverseId,
    },
}

impl Standing {
    /// The universe whose versions the task runs.
    pub fn runs(self) -> UniverseId {
        match self {
            Standing::In(universe) | Standing::Waiting { from: universe, .. } => universe,
        }
    }
}

/// What a look at a stopped task found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// One of the versions that the move replaces is being executed or may be returned to.
    pub holds_replaced: bool,
    /// The task is in the middle of switching itself: it may have decided already.
    pub mid_switch: bool,
}

/// What is to be done with a stopped task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It lives where it should.
    Settled,
    /// Set its universe to the transition's target: nothing on its stack differs between the two.
    Move,
    /// It is busy: give it a private table so that it switches itself.
    Arm,
    /// It is busy and told already: leave it alone.
    Wait,
    /// It is switching itself at this moment: look again soon, touch nothing.
    Again,
}

impl Verdict {
    /// The rule of invariant 1 (`klp_try_switch_task`): a stopped task changes universe only when no version that
    /// the change replaces *for it* is being executed or can be returned to. `forced` does without (`klp_force_transition`).
    pub fn of(standing: Standing, look: Look, to: UniverseId, forced: bool) -> Verdict {
        match standing {
            Standing::In(universe) if universe == to => Verdict::Settled,
            _ if look.mid_switch => Verdict::Again,
            _ if forced || !look.holds_replaced => Verdict::Move,
            Standing::Waiting { to: told, .. } if told == to => Verdict::Wait,
            _ => Verdict::Arm,
        }
    }

    /// The same for all tasks at once, where stacks can be handed from one task to another, and be suspended with nobody
    /// on them: a task that moved alone could be given a stack with a replaced version on it by one that has not. So all
    /// stand still, and all move or nobody does. `suspended`: a replaced version is on a stack that no task runs on.
    pub fn of_all(
        tasks: &[(Standing, Look)],
        suspended: bool,
        to: UniverseId,
        forced: bool,
    ) -> Verdict {
        let mut verdict = Verdict::Settled;
        for &(standing, mut look) in tasks {
            look.holds_replaced |= suspended;
            match Verdict::of(standing, look, to, forced) {
                Verdict::Settled => {}
                Verdict::Move => verdict = Verdict::Move,
                Verdict::Arm | Verdict::Wait | Verdict::Again => return Verdict::Again,
            }
        }
        verdict
    }
}
