//! Would a patch load, and who would be in its way? Everything but the load itself.

use super::frames::{Information, Registering};
use super::{CheckedExit, Engine};
use crate::arch;
use crate::boost;
use crate::error::Error;
use crate::link::Indirect;
use crate::object::Objects;
use crate::process::Task;
use crate::stack::{self, CodeRange, Hit, Ranges, Watched};
use crate::state::Method;
use crate::symbolize::NamedStack;
use crate::tracer::Stopping;
use crate::unwind::Stack;
use livegraft_model::{PatchState, Slot, Version};
use livegraft_patchfile::Patch;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The shortest time between two looks at all tasks, and how many times longer than a look: looking must not become a
/// load of its own.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
const SHARE: u32 = 20;

/// What a load would do with one function.
#[derive(Debug, Clone)]
pub struct CheckedFunction {
    /// Its name.
    pub name: String,
    /// `None`: the executable.
    pub object: Option<String>,
    /// How its entry would be redirected.
    pub entry: &'static str,
    /// A task was within it at the same place of its stack at every look.
    pub never_left: bool,
}

/// A task that was found within what the patch replaces.
#[derive(Debug, Clone)]
pub struct CheckedTask {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// How often it was looked at.
    pub looks: u32,
    /// How often it was within.
    pub busy: u32,
    /// It was within the same activation of the same function at every look.
    pub never_left: bool,
    /// The function that held it last.
    pub function: String,
    /// The code address that was found.
    pub address: u64,
    /// Where on its stack; `None`: in a register.
    pub stack: Option<u64>,
    /// Its stack when it was found within for the last time.
    pub frames: NamedStack,
}

/// See [`Engine::check`].
#[derive(Debug, Clone)]
pub struct Check {
    /// The functions, by name.
    pub functions: Vec<CheckedFunction>,
    /// The IFUNCs whose resolvers a task would be made to call.
    pub indirect: Vec<Indirect>,
    /// Where they, and what they run now, leave by a jump.
    pub exits: Vec<CheckedExit>,
    /// How many tasks there are.
    pub tasks: usize,
    /// How often all of them were looked at.
    pub looks: u32,
    /// From the first look to the last.
    pub length: Duration,
    /// Who was found within the functions, the busiest first.
    pub busy: Vec<CheckedTask>,
    /// What a task would be made to register; `None`: nothing.
    pub registers: Option<Registering>,
}

/// What is remembered of a task from look to look.
struct Seen {
    name: String,
    looks: u32,
    busy: u32,
    /// What was found first; `None` when a look found something else.
    constant: Option<Hit>,
    /// What was found last, and the stack then.
    last: Option<(Hit, Stack)>,
}

/// What is to be registered, and what looks for a task that could do so have found.
struct Registers<'a> {
    objects: &'a Objects,
    wanted: Vec<Information>,
    found: Option<Registering>,
}

impl Engine {
    /// Whether a patch would load, by what methods, and which tasks are within what it replaces: once, or again and
    /// again for as long as `sample`. Nothing is changed; each task is stopped once for each look, one at a time.
    ///
    /// # Errors
    /// Every refusal of a load.
    pub fn check(
        &mut self,
        patch: &Patch,
        name: &str,
        forced: Option<Method>,
        together: bool,
        sample: Duration,
    ) -> Result<Check, Error> {
        let objects = self.objects()?;
        self.together = together;
        self.may_move_together(Some(&objects))?;
        let functions = self.verified(patch, name, &objects)?;
        let planned = self.plan_load(patch, forced, &objects, &functions)?;
        let (mut ranges, mut checked) = (Vec::new(), Vec::new());
        for (index, (function, _)) in functions.iter().enumerate() {
            // Named by its place in the patch: it may have no slot yet.
            let slot = Slot(index as u32);
            let known = self.slot_at(function.start);
            let entry = match known {
                Some(slot) => self.state.entry(slot),
                None => {
                    let mut planned = planned.plan.entries.iter();
                    planned.find(|entry| entry.start == function.start)
                }
            };
            let Some(entry) = entry else { continue };
            let replaced = known.and_then(|slot| Some((slot, self.runs_now(slot)?)));
            let bodies = match replaced {
                Some((slot, patch)) => self.bodies(slot, Version::Patched(patch)),
                None => &entry.bodies,
            };
            ranges.extend(bodies.iter().map(|&(after, last)| CodeRange {
                after,
                last,
                slot,
                version: Version::Original,
            }));
            checked.push(CheckedFunction {
                name: function.name.clone(),
                object: function.object_name.clone(),
                entry: entry.method.name(),
                never_left: false,
            });
        }
        let watched = Watched {
            replaced: Ranges::new(ranges),
            entering: Ranges::default(),
        };
        self.prepare_unwinds()?;
        // As in `open_load`: what was loaded before is taken as it is; else what is loaded now comes first.
        let again = self.disabled_image(patch, name, forced, &functions);
        let is_meant = |known: &livegraft_model::Patch| match again {
            Some(id) => known.id == id,
            None => known.state == PatchState::Enabled,
        };
        let known = self.state.model.patches().iter().filter(|p| is_meant(p));
        let images = known.filter_map(|patch| self.state.image(patch.id));
        let mut wanted: Vec<_> = images
            .map(|image| Information {
                sections: image.eh_frames.clone(),
                told: image.unwinders.clone(),
            })
            .collect();
        if again.is_none() {
            let sections = planned.linked.eh_frames.iter();
            wanted.push(Information {
                sections: sections.map(|at| (at.start, at.end)).collect(),
                told: Vec::new(),
            });
        }
        let mut registers = Registers {
            objects: &objects,
            wanted,
            found: None,
        };
        let mut check =
            self.look_again_and_again(&watched, &mut checked, &mut registers, sample)?;
        check.registers = registers.found;
        check.functions = checked;
        check.functions.sort_by(|a, b| a.name.cmp(&b.name));
        check.indirect = planned.indirect.clone();
        check.exits = self.exits(&functions, &objects, &planned.linked);
        Ok(check)
    }

    fn look_again_and_again(
        &mut self,
        watched: &Watched,
        functions: &mut [CheckedFunction],
        registers: &mut Registers<'_>,
        sample: Duration,
    ) -> Result<Check, Error> {
        let mut seen: BTreeMap<Task, Seen> = BTreeMap::new();
        let began = Instant::now();
        let mut looks = 0;
        let mut tasks;
        loop {
            boost::adapt_priority();
            let look = Instant::now();
            let listing = self.process.tasks()?.tasks;
            tasks = listing.len();
            for task in listing {
                self.look(task, watched, &mut seen)?;
            }
            self.look_for_a_caller(registers, looks == 0)?;
            looks += 1;
            let pause = BETWEEN_LOOKS.max(look.elapsed() * SHARE);
            let left = sample.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(pause.min(left));
        }
        self.tracer.release_late();
        // Without what is needed to name them, stacks are not shown.
        let mut symbolizer = match seen.values().any(|seen| seen.last.is_some()) {
            true => self.symbolizer().ok(),
            false => None,
        };
        let mut busy = Vec::new();
        for (task, seen) in seen {
            let Some((hit, stack)) = seen.last else {
                continue;
            };
            let named = symbolizer.as_mut().map(|names| names.name(&stack));
            let never_left = seen.busy == seen.looks && seen.constant.is_some() && seen.looks > 1;
            if let Some(function) = functions.get_mut(hit.slot.0 as usize) {
                function.never_left |= never_left;
                busy.push(CheckedTask {
                    tid: task.tid,
                    name: seen.name,
                    looks: seen.looks,
                    busy: seen.busy,
                    never_left,
                    function: function.name.clone(),
                    address: hit.address,
                    stack: hit.stack,
                    frames: named.unwrap_or_default(),
                });
            }
        }
        busy.sort_by_key(|task| (std::cmp::Reverse(task.busy), task.tid));
        Ok(Check {
            functions: Vec::new(),
            indirect: Vec::new(),
            exits: Vec::new(),
            tasks,
            looks,
            length: began.elapsed(),
            busy,
            registers: None,
        })
    }

    /// Looks for a task that could register the patch's call frame information, until one was found.
    fn look_for_a_caller(
        &mut self,
        registers: &mut Registers<'_>,
        first: bool,
    ) -> Result<(), Error> {
        let none_yet = |found: &Registering| found.task.is_none();
        if first || registers.found.as_ref().is_some_and(none_yet) {
            registers.found = self.would_register(registers.objects, &registers.wanted)?;
        }
        Ok(())
    }

    fn look(
        &mut self,
        task: Task,
        watched: &Watched,
        seen: &mut BTreeMap<Task, Seen>,
    ) -> Result<(), Error> {
        let stopped = match self.tracer.stop(task, 0) {
            Stopping::Stopped(stopped) => stopped,
            Stopping::Denied(tracer) if tracer != 0 => return Err(super::traced(task.tid, tracer)),
            _ => return Ok(()),
        };
        let regs = stopped.regs;
        if regs.rip == 0 && regs.rsp == 0 {
            return Ok(()); // an io_uring worker
        }
        if !arch::is_64_bit(&regs) {
            return Err(Error::ThirtyTwoBit(self.process.pid));
        }
        if self.standing(regs.gs_base).is_none() {
            let (tid, value) = (task.tid, regs.gs_base);
            return Err(Error::GsInUse { tid, value });
        }
        let restorers = &self.gadgets.restorers;
        let none = Ranges::default();
        let found = stack::check(&self.process, &regs, restorers, watched, &none);
        let mut hits = found.map(|found| found.hits).unwrap_or_default();
        let mut stack = Stack::default();
        if !hits.is_empty() {
            stack = self.unwind(&regs);
            self.dismiss(&stack, &mut hits);
        }
        drop(stopped);
        let hit = hits.first().copied();
        let seen = seen.entry(task).or_insert_with(|| Seen {
            name: task.name(),
            looks: 0,
            busy: 0,
            constant: hit,
            last: None,
        });
        seen.looks += 1;
        seen.busy += u32::from(hit.is_some());
        let same = |a: Hit, b: Hit| a.stack == b.stack && a.slot == b.slot && a.stack.is_some();
        seen.constant = seen
            .constant
            .zip(hit)
            .filter(|&(a, b)| same(a, b))
            .map(|(a, _)| a);
        if let Some(hit) = hit {
            seen.last = Some((hit, stack));
        }
        Ok(())
    }
}
