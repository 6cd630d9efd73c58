//! The consistency model: which version of a function a task runs, who may move when, and what must stay.
//!
//! It is the model of Linux livepatch's per-task transitions (kernel/livepatch/transition.c), said for *universes*
//! instead of one flag per task: every task lives in one universe, a map from slots to versions, and a transition
//! moves the tasks of a process, one at a time, from one universe to the next. There is no I/O, clock or process
//! here: whoever has tasks implements [`Target`] and lets [`converge`] drive them.
#![forbid(unsafe_code)]

mod converge;
mod patch;
mod universe;

pub use converge::{
    Assembly, Busy, JudgeAll, Listing, Outcome, Pause, Target, Visit, converge, converge_together,
};
pub use patch::{Livepatch, Operation, Patch, PatchState, Refusal, Transition};
pub use universe::{Look, PatchId, Slot, Standing, Universe, UniverseId, Verdict, Version};
