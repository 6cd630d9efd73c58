//! `build`: from a source diff to a patch file.

use crate::commands::{Outcome, name_of};
use crate::failure::Failure;
use crate::view::Shown;
use indicatif::{ProgressBar, ProgressStyle};
use livegraft_build::capture::{self, Phase, Request};
use livegraft_build::compare::Options;
use livegraft_build::{Built, Proof};
use livegraft_patchfile::changes::Source;
use livegraft_patchfile::{Info, counted};
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Made {
    path: PathBuf,
    targets: Vec<Aim>,
    sources: Vec<Source>,
    /// Changed source files that are not in the targets.
    elsewhere: Vec<PathBuf>,
    /// The original build was there from another run.
    reused: bool,
    info: Box<Info>,
}

#[derive(Debug, Serialize)]
struct Aim {
    path: PathBuf,
    proof: &'static str,
    /// Bytes of code of the build's objects, and how many of them were found; by objects only.
    code: Option<u64>,
    placed: Option<u64>,
}

/// Where the source is from.
pub enum Origin<'a> {
    /// The user's tree, and the command that builds it.
    Tree(Box<Request>),
    /// `PACKAGE[=VERSION]` of Debian, built by its own rules.
    Debian {
        package: &'a str,
        diff: &'a Path,
        work: Option<&'a Path>,
    },
}

/// Does it all. Ctrl-C ends it and leaves nothing behind.
pub fn build(origin: Origin<'_>, targets: &[PathBuf], output: &Path, options: &Options) -> Outcome {
    name_of(output)?;
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        // Without it the signal ends us, and the next run cleans up.
        let _ = signal_hook::flag::register(signal, Arc::clone(&interrupt));
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let made = make(origin, targets, options, &interrupt, &bar);
    bar.finish_and_clear();
    let (built, reused) = made?;
    let info = Info::read(&built.bytes).map_err(|source| Failure::Patch {
        path: output.to_owned(),
        source,
    })?;
    fs::write(output, &built.bytes).map_err(Failure::file(output))?;
    Ok(Shown::Made(Made::new(
        output,
        &built,
        reused,
        info.without_diffs(),
    )))
}

fn make(
    origin: Origin<'_>,
    targets: &[PathBuf],
    options: &Options,
    interrupt: &AtomicBool,
    bar: &ProgressBar,
) -> Result<(Built, bool), Failure> {
    let shown = bar.clone();
    let mut progress = move |phase| shown.set_message(spoken(phase));
    let (captured, installed) = match origin {
        Origin::Tree(request) => (capture::capture(&request, &mut progress, interrupt), None),
        Origin::Debian {
            package,
            diff,
            work,
        } => {
            bar.set_message(format!("fetching the source of {package}"));
            let (name, version) = match package.split_once('=') {
                Some((name, version)) => (name, Some(version)),
                None => (package, None),
            };
            let source = capture::debian(name, version, !targets.is_empty(), work, interrupt);
            let source = source.map_err(|error| Failure::Debian(Box::new(error)))?;
            let captured = source.capture(diff, work, &mut progress, interrupt);
            (captured, Some(source.installed))
        }
    };
    let captured = captured.map_err(|error| Failure::Capture(Box::new(error)))?;
    bar.set_message("comparing, and looking for it in what runs");
    let failed = |error| Failure::Build(Box::new(error));
    let targets = match installed.filter(|_| targets.is_empty()) {
        Some(installed) => {
            let target = livegraft_build::changed_program(&captured, &installed);
            Vec::from([target.map_err(failed)?])
        }
        None => targets.to_vec(),
    };
    let built = livegraft_build::patch(&captured, &targets, options).map_err(failed)?;
    Ok((built, captured.reused))
}

fn spoken(phase: Phase) -> String {
    match phase {
        Phase::Look => "looking for the original build".to_owned(),
        Phase::Copy => "copying the source".to_owned(),
        Phase::BuildOriginal { calls } => format!("building the original: {}", called(calls)),
        Phase::Reuse => "the original is built already".to_owned(),
        Phase::Apply => "applying the diff".to_owned(),
        Phase::BuildPatched { calls } => format!("building with the diff: {}", called(calls)),
        Phase::Search { done, total } => {
            format!("looking for what the diff changes: {done} of {total} files")
        }
        Phase::Recompile { done, total } => {
            format!("compiling for the comparison: {done} of {total} objects")
        }
    }
}

fn called(calls: usize) -> String {
    counted(calls, "call of a compiler", "calls of a compiler")
}

impl Made {
    fn new(path: &Path, built: &Built, reused: bool, mut info: Info) -> Made {
        let targets = built.targets.iter().map(|(path, proof)| {
            let share = match proof {
                Proof::Objects(share) => Some(share),
                Proof::Identical | Proof::Built => None,
            };
            Aim {
                path: path.clone(),
                proof: match proof {
                    Proof::Identical => "identical",
                    Proof::Objects(_) => "objects",
                    Proof::Built => "none",
                },
                code: share.map(|share| share.code),
                placed: share.map(|share| share.placed),
            }
        });
        Made {
            path: path.to_owned(),
            targets: targets.collect(),
            sources: std::mem::take(&mut info.sources),
            elsewhere: built.elsewhere.clone(),
            reused,
            info: Box::new(info),
        }
    }
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} is made.", self.path.display())?;
        for source in &self.sources {
            write!(f, "{source}")?;
        }
        for path in &self.elsewhere {
            writeln!(f, "{} changes, but is not in the target.", path.display())?;
        }
        for target in &self.targets {
            let path = target.path.display();
            match (target.proof, target.placed, target.code) {
                ("identical", ..) => {
                    writeln!(f, "{path} is what the build makes, to the last byte.")?;
                }
                (_, Some(placed), Some(code)) => writeln!(
                    f,
                    "{path} holds what the build compiles: {placed} of {code} bytes of code were found in it."
                )?,
                _ => writeln!(
                    f,
                    "No --target was given: the patch is for {path} as it was just built, and fits nothing else."
                )?,
            }
        }
        write!(f, "{}", self.info)
    }
}
