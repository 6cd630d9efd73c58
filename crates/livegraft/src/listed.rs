//! What `list` shows, and the open transition, which `status` shows too.

use crate::transitioned::only_visits;
use livegraft_model::{Operation, PatchState};
use livegraft_process::engine::{Overview, TransitionView};
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Processes {
    pub processes: Vec<Listed>,
}

#[derive(Debug, Serialize)]
pub struct Listed {
    pid: i32,
    name: String,
    patches: Vec<ListedPatch>,
    memory: Memory,
    entries: Vec<Entry>,
    transition: Option<Transition>,
}

#[derive(Debug, Serialize)]
struct ListedPatch {
    name: String,
    state: PatchState,
    functions: Vec<String>,
    forced: bool,
}

#[derive(Debug, Serialize)]
struct Memory {
    bytes: u64,
    mappings: Vec<Mapped>,
}

#[derive(Debug, Serialize)]
struct Mapped {
    start: String,
    end: String,
    what: &'static str,
}

#[derive(Debug, Serialize)]
struct Entry {
    function: String,
    address: String,
    entry: &'static str,
    redirected: bool,
    intact: bool,
    gone: bool,
}

#[derive(Debug, Serialize)]
pub struct Transition {
    patch: String,
    operation: Operation,
    reversed: bool,
    controller: Option<Controller>,
    self_switch: bool,
}

#[derive(Debug, Serialize)]
struct Controller {
    pid: i32,
    alive: bool,
}

impl Transition {
    pub fn new(view: &TransitionView) -> Transition {
        Transition {
            patch: view.patch.clone(),
            operation: view.operation,
            reversed: view.reversed,
            controller: view
                .controller
                .map(|(pid, alive)| Controller { pid, alive }),
            self_switch: view.self_switch,
        }
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            Operation::Load => "loading",
            Operation::Unload => "unloading",
        };
        write!(
            f,
            "{operation} {}{}",
            self.patch,
            if self.reversed { ", reversed" } else { "" }
        )?;
        match &self.controller {
            Some(Controller { pid, alive: true }) => write!(f, "; livegraft {pid} is at work"),
            Some(Controller { pid, alive: false }) => {
                write!(
                    f,
                    "; livegraft {pid} went away, `resume` or `reverse` takes it up"
                )
            }
            None => write!(f, "; nobody is at work, `resume` or `reverse` takes it up"),
        }?;
        write!(f, "{}", only_visits(self.self_switch))
    }
}

impl Listed {
    pub fn new(overview: &Overview) -> Listed {
        let hex = |address: u64| format!("{address:#x}");
        Listed {
            pid: overview.pid,
            name: overview.name.clone(),
            patches: overview
                .patches
                .iter()
                .map(|patch| ListedPatch {
                    name: patch.name.clone(),
                    state: patch.state,
                    functions: patch.functions.clone(),
                    forced: patch.forced,
                })
                .collect(),
            memory: Memory {
                bytes: overview
                    .mappings
                    .iter()
                    .map(|mapping| mapping.end - mapping.start)
                    .sum(),
                mappings: overview
                    .mappings
                    .iter()
                    .map(|mapping| Mapped {
                        start: hex(mapping.start),
                        end: hex(mapping.end),
                        what: mapping.what,
                    })
                    .collect(),
            },
            entries: overview
                .entries
                .iter()
                .map(|entry| Entry {
                    function: entry.function.clone(),
                    address: hex(entry.address),
                    entry: entry.entry,
                    gone: entry.gone,
                    redirected: entry.redirected,
                    intact: entry.intact,
                })
                .collect(),
            transition: overview.transition.as_ref().map(Transition::new),
        }
    }
}

impl fmt::Display for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.processes.is_empty() {
            return writeln!(f, "No process has patches.");
        }
        for process in &self.processes {
            writeln!(f, "process {} ({})", process.pid, process.name)?;
            if process.memory.mappings.is_empty() {
                writeln!(f, "  livegraft has left nothing in it")?;
                continue;
            }
            if let Some(open) = &process.transition {
                writeln!(f, "  transition: {open}")?;
            }
            for patch in process.patches.iter().rev() {
                let mut state = format!("{:?}", patch.state).to_lowercase();
                if patch.forced {
                    state.push_str(", forced: its memory stays for ever");
                }
                writeln!(
                    f,
                    "  patch {}: {state}; {}",
                    patch.name,
                    patch.functions.join(", ")
                )?;
            }
            for entry in &process.entries {
                let state = match (entry.intact, entry.redirected) {
                    (false, _) => "NOT AS IT SHOULD BE: something else has changed its bytes",
                    (true, true) => "redirected",
                    (true, false) => "as in its file",
                };
                writeln!(
                    f,
                    "  entry {} at {} ({}): {state}",
                    entry.function, entry.address, entry.entry
                )?;
            }
            writeln!(f, "  memory: {} KiB", process.memory.bytes / 1024)?;
            for mapping in &process.memory.mappings {
                writeln!(f, "    {}-{} {}", mapping.start, mapping.end, mapping.what)?;
            }
        }
        Ok(())
    }
}
