//! Why there is no patch.

use crate::place::{self, Difference};
use crate::{compare, emit};
use std::io;
use std::path::PathBuf;

/// Why there is no patch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("{path}: {source}", path = .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{source_file}: {source}", source_file = .source_file.display())]
    Compare {
        source_file: PathBuf,
        source: compare::Error,
    },
    #[error(
        "no machine code of the source files that the diff changes ({files}) calls `{name}`, whose callers --with-callers \
         asks for; write the name as `nm` shows it, and leave out what is inlined"
    )]
    Uncalled { name: String, files: String },
    #[error("the diff changes no code of {program}; there is nothing to patch")]
    NoChange { program: String },
    #[error(
        "the build makes no program like {target}; give the file that runs and the command that builds it",
        target = .target.display()
    )]
    NoProgram { target: PathBuf },
    #[error(
        "the build makes several programs that the diff changes ({programs}); say with --target which of them runs"
    )]
    SeveralPrograms { programs: String },
    #[error("{source_file}: {refusal}", source_file = .source_file.display())]
    Refused {
        source_file: PathBuf,
        refusal: Box<compare::Refusal>,
    },
    #[error(
        "{target} is not what was built: {identical}; and object by object: {objects}",
        target = .target.display()
    )]
    NotProven {
        target: PathBuf,
        identical: Box<Difference>,
        objects: Box<place::Refusal>,
    },
    #[error("{target}: {source}", target = .target.display())]
    Place {
        target: PathBuf,
        source: Box<place::Refusal>,
    },
    #[error(
        "{target}: nothing tells which of the symbols called `{symbol}` is meant; they are in files of one name",
        target = .target.display()
    )]
    Ambiguous { target: PathBuf, symbol: String },
    #[error(transparent)]
    Emit(Box<emit::Error>),
    #[error(transparent)]
    Pack(Box<livegraft_patchfile::Error>),
}

impl From<emit::Error> for Error {
    fn from(error: emit::Error) -> Error {
        Error::Emit(Box::new(error))
    }
}

impl From<livegraft_patchfile::Error> for Error {
    fn from(error: livegraft_patchfile::Error) -> Error {
        Error::Pack(Box::new(error))
    }
}
