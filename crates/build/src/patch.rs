//! From an observed build to a patch file: compare what changed, prove what runs, name what the patch needs.

use crate::capture::{Capture, Pair, Program};
use crate::compare::{self, Comparison, Function, Options, Status};
use crate::emit::{self, Needs, Record};
use crate::place::{self, Difference, Located, Object, Placement, Share, Symbols};
use livegraft_patchfile::elf::{Image, SymPlace};
use livegraft_patchfile::{Input, SymbolKind, Target, TargetElf, TargetSymbol};
use object::elf;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no patch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    #[error("{path}: {source}", path = .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{source_file}: {source}", source_file = .source_file.display())]
    Compare {
        source_file: PathBuf,
        source: compare::Error,
    },
    #[error("the diff changes no code of {program}; there is nothing to patch")]
    NoChange { program: String },
    #[error(
        "the build makes no program like {target}; give the file that runs and the command that builds it",
        target = .target.display()
    )]
    NoProgram { target: PathBuf },
    #[error(
        "the build makes several programs that the diff changes ({programs}); say with --target which of them runs"
    )]
    SeveralPrograms { programs: String },
    #[error("{source_file}: {refusal}", source_file = .source_file.display())]
    Refused {
        source_file: PathBuf,
        refusal: Box<compare::Refusal>,
    },
    #[error(
        "{target} is not what was built: {identical}; and object by object: {objects}",
        target = .target.display()
    )]
    NotProven {
        target: PathBuf,
        identical: Box<Difference>,
        objects: Box<place::Refusal>,
    },
    #[error("{target}: {source}", target = .target.display())]
    Place {
        target: PathBuf,
        source: Box<place::Refusal>,
    },
    #[error(
        "{target}: nothing tells which of the symbols called `{symbol}` is meant; they are in files of one name",
        target = .target.display()
    )]
    Ambiguous { target: PathBuf, symbol: String },
    #[error(
        "`{symbol}` is not the same one of its name in all targets; make a patch for each of them"
    )]
    Order { symbol: String },
    #[error(transparent)]
    Emit(Box<emit::Error>),
    #[error(transparent)]
    Pack(Box<livegraft_patchfile::Error>),
}

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

/// A source file of the patch.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Its functions, unchanged ones too.
    pub functions: Vec<Function>,
    /// What the author took on.
    pub allowed: Vec<compare::Refusal>,
}

/// A patch, and what is to be said of it.
#[derive(Debug, Clone)]
pub struct Built {
    /// The patch file.
    pub bytes: Vec<u8>,
    /// The source files whose code the patch changes.
    pub sources: Vec<Source>,
    /// Changed source files that the targets do not contain.
    pub elsewhere: Vec<PathBuf>,
    /// The targets, each with its proof.
    pub targets: Vec<(PathBuf, Proof)>,
}

impl From<emit::Error> for Error {
    fn from(error: emit::Error) -> Error {
        Error::Emit(Box::new(error))
    }
}

impl From<livegraft_patchfile::Error> for Error {
    fn from(error: livegraft_patchfile::Error) -> Error {
        Error::Pack(Box::new(error))
    }
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

/// What tells where the symbols of a target are.
enum Proven<'a> {
    Symbols(Symbols<'a>),
    Placed(Placed<'a>),
}

struct Placed<'a> {
    placement: Placement<'a>,
    objects: &'a [(PathBuf, String, Vec<u8>)],
    /// Which object defines a global name.
    definer: HashMap<String, usize>,
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
        });
    }
    let mut sources = Vec::new();
    let mut extracted: Vec<(&Pair, Vec<u8>)> = Vec::new();
    let mut whole: Vec<(&Path, &[u8])> = Vec::new();
    for file in &files {
        let Some(patched) = &file.patched else {
            continue; // Nobody refers to what is gone.
        };
        let Some(original) = &file.original else {
            whole.push((&file.pair.source, patched));
            continue;
        };
        let failed = |source| Error::Compare {
            source_file: file.pair.source.clone(),
            source,
        };
        let compared = compare::compare(original, patched, options).map_err(failed)?;
        if let Some(refusal) = compared.refusals.first() {
            return Err(Error::Refused {
                source_file: file.pair.source.clone(),
                refusal: Box::new(refusal.clone()),
            });
        }
        if compared.changes_code() {
            extracted.push((file.pair, compare::extract(&compared).map_err(failed)?));
            sources.push(source(file.pair, compared));
        }
    }
    let replaces = |source: &Source| {
        let mut functions = source.functions.iter();
        functions.any(|function| function.status == Status::Changed)
    };
    if !sources.iter().any(replaces) {
        return Err(Error::NoChange {
            program: listed(aims.iter().map(|aim| aim.path.as_path())),
        });
    }
    let (bytes, proofs) = assemble(&aims, &extracted, &whole)?;
    let paths = aims.iter().map(|aim| aim.path.clone());
    Ok(Built {
        bytes,
        sources,
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

fn source(pair: &Pair, compared: Comparison<'_>) -> Source {
    Source {
        path: pair.source.clone(),
        functions: compared.functions,
        allowed: compared.allowed,
    }
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
fn assemble(
    aims: &[Aim<'_>],
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
    for aim in aims {
        let proven = prove(aim)?;
        proofs.push(match &proven {
            Proven::Symbols(_) if aim.is_built => Proof::Built,
            Proven::Symbols(_) => Proof::Identical,
            Proven::Placed(placed) => Proof::Objects(placed.placement.share()),
        });
        tables.push(table(aim, &proven, &parts)?);
    }
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
        let mut all = tables.iter().map(|table| table.sympos(extract, record));
        let first = all.next().flatten();
        let same = all.all(|other| other == first);
        first.filter(|_| same).ok_or_else(|| Error::Order {
            symbol: record.name.clone(),
        })
    };
    let bytes = emit::emit(&extracts, &others, &targets, object.as_deref(), &mut naming)?;
    Ok((bytes, proofs))
}

/// The cheap proof, or the other one.
fn prove<'a>(aim: &'a Aim<'_>) -> Result<Proven<'a>, Error> {
    let identical = match place::identical(&aim.bytes, &aim.linked) {
        Ok(symbols) => return Ok(Proven::Symbols(symbols)),
        Err(difference) => Box::new(difference),
    };
    let objects: Vec<Object<'a>> = aim
        .objects
        .iter()
        .map(|(_, name, bytes)| Object { name, bytes })
        .collect();
    let placement = place::objects(&aim.bytes, &objects).map_err(|refusal| Error::NotProven {
        target: aim.path.clone(),
        identical,
        objects: Box::new(refusal),
    })?;
    let mut definer = HashMap::new();
    for (number, (_, _, bytes)) in aim.objects.iter().enumerate() {
        let Ok(image) = Image::read(bytes) else {
            continue;
        };
        for symbol in image.symbols {
            let defined = matches!(symbol.place, SymPlace::Section(_) | SymPlace::Common);
            if defined && symbol.bind != elf::STB_LOCAL.0 {
                definer.entry(symbol.name).or_insert(number);
            }
        }
    }
    Ok(Proven::Placed(Placed {
        placement,
        objects: &aim.objects,
        definer,
    }))
}

/// The symbols of one target that matter, by name, and which of them each record of an extract means.
#[derive(Default)]
struct Table {
    /// In the order that `sympos` counts.
    symbols: BTreeMap<String, Vec<(Located, bool)>>,
    meant: HashMap<Meant, Located>,
}

/// A record of an extract: its number; name, file and type; which of those.
type Meant = (usize, String, Option<String>, u8, usize);

fn meant(extract: usize, record: &Record) -> Meant {
    let (name, file) = (record.name.clone(), record.file.clone());
    (extract, name, file, record.kind, record.occurrence)
}

impl Table {
    fn sympos(&self, extract: usize, record: &Record) -> Option<u64> {
        let located = self.meant.get(&meant(extract, record))?;
        let all = self.symbols.get(&record.name)?;
        let same = all.iter().all(|(other, _)| other.svma == located.svma);
        let position = all.iter().position(|(other, _)| other == located)?;
        Some(if same { 0 } else { position as u64 + 1 })
    }

    fn symbols(&self) -> Vec<TargetSymbol<'_>> {
        let all = self.symbols.iter();
        all.flat_map(|(name, symbols)| {
            symbols.iter().map(move |(located, global)| TargetSymbol {
                name,
                svma: located.svma,
                size: located.size,
                kind: located.kind,
                global: *global,
                file: None,
                dynamic: false,
                interposable: false,
            })
        })
        .collect()
    }
}

fn table(aim: &Aim<'_>, proven: &Proven<'_>, parts: &[(&Pair, Needs)]) -> Result<Table, Error> {
    let mut table = Table::default();
    for (number, (pair, part)) in parts.iter().enumerate() {
        for record in part.replaced.iter().chain(&part.locals) {
            let located = match proven {
                Proven::Symbols(symbols) => of_symbols(aim, symbols, record)?,
                Proven::Placed(placed) => placed.record(aim, pair, record)?,
            };
            table.meant.insert(meant(number, record), located);
        }
    }
    let all = match proven {
        Proven::Symbols(symbols) => symbols.recovered(),
        Proven::Placed(placed) => placed.placement.recovered(),
    };
    for symbol in all {
        let located = Located {
            svma: symbol.svma,
            size: symbol.size,
            kind: symbol.kind,
        };
        let named = table.symbols.entry(symbol.name.to_owned()).or_default();
        named.push((located, symbol.global));
    }
    if let Proven::Placed(placed) = proven {
        let names = parts.iter().flat_map(|(_, part)| &part.undefined);
        for name in names.collect::<BTreeSet<&String>>() {
            // What no object of the program defines comes from a library; what one defines must be known.
            if let Some(&object) = placed.definer.get(name)
                && !table.symbols.contains_key(name)
            {
                let located = placed.placement.find(object, name);
                let located = located.map_err(aim.place())?;
                table
                    .symbols
                    .insert(name.clone(), Vec::from([(located, true)]));
            }
        }
    }
    Ok(table)
}

impl Aim<'_> {
    fn place(&self) -> impl Fn(place::Refusal) -> Error + '_ {
        |source| Error::Place {
            target: self.path.clone(),
            source: Box::new(source),
        }
    }

    fn ambiguous(&self, record: &Record) -> Error {
        Error::Ambiguous {
            target: self.path.clone(),
            symbol: record.name.clone(),
        }
    }
}

/// The symbol of a complete symbol table that a record means.
fn of_symbols(aim: &Aim<'_>, symbols: &Symbols<'_>, record: &Record) -> Result<Located, Error> {
    let fits = |symbol: &&place::Symbol<'_>| match &record.file {
        Some(file) => !symbol.global && symbol.file == Some(file),
        None => symbol.global,
    };
    let named = symbols.named(&record.name).filter(fits);
    let found: Vec<Located> = named
        .map(|symbol| symbol.located)
        .filter(|located| Some(located.kind) == SymbolKind::from_st_type(record.kind))
        .collect();
    let one = match (found.as_slice(), record.occurrence) {
        ([first, rest @ ..], 0) if rest.iter().all(|other| other == first) => Some(*first),
        (several, number) => {
            let index = number.checked_sub(1);
            index.and_then(|index| several.get(index).copied())
        }
    };
    match (one, found.is_empty()) {
        (Some(located), _) => Ok(located),
        (None, false) => Err(aim.ambiguous(record)),
        // With its message.
        (None, true) => symbols
            .find(record.file.as_deref(), &record.name)
            .map_err(aim.place()),
    }
}

impl Placed<'_> {
    fn record(&self, aim: &Aim<'_>, pair: &Pair, record: &Record) -> Result<Located, Error> {
        let mut objects = self.objects.iter();
        let object = pair
            .built
            .as_ref()
            .and_then(|built| objects.position(|(object, ..)| object == built));
        let object = object.ok_or_else(|| aim.ambiguous(record))?;
        if record.file.is_none() {
            let located = self.placement.find(object, &record.name);
            return located.map_err(aim.place());
        }
        let bytes = self
            .objects
            .get(object)
            .map_or(&[][..], |(_, _, bytes)| bytes);
        let image = Image::read(bytes)?;
        let symbols = image.symbols.iter().enumerate();
        let fits = symbols.filter(|(_, symbol)| {
            symbol.bind == elf::STB_LOCAL.0
                && symbol.name == record.name
                && symbol.kind == record.kind
        });
        let fits: Vec<usize> = fits.map(|(number, _)| number).collect();
        let number = match (fits.as_slice(), record.occurrence) {
            ([only], _) => Some(*only),
            (several, number) => {
                let index = number.checked_sub(1);
                index.and_then(|index| several.get(index).copied())
            }
        };
        let Some(number) = number else {
            // With its message.
            let located = self.placement.find(object, &record.name);
            return located.map_err(aim.place());
        };
        self.placement.at(object, number).map_err(aim.place())
    }
}
