//! Private tables: what a busy task gets so that it can switch itself.
//!
//! They are handed out from the pool one after the other, and taken back all at once: right before a transition is
//! opened, when nobody is in one, the pool is filled with zeros. What is not zero was handed out while the open
//! transition lasted, whoever was at work then, and may have a task in it; only what lies behind it is handed out.

use super::door::{at_call, until};
use super::pinned::MOST_PINS;
use super::{Engine, table_bytes};
use crate::arch::{self, AtCall, PAGE, Pin, SWITCH_HEADER, SwitchHeader};
use crate::error::Error;
use crate::stack::{CodeRange, Hit, Ranges};
use crate::state::{Leaving, Purpose, Region};
use livegraft_model::{Slot, Standing, UniverseId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

const MAGIC: u64 = 0x6c69_7665_6772_6166;
const ALIGN: u64 = 64;
const NO_PIN: Pin = Pin {
    at: 0,
    word: 0,
    dead: false,
};

/// The code of a version.
struct Code<'a> {
    /// Its ranges (after, last).
    bodies: &'a [(u64, u64)],
    /// Where it jumps to outside of itself.
    tails: &'a [u64],
    /// What it passes through on the way.
    leaving: &'a Leaving,
}

/// How far each pool region is handed out, by its first address; none when it is not known yet.
pub(super) type Cursor = BTreeMap<u64, u64>;

impl Engine {
    /// Where a task stands whose gs base leads to this address.
    pub(super) fn waiting_at(&self, table: u64) -> Option<Standing> {
        let header = self.switch_header(table)?;
        let (from, to) = (UniverseId(header.from), UniverseId(header.to));
        // One that was disarmed by a reverse waits for nothing.
        Some(Standing::Waiting {
            from,
            to: if header.armed { to } else { from },
        })
    }

    fn switch_header(&self, table: u64) -> Option<SwitchHeader> {
        let start = table.checked_sub(SWITCH_HEADER)?;
        self.state
            .region_at(start)
            .filter(|region| region.purpose == Purpose::Pool)?;
        let mut bytes = [0; SWITCH_HEADER as usize];
        self.memory().read(start, &mut bytes).ok()?;
        let header = arch::decode_header(&bytes);
        (header.magic == magic_of(start)).then_some(header)
    }

    fn pools(&self) -> Vec<Region> {
        let all = self.state.regions.iter().copied();
        all.filter(|region| region.purpose == Purpose::Pool && region.reachable)
            .collect()
    }

    fn read_pool(&self, region: &Region) -> Result<Vec<u8>, Error> {
        usize::try_from(region.len)
            .map_err(|_| io::ErrorKind::InvalidData.into())
            .and_then(|len| self.memory().read_vec(region.start, len))
            .map_err(Error::io("reading the private tables"))
    }

    /// Takes all private tables back: no transition is open, and no task is in one.
    pub(super) fn clear_pool(&mut self) -> Result<(), Error> {
        for region in self.pools() {
            let used = used(&self.read_pool(&region)?);
            self.write(region.start, &vec![0; used])?;
        }
        self.pool.clear();
        Ok(())
    }

    /// Takes the order to switch back from every task that waits. One byte each, so that it may be read by the stub
    /// meanwhile.
    pub(super) fn disarm(&mut self) -> Result<(), Error> {
        for region in self.pools() {
            let bytes = self.read_pool(&region)?;
            for (start, cell) in (region.start..)
                .step_by(ALIGN as usize)
                .zip(bytes.chunks_exact(ALIGN as usize))
            {
                let header = cell.first_chunk().map(arch::decode_header);
                if header.is_some_and(|header| header.armed && header.magic == magic_of(start)) {
                    self.write(start, &[0])?;
                }
            }
        }
        Ok(())
    }

    /// Takes the order back from one task that waits, by its gs base.
    pub(super) fn disarm_one(&mut self, gs: u64) -> Result<(), Error> {
        let table = gs.wrapping_add(self.state.low);
        match self.switch_header(table) {
            Some(_) => self.write(table.saturating_sub(SWITCH_HEADER), &[0]),
            None => Ok(()),
        }
    }

    /// Room in the pool, or `None` when it must grow first.
    fn pool_alloc(&mut self, len: u64) -> Result<Option<u64>, Error> {
        for region in self.pools() {
            let next = match self.pool.get(&region.start) {
                Some(&next) => next,
                None => used(&self.read_pool(&region)?) as u64,
            };
            let start = next.next_multiple_of(ALIGN);
            let end = start.saturating_add(len);
            self.pool.insert(region.start, next);
            if end <= region.len {
                self.pool.insert(region.start, end);
                return Ok(Some(region.start + start));
            }
        }
        Ok(None)
    }

    /// Makes the pool large enough for `tasks` more private tables.
    pub(super) fn grow_pool(&mut self, tasks: u64, ranges: u64) -> Result<(), Error> {
        let pins = arch::pins(&[NO_PIN; MOST_PINS]).len() as u64;
        let cell = table_bytes(self.state.entries.len() as u64)
            .saturating_add(pins)
            .next_multiple_of(ALIGN);
        let bytes = cell
            .saturating_mul(tasks.saturating_add(4))
            .saturating_add(ranges.saturating_mul(16))
            .saturating_add(ALIGN)
            .next_multiple_of(PAGE);
        let region = self.plan_anywhere(bytes, Purpose::Pool)?;
        self.state.regions.push(region);
        self.commit()?;
        self.map(&[region])?;
        self.mark_reachable(&[region]);
        self.commit()
    }

    pub(super) fn mark_reachable(&mut self, regions: &[Region]) {
        for region in &mut self.state.regions {
            if regions.iter().any(|other| other.start == region.start) {
                region.reachable = true;
            }
        }
    }

    /// Writes the ranges that the stub searches; `None` when the pool must grow first.
    pub(super) fn place_ranges(&mut self, ranges: &Ranges) -> Result<Option<u64>, Error> {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|range| [range.after, range.last])
            .flat_map(u64::to_le_bytes)
            .collect();
        let Some(address) = self.pool_alloc(bytes.len() as u64)? else {
            return Ok(None);
        };
        self.write(address, &bytes)?;
        Ok(Some(address))
    }

    /// Makes a private copy of `from`'s table for a task on `stack`, with the `pins` that tell it which words there are
    /// dead; returns its gs base, or `None` when the pool must grow first.
    pub(super) fn private_table(
        &mut self,
        from: UniverseId,
        to: UniverseId,
        stack: (u64, u64),
        ranges: (u64, u64),
        pins: &[Pin],
    ) -> Result<Option<u64>, Error> {
        let Some(gs_to) = self.gs_of(to) else {
            return Ok(None);
        };
        let mut slots = self.slots_of(from)?;
        let jumped_to = self.entered_by_jumps(from, to);
        for (slot, _) in self.state.model.replaced(from, to) {
            if jumped_to.contains(&slot) {
                continue;
            }
            let thunk = self.state.entry(slot).map(|entry| entry.thunk);
            if let (Some(place), Some(thunk)) = (slots.get_mut(slot.0 as usize), thunk) {
                place.0 = thunk;
            }
        }
        let mut whole = arch::pins(pins);
        let above = (whole.len() as u64).next_multiple_of(ALIGN);
        whole.splice(0..0, vec![0; above as usize - whole.len()]);
        let bytes = table_bytes(slots.len() as u64).saturating_add(above);
        let Some(first) = self.pool_alloc(bytes)? else {
            return Ok(None);
        };
        let start = first + above;
        let table = start + SWITCH_HEADER;
        let header = SwitchHeader {
            armed: true,
            pins: pins.len() as u16,
            gs_to: match at_call() {
                AtCall::Switch => gs_to,
                AtCall::Wait => until(),
            },
            stack_low: stack.0,
            stack_high: stack.1,
            ranges: ranges.0,
            range_count: ranges.1,
            from: from.0,
            to: to.0,
            magic: magic_of(start),
        };
        whole.extend_from_slice(&arch::header(&header));
        whole.extend_from_slice(&arch::table(&slots));
        self.write(first, &whole)?;
        Ok(table.checked_sub(self.state.low))
    }

    /// The ranges of a version.
    pub(super) fn bodies(&self, slot: Slot, version: Version) -> &[(u64, u64)] {
        self.code_of(slot, version).map_or(&[], |code| code.bodies)
    }

    fn code_of(&self, slot: Slot, version: Version) -> Option<Code<'_>> {
        match version {
            Version::Original => {
                let entry = self.state.entry(slot)?;
                Some(Code {
                    bodies: &entry.bodies,
                    tails: &entry.tails,
                    leaving: &entry.leaving,
                })
            }
            Version::Patched(patch) => {
                let functions = &self.state.image(patch)?.functions;
                let function = functions.iter().find(|function| function.slot == slot)?;
                Some(Code {
                    bodies: &function.bodies,
                    tails: &function.tails,
                    leaving: &function.leaving,
                })
            }
        }
    }

    /// Whether what was found is no code of the version itself, but the resolver that it passes through on its way out.
    pub(super) fn is_resolver(&self, hit: &Hit) -> bool {
        let code = self.code_of(hit.slot, hit.version);
        let resolvers = code.map_or(&[][..], |code| &code.leaving.resolvers);
        let mut resolvers = resolvers.iter();
        resolvers.any(|&(after, last)| after < hit.address && hit.address <= last)
    }

    /// The replaced functions that other replaced ones leave to by a tail jump. Who arrives at such an entry may come
    /// out of an old version that has left no trace on the stack: nobody switches there.
    fn entered_by_jumps(&self, from: UniverseId, to: UniverseId) -> Vec<Slot> {
        let replaced = self.state.model.replaced(from, to);
        let code = replaced
            .iter()
            .filter_map(|&(slot, version)| self.code_of(slot, version));
        let jumps: BTreeSet<u64> = code.flat_map(|code| code.tails).copied().collect();
        replaced
            .iter()
            .map(|&(slot, _)| slot)
            .filter(|&slot| {
                let entry = self.state.entry(slot);
                entry.is_some_and(|entry| jumps.range(entry.start..=entry.at).next().is_some())
            })
            .collect()
    }

    /// Code in which a task is on its way into one of those, or out of a replaced version by way of the PLT.
    pub(super) fn entering_ranges(&self, from: UniverseId, to: UniverseId) -> Ranges {
        let mut ranges = Vec::new();
        for slot in self.entered_by_jumps(from, to) {
            let Some(entry) = self.state.entry(slot) else {
                continue;
            };
            let last = |first: u64, len: u64| first.saturating_add(len).saturating_sub(1);
            let mut places = vec![
                (entry.start, entry.at),
                (entry.trampoline, last(entry.trampoline, arch::TRAMPOLINE)),
            ];
            // Padding that the entry jumps through.
            let padding = entry.edits.iter().filter(|edit| edit.at != entry.at);
            places.extend(padding.map(|e| (e.at, last(e.at, e.redirected.len() as u64))));
            ranges.extend(places.into_iter().map(|(first, last)| CodeRange {
                after: first.saturating_sub(1),
                last,
                slot,
                version: Version::Original,
            }));
        }
        for (slot, version) in self.live(from, to) {
            let code = self.code_of(slot, version);
            let stubs = code.map(|code| code.leaving.stubs.as_slice());
            ranges.extend(named(stubs.unwrap_or_default(), slot, version));
        }
        Ranges::new(ranges)
    }

    /// The code that a move away from `from` must not find on a stack, and signal frames when the stub is to search:
    /// a handler's frame counts with what it interrupted, and the stub does not look through it.
    pub(super) fn replaced_ranges(
        &self,
        from: UniverseId,
        to: UniverseId,
        with_handlers: bool,
    ) -> Ranges {
        let mut ranges = Vec::new();
        for (slot, version) in self.live(from, to) {
            if let Some(code) = self.code_of(slot, version) {
                ranges.extend(named(code.bodies, slot, version));
                ranges.extend(named(&code.leaving.resolvers, slot, version));
            }
        }
        if with_handlers {
            for &restorer in &self.gadgets.restorers {
                ranges.push(unnamed(restorer, restorer));
            }
        }
        Ranges::new(ranges)
    }

    /// The versions that a move replaces. Code that is not there any more holds nobody; something else may be in its
    /// place.
    fn live(&self, from: UniverseId, to: UniverseId) -> Vec<(Slot, Version)> {
        let mut replaced = self.state.model.replaced(from, to);
        replaced
            .retain(|(slot, version)| *version != Version::Original || !self.gone.contains(slot));
        replaced
    }

    /// The code of the self-switch: the stub and the thunks.
    pub(super) fn switching_ranges(&self) -> Ranges {
        let regions = self.state.regions.iter();
        let stubs = regions
            .filter(|region| region.purpose == Purpose::Trampolines)
            .map(|region| unnamed(region.start, region.start + arch::STUB_AREA - 1));
        let entries = self.state.entries.iter();
        let thunks = entries
            .map(|entry| unnamed(entry.thunk, entry.thunk.saturating_add(arch::THUNK_LEN - 1)));
        Ranges::new(stubs.chain(thunks).collect())
    }
}

/// What the header of a cell at this address says, and no other.
fn magic_of(cell: u64) -> u64 {
    MAGIC ^ cell
}

/// How many bytes there are up to the last word that is not zero.
fn used(bytes: &[u8]) -> usize {
    let last = bytes.chunks_exact(8).rposition(|word| word != [0; 8]);
    last.map_or(0, |last| (last + 1) * 8)
}

/// Ranges (after, last) that count as code of a version.
fn named(ranges: &[(u64, u64)], slot: Slot, version: Version) -> impl Iterator<Item = CodeRange> {
    ranges.iter().map(move |&(after, last)| CodeRange {
        after,
        last,
        slot,
        version,
    })
}

/// Code from its first to its last address that is no version of anything.
fn unnamed(first: u64, last: u64) -> CodeRange {
    let after = first.saturating_sub(1);
    CodeRange {
        after,
        last,
        slot: Slot(u32::MAX),
        version: Version::Original,
    }
}
