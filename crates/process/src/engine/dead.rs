//! Which words on stacks can't be pointers that anybody will use: those below a stack pointer, and return addresses that
//! nothing returns to. Every stack is littered with both.

use super::Engine;
use super::reach::{Held, Reach};
use crate::arch;
use crate::object::Mapping;
use crate::process::{Stat, Task};
use crate::remote::is_c_library;
use crate::search::{Wanted, Word};
use crate::sys::Registers;
use crate::unwind::{Module, Stack};
use std::ops::Range;

const RED_ZONE: u64 = 128;
/// From the thread control block: the C library's own description of the thread, which has no other bounds.
const LARGEST_PTHREAD: usize = 0xa00;
/// The thread control block lies at the end of its stack, at most so far from it.
const TCB_ROOM: u64 = 0x4000;
/// Thread-local storage lies between a thread's first frame and its control block.
const TLS_ROOM: u64 = 64 * 1024;
/// A program that has its C library in it has no more of that than this.
const TLS_ROOM_OF_STATIC: u64 = 4096;
/// The kernel's frame for a signal handler is no larger, with all vector registers, where the stack does not change.
const LARGEST_SIGNAL_FRAME: u64 = 16 * 1024;
/// The outermost frame begins where the kernel left the stack, up to alignment and arguments.
const START_ROOM: u64 = 128;

impl Engine {
    /// Of the words that were found in memory, takes those that are on the stack of a stopped task, and keeps what may be
    /// live. Below the red zone of a task that is on the stack that it began with nothing is, if its thread control block
    /// is its own (`is_alone`); nor is a return address that nothing returns to.
    pub(super) fn judge_stack(
        &mut self,
        task: Task,
        regs: &Registers,
        is_alone: bool,
        wanted: &Wanted,
        reach: &mut Reach,
    ) {
        let Ok((low, high)) = self.process.mapping_at(regs.rsp) else {
            return;
        };
        let from = reach.words.partition_point(|word| word.at < low);
        let to = reach.words.partition_point(|word| word.at < high);
        if from >= to {
            return;
        }
        let stack = self.unwind(regs);
        let dead = || self.dead_part(regs, &stack, low, high);
        let dead = is_alone.then(dead).flatten().unwrap_or(0..0);
        // Mappings may merge upwards, and nothing of this stack is above its own TCB.
        let top = match (regs.rsp..high).contains(&regs.fs_base) {
            true => regs.fs_base,
            false => high,
        };
        let words: Vec<Word> = reach.words.drain(from..to).collect();
        for word in words {
            // While tasks run, what was there may be gone.
            let now = self.memory().read_u64(word.at).ok();
            let now = now.and_then(|now| wanted.find(now));
            let is_there = now == Some((word.value, word.mangled));
            let below = dead.start <= word.at && word.at.saturating_add(8) <= dead.end;
            // No return address that is returned to lies in a red zone: that shows what the last call left.
            let red_zone = regs.rsp.saturating_sub(RED_ZONE)..regs.rsp;
            let unused = red_zone.contains(&word.at) || stack.is_dead(word.at);
            if !is_there || below || unused && self.is_return_address(word) {
                continue;
            }
            if (red_zone.start..top).contains(&word.at) {
                reach.held.push(Held {
                    value: word.value,
                    mangled: word.mangled,
                    at: Some(word.at),
                    place: "the stack",
                    task: Some(task),
                });
            } else {
                let index = reach.words.partition_point(|other| other.at < word.at);
                reach.words.insert(index, word);
            }
        }
    }

    /// What lies below a task's stack pointer and belongs to the same stack: the one that the task began with, as a
    /// complete unwind without a change of stacks tells, whose end the kernel or the C library says.
    fn dead_part(
        &self,
        regs: &Registers,
        stack: &Stack,
        low: u64,
        high: u64,
    ) -> Option<Range<u64>> {
        let frames = &stack.frames;
        let (first, last) = (frames.first()?, frames.last()?);
        let adjoin = frames.windows(2).all(|pair| match pair {
            [inner, outer] => inner.high == outer.low,
            _ => false,
        });
        // A handler on a stack of its own interrupted something that lies elsewhere.
        let one_stack = frames.iter().all(|frame| {
            let size = frame.high.checked_sub(frame.low);
            size.is_some_and(|size| !frame.signal || size <= LARGEST_SIGNAL_FRAME)
        });
        if !stack.complete || !adjoin || !one_stack || first.low != regs.rsp || last.high > high {
            return None;
        }
        let end = regs.rsp.checked_sub(RED_ZONE)?;
        let mapping = |at: u64| self.maps.iter().find(|mapping| mapping.contains(at));
        let is_main = |mapping: &Mapping| {
            let name = mapping.path.as_deref().and_then(|path| path.to_str());
            name == Some("[stack]")
        };
        if mapping(regs.rsp).is_some_and(is_main) {
            let stat = Stat::read(&self.process.dir().join("stat"))?;
            let began = stat.start_stack.abs_diff(last.high) <= START_ROOM;
            return began.then_some(low..end);
        }
        // A stack that is switched to may lie in an array on a thread's own, and begin in the C library as that does.
        if !matches!(self.switching, Some(None)) {
            return None;
        }
        let has_library = self
            .maps
            .iter()
            .any(|mapping| mapping.exec && is_c_library(mapping));
        let by_library = !has_library || mapping(last.pc).is_some_and(is_c_library);
        let to_tcb = regs.fs_base.checked_sub(last.high)?;
        let room = if has_library {
            TLS_ROOM
        } else {
            TLS_ROOM_OF_STATIC
        };
        if !by_library || to_tcb > room || !(low..high).contains(&regs.fs_base) {
            return None;
        }
        let lowest = self.thread_stack(regs)?.max(low);
        (lowest < end).then_some(lowest..end)
    }

    /// Where the C library says that a thread's stack begins: an address and a size next to each other in its
    /// description of the thread, that have the stack pointer between them and end right above that description
    /// (`stackblock` and `stackblock_size` in glibc, `map_base` and `map_size` in musl).
    fn thread_stack(&self, regs: &Registers) -> Option<u64> {
        let mut bytes = vec![0; LARGEST_PTHREAD];
        let got = self.memory().read_some(regs.fs_base, &mut bytes).ok()?;
        bytes.truncate(got);
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.try_into().map(u64::from_le_bytes).unwrap_or_default())
            .collect();
        let fits = |pair: &[u64]| {
            let &[start, size] = pair else { return None };
            let beyond = start.checked_add(size)?.checked_sub(regs.fs_base)?;
            let fits = start.is_multiple_of(arch::PAGE)
                && (start..regs.fs_base).contains(&regs.rsp)
                && beyond <= TCB_ROOM;
            fits.then_some(start)
        };
        words.windows(2).filter_map(fits).max()
    }

    /// Whether a word is what a call in a patch's code pushes. No pointer to anything else has this value.
    fn is_return_address(&self, word: Word) -> bool {
        let mut images = self.state.images.iter();
        let Some(image) = images.find(|image| image.block().contains(&word.value)) else {
            return false;
        };
        let parts = self.modules_of(image);
        let mut parts = parts.iter().flat_map(Module::parts);
        let site = word.value.wrapping_sub(1);
        let code = parts.find(|part| part.contains(&site)).and_then(|part| {
            let len = usize::try_from(part.end.min(word.value) - part.start).ok()?;
            let code = self.memory().read_vec(part.start, len.min(1 << 20)).ok()?;
            Some((part.start, code))
        });
        !word.mangled && code.is_some_and(|(start, code)| arch::ends_with_call(start, &code))
    }
}
