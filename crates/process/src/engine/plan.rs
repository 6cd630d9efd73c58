//! Planning a load: which entries, by which method, in what memory. Nothing here changes the target.

use super::edits::planned;
pub(super) use super::function::{Function, leaving};
use super::text::Text;
use super::trampolines::{Place, Taken};
use super::{Engine, table_bytes};
use crate::arch::{self, Continuation, Edit, NotRedirectable, PAGE, SLOT_BYTES, SWITCH_HEADER};
use crate::error::Error;
use crate::object::LoadedObject;
use crate::space::Space;
use crate::state::{Entry, Identity, Method, Purpose, Region};
use livegraft_model::Slot;
use sha2::{Digest, Sha256};
use std::rc::Rc;

/// From so many functions on trampolines that lie densely are worth more than text that stays as it is: puns need a page
/// each, and lead all over the address space. `bench wide` measures both.
const MANY: usize = 64;

/// What a load will map and write.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Free and taken addresses, those of the plan included.
    pub space: Space,
    /// The regions to map, at their addresses.
    pub regions: Vec<Region>,
    /// What to write once they are mapped.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Entries that have no slot yet, in the order of their slots.
    pub entries: Vec<Entry>,
    /// Text pages that will be swapped, with the SHA-256 of what their files have there.
    pub pages: Vec<(u64, [u8; 32])>,
    /// Address of universe 0's first slot.
    pub low: u64,
    /// The places of trampolines that are taken.
    pub taken: Taken,
    /// The text as it is.
    pub text: Rc<Text>,
}

impl Plan {
    /// Plans a region.
    pub fn add(&mut self, region: Region) {
        self.space.take(region.start..region.end());
        self.regions.push(region);
    }
}

impl Engine {
    /// A region at an address that nothing else is near to, for what need not be in reach of code.
    pub(super) fn plan_anywhere(&mut self, len: u64, purpose: Purpose) -> Result<Region, Error> {
        self.refresh_maps()?;
        let mut space = Space::new(&self.maps);
        for region in &self.state.regions {
            space.take(region.start..region.end());
        }
        let start = self.far_from_everything(&space, self.state.low, len)?;
        Ok(planned(start, len, purpose))
    }

    /// Where nothing else is near, for what need not be in reach of code: above the table of universe 0, since a gs base is
    /// the distance from that.
    fn far_from_everything(&self, space: &Space, low: u64, len: u64) -> Result<u64, Error> {
        let known = self.gadgets.restorers.first().copied();
        let text = known.unwrap_or(arch::USER_END / 2);
        space
            .find_near_above(len, &(text..text + 1), low)
            .ok_or_else(|| Error::NoSpace {
                size: len,
                object: "the C library".to_owned(),
            })
    }

    /// Begins a plan.
    pub(super) fn plan(&mut self) -> Result<Plan, Error> {
        self.refresh_maps()?;
        let mut space = Space::new(&self.maps);
        for region in &self.state.regions {
            space.take(region.start..region.end());
        }
        Ok(Plan {
            space,
            regions: Vec::new(),
            writes: Vec::new(),
            entries: Vec::new(),
            pages: Vec::new(),
            low: self.state.low,
            taken: Taken::by(&self.state.entries),
            text: Rc::default(),
        })
    }

    /// Plans universe 0's table, with room for `slots`.
    pub(super) fn plan_low_table(&self, plan: &mut Plan, slots: u64) -> Result<(), Error> {
        if plan.low != 0 {
            // Tasks live in these tables, which must stay where they are.
            let tables = self.state.tables.iter().map(|&(_, table)| table);
            return tables
                .chain([plan.low])
                .try_for_each(|table| self.plan_longer_table(plan, table, slots));
        }
        let len = table_bytes(slots.saturating_mul(2)).next_multiple_of(PAGE);
        let random = getrandom::u64().unwrap_or(0);
        let start = plan
            .space
            .find_low(len, random)
            .ok_or_else(|| Error::NoSpace {
                size: len,
                object: "the first 1 GiB of its address space".to_owned(),
            })?;
        plan.add(planned(start, len, Purpose::LowTable));
        plan.low = start + SWITCH_HEADER;
        Ok(())
    }

    /// Plans more room behind a table that is too short by now.
    fn plan_longer_table(&self, plan: &mut Plan, table: u64, slots: u64) -> Result<(), Error> {
        let room = self.state.room_at(table);
        let lacks = slots.saturating_mul(SLOT_BYTES).saturating_sub(room);
        if lacks == 0 {
            return Ok(());
        }
        let start = table.saturating_add(room);
        let more = planned(start, lacks.next_multiple_of(PAGE), Purpose::TableRest);
        if !plan.space.is_free(&(start..more.end())) {
            return Err(Error::TooManyFunctions(self.process.pid));
        }
        plan.add(more);
        Ok(())
    }

    /// Finds or plans a table for one more universe.
    pub(super) fn plan_table(&mut self, plan: &mut Plan, slots: u64) -> Result<u64, Error> {
        let live: Vec<u64> = self.state.tables.iter().map(|&(_, table)| table).collect();
        let free = self.state.regions.iter().find(|region| {
            region.purpose == Purpose::Tables
                && self.state.room_at(region.start) >= table_bytes(slots)
                && !live.contains(&(region.start + SWITCH_HEADER))
        });
        if let Some(region) = free {
            return Ok(region.start + SWITCH_HEADER);
        }
        let len = table_bytes(slots.saturating_mul(2)).next_multiple_of(PAGE);
        let start = self.far_from_everything(&plan.space, plan.low, len)?;
        plan.add(planned(start, len, Purpose::Tables));
        Ok(start + SWITCH_HEADER)
    }

    /// Plans a first page of the pool, so that the first busy task need not wait for one.
    pub(super) fn plan_pool(&self, plan: &mut Plan) -> Result<(), Error> {
        if self
            .state
            .regions
            .iter()
            .any(|region| region.purpose == Purpose::Pool)
        {
            return Ok(());
        }
        let start = self.far_from_everything(&plan.space, plan.low, PAGE)?;
        plan.add(planned(start, PAGE, Purpose::Pool));
        Ok(())
    }

    /// Plans the patch's own memory, a block of text, constants and variables in reach of its first object.
    pub(super) fn plan_image(
        &self,
        plan: &mut Plan,
        object: &LoadedObject,
        sizes: [u64; 3],
        low: bool,
    ) -> Result<u64, Error> {
        let total: u64 = sizes.iter().sum();
        let span = object.span();
        let no_space = || Error::NoSpace {
            size: total,
            object: object.name().to_owned(),
        };
        let start = if low {
            let end = 0x7fff_0000u64;
            plan.space.find(total, 0..span.start.min(end), true)
        } else {
            plan.space.find_near(total, &span)
        };
        let start = start.ok_or_else(no_space)?;
        let mut at = start;
        for (size, purpose) in
            sizes
                .into_iter()
                .zip([Purpose::Text, Purpose::Constants, Purpose::Data])
        {
            if size > 0 {
                plan.add(planned(at, size, purpose));
                at += size;
            }
        }
        Ok(start)
    }

    /// Plans the entries of functions that have no slot yet. `known` are those that the patch's other functions have
    /// already.
    pub(super) fn plan_entries(
        &self,
        plan: &mut Plan,
        functions: &[Function<'_>],
        known: &[Slot],
        forced: Option<Method>,
    ) -> Result<(), Error> {
        if forced.is_none() && functions.len() >= MANY {
            // Of entries that overlap, none but puns can be redirected together.
            let mut dense = plan.clone();
            let order = [Method::Swap, Method::Pun, Method::Rendezvous];
            if self
                .plan_in_order(&mut dense, functions, known, &order)
                .is_ok()
            {
                *plan = dense;
                return Ok(());
            }
        }
        let order = match &forced {
            Some(method) => std::slice::from_ref(method),
            None => &[Method::Pun, Method::Swap, Method::Rendezvous],
        };
        self.plan_in_order(plan, functions, known, order)
            .map_err(|(function, why)| Error::NotRedirectable {
                function,
                forced: forced.map(Method::name),
                why,
            })
    }

    /// Plans entries, each by the first of these methods that will do. An error is the function and the reasons.
    fn plan_in_order(
        &self,
        plan: &mut Plan,
        functions: &[Function<'_>],
        known: &[Slot],
        methods: &[Method],
    ) -> Result<(), (String, String)> {
        let wanted = self.wanted();
        // Bytes that are jumps while these functions are redirected.
        let mut jumps: Vec<u64> = functions.iter().map(Function::at).collect();
        let known = |slot: &Slot| wanted.contains(slot) || known.contains(slot);
        let there = self.entries_there().filter(|(slot, _)| known(slot));
        jumps.extend(there.map(|(_, entry)| entry.at));
        for (index, function) in functions.iter().enumerate() {
            let slot = (self.state.entries.len() + plan.entries.len()) as u32;
            let left = || {
                let left = functions.iter().skip(index);
                left.filter(|other| std::ptr::eq(other.object, function.object))
                    .count() as u64
            };
            let place = self.plan_place(plan, function, left);
            let place = place.map_err(|why| (function.name.clone(), why.to_string()))?;
            let mut why = Vec::new();
            let entry = methods.iter().find_map(|method| {
                self.plan_by(plan, function, (slot, place), &jumps, *method)
                    .map_err(|reason| why.push(reason))
                    .ok()
            });
            why.dedup();
            let why: Vec<String> = why.iter().map(ToString::to_string).collect();
            let entry = entry.ok_or_else(|| (function.name.clone(), why.join(", and ")))?;
            plan.taken.add(&entry);
            plan.entries.push(entry);
        }
        Ok(())
    }

    /// Plans one entry by one method. `jumps` are the entries that will jump besides those that do.
    pub(super) fn plan_by(
        &self,
        plan: &mut Plan,
        function: &Function<'_>,
        (slot, place): (u32, Place),
        jumps: &[u64],
        method: Method,
    ) -> Result<Entry, NotRedirectable> {
        match method {
            Method::Pun => self.pun(plan, function, slot, place, jumps),
            Method::Swap | Method::Rendezvous => {
                self.by_page(plan, function, slot, place, jumps, method)
            }
        }
    }

    /// The parts of an entry that all methods share; writes its cell.
    pub(super) fn entry(
        &self,
        plan: &mut Plan,
        function: &Function<'_>,
        (slot, place): (u32, Place),
        method: Method,
        edits: Vec<Edit>,
        continuation: Continuation,
    ) -> Result<Entry, NotRedirectable> {
        let (identity_at, identity) = function
            .object
            .identity()
            .ok_or(NotRedirectable::Undecodable)?;
        let site = function.site();
        let cell = arch::cell(place.cell, place.stub, plan.low, slot, &continuation.bytes)
            .ok_or(NotRedirectable::Immovable)?;
        let last = place.cell + continuation.bytes.len() as u64;
        let mut bodies = vec![
            (
                site.at,
                arch::last_return_address(function.start, function.body()),
            ),
            (place.cell - 1, last),
        ];
        for body in function.parts() {
            let last = function.object.code(body.clone()).map_or(body.end, |code| {
                arch::last_return_address(body.start, &code)
            });
            bodies.push((body.start.saturating_sub(1), last));
        }
        plan.writes.push((place.cell, cell));
        Ok(Entry {
            function: function.name.clone(),
            object: function.object_name.clone(),
            start: function.start,
            size: function.size,
            at: site.at,
            method,
            edits,
            trampoline: place.trampoline,
            continuation: place.cell,
            thunk: place.cell + arch::THUNK,
            bodies,
            tails: function.tails(),
            leaving: leaving(&function.outline.ways),
            counts_on: Vec::new(),
            identity: Identity {
                at: identity_at,
                len: identity.len() as u32,
                sha256: Sha256::digest(&identity).into(),
            },
        })
    }

    /// The entries whose bytes are claimed: those whose objects are there, and those that are planned.
    pub(super) fn claims<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = &'a Entry> {
        let there = self.entries_there().map(|(_, entry)| entry);
        there.chain(&plan.entries)
    }
}
