//! Which functions of a running program are entered while it is used, as uprobes count them.

use crate::inspect;
use crate::sys::Uprobe;
use object::{Object, ObjectSymbol};
use std::path::Path;

/// Those of the functions that a task of the processes has entered in the meantime. What has no symbol is left out.
///
/// # Errors
/// The file can't be read, a uprobe can't be set, or the exercise has failed.
pub fn entered(
    pids: &[i32],
    file: &Path,
    functions: &[String],
    exercise: impl FnOnce() -> Result<(), String>,
) -> Result<Vec<String>, String> {
    let io = |e: std::io::Error| format!("{}: {e}", file.display());
    let bytes = std::fs::read(file).map_err(io)?;
    let parsed = object::File::parse(&*bytes).map_err(|e| format!("{}: {e}", file.display()))?;
    let has = |function: &&String| parsed.symbols().any(|s| s.name() == Ok(function.as_str()));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut probes = Vec::new();
    let mut places = Vec::new();
    for function in functions.iter().filter(has) {
        for pid in pids {
            let (offset, address) = inspect::function(*pid, file, function);
            places.push((*pid, address, offset, function));
        }
    }
    let at: Vec<(i32, u64)> = places.iter().map(|&(pid, at, ..)| (pid, at)).collect();
    // Tasks come and go: whoever runs is counted. Nobody else has this file.
    places.dedup_by_key(|(_, _, offset, _)| *offset);
    for (_, _, offset, function) in &places {
        for processor in 0..processors as i32 {
            let probe = Uprobe::set_on(file, *offset, processor).map_err(io)?;
            probes.push((*function, probe));
        }
    }
    let result = exercise();
    let mut found = Vec::new();
    for (function, probe) in &probes {
        if probe.count().map_err(io)? > 0 && !found.contains(*function) {
            found.push((*function).clone());
        }
    }
    drop(probes);
    for (pid, address) in at {
        inspect::until_removed(pid, address);
    }
    result.map(|()| found)
}
