//! Which source files are compiled differently, and their objects.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::again::{parallel, repeat};
use super::arguments::{Again, Language};
use super::build::{Built, Session, is_source_extension};
use super::error::Error;
use super::lines;
use super::record::Call;
use super::site::Entered;
use super::units::{Identity, Unit, absolute, prerequisites, reads_more};
use super::{Pair, Phase};

/// A unit in both builds. Where the patched build did not compile it again, it has the call of the original one.
#[derive(Clone)]
pub(super) struct Change<'a> {
    original: Option<&'a Unit>,
    patched: Option<(&'a Unit, &'a Built)>,
    /// What the compiler sees of the patched one, where that was made.
    text: Option<PathBuf>,
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
        let there = |object: &PathBuf| {
            let mut units = original.units.iter();
            session.site.host(&original.tree, object).is_file()
                && !units.any(|unit| unit.object.as_ref() == Some(object))
        };
        if !known.contains_key(&identity)
            && let Some(object) = unit.object.as_ref().filter(|object| there(object))
        {
            return Err(Error::BuiltBefore(session.site.shown(object)));
        }
        changes.push(Change {
            original: known.get(&identity).copied(),
            patched: Some((unit, patched)),
            text: None,
        });
        made.insert(identity);
    }
    let rest: Vec<&Unit> = (original.units.iter())
        .filter(|unit| !made.contains(&unit.identity(&original.record)))
        .collect();
    let reached = readers(session, original, &rest)?;
    for (unit, reached) in rest.into_iter().zip(reached) {
        let gone = !session.site.host(&patched.tree, &unit.source).is_file();
        if reached && unit.language == Language::Rust {
            // Crates that use this one would have to be compiled with the new one.
            return Err(Error::Stale(session.site.shown(&unit.source)));
        }
        if gone || reached {
            changes.push(Change {
                original: Some(unit),
                patched: (!gone).then_some((unit, original)),
                text: None,
            });
        }
    }
    let differs = differs(session, original, patched, &mut changes)?;
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
        refuse(session, change)?;
    }
    refuse_linked(session, &changes)?;
    Ok(changes)
}

fn is_crate(change: &Change) -> bool {
    let mut units = (change.original.into_iter()).chain(change.patched.map(|(unit, _)| unit));
    units.any(|unit| unit.language == Language::Rust)
}

/// What rustc optimises as one with the program's crate is in that crate's objects. But another crate's own objects are not
/// what runs then, and its types are described nowhere else.
fn refuse_linked(session: &Session, changes: &[Change]) -> Result<(), Error> {
    let units = || {
        let units = changes.iter().filter_map(|change| change.original);
        units.filter(|unit| unit.language == Language::Rust)
    };
    let flag = units().find_map(|unit| unit.lto.as_ref().filter(|_| unit.object.is_none()));
    let library = units().find(|unit| unit.object.is_some());
    match (library, flag) {
        (Some(library), Some(flag)) => Err(Error::LinkTime {
            source_file: session.site.shown(&library.source),
            flag: flag.to_string_lossy().into_owned(),
        }),
        _ => Ok(()),
    }
}

fn refuse(session: &Session, change: &Change) -> Result<(), Error> {
    let units = change
        .original
        .into_iter()
        .chain(change.patched.map(|(unit, _)| unit));
    for unit in units {
        let source = session.site.shown(&unit.source);
        if unit.language == Language::Assembly {
            return Err(Error::Assembly(source));
        }
        if let Some(flag) = unit
            .lto
            .as_ref()
            .filter(|_| unit.language != Language::Rust)
        {
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

/// Which changes are any to the compiler: other flags, or other text after the preprocessor. What stands on another line,
/// and is the same otherwise, is none.
fn differs(
    session: &Session,
    original: &Built,
    patched: &Built,
    changes: &mut [Change],
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
    let candidate = |change: &Change| !is_crate(change) && candidate(change);
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
                (0, Some(unit), _) if candidate(change) => Some((unit, original)),
                (1, Some(_), Some(patched)) if !is_crate(change) => Some(patched),
                _ => None,
            };
            match unit {
                Some((unit, built)) => {
                    preprocess(session, &entered, unit, built, &format!("{number}.{side}"))
                }
                None => Ok(None),
            }
        })?;
    }
    let [before, after] = text;
    let pairs: Vec<_> = before.into_iter().zip(after).collect();
    let differs = parallel(changes, |number, change| {
        if let Some((old, (new, built))) = change.original.zip(change.patched)
            && is_crate(change)
        {
            // It is compiled again for any change of what it uses.
            let objects = session
                .object(original, old)
                .zip(session.object(built, new));
            let Some((a, b)) = objects else {
                return Ok(true);
            };
            let read = |path: &Path| fs::read(path).map_err(Error::io(path));
            return Ok(read(&a)? != read(&b)?);
        }
        match pairs.get(number) {
            Some((Some(before), Some(after))) => Ok(!same(before, after)?),
            _ => Ok(true),
        }
    });
    for (change, (_, after)) in changes.iter_mut().zip(pairs) {
        change.text = after;
    }
    differs
}

/// Is this the same to the compiler, wherever it stands, and all that it reads?
fn same(one: &Path, other: &Path) -> Result<bool, Error> {
    let read = |path: &Path| fs::read(path).map_err(Error::io(path));
    let (a, b) = (read(one)?, read(other)?);
    Ok(!reads_more(&a) && lines::same(&a, &b))
}

/// The patched tree with the line numbers of the original, as long as this lives.
struct Numbered {
    /// The files, and what they hold otherwise.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Numbered {
    fn new(session: &Session, original: &Built, patched: &Built) -> Result<Self, Error> {
        let mut numbered = Self { files: Vec::new() };
        for file in session.files.iter().filter(|file| is_text(file)) {
            let [old, new] = [&original.tree, &patched.tree].map(|tree| tree.join("0").join(file));
            let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
            if !is_file(&old) || !is_file(&new) {
                continue;
            }
            let read = |path: &Path| fs::read(path).map_err(Error::io(path));
            let text = read(&new)?;
            if let Some(with) = lines::numbered(&read(&old)?, &text) {
                replace(&new, &with)?;
                numbered.files.push((new, text));
            }
        }
        Ok(numbered)
    }

    /// For which changes that is proven to make no other difference.
    fn proven(
        &self,
        session: &Session,
        patched: &Built,
        changes: &[Change],
    ) -> Result<Vec<bool>, Error> {
        let entered = session.enter(&patched.tree)?;
        parallel(changes, |number, change| {
            let (Some((unit, built)), Some(text)) = (change.patched, &change.text) else {
                return Ok(false);
            };
            let name = format!("{number}.2");
            match preprocess(session, &entered, unit, built, &name)? {
                Some(with) => same(text, &with),
                None => Ok(false),
            }
        })
    }

    fn end(self) -> Result<(), Error> {
        for (path, text) in self.files {
            replace(&path, &text)?;
        }
        Ok(())
    }
}

/// Can this be a file in which a compiler takes `#line`?
pub(super) fn is_text(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|e| is_source_extension(e) && !["s", "S", "rs"].contains(&e))
}

/// Gives a file other content; another name of the same file keeps the old one.
fn replace(path: &Path, text: &[u8]) -> Result<(), Error> {
    fs::remove_file(path).map_err(Error::io(path))?;
    fs::write(path, text).map_err(Error::io(path))
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
    let compiled = Compiled {
        session,
        changes,
        total: changes
            .iter()
            .map(|c| usize::from(c.original.is_some()) + usize::from(c.patched.is_some()))
            .sum(),
        done: AtomicUsize::new(0),
    };
    let before = compiled.side(&original.tree, "original", &|number| {
        changes[number].original.map(|unit| (unit, original))
    })?;
    let before = before.into_iter().map(Option::transpose);
    let before: Vec<Option<PathBuf>> = before.collect::<Result<_, _>>()?;
    let numbered = Numbered::new(session, original, patched)?;
    let proven = numbered.proven(session, patched, changes)?;
    let mut after = compiled.side(&patched.tree, "patched", &|number| {
        changes[number].patched.filter(|_| proven[number])
    })?;
    numbered.end()?;
    // What takes no line directives has its own numbers.
    let rest = compiled.side(&patched.tree, "patched", &|number| {
        let is_made = matches!(after[number], Some(Ok(_)));
        changes[number].patched.filter(|_| !is_made)
    })?;
    let numbered: Vec<bool> = (after.iter())
        .map(|made| matches!(made, Some(Ok(_))))
        .collect();
    for (number, made) in rest.into_iter().enumerate() {
        if let Some(made) = made {
            after[number] = Some(made);
        }
    }
    let after = after.into_iter().map(Option::transpose);
    let after: Vec<Option<PathBuf>> = after.collect::<Result<_, _>>()?;
    // A crate was compiled for its description.
    let described: Vec<_> = before.iter().cloned().zip(after.iter().cloned()).collect();
    let (mut before, mut after) = (before, after);
    for (number, change) in changes
        .iter()
        .enumerate()
        .filter(|(_, change)| is_crate(change))
    {
        let object = |built: &Built, unit: &Unit| {
            let none = || Error::NoObjects(session.site.shown(&unit.source));
            session.object(built, unit).ok_or_else(none)
        };
        before[number] = change
            .original
            .map(|unit| object(original, unit))
            .transpose()?;
        after[number] = (change.patched)
            .map(|(unit, built)| object(built, unit))
            .transpose()?;
    }
    let mut pairs = Vec::new();
    let objects = before.into_iter().zip(after).zip(described).zip(numbered);
    for (change, (((before, after), (old, new)), numbered)) in changes.iter().zip(objects) {
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
            numbered,
            built: change
                .original
                .and_then(|unit| session.object(original, unit)),
            described: (old.zip(new))
                .filter(|_| is_crate(change))
                .map(|(original, patched)| [original, patched]),
            call: Call::clone(&built.record.calls[unit.call]),
        });
    }
    Ok(pairs)
}

/// What is compiled for the comparison.
struct Compiled<'a, 's> {
    session: &'a Session<'s>,
    changes: &'a [Change<'a>],
    total: usize,
    done: AtomicUsize,
}

/// An object, or why there is none.
type Object = Result<PathBuf, Error>;

impl Compiled<'_, '_> {
    /// The objects of some of the units, made in a tree.
    fn side<'u>(
        &self,
        tree: &Path,
        which: &'static str,
        unit: &(dyn Fn(usize) -> Option<(&'u Unit, &'u Built)> + Sync),
    ) -> Result<Vec<Option<Object>>, Error> {
        let session = self.session;
        let entered = session.enter(tree)?;
        parallel(self.changes, |number, _| {
            let Some((unit, built)) = unit(number) else {
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
                if unit.language == Language::Rust {
                    Again::Described
                } else {
                    Again::Sections
                },
                &object,
                session.interrupt,
            )?;
            if let Err(message) = made {
                return Ok(Some(Err(Error::Compile {
                    source_file: session.site.shown(&unit.source),
                    which,
                    message,
                })));
            }
            let path = directory.join(which).with_extension("o");
            fs::rename(&object, &path).map_err(Error::io(&path))?;
            session.told.tell(Phase::Recompile {
                done: self.done.fetch_add(1, Ordering::Relaxed) + 1,
                total: self.total,
            });
            Ok(Some(Ok(path)))
        })
    }
}
