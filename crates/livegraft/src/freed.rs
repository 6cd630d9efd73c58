//! What `free` shows.

use livegraft_patchfile::counted;
use livegraft_process::engine::{FreeReport, Kept, KeptPatch, Reference};
use serde::Serialize;
use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

/// So many of the words that refer to a patch are shown as text; JSON has more.
const MOST_SHOWN: usize = 8;

#[derive(Debug, Serialize)]
pub struct Freed {
    pid: i32,
    result: &'static str,
    freed: Vec<FreedPatch>,
    kept: Vec<Stays>,
    tasks: usize,
    searched_bytes: u64,
    stops: u64,
    longest_stop_us: u128,
    most_stopped: u64,
}

#[derive(Debug, Serialize)]
struct FreedPatch {
    patch: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Stays {
    patch: String,
    bytes: u64,
    reason: &'static str,
    references: usize,
    shown: Vec<Refers>,
    unseen: Vec<String>,
    needs_us: Option<u128>,
}

#[derive(Debug, Serialize)]
struct Refers {
    at: Option<String>,
    place: String,
    tid: Option<i32>,
    task: Option<String>,
    value: String,
    to: String,
    mangled: bool,
}

impl Refers {
    fn new(reference: &Reference) -> Refers {
        Refers {
            at: reference.at.map(|at| format!("{at:#x}")),
            place: reference.place.clone(),
            tid: reference.task.as_ref().map(|&(tid, _)| tid),
            task: reference.task.as_ref().map(|(_, name)| name.clone()),
            value: format!("{:#x}", reference.value),
            to: reference.to.clone(),
            mangled: reference.mangled,
        }
    }
}

impl fmt::Display for Refers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.to, self.value)?;
        if self.mangled {
            write!(f, ", mangled,")?;
        }
        write!(f, " in {}", self.place)?;
        if let Some(at) = &self.at {
            write!(f, " at {at}")?;
        }
        if let (Some(tid), Some(name)) = (self.tid, &self.task) {
            write!(f, " of task {tid} ({name})")?;
        }
        Ok(())
    }
}

impl Stays {
    fn new(kept: &KeptPatch) -> Stays {
        let mut stays = Stays {
            patch: kept.name.clone(),
            bytes: kept.bytes,
            reason: "forced",
            references: 0,
            shown: Vec::new(),
            unseen: Vec::new(),
            needs_us: None,
        };
        match &kept.why {
            Kept::Forced => {}
            Kept::Referenced(count, shown) => {
                stays.reason = "referenced";
                stays.references = *count;
                stays.shown = shown.iter().map(Refers::new).collect();
            }
            Kept::Unseen(unseen) => {
                stays.reason = "unseen";
                stays.unseen.clone_from(unseen);
            }
            Kept::Unproven(needs) => {
                stays.reason = "unproven";
                stays.needs_us = Some(needs.as_micros());
            }
        }
        stays
    }
}

impl Freed {
    pub fn new(report: &FreeReport) -> Freed {
        Freed {
            pid: report.pid,
            result: match (report.freed.is_empty(), report.kept.is_empty()) {
                (false, true) => "freed",
                (false, false) => "partly-freed",
                (true, false) => "kept",
                (true, true) => "nothing-to-free",
            },
            freed: report
                .freed
                .iter()
                .map(|freed| FreedPatch {
                    patch: freed.name.clone(),
                    bytes: freed.bytes,
                })
                .collect(),
            kept: report.kept.iter().map(Stays::new).collect(),
            tasks: report.tasks,
            searched_bytes: report.searched,
            stops: report.stops,
            longest_stop_us: report.longest_stop.as_micros(),
            most_stopped: report.most_stopped,
        }
    }

    /// What was asked for is done, or not.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(!self.kept.is_empty()))
    }
}

/// A duration that `--stop` takes, with room: twice as long, in whole milliseconds.
fn enough(needs_us: u128) -> String {
    let needs = Duration::from_micros(u64::try_from(needs_us).unwrap_or(u64::MAX));
    format!("{}ms", (needs.as_millis() + 1) * 2)
}

impl fmt::Display for Freed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for FreedPatch { patch, bytes } in &self.freed {
            writeln!(
                f,
                "Patch {patch} is gone from process {}: {} KiB are unmapped.",
                self.pid,
                bytes / 1024
            )?;
        }
        for stays in &self.kept {
            write!(
                f,
                "Patch {} stays in process {}, with {} KiB: ",
                stays.patch,
                self.pid,
                stays.bytes / 1024
            )?;
            match stays.reason {
                "forced" => writeln!(
                    f,
                    "it was forced, so a task may return into it at any time."
                )?,
                "referenced" => {
                    writeln!(
                        f,
                        "{}. Try again later.",
                        counted(stays.references, "word refers to it", "words refer to it")
                    )?;
                    for refers in stays.shown.iter().take(MOST_SHOWN) {
                        writeln!(f, "  {refers}")?;
                    }
                    let left_out = stays.references.saturating_sub(MOST_SHOWN);
                    if left_out > 0 {
                        writeln!(f, "  and {left_out} more")?;
                    }
                }
                "unseen" => {
                    writeln!(f, "this may refer to it, and can't be looked at:")?;
                    for unseen in &stays.unseen {
                        writeln!(f, "  {unseen}")?;
                    }
                }
                _ => {
                    let needs = stays.needs_us.unwrap_or(0);
                    writeln!(
                        f,
                        "nothing was found that refers to it, but to prove that, {} at once, \
                         for about {:.1} ms; `--stop {}` allows it.",
                        counted(
                            self.tasks,
                            "task must stand still",
                            "tasks must all stand still"
                        ),
                        needs as f64 / 1000.0,
                        enough(needs)
                    )?;
                }
            }
        }
        if self.result == "nothing-to-free" {
            writeln!(f, "Process {} has no unloaded patch.", self.pid)?;
            return Ok(());
        }
        if self.tasks == 0 {
            return Ok(());
        }
        writeln!(
            f,
            "{} KiB of its memory were searched ({}, the longest {} us, {} at once).",
            self.searched_bytes / 1024,
            counted(self.stops, "stop", "stops"),
            self.longest_stop_us,
            self.most_stopped
        )
    }
}
