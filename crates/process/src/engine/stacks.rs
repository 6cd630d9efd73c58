//! Strict unwinds of the target's stacks: which of the words that hold a task are dead, and what it is doing.

use super::Engine;
use crate::arch;
use crate::error::Error;
use crate::link::{self, Layout};
use crate::object::Mapping;
use crate::stack::{Hit, MOST_HITS};
use crate::state::{Image, Purpose};
use crate::symbolfile::PatchCode;
use crate::symbolize::{Place, Symbolizer};
use crate::sys::Registers;
use crate::unwind::{Module, Stack, Unwinder};
use livegraft_model::Refusal;
use livegraft_patchfile::Patch;

/// A deeper stack is not unwound to its end, and so none of its words is taken for dead.
pub(super) const MOST_FRAMES: usize = 1000;

impl Engine {
    /// Reads what unwinds need: the call frame information of all objects and of all patches. Takes milliseconds, so
    /// that it must not be done while a task stands still.
    pub(super) fn prepare_unwinds(&mut self) -> Result<(), Error> {
        if self.unwinder.is_some() {
            return Ok(());
        }
        self.refresh_maps()?;
        let objects = self.mapped_objects()?;
        let mut modules: Vec<Module> = objects.iter().filter_map(|o| o.unwind_info()).collect();
        modules.extend(
            self.state
                .images
                .iter()
                .flat_map(|image| self.modules_of(image)),
        );
        self.unwinder = Some(Unwinder::new(modules));
        Ok(())
    }

    /// The call frame information of a patch.
    pub(super) fn modules_of(&self, image: &Image) -> Vec<Module> {
        let code = image.block();
        let read = |&(start, end): &(u64, u64)| {
            let len = usize::try_from(end.saturating_sub(start).min(image.len)).ok()?;
            Some(Module {
                code: Vec::from([code.clone()]),
                bias: 0,
                eh_frame: (self.memory().read_vec(start, len).ok()?, start),
                eh_frame_hdr: None,
            })
        };
        image.eh_frames.iter().filter_map(read).collect()
    }

    /// What gives names to the frames of unwinds. Takes milliseconds, and more for each object with DWARF that a frame
    /// lies in, so that it must not be done while a task stands still.
    ///
    /// # Errors
    /// [`Error::Object`].
    pub fn symbolizer(&self) -> Result<Symbolizer, Error> {
        let mut places = Vec::new();
        for image in &self.state.images {
            self.places_of(image, &mut places);
        }
        for (slot, entry) in self.state.slots() {
            let function = self.state.display(slot);
            let mut place = |start: u64, end: u64, what: &str| {
                let name = format!("livegraft's {what} of {function}");
                places.push(Place {
                    code: start..end,
                    name,
                });
            };
            let trampoline = entry.trampoline;
            place(
                trampoline,
                trampoline.saturating_add(arch::TRAMPOLINE),
                "trampoline",
            );
            place(entry.continuation, entry.thunk, "copy of the entry");
            place(
                entry.thunk,
                entry.thunk.saturating_add(arch::THUNK_LEN),
                "self-switch before a call",
            );
        }
        for region in &self.state.regions {
            let name = match region.purpose {
                Purpose::Trampolines => "livegraft's self-switch",
                Purpose::Pun => "livegraft's trampoline",
                _ => continue,
            };
            places.push(Place {
                code: region.start..region.end(),
                name: name.to_owned(),
            });
        }
        Ok(Symbolizer::new(
            self.mapped_objects()?,
            self.maps.clone(),
            places,
        ))
    }

    /// Where a patch lies, for tools that can't see it by themselves.
    ///
    /// # Errors
    /// [`Refusal::NotLoaded`]: this very file is not in the process.
    pub fn patch_code(&self, patch: &Patch, name: &str) -> Result<PatchCode, Error> {
        let mut images = self.state.images.iter();
        let image = images.rfind(|image| image.digest == patch.digest);
        let image = image.ok_or_else(|| Refusal::NotLoaded(name.to_owned()))?;
        let layout = Layout::of(patch)?;
        let module = self.modules_of(image).into_iter().next();
        Ok(PatchCode {
            text: image.start..image.start.saturating_add(layout.text_size),
            functions: link::functions_at(patch, &layout, image.start),
            eh_frame: module.map(|module| (module.eh_frame.1, module.eh_frame.0)),
        })
    }

    /// The functions of a patch, told from each other by its call frame information.
    fn places_of(&self, image: &Image, places: &mut Vec<Place>) {
        let patch = self.state.model.patch(image.id);
        let patch = patch.map_or("?", |patch| patch.name.as_str());
        for part in self.modules_of(image).iter().flat_map(Module::parts) {
            let replaces = image.functions.iter().find(|function| {
                let begins = |&(after, _): &(u64, u64)| after.checked_add(1) == Some(part.start);
                function.entry == part.start || function.bodies.iter().any(begins)
            });
            places.extend(replaces.map(|function| Place {
                code: part.clone(),
                name: format!("{} of patch {patch}", self.state.display(function.slot)),
            }));
        }
        places.push(Place {
            code: image.block(),
            name: format!("code of patch {patch}"),
        });
    }

    /// Whether a stopped task runs on a stack that is its alone from its lowest address on: what lies below the stack
    /// pointer there is nobody's. The kernel names the one of the main task; of any other's tells the thread control
    /// block in it, and the guard below it.
    pub(super) fn is_at_home(&self, regs: &Registers, stack: (u64, u64)) -> bool {
        let of_main = |mapping: &Mapping| {
            let path = mapping.path.as_deref();
            path.is_some_and(|path| path.as_os_str() == "[stack]")
        };
        let at = |address: u64| self.maps.iter().find(|mapping| mapping.contains(address));
        let guarded = || {
            let guard = stack.0.checked_sub(1).and_then(at);
            guard.is_some_and(|guard| !guard.read && !guard.write && !guard.exec)
        };
        let has_control_block = || {
            let itself = regs.fs_base.wrapping_add(16);
            at(stack.0).is_some_and(|mapping| mapping.contains(regs.fs_base))
                && self.memory().read_u64(itself).ok() == Some(regs.fs_base)
        };
        at(regs.rsp).is_some_and(of_main) || has_control_block() && guarded()
    }

    /// Unwinds a stopped task, as far as that is prepared.
    pub(super) fn unwind(&mut self, regs: &Registers) -> Stack {
        let memory = &self.process.memory;
        let read = |at| memory.read_u64(at).ok();
        let Some(unwinder) = &mut self.unwinder else {
            return Stack::default();
        };
        unwinder.unwind(regs.rip, arch::dwarf_registers(regs), MOST_FRAMES, &read)
    }

    /// Removes the hits that are dead words. Only where all lie on the stack: what is in a register may be live.
    ///
    /// Every stack is littered with return addresses into the dynamic loader's resolver, one for each function that was
    /// looked up. They are dead in frames of any size: no coroutine is switched away from in the middle of a lookup.
    pub(super) fn dismiss_dead(&mut self, regs: &Registers, hits: &mut Vec<Hit>) -> Stack {
        if hits.is_empty() || !may_be_dead(hits) || self.unwinder.is_none() {
            return Stack::default();
        }
        let stack = self.unwind(regs);
        self.dismiss(&stack, hits);
        stack
    }

    /// The same for a stack that is unwound.
    pub(super) fn dismiss(&self, stack: &Stack, hits: &mut Vec<Hit>) {
        if may_be_dead(hits) {
            hits.retain(|hit| {
                let dead = |at| match self.is_resolver(hit) {
                    true => stack.is_dead_here(at),
                    false => stack.is_dead(at),
                };
                !hit.stack.is_some_and(dead)
            });
        }
    }
}

fn may_be_dead(hits: &[Hit]) -> bool {
    hits.len() < MOST_HITS && hits.iter().all(|hit| hit.stack.is_some())
}
