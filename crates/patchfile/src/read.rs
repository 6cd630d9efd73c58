//! `Patch::parse`: from bytes to a [`Patch`] in which every index and range is valid.

use std::collections::HashSet;
use std::sync::Arc;

use object::elf::{
    STB_GNU_UNIQUE, STB_WEAK, STT_FUNC, STT_GNU_IFUNC, STT_OBJECT, STT_TLS, STV_DEFAULT,
};
use sha2::{Digest as _, Sha256};

use crate::elf::{self, Image, Sec, SymPlace};
use crate::meta::{Meta, MetaObject, PATCH_SECTION, Reader, SYMS_SECTION};
use crate::relocation::{is_tls, relocation_name, relocation_width};
use crate::{
    Build, EXECUTABLE, Error, Func, Object, Patch, Place, Relocation, Section, Symbol, note,
};

/// All sections of a patch together; the loader places them within reach of 32-bit displacements.
const MAX_SIZE: u64 = 256 << 20;
/// SHN_LIVEPATCH symbols are called `.klp.sym.<object>.<symbol>,<sympos>`.
pub(crate) const SYM_PREFIX: &str = ".klp.sym.";
/// Sections with SHF_RELA_LIVEPATCH are called `.klp.rela.<object>.<section>`.
pub(crate) const RELA_PREFIX: &str = ".klp.rela.";

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed(why.into())
}

impl Patch {
    /// Reads a patch file and checks all of it.
    ///
    /// # Errors
    /// [`Error::NotElf`], [`Error::Truncated`], [`Error::NotAPatch`], [`Error::Corrupted`] (any changed byte),
    /// [`Error::Version`], and for a file whose checksum is right but whose content is not, what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Patch, Error> {
        let (format_version, noted) = note::decode(bytes)?;
        let image = Image::read(bytes)?;
        let meta = Reader::new(&image).meta()?;
        if meta.objects.len() != noted.len() {
            return Err(malformed("its note does not belong to its klp structs"));
        }
        let (sections, loaded) = sections(&image)?;
        let names = object_names(&meta)?;
        let symbols = symbols(&image, &loaded, &sections, &names)?;
        let relocations = relocations(&image, &loaded, &sections, &symbols, &names)?;
        let mut objects = Vec::new();
        for (object, noted) in meta.objects.into_iter().zip(noted) {
            check_builds(&noted, &object)?;
            let mut funcs = Vec::new();
            for func in object.funcs {
                let new_func = func.new_symbol;
                let found = symbols.get(new_func).filter(|s| s.func).map(|s| &s.place);
                let in_code = match found {
                    Some(Place::Section(s, offset)) => {
                        sections.get(*s).is_some_and(|s| s.exec && *offset < s.size)
                    }
                    _ => false,
                };
                if !in_code {
                    return Err(Error::NewFuncNotFunction {
                        func: func.old_name,
                    });
                }
                funcs.push(Func {
                    old_name: func.old_name,
                    old_sympos: func.sympos,
                    immediate: func.immediate,
                    new_func,
                });
            }
            objects.push(Object {
                name: object.name,
                builds: noted,
                funcs,
                callbacks: object.callbacks,
            });
        }
        Ok(Patch {
            format_version,
            digest: Sha256::digest(bytes).into(),
            replace: meta.replace,
            immediate: meta.immediate,
            states: meta.states,
            objects,
            sections,
            symbols,
            relocations,
        })
    }

    /// One sentence about what the patch asks for and this version of livegraft does not do yet.
    pub fn unsupported(&self) -> Option<String> {
        let objects = self.objects.iter().map(|o| {
            let immediate = o
                .funcs
                .iter()
                .find(|f| f.immediate)
                .map(|f| f.old_name.as_str());
            (o.name.as_deref(), o.callbacks.first().copied(), immediate)
        });
        unsupported(
            self.replace,
            self.immediate,
            !self.states.is_empty(),
            objects,
        )
    }
}

/// How the executable or a library is called in messages.
pub(crate) fn spoken(object: Option<&str>) -> String {
    object.map_or_else(|| "the executable".to_owned(), |name| format!("`{name}`"))
}

/// See [`Patch::unsupported`]; objects are (name, a callback, an immediate func).
pub(crate) fn unsupported<'a>(
    replace: bool,
    immediate: bool,
    states: bool,
    objects: impl Iterator<Item = (Option<&'a str>, Option<&'a str>, Option<&'a str>)>,
) -> Option<String> {
    let sentence = |what: &str| {
        Some(format!(
            "the patch sets {what}, which is not supported yet; leave it out"
        ))
    };
    if replace {
        return sentence("klp_patch.replace");
    }
    if immediate {
        return sentence("klp_patch.immediate");
    }
    if states {
        return sentence("klp_patch.states");
    }
    for (object, callback, immediate) in objects {
        let object = spoken(object);
        if let Some(callback) = callback {
            return sentence(&format!("the callback {callback} for {object}"));
        }
        if let Some(func) = immediate {
            return sentence(&format!("klp_func.immediate for `{func}` in {object}"));
        }
    }
    None
}

fn check_builds(builds: &[Build], object: &MetaObject) -> Result<(), Error> {
    let spoken = || spoken(object.name.as_deref());
    if object.funcs.is_empty() {
        return Err(Error::NoFuncs { object: spoken() });
    }
    if builds.is_empty() {
        return Err(malformed("an object has no build"));
    }
    let mut ids = HashSet::new();
    for build in builds {
        if object.funcs.len() != build.fingerprints.len() {
            return Err(malformed("its note does not belong to its klp structs"));
        }
        if build.build_id.is_empty() {
            return Err(malformed("an object has no build-id"));
        }
        if !ids.insert(&build.build_id) {
            return Err(malformed("two builds of an object have the same build-id"));
        }
        let mut seen = HashSet::new();
        for (fingerprint, func) in build.fingerprints.iter().zip(&object.funcs) {
            check_range(fingerprint.svma, fingerprint.size, &func.old_name)?;
            if fingerprint.size == 0 {
                return Err(malformed(format!("`{}` has no code", func.old_name)));
            }
            if !seen.insert(fingerprint.svma) {
                let symbol = func.old_name.clone();
                let object = spoken();
                return Err(Error::DuplicateFunc { object, symbol });
            }
        }
        let mut named = HashSet::new();
        for symbol in &build.symbols {
            check_range(symbol.svma, symbol.size, &symbol.name)?;
            if symbol.name.is_empty() || !named.insert((&symbol.name, symbol.sympos)) {
                return Err(malformed("its note names a symbol twice, or none"));
            }
        }
    }
    Ok(())
}

fn check_range(svma: u64, size: u64, name: &str) -> Result<(), Error> {
    match svma.checked_add(size) {
        Some(_) => Ok(()),
        None => Err(malformed(format!("the range of `{name}` is impossible"))),
    }
}

/// Whether a section is brought into the target: all that the compiler allocates, but no notes and no metadata.
pub(crate) fn is_loaded(section: &Sec<'_>) -> bool {
    section.is_alloc()
        && section.sh_type != elf::SHT_NOTE
        && section.sh_type != elf::SHT_RELA
        && section.name != PATCH_SECTION
        && section.name != SYMS_SECTION
}

/// Whether a loaded section is one that can be loaded.
pub(crate) fn check_section(section: &Sec<'_>) -> Result<(), Error> {
    let name = || section.name.clone();
    let runs_code = [
        ".init_array",
        ".fini_array",
        ".preinit_array",
        ".ctors",
        ".dtors",
    ];
    let is = |prefix: &str| {
        section
            .name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if section.size != 0
        && (matches!(section.sh_type, 14..=16)
            || runs_code.into_iter().any(is)
            || section.name == ".init"
            || section.name == ".fini")
    {
        return Err(Error::Constructors { section: name() });
    }
    let known = [
        elf::SHT_PROGBITS,
        elf::SHT_NOBITS,
        elf::SHT_X86_64_UNWIND,
        14,
        15,
        16,
    ];
    if !known.contains(&section.sh_type) {
        let sh_type = section.sh_type;
        return Err(malformed(format!(
            "section `{}` has the unknown type {sh_type:#x}",
            name()
        )));
    }
    if section.flags & elf::SHF_WRITE != 0 && section.flags & elf::SHF_EXEC != 0 {
        return Err(Error::WriteExec { section: name() });
    }
    if !section.align.is_power_of_two() {
        return Err(malformed(format!(
            "the alignment of section `{}` is impossible",
            name()
        )));
    }
    if section.align > 4096 {
        return Err(Error::Alignment {
            section: name(),
            align: section.align,
        });
    }
    Ok(())
}

/// The loaded sections, and for each section of the file its number among them.
type Loaded = Vec<Option<usize>>;

fn sections(image: &Image<'_>) -> Result<(Vec<Section>, Loaded), Error> {
    let mut sections = Vec::new();
    let mut loaded = Vec::new();
    let mut total = 0u64;
    for section in &image.sections {
        if !is_loaded(section) {
            loaded.push(None);
            continue;
        }
        check_section(section)?;
        if section.flags & elf::SHF_TLS != 0 {
            return Err(Error::ThreadLocal {
                symbol: section.name.clone(),
            });
        }
        total = total
            .saturating_add(section.size)
            .saturating_add(section.align);
        if total > MAX_SIZE {
            return Err(malformed("its sections are larger than 256 MiB"));
        }
        if section.sh_type != elf::SHT_NOBITS && section.data.len() as u64 != section.size {
            return Err(Error::Truncated);
        }
        loaded.push(Some(sections.len()));
        sections.push(Section {
            name: section.name.clone(),
            write: section.flags & elf::SHF_WRITE != 0,
            exec: section.flags & elf::SHF_EXEC != 0,
            align: section.align,
            size: section.size,
            data: Arc::from(&*section.data),
        });
    }
    Ok((sections, loaded))
}

/// The objects of the patch by the name that they have in `.klp.sym.` and `.klp.rela.`, longest first, so that a name
/// with dots in it is found whole.
pub(crate) type Names = Vec<(String, Option<String>)>;

pub(crate) fn object_names(meta: &Meta) -> Result<Names, Error> {
    let mut names: Names = Vec::new();
    let mut seen = HashSet::new();
    for object in &meta.objects {
        let name = object.name.clone();
        if name.as_deref() == Some(EXECUTABLE) {
            return Err(Error::ReservedObject {
                object: EXECUTABLE.to_owned(),
            });
        }
        if !seen.insert(name.clone()) {
            return Err(Error::DuplicateObject {
                object: spoken(name.as_deref()),
            });
        }
        names.push((name.clone().unwrap_or_else(|| EXECUTABLE.to_owned()), name));
    }
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    Ok(names)
}

/// Splits `<object>.<rest>`.
fn split_object<'n>(names: &Names, text: &'n str) -> Option<(Option<String>, &'n str)> {
    names.iter().find_map(|(spelled, name)| {
        let rest = text.strip_prefix(spelled.as_str())?.strip_prefix('.')?;
        (!rest.is_empty()).then(|| (name.clone(), rest))
    })
}

/// Reads a `.klp.sym.` name.
pub(crate) fn klp_symbol(names: &Names, name: &str) -> Option<Place> {
    let (object, rest) = split_object(names, name.strip_prefix(SYM_PREFIX)?)?;
    let (symbol, sympos) = rest.rsplit_once(',')?;
    if symbol.is_empty() || !sympos.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Place::Livepatch {
        object,
        name: symbol.to_owned(),
        sympos: sympos.parse().ok()?,
    })
}

fn symbols(
    image: &Image<'_>,
    loaded: &Loaded,
    sections: &[Section],
    names: &Names,
) -> Result<Vec<Symbol>, Error> {
    let mut symbols = Vec::new();
    for (number, symbol) in image.symbols.iter().enumerate() {
        let named = || format!("symbol {number} `{}`", symbol.name);
        let tls = symbol.kind == STT_TLS.0;
        let place = match symbol.place {
            SymPlace::Undefined if number == 0 => Place::Absolute(0),
            SymPlace::Undefined if symbol.name.is_empty() => {
                return Err(malformed(format!("{} has no name", named())));
            }
            SymPlace::Undefined => Place::Undefined,
            SymPlace::Absolute => Place::Absolute(symbol.value),
            SymPlace::Common => return Err(malformed(format!("{} has no section", named()))),
            SymPlace::Livepatch => klp_symbol(names, &symbol.name)
                .ok_or_else(|| malformed(format!("{} names no object of the patch", named())))?,
            SymPlace::Section(section) => match loaded.get(section).copied().flatten() {
                None => Place::NotLoaded,
                Some(section) => {
                    let size = sections.get(section).map_or(0, |s| s.size);
                    let end = symbol.value.checked_add(symbol.size);
                    if end.is_none_or(|end| end > size) {
                        return Err(malformed(format!("{} is not in its section", named())));
                    }
                    if tls {
                        return Err(Error::ThreadLocal {
                            symbol: symbol.name.clone(),
                        });
                    }
                    if symbol.kind == STT_GNU_IFUNC.0 {
                        return Err(Error::Ifunc {
                            symbol: symbol.name.clone(),
                        });
                    }
                    Place::Section(section, symbol.value)
                }
            },
        };
        symbols.push(Symbol {
            name: symbol.name.clone(),
            place,
            size: symbol.size,
            weak: symbol.bind == STB_WEAK.0,
            shared: [STB_WEAK.0, STB_GNU_UNIQUE.0].contains(&symbol.bind)
                && symbol.kind == STT_OBJECT.0
                && symbol.other & 3 == STV_DEFAULT.0,
            func: symbol.kind == STT_FUNC.0,
            tls,
        });
    }
    Ok(symbols)
}

fn relocations(
    image: &Image<'_>,
    loaded: &Loaded,
    sections: &[Section],
    symbols: &[Symbol],
    names: &Names,
) -> Result<Vec<Relocation>, Error> {
    let mut relocations = Vec::new();
    for (number, from) in image.sections.iter().enumerate() {
        let Some(section) = loaded.get(number).copied().flatten() else {
            continue;
        };
        let Some(to) = sections.get(section) else {
            continue;
        };
        for rela in &from.relas {
            let name = relocation_name(rela.r_type);
            let Some(width) = relocation_width(rela.r_type) else {
                let section = to.name.clone();
                return Err(Error::Relocation {
                    section,
                    name,
                    r_type: rela.r_type,
                });
            };
            let at = || format!("the {name} at {:#x} in section `{}`", rela.offset, to.name);
            let end = rela.offset.checked_add(width);
            if end.is_none_or(|end| end > to.data.len() as u64) {
                return Err(malformed(format!("{} lies outside", at())));
            }
            let Some(symbol) = symbols.get(rela.symbol) else {
                return Err(malformed(format!("{} names no symbol", at())));
            };
            let via = image.sections.get(rela.via);
            let klp = via.is_some_and(|v| v.flags & elf::SHF_RELA_LIVEPATCH != 0);
            match &symbol.place {
                Place::NotLoaded => {
                    return Err(malformed(format!("{} refers to what is not loaded", at())));
                }
                Place::Livepatch { object, .. } if klp => {
                    let named = via
                        .and_then(|v| v.name.strip_prefix(RELA_PREFIX))
                        .and_then(|rest| split_object(names, rest));
                    if named.is_none_or(|(named, _)| named != *object) {
                        return Err(malformed(format!("{} is listed for another object", at())));
                    }
                }
                Place::Livepatch { .. } => {
                    return Err(malformed(format!("{} is not in a .klp.rela section", at())));
                }
                _ if klp => {
                    return Err(malformed(format!("{} is in a .klp.rela section", at())));
                }
                _ => {}
            }
            if symbol.tls != is_tls(rela.r_type) {
                return Err(malformed(format!(
                    "{} does not fit symbol `{}`",
                    at(),
                    symbol.name
                )));
            }
            relocations.push(Relocation {
                section,
                offset: rela.offset,
                r_type: rela.r_type,
                symbol: rela.symbol,
                addend: rela.addend,
            });
        }
    }
    Ok(relocations)
}
