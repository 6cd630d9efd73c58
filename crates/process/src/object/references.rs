//! Who refers to a function: what tells, in a binary without a symbol table, a function that others call from a part
//! that the compiler split off one.

use std::ops::Range;

use super::file::{PT_LOAD, Segment};
use super::loaded::LoadedObject;
use super::raw::u64_at;
use crate::arch;
use crate::unwind::Module;

/// The stretches of an object's code that have call frame information of their own, which is one for each function and
/// one for each part of a function that lies elsewhere.
#[derive(Debug)]
pub(super) struct Frames {
    module: Module,
    /// Where they begin (svma), sorted.
    starts: Vec<u64>,
}

impl Frames {
    pub fn read(object: &LoadedObject) -> Option<Frames> {
        let module = object.unwind_info()?;
        let starts = module.starts();
        Some(Frames { module, starts })
    }

    /// The stretch that an address (svma) lies in.
    pub fn at(&self, svma: u64) -> Option<Range<u64>> {
        let found = self.module.stretch_at(svma);
        found.filter(|range| range.contains(&svma))
    }

    /// All of them (svma), in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.starts.iter().filter_map(|&start| self.at(start))
    }

    /// The stretch that an address (svma) lies in, or the gap between two.
    pub fn around(&self, svma: u64, within: &Range<u64>) -> Range<u64> {
        let next = self.starts.partition_point(|&start| start <= svma);
        let before = next.checked_sub(1).and_then(|index| self.starts.get(index));
        let stretch = before.and_then(|&start| self.at(start));
        if let Some(stretch) = stretch.clone().filter(|range| range.contains(&svma)) {
            return stretch;
        }
        let start = stretch.map_or(within.start, |range| range.end.max(within.start));
        let end = self
            .starts
            .get(next)
            .map_or(within.end, |&start| start.min(within.end));
        start..end
    }

    fn index_of(&self, start: u64) -> Option<u32> {
        let index = self.starts.binary_search(&start).ok()?;
        u32::try_from(index).ok()
    }
}

/// What refers to the beginnings of those stretches.
#[derive(Debug)]
pub(super) struct References {
    /// The number of a stretch << 32 | how far into the code an operand lies that may lead to it, sorted.
    places: Vec<u64>,
    /// The executable segments and their bytes, by svma.
    code: Vec<(u64, Vec<u8>)>,
    /// Words of data that lead into the code, as (where, address), sorted.
    words: Vec<(u64, u64)>,
    /// The dynamic symbols' addresses, sorted.
    exported: Vec<u64>,
}

impl References {
    /// Reads all of an object's code and the relocations of its data once. The code is looked through for bytes that may
    /// be an operand (1 to 2 ns a byte); only where these lead to a stretch that is asked for, instructions are decoded.
    pub fn read(object: &LoadedObject, frames: &Frames) -> References {
        let elf = object.elf();
        let fits = |s: &&Segment| s.svma.checked_add(s.file_size.saturating_add(8)).is_some();
        let segments = elf.segments().iter();
        let segments = segments.filter(|s| s.kind == PT_LOAD).filter(fits);
        let (exec, data): (Vec<&Segment>, Vec<&Segment>) = segments.partition(|s| s.is_exec());
        let code: Vec<(u64, Vec<u8>)> = exec
            .iter()
            .filter_map(|s| Some((s.svma, elf.read(s.offset, s.file_size, "code").ok()?)))
            .collect();
        let absolute = !elf.is_dyn();
        let begins = Bitmap::new(&frames.starts);
        let mut places = Vec::new();
        let mut passed = 0_u64;
        for (svma, bytes) in &code {
            arch::references(*svma, bytes, absolute, &mut |at, target| {
                if begins.has(target)
                    && let Some(index) = frames.index_of(target)
                {
                    let place = passed + (at - svma);
                    places.push(u64::from(index) << 32 | place & u64::from(u32::MAX));
                }
            });
            passed += bytes.len() as u64;
        }
        places.sort_unstable();
        let mut words = object.relative_words().to_vec();
        if absolute {
            for segment in &data {
                let bytes = elf.read(segment.offset, segment.file_size, "data");
                let skip = segment.svma.next_multiple_of(8) - segment.svma;
                let bytes = bytes.unwrap_or_default();
                let aligned = bytes.get(skip as usize..).unwrap_or_default();
                let numbered = (segment.svma + skip..)
                    .step_by(8)
                    .zip(aligned.chunks_exact(8));
                words.extend(numbered.filter_map(|(at, raw)| Some((at, u64_at(raw, 0)?))));
            }
        }
        let in_code = |address: u64| {
            code.iter()
                .any(|(svma, bytes)| (*svma..svma + bytes.len() as u64).contains(&address))
        };
        words.retain(|&(_, address)| in_code(address));
        words.sort_unstable();
        let symbols = object.dynsym().map(|table| table.iter());
        let mut exported: Vec<u64> = symbols
            .into_iter()
            .flatten()
            .filter(|symbol| symbol.defined)
            .map(|symbol| symbol.svma)
            .collect();
        exported.sort_unstable();
        References {
            places,
            code,
            words,
            exported,
        }
    }

    /// Whether something outside of `members` makes a stretch of code a function of its own: it is exported, or its
    /// address is taken, or it is called.
    pub fn is_function(&self, frames: &Frames, range: &Range<u64>, members: &[Range<u64>]) -> bool {
        let from = self.exported.partition_point(|&at| at < range.start);
        let exported = self.exported.get(from).is_some_and(|at| range.contains(at));
        exported || self.is_in_data(frames, range.start) || self.is_in_code(frames, range, members)
    }

    /// A word of data that leads to the beginning. A table of labels (of computed gotos, or of a switch) leads to
    /// beginnings by chance: it is told by the words right beside that lead into the middle of a function.
    fn is_in_data(&self, frames: &Frames, start: u64) -> bool {
        let inner = |&(_, address): &(u64, u64)| {
            frames.index_of(address).is_none() && frames.at(address).is_some()
        };
        let adjacent = |a: &(u64, u64), b: &(u64, u64)| b.0.wrapping_sub(a.0) == 8;
        let hits = self.words.iter().enumerate();
        hits.filter(|(_, (_, address))| *address == start)
            .any(|(index, hit)| {
                let (before, after) = self.words.split_at(index);
                let mut last = hit;
                let mut run = before.iter().rev().take_while(|word| {
                    let goes_on = adjacent(word, last);
                    last = word;
                    goes_on
                });
                if run.any(inner) {
                    return false;
                }
                let mut last = hit;
                let mut run = after.iter().skip(1).take_while(|word| {
                    let goes_on = adjacent(last, word);
                    last = word;
                    goes_on
                });
                !run.any(inner)
            })
    }

    /// A call from elsewhere, or an instruction that takes the address.
    fn is_in_code(&self, frames: &Frames, range: &Range<u64>, members: &[Range<u64>]) -> bool {
        let Some(index) = frames.index_of(range.start) else {
            // Not where a stretch begins: nothing is known of it.
            return true;
        };
        let first = u64::from(index) << 32;
        let from = self.places.partition_point(|&place| place < first);
        let places = self.places.iter().skip(from);
        let mut places = places.take_while(|&&place| place >> 32 == u64::from(index));
        places.any(|&place| {
            let Some((at, segment, bytes)) = self.locate(place & u64::from(u32::MAX)) else {
                return false;
            };
            let Some(user) = frames.at(at) else {
                // Code without call frame information: assembler, whose instructions begin who knows where.
                return true;
            };
            let own = |member: &Range<u64>| member.contains(&at);
            if range.contains(&at) || members.iter().any(own) {
                return false;
            }
            let start = user.start.max(segment);
            let code = bytes.get((start - segment) as usize..).unwrap_or_default();
            arch::refers(start, code, at, range.start)
        })
    }

    /// The svma of a place, and the segment that it lies in.
    fn locate(&self, place: u64) -> Option<(u64, u64, &[u8])> {
        let mut passed = 0;
        for (svma, bytes) in &self.code {
            let size = bytes.len() as u64;
            if place < passed + size {
                return Some((svma + (place - passed), *svma, bytes));
            }
            passed += size;
        }
        None
    }
}

/// A set of addresses: most of what looks like an operand is none, and must be told fast.
struct Bitmap {
    first: u64,
    words: Vec<u64>,
}

impl Bitmap {
    /// More than this many bytes of code are taken for damage.
    const LARGEST: u64 = 1 << 31;

    fn new(sorted: &[u64]) -> Bitmap {
        let first = sorted.first().copied().unwrap_or(0);
        let size = sorted
            .last()
            .map_or(0, |last| (last - first).saturating_add(1));
        let words = if size > Bitmap::LARGEST {
            0
        } else {
            size / 64 + 1
        };
        let mut words = vec![0; words as usize];
        for address in sorted {
            let bit = address - first;
            if let Some(word) = words.get_mut((bit / 64) as usize) {
                *word |= 1_u64 << (bit % 64);
            }
        }
        Bitmap { first, words }
    }

    fn has(&self, address: u64) -> bool {
        let bit = address.wrapping_sub(self.first);
        let word = usize::try_from(bit / 64)
            .ok()
            .and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }
}
