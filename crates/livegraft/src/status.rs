//! What `status` shows.

use crate::listed::Transition;
use crate::stack::{Stack, Stacks};
use crate::transitioned::{BlockedTask, moved, not_moved};
use livegraft_patchfile::counted;
use livegraft_process::engine::{Overview, TaskView};
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Status {
    pid: i32,
    transition: Option<Transition>,
    tasks: Vec<StatusTask>,
    entries_intact: bool,
}

#[derive(Debug, Serialize)]
struct StatusTask {
    tid: i32,
    name: String,
    patch_state: i32,
    universe: u32,
    blocked: Option<Held>,
}

/// A task that has not moved, and its stack.
#[derive(Debug, Serialize)]
struct Held {
    #[serde(flatten)]
    task: BlockedTask,
    #[serde(flatten)]
    stack: Stack,
}

impl Status {
    pub fn new(overview: &Overview, tasks: &[TaskView]) -> Status {
        Status {
            pid: overview.pid,
            transition: overview.transition.as_ref().map(Transition::new),
            tasks: tasks
                .iter()
                .map(|task| StatusTask {
                    tid: task.tid,
                    name: task.name.clone(),
                    patch_state: task.patch_state,
                    universe: task.universe,
                    blocked: task.blocked.as_ref().map(|blocked| Held {
                        task: BlockedTask::new(blocked),
                        stack: Stack::new(&task.stack, blocked.address),
                    }),
                })
                .collect(),
            entries_intact: overview.entries.iter().all(|entry| entry.intact),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transition {
            None => writeln!(
                f,
                "process {}: no transition is open; {} in universe {}",
                self.pid,
                counted(self.tasks.len(), "task", "tasks"),
                self.tasks.first().map_or(0, |task| task.universe)
            )?,
            Some(open) => {
                let left = self
                    .tasks
                    .iter()
                    .filter(|task| task.blocked.is_some())
                    .count();
                writeln!(f, "process {}: {open}", self.pid)?;
                writeln!(
                    f,
                    "  {}, {}",
                    moved(self.tasks.len() - left),
                    not_moved(left)
                )?;
                let mut stacks = Stacks::default();
                for held in self.tasks.iter().filter_map(|task| task.blocked.as_ref()) {
                    writeln!(f, "  {}", held.task)?;
                    stacks.show(f, &held.stack, held.task.tid)?;
                }
            }
        }
        if !self.entries_intact {
            writeln!(
                f,
                "  some entries are not as they should be: see `livegraft list --pid {}`",
                self.pid
            )?;
        }
        Ok(())
    }
}
