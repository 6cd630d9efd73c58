//! What `check` shows.

use crate::stack::{Stack, Stacks};
use livegraft_process::engine::Check;
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Checked {
    patch: String,
    pid: i32,
    result: &'static str,
    functions: Vec<Function>,
    tasks: usize,
    looks: u32,
    seconds: f64,
    busy: Vec<Busy>,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    object: Option<String>,
    entry: &'static str,
    never_left: bool,
}

#[derive(Debug, Serialize)]
struct Busy {
    tid: i32,
    name: String,
    looks: u32,
    busy: u32,
    never_left: bool,
    function: String,
    address: String,
    stack: Option<String>,
    #[serde(flatten)]
    frames: Stack,
}

impl Checked {
    pub fn new(patch: &str, pid: i32, check: &Check) -> Checked {
        Checked {
            patch: patch.to_owned(),
            pid,
            result: "would-load",
            functions: check
                .functions
                .iter()
                .map(|function| Function {
                    name: function.name.clone(),
                    object: function.object.clone(),
                    entry: function.entry,
                    never_left: function.never_left,
                })
                .collect(),
            tasks: check.tasks,
            looks: check.looks,
            seconds: check.length.as_secs_f64(),
            busy: check
                .busy
                .iter()
                .map(|task| Busy {
                    tid: task.tid,
                    name: task.name.clone(),
                    looks: task.looks,
                    busy: task.busy,
                    never_left: task.never_left,
                    function: task.function.clone(),
                    address: format!("{:#x}", task.address),
                    stack: task.stack.map(|address| format!("{address:#x}")),
                    frames: Stack::new(&task.frames, task.address),
                })
                .collect(),
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Patch {} would load into process {}; nothing was changed.",
            self.patch, self.pid
        )?;
        for function in &self.functions {
            let object = function.object.as_deref();
            let object = object.map(|name| format!(" ({name})")).unwrap_or_default();
            write!(f, "  {}{object}: {}", function.name, function.entry)?;
            if function.entry == "rendezvous" {
                write!(f, ", for which all tasks stand still for a moment")?;
            }
            writeln!(f)?;
            if function.never_left {
                writeln!(
                    f,
                    "    a task did not leave it while it was watched: a transition may stay open for it"
                )?;
            }
        }
        let times = match self.looks {
            1 => "once".to_owned(),
            looks => format!("{looks} times in {:.1} s", self.seconds),
        };
        writeln!(f, "{} tasks, looked at {times}:", self.tasks)?;
        if self.busy.is_empty() {
            writeln!(f, "  none was within these functions")?;
        }
        let mut stacks = Stacks::default();
        for task in &self.busy {
            write!(
                f,
                "  task {} ({}) was within {} in {} of {} looks",
                task.tid, task.name, task.function, task.busy, task.looks
            )?;
            match (&task.stack, task.never_left) {
                (Some(stack), true) => {
                    writeln!(
                        f,
                        ", and never left it ({} on its stack at {stack})",
                        task.address
                    )?;
                }
                (Some(stack), false) => {
                    writeln!(f, " (last: {} on its stack at {stack})", task.address)?;
                }
                (None, _) => writeln!(f, " (last: at {})", task.address)?,
            }
            stacks.show(f, &task.frames, task.tid)?;
        }
        Ok(())
    }
}
