//! From what `compare` extracted to a patch file: the klp structs are generated, and symbols named as they are in the
//! target.
//!
//! By their names alone they are found as `pack` finds those of a hand-written patch: nothing proves then that the target
//! was built from the original source. [`crate::patch`] brings the proof.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use livegraft_patchfile::changes::{self, Change, Source, Status};
use livegraft_patchfile::elf::{Image, Rela, Sec, Sym, SymPlace};
use livegraft_patchfile::{
    Error as PackError, Input, SymbolKind, Target, TargetElf, TargetSymbol, merge, pack,
    write_object,
};
use object::elf;

use crate::compare::{LOCALS_SECTION, REPLACED_SECTION};

/// R_X86_64_64.
const ABS64: u32 = 1;
const RECORD: u64 = 40;

/// Why no patch can be made of an extract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From packing.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The object says something impossible.
    #[error("the object is not one that `livegraft diff -o` has written ({0}); make it again")]
    Malformed(&'static str),
    /// Code of a hand-written patch and an extract in one patch.
    #[error(
        "an object with a KLP_PATCH can't be packed together with one that `livegraft diff -o` has written; make two patches"
    )]
    Mixed,
    /// An extract belongs to one target.
    #[error(
        "{count} targets were given, but what `livegraft diff -o` has written belongs to one; make a patch for each"
    )]
    Targets {
        /// How many.
        count: usize,
    },
    /// The target does not show a local symbol.
    #[error(
        "{target} has no symbol for the static `{symbol}` of {file}; give a target with its symbol table, or install its \
         debug symbols"
    )]
    Missing {
        /// The target.
        target: String,
        /// The symbol's name in the original object.
        symbol: String,
        /// Its source file.
        file: String,
    },
    /// The target has several.
    #[error(
        "{target} has {count} symbols that may be the static `{symbol}` of {file}; it can't be told which is meant"
    )]
    Ambiguous {
        /// The target.
        target: String,
        /// The symbol's name in the original object.
        symbol: String,
        /// Its source file.
        file: String,
        /// How many.
        count: usize,
    },
}

/// Whether an object is one that `compare::extract` has written.
pub fn is_extract(bytes: &[u8]) -> bool {
    Image::read(bytes).is_ok_and(|image| image.section_named(REPLACED_SECTION).is_some())
}

/// Makes a patch file of extracts for one target, whose symbols are found by their names.
///
/// # Errors
/// [`Error::Targets`] for none or several, [`Error::Missing`] and [`Error::Ambiguous`] for what the target's symbols do
/// not show, and what packing refuses.
pub fn emit_by_name(extracts: &[Input<'_>], targets: &[Target<'_>]) -> Result<Vec<u8>, Error> {
    let [target] = targets else {
        return Err(Error::Targets {
            count: targets.len(),
        });
    };
    let found = TargetElf::parse(target.path, target.bytes, target.debug)?;
    let name = found.object.clone();
    emit(
        extracts,
        (&[], &[]),
        &[*target],
        name.as_deref(),
        &mut |_, record| sympos(&found, record),
    )
}

/// Makes a patch file of extracts, and of whole `others` (with what is to be said of them), for the builds of one object. `object`: its name, `None` for the
/// executable. `naming` says which occurrence of its name in the targets a record of an extract (by number) means, 0 where
/// there is one.
///
/// # Errors
/// What packing refuses, and those of `naming`.
pub fn emit<E: From<Error>>(
    extracts: &[Input<'_>],
    (others, added): (&[Input<'_>], &[Source]),
    targets: &[Target<'_>],
    object: Option<&str>,
    naming: &mut dyn FnMut(usize, &Record) -> Result<u64, E>,
) -> Result<Vec<u8>, E> {
    let mut renamed = Vec::new();
    let (mut replaced_at, mut locals_at) = (Vec::new(), Vec::new());
    for (number, extract) in extracts.iter().enumerate() {
        let mut image = read(extract)?;
        if image.section_named(".livegraft.patch").is_some() {
            return Err(Error::Mixed.into());
        }
        for record in records(&image, REPLACED_SECTION)? {
            replaced_at.push(naming(number, &record)?);
        }
        for record in records(&image, LOCALS_SECTION)? {
            locals_at.push(naming(number, &record)?);
            // The same name may mean another symbol in each of them.
            if let Some(symbol) = image.symbols.get_mut(record.symbol)
                && extracts.len() > 1
            {
                symbol.name = format!("{}.livegraft.{number}", symbol.name);
            }
        }
        renamed.push(write(&image)?);
    }
    let renamed = extracts.iter().zip(&renamed);
    let renamed = renamed.map(|(e, bytes)| Input {
        path: e.path,
        bytes,
    });
    let inputs: Vec<Input<'_>> = renamed.chain(others.iter().copied()).collect();
    let merged = merge(&inputs).map_err(Error::Pack)?;
    let path = extracts.first().map_or(Path::new(""), |e| e.path);
    let mut image = read(&Input {
        path,
        bytes: &merged,
    })?;
    // The linker has joined the records in the order of the extracts.
    let replaced = records(&image, REPLACED_SECTION)?;
    let locals = records(&image, LOCALS_SECTION)?;
    if replaced.len() != replaced_at.len() || locals.len() != locals_at.len() {
        return Err(Error::Malformed("its records did not come through the linker").into());
    }
    let mut replaced: Vec<(Record, u64)> = replaced.into_iter().zip(replaced_at).collect();
    // A function that several objects define (COMDAT) is one in the target: the first new version is as good as any.
    let mut seen = BTreeSet::new();
    replaced.retain(|(record, sympos)| {
        record.file.is_some() || seen.insert((record.name.clone(), *sympos))
    });
    let locals: Vec<(Record, u64)> = locals.into_iter().zip(locals_at).collect();
    add_structs(&mut image, &replaced, &locals, object);
    let said = image.section_named(changes::SECTION);
    if let Some(said) = said.and_then(|number| image.sections.get_mut(number)) {
        said.data
            .to_mut()
            .extend_from_slice(&changes::section(added).data);
        said.size = said.data.len() as u64;
    }
    let bytes = write(&image)?;
    let input = Input {
        path,
        bytes: &bytes,
    };
    Ok(pack(&[input], targets).map_err(Error::Pack)?)
}

/// What is to be said of the object of a source file that is new: all its functions are.
pub fn whole(input: &Input<'_>) -> Option<Source> {
    let image = Image::read(input.bytes).ok()?;
    let defined = |s: &&Sym| s.kind == elf::STT_FUNC.0 && matches!(s.place, SymPlace::Section(_));
    let functions = image.symbols.iter().filter(defined).map(|symbol| Change {
        name: symbol.name.clone(),
        file: None,
        declared: None,
        global: symbol.bind != elf::STB_LOCAL.0,
        status: Status::New,
        why: vec!["its source file is new".to_owned()],
        old_size: None,
        new_size: Some(symbol.size),
        diff: None,
    });
    Some(Source {
        path: input.path.display().to_string(),
        functions: functions.collect(),
        allowed: Vec::new(),
    })
}

/// What an extract needs of its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Functions that are replaced.
    pub replaced: Vec<Record>,
    /// Static symbols that it refers to.
    pub locals: Vec<Record>,
    /// Names that are to be found in the target, in another extract or in a library.
    pub undefined: Vec<String>,
}

/// What an extract needs of its target.
///
/// # Errors
/// [`Error::Malformed`], and when it is no object file.
pub fn needs(extract: &Input<'_>) -> Result<Needs, Error> {
    let image = read(extract)?;
    let locals = records(&image, LOCALS_SECTION)?;
    let is_local = |number| locals.iter().any(|record| record.symbol == number);
    let undefined = image.symbols.iter().enumerate().filter(|(number, symbol)| {
        symbol.place == SymPlace::Undefined && !symbol.name.is_empty() && !is_local(*number)
    });
    Ok(Needs {
        replaced: records(&image, REPLACED_SECTION)?,
        undefined: undefined.map(|(_, symbol)| symbol.name.clone()).collect(),
        locals,
    })
}

fn read<'a>(input: &Input<'a>) -> Result<Image<'a>, Error> {
    Image::read(input.bytes).map_err(|e| {
        let why = e.to_string();
        Error::Pack(PackError::InputNotObject {
            path: input.path.to_owned(),
            why,
        })
    })
}

fn write(image: &Image<'_>) -> Result<Vec<u8>, Error> {
    // The writer makes its own symbol, string and relocation tables.
    let tables = [
        elf::SHT_SYMTAB.0,
        elf::SHT_STRTAB.0,
        elf::SHT_RELA.0,
        elf::SHT_GROUP.0,
        elf::SHT_NULL.0,
    ];
    let sections: Vec<bool> = image
        .sections
        .iter()
        .map(|s| !tables.contains(&s.sh_type))
        .collect();
    let symbols: Vec<bool> = image
        .symbols
        .iter()
        .map(|s| match s.place {
            SymPlace::Section(section) => sections.get(section).copied().unwrap_or(false),
            _ => true,
        })
        .collect();
    let objects = vec![None; image.symbols.len()];
    Ok(write_object(image, &sections, &symbols, &objects)?)
}

/// What an extract says of a symbol of the original that it replaces or refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The symbol in the extract.
    symbol: usize,
    /// Its name in the original.
    pub name: String,
    /// The source file of a static one, as STT_FILE has it.
    pub file: Option<String>,
    /// `st_size` in the original object.
    pub size: u64,
    /// `st_type`.
    pub kind: u8,
    /// 0, or which of the file's local symbols of this name and type it is, from 1 on.
    pub occurrence: usize,
}

fn records(image: &Image<'_>, name: &str) -> Result<Vec<Record>, Error> {
    let Some(section) = image
        .section_named(name)
        .and_then(|n| image.sections.get(n))
    else {
        return Ok(Vec::new());
    };
    let pointer = |at: u64| {
        section
            .relas
            .iter()
            .find(|r| r.offset == at && r.r_type == ABS64)
    };
    let text = |at: u64| -> Option<String> {
        let (section, offset) = image.points_to(pointer(at)?)?;
        let data = image
            .sections
            .get(section)?
            .data
            .get(usize::try_from(offset).ok()?..)?;
        let end = data.iter().take(1 << 16).position(|&b| b == 0)?;
        Some(std::str::from_utf8(data.get(..end)?).ok()?.to_owned())
    };
    let mut records = Vec::new();
    for (number, record) in section.data.chunks_exact(RECORD as usize).enumerate() {
        let at = (number as u64).saturating_mul(RECORD);
        let word = |from: usize| {
            record
                .get(from..)
                .and_then(|r| r.first_chunk())
                .map(|b| u32::from_le_bytes(*b))
        };
        let size = record
            .get(24..)
            .and_then(|r| r.first_chunk())
            .map(|b| u64::from_le_bytes(*b));
        let read = || {
            Some(Record {
                symbol: pointer(at)?.symbol,
                name: text(at.checked_add(8)?)?,
                file: text(at.checked_add(16)?),
                size: size?,
                kind: u8::try_from(word(32)?).ok()?,
                occurrence: word(36)? as usize,
            })
        };
        records.push(read().ok_or(Error::Malformed("a record of a symbol is incomplete"))?);
    }
    Ok(records)
}

/// Which occurrence of its name in the target a record means.
fn sympos(target: &TargetElf<'_>, record: &Record) -> Result<u64, Error> {
    let Some(file) = &record.file else {
        return Ok(0);
    };
    let all = target.occurrences(&record.name);
    let base = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let same_kind = |kind: SymbolKind| match elf::SymbolType(record.kind) {
        elf::STT_FUNC => kind == SymbolKind::Function,
        elf::STT_TLS => kind == SymbolKind::ThreadLocal,
        elf::STT_OBJECT => kind == SymbolKind::Variable,
        _ => false,
    };
    let fits = |s: &TargetSymbol<'_>| {
        // Code may have another size: it is compiled with other sections.
        let size = record.kind == elf::STT_FUNC.0 || s.size == record.size;
        // What is compiled when the program is linked (LTO) has no source file.
        let unknown = |f: &str| f.is_empty() || f == "<artificial>";
        let of_file = s
            .file
            .is_none_or(|f| unknown(f) || unknown(file) || base(f) == base(file));
        !s.global && same_kind(s.kind) && size && of_file
    };
    let found: Vec<usize> = all
        .iter()
        .enumerate()
        .filter(|(_, s)| fits(s))
        .map(|(n, _)| n)
        .collect();
    let names = || {
        (
            target.path.display().to_string(),
            record.name.clone(),
            file.clone(),
        )
    };
    let index = match (found.as_slice(), record.occurrence) {
        ([], _) => {
            let (target, symbol, file) = names();
            return Err(Error::Missing {
                target,
                symbol,
                file,
            });
        }
        ([one], 0) => *one,
        (several, occurrence) => {
            let chosen = occurrence.checked_sub(1).and_then(|n| several.get(n));
            *chosen.ok_or_else(|| {
                let (target, symbol, file) = names();
                Error::Ambiguous {
                    target,
                    symbol,
                    file,
                    count: several.len(),
                }
            })?
        }
    };
    Ok(if all.len() == 1 {
        0
    } else {
        (index as u64).saturating_add(1)
    })
}

/// A section that is being made, with its symbol.
struct Made {
    data: Vec<u8>,
    relas: Vec<Rela>,
    symbol: usize,
}

impl Made {
    fn pointer(&mut self, symbol: usize, addend: u64) {
        let offset = self.data.len() as u64;
        self.relas.push(Rela {
            offset,
            r_type: ABS64,
            symbol,
            addend: addend as i64,
            via: 0,
        });
        self.number(0);
    }

    fn number(&mut self, value: u64) {
        self.data.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) -> u64 {
        let at = self.data.len() as u64;
        self.data.extend_from_slice(text.as_bytes());
        self.data.push(0);
        at
    }
}

/// What `KLP_PATCH` and `KLP_SYM` would have left in a hand-written patch: see include/livepatch.h.
fn add_structs(
    image: &mut Image<'_>,
    replaced: &[(Record, u64)],
    locals: &[(Record, u64)],
    object: Option<&str>,
) {
    let names = [
        ".rodata.klp",
        ".data.klp",
        ".livegraft.patch",
        ".livegraft.syms",
    ];
    let first = image.sections.len();
    let [mut strings, mut structs, mut patch, mut syms] = [0, 1, 2, 3].map(|n: usize| {
        image.symbols.push(Sym {
            name: String::new(),
            bind: elf::STB_LOCAL.0,
            kind: elf::STT_SECTION.0,
            other: 0,
            place: SymPlace::Section(first.saturating_add(n)),
            value: 0,
            size: 0,
        });
        Made {
            data: Vec::new(),
            relas: Vec::new(),
            symbol: image.symbols.len().saturating_sub(1),
        }
    });
    let object = object.map(|name| strings.text(name));
    let own = structs.symbol;
    // struct klp_patch, and from 24 on two struct klp_object, from 120 on the struct klp_funcs.
    structs.pointer(own, 24);
    structs.number(0);
    structs.number(0);
    match object {
        Some(at) => structs.pointer(strings.symbol, at),
        None => structs.number(0),
    }
    structs.pointer(own, 120);
    for _ in 0..10 {
        structs.number(0);
    }
    for (record, sympos) in replaced {
        let name = strings.text(&record.name);
        structs.pointer(strings.symbol, name);
        structs.pointer(record.symbol, 0);
        structs.number(*sympos);
        structs.number(0);
    }
    for _ in 0..4 {
        structs.number(0);
    }
    patch.pointer(own, 0);
    for (record, sympos) in locals {
        let name = strings.text(&record.name);
        syms.pointer(record.symbol, 0);
        syms.pointer(strings.symbol, name);
        match object {
            Some(at) => syms.pointer(strings.symbol, at),
            None => syms.number(0),
        }
        syms.number(*sympos);
    }
    for (name, made) in names.into_iter().zip([strings, structs, patch, syms]) {
        let write = if name == ".rodata.klp" {
            0
        } else {
            elf::SHF_WRITE.0
        };
        image.sections.push(Sec {
            name: name.to_owned(),
            sh_type: elf::SHT_PROGBITS.0,
            flags: elf::SHF_ALLOC.0 | write,
            align: 8,
            size: made.data.len() as u64,
            entsize: 0,
            link: 0,
            data: Cow::Owned(made.data),
            relas: made.relas,
        });
    }
}
