//! What went wrong, as one sentence or one JSON document.

use livegraft_patchfile::Error as PatchError;
use livegraft_process::Error as ProcessError;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Anything that ends a command with exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// From the engine.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// From the patch file.
    #[error("{path}: {source}")]
    Patch {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: PatchError,
    },
    /// From packing.
    #[error(transparent)]
    Pack(PatchError),
    /// From making a patch of what `diff` has written.
    #[error(transparent)]
    Emit(#[from] livegraft_build::emit::Error),
    /// From observing a build.
    #[error(transparent)]
    Capture(Box<livegraft_build::capture::Error>),
    /// From fetching the source of a package.
    #[error(transparent)]
    Debian(Box<livegraft_build::capture::DebianError>),
    /// From making a patch of what was observed.
    #[error(transparent)]
    Build(Box<livegraft_build::Error>),
    /// From comparing objects.
    #[error("{files}: {source}")]
    Compare {
        /// The object that it is about, or both.
        files: String,
        /// Why.
        source: livegraft_build::compare::Error,
    },
    /// A file that can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A patch that does not say what it changes.
    #[error("{path} {}", no_changes(.why.as_deref()))]
    NoChanges {
        /// Which.
        path: PathBuf,
        /// Why it can't be read.
        why: Option<String>,
    },
    /// A function that a patch does not change.
    #[error("{path} changes no function `{name}`; it changes {known}")]
    NoFunction {
        /// The patch.
        path: PathBuf,
        /// As it was given.
        name: String,
        /// Those that it changes.
        known: String,
    },
    /// A patch without a usable name.
    #[error("`{0}` names no patch; call the file NAME.klp")]
    Name(PathBuf),
}

fn no_changes(why: Option<&str>) -> String {
    match why {
        Some(why) => format!("shows no instructions that differ: {why}"),
        None => "carries no old code, since it was not made from two versions of a source; compare its code with the \
            target's by objdump -d"
            .to_owned(),
    }
}

impl Failure {
    /// Wraps what the system said about a file.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Failure {
        let path = path.to_owned();
        move |source| Failure::File { path, source }
    }

    fn kind(&self) -> &'static str {
        match self {
            Failure::Process(error) => error.kind(),
            Failure::Patch { .. } => "patch-file",
            Failure::Pack(_) => "pack",
            Failure::Emit(_) => "pack",
            Failure::Capture(error) => match **error {
                livegraft_build::capture::Error::NothingChanged { .. } => "no-code-changed",
                _ => "capture",
            },
            Failure::Debian(_) => "capture",
            Failure::Build(error) => match **error {
                livegraft_build::Error::NoChange { .. } => "no-code-changed",
                _ => "build",
            },
            Failure::Compare { .. } => "compare",
            Failure::File { .. } => "file",
            Failure::NoChanges { .. } => "no-diff",
            Failure::NoFunction { .. } => "no-function",
            Failure::Name(_) => "patch-name",
        }
    }

    /// Says it, and returns the exit code.
    pub fn print(&self, json: bool) -> ExitCode {
        let message = self.to_string();
        if json {
            let error = serde_json::json!({"error": {"kind": self.kind(), "message": message}});
            let _ = writeln!(io::stdout(), "{error}");
        }
        let _ = writeln!(io::stderr(), "livegraft: {}", shown(&message));
        ExitCode::from(1)
    }
}

/// Text for a terminal: what a file calls its sections and symbols shall not control it.
fn shown(text: &str) -> String {
    let control = |c: char| c.is_control() && c != '\n';
    text.replace(control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_in_a_file_does_not_control_the_terminal() {
        let text = super::shown("section `\u{1b}[2J\r.text\u{9b}`:\n cut off");
        assert_eq!(
            text,
            "section `\u{fffd}[2J\u{fffd}.text\u{fffd}`:\n cut off"
        );
    }
}
