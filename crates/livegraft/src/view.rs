//! What commands show: plain structures, one JSON document or text for people. The field names are stable.

use crate::built::Made;
use crate::checked::Checked;
use crate::compared::Compared;
use crate::freed::Freed;
use crate::stack::{Stack, Stacks};
use livegraft_model::{Operation, PatchState};
use livegraft_patchfile::{Info, counted};
use livegraft_process::engine::{Blocked, Ended, Overview, Report, TaskView, TransitionView};
use serde::Serialize;
use std::fmt::{self, Write};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The result of a command.
#[derive(Debug)]
pub enum Shown {
    Packed { path: PathBuf, info: Box<Info> },
    Info(Box<Info>),
    Compared(Compared),
    Made(Made),
    Transition(Transitioned),
    NothingOpen { pid: i32 },
    Symbols { path: PathBuf, functions: usize },
    List(Processes),
    Status(Status),
    Checked(Checked),
    Freed(Freed),
}

/// What to know of a transition where nobody is at work: without FSGSBASE it stands still.
fn only_visits(self_switch: bool) -> &'static str {
    if self_switch {
        ""
    } else {
        "; no task can switch itself on this machine (no FSGSBASE), tasks move only while livegraft is at work"
    }
}

/// Tasks that have arrived.
pub fn moved(tasks: usize) -> String {
    counted(tasks, "task has moved", "tasks have moved")
}

fn not_moved(tasks: usize) -> String {
    counted(tasks, "has not", "have not")
}

fn where_they_were(tasks: usize) -> String {
    counted(tasks, "task is where it was", "tasks are where they were")
}

#[derive(Debug, Serialize)]
pub struct Function {
    name: String,
    object: Option<String>,
    entry: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Transitioned {
    patch: String,
    pid: i32,
    result: &'static str,
    tasks: usize,
    children: usize,
    functions: Vec<Function>,
    transition_us: u128,
    total_us: u128,
    stops: u64,
    longest_stop_us: u128,
    most_stopped: u64,
    late_stops: u64,
    blocked: Vec<BlockedTask>,
    foreign: Vec<String>,
    self_switch: bool,
    #[serde(skip)]
    ended: Ended,
    #[serde(skip)]
    complete: bool,
}

#[derive(Debug, Serialize)]
struct BlockedTask {
    tid: i32,
    name: String,
    seconds: f64,
    function: String,
    address: String,
    stack: Option<String>,
    armed: bool,
}

impl BlockedTask {
    fn new(blocked: &Blocked) -> BlockedTask {
        BlockedTask {
            tid: blocked.tid,
            name: blocked.name.clone(),
            seconds: blocked.seconds,
            function: blocked.function.clone(),
            address: format!("{:#x}", blocked.address),
            stack: blocked.stack.map(|address| format!("{address:#x}")),
            armed: blocked.armed,
        }
    }
}

impl fmt::Display for BlockedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tid {
            0 => write!(f, "{}", self.name)?,
            tid => write!(f, "task {tid} ({})", self.name)?,
        }
        write!(f, ", {:.1} s: {}", self.seconds, self.function)?;
        match (&self.stack, self.address.as_str()) {
            (_, "0x0") => {}
            (Some(stack), address) => write!(f, ", {address} found on its stack at {stack}")?,
            (None, address) => write!(f, ", {address} found in a register")?,
        }
        if self.armed {
            write!(f, "; it switches itself at its next call")?;
        }
        Ok(())
    }
}

impl Transitioned {
    pub fn new(report: &Report, total: Duration) -> Transitioned {
        Transitioned {
            patch: report.patch.clone(),
            pid: report.pid,
            result: match report.ended {
                Ended::Loaded => "loaded",
                Ended::Unloaded => "unloaded",
                Ended::Reversed | Ended::TakenBack => "reversed",
                Ended::TimedOut => "timed-out",
            },
            tasks: report.tasks,
            children: report.children,
            functions: report
                .functions
                .iter()
                .map(|function| Function {
                    name: function.name.clone(),
                    object: function.object.clone(),
                    entry: function.entry,
                })
                .collect(),
            transition_us: report.transition.as_micros(),
            total_us: total.as_micros(),
            stops: report.stops,
            longest_stop_us: report.longest_stop.as_micros(),
            most_stopped: report.most_stopped,
            late_stops: report.late_stops,
            blocked: report.blocked.iter().map(BlockedTask::new).collect(),
            foreign: report.foreign.clone(),
            self_switch: report.self_switch,
            ended: report.ended,
            complete: report.complete,
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.ended {
            Ended::Reversed => 3,
            Ended::TimedOut => 4,
            // A forked child has been left in transition.
            _ if !self.complete => 4,
            _ => 0,
        })
    }
}

impl fmt::Display for Transitioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transitioned {
            patch, pid, tasks, ..
        } = self;
        match self.ended {
            Ended::Loaded => write!(
                f,
                "Patch {patch} is loaded into process {pid}: {}",
                counted(*tasks, "task runs it", "tasks run it")
            )?,
            Ended::Unloaded => {
                write!(
                    f,
                    "Patch {patch} is unloaded from process {pid}: {}",
                    counted(*tasks, "task is back", "tasks are back")
                )?;
            }
            Ended::TakenBack => write!(
                f,
                "The transition of patch {patch} in process {pid} is reversed: {}",
                where_they_were(*tasks)
            )?,
            Ended::Reversed => write!(
                f,
                "Time ran out; patch {patch} of process {pid} was taken back: {}",
                where_they_were(*tasks)
            )?,
            Ended::TimedOut => write!(
                f,
                "Time ran out; the transition of patch {patch} in process {pid} is open: {}, {}. `livegraft resume` goes on, `livegraft reverse` takes it back{}",
                moved(*tasks),
                not_moved(self.blocked.len()),
                only_visits(self.self_switch)
            )?,
        }
        writeln!(
            f,
            " ({:.1} ms, {}, the longest {} us, {} at once).",
            self.transition_us as f64 / 1000.0,
            counted(self.stops, "stop", "stops"),
            self.longest_stop_us,
            self.most_stopped
        )?;
        if self.children > 0 {
            let children = counted(self.children, "forked child", "forked children");
            writeln!(f, "  and {children} with it")?;
        }
        for Function {
            name,
            object,
            entry,
        } in &self.functions
        {
            let object = object
                .as_deref()
                .map(|object| format!(" ({object})"))
                .unwrap_or_default();
            writeln!(f, "  {name}{object}: {entry}")?;
        }
        for blocked in &self.blocked {
            writeln!(f, "  {blocked}")?;
        }
        for function in &self.foreign {
            writeln!(
                f,
                "  warning: something else has changed the entry of {function} meanwhile; it may run the original"
            )?;
        }
        Ok(())
    }
}

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
struct Transition {
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
    fn new(view: &TransitionView) -> Transition {
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

impl Shown {
    /// Shows it, and returns the exit code.
    pub fn print(&self, json: bool) -> ExitCode {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = if json {
            self.write_json(&mut text)
        } else {
            self.write_text(&mut text)
        };
        // Whoever reads may have left; what was done is done all the same.
        let _ = std::io::stdout().write_all(text.as_bytes());
        match self {
            Shown::Transition(transitioned) => transitioned.exit_code(),
            Shown::Freed(freed) => freed.exit_code(),
            Shown::Compared(compared) => compared.exit_code(),
            _ => ExitCode::SUCCESS,
        }
    }

    fn write_text(&self, f: &mut String) -> fmt::Result {
        match self {
            Shown::Packed { path, info } => writeln!(f, "{} is packed.\n{info}", path.display()),
            Shown::Info(info) => writeln!(f, "{info}"),
            Shown::Compared(compared) => write!(f, "{compared}"),
            Shown::Made(made) => writeln!(f, "{made}"),
            Shown::Transition(transitioned) => write!(f, "{transitioned}"),
            Shown::NothingOpen { pid } => {
                writeln!(
                    f,
                    "No transition is open in process {pid}; there is nothing to take up."
                )
            }
            Shown::Symbols { path, functions } => {
                let are = counted(*functions, "function is", "functions are");
                writeln!(f, "{are} in {}.", path.display())
            }
            Shown::List(list) => write!(f, "{list}"),
            Shown::Status(status) => write!(f, "{status}"),
            Shown::Checked(checked) => write!(f, "{checked}"),
            Shown::Freed(freed) => write!(f, "{freed}"),
        }
    }

    fn write_json(&self, f: &mut String) -> fmt::Result {
        let json = match self {
            Shown::Packed { path, info } => {
                Ok(serde_json::json!({"output": path, "patch": info}).to_string())
            }
            Shown::Info(info) => serde_json::to_string(info),
            Shown::Compared(compared) => serde_json::to_string(compared),
            Shown::Made(made) => serde_json::to_string(made),
            Shown::Transition(transitioned) => serde_json::to_string(transitioned),
            Shown::NothingOpen { pid } => {
                Ok(serde_json::json!({"pid": pid, "result": "nothing-open"}).to_string())
            }
            Shown::Symbols { path, functions } => {
                Ok(serde_json::json!({"output": path, "functions": functions}).to_string())
            }
            Shown::List(list) => serde_json::to_string(list),
            Shown::Status(status) => serde_json::to_string(status),
            Shown::Checked(checked) => serde_json::to_string(checked),
            Shown::Freed(freed) => serde_json::to_string(freed),
        };
        writeln!(f, "{}", json.map_err(|_| fmt::Error)?)
    }
}
