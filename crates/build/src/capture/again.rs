//! Compiler calls made again: in the tree that they were made in, with what they were given.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::arguments::{Again, again, parse};
use super::error::Error;
use super::record::Record;
use super::site::{Entered, Job, Unwatched};
use super::units::Unit;

/// Variables that are for the build, and would have the compiler do more than compile.
const UNWANTED: &[&str] = &[
    "MAKEFLAGS",
    "MFLAGS",
    "CARGO_MAKEFLAGS",
    "LD_PRELOAD",
    "DEPENDENCIES_OUTPUT",
    "SUNPRO_DEPENDENCIES",
    "GCC_COMPARE_DEBUG",
];

/// Makes one unit again. Its words where the compiler fails.
pub(crate) fn repeat(
    entered: &Entered,
    record: &Record,
    unit: &Unit,
    how: Again,
    output: &Path,
    interrupt: &AtomicBool,
) -> Result<Result<(), String>, Error> {
    let call = &record.calls[unit.call];
    let name = |variable: &OsString| {
        let end = variable
            .as_bytes()
            .iter()
            .position(|b| *b == b'=')
            .unwrap_or(0);
        OsStr::from_bytes(&variable.as_bytes()[..end]).to_owned()
    };
    let environment: Vec<OsString> = (record
        .environments
        .get(call.environment)
        .into_iter()
        .flatten())
    .filter(|variable| !UNWANTED.iter().any(|unwanted| name(variable) == *unwanted))
    .cloned()
    .collect();
    let mut settings = vec![("CCACHE_DISABLE", "1".into())];
    if !environment
        .iter()
        .any(|variable| name(variable) == "SOURCE_DATE_EPOCH")
    {
        // __DATE__ and __TIME__ are no difference.
        settings.push(("SOURCE_DATE_EPOCH", "0".into()));
    }
    let log = output.with_extension("log");
    let _ = fs::remove_file(&log);
    let job = Job {
        directory: directory(entered, &call.directory, &environment),
        argv: again(
            &call.arguments,
            &parse(&call.arguments),
            unit.at,
            how,
            output,
        ),
        environment: Some(&environment),
        settings,
        log: log.clone(),
    };
    let status = entered.run(&job, &mut Unwatched, interrupt)?;
    if status.success() {
        return Ok(Ok(()));
    }
    let said = fs::read(&log).map_err(Error::io(&log))?;
    Ok(Err(message(
        &String::from_utf8_lossy(&said),
        &status.to_string(),
    )))
}

/// Where the call was made, by the name that the compiler had for it: gcc writes `$PWD` to debug information.
fn directory(entered: &Entered, real: &Path, environment: &[OsString]) -> PathBuf {
    let named = environment
        .iter()
        .find_map(|variable| variable.as_bytes().strip_prefix(b"PWD="));
    let named = named.map(|named| PathBuf::from(OsStr::from_bytes(named)));
    let is_it = |named: &PathBuf| {
        let same =
            fs::canonicalize(entered.host(named)).ok() == fs::canonicalize(entered.host(real)).ok();
        named.is_absolute() && same
    };
    named.filter(is_it).unwrap_or_else(|| real.to_owned())
}

/// The first error that a compiler names, or its last line.
fn message(said: &str, status: &str) -> String {
    let error = said.lines().find(|line| line.contains("error:"));
    let line = error.or_else(|| said.lines().rfind(|line| !line.trim().is_empty()));
    line.map_or_else(|| status.to_owned(), |line| line.trim().to_owned())
}

/// Does something for each item, on all processors. The first error ends it.
pub(crate) fn parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(usize, &T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results: Mutex<Vec<(usize, Result<R, Error>)>> = Mutex::new(Vec::new());
    let workers = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(items.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else {
                        return;
                    };
                    let result = work(at, item);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    results
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
