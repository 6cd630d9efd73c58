//! Which source files are compiled differently, and their objects.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::again::{parallel, repeat};
use super::arguments::{Again, Language};
use super::build::{Built, Session};
use super::error::Error;
use super::record::Call;
use super::site::Entered;
use super::units::{Identity, Unit, absolute, prerequisites, reads_more};
use super::{Pair, Phase};

/// A unit in both builds. Where the patched build did not compile it again, it has the call of the original one.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    original: Option<&'a Unit>,
    patched: Option<(&'a Unit, &'a Built)>,
}

/// What the diff changes, and all that may be: what was compiled again, and what reads a changed file.
pub(super) fn find<'a>(
    session: &Session,
    original: &'a Built,
    patched: &'a Built,
) -> Result<Vec<Change<'a>>, Error> {
    let known: HashMap<Identity, &Unit> = original
        .units
        .iter()
        .map(|unit| (unit.identity(&original.record), unit))
        .collect();
    let mut changes = Vec::new();
    let mut made: HashSet<Identity> = HashSet::new();
    for unit in &patched.units {
        let identity = unit.identity(&patched.record);
        changes.push(Change {
            original: known.get(&identity).copied(),
            patched: Some((unit, patched)),
        });
        made.insert(identity);
    }
    let rest: Vec<&Unit> = (original.units.iter())
        .filter(|unit| !made.contains(&unit.identity(&original.record)))
        .collect();
    let reached = readers(session, original, &rest)?;
    for (unit, reached) in rest.into_iter().zip(reached) {
        let gone = !session.site.host(&patched.tree, &unit.source).is_file();
        if gone || reached {
            changes.push(Change {
                original: Some(unit),
                patched: (!gone).then_some((unit, original)),
            });
        }
    }
    let differs = differs(session, original, patched, &changes)?;
    let changes: Vec<Change> = (changes.into_iter().zip(differs))
        .filter(|(_, differs)| *differs)
        .map(|(c, _)| c)
        .collect();
    if changes.is_empty() {
        let files: Vec<String> = session
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        return Err(Error::NothingChanged {
            files: files.join(", "),
        });
    }
    for change in &changes {
        refuse(session, *change)?;
    }
    Ok(changes)
}

fn refuse(session: &Session, change: Change) -> Result<(), Error> {
    let units = change
        .original
        .into_iter()
        .chain(change.patched.map(|(unit, _)| unit));
    for unit in units {
        let source = session.site.shown(&unit.source);
        if unit.language == Language::Assembly {
            return Err(Error::Assembly(source));
        }
        if let Some(flag) = &unit.lto {
            let flag = flag.to_string_lossy().into_owned();
            return Err(Error::LinkTime {
                source_file: source,
                flag,
            });
        }
    }
    Ok(())
}

/// Which of these units read a file that the diff changes, though the build did not compile them again: it does not know
/// that they do.
fn readers(session: &Session, original: &Built, units: &[&Unit]) -> Result<Vec<bool>, Error> {
    let files: HashSet<&Path> = session.files.iter().map(PathBuf::as_path).collect();
    let changed = |file: &Path| {
        let within = session.site.within(file);
        within.is_some_and(|(area, rest)| area == 0 && files.contains(rest))
    };
    let reads = |unit: &Unit, listed: &[u8]| {
        let directory = &original.record.calls[unit.call].directory;
        prerequisites(listed)
            .iter()
            .any(|file| changed(&absolute(directory, file)))
    };
    let entered = session.enter(&original.tree)?;
    let done = AtomicUsize::new(0);
    let total = units.len();
    parallel(units, |number, unit| {
        session.told.tell(Phase::Search {
            done: done.fetch_add(1, Ordering::Relaxed),
            total,
        });
        if let Some(file) = &unit.dependencies {
            let listed = file
                .as_ref()
                .and_then(|file| fs::read(entered.host(file)).ok());
            // Who asks for the list and has taken it away keeps it elsewhere: ninja does.
            return Ok(listed.is_some_and(|listed| reads(unit, &listed)));
        }
        if unit.language == Language::Assembly && unit.source.extension().is_some_and(|e| e == "s")
        {
            return Ok(changed(&unit.source));
        }
        let output = session.store.path("objects").join(format!("{number}.d"));
        match repeat(
            &entered,
            &original.record,
            unit,
            Again::Dependencies,
            &output,
            session.interrupt,
        )? {
            Ok(()) => Ok(reads(unit, &fs::read(&output).map_err(Error::io(&output))?)),
            // It compiled before. What it read then is gone, a generated file perhaps: it may be any.
            Err(message) => Err(Error::Compile {
                source_file: session.site.shown(&unit.source),
                which: "original",
                message,
            }),
        }
    })
}

/// Which changes are any to the compiler: other flags, or other text after the preprocessor.
fn differs(
    session: &Session,
    original: &Built,
    patched: &Built,
    changes: &[Change],
) -> Result<Vec<bool>, Error> {
    let candidate = |change: &Change| match (change.original, change.patched) {
        (Some(old), Some((new, built))) => {
            let (a, b) = (
                &original.record.calls[old.call],
                &built.record.calls[new.call],
            );
            a.arguments == b.arguments && a.directory == b.directory
        }
        _ => false,
    };
    let total = changes.len();
    let mut text: [Vec<Option<PathBuf>>; 2] = Default::default();
    for (side, tree) in [&original.tree, &patched.tree].into_iter().enumerate() {
        let entered = session.enter(tree)?;
        let done = AtomicUsize::new(0);
        text[side] = parallel(changes, |number, change| {
            let done = done.fetch_add(1, Ordering::Relaxed) + side * total;
            session.told.tell(Phase::Search {
                done,
                total: 2 * total,
            });
            let unit = match (side, change.original, change.patched) {
                (0, Some(unit), _) => Some((unit, original)),
                (1, _, Some(patched)) => Some(patched),
                _ => None,
            };
            match unit.filter(|_| candidate(change)) {
                Some((unit, built)) => {
                    preprocess(session, &entered, unit, built, &format!("{number}.{side}"))
                }
                None => Ok(None),
            }
        })?;
    }
    let [before, after] = text;
    let pairs: Vec<_> = before.into_iter().zip(after).collect();
    parallel(&pairs, |_, (before, after)| {
        let (Some(before), Some(after)) = (before, after) else {
            return Ok(true);
        };
        let read = |path: &PathBuf| fs::read(path).map_err(Error::io(path));
        let (a, b) = (read(before)?, read(after)?);
        Ok(a != b || reads_more(&a))
    })
}

/// The file that holds what the compiler sees; `None` if that can't be made, so that compiling says why.
fn preprocess(
    session: &Session,
    entered: &Entered,
    unit: &Unit,
    built: &Built,
    name: &str,
) -> Result<Option<PathBuf>, Error> {
    if unit.language == Language::Assembly && unit.source.extension().is_some_and(|e| e == "s") {
        // The preprocessor does not touch it; and the tree may be elsewhere when it is read.
        let copy = session.store.path("objects").join(format!("{name}.s"));
        fs::copy(entered.host(&unit.source), &copy).map_err(Error::io(&copy))?;
        return Ok(Some(copy));
    }
    let output = session.store.path("objects").join(format!("{name}.i"));
    let done = repeat(
        entered,
        &built.record,
        unit,
        Again::Preprocess,
        &output,
        session.interrupt,
    )?;
    Ok(done.ok().map(|()| output))
}

/// Compiles what has changed, in both trees.
pub(super) fn pairs(
    session: &Session,
    original: &Built,
    patched: &Built,
    changes: &[Change],
) -> Result<Vec<Pair>, Error> {
    let total = changes
        .iter()
        .map(|c| usize::from(c.original.is_some()) + usize::from(c.patched.is_some()))
        .sum();
    let done = AtomicUsize::new(0);
    let mut objects: [Vec<Option<PathBuf>>; 2] = Default::default();
    for (side, which) in ["original", "patched"].into_iter().enumerate() {
        let entered = session.enter(if side == 0 {
            &original.tree
        } else {
            &patched.tree
        })?;
        objects[side] = parallel(changes, |number, change| {
            let unit = if side == 0 {
                change.original.map(|unit| (unit, original))
            } else {
                change.patched
            };
            let Some((unit, built)) = unit else {
                return Ok(None);
            };
            // Compilers write the name of the object into it (split debug information, coverage), so both have the same.
            let directory = session.store.path("objects").join(number.to_string());
            fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
            let object = directory.join("object.o");
            let made = repeat(
                &entered,
                &built.record,
                unit,
                Again::Sections,
                &object,
                session.interrupt,
            )?;
            made.map_err(|message| Error::Compile {
                source_file: session.site.shown(&unit.source),
                which,
                message,
            })?;
            let path = directory.join(which).with_extension("o");
            fs::rename(&object, &path).map_err(Error::io(&path))?;
            session.told.tell(Phase::Recompile {
                done: done.fetch_add(1, Ordering::Relaxed) + 1,
                total,
            });
            Ok(Some(path))
        })?;
    }
    let [before, after] = objects;
    let mut pairs = Vec::new();
    for ((change, before), after) in changes.iter().zip(before).zip(after) {
        let Some((unit, built)) = change
            .patched
            .or_else(|| change.original.map(|unit| (unit, original)))
        else {
            continue;
        };
        pairs.push(Pair {
            source: session.site.shown(&unit.source),
            language: unit.language,
            original: before,
            patched: after,
            built: change
                .original
                .and_then(|unit| session.object(original, unit)),
            call: Call::clone(&built.record.calls[unit.call]),
        });
    }
    Ok(pairs)
}
