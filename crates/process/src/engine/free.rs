//! Giving the memory of unloaded patches back.
//!
//! No universe that tasks can be in leads to a disabled patch, so nobody enters it any more; what can still reach its
//! memory is a pointer that its own code, or whoever was given one by it, has left somewhere. While tasks run a search for
//! such pointers finds those that lie still, and that is enough to keep the memory. To prove that there are none, all
//! tasks stand still while everything is searched once more: then there is no place from which, and none to which, one
//! could move. What nobody has a pointer to then nobody can get one to later, so that the memory need not go within the
//! same stop. Without write tracking (which would leave its marks in the process) no search of a running process proves
//! as much.

use super::handed::search_handlers;
use super::reach::{Bound, Cut, Held, Reach};
use super::referrer::Reference;
use super::{Engine, Stopping};
use crate::boost;
use crate::error::Error;
use crate::process::Task;
use crate::search::Wanted;
use crate::stack::Ranges;
use crate::state::{Image, Purpose, Region};
use crate::sys::{self, Registers};
use crate::tracer::Stopped;
use livegraft_model::PatchId;
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How often it is tried to stop all tasks.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(2);
/// Stopping one task, reading its registers and letting it go, at leisure.
const PER_TASK: Duration = Duration::from_micros(100);
/// Nobody may mean to let a process stand still for longer.
const LONGEST_STOP: Duration = Duration::from_secs(3600);
/// So many of the words that refer to a patch are shown.
const MOST_SHOWN: usize = 32;

/// A patch whose memory is unmapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreedPatch {
    /// Its name.
    pub name: String,
    /// How much it was.
    pub bytes: u64,
}

/// A patch whose memory stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPatch {
    /// Its name.
    pub name: String,
    /// How much it is.
    pub bytes: u64,
    /// Why.
    pub why: Kept,
}

/// Why a patch's memory stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// A task was forced out of it.
    Forced,
    /// Something refers to it: so many words, the first of which are these.
    Referenced(usize, Vec<Reference>),
    /// This could not be looked at, and may refer to it.
    Unseen(Vec<String>),
    /// Nothing was found while tasks ran. The proof needs all of them to stand still, for about so long.
    Unproven(Duration),
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct FreeReport {
    /// The process.
    pub pid: i32,
    /// What is gone.
    pub freed: Vec<FreedPatch>,
    /// What is not.
    pub kept: Vec<KeptPatch>,
    /// How many tasks there are.
    pub tasks: usize,
    /// How much memory was searched.
    pub searched: u64,
    /// Stops of tasks, all together.
    pub stops: u64,
    /// The longest of them.
    pub longest_stop: Duration,
    /// The most at once.
    pub most_stopped: u64,
}

/// Patches that may go, as far as is known, and what was found out about the others.
struct Sorted {
    may_go: Vec<PatchId>,
    kept: Vec<KeptPatch>,
}

impl Engine {
    /// Unmaps the memory of a disabled patch, or of all of them, if nothing can refer to it. `stop`: how long all tasks
    /// may stand still at once for the proof; without it nothing is unmapped, but it is said what refers to what.
    ///
    /// # Errors
    /// [`livegraft_model::Livepatch::may_free`]'s; [`Error::NotPatched`]; when the process can't be looked at. What is
    /// merely kept is no error.
    pub fn free(
        &mut self,
        name: Option<&str>,
        stop: Option<Duration>,
    ) -> Result<FreeReport, Error> {
        let pid = self.process.pid;
        if self.registry.is_none() {
            return Err(Error::NotPatched(pid));
        }
        let all = self.state.model.may_free(name)?;
        let mut sorted = Sorted {
            may_go: all,
            kept: self.forced_ones(name),
        };
        let (mut freed, mut tasks, mut searched) = (Vec::new(), 0, 0);
        if !sorted.may_go.is_empty() {
            self.prepare_unwinds()?;
            self.switching(None)?;
            // While all stand still we need not wait for our turn.
            let began = sys::processor_time();
            let (reach, found) = self.reach_while_running(&sorted.may_go)?;
            (tasks, searched) = (found, reach.bytes);
            self.sort_out(reach, &mut sorted)?;
            let took = sys::processor_time().saturating_sub(began);
            let needs = took + PER_TASK.saturating_mul(tasks as u32);
            if !sorted.may_go.is_empty() {
                match stop.filter(|&stop| needs <= stop) {
                    Some(stop) => self.prove(stop, needs, &mut sorted)?,
                    None => self.keep_all(&mut sorted, &Kept::Unproven(needs)),
                }
            }
            freed = self.give_back(&mut sorted)?;
        }
        let cost = self.tracer.cost();
        Ok(FreeReport {
            pid,
            freed,
            kept: sorted.kept,
            tasks,
            searched,
            stops: cost.stops,
            longest_stop: cost.longest_stop,
            most_stopped: cost.most_stopped,
        })
    }

    fn forced_ones(&self, name: Option<&str>) -> Vec<KeptPatch> {
        let patches = self.state.model.patches().iter();
        let forced = patches.filter(|patch| {
            let disabled = patch.state == livegraft_model::PatchState::Disabled;
            disabled && patch.forced && name.is_none_or(|name| patch.name == name)
        });
        forced
            .map(|patch| self.kept(patch.id, Kept::Forced))
            .collect()
    }

    fn kept(&self, id: PatchId, why: Kept) -> KeptPatch {
        let name = self.state.model.patch(id).map(|patch| patch.name.clone());
        KeptPatch {
            name: name.unwrap_or_default(),
            bytes: self.patch_bytes(id),
            why,
        }
    }

    /// Without what unwinders keep about it.
    fn patch_bytes(&self, id: PatchId) -> u64 {
        let regions = self.regions_of(id).into_iter();
        let own = regions.filter(|region| region.purpose != Purpose::Frames);
        own.map(|region| region.len).sum()
    }

    fn keep_all(&self, sorted: &mut Sorted, why: &Kept) {
        for id in std::mem::take(&mut sorted.may_go) {
            sorted.kept.push(self.kept(id, why.clone()));
        }
    }

    fn regions_of(&self, id: PatchId) -> Vec<Region> {
        let image = self.state.image(id);
        let block = image.map(Image::block);
        let notes = image.map_or(&[][..], |image| image.notes.as_slice());
        let inside = |region: &&Region| {
            let of_patch = matches!(
                region.purpose,
                Purpose::Text | Purpose::Constants | Purpose::Data
            );
            let block = block.clone().unwrap_or_default();
            of_patch && block.start <= region.start && region.end() <= block.end
                || region.purpose == Purpose::Frames && notes.contains(&region.start)
        };
        self.state.regions.iter().filter(inside).copied().collect()
    }

    fn sought(&self, ids: &[PatchId], guards: &Guards) -> Wanted {
        let images = ids.iter().filter_map(|&id| self.state.image(id));
        Wanted::new(
            &images.map(Image::block).collect::<Vec<_>>(),
            &guards.most_common(),
        )
    }

    /// What refers to patches, and how many tasks there are. Tasks are stopped one at a time.
    fn reach_while_running(&mut self, ids: &[PatchId]) -> Result<(Reach, usize), Error> {
        let tasks = self.process.tasks()?.tasks;
        let mut reach = Reach::default();
        let mut guards = Guards::default();
        let mut looked: Vec<(Task, Registers)> = Vec::new();
        for &task in &tasks {
            boost::adapt_priority();
            // Who can't be stopped now is met later.
            if let Stopping::Stopped(stopped) = self.tracer.stop(task, 0) {
                guards.add(self.pointer_guard(&stopped.regs));
                let wanted = self.sought(ids, &guards);
                self.search_registers(task, &stopped, &wanted, &mut reach);
                looked.push((task, stopped.regs));
            }
        }
        let wanted = self.sought(ids, &guards);
        let bound = Bound(None);
        let searched = self
            .search_memory(&wanted, bound, &mut reach)
            .and_then(|()| self.search_kernel(&tasks, &wanted, bound, &mut reach));
        uncut(searched)?;
        let tcbs = tcbs(looked.iter().map(|(_, regs)| regs));
        for (task, regs) in looked {
            let on_stack = self.process.mapping_at(regs.rsp).is_ok_and(|(low, high)| {
                let first = reach.words.partition_point(|word| word.at < low);
                reach.words.get(first).is_some_and(|word| word.at < high)
            });
            if on_stack && let Stopping::Stopped(stopped) = self.tracer.stop(task, 0) {
                let is_alone = tcbs.get(&stopped.regs.fs_base) == Some(&1);
                self.judge_stack(task, &stopped.regs, is_alone, &wanted, &mut reach);
            }
        }
        self.tracer.release_late();
        Ok((reach, tasks.len()))
    }

    /// Searches once more, with all tasks stopped for at most `stop`.
    fn prove(&mut self, stop: Duration, needs: Duration, sorted: &mut Sorted) -> Result<(), Error> {
        let mut why = String::new();
        for _ in 0..ATTEMPTS {
            let bound = Bound(Some(Instant::now() + stop.min(LONGEST_STOP)));
            self.tracer.hold_late(true);
            let met = self.stop_everyone(&Ranges::default(), true);
            self.tracer.hold_late(false);
            match met? {
                Ok(all) => {
                    let found = self.reach_while_still(&sorted.may_go, all, bound);
                    self.tracer.release_late();
                    return match found {
                        Ok(reach) => self.sort_out(reach, sorted),
                        Err(Cut::OutOfTime) => {
                            self.keep_all(sorted, &Kept::Unproven(needs.max(stop * 2)));
                            Ok(())
                        }
                        Err(Cut::Failed(error)) => Err(error),
                    };
                }
                Err((task, reason)) => {
                    why = format!("task {} ({reason})", task.tid);
                    self.tracer.release_late();
                    std::thread::sleep(PAUSE);
                }
            }
        }
        self.keep_all(sorted, &Kept::Unseen(vec![why]));
        Ok(())
    }

    fn reach_while_still(
        &mut self,
        ids: &[PatchId],
        all: HashMap<Task, Stopped>,
        bound: Bound,
    ) -> Result<Reach, Cut> {
        let mut reach = Reach::default();
        let mut guards = Guards::default();
        for stopped in all.values() {
            guards.add(self.pointer_guard(&stopped.regs));
        }
        let wanted = self.sought(ids, &guards);
        for (&task, stopped) in &all {
            bound.check()?;
            self.search_registers(task, stopped, &wanted, &mut reach);
        }
        self.search_memory(&wanted, bound, &mut reach)?;
        let tcbs = tcbs(all.values().map(|stopped| &stopped.regs));
        for (&task, stopped) in &all {
            bound.check()?;
            let is_alone = tcbs.get(&stopped.regs.fs_base) == Some(&1);
            self.judge_stack(task, &stopped.regs, is_alone, &wanted, &mut reach);
        }
        let tasks: Vec<Task> = all.keys().copied().collect();
        self.search_kernel(&tasks, &wanted, bound, &mut reach)?;
        let signals = self.caught_signals();
        if !signals.is_empty() && reach.unseen.is_empty() {
            let mut everyone = self.choose_host(all)?;
            search_handlers(&mut everyone, &signals, &wanted, bound, &mut reach)?;
        }
        Ok(reach)
    }

    /// Takes those out of what may go that something refers to which stays.
    fn sort_out(&mut self, reach: Reach, sorted: &mut Sorted) -> Result<(), Error> {
        let Reach {
            words,
            mut held,
            mut unseen,
            ..
        } = reach;
        held.extend(words.into_iter().map(|word| Held {
            value: word.value,
            mangled: word.mangled,
            at: Some(word.at),
            place: "memory",
            task: None,
        }));
        let blocks: Vec<(PatchId, Range<u64>)> = sorted
            .may_go
            .iter()
            .filter_map(|&id| Some((id, self.state.image(id)?.block())))
            .collect();
        // One past the end counts as inside.
        let of = |at: u64| {
            let inside =
                |(_, block): &&(PatchId, Range<u64>)| (block.start..=block.end).contains(&at);
            blocks.iter().find(inside).map(|&(id, _)| id)
        };
        // A patch that goes may refer to itself, and to others that go.
        let mut stays: Vec<PatchId> = Vec::new();
        loop {
            let found = held.iter().find_map(|held| {
                let to = of(held.value).filter(|to| !stays.contains(to))?;
                let from = held.at.and_then(of);
                from.is_none_or(|from| stays.contains(&from)).then_some(to)
            });
            match found {
                Some(id) => stays.push(id),
                None => break,
            }
        }
        let objects = if stays.is_empty() {
            None
        } else {
            Some(self.mapped_objects()?)
        };
        for id in stays {
            sorted.may_go.retain(|&other| other != id);
            let refers =
                |held: &&Held| of(held.value) == Some(id) && held.at.and_then(of) != Some(id);
            let all: Vec<&Held> = held.iter().filter(refers).collect();
            let shown = all.iter().take(MOST_SHOWN);
            let shown = shown
                .map(|held| self.reference(held, objects.as_ref()))
                .collect();
            sorted
                .kept
                .push(self.kept(id, Kept::Referenced(all.len(), shown)));
        }
        if !unseen.is_empty() {
            unseen.sort();
            unseen.dedup();
            self.keep_all(sorted, &Kept::Unseen(unseen));
        }
        Ok(())
    }

    /// Unmaps patches that nothing refers to. The record says first that nobody can reach them: whoever takes over from
    /// there unmaps the rest.
    fn give_back(&mut self, sorted: &mut Sorted) -> Result<Vec<FreedPatch>, Error> {
        self.refresh_maps()?;
        let mut freed = Vec::new();
        for id in std::mem::take(&mut sorted.may_go) {
            let gone = self.regions_of(id);
            if !gone.iter().all(|region| self.is_mapped(region)) {
                let why = "its memory is not as livegraft mapped it".to_owned();
                sorted.kept.push(self.kept(id, Kept::Unseen(vec![why])));
                continue;
            }
            if let Some(why) = self.unregister(id)? {
                sorted.kept.push(self.kept(id, Kept::Unseen(vec![why])));
                continue;
            }
            let KeptPatch { name, bytes, .. } = self.kept(id, Kept::Forced);
            freed.push(FreedPatch { name, bytes });
            for region in &mut self.state.regions {
                region.reachable &= !gone.contains(region);
            }
            self.state.images.retain(|image| image.id != id);
            self.state.model.forget(id);
        }
        if !freed.is_empty() {
            self.commit()?;
            self.unmap_unreachable()?;
            self.commit_idle()?;
        }
        Ok(freed)
    }
}

/// The pointer guards of tasks, and how many have them.
#[derive(Debug, Default)]
struct Guards(HashMap<u64, usize>);

impl Guards {
    fn add(&mut self, guard: Option<u64>) {
        if let Some(guard) = guard {
            *self.0.entry(guard).or_default() += 1;
        }
    }

    /// First the one that all threads of a C library have.
    fn most_common(&self) -> Vec<u64> {
        let mut all: Vec<(usize, u64)> = self
            .0
            .iter()
            .map(|(&guard, &count)| (count, guard))
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().map(|(_, guard)| guard).collect()
    }
}

/// How many tasks have which thread control block. A task that has one with another may live in an array on that one's
/// stack.
fn tcbs<'a>(all: impl Iterator<Item = &'a Registers>) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for regs in all {
        *counts.entry(regs.fs_base).or_default() += 1;
    }
    counts
}

/// A search without a bound is not cut.
fn uncut(result: Result<(), Cut>) -> Result<(), Error> {
    match result {
        Err(Cut::Failed(error)) => Err(error),
        Err(Cut::OutOfTime) | Ok(()) => Ok(()),
    }
}
