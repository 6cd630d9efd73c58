//! Stacks that no task runs on: where a coroutine or a fiber sleeps. Is a replaced version on one of them?
//!
//! All writable memory is read while all tasks stand still, and looked through for words that could be return addresses
//! into replaced versions. Mostly there is none. What there is may be dead: a stack that somebody sleeps on is littered
//! with the frames of calls that have returned. Then each place that may be the saved stack pointer of a suspended stack
//! is unwound from; a word that no such stack can return to is dead. Whoever saves stack pointers in a way that is not
//! known here has no dead words.

use crate::arch::{self, Resume};
use crate::memory::Memory;
use crate::object::{Mapping, Suspended};
use crate::snapshot::{Snapshot, shown};
use crate::stack::Hit;
use crate::unwind::{Registers, Stack};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// More places that may be a suspended stack's are not unwound.
const MOST_CANDIDATES: usize = 10_000;
const RSP: usize = 7;

/// A place that may be where a suspended stack goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The lowest address of what it has left on its stack.
    pub low: u64,
    /// Where it goes on.
    pub pc: u64,
    /// Its registers then, by DWARF number.
    pub registers: Registers,
    /// Where that is saved: the place of `pc`.
    pub saved_at: u64,
}

/// What a process keeps suspended stacks in.
#[derive(Debug)]
pub struct Finder<'a> {
    /// What it is known to save stack pointers in.
    pub ways: &'a [Suspended],
    /// The C library's pointer guard, which `setjmp` hides addresses with.
    pub guard: u64,
    /// There may be a C library that does not hide them.
    pub plain_jumps: bool,
    /// All mappings.
    pub maps: &'a [Mapping],
    /// The memory.
    pub snapshot: &'a Snapshot,
    /// What tasks have in their registers: one may be in the middle of a switch.
    pub registers: &'a [u64],
    /// Code.
    pub memory: &'a Memory,
}

impl Finder<'_> {
    /// All candidates that go on at one of the hits, or lie in the same mapping as one; `None`: too many to tell.
    pub fn candidates(&self, hits: &[Hit]) -> Option<Vec<Candidate>> {
        let mut found = BTreeSet::new();
        let mut calls = HashMap::new();
        let reach = Reach::new(self.maps, hits);
        let mut look = |at: Option<u64>, word: u64| {
            if found.len() > MOST_CANDIDATES {
                return;
            }
            for way in self.ways {
                match (way, at) {
                    (Suspended::Ucontext, Some(at)) => {
                        found.extend(self.ucontext(at, word, &reach))
                    }
                    (Suspended::OnStack(resume), _) => {
                        found.extend(self.on_stack(word, resume, &reach, &mut calls));
                    }
                    _ => {}
                }
            }
            if let Some(at) = at {
                found.extend(self.jmp_buf(at, word, &reach));
            }
        };
        self.snapshot.each(|at, word| look(Some(at), word));
        self.registers.iter().for_each(|&word| look(None, word));
        (found.len() <= MOST_CANDIDATES).then(|| found.into_iter().collect())
    }

    fn is_code(&self, address: u64) -> bool {
        let next = self
            .maps
            .partition_point(|mapping| mapping.start <= address);
        let mapping = next.checked_sub(1).and_then(|index| self.maps.get(index));
        mapping.is_some_and(|mapping| mapping.exec && mapping.contains(address))
    }

    /// The C library's `ucontext_t` holds a pointer into itself: `uc_mcontext.fpregs` to `__fpregs_mem`.
    fn ucontext(&self, at: u64, word: u64, reach: &Reach) -> Option<Candidate> {
        const FPREGS: u64 = 0xe0;
        const FPREGS_MEM: u64 = 0x1a8;
        const GREGS: u64 = 0x28;
        if word.wrapping_sub(at) != FPREGS_MEM - FPREGS {
            return None;
        }
        let context = at.checked_sub(FPREGS)?;
        // r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip (sys/ucontext.h), by DWARF number.
        const ORDER: [usize; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7];
        let mut registers: Registers = [None; 16];
        for (index, number) in ORDER.iter().enumerate() {
            *registers.get_mut(*number)? = self.snapshot.word(context + GREGS + 8 * index as u64);
        }
        let pc = self.snapshot.word(context + GREGS + 8 * 16)?;
        let low = registers[RSP]?;
        (reach.has(low, pc) && self.is_code(pc)).then_some(Candidate {
            low,
            pc,
            registers,
            saved_at: context + GREGS + 8 * 16,
        })
    }

    fn on_stack(
        &self,
        saved: u64,
        resume: &Resume,
        reach: &Reach,
        calls: &mut HashMap<u64, bool>,
    ) -> Option<Candidate> {
        if !saved.is_multiple_of(8) || !reach.has_stack(saved) {
            return None;
        }
        let word = |offset: i64| self.snapshot.word(saved.wrapping_add_signed(offset));
        if let Some(at) = resume.mxcsr
            && word(at & !7)? >> (8 * (at & 7)) & 0xffff_0000 != 0
        {
            return None;
        }
        let pc = word(resume.pc)?;
        // Where a stack is left there is a call.
        let is_return = |pc: u64| self.is_code(pc) && follows_call(self.memory, pc);
        if !*calls.entry(pc).or_insert_with(|| is_return(pc)) {
            return None;
        }
        let mut registers = resume.registers.map(|at| word(at?));
        registers[RSP] = Some(saved.wrapping_add_signed(resume.sp));
        Some(Candidate {
            low: saved,
            pc,
            registers,
            saved_at: saved.wrapping_add_signed(resume.pc),
        })
    }

    /// `setjmp`: rbx, rbp, r12 to r15, rsp and pc, some of them hidden by the C library (sysdeps/x86_64/setjmp.S).
    fn jmp_buf(&self, at: u64, word: u64, reach: &Reach) -> Option<Candidate> {
        let hidden = |word: u64| shown(word, self.guard);
        let leads_to_stack =
            reach.has_stack(hidden(word)) || self.plain_jumps && reach.has_stack(word);
        if !leads_to_stack && !reach.is_hit(at.checked_add(8)?) {
            return None;
        }
        let pc = self.snapshot.word(at.checked_add(8)?)?;
        let as_is = |word: u64| word;
        let plain: &dyn Fn(u64) -> u64 = if reach.has(hidden(word), hidden(pc)) {
            &hidden
        } else if self.plain_jumps && reach.has_stack(word) {
            &as_is
        } else {
            return None;
        };
        if !self.is_code(plain(pc)) || !follows_call(self.memory, plain(pc)) {
            return None;
        }
        let saved = |back: u64| self.snapshot.word(at.checked_sub(back)?);
        let mut registers: Registers = [None; 16];
        registers[RSP] = Some(plain(word));
        registers[3] = saved(0x30);
        registers[6] = saved(0x28).map(plain);
        for (number, back) in [(12, 0x20), (13, 0x18), (14, 0x10), (15, 8)] {
            *registers.get_mut(number)? = saved(back);
        }
        Some(Candidate {
            low: plain(word),
            pc: plain(pc),
            registers,
            saved_at: at + 8,
        })
    }
}

/// What a candidate must have to do with the hits.
struct Reach {
    /// The mappings in which they lie.
    around: Vec<Range<u64>>,
    addresses: BTreeSet<u64>,
    /// Where they lie.
    places: BTreeSet<u64>,
    /// From the first of those places to the last.
    span: Range<u64>,
}

impl Reach {
    fn new(maps: &[Mapping], hits: &[Hit]) -> Reach {
        let has_hit = |mapping: &&Mapping| {
            let mut places = hits.iter().filter_map(|hit| hit.stack);
            places.any(|at| mapping.contains(at))
        };
        let around = maps.iter().filter(has_hit);
        let around = around.map(|mapping| mapping.start..mapping.end).collect();
        let addresses = hits.iter().map(|hit| hit.address).collect();
        let places: BTreeSet<u64> = hits.iter().filter_map(|hit| hit.stack).collect();
        let first = places.first().copied().unwrap_or(0);
        let end = places.last().map_or(0, |last| last + 1);
        Reach {
            around,
            addresses,
            places,
            span: first..end,
        }
    }

    fn is_hit(&self, at: u64) -> bool {
        self.span.contains(&at) && self.places.contains(&at)
    }

    fn has_stack(&self, low: u64) -> bool {
        self.around.iter().any(|range| range.contains(&low))
    }

    fn has(&self, low: u64, pc: u64) -> bool {
        self.has_stack(low) || self.addresses.contains(&pc)
    }
}

/// How far up an unwind from a place leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Up to here every word is known to be a return address or none.
    pub known: u64,
    /// Here the stack ends; `None`: it may go on.
    pub end: Option<u64>,
}

/// How far an unwind has come. A stack that was made by hand ends in zero, or in an address that no call has left there,
/// in code that says nothing of its caller.
pub fn extent(memory: &Memory, low: u64, stack: &Stack) -> Extent {
    let ends_at = |end| Extent {
        known: end,
        end: Some(end),
    };
    let Some(last) = stack.frames.last() else {
        return Extent {
            known: low,
            end: None,
        };
    };
    let returns_to = || memory.read_u64(last.return_slot?).ok();
    let has_caller = last.high > last.low;
    match (stack.complete, has_caller) {
        (true, _) => ends_at(last.high),
        (false, true) if returns_to() == Some(0) => ends_at(last.high),
        (false, false) if stack.frames.len() > 1 && !follows_call(memory, last.pc) => {
            ends_at(last.low)
        }
        _ => Extent {
            known: last.low,
            end: None,
        },
    }
}

fn follows_call(memory: &Memory, pc: u64) -> bool {
    let mut before = [0; 7];
    let read = memory.read(pc.wrapping_sub(7), &mut before);
    read.is_ok() && arch::ends_in_call(&before)
}

impl Snapshot {
    /// Whether a word that nothing seems to return to certainly lies on a stack, or is what a suspended stack was once
    /// saved with, and so is dead. Elsewhere it may belong to a stack that was copied away. `stacks` are those that are
    /// known: from where to where they are in use.
    pub fn is_leftover(
        &self,
        hit: &Hit,
        maps: &[Mapping],
        stacks: &[Range<u64>],
        saved: &[u64],
    ) -> bool {
        let Some(at) = hit.stack else { return false };
        let on_stack = || {
            let mapping = maps.iter().find(|mapping| mapping.contains(at))?;
            let room = match heap(mapping) {
                None => mapping.start..mapping.end,
                Some(Heap::Break) => self.block(mapping, at)?,
                Some(Heap::Arena) => return None,
            };
            let below_end = |stack: &Range<u64>| room.contains(&stack.start) && at < stack.end;
            stacks.iter().find(|stack| below_end(stack))
        };
        saved.contains(&at) || on_stack().is_some()
    }

    /// The block of the program's break that an address lies in: the C library lays them end to end, each with its size
    /// in its second word (glibc, malloc/malloc.c). `None` where that does not come out even.
    fn block(&self, heap: &Mapping, at: u64) -> Option<Range<u64>> {
        const SMALLEST: u64 = 32;
        const FLAGS: u64 = 7;
        let mut found = None;
        let mut start = heap.start;
        while start < heap.end {
            let size = self.word(start.checked_add(8)?)? & !FLAGS;
            let end = start.checked_add(size)?;
            if size < SMALLEST || end > heap.end {
                return None;
            }
            if (start..end).contains(&at) {
                found = Some(start..end);
            }
            start = end;
        }
        found
    }
}

/// Where an allocator places small blocks.
enum Heap {
    /// The program's break.
    Break,
    /// One more arena of the C library (`HEAP_MAX_SIZE`).
    Arena,
}

fn heap(mapping: &Mapping) -> Option<Heap> {
    const ARENA: u64 = 64 << 20;
    match mapping.path.as_deref() {
        Some(name) => (name.as_os_str() == "[heap]").then_some(Heap::Break),
        None => mapping.start.is_multiple_of(ARENA).then_some(Heap::Arena),
    }
}

/// The first of the hits that a suspended stack goes on in, or returns to, or may return to, for all that is known.
pub fn held_by<'a>(
    candidate: &Candidate,
    stack: &Stack,
    extent: Extent,
    hits: &'a [Hit],
) -> Option<&'a Hit> {
    let beyond = extent.known..extent.end.unwrap_or(u64::MAX);
    // Between the saved stack pointer and the first frame lies what the switch takes back.
    let first = candidate.registers[RSP].unwrap_or(candidate.low);
    let saved = candidate.low..first;
    let holds = |at: u64| stack.returns_by(at) || beyond.contains(&at) || saved.contains(&at);
    hits.iter()
        .find(|hit| hit.address == candidate.pc || hit.stack.is_some_and(holds))
}
