//! From an observed build to a patch file: compare what changed, prove what runs, name what the patch needs.

mod differing;
mod error;
mod names;

pub use error::Error;

use crate::capture::{Capture, Pair, Program};
use crate::compare::Options;
use crate::emit::{self, Needs, Record};
use crate::place::Share;
use differing::{Both, Proofs, differing};
use livegraft_patchfile::changes::Source;
use livegraft_patchfile::{Input, Target, TargetElf, TargetSymbol};
use names::{Proven, Table, agree, table};
use object::elf;
use std::fs;
use std::path::{Path, PathBuf};

/// How it is known that the target is what was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// All that is loaded is equal to the last byte.
    Identical,
    /// Its objects were found in it.
    Objects(Share),
    /// The target is the program that was just built.
    Built,
}

/// A patch, and what is to be said of it.
#[derive(Debug, Clone)]
pub struct Built {
    /// The patch file. It says what of its source files the patch changes.
    pub bytes: Vec<u8>,
    /// Changed source files that the targets do not contain.
    pub elsewhere: Vec<PathBuf>,
    /// The targets, each with its proof.
    pub targets: Vec<(PathBuf, Proof)>,
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Both objects of a source file; `None` where there is none.
struct Bytes<'c> {
    pair: &'c Pair,
    original: Option<Vec<u8>>,
    patched: Option<Vec<u8>>,
    described: Option<[Vec<u8>; 2]>,
}

/// One build of the target.
struct Aim<'c> {
    path: PathBuf,
    bytes: Vec<u8>,
    program: &'c Program,
    linked: Vec<u8>,
    /// The objects of the program, read when they are needed.
    objects: Vec<(PathBuf, String, Vec<u8>)>,
    is_built: bool,
}

/// Makes the patch of what was captured.
///
/// # Errors
/// [`Error`]: what can't become a patch, by name.
pub fn patch(capture: &Capture, targets: &[PathBuf], options: &Options) -> Result<Built, Error> {
    let aims = aims(capture, targets)?;
    let mut files = Vec::new();
    let mut elsewhere = Vec::new();
    for pair in &capture.pairs {
        let is_in = |aim: &Aim<'_>| match &pair.built {
            Some(built) => aim.program.objects.contains(built),
            None => true,
        };
        if !aims.iter().any(is_in) {
            elsewhere.push(pair.source.clone());
            continue;
        }
        files.push(Bytes {
            pair,
            original: pair.original.as_deref().map(read).transpose()?,
            patched: pair.patched.as_deref().map(read).transpose()?,
            described: match &pair.described {
                Some([original, patched]) => Some([read(original)?, read(patched)?]),
                None => None,
            },
        });
    }
    let mut replaces = false;
    let mut proofs = Proofs::default();
    let mut extracted: Vec<(&Pair, Vec<u8>)> = Vec::new();
    let mut whole: Vec<(&Path, &[u8])> = Vec::new();
    let mut uncalled = options.with_callers.clone();
    for file in &files {
        let Some(patched) = &file.patched else {
            continue; // Nobody refers to what is gone.
        };
        let Some(original) = &file.original else {
            whole.push((&file.pair.source, patched));
            continue;
        };
        let described = file.described.as_ref();
        let both = Both {
            pair: file.pair,
            original,
            patched,
            described: described.map(|[original, patched]| [&**original, &**patched]),
        };
        let texts = capture.texts.of(file.pair.numbered);
        let found = differing(&both, &aims, &mut proofs, (options, &texts))?;
        uncalled.retain(|name| found.uncalled.contains(name));
        if let Some(extract) = found.extract {
            replaces |= found.replaces;
            extracted.push((file.pair, extract));
        }
    }
    if let Some(name) = uncalled.first() {
        return Err(Error::Uncalled {
            name: name.clone(),
            files: listed(files.iter().map(|file| file.pair.source.as_path())),
        });
    }
    if !replaces {
        return Err(Error::NoChange {
            program: listed(aims.iter().map(|aim| aim.path.as_path())),
        });
    }
    let (bytes, proofs) = assemble(&aims, proofs.of(&aims)?, &extracted, &whole)?;
    let paths = aims.iter().map(|aim| aim.path.clone());
    Ok(Built {
        bytes,
        elsewhere,
        targets: paths.zip(proofs).collect(),
    })
}

/// Of installed programs the one that holds what the diff changes; one that is installed under several names counts once.
///
/// # Errors
/// [`Error::NoChange`]; [`Error::SeveralPrograms`].
pub fn changed_program(capture: &Capture, installed: &[PathBuf]) -> Result<PathBuf, Error> {
    let mut changed: Vec<(&PathBuf, Vec<u8>)> = Vec::new();
    for target in installed {
        let Some((program, _)) = capture.program(target) else {
            continue;
        };
        if changes(capture, program) {
            let bytes = read(target)?;
            if !changed.iter().any(|(_, other)| *other == bytes) {
                changed.push((target, bytes));
            }
        }
    }
    match changed.as_slice() {
        [(target, _)] => Ok((*target).clone()),
        [] => Err(Error::NoChange {
            program: "any installed program of the package".to_owned(),
        }),
        several => Err(Error::SeveralPrograms {
            programs: listed(several.iter().map(|(target, _)| target.as_path())),
        }),
    }
}

fn changes(capture: &Capture, program: &Program) -> bool {
    let mut built = capture.pairs.iter().filter_map(|pair| pair.built.as_ref());
    built.any(|built| program.objects.contains(built))
}

fn listed<'p>(paths: impl Iterator<Item = &'p Path>) -> String {
    let paths = paths.map(|path| path.display().to_string());
    paths.collect::<Vec<String>>().join(", ")
}

/// The targets and the programs that the build made of them. Without a target it is the one program that changes.
fn aims<'c>(capture: &'c Capture, targets: &[PathBuf]) -> Result<Vec<Aim<'c>>, Error> {
    let mut aims = Vec::new();
    for target in targets {
        let found = capture.program(target);
        let (program, _) = found.ok_or_else(|| Error::NoProgram {
            target: target.clone(),
        })?;
        aims.push(aim(target.clone(), read(target)?, program, false)?);
    }
    if targets.is_empty() {
        let programs = capture.programs.iter();
        let programs: Vec<&Program> = programs
            .filter(|program| changes(capture, program))
            .collect();
        match programs.as_slice() {
            [program] => {
                let bytes = read(&program.file)?;
                aims.push(aim(program.path.clone(), bytes, program, true)?);
            }
            [] => {
                return Err(Error::NoChange {
                    program: "any program of the build".to_owned(),
                });
            }
            several => {
                return Err(Error::SeveralPrograms {
                    programs: listed(several.iter().map(|program| program.path.as_path())),
                });
            }
        }
    }
    Ok(aims)
}

fn aim(path: PathBuf, bytes: Vec<u8>, program: &Program, is_built: bool) -> Result<Aim<'_>, Error> {
    let mut objects = Vec::new();
    for object in &program.objects {
        let bytes = read(object)?;
        // An archive of other origin: what the linker took of it is not known.
        if bytes.starts_with(&elf::ELFMAG) {
            objects.push((object.clone(), object.display().to_string(), bytes));
        }
    }
    Ok(Aim {
        path,
        bytes,
        program,
        linked: read(&program.file)?,
        objects,
        is_built,
    })
}

/// Names everything that the objects need in each target, and packs them.
fn assemble<'a>(
    aims: &'a [Aim<'_>],
    proven: &[Proven<'a>],
    extracted: &[(&Pair, Vec<u8>)],
    whole: &[(&Path, &[u8])],
) -> Result<(Vec<u8>, Vec<Proof>), Error> {
    let extracts: Vec<Input<'_>> = extracted
        .iter()
        .map(|(pair, bytes)| Input {
            path: &pair.source,
            bytes,
        })
        .collect();
    let mut parts: Vec<(&Pair, Needs)> = Vec::new();
    for ((pair, _), extract) in extracted.iter().zip(&extracts) {
        parts.push((pair, emit::needs(extract)?));
    }
    let (mut proofs, mut tables) = (Vec::new(), Vec::new());
    for (aim, proven) in aims.iter().zip(proven) {
        proofs.push(match proven {
            Proven::Symbols(_) if aim.is_built => Proof::Built,
            Proven::Symbols(_) => Proof::Identical,
            Proven::Placed(placed) => Proof::Objects(placed.placement.share()),
        });
        tables.push(table(aim, proven, &parts)?);
    }
    agree(&mut tables);
    let object = match aims.first() {
        Some(aim) => TargetElf::parse(&aim.path, &aim.bytes, None)?.object,
        None => None,
    };
    let symbols: Vec<Vec<TargetSymbol<'_>>> = tables.iter().map(Table::symbols).collect();
    let targets: Vec<Target<'_>> = aims
        .iter()
        .zip(&symbols)
        .map(|(aim, symbols)| Target {
            path: &aim.path,
            bytes: &aim.bytes,
            debug: None,
            symbols: Some(symbols),
        })
        .collect();
    let others: Vec<Input<'_>> = whole
        .iter()
        .map(|&(path, bytes)| Input { path, bytes })
        .collect();
    let mut naming = |extract: usize, record: &Record| {
        let first = tables.first();
        let position = first.and_then(|table| table.sympos(extract, record));
        position.ok_or_else(|| Error::Ambiguous {
            target: aims.first().map(|aim| aim.path.clone()).unwrap_or_default(),
            symbol: record.name.clone(),
        })
    };
    let added: Vec<Source> = others.iter().filter_map(emit::whole).collect();
    let others = (others.as_slice(), added.as_slice());
    let bytes = emit::emit(&extracts, others, &targets, object.as_deref(), &mut naming)?;
    Ok((bytes, proofs))
}
