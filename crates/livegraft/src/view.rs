//! What commands show: plain structures, one JSON document or text for people. The field names are stable.

use crate::built::Made;
use crate::checked::Checked;
use crate::compared::Compared;
use crate::differing::Differing;
use crate::freed::Freed;
use crate::listed::Processes;
use crate::status::Status;
use crate::transitioned::Transitioned;
use livegraft_patchfile::{Info, counted};
use std::fmt::{self, Write};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// The result of a command.
#[derive(Debug)]
pub enum Shown {
    Packed { path: PathBuf, info: Box<Info> },
    Info(Box<Info>),
    Differing(Differing),
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
        // Colours go to terminals alone, and to none where NO_COLOR is set.
        let _ = match self {
            Shown::Differing(_) if !json => anstream::stdout().write_all(text.as_bytes()),
            _ => std::io::stdout().write_all(text.as_bytes()),
        };
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
            Shown::Differing(differing) => write!(f, "{differing}"),
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
            Shown::Differing(differing) => serde_json::to_string(differing),
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
