//! `livegraft pack`: compiled C and the files of the target in, a patch file out.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use object::elf::{STT_FILE, STT_GNU_IFUNC, STT_NOTYPE, STT_SECTION, STT_TLS};
use sha2::{Digest as _, Sha256};

use crate::elf::{self, Image, Sec, SymPlace};
use crate::meta::{Meta, PATCH_SECTION, Reader, SYMS_SECTION};
use crate::note;
use crate::read::{Names, check_section, is_loaded, klp_symbol, object_names, spoken, unsupported};
use crate::relocation::{relocation_name, relocation_width};
use crate::{
    Build, Error, Fingerprint, Patch, Place, Recovered, SymbolKind, TargetElf, TargetSymbol,
    changes, clobber, resolve, write,
};

/// An object file that the compiler made of the patch's source.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// For messages.
    pub path: &'a Path,
    /// The file.
    pub bytes: &'a [u8],
}

/// The executable or a shared library that the patch changes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Names the object if it has no DT_SONAME; for messages.
    pub path: &'a Path,
    /// The file.
    pub bytes: &'a [u8],
    /// Its separate debug file, for its symbols.
    pub debug: Option<&'a [u8]>,
    /// Symbols that were proven to be its own, for one without a symbol table; the patch records where they are.
    pub symbols: Option<&'a [TargetSymbol<'a>]>,
}

/// Makes a patch file. Several targets may be builds of one object: then all symbols that the patch uses must be in each,
/// and where a name occurs several times its occurrences in the same order.
///
/// # Errors
/// Whatever keeps the patch from being sound is refused here by name rather than at load.
pub fn pack(inputs: &[Input<'_>], targets: &[Target<'_>]) -> Result<Vec<u8>, Error> {
    let bytes = merge(inputs)?;
    let path = inputs.first().map_or(Path::new(""), |i| i.path);
    let mut image = Image::read(&bytes).map_err(|e| not_object(path, e))?;
    refuse_sections(&image)?;
    refuse_symbols(&image)?;
    place_commons(&mut image)?;
    changes::fit(&mut image)?;
    let reader = Reader::new(&image);
    let meta = reader.meta()?;
    let aliases = reader.aliases()?;
    let names = object_names(&meta)?;
    let asked = meta.objects.iter().map(|o| {
        let immediate = o
            .funcs
            .iter()
            .find(|f| f.immediate)
            .map(|f| f.old_name.as_str());
        (o.name.as_deref(), o.callbacks.first().copied(), immediate)
    });
    let states = !meta.states.is_empty();
    if let Some(sentence) = unsupported(meta.replace, meta.immediate, states, asked) {
        return Err(Error::Unsupported(sentence));
    }
    let targets = read_targets(targets, &meta)?;
    let (matched, mut noted) = match_objects(&meta, &targets)?;

    let keep_section: Vec<bool> = image.sections.iter().map(kept).collect();
    let used = used_symbols(&image, &keep_section);
    let first: Vec<&TargetElf<'_>> = matched.iter().filter_map(|b| b.first().copied()).collect();
    let objects = resolve::resolve(&mut image, &used, &aliases, &first)?;
    for (object, (targets, builds)) in meta.objects.iter().zip(matched.iter().zip(&mut noted)) {
        let symbols = klp_symbols(&image, &names, object.name.as_deref());
        record(&symbols, targets, builds)?;
    }
    let mut keep_section = keep_section;
    add_note(&mut image, &mut keep_section, &noted);
    let keep_symbol = kept_symbols(&image, &keep_section, &used);
    for (section, keep) in image.sections.iter_mut().zip(&keep_section) {
        section.flags &= !elf::SHF_GROUP;
        if section.name == PATCH_SECTION && *keep {
            section.flags &= !elf::SHF_ALLOC;
        }
    }
    let mut out = write::write(&image, &keep_section, &keep_symbol, &objects)?;
    note::seal(&mut out)?;

    // What the loader will read, and the code as it will be loaded.
    let patch = Patch::parse(&out)?;
    for (object, targets) in patch.objects.iter().zip(&matched) {
        for (build, target) in object.builds.iter().zip(targets) {
            let checker = clobber::Checker::new(target).replacing(&build.fingerprints);
            for (func, old) in object.funcs.iter().zip(&build.fingerprints) {
                checker.check(&patch, func, old)?;
            }
        }
    }
    Ok(out)
}

fn not_object(path: &Path, error: Error) -> Error {
    let why = match error {
        Error::NotElf => "it is not an ELF file".to_owned(),
        Error::Truncated => "it is cut off".to_owned(),
        Error::WrongMachine => "it is for another machine".to_owned(),
        Error::NotRelocatable => "it is already linked".to_owned(),
        Error::Malformed(why) => why,
        other => return other,
    };
    Error::InputNotObject {
        path: path.to_owned(),
        why,
    }
}

/// Joins several object files with `ld -r`; one is taken as it is.
///
/// # Errors
/// If there is none, one is no object file, or the linker can't join them.
pub fn merge<'a>(inputs: &[Input<'a>]) -> Result<Cow<'a, [u8]>, Error> {
    link(inputs, &[])
}

/// The same, but sections of one name are not put together: each is in the result what it is in its object.
///
/// # Errors
/// As [`merge`].
pub fn join<'a>(inputs: &[Input<'a>]) -> Result<Cow<'a, [u8]>, Error> {
    link(inputs, &["--unique"])
}

fn link<'a>(inputs: &[Input<'a>], options: &[&str]) -> Result<Cow<'a, [u8]>, Error> {
    for input in inputs {
        elf::header(input.bytes).map_err(|e| not_object(input.path, e))?;
    }
    match inputs {
        [] => return Err(Error::NoInput),
        [input] => return Ok(Cow::Borrowed(input.bytes)),
        _ => {}
    }
    let no_linker = |e: std::io::Error| Error::NoLinker { why: e.to_string() };
    let dir = tempfile::tempdir().map_err(no_linker)?;
    let out = dir.path().join("merged.o");
    let mut command = Command::new("ld");
    command.arg("-r").args(options).arg("-o").arg(&out);
    for (number, input) in inputs.iter().enumerate() {
        let path = dir.path().join(format!("{number}.o"));
        let written = std::fs::File::create(&path).and_then(|mut f| f.write_all(input.bytes));
        written.map_err(no_linker)?;
        command.arg(path);
    }
    let run = command.output().map_err(no_linker)?;
    if !run.status.success() {
        let text = String::from_utf8_lossy(&run.stderr);
        let why = text
            .lines()
            .next()
            .unwrap_or("it failed without a word")
            .to_owned();
        let names = inputs.iter().enumerate().fold(why, |why, (number, input)| {
            let temporary = dir.path().join(format!("{number}.o"));
            why.replace(&*temporary.to_string_lossy(), &input.path.to_string_lossy())
        });
        return Err(Error::Linker { why: names });
    }
    Ok(Cow::Owned(std::fs::read(out).map_err(no_linker)?))
}

/// Sections and relocations that could not be loaded, by name.
fn refuse_sections(image: &Image<'_>) -> Result<(), Error> {
    if image
        .sections
        .iter()
        .any(|s| s.name.starts_with(".gnu.lto_"))
    {
        return Err(Error::Lto);
    }
    for section in image.sections.iter().filter(|s| is_loaded(s)) {
        check_section(section)?;
        let refused = section
            .relas
            .iter()
            .find(|r| relocation_width(r.r_type).is_none());
        if let Some(rela) = refused {
            let (name, section) = (relocation_name(rela.r_type), section.name.clone());
            return Err(Error::Relocation {
                section,
                name,
                r_type: rela.r_type,
            });
        }
    }
    Ok(())
}

fn refuse_symbols(image: &Image<'_>) -> Result<(), Error> {
    for symbol in image
        .symbols
        .iter()
        .filter(|s| s.place != SymPlace::Undefined)
    {
        let name = || symbol.name.clone();
        let in_tls = match symbol.place {
            SymPlace::Section(s) => image
                .sections
                .get(s)
                .is_some_and(|s| s.flags & elf::SHF_TLS != 0 && s.size != 0),
            _ => false,
        };
        if symbol.kind == STT_TLS.0 || (in_tls && symbol.kind != STT_SECTION.0) {
            return Err(Error::ThreadLocal { symbol: name() });
        }
        if symbol.kind == STT_GNU_IFUNC.0 {
            return Err(Error::Ifunc { symbol: name() });
        }
    }
    Ok(())
}

/// Gives COMMON symbols (C without -fno-common) a place, as the linker would.
fn place_commons(image: &mut Image<'_>) -> Result<(), Error> {
    let number = image.sections.len();
    let (mut size, mut align) = (0u64, 1u64);
    for symbol in image
        .symbols
        .iter_mut()
        .filter(|s| s.place == SymPlace::Common)
    {
        // st_value is the alignment there.
        let needs = symbol.value.max(1);
        let start = size.checked_next_multiple_of(needs);
        let end = start.and_then(|s| s.checked_add(symbol.size));
        let (Some(start), Some(end), true) = (start, end, needs.is_power_of_two()) else {
            return Err(Error::Malformed(format!(
                "the common symbol `{}` is impossible",
                symbol.name
            )));
        };
        (size, align) = (end, align.max(needs));
        symbol.value = start;
        symbol.place = SymPlace::Section(number);
    }
    if size != 0 {
        let section = Sec {
            name: ".bss.common".to_owned(),
            sh_type: elf::SHT_NOBITS,
            flags: elf::SHF_ALLOC | elf::SHF_WRITE,
            align,
            size,
            entsize: 0,
            link: 0,
            data: Cow::Borrowed(&[]),
            relas: Vec::new(),
        };
        check_section(&section)?;
        image.sections.push(section);
    }
    Ok(())
}

/// Reads the targets; one that the patch calls by its file's name is called so.
fn read_targets<'a>(targets: &[Target<'a>], meta: &Meta) -> Result<Vec<TargetElf<'a>>, Error> {
    let mut read: Vec<TargetElf<'a>> = Vec::new();
    for target in targets {
        let symbols = target.symbols;
        let mut target = TargetElf::parse(target.path, target.bytes, target.debug)?;
        if let Some(symbols) = symbols {
            target = target.with_symbols(symbols);
        }
        let called = |name: Option<&str>| meta.objects.iter().any(|o| o.name.as_deref() == name);
        let file = target.path.file_name().and_then(|n| n.to_str());
        if target.object.is_some() && !called(target.object.as_deref()) && called(file) {
            target.object = file.map(str::to_owned);
        }
        let same = |t: &&TargetElf<'_>| t.object == target.object && t.build_id == target.build_id;
        if let Some(first) = read.iter().find(same) {
            return Err(Error::DuplicateTarget {
                object: spoken(target.object.as_deref()),
                first: first.path.to_owned(),
                second: target.path.to_owned(),
            });
        }
        read.push(target);
    }
    Ok(read)
}

/// The targets of each object, and what the note says about them.
#[allow(clippy::type_complexity)]
fn match_objects<'t, 'a>(
    meta: &Meta,
    targets: &'t [TargetElf<'a>],
) -> Result<(Vec<Vec<&'t TargetElf<'a>>>, Vec<Vec<Build>>), Error> {
    let mut matched = Vec::new();
    let mut noted = Vec::new();
    for object in &meta.objects {
        let called = || spoken(object.name.as_deref());
        if object.funcs.is_empty() {
            return Err(Error::NoFuncs { object: called() });
        }
        let builds: Vec<&TargetElf<'a>> =
            targets.iter().filter(|t| t.object == object.name).collect();
        if builds.is_empty() {
            return Err(Error::NoTarget { object: called() });
        }
        let mut noted_builds = Vec::new();
        for target in &builds {
            let mut fingerprints = Vec::new();
            let mut seen = HashSet::new();
            for func in &object.funcs {
                let fingerprint = fingerprint(target, &func.old_name, func.sympos)?;
                if !seen.insert(fingerprint.svma) {
                    let symbol = func.old_name.clone();
                    return Err(Error::DuplicateFunc {
                        object: called(),
                        symbol,
                    });
                }
                fingerprints.push(fingerprint);
            }
            noted_builds.push(Build {
                build_id: target.build_id.to_vec(),
                fingerprints,
                symbols: Vec::new(),
            });
        }
        noted.push(noted_builds);
        matched.push(builds);
    }
    Ok((matched, noted))
}

/// The symbols of an object that the patch names: (name, sympos).
fn klp_symbols(image: &Image<'_>, names: &Names, object: Option<&str>) -> Vec<(String, u64)> {
    let livepatch = image
        .symbols
        .iter()
        .filter(|s| s.place == SymPlace::Livepatch);
    let mut symbols: Vec<(String, u64)> = livepatch
        .filter_map(|symbol| match klp_symbol(names, &symbol.name)? {
            Place::Livepatch {
                object: of,
                name,
                sympos,
            } if of.as_deref() == object => Some((name, sympos)),
            _ => None,
        })
        .collect();
    symbols.sort();
    symbols.dedup();
    symbols
}

/// Checks that every build has the symbols, and records where they are in those whose own tables do not say it.
fn record(
    symbols: &[(String, u64)],
    targets: &[&TargetElf<'_>],
    builds: &mut [Build],
) -> Result<(), Error> {
    for (name, sympos) in symbols {
        let mut kind = None;
        for (target, build) in targets.iter().zip(builds.iter_mut()) {
            let found = target.find(name, *sympos)?;
            let first = *kind.get_or_insert(found.kind);
            if first != found.kind || name.len() > usize::from(u16::MAX) {
                return Err(Error::ReferenceKind {
                    symbol: name.clone(),
                    object: spoken(target.object.as_deref()),
                    used: first.spoken(),
                    found: found.kind.spoken(),
                });
            }
            if target.recovered {
                build.symbols.push(Recovered {
                    name: name.clone(),
                    sympos: *sympos,
                    kind: found.kind,
                    svma: found.svma,
                    size: found.size,
                });
            }
        }
    }
    Ok(())
}

fn fingerprint(target: &TargetElf<'_>, name: &str, sympos: u64) -> Result<Fingerprint, Error> {
    let found = target.find(name, sympos)?;
    let object = || spoken(target.object.as_deref());
    let symbol = || name.to_owned();
    if found.kind != SymbolKind::Function {
        let kind = found.kind.spoken();
        return Err(Error::NotAFunction {
            object: object(),
            symbol: symbol(),
            kind,
        });
    }
    if found.size == 0 {
        return Err(Error::NoSize {
            object: object(),
            symbol: symbol(),
        });
    }
    let no_code = || Error::NoCode {
        object: object(),
        symbol: symbol(),
    };
    let code = target
        .bytes_at(found.svma, found.size)
        .ok_or_else(no_code)?;
    Ok(Fingerprint {
        svma: found.svma,
        size: found.size,
        sha256: Sha256::digest(code).into(),
    })
}

/// Which sections of the object go into the patch: what is loaded, the metadata, what is said of changes, and debug
/// information.
fn kept(section: &Sec<'_>) -> bool {
    let metadata = section.name == PATCH_SECTION;
    let debug = section.sh_type == elf::SHT_PROGBITS
        && !section.is_alloc()
        && section.name.starts_with(".debug_");
    let changes = !section.is_alloc() && section.name == changes::SECTION;
    is_loaded(section) || metadata || changes || (debug && section.name != SYMS_SECTION)
}

/// Symbols that a loaded section or the metadata refers to.
fn used_symbols(image: &Image<'_>, keep_section: &[bool]) -> Vec<bool> {
    let mut used = vec![false; image.symbols.len()];
    for (section, keep) in image.sections.iter().zip(keep_section) {
        if *keep && section.is_alloc() {
            for rela in &section.relas {
                if let Some(used) = used.get_mut(rela.symbol) {
                    *used = true;
                }
            }
        }
    }
    used
}

fn add_note(image: &mut Image<'_>, keep_section: &mut Vec<bool>, noted: &[Vec<Build>]) {
    let data = note::encode(noted);
    keep_section.resize(image.sections.len(), true);
    keep_section.push(true);
    image.sections.push(Sec {
        name: note::SECTION.to_owned(),
        sh_type: elf::SHT_NOTE,
        flags: 0,
        align: 4,
        size: data.len() as u64,
        entsize: 0,
        link: 0,
        data: Cow::Owned(data),
        relas: Vec::new(),
    });
}

fn kept_symbols(image: &Image<'_>, keep_section: &[bool], used: &[bool]) -> Vec<bool> {
    let kept = |(symbol, used): (&crate::elf::Sym, &bool)| match symbol.place {
        SymPlace::Section(section) => keep_section.get(section).copied().unwrap_or(false),
        SymPlace::Absolute => symbol.kind != STT_FILE.0 || !symbol.name.is_empty(),
        SymPlace::Undefined | SymPlace::Livepatch => *used,
        SymPlace::Common => false,
    };
    let mut keep: Vec<bool> = image.symbols.iter().zip(used).map(kept).collect();
    // An undefined local symbol without a name can only be the null symbol.
    for (keep, symbol) in keep.iter_mut().zip(&image.symbols) {
        let nothing = symbol.place == SymPlace::Undefined && symbol.name.is_empty();
        *keep &= !(nothing && symbol.kind == STT_NOTYPE.0);
    }
    keep
}
