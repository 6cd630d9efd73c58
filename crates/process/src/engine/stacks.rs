//! Strict unwinds of the target's stacks: which of the words that hold a task are dead, and what it is doing.

use super::Engine;
use crate::arch;
use crate::error::Error;
use crate::object::Objects;
use crate::stack::{Hit, MOST_HITS};
use crate::sys::Registers;
use crate::unwind::{Module, Stack, Unwinder};

/// A deeper stack is not unwound to its end, and so none of its words is taken for dead.
const MOST_FRAMES: usize = 1000;

impl Engine {
    /// Reads what unwinds need: the call frame information of all objects and of all patches. Takes milliseconds, so
    /// that it must not be done while a task stands still.
    pub(super) fn prepare_unwinds(&mut self) -> Result<(), Error> {
        if self.unwinder.is_some() {
            return Ok(());
        }
        self.refresh_maps()?;
        let objects = Objects::read(&self.process.live(), &self.maps).map_err(|source| {
            let object = format!("the objects of process {}", self.process.pid);
            Error::Object { object, source }
        })?;
        let mut modules: Vec<Module> = objects.iter().filter_map(|o| o.unwind_info()).collect();
        for image in &self.state.images {
            for &(start, end) in &image.eh_frames {
                let len = usize::try_from(end.saturating_sub(start).min(image.len));
                let bytes = len.map(|len| self.memory().read_vec(start, len));
                if let Ok(Ok(bytes)) = bytes {
                    let code = image.start..image.start.saturating_add(image.len);
                    modules.push(Module {
                        code: Vec::from([code]),
                        bias: 0,
                        eh_frame: (bytes, start),
                        eh_frame_hdr: None,
                    });
                }
            }
        }
        self.unwinder = Some(Unwinder::new(modules));
        Ok(())
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
    pub(super) fn dismiss_dead(&mut self, regs: &Registers, hits: &mut Vec<Hit>) {
        let on_stack = hits.iter().all(|hit| hit.stack.is_some());
        if hits.is_empty() || hits.len() >= MOST_HITS || !on_stack || self.unwinder.is_none() {
            return;
        }
        let stack = self.unwind(regs);
        hits.retain(|hit| hit.stack.is_none_or(|at| !stack.is_dead(at)));
    }
}
