//! Patches, their stack, and the one transition that may be open.

use crate::{PatchId, Slot, Universe, UniverseId, Version};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Where a patch is in its life (`klp_patch.enabled` and the transition's direction).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchState {
    /// Its functions are in no universe that tasks are led to.
    Disabled,
    /// A transition towards it is open.
    Loading,
    /// Every task runs it, where no newer patch covers it.
    Enabled,
    /// A transition away from it is open.
    Unloading,
}

/// A patch as the rules see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Its identity.
    pub id: PatchId,
    /// The file's name without the extension.
    pub name: String,
    /// The slots of its functions.
    pub slots: Vec<Slot>,
    /// Where it is in its life.
    pub state: PatchState,
    /// A task was forced into or out of it: it may be returned to for ever, and is never freed (`klp_patch.forced`).
    pub forced: bool,
}

/// What a transition does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Towards the patch.
    Load,
    /// Away from it.
    Unload,
}

/// The open transition (`klp_transition_patch`, `klp_target_state`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Whose transition it is.
    pub patch: PatchId,
    /// What was asked for.
    pub operation: Operation,
    /// It now goes back to where it came from.
    pub reversed: bool,
    /// Tasks move whatever is on their stacks.
    pub forced: bool,
    /// The universe that tasks leave.
    pub from: UniverseId,
    /// The universe that tasks are led to.
    pub to: UniverseId,
}

impl Transition {
    /// What the transition does as it runs now: a reversed load unloads.
    pub fn heading(&self) -> Operation {
        match (self.operation, self.reversed) {
            (Operation::Load, false) | (Operation::Unload, true) => Operation::Load,
            (Operation::Load, true) | (Operation::Unload, false) => Operation::Unload,
        }
    }
}

/// Why an operation is not begun; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// EBUSY: one transition at a time.
    #[error(
        "the transition of patch `{0}` is still open; finish it with `livegraft resume` or take it back with \
         `livegraft reverse`"
    )]
    TransitionOpen(String),
    /// EINVAL: the same value written twice.
    #[error("patch `{0}` is already loaded; unload it first")]
    AlreadyLoaded(String),
    /// No such patch, or it is not enabled.
    #[error("patch `{0}` is not loaded; `livegraft list` shows what is")]
    NotLoaded(String),
    /// Its memory is in use.
    #[error("patch `{0}` is loaded; unload it first")]
    StillLoaded(String),
    /// A task was forced out of it.
    #[error(
        "patch `{0}` was forced: a task may return into it at any time, so its memory stays for ever"
    )]
    Forced(String),
    /// Nothing to reverse or to force.
    #[error("no transition is open, so there is nothing to reverse or to force")]
    NothingOpen,
}

/// All that the rules know of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Livepatch {
    /// Every patch whose memory is there, oldest enabled first: the order of the stack.
    patches: Vec<Patch>,
    universes: BTreeMap<UniverseId, Universe>,
    /// Where every task is when no transition is open.
    settled: UniverseId,
    transition: Option<Transition>,
    next_patch: u32,
    next_universe: u32,
}

impl Default for Livepatch {
    fn default() -> Self {
        Livepatch {
            patches: Vec::new(),
            universes: BTreeMap::from([(UniverseId::ORIGINAL, Universe::default())]),
            settled: UniverseId::ORIGINAL,
            transition: None,
            next_patch: 1,
            next_universe: 1,
        }
    }
}

impl Livepatch {
    /// All patches, in stack order.
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// The patch of that name: the one that is not disabled, where the name has been used for another before.
    pub fn patch_named(&self, name: &str) -> Option<&Patch> {
        let named = || self.patches.iter().filter(|patch| patch.name == name);
        named()
            .find(|patch| patch.state != PatchState::Disabled)
            .or_else(|| named().next())
    }

    /// The patch of that identity.
    pub fn patch(&self, id: PatchId) -> Option<&Patch> {
        self.patches.iter().find(|patch| patch.id == id)
    }

    fn patch_mut(&mut self, id: PatchId) -> Option<&mut Patch> {
        self.patches.iter_mut().find(|patch| patch.id == id)
    }

    /// The open transition.
    pub fn transition(&self) -> Option<&Transition> {
        self.transition.as_ref()
    }

    /// The universe of every task, when no transition is open; else the one that they leave or, after a reverse, go
    /// back to.
    pub fn settled(&self) -> UniverseId {
        self.settled
    }

    /// The universes that tasks may be in.
    pub fn universes(&self) -> impl Iterator<Item = (UniverseId, &Universe)> {
        self.universes.iter().map(|(&id, universe)| (id, universe))
    }

    /// What a universe consists of.
    pub fn universe(&self, id: UniverseId) -> Option<&Universe> {
        self.universes.get(&id)
    }

    /// The versions that a task of `from` must not hold when it moves to `to`.
    pub fn replaced(&self, from: UniverseId, to: UniverseId) -> Vec<(Slot, Version)> {
        match (self.universe(from), self.universe(to)) {
            (Some(from), Some(to)) => from.replaced_by(to),
            _ => Vec::new(),
        }
    }

    fn refuse_while_open(&self) -> Result<(), Refusal> {
        match &self.transition {
            None => Ok(()),
            Some(open) => Err(Refusal::TransitionOpen(
                self.patch(open.patch)
                    .map_or_else(String::new, |patch| patch.name.clone()),
            )),
        }
    }

    /// Whether a patch of this name may be loaded now.
    ///
    /// # Errors
    /// [`Refusal::TransitionOpen`], [`Refusal::AlreadyLoaded`].
    pub fn may_load(&self, name: &str) -> Result<(), Refusal> {
        self.refuse_while_open()?;
        match self.patch_named(name) {
            Some(patch) if patch.state != PatchState::Disabled => {
                Err(Refusal::AlreadyLoaded(name.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Takes a new patch in, disabled. Its memory may be mapped from now on.
    pub fn add(&mut self, name: &str, slots: Vec<Slot>) -> PatchId {
        let id = PatchId(self.next_patch);
        self.next_patch = self.next_patch.saturating_add(1);
        self.patches.push(Patch {
            id,
            name: name.to_owned(),
            slots,
            state: PatchState::Disabled,
            forced: false,
        });
        id
    }

    /// The patches whose memory may go once it is proven that nothing refers to it: those of a name, or all that are
    /// disabled. What was forced stays for ever (`klp_patch.forced`).
    ///
    /// # Errors
    /// [`Refusal::TransitionOpen`]; with a name [`Refusal::NotLoaded`], [`Refusal::StillLoaded`], [`Refusal::Forced`].
    pub fn may_free(&self, name: Option<&str>) -> Result<Vec<PatchId>, Refusal> {
        self.refuse_while_open()?;
        let named = |patch: &&Patch| name.is_none_or(|name| patch.name == name);
        let disabled = |patch: &&Patch| patch.state == PatchState::Disabled;
        let known = || self.patches.iter().filter(named);
        let free: Vec<PatchId> = known()
            .filter(|patch| disabled(patch) && !patch.forced)
            .map(|patch| patch.id)
            .collect();
        match (name.map(str::to_owned), known().next()) {
            (Some(name), None) => Err(Refusal::NotLoaded(name)),
            (Some(name), Some(_)) if free.is_empty() && known().any(|p| disabled(&p)) => {
                Err(Refusal::Forced(name))
            }
            (Some(name), Some(_)) if free.is_empty() => Err(Refusal::StillLoaded(name)),
            _ => Ok(free),
        }
    }

    /// Forgets a patch whose memory is about to go. One that is not disabled, or was forced, is not forgotten.
    pub fn forget(&mut self, id: PatchId) {
        let may_go = |patch: &Patch| patch.state == PatchState::Disabled && !patch.forced;
        self.patches
            .retain(|patch| patch.id != id || !may_go(patch));
    }

    /// Opens the transition towards a patch, which becomes the newest.
    ///
    /// # Errors
    /// As [`Livepatch::may_load`]; [`Refusal::NotLoaded`] when there is no such patch.
    pub fn begin_load(&mut self, id: PatchId) -> Result<&Transition, Refusal> {
        let name = self
            .patch(id)
            .map(|patch| patch.name.clone())
            .unwrap_or_default();
        self.may_load(&name)?;
        let index = self
            .patches
            .iter()
            .position(|patch| patch.id == id)
            .ok_or_else(|| Refusal::NotLoaded(name.clone()))?;
        let mut patch = self.patches.remove(index);
        patch.state = PatchState::Loading;
        self.patches.push(patch);
        Ok(self.open(id, Operation::Load))
    }

    /// Opens the transition away from a patch; newer ones stay.
    ///
    /// # Errors
    /// [`Refusal::TransitionOpen`], [`Refusal::NotLoaded`].
    pub fn begin_unload(&mut self, name: &str) -> Result<&Transition, Refusal> {
        self.refuse_while_open()?;
        let patch = self
            .patches
            .iter_mut()
            .find(|patch| patch.name == name && patch.state == PatchState::Enabled)
            .ok_or_else(|| Refusal::NotLoaded(name.to_owned()))?;
        patch.state = PatchState::Unloading;
        let id = patch.id;
        Ok(self.open(id, Operation::Unload))
    }

    fn open(&mut self, patch: PatchId, operation: Operation) -> &Transition {
        let target = Universe::of_stack(
            self.patches
                .iter()
                .filter(|patch| matches!(patch.state, PatchState::Enabled | PatchState::Loading))
                .map(|patch| (patch.id, patch.slots.as_slice())),
        );
        let to = self.enter(target);
        self.transition.insert(Transition {
            patch,
            operation,
            reversed: false,
            forced: false,
            from: self.settled,
            to,
        })
    }

    /// The id under which a universe is known: the original code is always universe 0.
    fn enter(&mut self, universe: Universe) -> UniverseId {
        if let Some((&id, _)) = self.universes.iter().find(|(_, known)| **known == universe) {
            return id;
        }
        // Never one that was used before: what still names an old one names nothing.
        let id = UniverseId(self.next_universe);
        self.next_universe = self.next_universe.saturating_add(1);
        self.universes.insert(id, universe);
        id
    }

    /// Turns the open transition round (`klp_reverse_transition`): tasks go back to where they came from. Twice is
    /// as never.
    ///
    /// # Errors
    /// [`Refusal::NothingOpen`].
    pub fn reverse(&mut self) -> Result<&Transition, Refusal> {
        let open = self.transition.as_mut().ok_or(Refusal::NothingOpen)?;
        open.reversed = !open.reversed;
        open.forced = false;
        std::mem::swap(&mut open.from, &mut open.to);
        let (id, heading) = (open.patch, open.heading());
        if let Some(patch) = self.patch_mut(id) {
            patch.state = match heading {
                Operation::Load => PatchState::Loading,
                Operation::Unload => PatchState::Unloading,
            };
        }
        self.transition.as_ref().ok_or(Refusal::NothingOpen)
    }

    /// Forces the open transition (`klp_force_transition`): who has not moved is moved, whatever is on its stack. All
    /// patches that such a task may still be inside of stay for ever: the one that goes, and any that the move replaces.
    ///
    /// # Errors
    /// [`Refusal::NothingOpen`].
    pub fn force(&mut self) -> Result<&Transition, Refusal> {
        let (patch, from, to) = match &mut self.transition {
            Some(open) => {
                open.forced = true;
                (open.patch, open.from, open.to)
            }
            None => return Err(Refusal::NothingOpen),
        };
        let replaced = self.replaced(from, to);
        for known in &mut self.patches {
            let version = Version::Patched(known.id);
            known.forced |= known.id == patch || replaced.iter().any(|&(_, v)| v == version);
        }
        self.transition.as_ref().ok_or(Refusal::NothingOpen)
    }

    /// Closes the transition: every task is in its target (`klp_complete_transition`). Universes in which nobody
    /// can be any more leave; their tables may be written anew. Returns what was closed.
    ///
    /// # Errors
    /// [`Refusal::NothingOpen`].
    pub fn complete(&mut self) -> Result<Transition, Refusal> {
        let closed = self.transition.take().ok_or(Refusal::NothingOpen)?;
        if let Some(patch) = self.patch_mut(closed.patch) {
            patch.state = match closed.heading() {
                Operation::Load => PatchState::Enabled,
                Operation::Unload => PatchState::Disabled,
            };
        }
        self.settled = closed.to;
        let keep = self.settled;
        self.universes
            .retain(|&id, _| id == UniverseId::ORIGINAL || id == keep);
        Ok(closed)
    }

    /// The slots whose entries must be redirected: those on which some universe that a task may be in, or is led
    /// to, differs from the original.
    pub fn redirected(&self) -> BTreeSet<Slot> {
        self.universes
            .values()
            .flat_map(|universe| universe.patched().map(|(slot, _)| slot))
            .collect()
    }

    /// The versions that a task may still reach or return to, so that their code must stay as it is: all that any
    /// live universe names. What only stacks hold beyond that is for `free` to find.
    pub fn reachable(&self) -> BTreeSet<(Slot, Version)> {
        let slots = self.redirected();
        self.universes
            .values()
            .flat_map(|universe| slots.iter().map(|&slot| (slot, universe.version(slot))))
            .collect()
    }
}
