//! What `diff` shows.

use livegraft_build::compare::{Comparison, Datum, Function, Refusal, Status};
use livegraft_patchfile::changes::Change;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Serialize)]
pub struct Compared {
    original: PathBuf,
    patched: PathBuf,
    result: &'static str,
    pub output: Option<PathBuf>,
    functions: Vec<Change>,
    data: Vec<ComparedDatum>,
    refusals: Vec<Refused>,
    allowed: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct ComparedDatum {
    name: String,
    status: &'static str,
    constant: bool,
    old_size: Option<u64>,
    new_size: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Refused {
    symbol: String,
    kind: &'static str,
    reason: String,
    allowable: bool,
}

impl Refused {
    fn new(refusal: &Refusal) -> Refused {
        Refused {
            symbol: refusal.symbol.clone(),
            kind: refusal.kind.name(),
            reason: refusal.reason.clone(),
            allowable: refusal.kind.allowable(),
        }
    }
}

impl ComparedDatum {
    fn new(datum: &Datum) -> ComparedDatum {
        ComparedDatum {
            name: datum.name.clone(),
            status: datum.status.name(),
            constant: datum.constant,
            old_size: datum.old_size,
            new_size: datum.new_size,
        }
    }
}

impl Compared {
    pub fn new(original: &Path, patched: &Path, comparison: &Comparison<'_>) -> Compared {
        let result = match (comparison.refusals.is_empty(), comparison.changes_code()) {
            (false, _) => "refused",
            (true, true) => "changed",
            (true, false) => "no-code-changed",
        };
        Compared {
            original: original.to_owned(),
            patched: patched.to_owned(),
            result,
            output: None,
            functions: comparison.functions.iter().map(Function::change).collect(),
            data: comparison.data.iter().map(ComparedDatum::new).collect(),
            refusals: comparison.refusals.iter().map(Refused::new).collect(),
            allowed: comparison.allowed.iter().map(Refused::new).collect(),
        }
    }

    /// Whether a patch can be made of it.
    pub fn is_usable(&self) -> bool {
        self.result == "changed"
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::from(!self.is_usable()))
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed = self
            .functions
            .iter()
            .filter(|f| f.status != Status::Unchanged);
        for function in changed {
            writeln!(f, "{function}")?;
        }
        for datum in &self.data {
            let what = if datum.constant {
                "constant"
            } else {
                "variable"
            };
            writeln!(f, "{} {what} {}", datum.status, datum.name)?;
        }
        let unchanged = self
            .functions
            .iter()
            .filter(|f| f.status == Status::Unchanged);
        let unchanged = unchanged.count();
        if unchanged != 0 {
            writeln!(f, "{unchanged} functions are unchanged.")?;
        }
        for allowed in &self.allowed {
            writeln!(f, "allowed ({}): {}", allowed.kind, allowed.reason)?;
        }
        for refused in &self.refusals {
            writeln!(f, "refused ({}): {}", refused.kind, refused.reason)?;
        }
        match (&self.output, self.result) {
            (Some(output), _) => writeln!(f, "{} has what a patch needs.", output.display()),
            (None, "no-code-changed") => {
                writeln!(
                    f,
                    "No code differs between {} and {}.",
                    self.original.display(),
                    self.patched.display()
                )
            }
            (None, _) => Ok(()),
        }
    }
}
