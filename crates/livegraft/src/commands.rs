//! One function per command.

use crate::checked::Checked;
use crate::compared::Compared;
use crate::differing::Differing;
use crate::failure::Failure;
use crate::freed::Freed;
use crate::listed::{Listed, Processes};
use crate::status::Status;
use crate::transitioned::{Transitioned, moved};
use crate::view::Shown;
use indicatif::{ProgressBar, ProgressStyle};
use livegraft_build::{compare, emit};
use livegraft_patchfile::{Info, Input, Patch, Target, TargetElf, counted};
use livegraft_process::engine::Progress;
use livegraft_process::{Engine, Method, Options, Report, process, symbolfile};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub type Outcome = Result<Shown, Failure>;

/// No patch file is larger.
const LARGEST_FILE: u64 = 1 << 30;

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let size = fs::metadata(path).map_err(Failure::file(path))?.len();
    if size > LARGEST_FILE {
        let error = std::io::Error::other("it is too large for a patch or a program");
        return Err(Failure::file(path)(error));
    }
    fs::read(path).map_err(Failure::file(path))
}

pub fn pack(objects: &[PathBuf], targets: &[PathBuf], output: &Path) -> Outcome {
    name_of(output)?;
    let read_all = |paths: &[PathBuf]| -> Result<Vec<Vec<u8>>, Failure> {
        paths.iter().map(|path| read(path)).collect()
    };
    let (object_bytes, target_bytes) = (read_all(objects)?, read_all(targets)?);
    let debug = targets.iter().zip(&target_bytes);
    let debug = debug.map(|(path, bytes)| debug_symbols(path, bytes));
    let debug: Vec<Option<Vec<u8>>> = debug.collect::<Result<_, _>>()?;
    let inputs: Vec<Input<'_>> = objects
        .iter()
        .zip(&object_bytes)
        .map(|(path, bytes)| Input { path, bytes })
        .collect();
    let targets: Vec<Target<'_>> = targets
        .iter()
        .zip(target_bytes.iter().zip(&debug))
        .map(|(path, (bytes, debug))| Target {
            path,
            bytes,
            debug: debug.as_deref(),
            symbols: None,
        })
        .collect();
    // What `diff -o` has written has no klp structs yet.
    let bytes = if inputs.iter().any(|input| emit::is_extract(input.bytes)) {
        emit::emit_by_name(&inputs, &targets)?
    } else {
        livegraft_patchfile::pack(&inputs, &targets).map_err(Failure::Pack)?
    };
    let info = Info::read(&bytes).map_err(|source| Failure::Patch {
        path: output.to_owned(),
        source,
    })?;
    fs::write(output, &bytes).map_err(Failure::file(output))?;
    Ok(Shown::Packed {
        path: output.to_owned(),
        info: Box::new(info.without_diffs()),
    })
}

/// The separate debug file of a target: `load` will look for names there too.
fn debug_symbols(path: &Path, bytes: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let target = TargetElf::parse(path, bytes, None).map_err(Failure::Pack)?;
    let Some((first, rest)) = target.build_id.split_first() else {
        return Ok(None);
    };
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = format!("/usr/lib/debug/.build-id/{first:02x}/{rest}.debug");
    let file = Path::new(&file);
    file.is_file().then(|| read(file)).transpose()
}

fn parse(path: &Path) -> Result<Patch, Failure> {
    Patch::parse(&read(path)?).map_err(|source| Failure::Patch {
        path: path.to_owned(),
        source,
    })
}

/// The patch's name: the file's, without the extension.
pub fn name_of(path: &Path) -> Result<String, Failure> {
    let name = path.file_stem().and_then(|stem| stem.to_str());
    name.filter(|name| !name.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| Failure::Name(path.to_owned()))
}

/// Nothing is written that was refused, or that changes no code.
pub fn diff(
    original: &Path,
    patched: &Path,
    output: Option<&Path>,
    options: &compare::Options,
) -> Outcome {
    let (old, new) = (read(original)?, read(patched)?);
    let failed = |source: compare::Error| Failure::Compare {
        files: match source.side() {
            Some(compare::Side::Original) => original.display().to_string(),
            Some(compare::Side::Patched) => patched.display().to_string(),
            None => format!("{} and {}", original.display(), patched.display()),
        },
        source,
    };
    let comparison = compare::compare(&old, &new, options).map_err(failed)?;
    if let Some(name) = comparison.uncalled.first().cloned() {
        return Err(failed(compare::Error::Uncalled { name }));
    }
    let mut compared = Compared::new(original, patched, &comparison);
    if let Some(output) = output.filter(|_| compared.is_usable()) {
        let bytes = compare::extract(&comparison).map_err(failed)?;
        fs::write(output, bytes).map_err(Failure::file(output))?;
        compared.output = Some(output.to_owned());
    }
    Ok(Shown::Compared(compared))
}

pub fn info(path: &Path) -> Outcome {
    Ok(Shown::Info(Box::new(read_info(path)?.without_diffs())))
}

/// The instructions that differ, of all functions or of some.
pub fn info_diff(path: &Path, functions: &[String]) -> Outcome {
    let info = read_info(path)?;
    if info.sources.is_empty() {
        let path = path.to_owned();
        return Err(Failure::NoChanges {
            path,
            why: info.unread,
        });
    }
    let differing = Differing::new(path, info.sources, functions);
    differing.map(Shown::Differing).map_err(|(name, known)| {
        let path = path.to_owned();
        Failure::NoFunction { path, name, known }
    })
}

fn read_info(path: &Path) -> Result<Info, Failure> {
    Info::read(&read(path)?).map_err(|source| Failure::Patch {
        path: path.to_owned(),
        source,
    })
}

/// A line on a terminal while tasks move.
struct Watch {
    bar: Option<ProgressBar>,
}

impl Watch {
    fn new() -> Watch {
        Watch { bar: None }
    }

    fn show(&mut self, arrived: usize, left: usize) {
        if self.bar.is_none() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            let (moved, left) = (
                moved(arrived),
                counted(left, "is waited for", "are waited for"),
            );
            bar.set_message(format!("{moved}, {left}"));
            bar.tick();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Carries out what moves tasks, with a line of progress meanwhile.
fn transition<R>(
    pid: i32,
    act: impl FnOnce(&mut Engine, &mut Progress<'_>) -> Result<R, livegraft_process::Error>,
    show: impl FnOnce(R, Duration) -> Shown,
) -> Outcome {
    let began = Instant::now();
    let mut watch = Watch::new();
    let mut engine = Engine::change(pid)?;
    let done = act(&mut engine, &mut |arrived, left| watch.show(arrived, left))?;
    drop(watch);
    Ok(show(done, began.elapsed()))
}

fn transitioned(report: Report, total: Duration) -> Shown {
    Shown::Transition(Transitioned::new(&report, total))
}

pub fn load(path: &Path, pid: i32, options: &Options) -> Outcome {
    let name = name_of(path)?;
    let patch = parse(path)?;
    let load = |engine: &mut Engine, progress: &mut Progress<'_>| {
        engine.load(&patch, &name, options, progress)
    };
    transition(pid, load, transitioned)
}

pub fn unload(name: &str, pid: i32, options: &Options) -> Outcome {
    let unload =
        |engine: &mut Engine, progress: &mut Progress<'_>| engine.unload(name, options, progress);
    transition(pid, unload, transitioned)
}

pub fn resume(pid: i32, options: &Options) -> Outcome {
    let resume =
        |engine: &mut Engine, progress: &mut Progress<'_>| engine.resume(options, progress);
    transition(pid, resume, |report, total| match report {
        Some(report) => transitioned(report, total),
        None => Shown::NothingOpen { pid },
    })
}

pub fn force(pid: i32, options: &Options) -> Outcome {
    let force = |engine: &mut Engine, progress: &mut Progress<'_>| engine.force(options, progress);
    transition(pid, force, transitioned)
}

pub fn reverse(pid: i32, options: &Options) -> Outcome {
    let reverse =
        |engine: &mut Engine, progress: &mut Progress<'_>| engine.reverse(options, progress);
    transition(pid, reverse, transitioned)
}

pub fn free(name: Option<&str>, pid: i32, stop: Option<Duration>) -> Outcome {
    let report = Engine::change(pid)?.free(name, stop)?;
    Ok(Shown::Freed(Freed::new(&report)))
}

pub fn check(
    path: &Path,
    pid: i32,
    entry: Option<Method>,
    together: bool,
    sample: Duration,
) -> Outcome {
    let name = name_of(path)?;
    let patch = parse(path)?;
    let check = Engine::examine_closely(pid)?.check(&patch, &name, entry, together, sample)?;
    Ok(Shown::Checked(Checked::new(&name, pid, &check)))
}

pub fn symbols(path: &Path, pid: i32, for_perf: bool, output: &Path) -> Outcome {
    let (name, patch) = (name_of(path)?, parse(path)?);
    let code = Engine::inspect(pid)?.patch_code(&patch, &name)?;
    let bytes = if for_perf {
        symbolfile::perf_map(&code).into_bytes()
    } else {
        symbolfile::elf(&code)
    };
    fs::write(output, bytes).map_err(Failure::file(output))?;
    Ok(Shown::Symbols {
        path: output.to_owned(),
        functions: code.functions.len(),
    })
}

pub fn list(pid: Option<i32>) -> Outcome {
    let processes = match pid {
        Some(pid) => vec![Listed::new(&Engine::inspect(pid)?.overview())],
        // Those that end meanwhile, or are not ours to look at, are not listed.
        None => process::all_processes()
            .filter_map(|pid| Engine::inspect(pid).ok().filter(Engine::is_known))
            .map(|engine| Listed::new(&engine.overview()))
            .collect(),
    };
    Ok(Shown::List(Processes { processes }))
}

pub fn status(pid: i32) -> Outcome {
    let mut engine = Engine::inspect(pid)?;
    let overview = engine.overview();
    // A process that was never patched need not be stopped to say so.
    let tasks = if engine.is_known() {
        engine.tasks()?
    } else {
        Vec::new()
    };
    Ok(Shown::Status(Status::new(&overview, &tasks)))
}
