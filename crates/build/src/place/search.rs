//! Where code may lie: a few bytes of each section that the linker copies as they are, looked for in one pass over
//! the target's code.

use std::ops::Range;

use super::linked::{Linked, u64_at};
use super::relocatable::Section;

const WIDTH: usize = size_of::<u64>();
/// How many places of a section are looked at to find bytes that are not everywhere.
const TRIED: usize = 64;
/// What occurs more often than this tells little about where a section was.
const COMMON: u8 = 16;

/// Eight bytes of a section that no relocation touches.
pub(super) struct Anchor {
    key: u64,
    /// Where in the section.
    offset: u64,
    /// Whatever the searcher wants to know it by.
    owner: u32,
}

/// How often each eight bytes occur in the target's code, at least: words that share a place in the table count
/// together.
pub(super) struct Census {
    counts: Vec<u8>,
    bits: u32,
}

impl Census {
    pub fn of(target: &Linked<'_>) -> Census {
        let code = || target.segments.iter().filter(|s| s.exec);
        let size: usize = code().map(|s| s.data.len()).sum();
        let bits = size.max(1024).ilog2().saturating_add(1).min(28);
        let mut census = Census {
            counts: vec![0; 1usize << bits],
            bits,
        };
        for segment in code() {
            for window in segment.data.windows(WIDTH) {
                let place = u64_at(window, 0).map_or(0, |key| hash(key, bits));
                if let Some(count) = census.counts.get_mut(place) {
                    *count = count.saturating_add(1);
                }
            }
        }
        census
    }

    fn count(&self, key: u64) -> u8 {
        let count = self.counts.get(hash(key, self.bits));
        count.copied().unwrap_or(0)
    }

    /// The rarest anchor of a section; none if there is not room for one, or one that is nowhere in the target.
    pub fn anchor(&self, section: &Section<'_>, owner: u32) -> Option<Anchor> {
        let room = |fixed: &Range<usize>| (fixed.len().saturating_add(1)).saturating_sub(WIDTH);
        let all: usize = section.fixed().map(|fixed| room(&fixed)).sum();
        let step = (all / TRIED).max(1);
        let mut best: Option<(u8, Anchor)> = None;
        let mut skip = 0usize;
        for fixed in section.fixed() {
            let places = room(&fixed);
            while skip < places {
                let at = fixed.start.saturating_add(skip);
                let key = u64_at(section.data, at)?;
                let count = self.count(key);
                if count == 0 {
                    return None;
                }
                if best.as_ref().is_none_or(|(least, _)| count < *least) {
                    let offset = at as u64;
                    best = Some((count, Anchor { key, offset, owner }));
                }
                skip = skip.saturating_add(step);
            }
            skip = skip.saturating_sub(places);
        }
        best.map(|(_, anchor)| anchor)
    }
}

/// The upper `bits` of a product: as good as random.
fn hash(key: u64, bits: u32) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}

impl Census {
    /// Up to `count` anchors, spread over a section, that are not everywhere in the target. Gives how many were looked
    /// at, those that are nowhere in it included.
    pub fn anchors(
        &self,
        section: &Section<'_>,
        owner: u32,
        count: usize,
        into: &mut Vec<Anchor>,
    ) -> usize {
        let step = (section.data.len() / count.max(1)).max(WIDTH);
        let (mut next, mut looked) = (0usize, 0usize);
        for fixed in section.fixed() {
            let mut at = fixed.start.max(next);
            while at.saturating_add(WIDTH) <= fixed.end {
                if let Some(key) = u64_at(section.data, at)
                    && self.count(key) <= COMMON
                {
                    looked = looked.saturating_add(1);
                    if self.count(key) != 0 {
                        let offset = at as u64;
                        into.push(Anchor { key, offset, owner });
                    }
                }
                at = at.saturating_add(step);
                next = at;
            }
        }
        looked
    }
}

/// Calls `hit(owner, base)` for each place in the target's code where an anchor is; `base` is where its section would
/// begin. Ends early when `hit` says false.
pub(super) fn find(
    target: &Linked<'_>,
    mut anchors: Vec<Anchor>,
    mut hit: impl FnMut(u32, u64) -> bool,
) {
    anchors.sort_unstable_by_key(|anchor| anchor.key);
    // Most words of the code are no anchor: one bit says so.
    let bits = (anchors.len().max(1024).ilog2().saturating_add(4)).min(24);
    let mut filter = vec![0u64; 1usize << (bits - 6)];
    for anchor in &anchors {
        let at = hash(anchor.key, bits);
        if let Some(word) = filter.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }
    for segment in target.segments.iter().filter(|s| s.exec) {
        for (at, window) in segment.data.windows(WIDTH).enumerate() {
            let Some(key) = u64_at(window, 0) else {
                continue;
            };
            let bit = hash(key, bits);
            if filter
                .get(bit / 64)
                .is_none_or(|word| word >> (bit % 64) & 1 == 0)
            {
                continue;
            }
            let first = anchors.partition_point(|anchor| anchor.key < key);
            let same = anchors.iter().skip(first).take_while(|a| a.key == key);
            for anchor in same {
                let found = segment.svma.wrapping_add(at as u64);
                if let Some(base) = found.checked_sub(anchor.offset)
                    && !hit(anchor.owner, base)
                {
                    return;
                }
            }
        }
    }
}

/// Whether a section's fixed bytes are at `base`.
pub(super) fn matches(section: &Section<'_>, runs: &[u8]) -> bool {
    first_difference(section, runs, 0..usize::MAX).is_none()
}

/// The first fixed byte within a range of a section that is not what it should be.
pub(super) fn first_difference(
    section: &Section<'_>,
    runs: &[u8],
    within: Range<usize>,
) -> Option<usize> {
    for fixed in section.fixed() {
        let fixed = fixed.start.max(within.start)..fixed.end.min(within.end);
        if fixed.is_empty() {
            continue;
        }
        let (built, runs) = (section.data.get(fixed.clone()), runs.get(fixed.clone()));
        if built == runs {
            continue;
        }
        let (Some(built), Some(runs)) = (built, runs) else {
            return Some(fixed.start);
        };
        let same = built.iter().zip(runs).take_while(|(a, b)| a == b).count();
        return Some(fixed.start.saturating_add(same));
    }
    None
}
