//! From a source tree, a build command and a diff to pairs of objects: what is compiled differently with the diff.
//!
//! 1. The user's tree is copied and built by the user's command, which sees the copy at the tree's own path ([`site`]).
//!    Its compiler and linker calls are observed ([`record`]). The built copy is kept for the next diff ([`store`]).
//! 2. The built copy is copied, the diff applied to it ([`diff`]), and the same command run again.
//! 3. What differs is what was compiled again, and what includes a changed file though the build did not notice, as far as
//!    the preprocessor's output differs in more than its lines ([`units`], `changed`).
//! 4. Each of these is compiled twice more, in both trees, with its own flags and one section per function ([`again`]); what
//!    the diff leaves alone has the line numbers of the original in both ([`lines`]).
//!    The objects of a Rust crate are taken as they are ([`joined`]).

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

mod again;
mod arguments;
mod build;
mod changed;
mod debian;
mod diff;
mod error;
mod joined;
mod lines;
mod programs;
mod record;
mod rustc;
mod site;
mod store;
mod trees;
mod units;

pub use arguments::Language;
pub use debian::{DebianError, DebianSource, debian, debian_source};
pub use error::Error;
pub use programs::{Likeness, Program};
pub use record::Call;
pub use trees::{SourceTexts, Trees};

use build::Session;
use store::Store;

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The source of what runs, without the fix. It is not changed.
    pub source: PathBuf,
    /// Further directories that the build writes to. They are not changed either.
    pub build_dirs: Vec<PathBuf>,
    /// The fix.
    pub diff: PathBuf,
    /// The build command and its arguments, as it would be given in `source`.
    pub command: Vec<std::ffi::OsString>,
    /// Where builds are kept; `None`: livegraft/build in XDG_CACHE_HOME or ~/.cache.
    pub work: Option<PathBuf>,
    /// How a built copy is built again after the diff was applied to it, which makes what depends on the changed files. That
    /// is done where the diff changes source files only, and the build has copied none of these.
    pub rebuild: Rebuild,
    /// Use no namespaces. The build then sees another path than the user's.
    pub plain: bool,
}

/// How what is built already is built again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Rebuild {
    /// By the same command.
    #[default]
    Same,
    /// By another one.
    By(Vec<std::ffi::OsString>),
    /// Not at all: from nothing each time.
    Afresh,
}

/// What is being done, for a progress line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The tree is read, to find out whether its build is here.
    Look,
    /// The tree is copied.
    Copy,
    /// The original is being built.
    BuildOriginal {
        /// Compiler calls so far.
        calls: usize,
    },
    /// The original build is here from another run.
    Reuse,
    /// The diff is applied.
    Apply,
    /// The patched tree is being built.
    BuildPatched {
        /// Compiler calls so far.
        calls: usize,
    },
    /// Source files are looked at for what the diff changes.
    Search {
        /// So many were.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// Changed source files are compiled again.
    Recompile {
        /// So many objects were.
        done: usize,
        /// Of so many.
        total: usize,
    },
}

/// One source file that is compiled differently. The files are there as long as the [`Capture`].
#[derive(Debug, Clone)]
pub struct Pair {
    /// The source file, relative to the source directory if it lies in it.
    pub source: PathBuf,
    /// What it is written in.
    pub language: Language,
    /// Compiled as the original, with -ffunction-sections -fdata-sections; `None` if the diff adds the file. For a crate
    /// its objects as the build made them, in one.
    pub original: Option<PathBuf>,
    /// The same of the patched source; `None` if the diff removes the file.
    pub patched: Option<PathBuf>,
    /// The patched object has the line numbers of the original for what the diff leaves alone.
    pub numbered: bool,
    /// The very object of the original build.
    pub built: Option<PathBuf>,
    /// Both with debug information, where those above may have none.
    pub described: Option<[PathBuf; 2]>,
    /// The compiler call, of the patched build if there is one.
    pub call: Call,
}

/// What a diff makes of a build.
#[derive(Debug)]
pub struct Capture {
    /// The source files that are compiled differently.
    pub pairs: Vec<Pair>,
    /// All programs and libraries of the original build.
    pub programs: Vec<Program>,
    /// All objects of the original build.
    pub objects: Vec<PathBuf>,
    /// The original build was here from another run.
    pub reused: bool,
    /// The source that was given has this path in the objects (debug information, `__FILE__`).
    pub seen: PathBuf,
    /// The source before and after the diff, as long as this lives.
    pub texts: Trees,
    _store: Store,
}

impl Capture {
    /// The program of the original build that is `target`, or most like it.
    #[must_use]
    pub fn program(&self, target: &Path) -> Option<(&Program, Likeness)> {
        programs::find(&self.programs, target)
    }
}

/// Who wants to know how far it is.
type Progress<'a> = dyn FnMut(Phase) + Send + 'a;

/// The same, for several threads.
struct Told<'a>(Mutex<&'a mut Progress<'a>>);

impl Told<'_> {
    fn tell(&self, phase: Phase) {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner))(phase);
    }
}

/// Does it all.
///
/// Nothing that it starts outlives it, however it ends. Where `interrupt` is set meanwhile (by a signal handler) it ends
/// soon, and removes all but original builds that are whole. What it has to leave when it is killed is removed by the next.
///
/// # Errors
/// [`Error`]. The source is as it was.
pub fn capture(
    request: &Request,
    progress: &mut (dyn FnMut(Phase) + Send),
    interrupt: &AtomicBool,
) -> Result<Capture, Error> {
    let told = Told(Mutex::new(progress));
    told.tell(Phase::Look);
    let session = Session::new(request, interrupt, &told)?;
    let (original, reused) = session.original()?;
    let patched = session.patched(&original)?;
    let changed = changed::find(&session, &original, &patched)?;
    let pairs = changed::pairs(&session, &original, &patched, &changed)?;
    Ok(Capture {
        pairs,
        programs: session.programs(&original),
        objects: session.objects(&original),
        reused,
        seen: session.site.seen(0),
        texts: Trees {
            trees: [original.tree, patched.tree],
            files: session.files,
            site: session.site,
        },
        _store: session.store,
    })
}
