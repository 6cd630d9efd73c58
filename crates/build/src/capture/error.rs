//! Why a build was refused or failed: one variant per cause, each one sentence for the user.

use std::io;
use std::path::{Path, PathBuf};

/// See the module. The user's source tree is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of ours or the user's.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// `--source` and the like.
    #[error("{} is no directory", .0.display())]
    NoDirectory(PathBuf),
    /// One directory within another.
    #[error("{} lies within {}; name directories that are apart", .inner.display(), .outer.display())]
    Nested {
        /// The lower one.
        inner: PathBuf,
        /// The upper one.
        outer: PathBuf,
    },
    /// Neither XDG_CACHE_HOME nor HOME.
    #[error("there is no directory to work in: set HOME or XDG_CACHE_HOME, or use --work DIR")]
    NoWorkDirectory,
    /// No command.
    #[error("no build command is given; it stands after --")]
    NoCommand,
    /// The same build, at the same time.
    #[error("another livegraft is at work on the same build in {}; wait for it or end it", .0.display())]
    Busy(PathBuf),
    /// Could not be copied.
    #[error("can't copy {}: {message}", .path.display())]
    Copy {
        /// What.
        path: PathBuf,
        /// What cp says.
        message: String,
    },
    /// The disk is full.
    #[error("no space is left where builds are made and kept ({}); make room, or name another directory with --work", .0.display())]
    NoSpace(PathBuf),
    /// ptrace.
    #[error(transparent)]
    Observe(#[from] livegraft_observe::Error),
    /// The build command failed.
    #[error("the {which} build failed ({status}){}; all that it said is in {}:\n{message}", .call.as_ref().map(|call| format!(" at `{call}`")).unwrap_or_default(), .log.display())]
    Build {
        /// "original" or "patched".
        which: &'static str,
        /// How it ended.
        status: String,
        /// The first compiler call that failed, if one did after which none succeeded for the same output.
        call: Option<String>,
        /// Its output.
        log: PathBuf,
        /// The last lines of that.
        message: String,
    },
    /// Nothing to work with.
    #[error(
        "the build calls no compiler of C, C++ or Rust; if all is built already, begin the command with what cleans it (make \
         clean, cargo clean)"
    )]
    NoCalls,
    /// Where the copy does not reach.
    #[error("the build writes {} outside of the source directory; name that directory with --build-dir", .0.display())]
    Outside(PathBuf),
    /// Not a diff.
    #[error("{} holds no diff", .0.display())]
    NoDiff(PathBuf),
    /// A file that is not there.
    #[error("{}: there is no file {file} in {} to apply it to, with or without the first directory of its name", .diff.display(), .tree.display())]
    NoSuchFile {
        /// The diff.
        diff: PathBuf,
        /// The file, as it names it.
        file: String,
        /// The tree.
        tree: PathBuf,
    },
    /// Other text than the diff expects.
    #[error("{}: {file}: {hunk} does not apply; the source must be the one that the diff was made for", .diff.display())]
    Hunk {
        /// The diff.
        diff: PathBuf,
        /// The file.
        file: String,
        /// Which hunk, at which line.
        hunk: String,
    },
    /// It is in the source.
    #[error("{} is applied already: {file} has its changes; the source must be what runs, without the fix", .diff.display())]
    AlreadyApplied {
        /// The diff.
        diff: PathBuf,
        /// The file.
        file: String,
    },
    /// What else patch(1) says.
    #[error("{} can't be applied: {message}", .diff.display())]
    Apply {
        /// The diff.
        diff: PathBuf,
        /// patch's words.
        message: String,
    },
    /// A program that we call is missing.
    #[error("{0} is needed; install the package that has it")]
    NoTool(&'static str),
    /// Nothing that is compiled differs in more than the lines on which it stands.
    #[error(
        "the diff changes no code: what the build compiles is the same with and without it ({files})"
    )]
    NothingChanged {
        /// What it changes.
        files: String,
    },
    /// Assembly.
    #[error("{} is assembly and changes; only C, C++ and Rust can be compared", .0.display())]
    Assembly(PathBuf),
    /// Link-time optimisation.
    #[error("{} is compiled with {flag}: what runs is made when all is linked; build the program without it (-fno-lto; for cargo, lto = \"off\"), or compare by hand what the link-time compiler makes (docs/patches.md)", .source_file.display())]
    LinkTime {
        /// The source.
        source_file: PathBuf,
        /// The flag.
        flag: String,
    },
    /// A crate whose library holds bitcode, or nothing.
    #[error("{}: what the compiler makes of this crate is no machine code (link-time optimisation by the linker, -C linker-plugin-lto); build without it", .0.display())]
    NoObjects(PathBuf),
    /// The objects of a crate.
    #[error("the objects of {} can't be joined: {message}", .source_file.display())]
    Join {
        /// The root of the crate.
        source_file: PathBuf,
        /// What the linker says.
        message: String,
    },
    /// The build does not know what it has to make again.
    #[error("the build did not compile the crate {} again, though the diff changes a file of it; begin the command with what removes what it has built (make clean, cargo clean)", .0.display())]
    Stale(PathBuf),
    /// It was there before the build.
    #[error("{} was built before, and what compiled it is not known; begin the command with what removes it (make clean, cargo clean)", .0.display())]
    BuiltBefore(PathBuf),
    /// A compiler call that was repeated.
    #[error("{} can't be compiled again ({which}): {message}", .source_file.display())]
    Compile {
        /// The source.
        source_file: PathBuf,
        /// "original" or "patched".
        which: &'static str,
        /// What the compiler says.
        message: String,
    },
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }
}

/// Whether something failed since the disk that holds `path`, a file of ours, is full. What has failed may have said so,
/// unless there was no space for its words either.
pub(crate) fn full(path: &Path, said: &str) -> Result<(), Error> {
    const NEEDED: u64 = 1 << 20;
    let directory = path.parent().unwrap_or(path);
    let left = rustix::fs::statvfs(directory).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    if said.contains("No space left on device") || left.is_ok_and(|left| left < NEEDED) {
        return Err(Error::NoSpace(directory.to_owned()));
    }
    Ok(())
}
