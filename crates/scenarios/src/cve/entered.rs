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
    let mut probes = Vec::new();
    for function in functions.iter().filter(has) {
        for pid in pids {
            let (offset, address) = inspect::function(*pid, file, function);
            for task in inspect::tasks(*pid) {
                let probe = Uprobe::set(file, offset, task).map_err(io)?;
                probes.push((function, *pid, address, probe));
            }
        }
    }
    let result = exercise();
    let mut found = Vec::new();
    for (function, _, _, probe) in &probes {
        if probe.count().map_err(io)? > 0 && !found.contains(*function) {
            found.push((*function).clone());
        }
    }
    let places: Vec<_> = probes.iter().map(|(_, pid, at, _)| (*pid, *at)).collect();
    drop(probes);
    for (pid, address) in places {
        inspect::until_removed(pid, address);
    }
    result.map(|()| found)
}
