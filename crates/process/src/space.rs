//! Where in the target's address space something may be mapped.

use crate::arch::{self, PAGE};
use crate::object::Mapping;
use std::ops::Range;

/// Kept free above a heap: brk grows there. A mapping in its way makes brk fail, which a C library answers by mapping
/// elsewhere, so this need not be all that a heap may ever want.
const HEAP_ROOM: u64 = 32 << 20;
/// Kept free below a stack that grows, whatever its limit is now.
const STACK_ROOM: u64 = 64 << 20;
/// Kept free around a mapping of ours, so that it does not merge with a neighbour.
const GAP: u64 = 64 * 1024;
/// The kernel maps top down right below what is there; this far below it does not come soon.
const BELOW_MAPPINGS: u64 = 0x2000_0000;

/// The taken ranges, sorted and without overlap.
#[derive(Debug, Clone)]
pub struct Space {
    taken: Vec<Range<u64>>,
    lowest: u64,
}

impl Space {
    /// From the mappings of a process.
    pub fn new(maps: &[Mapping]) -> Space {
        let lowest = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr")
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
            .max(0x10000);
        let mut space = Space {
            taken: Vec::with_capacity(maps.len()),
            lowest,
        };
        for mapping in maps {
            let name = mapping.path.as_deref().and_then(|path| path.to_str());
            let (below, above) = match name {
                Some("[heap]") => (0, HEAP_ROOM.max(2 * (mapping.end - mapping.start))),
                Some("[stack]") => (STACK_ROOM, 0),
                _ => (0, 0),
            };
            space
                .taken
                .push(mapping.start.saturating_sub(below)..mapping.end.saturating_add(above));
        }
        space.taken.sort_unstable_by_key(|range| range.start);
        space
    }

    /// Marks a range as taken.
    pub fn take(&mut self, range: Range<u64>) {
        let index = self
            .taken
            .partition_point(|other| other.start < range.start);
        self.taken.insert(index, range);
    }

    /// Whether nothing is in the range, and user space may map it.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        range.start >= self.lowest
            && range.end <= arch::USER_END
            && range.start < range.end
            && self
                .taken
                .iter()
                .all(|other| other.end <= range.start || other.start >= range.end)
    }

    /// The free ranges within `within`, in order.
    fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = within.start.max(self.lowest);
        let end = within.end.min(arch::USER_END);
        for taken in &self.taken {
            if taken.start >= end {
                break;
            }
            if taken.start > at {
                gaps.push(at..taken.start.min(end));
            }
            at = at.max(taken.end);
        }
        if at < end {
            gaps.push(at..end);
        }
        gaps
    }

    /// `len` bytes within `within`, apart from neighbours; as far up as possible when `high`.
    pub fn find(&self, len: u64, within: Range<u64>, high: bool) -> Option<u64> {
        let padded = len.checked_add(2 * GAP)?;
        let mut gaps = self.gaps(within);
        if high {
            gaps.reverse();
        }
        let gap = gaps.into_iter().find(|gap| gap.end - gap.start >= padded)?;
        let start = if high {
            gap.end - GAP - len
        } else {
            gap.start + GAP
        };
        Some(start & !(PAGE - 1))
    }

    /// `len` bytes in reach of an object's code, at a place that the kernel does not choose by itself.
    pub fn find_near(&self, len: u64, object: &Range<u64>) -> Option<u64> {
        let reach = object.end.saturating_sub(arch::NEAR)..object.start.saturating_add(arch::NEAR);
        let below = object.start.saturating_sub(BELOW_MAPPINGS);
        self.find(len, reach.start..below.max(reach.start), true)
            .or_else(|| self.find(len, reach.start..object.start, true))
            .or_else(|| self.find(len, object.end.min(reach.end)..reach.end, false))
    }

    /// The same, but above an address.
    pub fn find_near_above(&self, len: u64, object: &Range<u64>, low: u64) -> Option<u64> {
        let near = self.find_near(len, object);
        near.filter(|&start| start > low)
            .or_else(|| self.find(len, object.end.max(low)..arch::USER_END, false))
    }

    /// `len` bytes below 2 GiB where no heap grows: below an executable that is not position independent, else at
    /// random.
    pub fn find_low(&self, len: u64, random: u64) -> Option<u64> {
        let everywhere = self.lowest..arch::LOW_END;
        let first = self
            .taken
            .first()
            .map_or(arch::LOW_END, |range| range.start);
        let range = if first < arch::LOW_END {
            everywhere.start..first
        } else {
            everywhere.clone()
        };
        let room = range
            .end
            .saturating_sub(range.start)
            .saturating_sub(len + 4 * GAP);
        let offset = if room == 0 { 0 } else { random % room };
        let start = (range.start + offset) & !(PAGE - 1);
        self.find(len, start..range.end, false)
            .or_else(|| self.find(len, range, true))
            .or_else(|| self.find(len, everywhere, true))
    }
}

/// The pages that a range touches.
pub fn pages(range: Range<u64>) -> Range<u64> {
    (range.start & !(PAGE - 1))..(range.end.saturating_add(PAGE - 1) & !(PAGE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of universe 0 of a program at 0x400000 lies below it, and may be as far up there as it gets.
    #[test]
    fn tables_lie_above_the_first_one() {
        let text = 0x0040_0000..0x0050_0000;
        for low in (0x11000..0x003e_0000).step_by(0x1000) {
            let mut space = Space {
                taken: Vec::from([text.clone()]),
                lowest: 0x10000,
            };
            space.take(low..low + PAGE);
            let table = space.find_near_above(PAGE, &text, low);
            assert!(table.is_some_and(|table| table > low), "{low:#x}");
        }
    }
}
