//! How a trampoline region is laid out, and which of its places are free.
//!
//! First the stub; then a line of trampolines, side by side, since they are what every call of a redirected function
//! passes; then, in cells, what only a task in an old universe, or one that waits, passes.

use super::Engine;
use super::door::at_call;
use super::edits::planned;
use super::plan::{Function, Plan};
use crate::arch::{self, NotRedirectable, PAGE};
use crate::state::{Entry, Purpose, Region};
use std::collections::{BTreeMap, HashSet};

/// Where the pieces of one entry go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Its trampoline, unless a pun leads elsewhere.
    pub trampoline: u64,
    /// Its cell.
    pub cell: u64,
    /// The region's stub.
    pub stub: u64,
}

/// What is taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken {
    /// The thunks that there are: each place has one.
    thunks: HashSet<u64>,
    /// For each region how many places from its first on are known to be taken.
    known: BTreeMap<u64, u64>,
}

impl Taken {
    /// What these entries take.
    pub fn by(entries: &[Entry]) -> Taken {
        Taken {
            thunks: entries.iter().map(|entry| entry.thunk).collect(),
            known: BTreeMap::new(),
        }
    }

    /// One more entry has its place.
    pub fn add(&mut self, entry: &Entry) {
        self.thunks.insert(entry.thunk);
    }

    fn free_place(&mut self, region: &Region) -> Option<Place> {
        let known = self.known.entry(region.start).or_default();
        while *known < places(region.len) {
            let place = place(region, *known);
            if !self.thunks.contains(&(place.cell + arch::THUNK)) {
                return Some(place);
            }
            *known += 1;
        }
        None
    }
}

/// How many entries a region of this length has room for.
fn places(len: u64) -> u64 {
    len.saturating_sub(arch::STUB_AREA) / (arch::TRAMPOLINE + arch::CELL)
}

fn place(region: &Region, index: u64) -> Place {
    let line = region.start + arch::STUB_AREA;
    let cells = line + arch::TRAMPOLINE * places(region.len);
    Place {
        trampoline: line + arch::TRAMPOLINE * index,
        cell: cells + arch::CELL * index,
        stub: region.start,
    }
}

impl Engine {
    /// The next free place in a trampoline region near a function. Where there is none a region is planned, with room
    /// for as many entries as `more` says.
    pub(super) fn plan_place(
        &self,
        plan: &mut Plan,
        function: &Function<'_>,
        more: impl Fn() -> u64,
    ) -> Result<Place, NotRedirectable> {
        let span = function.object.span();
        let near =
            |at: u64| at.abs_diff(span.start) < arch::NEAR && at.abs_diff(span.end) < arch::NEAR;
        let all = self.state.regions.iter().chain(&plan.regions);
        let near = |region: &&Region| {
            region.purpose == Purpose::Trampolines && near(region.start) && near(region.end())
        };
        if let Some(place) = all
            .filter(near)
            .find_map(|region| plan.taken.free_place(region))
        {
            return Ok(place);
        }
        let entries = more().max(1);
        let bytes = (arch::TRAMPOLINE + arch::CELL).saturating_mul(entries);
        let len = arch::STUB_AREA.saturating_add(bytes).next_multiple_of(PAGE);
        let stub = arch::stub(plan.low, at_call()).map_err(|_| NotRedirectable::NoNearMemory)?;
        let start = plan.space.find_near(len, &span);
        let start = start.ok_or(NotRedirectable::NoNearMemory)?;
        let region = planned(start, len, Purpose::Trampolines);
        plan.add(region);
        plan.writes.push((start, stub.code));
        Ok(place(&region, 0))
    }
}

/// Writes that continue each other become one.
pub(super) fn joined(mut writes: Vec<(u64, Vec<u8>)>) -> Vec<(u64, Vec<u8>)> {
    writes.sort_by_key(|&(at, _)| at);
    let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, mut bytes) in writes {
        match all.last_mut() {
            Some((start, before)) if start.saturating_add(before.len() as u64) == at => {
                before.append(&mut bytes);
            }
            _ => all.push((at, bytes)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_neither_overlap_nor_leave_the_region() {
        for pages in [1, 2, 7, 28] {
            let region = planned(0x7000_0000, pages * PAGE, Purpose::Trampolines);
            let count = places(region.len);
            assert!(count >= 30 * pages, "{count} in {pages} pages");
            let first_cell = place(&region, 0).cell;
            for index in 0..count {
                let place = place(&region, index);
                assert!(place.trampoline >= region.start + arch::STUB_AREA);
                assert!(place.trampoline + arch::TRAMPOLINE <= first_cell);
                assert_eq!(place.trampoline % arch::TRAMPOLINE, 0);
                assert_eq!(place.cell, first_cell + index * arch::CELL);
                assert!(place.cell + arch::CELL <= region.end());
            }
        }
    }

    #[test]
    fn writes_are_joined_where_they_touch() {
        let writes = vec![(20, vec![3]), (8, vec![1, 1]), (10, vec![2])];
        assert_eq!(joined(writes), [(8, vec![1, 1, 2]), (20, vec![3])]);
    }
}
