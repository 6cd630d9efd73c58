//! Patch code for the program's own unwinder: exceptions, pthread_cancel and backtrace() pass through code only when its
//! call frame information is found. That of objects the unwinder finds by itself; ours must be registered, by a call of
//! a function in the target, on a task that is in a place where that is safe.

use super::Engine;
use super::safe::{self, function, is_unwinder};
use crate::arch;
use crate::error::Error;
use crate::link::Linked;
use crate::object::Objects;
use crate::remote::Unfinished;
use crate::state::{Purpose, Region, State};
use livegraft_model::PatchId;
use std::ops::Range;

/// What libgcc keeps about a registered section: six words (unwind-dw2-fde.h, `struct object`), with room to grow.
const NOTE: u64 = 64;

/// An unwinder of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// The object that it is in.
    object: String,
    /// Address of the function that registers a section.
    function: u64,
    /// And of that which takes it back.
    forget: Option<u64>,
}

/// Call frame information of a patch.
#[derive(Debug)]
pub(super) struct Information {
    /// Begins and ends.
    pub sections: Vec<(u64, u64)>,
    /// The unwinders that know it.
    pub told: Vec<u64>,
}

/// What a load would have a task register, and whether one could.
#[derive(Debug, Clone)]
pub struct Registering {
    /// The unwinders' objects.
    pub object: String,
    /// The task that would be asked to.
    pub task: Option<i32>,
    /// Where there is none: what is in the way, of one of them.
    pub why: Option<String>,
}

/// Which unwinders have been told, and where they keep notes.
pub(super) type Told = (Vec<u64>, Vec<u64>);

/// The unwinders that can be told of code that they don't find by themselves.
fn unwinders(objects: &Objects) -> Vec<Known> {
    let candidates = objects
        .iter()
        .filter(|o| o.is_executable() || is_unwinder(o));
    candidates
        .filter_map(|object| {
            let llvm = function(object, "__unw_add_dynamic_eh_frame_section");
            // LLVM's has functions of libgcc's names that do nothing, or something else.
            let is_llvm = llvm.is_some() || function(object, "__unw_getcontext").is_some();
            let gcc = || function(object, "__register_frame_info").filter(|_| !is_llvm);
            let forget = match is_llvm {
                true => "__unw_remove_dynamic_eh_frame_section",
                false => "__deregister_frame_info",
            };
            Some(Known {
                object: object.name().to_owned(),
                function: llvm.or_else(gcc)?.start,
                forget: function(object, forget).map(|range| range.start),
            })
        })
        .collect()
}

/// The objects that unwinders are in.
fn names<'k>(unwinders: impl Iterator<Item = &'k Known>) -> String {
    let mut objects: Vec<&str> = unwinders.map(|known| known.object.as_str()).collect();
    objects.dedup();
    objects.join(", ")
}

impl Engine {
    /// Tells the program's unwinders of a new patch, before any task can run its code; returns who has been told, and where
    /// they keep notes about it.
    ///
    /// # Errors
    /// As [`Engine::register_again`].
    pub(super) fn register_new(
        &mut self,
        objects: &Objects,
        linked: &Linked,
        block: &Range<u64>,
        regions: &[Region],
    ) -> Result<Told, Error> {
        let of_patch = |region: &&Region| block.contains(&region.start);
        let keep: Vec<Region> = regions.iter().filter(of_patch).copied().collect();
        let sections = linked
            .eh_frames
            .iter()
            .map(|range| (range.start, range.end));
        self.register(objects, &sections.collect::<Vec<_>>(), &[], &keep)
    }

    /// Tells unwinders that have come since then of patches that are there.
    ///
    /// # Errors
    /// [`Error::NoSafeTask`]: nobody was told. [`Error::NotRegistered`]: that is not certain.
    pub(super) fn register_again(
        &mut self,
        patches: &[PatchId],
        objects: &Objects,
    ) -> Result<(), Error> {
        for &id in patches {
            let Some(image) = self.state.image(id) else {
                continue;
            };
            let (sections, told) = (image.eh_frames.clone(), image.unwinders.clone());
            let (now, notes) = self.register(objects, &sections, &told, &[])?;
            if now.is_empty() {
                continue;
            }
            let image = self.state.images.iter_mut().find(|image| image.id == id);
            if let Some(image) = image {
                image.unwinders.extend(now);
                image.notes.extend(notes);
            }
            self.commit()?;
        }
        Ok(())
    }

    /// `keep`: from the call on these may be used, so nobody may take them away.
    fn register(
        &mut self,
        objects: &Objects,
        sections: &[(u64, u64)],
        told: &[u64],
        keep: &[Region],
    ) -> Result<Told, Error> {
        let mut untold = unwinders(objects);
        untold.retain(|unwinder| !told.contains(&unwinder.function));
        let sections: Vec<u64> = sections
            .iter()
            .filter(|(start, end)| start < end)
            .map(|&(start, _)| start)
            .collect();
        if untold.is_empty() || sections.is_empty() {
            return Ok(Told::default());
        }
        self.prepare_unwinds()?;
        let notes = (untold.len() as u64).saturating_mul(sections.len() as u64);
        let len = notes.saturating_mul(NOTE).next_multiple_of(arch::PAGE);
        let region = self.plan_anywhere(len, Purpose::Frames)?;
        self.state.regions.push(region);
        self.commit()?;
        self.map(&[region])?;
        let mut calls = Vec::new();
        let mut note = region.start;
        for unwinder in &untold {
            for &section in &sections {
                calls.push((unwinder, unwinder.function, [section, note, 0, 0, 0, 0]));
                note = note.saturating_add(NOTE);
            }
        }
        // What is registered must stay, whatever becomes of us and of the load. Recorded before it is done.
        let kept: Vec<u64> = keep.iter().chain([&region]).map(|r| r.start).collect();
        let called = self.call_each(objects, &calls, &mut |state, told| {
            for region in &mut state.regions {
                region.reachable |= kept.contains(&region.start);
            }
            told.extend(&kept);
        });
        if matches!(
            called,
            Err(Error::NoSafeTask { .. } | Error::Filtered { .. })
        ) {
            self.unmap(&[region])?;
            self.state.regions.retain(|r| r.start != region.start);
            self.commit()?;
        }
        called?;
        let told = untold.iter().map(|unwinder| unwinder.function).collect();
        Ok((told, Vec::from([region.start])))
    }

    /// Whether a load would have a task register any of this, and which one could right now: nobody is asked to.
    pub(super) fn would_register(
        &mut self,
        objects: &Objects,
        wanted: &[Information],
    ) -> Result<Option<Registering>, Error> {
        let mut untold = unwinders(objects);
        untold.retain(|unwinder| {
            let mut unknown = wanted
                .iter()
                .filter(|information| !information.told.contains(&unwinder.function));
            unknown.any(|unknown| unknown.sections.iter().any(|(start, end)| start < end))
        });
        if untold.is_empty() {
            return Ok(None);
        }
        let object = names(untold.iter());
        let (task, why) = match self.safe_task_now(objects)? {
            Ok(task) => (Some(task), None),
            Err(why) => (None, Some(why)),
        };
        Ok(Some(Registering { object, task, why }))
    }

    /// Has the unwinders forget a patch whose memory is to go. `Some`: they may still know it, and why.
    ///
    /// # Errors
    /// [`Error::Exited`], and when the process can't be read.
    pub(super) fn unregister(&mut self, id: PatchId) -> Result<Option<String>, Error> {
        let Some(image) = self.state.image(id).cloned() else {
            return Ok(None);
        };
        let name = "the program's unwinder knows its call frame information";
        if image.forgetting {
            return Ok(Some(format!("{name}, for all that is recorded")));
        }
        let objects = self.objects()?;
        // One that is not there any more knows nothing.
        let mut known = unwinders(&objects);
        known.retain(|unwinder| image.unwinders.contains(&unwinder.function));
        let mut calls = Vec::new();
        for unwinder in &known {
            let Some(forget) = unwinder.forget else {
                return Ok(Some(format!("{name}, and has no way to forget it")));
            };
            let sections = image.eh_frames.iter().filter(|(start, end)| start < end);
            calls.extend(sections.map(|&(at, _)| (unwinder, forget, [at, 0, 0, 0, 0, 0])));
        }
        let forgetting = |state: &mut State, forgetting: bool| {
            let image = state.images.iter_mut().find(|image| image.id == id);
            if let Some(image) = image {
                image.forgetting = forgetting;
            }
        };
        if !calls.is_empty() {
            match self.call_each(&objects, &calls, &mut |state, _| forgetting(state, true)) {
                Ok(()) => forgetting(&mut self.state, false),
                Err(error @ (Error::NoSafeTask { .. } | Error::NotRegistered { .. })) => {
                    return Ok(Some(format!("{name} ({error})")));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Has a task make calls of unwinders' functions, as soon as there is one that can. `record` changes what is recorded
    /// before the first of them.
    fn call_each(
        &mut self,
        objects: &Objects,
        calls: &[(&Known, u64, [u64; 6])],
        record: &mut dyn FnMut(&mut State, &mut Vec<u64>),
    ) -> Result<(), Error> {
        let purpose = format!(
            "the patch's call frame information can't be registered with {}, without which exceptions and \
             pthread_cancel could not pass through its code",
            names(calls.iter().map(|(known, ..)| *known))
        );
        let pid = self.process.pid;
        let errno = safe::errno_offset(objects, &self.process.memory);
        let stopped = self.safe_task(objects, &purpose)?;
        let tid = stopped.tid;
        let mut caller = safe::caller(&self.process, &self.gadgets, stopped, errno, &purpose)?;
        record(&mut self.state, &mut self.told);
        if let Some(registry) = &mut self.registry {
            registry
                .commit(&self.process.memory, &self.state)
                .map_err(Error::io("recording"))?;
        }
        for &(unwinder, function, arguments) in calls {
            let called = caller.call(function, arguments);
            called.map_err(|unfinished| match unfinished {
                Unfinished::Gone => Error::Exited(pid),
                Unfinished::Late | Unfinished::Faulted(_) => Error::NotRegistered {
                    pid,
                    tid,
                    object: unwinder.object.clone(),
                    late: unfinished == Unfinished::Late,
                },
            })?;
        }
        Ok(())
    }
}
