//! All writable memory of a process, read and searched at once.

use crate::memory::Memory;
use crate::object::Mapping;
use crate::pages::PageMap;
use crate::stack::{Hit, MOST_HITS, Ranges};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// More writable memory is not looked through while tasks stand still.
pub const MOST_MEMORY: u64 = 64 << 20;
/// Memory is read and searched in pieces of so many bytes, by so many threads at the most, none for fewer pieces.
const PIECE: usize = 1 << 20;
const MOST_THREADS: usize = 8;
const LEAST_PIECES: usize = 4;

/// The writable memory of a process, as it was read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Where each run of memory begins, and where its bytes are: in the order of the addresses, without overlap.
    runs: Vec<(u64, Range<usize>)>,
    bytes: Vec<u8>,
}

/// What there is to be read of these mappings: what was written to, and all of what is shared, since others may have
/// written to that.
///
/// # Errors
/// When /proc can't be read.
pub fn written<'a>(
    task_dir: &Path,
    maps: impl Iterator<Item = &'a Mapping>,
) -> io::Result<Vec<Range<u64>>> {
    let pagemap = PageMap::open(task_dir)?;
    let mut runs: Vec<Range<u64>> = Vec::new();
    for mapping in maps.filter(|mapping| mapping.write && mapping.read) {
        let range = mapping.start..mapping.end;
        if mapping.shared {
            runs.push(range);
            continue;
        }
        pagemap.written(range, &mut |range| -> io::Result<()> {
            match runs.last_mut() {
                Some(run) if run.end == range.start => run.end = range.end,
                _ => runs.push(range),
            }
            Ok(())
        })?;
    }
    Ok(runs)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

impl Snapshot {
    /// Reads memory. What can't be read is left out: it is no memory that a program could use as a stack.
    ///
    /// Whoever has read it once before reads it in half the time: the room is there.
    pub fn take(&mut self, memory: &Memory, ranges: &[Range<u64>]) {
        self.runs.clear();
        let length = |range: &Range<u64>| range.end.saturating_sub(range.start) as usize;
        let all: usize = ranges.iter().map(length).sum();
        if self.bytes.len() < all {
            self.bytes.resize(all, 0);
        }
        let mut rest = self.bytes.as_mut_slice();
        let mut at = 0;
        let mut pieces = Vec::new();
        for range in ranges {
            let Some((mut bytes, others)) = rest.split_at_mut_checked(length(range)) else {
                break;
            };
            self.runs.push((range.start, at..at + bytes.len()));
            at += bytes.len();
            rest = others;
            let mut from = range.start;
            while !bytes.is_empty() {
                let (piece, more) = bytes.split_at_mut(bytes.len().min(PIECE));
                let after = from.saturating_add(piece.len() as u64);
                pieces.push((range.start, from, piece));
                (from, bytes) = (after, more);
            }
        }
        let unread: BTreeSet<u64> = side_by_side(pieces, |(run, from, piece)| {
            memory.read(from, piece).is_err().then_some(run)
        })
        .flatten()
        .collect();
        self.runs.retain(|(start, _)| !unread.contains(start));
    }

    fn run_at(&self, address: u64) -> Option<(u64, &[u8])> {
        let next = self.runs.partition_point(|(start, _)| *start <= address);
        let (start, place) = self.runs.get(next.checked_sub(1)?)?;
        let bytes = self.bytes.get(place.clone())?;
        (address - start < bytes.len() as u64).then_some((*start, bytes))
    }

    /// The word at an address.
    pub fn word(&self, address: u64) -> Option<u64> {
        let (start, bytes) = self.run_at(address)?;
        let offset = (address - start) as usize;
        Some(word(bytes.get(offset..offset.checked_add(8)?)?))
    }

    /// Every aligned word with its address.
    pub fn each(&self, mut each: impl FnMut(u64, u64)) {
        for (start, place) in &self.runs {
            let bytes = self.bytes.get(place.clone()).unwrap_or_default();
            for (index, bytes) in bytes.chunks_exact(8).enumerate() {
                each(start + 8 * index as u64, word(bytes));
            }
        }
    }

    /// Words that lie in ranges of code, as they are or hidden by `setjmp`; of those as they are none in the `seen` ranges
    /// of addresses, where a task's own check has found them.
    pub fn hits(&self, ranges: &Ranges, guard: u64, seen: &[Range<u64>]) -> Vec<Hit> {
        let (Some(first), Some(last)) = (
            ranges.iter().map(|range| range.after).min(),
            ranges.iter().map(|range| range.last).max(),
        ) else {
            return Vec::new();
        };
        let span = last - first;
        let pieces = self.runs.iter().flat_map(|(start, place)| {
            let bytes = self.bytes.get(place.clone()).unwrap_or_default();
            (*start..).step_by(PIECE).zip(bytes.chunks(PIECE))
        });
        let hit = |at: u64, address: u64, is_plain: bool| {
            let range = ranges.find(address)?;
            let is_seen = is_plain && seen.iter().any(|range| range.contains(&at));
            (!is_seen).then_some(Hit {
                address,
                stack: Some(at),
                slot: range.slot,
                version: range.version,
            })
        };
        let hits = side_by_side(pieces.collect(), |(start, bytes)| {
            let words = bytes.chunks_exact(8).map(word).enumerate();
            let near = words.filter(|&(_, word)| {
                (word.wrapping_sub(first) <= span)
                    | (shown(word, guard).wrapping_sub(first) <= span)
            });
            let found = near.flat_map(|(index, word)| {
                let at = start + 8 * index as u64;
                let both = [hit(at, word, true), hit(at, shown(word, guard), false)];
                both.into_iter().flatten()
            });
            found.take(MOST_HITS).collect::<Vec<Hit>>()
        });
        hits.flatten().take(MOST_HITS).collect()
    }
}

/// Does the same with each item, on several processors where that pays: the process stands still meanwhile. What comes
/// out is in the items' order.
fn side_by_side<T: Send, R: Send>(
    items: Vec<T>,
    each: impl Fn(T) -> R + Sync,
) -> impl Iterator<Item = R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.min(MOST_THREADS).min(items.len() / LEAST_PIECES);
    let (queue, done) = (
        Mutex::new(items.into_iter().enumerate()),
        Mutex::new(Vec::new()),
    );
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((index, item)) = next() {
            let result = each(item);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((index, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without it the others have more to do.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result)
}

/// What the C library has hidden (PTR_MANGLE, sysdeps/unix/sysv/linux/x86_64/pointer_guard.h).
pub fn shown(word: u64, guard: u64) -> u64 {
    word.rotate_right(17) ^ guard
}
