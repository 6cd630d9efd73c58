//! What belongs to a function besides its own range, and how it leaves without a return: parts that the compiler split
//! off, tail jumps, and the code that these pass through.

use std::ops::Range;

use super::dynamic::SlotKind;
use super::file::PT_LOAD;
use super::loaded::{LoadedObject, is_split_body};
use super::raw::{u32_at, u64_at};
use super::{Objects, ReadMemory};
use crate::arch;

/// More parts are not followed.
const MOST_PARTS: usize = 256;
/// Bytes that a PLT stub has at most.
const LARGEST_STUB: u64 = 32;

/// Where a tail jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitTo {
    /// To code at this address: another function of the object, or its own entry.
    Code(u64),
    /// Through a word that the dynamic loader fills in, directly or by way of a PLT stub: the word's address.
    Linked(u64),
    /// To an address that is computed, or kept in a structure.
    Computed,
}

/// One way in which a function leaves by a jump, with nothing of it left on the stack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailExit {
    /// Where it leads.
    pub to: ExitTo,
    /// The name of what it leads to, as far as it is known.
    pub name: Option<String>,
    /// The PLT stub that it passes.
    stub: Option<u64>,
}

/// Code outside of a function in which a task may be that has left it by a tail jump, and not arrived yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaysOut {
    /// PLT stubs, (first, last address): as a program counter.
    pub stubs: Vec<(u64, u64)>,
    /// The dynamic loader's resolvers, (first, last address): as a program counter, and on the stack of what they call.
    pub resolvers: Vec<(u64, u64)>,
    /// The functions at their ends.
    pub targets: Vec<u64>,
}

impl WaysOut {
    /// Takes up what another jump passes through.
    pub fn add(&mut self, mut other: WaysOut) {
        self.stubs.append(&mut other.stubs);
        self.resolvers.append(&mut other.resolvers);
        self.targets.append(&mut other.targets);
        for list in [&mut self.stubs, &mut self.resolvers] {
            list.sort_unstable();
            list.dedup();
        }
        self.targets.sort_unstable();
        self.targets.dedup();
    }
}

/// Where a lazy word leads before it is bound, as (first, last address).
struct Fallback {
    /// The second half of the stub.
    half: (u64, u64),
    /// The head of the PLT, which goes on to the resolver; `None` where the word leads there itself.
    head: Option<(u64, u64)>,
}

/// Says which part a jump's target lies in, if in any, given what belongs to the function already.
type Judge<'a> = &'a mut dyn FnMut(u64, &[Range<u64>]) -> Option<Range<u64>>;

impl LoadedObject {
    /// The ranges (avma) of the parts that the compiler split off a function, which is called `name` and lies at `own`
    /// (avma).
    ///
    /// With a symbol table, by name: `NAME.cold`, `NAME.part.N` and what is split off those, NAME being any name of the
    /// function; and any `.cold` that it, or a part of it, branches to. Where several static functions have the name,
    /// those that only another one of them leads to are not its own; what none is seen to lead to is everybody's.
    ///
    /// Without one, by branches, see [`LoadedObject::parts_by_branches`].
    pub fn split_bodies(&self, name: &str, own: Range<u64>) -> Vec<Range<u64>> {
        if self.symtab().is_none() {
            return self.parts_by_branches(own);
        }
        let own = self.svma(own.start)..self.svma(own.end);
        self.in_order(self.named_parts(name, &own))
    }

    /// The parts (avma) of the function at `own` (avma) as they are found without symbols: what the function, or a part
    /// of it, jumps to (directly or through a table of jumps) outside of itself, in a stretch of code with call frame
    /// information of its own that is not exported, and whose address no data and no other code has or calls. gcc gives
    /// each partition of a function (-freorder-blocks-and-partition) and each function that -fpartial-inlining makes an
    /// FDE of its own, and none of the former a caller.
    ///
    /// What only the function itself and its parts refer to is a part. It may be a static function that nobody else
    /// uses, and then holds a task longer than it need be; a part that is missed would be a switch within the function.
    /// What others call as well is taken for a function: a static one that is jumped to is common, while `foo.part.0`
    /// has callers of its own only where the head of `foo` was inlined into them, and they do not call `foo` either.
    pub fn parts_by_branches(&self, own: Range<u64>) -> Vec<Range<u64>> {
        self.in_order(self.branch_parts(&(self.svma(own.start)..self.svma(own.end))))
    }

    fn in_order(&self, svmas: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let avmas = svmas.into_iter();
        let mut ranges: Vec<Range<u64>> = avmas
            .map(|part| self.avma(part.start)..self.avma(part.end))
            .collect();
        ranges.sort_by_key(|range| range.start);
        ranges.dedup();
        ranges
    }

    /// The stretches of its code (avma) that have call frame information of their own: its functions and their parts.
    pub fn functions(&self) -> Vec<Range<u64>> {
        let frames = self.frames().into_iter();
        let ranges = frames.flat_map(|frames| frames.iter());
        ranges
            .map(|range| self.avma(range.start)..self.avma(range.end))
            .collect()
    }

    /// The tail exits of a function that consists of these ranges (avma), sorted. A jump through a table of its own
    /// jumps is none.
    pub fn tail_exits(&self, bodies: &[Range<u64>]) -> Vec<TailExit> {
        let mut exits = Vec::new();
        let inside = |at: u64| bodies.iter().any(|body| body.contains(&at));
        let own = bodies.first().cloned().unwrap_or_default();
        let own_code = self.code(own.clone()).unwrap_or_default();
        let entries = [
            own.start,
            own.start.saturating_add(arch::skip_endbr(&own_code) as u64),
        ];
        for body in bodies {
            let Some(code) = self.code(body.clone()) else {
                continue;
            };
            let range = self.svma(body.start)..self.svma(body.end);
            let flow = arch::flow(range.start, &code);
            for to in arch::tail_targets(body.start, &code) {
                if inside(to) && !entries.contains(&to) {
                    continue;
                }
                exits.push(match self.stub_at(to) {
                    Some((_, word)) => TailExit {
                        stub: Some(to),
                        ..self.through(word)
                    },
                    None => TailExit {
                        to: ExitTo::Code(to),
                        name: self.name_of(to),
                        stub: None,
                    },
                });
            }
            let words = flow.words.iter().map(|&word| self.avma(word));
            exits.extend(words.map(|word| self.through(word)));
            if flow.computed > self.tables(&range, &flow).len() {
                exits.push(TailExit {
                    to: ExitTo::Computed,
                    name: None,
                    stub: None,
                });
            }
        }
        exits.sort();
        exits.dedup();
        exits
    }

    /// What a task passes through that leaves by one of these exits, and where it arrives.
    ///
    /// The word of a lazy stub leads to the resolver until it is bound; whether it is bound now does not matter, since
    /// a task may have read it before.
    pub fn ways_out(
        &self,
        exits: &[TailExit],
        objects: &Objects,
        memory: &dyn ReadMemory,
    ) -> WaysOut {
        let mut ways = WaysOut::default();
        for exit in exits {
            let mut way = WaysOut::default();
            if let Some((end, _)) = exit.stub.and_then(|at| self.stub_at(at)) {
                way.stubs
                    .extend(exit.stub.map(|at| (at, end.saturating_sub(1))));
            }
            if let ExitTo::Linked(word) = exit.to {
                self.follow(word, exit.name.as_deref(), objects, memory, &mut way);
            }
            ways.add(way);
        }
        ways
    }

    /// The same for code that jumps to an address of this object from outside: it may be a PLT stub, which is a
    /// function's address in a program that is not position independent.
    pub fn way_through(&self, at: u64, objects: &Objects, memory: &dyn ReadMemory) -> WaysOut {
        let exits = self.stub_at(at).map(|(_, word)| TailExit {
            stub: Some(at),
            ..self.through(word)
        });
        self.ways_out(exits.as_slice(), objects, memory)
    }

    fn follow(
        &self,
        word: u64,
        name: Option<&str>,
        objects: &Objects,
        memory: &dyn ReadMemory,
        way: &mut WaysOut,
    ) {
        let read = |avma: u64| {
            let mut bytes = [0; 8];
            memory.read_memory(avma, &mut bytes).ok()?;
            Some(u64::from_le_bytes(bytes)).filter(|&value| value != 0)
        };
        let now = read(word);
        let slots = self.slots().iter();
        let lazy = slots
            .filter(|slot| self.avma(slot.svma) == word)
            .any(|slot| slot.kind == SlotKind::Jump);
        let fallback = lazy.then(|| self.fallback_of(word)).flatten();
        if let Some(fallback) = &fallback {
            way.stubs.push(fallback.half);
            way.stubs.extend(fallback.head);
        }
        let got = self.dynamic().plt_got.filter(|_| lazy);
        let resolver = got.and_then(|got| read(self.avma(got).wrapping_add(16)));
        let owner = resolver.and_then(|at| Some((at, objects.containing(at)?)));
        if let Some((at, loader)) = owner
            && let Some(range) = loader.code_around(at)
        {
            way.resolvers
                .push((range.start, range.end.saturating_sub(1)));
        }
        let unbound = fallback.map(|fallback| fallback.half.0);
        match now.filter(|&at| Some(at) != unbound) {
            Some(at) => way.targets.push(at),
            // Not bound yet, to one of these.
            None => way.targets.extend(name.into_iter().flat_map(|name| {
                let defined = objects.iter().filter_map(move |object| {
                    let symbol = object.exported(name)?;
                    Some(object.avma(symbol.svma))
                });
                defined.collect::<Vec<u64>>()
            })),
        }
    }

    /// Where a lazy word leads before it is bound: first address and end of the stub's second half, and of the PLT's
    /// head.
    fn fallback_of(&self, word: u64) -> Option<Fallback> {
        let bytes = self.elf().read_svma(self.svma(word), 8, "the GOT").ok()?;
        let first = self.avma(u64_at(&bytes, 0).filter(|&svma| svma != 0)?);
        let (end, head) = arch::lazy_stub(first, &self.code_at(first, LARGEST_STUB)?)?;
        let head = head.and_then(|head| {
            let (end, _) = arch::lazy_stub(head, &self.code_at(head, LARGEST_STUB)?)?;
            Some((head, end.saturating_sub(1)))
        });
        Some(Fallback {
            half: (first, end.saturating_sub(1)),
            head,
        })
    }

    /// The function's range (avma) as its symbol or its call frame information has it.
    pub(super) fn code_around(&self, avma: u64) -> Option<Range<u64>> {
        self.function_range(avma).or_else(|| self.stretch_at(avma))
    }

    /// At most `limit` bytes of code at an address (avma).
    fn code_at(&self, avma: u64, limit: u64) -> Option<Vec<u8>> {
        let text = self
            .code_ranges()
            .into_iter()
            .find(|text| text.contains(&avma))?;
        self.code(avma..text.end.min(avma.checked_add(limit)?))
    }

    /// The PLT stub at an address (avma): where it ends, and the word that it jumps through.
    fn stub_at(&self, avma: u64) -> Option<(u64, u64)> {
        let (end, word) = arch::plt_stub(avma, &self.code_at(avma, LARGEST_STUB)?)?;
        self.is_linked(word).then_some((end, word))
    }

    fn is_linked(&self, word: u64) -> bool {
        let svma = self.svma(word);
        self.slots().iter().any(|slot| slot.svma == svma)
    }

    fn through(&self, word: u64) -> TailExit {
        let svma = self.svma(word);
        let slot = self.slots().iter().find(|slot| slot.svma == svma);
        let symbol = slot.and_then(|slot| self.dynsym()?.get(slot.symbol));
        let name = symbol.filter(|symbol| !symbol.name.is_empty());
        TailExit {
            to: slot.map_or(ExitTo::Computed, |_| ExitTo::Linked(word)),
            name: name.map(|symbol| String::from_utf8_lossy(symbol.name).into_owned()),
            stub: None,
        }
    }

    fn name_of(&self, avma: u64) -> Option<String> {
        self.symbolize(avma).map(|(name, offset)| match offset {
            0 => name,
            offset => format!("{name}+{offset:#x}"),
        })
    }

    fn svma_code(&self, range: &Range<u64>) -> Vec<u8> {
        let avma = self.avma(range.start)..self.avma(range.end);
        self.code(avma).unwrap_or_default()
    }

    /// Parts by name, see [`LoadedObject::split_bodies`].
    fn named_parts(&self, name: &str, own: &Range<u64>) -> Vec<Range<u64>> {
        let Some(table) = self.symtab() else {
            return Vec::new();
        };
        let mut names: Vec<&[u8]> = table.at(own.start).map(|symbol| symbol.name).collect();
        names.push(name.as_bytes());
        names.sort_unstable();
        names.dedup();
        let named = table.dotted().filter(|symbol| {
            let mut names = names.iter();
            names.any(|name| is_split_body(symbol.name, name))
        });
        let mut parts: Vec<Range<u64>> = named
            .map(|symbol| symbol.svma..symbol.svma.saturating_add(symbol.size))
            .collect();
        parts.sort_by_key(|part| part.start);
        parts.dedup();
        let namesakes: Vec<Range<u64>> = table
            .named(name)
            .filter(|s| s.defined && s.size > 0 && s.svma != own.start)
            .map(|s| s.svma..s.svma.saturating_add(s.size))
            .collect();
        let is_cold = |symbol: &super::Symbol<'_>| {
            let mut words = symbol.name.split(|&byte| byte == b'.').skip(1);
            words.any(|word| word == b"cold")
        };
        let reached = self.closure(own, &mut |at, members| {
            let known = parts.iter().find(|part| part.contains(&at)).cloned();
            let cold = || {
                let symbol = table.function_at(at).filter(is_cold)?;
                Some(symbol.svma..symbol.svma.saturating_add(symbol.size))
            };
            known.or_else(cold).filter(|part| !members.contains(part))
        });
        if !namesakes.is_empty() {
            let others: Vec<Range<u64>> = namesakes
                .iter()
                .flat_map(|other| {
                    self.closure(other, &mut |at, _| {
                        parts.iter().find(|part| part.contains(&at)).cloned()
                    })
                })
                .collect();
            parts.retain(|part| reached.contains(part) || !others.contains(part));
        }
        parts.extend(reached);
        parts.retain(|part| part.start != own.start);
        parts
    }

    /// Parts by branches, see [`LoadedObject::split_bodies`].
    fn branch_parts(&self, own: &Range<u64>) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        // What others call may turn out to be called by parts only: again, until nothing is found any more.
        loop {
            let known = parts.len();
            let found = self.closure(own, &mut |at, members| {
                if self.stub_at(self.avma(at)).is_some() {
                    return None;
                }
                let frames = self.frames()?;
                let range = frames.at(at)?;
                let overlaps = range.start < own.end && own.start < range.end;
                let mut members = members.to_vec();
                members.extend(parts.iter().cloned());
                let is_part =
                    !overlaps && !self.references()?.is_function(frames, &range, &members);
                is_part.then_some(range)
            });
            parts.extend(
                found
                    .into_iter()
                    .filter(|part| !parts.contains(part))
                    .collect::<Vec<_>>(),
            );
            if parts.len() == known || parts.len() > MOST_PARTS {
                return parts;
            }
        }
    }

    /// What is reached from a range by jumps, and from there on: `judge` gets a target outside of it, and what is
    /// reached already with the range itself, and says which part the target lies in, if in any.
    fn closure(&self, own: &Range<u64>, judge: Judge<'_>) -> Vec<Range<u64>> {
        let mut members = vec![own.clone()];
        let mut next = 0;
        while let Some(range) = members.get(next).cloned() {
            next += 1;
            for at in self.leads_to(&range) {
                let inside = members.iter().any(|member| member.contains(&at));
                if inside || members.len() > MOST_PARTS {
                    continue;
                }
                if let Some(part) = judge(at, &members).filter(|part| !members.contains(part)) {
                    members.push(part);
                }
            }
        }
        members.split_off(1)
    }

    /// All addresses (svma) outside of a range of code that it jumps to: directly, and through tables. (Where exceptions
    /// land need not be looked at: gcc puts all landing pads into the part that may throw, and jumps from there.)
    fn leads_to(&self, range: &Range<u64>) -> Vec<u64> {
        let flow = arch::flow(range.start, &self.svma_code(range));
        let mut targets = flow.jumps.clone();
        targets.extend(self.tables(range, &flow).into_iter().flatten());
        targets.retain(|at| !range.contains(at));
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// The tables that a range of code (svma) jumps through, as far as they lead into code: entries of four bytes are
    /// relative to the table, entries of eight are addresses. Nothing says how long a table is but the comparison
    /// before the jump; what is read beyond its end leads into other functions, or nowhere.
    fn tables(&self, range: &Range<u64>, flow: &arch::Flow) -> Vec<Vec<u64>> {
        if flow.computed == 0 {
            return Vec::new();
        }
        let segments = self.elf().segments().iter();
        let text: Vec<_> = segments
            .filter(|s| s.kind == PT_LOAD && s.is_exec())
            .collect();
        let in_text = |at: u64| {
            text.iter()
                .any(|segment| segment.svma_range().contains(&at))
        };
        let tables = flow.tables.iter().filter(|(at, _)| !in_text(*at));
        let read = |&(at, entries): &(u64, u64)| {
            let limit = entries.saturating_mul(8);
            let bytes = self
                .elf()
                .read_svma_up_to(at, limit, "a table of jumps")
                .ok()?;
            let relative = bytes.chunks_exact(4).map_while(|raw| {
                let offset = i64::from(u32_at(raw, 0)?.cast_signed());
                Some(at.wrapping_add_signed(offset)).filter(|&target| in_text(target))
            });
            let relative: Vec<u64> = relative.take(entries as usize).collect();
            if relative.iter().any(|target| range.contains(target)) {
                return Some(relative);
            }
            let words = bytes.chunks_exact(8).enumerate();
            let absolute = words.map_while(|(index, raw)| {
                let at = at.wrapping_add(8 * index as u64);
                let held = u64_at(raw, 0).filter(|&target| target != 0 && in_text(target));
                held.or_else(|| self.relative_word(at))
                    .filter(|&target| in_text(target))
            });
            let absolute: Vec<u64> = absolute.collect();
            absolute
                .iter()
                .any(|target| range.contains(target))
                .then_some(absolute)
        };
        tables.filter_map(read).collect()
    }

    /// What the dynamic loader puts into a word (svma) of a position independent object by a relative relocation.
    fn relative_word(&self, svma: u64) -> Option<u64> {
        let words = self.relative_words();
        let index = words.binary_search_by_key(&svma, |&(at, _)| at).ok()?;
        words.get(index).map(|&(_, value)| value)
    }
}
