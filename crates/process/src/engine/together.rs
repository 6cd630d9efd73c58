//! Transitions of processes whose tasks switch stacks: all tasks stand still, and move in one motion.

use super::stacks::MOST_FRAMES;
use super::transition::{Converged, Watch};
use super::{Blocked, Engine};
use crate::arch;
use crate::error::Error;
use crate::object::{Mapping, Objects, Suspended};
use crate::process::Task;
use crate::snapshot::{self, Snapshot};
use crate::stack::{self, CodeRange, Hit, Ranges};
use crate::suspended::{self, Finder};
use crate::sys::Registers;
use crate::tracer::Stopped;
use crate::unwind::Stack;
use livegraft_model::{
    Assembly, JudgeAll, Look, Operation, Pause, Standing, UniverseId, Verdict, converge_together,
};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};

/// Between two meetings the process runs at least so long, and so many times longer than it stood still.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
const SHARE: u32 = 20;
/// The C library's pointer guard, from the thread control block on (`tcbhead_t`).
const POINTER_GUARD: u64 = 0x30;

/// What makes stacks in a process that are no task's.
#[derive(Debug, Clone)]
pub(super) struct Switching {
    /// The object.
    pub object: String,
    /// What says so.
    pub how: String,
    /// See [`crate::object::StackSwitching`].
    pub is_go: bool,
    /// Where suspended stacks' registers may be.
    pub ways: Vec<Suspended>,
    /// Some may be elsewhere.
    pub not_understood: bool,
}

impl Switching {
    /// Looks through all objects.
    pub(super) fn find(objects: &Objects) -> Option<Switching> {
        let mut all: Option<Switching> = None;
        let mut by_name_alone = false;
        for object in objects.iter() {
            let Some(found) = object.stack_switching() else {
                continue;
            };
            by_name_alone |= found.ways.is_empty();
            let all = all.get_or_insert_with(|| Switching {
                object: object.name().to_owned(),
                how: found.how,
                is_go: false,
                ways: Vec::new(),
                not_understood: false,
            });
            all.is_go |= found.is_go;
            all.not_understood |= found.not_understood;
            all.ways.extend(found.ways);
        }
        if let Some(all) = &mut all {
            // Whoever calls a switch by name has it in another object, where its code was seen, or it was not seen.
            all.not_understood |= by_name_alone && all.ways.is_empty();
        }
        all
    }
}

/// What a meeting found to be in the way.
#[derive(Debug, Clone)]
enum Obstacle {
    Task(Task, Option<Hit>, &'static str),
    Suspended(Hit),
}

impl Engine {
    /// What makes stacks in this process that are no task's; looked for once.
    pub(super) fn switching(
        &mut self,
        objects: Option<&Objects>,
    ) -> Result<Option<Switching>, Error> {
        if let Some(known) = &self.switching {
            return Ok(known.clone());
        }
        // To search all code takes longer than all else; what it found of the same files holds.
        let files = self.mapped_code()?;
        let found = match objects {
            _ if self.state.calm == Some(files) => None,
            Some(objects) => Switching::find(objects),
            None => Switching::find(&self.objects()?),
        };
        self.state.calm = found.is_none().then_some(files);
        self.switching = Some(found.clone());
        Ok(found)
    }

    /// Which files are mapped executable.
    fn mapped_code(&self) -> Result<[u8; 32], Error> {
        let maps = crate::object::read_mappings(&self.process.live());
        let maps = maps.map_err(|_| Error::Exited(self.process.pid))?;
        let code = maps
            .iter()
            .filter(|mapping| mapping.exec && mapping.inode != 0);
        let files: BTreeSet<_> = code
            .map(|mapping| (mapping.dev, mapping.inode, mapping.path.as_deref()))
            .collect();
        let mut hash = Sha256::new();
        for ((major, minor), inode, path) in files {
            hash.update(major.to_le_bytes());
            hash.update(minor.to_le_bytes());
            hash.update(inode.to_le_bytes());
            let path = path.map(|path| path.as_os_str().as_bytes());
            let path = path.unwrap_or_default();
            hash.update((path.len() as u64).to_le_bytes());
            hash.update(path);
        }
        Ok(hash.finalize().into())
    }

    /// Refuses what can't be moved together.
    pub(super) fn may_move_together(&mut self, objects: Option<&Objects>) -> Result<(), Error> {
        let Some(switching) = self.switching(objects)? else {
            return Ok(());
        };
        let (object, how) = (switching.object.clone(), switching.how.clone());
        if switching.is_go {
            return Err(Error::Goroutines { object, how });
        }
        let tasks = self.process.tasks()?.tasks.len();
        if tasks > 1 && !self.together {
            return Err(Error::ForeignStacks { object, how, tasks });
        }
        self.bounded(&switching, &self.writable()?)
    }

    fn writable(&self) -> Result<Vec<Range<u64>>, Error> {
        let live = self.process.live();
        let read = || {
            let maps = crate::object::read_mappings(&live)?;
            // Memory of a device is no stack, and reading it may do things.
            snapshot::written(
                &live,
                maps.iter().filter(|mapping| !self.is_device(mapping)),
            )
        };
        read().map_err(|_| Error::Exited(self.process.pid))
    }

    fn bounded(&self, switching: &Switching, ranges: &[Range<u64>]) -> Result<(), Error> {
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        match bytes > snapshot::MOST_MEMORY {
            true => Err(Error::TooMuchMemory {
                object: switching.object.clone(),
                how: switching.how.clone(),
                pid: self.process.pid,
                mib: bytes >> 20,
                limit: snapshot::MOST_MEMORY >> 20,
            }),
            false => Ok(()),
        }
    }

    /// Brings all tasks to the open transition's target in one motion.
    pub(super) fn converge_together(
        &mut self,
        switching: Switching,
        deadline: Option<Instant>,
        watch: Watch<'_>,
    ) -> Result<Converged, Error> {
        let Some(open) = self.state.model.transition().cloned() else {
            return Ok(Converged::default());
        };
        self.prepare_unwinds()?;
        self.rehearse(&switching)?;
        let (to, heading) = (open.to, open.heading());
        let mut meetings = Meetings {
            engine: self,
            switching,
            to,
            heading,
            deadline,
            watch,
            pause: SHORTEST_PAUSE,
            tasks: 0,
            obstacle: None,
        };
        let complete = converge_together(&mut meetings, to, open.forced)?;
        let (tasks, obstacle) = (meetings.tasks, meetings.obstacle.take());
        self.tracer.release_late();
        Ok(Converged {
            arrived: if complete { tasks } else { 0 },
            complete,
            blocked: obstacle
                .filter(|_| !complete)
                .map(|obstacle| self.in_the_way(&obstacle))
                .into_iter()
                .collect(),
        })
    }

    fn in_the_way(&self, obstacle: &Obstacle) -> Blocked {
        let (tid, name, hit, why) = match obstacle {
            Obstacle::Task(task, hit, why) => (task.tid, task.name(), *hit, *why),
            Obstacle::Suspended(hit) => (0, "a suspended stack".to_owned(), Some(*hit), ""),
        };
        Blocked {
            tid,
            name,
            seconds: self.waited(),
            function: hit.map_or_else(|| format!("unknown: {why}"), |hit| self.describe(&hit)),
            address: hit.map_or(0, |hit| hit.address),
            stack: hit.and_then(|hit| hit.stack),
            armed: false,
        }
    }
}

struct Meetings<'a> {
    engine: &'a mut Engine,
    switching: Switching,
    to: UniverseId,
    heading: Operation,
    deadline: Option<Instant>,
    watch: Watch<'a>,
    pause: Duration,
    tasks: usize,
    obstacle: Option<Obstacle>,
}

/// What a look at a stopped task found.
pub(super) struct Sighting {
    regs: Registers,
    standing: Standing,
    /// What it is in, or returns to.
    pub hits: Vec<Hit>,
    /// What else is on its stack.
    others: Vec<Hit>,
    mid_switch: bool,
    /// What this look has looked at.
    own: Range<u64>,
    /// Where its stack ends, as far as an unwind tells.
    top: Option<u64>,
}

/// A replaced version on a stack that nobody runs on.
pub(super) struct Held {
    /// The word.
    pub hit: Hit,
    /// The stack, as far as it is known.
    pub stack: Stack,
}

impl Engine {
    /// What of a move matters in a stopped task, where stacks are switched.
    pub(super) fn see(&mut self, regs: &Registers, standing: Standing, to: UniverseId) -> Sighting {
        let mut seen = Sighting {
            regs: *regs,
            standing,
            hits: Vec::new(),
            others: Vec::new(),
            mid_switch: true,
            own: 0..0,
            top: None,
        };
        let watched = self.watched(standing.runs(), to);
        let switching = self.switching_ranges();
        let restorers = &self.gadgets.restorers;
        // Else it is ending, or on a stack that is none.
        if let Ok(found) = stack::check(&self.process, regs, restorers, &watched, &switching) {
            let unwound = self.unwind(regs);
            let extent = suspended::extent(self.memory(), regs.rsp, &unwound);
            (seen.top, seen.mid_switch) = (extent.end, found.mid_switch);
            let end = extent.end.unwrap_or(found.stack.1);
            seen.own = match self.is_at_home(regs, found.stack) {
                true => found.stack.0..end,
                false => regs.rsp..end,
            };
            // What it does not return to may still be another stack's: one that lies in a variable of this one, or
            // above it in the same mapping. What is beyond its own end is seen in a moment.
            let below_end = |hit: &Hit| hit.stack.is_none_or(|at| at < end);
            let returned_to = |hit: &Hit| {
                let unknown = |at: u64| at >= extent.known || unwound.returns_by(at);
                hit.stack.is_none_or(unknown)
            };
            let own = found.hits.into_iter().filter(below_end);
            (seen.hits, seen.others) = own.partition(returned_to);
        }
        seen
    }

    /// What must not be on a suspended stack: it may be gone on with by any of the tasks.
    fn replaced_for(&self, seen: &[Sighting], to: UniverseId) -> Ranges {
        let from: BTreeSet<UniverseId> = seen
            .iter()
            .map(|seen| seen.standing.runs())
            .chain([self.state.model.settled()])
            .filter(|&universe| universe != to)
            .collect();
        let ranges = from.into_iter().flat_map(|from| {
            let ranges = self.replaced_ranges(from, to, false);
            ranges.iter().copied().collect::<Vec<CodeRange>>()
        });
        // Nobody is suspended before the first instruction of a replacement, but patches hold pointers to that.
        let functions = self.state.images.iter().flat_map(|image| &image.functions);
        let entries: BTreeSet<u64> = functions.map(|function| function.entry).collect();
        let ranges = ranges.map(|mut range| {
            range.after += u64::from(entries.contains(&(range.after + 1)));
            range
        });
        Ranges::new(ranges.collect())
    }

    /// A replaced version on a stack that nobody runs on, if there is one. Proves something only while all tasks stand
    /// still.
    pub(super) fn suspended(
        &mut self,
        switching: &Switching,
        seen: &[Sighting],
        to: UniverseId,
    ) -> Result<Option<Held>, Error> {
        let mut snapshot = std::mem::take(&mut self.snapshot);
        let held = self.suspended_in(&mut snapshot, switching, seen, to);
        self.snapshot = snapshot;
        held
    }

    /// Reads all writable memory, only to have room for it when it is read while tasks stand still.
    pub(super) fn rehearse(&mut self, switching: &Switching) -> Result<(), Error> {
        let ranges = self.writable()?;
        self.bounded(switching, &ranges)?;
        self.snapshot.take(&self.process.memory, &ranges);
        Ok(())
    }

    fn suspended_in(
        &mut self,
        snapshot: &mut Snapshot,
        switching: &Switching,
        seen: &[Sighting],
        to: UniverseId,
    ) -> Result<Option<Held>, Error> {
        let ranges = self.writable()?;
        self.bounded(switching, &ranges)?;
        snapshot.take(self.memory(), &ranges);
        let looked_at: Vec<Range<u64>> = seen.iter().map(|seen| seen.own.clone()).collect();
        let guard = seen.iter().find_map(|seen| {
            let at = seen.regs.fs_base.checked_add(POINTER_GUARD)?;
            self.memory().read_u64(at).ok()
        });
        let guard = guard.unwrap_or(0);
        let replaced = self.replaced_for(seen, to);
        let mut hits = snapshot.hits(&replaced, guard, &looked_at);
        let elsewhere = hits.len();
        hits.extend(seen.iter().flat_map(|seen| &seen.others));
        let Some(&first) = hits.first() else {
            return Ok(None);
        };
        let unknown = Held {
            hit: first,
            stack: Stack::default(),
        };
        if switching.not_understood || hits.len() >= stack::MOST_HITS {
            return Ok(Some(unknown));
        }
        self.refresh_maps()?;
        let registers = seen
            .iter()
            .flat_map(|seen| arch::dwarf_registers(&seen.regs));
        let registers: Vec<u64> = registers.flatten().collect();
        let memory = &self.process.memory;
        let finder = Finder {
            ways: &switching.ways,
            guard,
            plain_jumps: !self.maps.iter().any(is_glibc),
            maps: &self.maps,
            snapshot,
            registers: &registers,
            memory,
        };
        let (Some(candidates), Some(unwinder)) = (finder.candidates(&hits), &mut self.unwinder)
        else {
            return Ok(Some(unknown));
        };
        let read = |at| memory.read_u64(at).ok();
        let (mut stacks, mut saved) = (Vec::new(), Vec::new());
        for candidate in candidates {
            let stack = unwinder.unwind(candidate.pc, candidate.registers, MOST_FRAMES, &read);
            let extent = suspended::extent(memory, candidate.low, &stack);
            // A task runs on this stack: it is not suspended any more.
            let is_run = |end| seen.iter().any(|seen| seen.top == Some(end));
            if let Some(end) = extent.end {
                stacks.push(candidate.low..end);
                saved.push(candidate.saved_at);
                if is_run(end) {
                    continue;
                }
            }
            if let Some(&hit) = suspended::held_by(&candidate, &stack, extent, &hits) {
                return Ok(Some(Held { hit, stack }));
            }
        }
        let mut elsewhere = hits.iter().take(elsewhere);
        let doubtful =
            elsewhere.find(|hit| !snapshot.is_leftover(hit, &self.maps, &stacks, &saved));
        Ok(doubtful.map(|&hit| Held {
            hit,
            stack: Stack::default(),
        }))
    }

    /// A suspended stack that holds the open transition up, for the user.
    pub(super) fn blocked_by(&self, hit: &Hit) -> Blocked {
        self.in_the_way(&Obstacle::Suspended(*hit))
    }
}

impl Meetings<'_> {
    /// Everybody, stopped; `None` and an obstacle when that fails.
    fn gather(&mut self) -> Result<Option<HashMap<Task, Stopped>>, Error> {
        self.engine.tracer.hold_late(true);
        let met = self.engine.stop_everyone(&Ranges::default(), true);
        self.engine.tracer.hold_late(false);
        Ok(match met? {
            Ok(all) if all.len() > 1 && !self.engine.together => {
                let task = all.keys().next().copied();
                let why = "more than one task runs by now, and all would have to stop at once";
                self.obstacle = task.map(|task| Obstacle::Task(task, None, why));
                None
            }
            Ok(all) => Some(all),
            Err((task, why)) => {
                self.obstacle = Some(Obstacle::Task(task, None, why));
                None
            }
        })
    }

    /// Looks at one stopped task. `None`: it runs no user code, or none of ours.
    fn look(&mut self, task: Task, stopped: Stopped) -> Result<Option<(Stopped, Sighting)>, Error> {
        let regs = stopped.regs;
        let engine = &mut *self.engine;
        let worker = regs.rip == 0 && regs.rsp == 0;
        if worker || task.pid != engine.process.pid && !engine.process.shares_memory_with(task.pid)
        {
            return Ok(None);
        }
        let Some(standing) = engine.standing(regs.gs_base) else {
            if self.heading == Operation::Unload {
                return Ok(None);
            }
            let (tid, value) = (task.tid, regs.gs_base);
            return Err(Error::GsInUse { tid, value });
        };
        let seen = engine.see(&regs, standing, self.to);
        Ok(Some((stopped, seen)))
    }
}

impl Assembly for Meetings<'_> {
    type Error = Error;

    fn meet(&mut self, judge: &mut JudgeAll<'_>) -> Result<Option<Verdict>, Error> {
        let began = Instant::now();
        let Some(all) = self.gather()? else {
            self.pause = self.pause.max(began.elapsed() * SHARE);
            return Ok(None);
        };
        let (mut members, mut seen) = (Vec::with_capacity(all.len()), Vec::new());
        for (task, stopped) in all {
            if let Some((stopped, saw)) = self.look(task, stopped)? {
                members.push((task, stopped));
                seen.push(saw);
            }
        }
        self.tasks = members.len();
        let held = |(_, seen): &(_, &Sighting)| seen.mid_switch || !seen.hits.is_empty();
        let busy = members.iter().zip(&seen).find(held);
        self.obstacle = busy.map(|((task, _), seen)| {
            Obstacle::Task(*task, seen.hits.first().copied(), "the task is switching")
        });
        let mut suspended = false;
        if self.obstacle.is_none()
            && let Some(held) = self.engine.suspended(&self.switching, &seen, self.to)?
        {
            suspended = true;
            self.obstacle = Some(Obstacle::Suspended(held.hit));
        }
        let look = |seen: &Sighting| {
            let look = Look {
                holds_replaced: !seen.hits.is_empty(),
                mid_switch: seen.mid_switch,
            };
            (seen.standing, look)
        };
        let looks: Vec<(Standing, Look)> = seen.iter().map(look).collect();
        let verdict = judge(&looks, suspended);
        if verdict == Verdict::Move {
            let pid = self.engine.process.pid;
            let gs = self.engine.gs_of(self.to).ok_or(Error::Exited(pid))?;
            for (_, stopped) in &members {
                // One that was killed meanwhile needs no universe.
                let _ = stopped.set_gs_base(gs);
            }
        }
        drop(members);
        self.pause = self.pause.max(began.elapsed() * SHARE);
        Ok(Some(verdict))
    }

    fn pause(&mut self) -> Result<Pause, Error> {
        self.engine.tracer.release_late();
        if !self.engine.is_alive() {
            return Err(Error::Exited(self.engine.process.pid));
        }
        (self.watch)(0, self.tasks);
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(Pause::Expired);
        }
        std::thread::sleep(left.unwrap_or(self.pause).min(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(Pause::GoOn)
    }
}

fn is_glibc(mapping: &Mapping) -> bool {
    let name = mapping.path.as_deref().and_then(|path| path.file_name());
    name.and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("libc.so.6") || name.starts_with("libc-2"))
}
