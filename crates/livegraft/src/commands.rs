//! One function per command.

use crate::checked::Checked;
use crate::failure::Failure;
use crate::view::{Listed, Processes, Shown, Status, Transitioned};
use indicatif::{ProgressBar, ProgressStyle};
use livegraft_patchfile::{Info, Input, Patch, Target, TargetElf};
use livegraft_process::{Engine, Method, Options, process};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

type Outcome = Result<Shown, Failure>;

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
        })
        .collect();
    let bytes = livegraft_patchfile::pack(&inputs, &targets).map_err(Failure::Pack)?;
    let patch = Patch::parse(&bytes).map_err(|source| Failure::Patch {
        path: output.to_owned(),
        source,
    })?;
    fs::write(output, &bytes).map_err(Failure::file(output))?;
    Ok(Shown::Packed {
        path: output.to_owned(),
        info: Box::new(Info::new(&patch)),
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
fn name_of(path: &Path) -> Result<String, Failure> {
    let name = path.file_stem().and_then(|stem| stem.to_str());
    name.filter(|name| !name.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| Failure::Name(path.to_owned()))
}

pub fn info(path: &Path) -> Outcome {
    Ok(Shown::Info(Box::new(Info::new(&parse(path)?))))
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
            bar.set_message(format!("{arrived} tasks have moved, {left} are waited for"));
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

pub fn load(path: &Path, pid: i32, options: &Options) -> Outcome {
    let began = Instant::now();
    let name = name_of(path)?;
    let patch = parse(path)?;
    let mut watch = Watch::new();
    let report = Engine::change(pid)?.load(&patch, &name, options, &mut |a, b| watch.show(a, b))?;
    drop(watch);
    Ok(Shown::Transition(Transitioned::new(
        &report,
        began.elapsed(),
    )))
}

pub fn unload(name: &str, pid: i32, options: &Options) -> Outcome {
    let began = Instant::now();
    let mut watch = Watch::new();
    let report = Engine::change(pid)?.unload(name, options, &mut |a, b| watch.show(a, b))?;
    drop(watch);
    Ok(Shown::Transition(Transitioned::new(
        &report,
        began.elapsed(),
    )))
}

pub fn resume(pid: i32, options: &Options) -> Outcome {
    let began = Instant::now();
    let mut watch = Watch::new();
    let report = Engine::change(pid)?.resume(options, &mut |a, b| watch.show(a, b))?;
    drop(watch);
    Ok(match report {
        Some(report) => Shown::Transition(Transitioned::new(&report, began.elapsed())),
        None => Shown::NothingOpen { pid },
    })
}

pub fn force(pid: i32, options: &Options) -> Outcome {
    let began = Instant::now();
    let mut watch = Watch::new();
    let report = Engine::change(pid)?.force(options, &mut |a, b| watch.show(a, b))?;
    drop(watch);
    Ok(Shown::Transition(Transitioned::new(
        &report,
        began.elapsed(),
    )))
}

pub fn reverse(pid: i32, options: &Options) -> Outcome {
    let began = Instant::now();
    let mut watch = Watch::new();
    let report = Engine::change(pid)?.reverse(options, &mut |a, b| watch.show(a, b))?;
    drop(watch);
    Ok(Shown::Transition(Transitioned::new(
        &report,
        began.elapsed(),
    )))
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
