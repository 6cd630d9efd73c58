//! What commands that move tasks show.

use livegraft_patchfile::counted;
use livegraft_process::engine::{Blocked, Ended, Report};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// What to know of a transition where nobody is at work: without FSGSBASE it stands still.
pub fn only_visits(self_switch: bool) -> &'static str {
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

pub fn not_moved(tasks: usize) -> String {
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
pub struct BlockedTask {
    /// 0: a stack that no task runs on.
    pub tid: i32,
    name: String,
    seconds: f64,
    function: String,
    address: String,
    stack: Option<String>,
    armed: bool,
}

impl BlockedTask {
    pub fn new(blocked: &Blocked) -> BlockedTask {
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

    pub fn exit_code(&self) -> ExitCode {
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
