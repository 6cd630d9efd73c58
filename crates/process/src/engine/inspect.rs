//! Looking without changing: what `list` and `status` show.

use super::text::Text;
use super::transition::Examined;
use super::{Blocked, Engine};
use crate::error::Error;
use crate::state::State;
use crate::symbolize::NamedStack;
use crate::unwind::Stack;
use livegraft_model::{Operation, PatchState, Standing, UniverseId};

/// One patch.
#[derive(Debug, Clone)]
pub struct PatchView {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: PatchState,
    /// What it replaces.
    pub functions: Vec<String>,
    /// It was forced, and is never freed.
    pub forced: bool,
}

/// One redirected, or once redirected, entry.
#[derive(Debug, Clone)]
pub struct EntryView {
    /// The function.
    pub function: String,
    /// Its address.
    pub address: u64,
    /// How it is redirected.
    pub entry: &'static str,
    /// Whether it should be now.
    pub redirected: bool,
    /// Whether the bytes there are what they should be.
    pub intact: bool,
    /// Its object is not there any more.
    pub gone: bool,
}

/// One mapping of livegraft's.
#[derive(Debug, Clone)]
pub struct MappingView {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What for.
    pub what: &'static str,
}

/// The open transition.
#[derive(Debug, Clone)]
pub struct TransitionView {
    /// Whose.
    pub patch: String,
    /// What was asked for.
    pub operation: Operation,
    /// It goes back.
    pub reversed: bool,
    /// Who works on it: number, and whether it lives.
    pub controller: Option<(i32, bool)>,
    /// Busy tasks can switch themselves: the kernel lets them (FSGSBASE). Else they move only when they are visited.
    pub self_switch: bool,
}

/// One task.
#[derive(Debug, Clone)]
pub struct TaskView {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// /proc/PID/patch_state: -1 no transition, 0 unpatched, 1 patched.
    pub patch_state: i32,
    /// The universe that it runs.
    pub universe: u32,
    /// What holds it, when it is not where the transition leads.
    pub blocked: Option<Blocked>,
    /// Its stack, when it is not where the transition leads.
    pub stack: NamedStack,
}

/// What is recorded in a process.
#[derive(Debug, Clone)]
pub struct Overview {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// In stack order, oldest first.
    pub patches: Vec<PatchView>,
    /// All that is mapped.
    pub mappings: Vec<MappingView>,
    /// By slot.
    pub entries: Vec<EntryView>,
    /// The open transition.
    pub transition: Option<TransitionView>,
}

impl Engine {
    /// What is recorded, compared with what is there.
    pub fn overview(&self) -> Overview {
        let state = &self.state;
        let wanted = self.wanted();
        let text = Text::default();
        let patches = state.model.patches().iter().map(|patch| PatchView {
            name: patch.name.clone(),
            state: patch.state,
            forced: patch.forced,
            functions: patch
                .slots
                .iter()
                .map(|&slot| state.display(slot))
                .collect(),
        });
        let entries = state.slots().map(|(slot, entry)| {
            let gone = self.gone.contains(&slot);
            let wanted = wanted.contains(&slot) && !gone;
            EntryView {
                function: state.display(slot),
                address: entry.at,
                entry: entry.method.name(),
                redirected: wanted,
                intact: gone
                    || entry
                        .edits
                        .iter()
                        .all(|edit| self.stands(&text, edit) == Some(wanted)),
                gone,
            }
        });
        Overview {
            pid: self.process.pid,
            name: self.process.name.clone(),
            patches: patches.collect(),
            mappings: self.mappings(state),
            entries: entries.collect(),
            transition: self.transition_view(),
        }
    }

    fn mappings(&self, state: &State) -> Vec<MappingView> {
        let mut all: Vec<MappingView> = state
            .regions
            .iter()
            .filter(|region| {
                self.maps
                    .iter()
                    .any(|mapping| mapping.contains(region.start))
            })
            .map(|region| MappingView {
                start: region.start,
                end: region.end(),
                what: region.purpose.describe(),
            })
            .collect();
        all.sort_by_key(|view| view.start);
        all
    }

    fn transition_view(&self) -> Option<TransitionView> {
        let open = self.state.model.transition()?;
        Some(TransitionView {
            patch: self.state.model.patch(open.patch)?.name.clone(),
            operation: open.operation,
            reversed: open.reversed,
            self_switch: crate::sys::has_fsgsbase(),
            controller: self.state.controller.map(|controller| {
                let path = format!("/proc/{}/stat", controller.pid);
                let stat = crate::process::Stat::read(path.as_ref());
                let lives = stat.is_some_and(|stat| stat.start_time == controller.start_time);
                (controller.pid, lives)
            }),
        })
    }

    /// Every task, with the stack word that holds it and its stack when it has not moved. Stops each task once, one at a
    /// time; names are looked up when all go on.
    ///
    /// # Errors
    /// [`Error::Exited`].
    pub fn tasks(&mut self) -> Result<Vec<TaskView>, Error> {
        let open = self.state.model.transition().cloned();
        if open.is_some() {
            // Without it words on stacks that are dead are shown as if they held a task.
            let _ = self.prepare_unwinds();
        }
        let switching = match &open {
            Some(_) => self.switching(None)?,
            None => None,
        };
        let mut views = Vec::new();
        let mut stacks = Vec::new();
        let mut all_seen = Vec::new();
        for task in self.process.tasks()?.tasks {
            let target = open
                .as_ref()
                .map_or(self.state.model.settled(), |open| open.to);
            let looked = (0..5).find_map(|attempt| {
                if attempt > 0 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                self.examine(task, target)
            });
            let Some(Examined {
                standing,
                seen,
                hit,
                stack,
            }) = looked
            else {
                continue;
            };
            all_seen.extend(seen);
            let universe = standing.runs();
            let patched = open
                .as_ref()
                .map(|open| match (open.heading(), universe == open.to) {
                    (Operation::Load, there) => i32::from(there),
                    (Operation::Unload, there) => i32::from(!there),
                });
            let blocked = open.as_ref().filter(|open| universe != open.to).map(|_| {
                let function = hit.as_ref().map_or_else(
                    || match &switching {
                        Some(_) => "nothing: it moves when all others can".to_owned(),
                        None => "nothing: it moves when it is visited or calls".to_owned(),
                    },
                    |hit| self.describe(hit),
                );
                Blocked {
                    tid: task.tid,
                    name: task.name(),
                    seconds: self.waited(),
                    function,
                    address: hit.map_or(0, |hit| hit.address),
                    stack: hit.and_then(|hit| hit.stack),
                    armed: crate::sys::has_fsgsbase()
                        && matches!(standing, Standing::Waiting { to, .. } if to == target),
                }
            });
            let UniverseId(universe) = universe;
            views.push(TaskView {
                tid: task.tid,
                name: task.name(),
                patch_state: patched.unwrap_or(-1),
                universe,
                blocked,
                stack: NamedStack::default(),
            });
            stacks.push(stack);
        }
        self.tracer.release_late();
        if let (Some(open), Some(switching)) = (&open, &switching)
            && let Some(held) = self.suspended(switching, &all_seen, open.to)?
        {
            let blocked = self.blocked_by(&held.hit);
            views.push(TaskView {
                tid: blocked.tid,
                name: blocked.name.clone(),
                patch_state: i32::from(open.heading() == Operation::Unload),
                universe: self.state.model.settled().0,
                blocked: Some(blocked),
                stack: NamedStack::default(),
            });
            stacks.push(held.stack);
        }
        self.name_stacks(&mut views, &stacks);
        Ok(views)
    }

    /// Without what is needed to name them, stacks are not shown.
    fn name_stacks(&self, views: &mut [TaskView], stacks: &[Stack]) {
        let blocked = |(view, _): &(&mut TaskView, &Stack)| view.blocked.is_some();
        let mut shown = views.iter_mut().zip(stacks).filter(blocked).peekable();
        if shown.peek().is_none() {
            return;
        }
        if let Ok(mut symbolizer) = self.symbolizer() {
            shown.for_each(|(view, stack)| view.stack = symbolizer.name(stack));
        }
    }
}
