//! Loading: verify, plan, map, write, and open the transition. Until the one commit that opens it no task can reach
//! anything of it, and every failure takes back what was mapped.

use super::plan::{Function, Plan, leaving};
use super::trampolines::joined;
use super::{Engine, operations::now_ms};
use crate::arch::{self, PAGE};
use crate::error::Error;
use crate::link::{self, Indirect, Layout, Resolver};
use crate::object::{LoadedObject, ObjectError, Objects, WaysOut};
use crate::state::{Image, ImageFunction, Method, Purpose, Region, State};
use livegraft_model::{PatchId, PatchState, Slot, UniverseId};
use livegraft_patchfile::{Fingerprint, Func, Patch};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ops::Range;

/// What one recorded function may come to in the record, generously.
const RECORD_PER_FUNCTION: u64 = 512;

/// What a load will do, with every address decided.
pub(super) struct PlannedLoad {
    /// The regions, entries and what is written where.
    pub plan: Plan,
    layout: Layout,
    /// The patch, ready to be written.
    pub linked: link::Linked,
    /// IFUNCs that must be resolved before: the patch is linked to their resolvers' addresses.
    pub indirect: Vec<Indirect>,
    base: u64,
    table: u64,
}

impl Engine {
    /// Puts a patch into the target and opens the transition towards it.
    ///
    /// # Errors
    /// Every refusal there is; the target is as it was then.
    pub(super) fn open_load(
        &mut self,
        patch: &Patch,
        name: &str,
        forced: Option<Method>,
    ) -> Result<PatchId, Error> {
        let objects = self.objects()?;
        self.may_move_together(Some(&objects))?;
        let functions = self.verified(patch, name, &objects)?;
        let none_waits = self.survey()?;
        if none_waits {
            self.clear_pool()?;
        }
        if let Some(id) = self.disabled_image(patch, name, forced, &functions) {
            self.reopen(id, &objects)?;
            return Ok(id);
        }
        let enabled: Vec<PatchId> = self
            .state
            .model
            .patches()
            .iter()
            .filter(|known| known.state == PatchState::Enabled)
            .map(|known| known.id)
            .collect();
        self.register_again(&enabled, &objects)?;
        let before = self.state.clone();
        let had_registry = self.registry.is_some();
        match self.place(patch, name, forced, &objects, functions) {
            Ok(id) => self.redirect().map(|()| id),
            Err(error) => {
                // What went wrong is what the user must hear, not that clearing up failed as well.
                let _ = self.abandon(before, had_registry);
                Err(error)
            }
        }
    }

    /// The objects of the process, as they are mapped now.
    pub(super) fn objects(&mut self) -> Result<Objects, Error> {
        self.refresh_maps()?;
        self.mapped_objects()
    }

    /// The objects of the process, as they were mapped when that was last looked at.
    pub(super) fn mapped_objects(&self) -> Result<Objects, Error> {
        let pid = self.process.pid;
        Objects::read(&self.process.live(), &self.maps).map_err(|error| match error {
            ObjectError::Is32Bit { .. } => Error::ThirtyTwoBit(pid),
            source => Error::Object {
                object: format!("the objects of process {pid}"),
                source,
            },
        })
    }

    /// The functions to replace, when everything that can be told without stopping a task or planning is in order.
    pub(super) fn verified<'a, 'p>(
        &self,
        patch: &'p Patch,
        name: &str,
        objects: &'a Objects,
    ) -> Result<Vec<(Function<'a>, &'p Func)>, Error> {
        if let Some(why) = patch.unsupported() {
            return Err(Error::Unsupported(why));
        }
        self.state.model.may_load(name)?;
        let functions = self.functions(patch, objects)?;
        let wanted = self.wanted();
        for (function, _) in &functions {
            self.compare_text(function, &wanted)?;
        }
        if self.gadgets.restorers.is_empty() {
            return Err(Error::NoRestorer(self.process.pid));
        }
        Ok(functions)
    }

    /// The functions to replace, found and checked against their files.
    fn functions<'a, 'p>(
        &self,
        patch: &'p Patch,
        objects: &'a Objects,
    ) -> Result<Vec<(Function<'a>, &'p Func)>, Error> {
        let mut all = Vec::new();
        for wanted in &patch.objects {
            let name = wanted.name.as_deref();
            let object = objects
                .by_name(name)
                .ok_or_else(|| Error::ObjectNotLoaded {
                    pid: self.process.pid,
                    object: name.unwrap_or_default().to_owned(),
                })?;
            let Some(build) = wanted.build(object.build_id()) else {
                let ids = wanted.builds.iter().map(|build| hex(&build.build_id));
                return Err(Error::WrongBuildId {
                    pid: self.process.pid,
                    object: object.name().to_owned(),
                    found: hex(object.build_id()),
                    wanted: ids.collect::<Vec<String>>().join(" or "),
                });
            };
            for (func, print) in wanted.funcs.iter().zip(&build.fingerprints) {
                if let Some(part) = object.coroutine_part(&func.old_name) {
                    let function = func.old_name.clone();
                    return Err(Error::Coroutine { function, part });
                }
                all.push((self.function(func, print, name, object)?, func));
            }
        }
        // An entry that begins within another's first five bytes must be planned before it.
        all.sort_by_key(|(function, _)| std::cmp::Reverse(function.start));
        Ok(all)
    }

    fn function<'a>(
        &self,
        func: &Func,
        print: &Fingerprint,
        object_name: Option<&str>,
        object: &'a LoadedObject,
    ) -> Result<Function<'a>, Error> {
        let differs = || Error::Fingerprint {
            function: func.old_name.clone(),
            object: object.name().to_owned(),
        };
        let start = object.avma(print.svma);
        let function = Function::read(&func.old_name, object_name, object, start, print.size)
            .ok_or_else(differs)?;
        if Sha256::digest(function.body())[..] != print.sha256 {
            return Err(differs());
        }
        Ok(function)
    }

    /// The running text must be what the file says, our own entries apart.
    fn compare_text(&self, function: &Function<'_>, jumping: &BTreeSet<Slot>) -> Result<(), Error> {
        let (address, wanted) = function.surroundings();
        let mut wanted = wanted.to_vec();
        self.overlay(jumping, address, &mut wanted);
        self.compare_bytes(&function.name, address, &wanted)
    }

    /// The memory of the same patch, loaded before and unloaded since.
    pub(super) fn disabled_image(
        &self,
        patch: &Patch,
        name: &str,
        forced: Option<Method>,
        functions: &[(Function<'_>, &Func)],
    ) -> Option<PatchId> {
        let known = self.state.model.patches().iter().find(|known| {
            known.name == name
                && known.state == PatchState::Disabled
                && self
                    .state
                    .image(known.id)
                    .is_some_and(|image| image.digest == patch.digest)
        })?;
        // It lies where its objects were then; and the user may want other entries now.
        let same = functions.iter().all(|(function, _)| {
            self.slot_at(function.start)
                .and_then(|slot| self.state.entry(slot))
                .is_some_and(|entry| {
                    entry.at == function.at() && forced.is_none_or(|m| m == entry.method)
                })
        });
        same.then_some(known.id)
    }

    /// Opens the transition towards a patch whose memory is there.
    fn reopen(&mut self, id: PatchId, objects: &Objects) -> Result<(), Error> {
        self.register_again(&[id], objects)?;
        self.state.model.begin_load(id)?;
        self.open_universe()?;
        self.redirect()
    }

    /// Redirects the entries of the load that was just opened. When that fails nobody has moved yet, so it is closed
    /// again at once.
    fn redirect(&mut self) -> Result<(), Error> {
        self.apply_edits(true).inspect_err(|_| {
            // What went wrong is what the user must hear; `recover` tries the rest again.
            let _ = self
                .state
                .model
                .reverse()
                .map(drop)
                .map_err(Error::from)
                .and_then(|()| self.close());
        })
    }

    /// Gives the open transition's target a table, writes all tables and records the transition.
    pub(super) fn open_universe(&mut self) -> Result<(), Error> {
        let Some((to, patch)) = self.state.model.transition().map(|o| (o.to, o.patch)) else {
            return Ok(());
        };
        let table = self.gs_of(to).is_none();
        let slots = self.state.model.patch(patch).map(|p| p.slots.clone());
        let more = if table { 4 * arch::PAGE } else { 0 };
        self.may_replace_pages(&slots.unwrap_or_default(), more)?;
        if table {
            let slots = self.state.entries.len() as u64;
            let mut plan = self.plan()?;
            let table = self.plan_table(&mut plan, slots)?;
            if !plan.regions.is_empty() {
                // Recorded with the transition still closed.
                let opened = self.state.clone();
                let mut closed = Engine::recorded(self)?;
                closed.regions.extend(&plan.regions);
                self.state = closed;
                self.commit()?;
                self.map(&plan.regions)?;
                let regions = self.state.regions.clone();
                self.state = State { regions, ..opened };
                self.mark_reachable(&plan.regions);
            }
            self.state.tables.push((to, table));
        }
        self.write_tables()?;
        self.begin();
        self.commit()
    }

    fn begin(&mut self) {
        self.state.began_ms = now_ms();
        self.state.began_ticks = crate::sys::boot_ticks();
    }

    /// The state as it is recorded in the target now.
    fn recorded(&self) -> Result<State, Error> {
        let found = crate::registry::Registry::find(self.process.pid, self.memory(), &self.maps)?;
        Ok(found.map(|(_, state)| state).unwrap_or_default())
    }

    /// Maps, links, writes, and opens the transition.
    fn place(
        &mut self,
        patch: &Patch,
        name: &str,
        forced: Option<Method>,
        objects: &Objects,
        functions: Vec<(Function<'_>, &Func)>,
    ) -> Result<PatchId, Error> {
        let mut planned = self.plan_load(patch, forced, objects, &functions)?;
        if !planned.indirect.is_empty() {
            self.resolve(objects, &planned.indirect)?;
            planned = self.plan_load(patch, forced, objects, &functions)?;
        }
        self.create_registry()?;
        self.make_room(functions.len() as u64 * RECORD_PER_FUNCTION)?;
        self.refresh_maps()?;
        let taken = |region: &Region| {
            let mut maps = self.maps.iter();
            maps.any(|mapping| mapping.start < region.end() && region.start < mapping.end)
        };
        if planned.plan.regions.iter().any(taken) {
            // The record itself came to lie where something was planned.
            planned = self.plan_load(patch, forced, objects, &functions)?;
        }
        if let Some(left) = planned.indirect.first() {
            return Err(left.unresolvable("it could not be found out".to_owned()));
        }
        let PlannedLoad {
            plan,
            layout,
            linked,
            base,
            table,
            ..
        } = planned;

        self.state.regions.extend(&plan.regions);
        self.commit()?;
        self.map(&plan.regions)?;
        for segment in &linked.segments {
            self.write(segment.avma, &segment.bytes)?;
        }
        let block = base..base.saturating_add(layout.total_size);
        // Nothing else of the load is recorded yet: what follows may take long, and may be where we end.
        let (unwinders, notes) = self.register_new(objects, &linked, &block, &plan.regions)?;
        self.state.low = plan.low;
        let Plan {
            regions,
            writes,
            entries,
            pages,
            ..
        } = plan;
        for (address, bytes) in joined(writes) {
            self.write(address, &bytes)?;
        }
        self.state.entries.extend(entries);
        // Another object may have been there before.
        let again = |page: u64| pages.iter().any(|&(other, _)| other == page);
        self.state.pages.retain(|&(page, _)| !again(page));
        self.state.pages.extend(pages);
        let mut image = self.image(patch, &functions, &linked, block, objects);
        (image.unwinders, image.notes) = (unwinders, notes);
        self.open_new(name, image, table, &regions)
    }

    /// Plans and links a load. Nothing is changed.
    pub(super) fn plan_load(
        &mut self,
        patch: &Patch,
        forced: Option<Method>,
        objects: &Objects,
        functions: &[(Function<'_>, &Func)],
    ) -> Result<PlannedLoad, Error> {
        let (mut fresh, mut known) = (Vec::new(), Vec::new());
        for (function, _) in functions {
            match self.slot_at(function.start) {
                Some(slot) => known.push(slot),
                None => {
                    let mut function = function.clone();
                    function.trace(objects, &self.process.memory);
                    fresh.push(function);
                }
            }
        }
        let slots = (self.state.entries.len() + fresh.len()) as u64;
        let layout = Layout::of(patch)?;
        let mut plan = self.plan()?;
        self.plan_low_table(&mut plan, slots)?;
        self.plan_entries(&mut plan, &fresh, &known, forced)?;
        let first = functions
            .first()
            .map_or_else(|| objects.executable(), |(f, _)| f.object);
        let sizes = [layout.text_size, layout.ro_size, layout.rw_size];
        let base = self.plan_image(&mut plan, first, sizes, layout.needs_low)?;
        let table = self.plan_table(&mut plan, slots)?;
        self.plan_pool(&mut plan)?;
        let resolver = Resolver::new(objects, &self.process.memory).with_returned(&self.resolved);
        let linked = link::link(patch, &layout, base, &resolver)?;
        let indirect = resolver.wanted();
        self.may_resolve(objects, &indirect)?;
        Ok(PlannedLoad {
            plan,
            layout,
            linked,
            indirect,
            base,
            table,
        })
    }

    fn image(
        &self,
        patch: &Patch,
        functions: &[(Function<'_>, &Func)],
        linked: &link::Linked,
        block: Range<u64>,
        objects: &Objects,
    ) -> Image {
        let functions = functions
            .iter()
            .filter_map(|(function, func)| {
                let bodies = linked.body_of(func.new_func);
                let code = |body: &Range<u64>| code_of(linked, body).unwrap_or_default();
                let last = |body: &Range<u64>| match code_of(linked, body) {
                    Some(code) => arch::last_return_address(body.start, code),
                    None => body.end,
                };
                let mut tails: Vec<u64> = bodies
                    .iter()
                    .flat_map(|body| arch::tail_targets(body.start, code(body)))
                    .collect();
                let ways = self.ways_out_of(linked, &bodies, &tails, objects);
                tails.extend(&ways.targets);
                tails.sort_unstable();
                tails.dedup();
                Some(ImageFunction {
                    slot: self.slot_at(function.start)?,
                    entry: linked.symbol_avma(func.new_func)?,
                    leaving: leaving(&ways),
                    tails,
                    bodies: bodies
                        .iter()
                        .map(|body| (body.start.saturating_sub(1), last(body)))
                        .collect(),
                })
            })
            .collect();
        Image {
            id: PatchId(0),
            digest: patch.digest,
            start: block.start,
            len: block.end - block.start,
            eh_frames: linked
                .eh_frames
                .iter()
                .map(|range| (range.start, range.end))
                .collect(),
            unwinders: Vec::new(),
            notes: Vec::new(),
            forgetting: false,
            functions,
        }
    }

    /// What a replacement's tail jumps pass through: veneers of the patch, and whatever is at the ends of its GOT's words
    /// and of its own jumps, which are PLT stubs where a function's address is one.
    fn ways_out_of(
        &self,
        linked: &link::Linked,
        bodies: &[Range<u64>],
        tails: &[u64],
        objects: &Objects,
    ) -> WaysOut {
        const LARGEST_VENEER: u64 = 8;
        let word = |at: u64| {
            let bytes = code_of(linked, &(at..at.checked_add(8)?))?;
            bytes.try_into().ok().map(u64::from_le_bytes)
        };
        let mut ways = WaysOut::default();
        let mut ends: Vec<u64> = tails.to_vec();
        for &at in tails {
            let code = code_of(linked, &(at..at.saturating_add(LARGEST_VENEER)));
            if let Some((end, slot)) = code.and_then(|code| arch::plt_stub(at, code)) {
                ways.stubs.push((at, end - 1));
                ends.extend(word(slot));
            }
        }
        for body in bodies {
            let flow = code_of(linked, body).map(|code| arch::flow(body.start, code));
            let words = flow.into_iter().flat_map(|flow| flow.words);
            ends.extend(words.filter_map(word));
        }
        for end in ends {
            ways.targets.push(end);
            if let Some(object) = objects.containing(end) {
                ways.add(object.way_through(end, objects, &self.process.memory));
            }
        }
        ways
    }

    /// The point of no return: all is written, now the record says that tasks may reach it.
    fn open_new(
        &mut self,
        name: &str,
        mut image: Image,
        table: u64,
        regions: &[Region],
    ) -> Result<PatchId, Error> {
        let slots: Vec<Slot> = image
            .functions
            .iter()
            .map(|function| function.slot)
            .collect();
        self.probe_text(&slots)?;
        self.may_replace_pages(&slots, 0)?;
        let id = self.state.model.add(name, slots);
        image.id = id;
        let modules = self.modules_of(&image);
        if let Some(unwinder) = &mut self.unwinder {
            unwinder.extend(modules);
        }
        self.state.images.push(image);
        let to = self.state.model.begin_load(id)?.to;
        if to != UniverseId::ORIGINAL && self.gs_of(to).is_none() {
            self.state.tables.push((to, table));
        }
        self.write_tables()?;
        self.mark_reachable(regions);
        self.begin();
        self.commit()?;
        Ok(id)
    }

    /// Writes a byte of each page with entries over itself: is writing to the text allowed at all?
    fn probe_text(&self, slots: &[Slot]) -> Result<(), Error> {
        let pid = self.process.pid;
        let mut probed = BTreeSet::new();
        for entry in slots.iter().filter_map(|&slot| self.state.entry(slot)) {
            for edit in entry
                .edits
                .iter()
                .filter(|edit| probed.insert(edit.at / PAGE))
            {
                self.memory()
                    .read_vec(edit.at, 1)
                    .and_then(|bytes| self.memory().write(edit.at, &bytes))
                    .map_err(|source| Error::RemoteCall {
                        pid,
                        what: format!("have its code changed at {:#x}", edit.at),
                        source,
                    })?;
            }
        }
        Ok(())
    }

    /// Takes back what a failed load mapped.
    fn abandon(&mut self, before: State, had_registry: bool) -> Result<(), Error> {
        let kept: Vec<u64> = before.regions.iter().map(|region| region.start).collect();
        let grown = |region: &Region| region.purpose == Purpose::Registry;
        let mine: Vec<Region> = self
            .state
            .regions
            .iter()
            .copied()
            .filter(|r| !kept.contains(&r.start))
            .collect();
        // What an unwinder was told of stays for good, and so does the record, which accounts for it.
        let told = |region: &Region| self.told.contains(&region.start);
        let (told, mine): (Vec<Region>, Vec<Region>) = mine.into_iter().partition(told);
        if had_registry || !told.is_empty() {
            let (registries, others): (Vec<Region>, Vec<Region>) =
                mine.into_iter().partition(grown);
            self.unmap(&others)?;
            let instance = self.state.instance;
            self.state = State { instance, ..before };
            // A record that has moved to a larger place stays there.
            self.state.regions.extend(registries);
            self.state.regions.extend(told);
            self.commit_idle()
        } else {
            self.registry = None;
            // The record goes last: until then it names what is left.
            let (registry, others): (Vec<Region>, Vec<Region>) = mine.into_iter().partition(grown);
            self.unmap(&others)?;
            self.unmap(&registry)?;
            self.state = before;
            Ok(())
        }
    }
}

/// The code of a patch in this range.
pub(super) fn code_of<'a>(linked: &'a link::Linked, range: &Range<u64>) -> Option<&'a [u8]> {
    linked.segments.iter().find_map(|segment| {
        let from = usize::try_from(range.start.checked_sub(segment.avma)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(segment.avma)?).ok()?;
        segment.bytes.get(from..to)
    })
}

/// Lower-case hexadecimal digits, or `none`.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "none".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
