//! The stack check: may a stopped task return to, or is it in, a version that a move replaces?
//!
//! Conservative: every word from the stack pointer to the stack's base, the program counter and all general
//! registers are compared with the ranges of those versions. No hit is a proof; a hit may be a dead word.

use crate::arch;
use crate::process::Process;
use crate::sys::Registers;
use livegraft_model::{Slot, Version};
use std::io;

/// A range of code addresses `after < address <= last`: a return address may be one past the end of the code, and
/// the very first byte of an original is its entry, which decides anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CodeRange {
    /// Exclusive lower bound.
    pub after: u64,
    /// Inclusive upper bound.
    pub last: u64,
    /// Whose code it is.
    pub slot: Slot,
    /// Which version.
    pub version: Version,
}

/// Code ranges, sorted and without overlap.
#[derive(Debug, Clone, Default)]
pub struct Ranges(Vec<CodeRange>);

impl Ranges {
    /// Sorts; where two overlap, the later one is cut.
    pub fn new(mut ranges: Vec<CodeRange>) -> Ranges {
        ranges.retain(|range| range.after < range.last);
        ranges.sort_unstable();
        let mut kept: Vec<CodeRange> = Vec::with_capacity(ranges.len());
        for mut range in ranges {
            if let Some(previous) = kept.last() {
                range.after = range.after.max(previous.last);
            }
            if range.after < range.last {
                kept.push(range);
            }
        }
        Ranges(kept)
    }

    /// The range that an address lies in.
    pub fn find(&self, address: u64) -> Option<&CodeRange> {
        let index = self.0.partition_point(|range| range.last < address);
        self.0.get(index).filter(|range| range.after < address)
    }

    /// Those that touch a range.
    pub fn overlapping(&self, span: &std::ops::Range<u64>) -> Ranges {
        let touches = |range: &&CodeRange| range.after < span.end && range.last >= span.start;
        Ranges(self.0.iter().filter(touches).copied().collect())
    }

    /// Those that touch one of several ranges.
    pub fn touching<'a>(&self, spans: impl Iterator<Item = &'a std::ops::Range<u64>>) -> Ranges {
        Ranges::new(spans.flat_map(|span| self.overlapping(span).0).collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &CodeRange> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What holds a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The code address that was found.
    pub address: u64,
    /// The stack address of the word; `None`: the program counter or another register.
    pub stack: Option<u64>,
    /// Whose code it is.
    pub slot: Slot,
    /// Which version.
    pub version: Version,
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What holds it, at most [`MOST_HITS`], registers first.
    pub hits: Vec<Hit>,
    /// The task is within the self-switch, or interrupted by a handler there.
    pub mid_switch: bool,
    /// The stack that was scanned: lowest address of its mapping, and its base.
    pub stack: (u64, u64),
}

/// More hits are not told apart: a task that has as many is busy.
pub const MOST_HITS: usize = 256;
const CHUNK: usize = 16 * 1024;
/// Signal handlers on alternate stacks within signal handlers ...
const MAX_STACKS: usize = 16;
const UCONTEXT_RSP: u64 = 8 + 40 + 15 * 8;
const UCONTEXT_RIP: u64 = 8 + 40 + 16 * 8;

/// What a check looks for.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// The versions that the move replaces: anywhere.
    pub replaced: Ranges,
    /// The ways into replaced functions that others jump to: as a program counter only.
    pub entering: Ranges,
}

/// Checks a stopped task.
///
/// # Errors
/// When the stack can't be read: the process has left this memory, or the stack pointer is nonsense.
pub fn check(
    process: &Process,
    regs: &Registers,
    restorers: &[u64],
    watched: &Watched,
    switching: &Ranges,
) -> io::Result<Found> {
    let Watched { replaced, entering } = watched;
    let first = bounds(process, regs, regs.rsp)?;
    let mut found = Found {
        hits: Vec::new(),
        mid_switch: false,
        stack: first,
    };
    let r = regs;
    for value in [
        r.rip, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ] {
        note(&mut found, replaced, switching, value, None);
    }
    note(&mut found, entering, switching, regs.rip, None);
    // Stacks to scan: (from, up to). A signal frame names the one that its handler interrupted.
    let mut stacks = vec![(regs.rsp & !7, first.1)];
    let mut next = 0;
    let mut buf = vec![0u8; CHUNK];
    while let Some(&(from, to)) = stacks.get(next) {
        next += 1;
        let mut at = from;
        while at < to {
            let want = usize::try_from(to - at).unwrap_or(CHUNK).min(CHUNK);
            let chunk = buf.get_mut(..want).unwrap_or_default();
            process.memory.read(at, chunk)?;
            for (index, word) in chunk.chunks_exact(8).enumerate() {
                let word = word
                    .iter()
                    .rev()
                    .fold(0u64, |value, &byte| value << 8 | u64::from(byte));
                let here = at + 8 * index as u64;
                note(&mut found, replaced, switching, word, Some(here));
                if !restorers.contains(&word) {
                    continue;
                }
                if let Ok(rip) = process.memory.read_u64(here.wrapping_add(UCONTEXT_RIP)) {
                    note(&mut found, entering, switching, rip, Some(here));
                }
                if let Ok(interrupted) = process.memory.read_u64(here.wrapping_add(UCONTEXT_RSP))
                    && !stacks
                        .iter()
                        .any(|&(from, to)| (from..to).contains(&interrupted))
                    && stacks.len() < MAX_STACKS
                    && let Ok((_, base)) = bounds(process, regs, interrupted)
                {
                    stacks.push((interrupted & !7, base));
                }
            }
            at += want as u64;
        }
    }
    Ok(found)
}

fn note(found: &mut Found, replaced: &Ranges, switching: &Ranges, value: u64, stack: Option<u64>) {
    if found.hits.len() < MOST_HITS
        && let Some(range) = replaced.find(value)
    {
        let (slot, version) = (range.slot, range.version);
        found.hits.push(Hit {
            address: value,
            stack,
            slot,
            version,
        });
    }
    if switching.find(value).is_some() {
        found.mid_switch = true;
    }
}

/// The mapping that a stack pointer lies in, cut at the thread control block where that lies in it: mappings may
/// merge upwards, and nothing of this stack is above its own TCB.
fn bounds(process: &Process, regs: &Registers, sp: u64) -> io::Result<(u64, u64)> {
    let (low, high) = process.mapping_at(sp)?;
    let high = if (sp..high).contains(&regs.fs_base) {
        regs.fs_base & !7
    } else {
        high
    };
    if high > arch::USER_END {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((low, high))
}
