//! What `check` shows.

use crate::stack::{Stack, Stacks};
use livegraft_patchfile::counted;
use livegraft_process::engine::{Check, CheckedExit, Leads};
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Checked {
    patch: String,
    pid: i32,
    result: &'static str,
    functions: Vec<Function>,
    /// IFUNCs whose resolvers a load would have called.
    unresolved: Vec<Unresolved>,
    tail_exits: Vec<Exit>,
    tasks: usize,
    looks: u32,
    seconds: f64,
    busy: Vec<Busy>,
    registers: Option<Registers>,
}

/// What a task would be made to register with an unwinder.
#[derive(Debug, Serialize)]
struct Registers {
    with: String,
    task: Option<i32>,
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    object: Option<String>,
    entry: &'static str,
    never_left: bool,
}

#[derive(Debug, Serialize)]
struct Unresolved {
    name: String,
    object: String,
}

/// A jump out of a version of a function.
#[derive(Debug, Serialize)]
struct Exit {
    function: String,
    object: Option<String>,
    version: &'static str,
    leads: &'static str,
    to: Option<String>,
    to_object: Option<String>,
    address: Option<String>,
    counts_as_inside: bool,
}

impl Exit {
    fn new(exit: &CheckedExit) -> Exit {
        Exit {
            function: exit.function.clone(),
            object: exit.object.clone(),
            version: if exit.new { "new" } else { "old" },
            leads: match exit.leads {
                Leads::Patched => "patched",
                Leads::PatchCode => "patch-code",
                Leads::Outside => "outside",
                Leads::Unknown => "unknown",
            },
            to: exit.to.clone(),
            to_object: exit.to_object.clone(),
            address: exit.address.map(|address| format!("{address:#x}")),
            counts_as_inside: exit.covered,
        }
    }

    /// What it means for a transition; `None`: nothing that a user must know.
    fn warning(&self) -> Option<String> {
        let to = self.to.as_deref().unwrap_or("?");
        match self.leads {
            "patched" if to == self.function => {
                Some("jumps to its own entry: no task switches itself at a call of it".to_owned())
            }
            "patched" => Some(format!(
                "leaves by a jump to {to}, which the patch replaces too: no task switches itself at a call of {to}"
            )),
            "unknown" => Some(
                "leaves by a jump through a register or a structure: where that leads to another function of the \
                 patch, old and new may meet"
                    .to_owned(),
            ),
            _ => None,
        }
    }
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
            unresolved: check
                .indirect
                .iter()
                .map(|indirect| Unresolved {
                    name: indirect.name.clone(),
                    object: indirect.object.clone(),
                })
                .collect(),
            tail_exits: check.exits.iter().map(Exit::new).collect(),
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
            registers: check.registers.as_ref().map(|registers| Registers {
                with: registers.object.clone(),
                task: registers.task,
                why: registers.why.clone(),
            }),
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
            let mut warnings: Vec<(String, Vec<&str>)> = Vec::new();
            for exit in &self.tail_exits {
                let own = exit.function == function.name && exit.object == function.object;
                let Some(warning) = exit.warning().filter(|_| own) else {
                    continue;
                };
                match warnings.iter_mut().find(|(same, _)| *same == warning) {
                    Some((_, versions)) => versions.push(exit.version),
                    None => warnings.push((warning, vec![exit.version])),
                }
            }
            for (warning, versions) in warnings {
                writeln!(f, "    {}: {warning}", versions.join(" and "))?;
            }
        }
        for Unresolved { name, object } in &self.unresolved {
            writeln!(
                f,
                "  {name} in {object} is an indirect function (IFUNC) that is not resolved yet: a task would be made to \
                 call its resolver"
            )?;
        }
        let harmless = self
            .tail_exits
            .iter()
            .filter(|exit| exit.warning().is_none());
        match harmless.count() {
            0 => {}
            count => {
                let one = "jump leaves the patch (--json names it)";
                let others = "jumps leave the patch (--json names them)";
                writeln!(f, "  {}", counted(count, one, others))?;
            }
        }
        let times = match self.looks {
            1 => "once".to_owned(),
            looks => format!("{looks} times in {:.1} s", self.seconds),
        };
        let tasks = counted(self.tasks, "task", "tasks");
        writeln!(f, "{tasks}, looked at {times}:")?;
        if self.busy.is_empty() {
            writeln!(f, "  none was within these functions")?;
        }
        let mut stacks = Stacks::default();
        for task in &self.busy {
            write!(
                f,
                "  task {} ({}) was within {} in {} of {}",
                task.tid,
                task.name,
                task.function,
                task.busy,
                counted(task.looks, "look", "looks")
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
        if let Some(Registers { with, why, .. }) = &self.registers {
            writeln!(
                f,
                "A task would be made to register call frame information with {with}, in a place where that is safe."
            )?;
            if let Some(why) = why {
                writeln!(
                    f,
                    "  warning: none was in such a place ({why}); a load that finds none for two seconds is refused"
                )?;
            }
        }
        Ok(())
    }
}
