//! Where code may lie: a few bytes of each section that the linker copies as they are, looked for in one pass over
//! the target's code.

use super::linked::{Linked, u64_at};
use super::relocatable::Section;

const WIDTH: usize = size_of::<u64>();
/// How many places of a stretch are compared to find bytes that are not everywhere.
const TRIED: usize = 32;

/// Eight bytes of a section that no relocation touches.
pub(super) struct Anchor {
    key: u64,
    /// Where in the section.
    offset: u64,
    /// Whatever the searcher wants to know it by.
    owner: u32,
}

/// The best anchor of a section: in the middle of its longest fixed stretch, and rather not of one byte repeated.
pub(super) fn anchor(section: &Section<'_>, owner: u32) -> Option<Anchor> {
    let longest = section.fixed().max_by_key(|fixed| fixed.len())?;
    let places = longest.len().checked_sub(WIDTH)?.saturating_add(1);
    let tried = places.min(TRIED);
    let first = longest
        .start
        .saturating_add(places.saturating_sub(tried) / 2);
    let best = (first..first.saturating_add(tried))
        .filter_map(|at| Some((at, u64_at(section.data, at)?)))
        .max_by_key(|(_, key)| distinct(*key))?;
    Some(Anchor {
        key: best.1,
        offset: best.0 as u64,
        owner,
    })
}

/// Up to `count` anchors, spread over a section.
pub(super) fn anchors(section: &Section<'_>, owner: u32, count: usize, into: &mut Vec<Anchor>) {
    let step = (section.data.len() / count.max(1)).max(WIDTH);
    let mut next = 0usize;
    for fixed in section.fixed() {
        let mut at = fixed.start.max(next);
        while at.saturating_add(WIDTH) <= fixed.end {
            if let Some(key) = u64_at(section.data, at)
                && distinct(key) > 2
            {
                let offset = at as u64;
                into.push(Anchor { key, offset, owner });
            }
            at = at.saturating_add(step);
            next = at;
        }
    }
}

fn distinct(key: u64) -> u32 {
    let bytes = key.to_le_bytes();
    let first = |(at, byte): (usize, &u8)| !bytes.iter().take(at).any(|other| other == byte);
    bytes
        .iter()
        .enumerate()
        .filter(|&pair| first(pair))
        .count()
        .try_into()
        .unwrap_or(0)
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
    let hash = |key: u64| (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize;
    let mut filter = vec![0u64; 1usize << (bits - 6)];
    for anchor in &anchors {
        let at = hash(anchor.key);
        if let Some(word) = filter.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }
    for segment in target.segments.iter().filter(|s| s.exec) {
        for (at, window) in segment.data.windows(WIDTH).enumerate() {
            let Some(key) = u64_at(window, 0) else {
                continue;
            };
            let bit = hash(key);
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
    first_difference(section, runs).is_none()
}

/// The first fixed byte that is not what it should be.
pub(super) fn first_difference(section: &Section<'_>, runs: &[u8]) -> Option<usize> {
    for fixed in section.fixed() {
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
