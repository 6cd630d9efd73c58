//! Planning a load: which entries, by which method, in what memory. Nothing here changes the target.

use super::edits::planned;
use super::text::Text;
use super::trampolines::{Place, Taken};
use super::{Engine, table_bytes};
use crate::arch::{
    self, Continuation, Edit, NotRedirectable, PAGE, SLOT_BYTES, SWITCH_HEADER, Site,
};
use crate::error::Error;
use crate::memory::Memory;
use crate::object::{ExitTo, LoadedObject, Objects, TailExit, WaysOut};
use crate::space::{Space, pages};
use crate::state::{Entry, Identity, Leaving, Method, Purpose, Region};
use livegraft_model::Slot;
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::rc::Rc;

/// Bytes read before a function, for padding.
const BEFORE: u64 = 32;
/// Bytes read after a function, for padding and for the five claimed ones of a short function.
const AFTER: u64 = 32;

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

/// A function to redirect, as its file has it.
#[derive(Debug, Clone)]
pub(super) struct Function<'a> {
    pub name: String,
    pub object_name: Option<String>,
    pub object: &'a LoadedObject,
    pub start: u64,
    pub size: u64,
    /// From `BEFORE` bytes before the start (less at the start of the text) to `AFTER` bytes after the end.
    code: Vec<u8>,
    code_at: u64,
    /// What belongs to it besides; nothing before that is looked for.
    pub outline: Outline,
}

/// What belongs to a function besides its own range.
#[derive(Debug, Clone, Default)]
pub(super) struct Outline {
    /// Its own range, and the parts that were split off it.
    bodies: Vec<Range<u64>>,
    /// How it leaves without a return.
    pub exits: Vec<TailExit>,
    /// What it passes through then.
    ways: WaysOut,
}

/// What is passed through, as it is recorded.
pub(super) fn leaving(ways: &WaysOut) -> Leaving {
    let ranges = |list: &[(u64, u64)]| {
        list.iter()
            .map(|&(first, last)| (first.saturating_sub(1), last))
            .collect()
    };
    Leaving {
        stubs: ranges(&ways.stubs),
        resolvers: ranges(&ways.resolvers),
    }
}

impl<'a> Function<'a> {
    /// Reads the function's code from the object's file; `None` when it is not code there.
    pub fn read(
        name: &str,
        object_name: Option<&str>,
        object: &'a LoadedObject,
        start: u64,
        size: u64,
    ) -> Option<Function<'a>> {
        let end = start.checked_add(size).filter(|_| size > 0)?;
        let text = object
            .code_ranges()
            .into_iter()
            .find(|text| text.contains(&start))?;
        if end > text.end {
            return None;
        }
        let from = start.saturating_sub(BEFORE).max(text.start);
        let code = object.code(from..end.saturating_add(AFTER).min(text.end))?;
        let name = name.to_owned();
        let object_name = object_name.map(str::to_owned);
        Some(Function {
            name,
            object_name,
            object,
            start,
            size,
            code,
            code_at: from,
            outline: Outline::default(),
        })
    }

    /// Looks for its parts and its tail exits.
    pub fn trace(&mut self, objects: &Objects, memory: &Memory) {
        let own = self.start..self.start.saturating_add(self.size);
        let parts = self.object.split_bodies(&self.name, own.clone());
        let bodies: Vec<Range<u64>> = std::iter::once(own).chain(parts).collect();
        let exits = self.object.tail_exits(&bodies);
        let ways = self.object.ways_out(&exits, objects, memory);
        self.outline = Outline {
            bodies,
            exits,
            ways,
        };
    }

    pub fn parts(&self) -> &[Range<u64>] {
        self.outline.bodies.get(1..).unwrap_or_default()
    }

    /// Where it jumps to outside of itself, in the end.
    fn tails(&self) -> Vec<u64> {
        let direct = self.outline.exits.iter().filter_map(|exit| match exit.to {
            ExitTo::Code(at) => Some(at),
            _ => None,
        });
        let mut tails: Vec<u64> = direct
            .chain(self.outline.ways.targets.iter().copied())
            .collect();
        tails.sort_unstable();
        tails.dedup();
        tails
    }

    /// The function's own bytes.
    pub fn body(&self) -> &[u8] {
        let from = (self.start - self.code_at) as usize;
        self.code
            .get(from..from + self.size as usize)
            .unwrap_or_default()
    }

    /// The bytes whose running copies must be what the file says: the function, its padding, and what it claims.
    pub fn surroundings(&self) -> (u64, &[u8]) {
        (self.code_at, &self.code)
    }

    pub fn before(&self) -> &[u8] {
        self.code
            .get(..(self.start - self.code_at) as usize)
            .unwrap_or_default()
    }

    pub fn site(&self) -> Site<'_> {
        let skip = arch::skip_endbr(self.body());
        let from = (self.start - self.code_at) as usize + skip;
        Site {
            at: self.start + skip as u64,
            code: self.code.get(from..).unwrap_or_default(),
            len: (self.size as usize).saturating_sub(skip),
        }
    }

    /// Where it would be redirected.
    pub fn at(&self) -> u64 {
        self.start + arch::skip_endbr(self.body()) as u64
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

    fn pun(
        &self,
        plan: &mut Plan,
        function: &Function<'_>,
        slot: u32,
        place: Place,
        jumps: &[u64],
    ) -> Result<Entry, NotRedirectable> {
        let site = function.site();
        let claimed = site.at..site.at + arch::CLAIM as u64;
        let mut following = [0u8; 4];
        for (index, byte) in following.iter_mut().enumerate() {
            *byte = *site.code.get(index + 1).ok_or(NotRedirectable::NoRoom)?;
        }
        // An entry behind this one that is redirected with it: its first byte is a jump then, and stays one for as long
        // as this entry jumps. It must be a pun.
        let mut others: Vec<Range<u64>> = Vec::new();
        for entry in self.claims(plan) {
            others.extend(
                entry
                    .edits
                    .iter()
                    .map(|e| e.at..e.at + e.original.len() as u64),
            );
        }
        let mut counts_on = Vec::new();
        for &other in jumps
            .iter()
            .filter(|&&other| other > claimed.start && other < claimed.end)
        {
            let mut known = plan.entries.iter().enumerate();
            let known = known.find(|(_, entry)| entry.at == other);
            let Some((index, _)) = known.filter(|(_, entry)| entry.method == Method::Pun) else {
                return Err(NotRedirectable::Overlaps);
            };
            counts_on.push(Slot((self.state.entries.len() + index) as u32));
            if let Some(byte) = following.get_mut((other - site.at - 1) as usize) {
                *byte = 0xe9;
            }
            others.retain(|edit| edit.start != other);
        }
        if others
            .iter()
            .any(|edit| edit.start < claimed.end && edit.end > claimed.start)
        {
            return Err(NotRedirectable::Overlaps);
        }
        // And this entry must not be among the bytes that another pun counts on.
        let counted_on = self.claims(plan).any(|entry| {
            entry.method == Method::Pun
                && (entry.at + 1..entry.at + arch::CLAIM as u64).contains(&site.at)
        });
        if counted_on {
            return Err(NotRedirectable::Overlaps);
        }
        let target = arch::pun_target(site.at, following)?;
        let wanted = target..target + 8;
        self.plan_pun_pages(plan, &wanted)?;
        let edit = arch::pun_edit(&site).ok_or(NotRedirectable::NoRoom)?;
        if edit.original == edit.redirected {
            return Err(NotRedirectable::Taken);
        }
        let first = arch::continuation(&site, place.cell, 1)?;
        let both = (slot, place);
        let mut entry = self.entry(plan, function, both, Method::Pun, vec![edit], first)?;
        entry.trampoline = target;
        entry.counts_on = counts_on;
        let trampoline = arch::trampoline(plan.low, slot).ok_or(NotRedirectable::NoNearMemory)?;
        plan.writes.push((target, trampoline.to_vec()));
        Ok(entry)
    }

    /// Plans the pages of a pun's trampoline, or finds that they are ours already and these bytes of them unused.
    fn plan_pun_pages(&self, plan: &mut Plan, wanted: &Range<u64>) -> Result<(), NotRedirectable> {
        let taken = self.state.entries.iter().chain(&plan.entries).any(|entry| {
            entry.method == Method::Pun
                && entry.trampoline < wanted.end
                && wanted.start < entry.trampoline + 8
        });
        if taken {
            return Err(NotRedirectable::Taken);
        }
        let span = pages(wanted.clone());
        let mut missing = Vec::new();
        let mut page = span.start;
        while page < span.end {
            let ours = self
                .state
                .regions
                .iter()
                .chain(&plan.regions)
                .any(|region| {
                    region.purpose == Purpose::Pun && (region.start..region.end()).contains(&page)
                });
            if !ours {
                if !plan.space.is_free(&(page..page + PAGE)) {
                    return Err(NotRedirectable::Taken);
                }
                missing.push(page);
            }
            page += PAGE;
        }
        for page in missing {
            plan.add(planned(page, PAGE, Purpose::Pun));
        }
        Ok(())
    }

    /// The entries whose bytes are claimed: those whose objects are there, and those that are planned.
    pub(super) fn claims<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = &'a Entry> {
        let there = self.entries_there().map(|(_, entry)| entry);
        there.chain(&plan.entries)
    }
}
