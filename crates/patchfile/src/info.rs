//! `livegraft info`: what is in a patch, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::changes::{self, Source};
use crate::elf::Image;
use crate::read::spoken;
use crate::{Error, Patch, Place, counted, relocation_name};

/// What is in a patch. The field names are those of `livegraft info --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Version of the livegraft note.
    pub format_version: u32,
    /// SHA-256 of the file, in hexadecimal.
    pub digest: String,
    /// What the patch asks for and this livegraft does not do.
    pub unsupported: Option<String>,
    /// What of its source files the patch changes, if it was made of them.
    pub sources: Vec<Source>,
    /// Why that can't be read.
    pub unread: Option<String>,
    /// What it changes.
    pub objects: Vec<ObjectInfo>,
    /// What it brings.
    pub sections: Vec<SectionInfo>,
    /// Bytes of all sections together.
    pub size: u64,
    /// Names that are resolved as the patched object itself would.
    pub undefined: Vec<String>,
    /// Symbols of the patched objects: `object: name` or `object: name,sympos`.
    pub klp_symbols: Vec<String>,
    /// How often each relocation type occurs.
    pub relocations: BTreeMap<&'static str, usize>,
}

/// A `klp_object`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectInfo {
    /// `None` is the executable.
    pub name: Option<String>,
    /// Of the first build, in hexadecimal.
    pub build_id: String,
    /// The other builds that the patch fits.
    pub other_build_ids: Vec<String>,
    /// How many of the target's symbols it finds by addresses that were proven for the first build.
    pub recovered_symbols: usize,
    /// Its replaced functions.
    pub funcs: Vec<FuncInfo>,
}

/// A `klp_func`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FuncInfo {
    /// The function that is replaced.
    pub old_name: String,
    /// `old_sympos`.
    pub sympos: u64,
    /// Its address in the file of the first build; in JSON a string in hexadecimal, like all addresses.
    #[serde(serialize_with = "address")]
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The replacement.
    pub new_name: String,
    /// The replacement's size in bytes.
    pub new_size: u64,
}

/// A loaded section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionInfo {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// `r`, `rw` or `rx`.
    pub access: &'static str,
}

fn address<S: Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Info {
    /// Collects what is in a patch file.
    ///
    /// # Errors
    /// Those of [`Patch::parse`].
    pub fn read(bytes: &[u8]) -> Result<Info, Error> {
        let info = Info::new(&Patch::parse(bytes)?);
        let changes = Image::read(bytes).and_then(|image| changes::read(&image));
        Ok(match changes {
            Ok(sources) => Info { sources, ..info },
            Err(error) => Info {
                unread: Some(error.to_string()),
                ..info
            },
        })
    }

    /// The same without the instructions that differ.
    pub fn without_diffs(mut self) -> Info {
        for function in self.sources.iter_mut().flat_map(|s| &mut s.functions) {
            function.diff = None;
        }
        self
    }

    /// Collects what a patch itself says.
    pub fn new(patch: &Patch) -> Info {
        let objects = patch.objects.iter().map(|object| ObjectInfo {
            name: object.name.clone(),
            build_id: object
                .builds
                .first()
                .map_or(String::new(), |b| hex(&b.build_id)),
            other_build_ids: object
                .builds
                .iter()
                .skip(1)
                .map(|b| hex(&b.build_id))
                .collect(),
            recovered_symbols: object.builds.first().map_or(0, |b| b.symbols.len()),
            funcs: object
                .funcs
                .iter()
                .zip(object.builds.first().map_or(&[][..], |b| &b.fingerprints))
                .map(|(func, fingerprint)| {
                    let new = patch.symbols.get(func.new_func);
                    FuncInfo {
                        old_name: func.old_name.clone(),
                        sympos: func.old_sympos,
                        address: fingerprint.svma,
                        size: fingerprint.size,
                        new_name: new.map(|s| s.name.clone()).unwrap_or_default(),
                        new_size: new.map_or(0, |s| s.size),
                    }
                })
                .collect(),
        });
        let sections = patch
            .sections
            .iter()
            .filter(|s| s.size != 0)
            .map(|section| SectionInfo {
                name: section.name.clone(),
                size: section.size,
                access: match (section.write, section.exec) {
                    (true, _) => "rw",
                    (false, true) => "rx",
                    (false, false) => "r",
                },
            });
        let undefined = patch.symbols.iter().filter(|s| s.place == Place::Undefined);
        let mut klp_symbols: Vec<String> = patch
            .symbols
            .iter()
            .filter_map(|s| match &s.place {
                Place::Livepatch {
                    object,
                    name,
                    sympos: 0,
                } => Some(format!(
                    "{}: {name}",
                    object.as_deref().unwrap_or("executable")
                )),
                Place::Livepatch {
                    object,
                    name,
                    sympos,
                } => Some(format!(
                    "{}: {name},{sympos}",
                    object.as_deref().unwrap_or("executable")
                )),
                _ => None,
            })
            .collect();
        klp_symbols.sort();
        klp_symbols.dedup();
        let mut relocations = BTreeMap::new();
        for relocation in &patch.relocations {
            let count: &mut usize = relocations
                .entry(relocation_name(relocation.r_type))
                .or_default();
            *count = count.saturating_add(1);
        }
        Info {
            format_version: patch.format_version,
            digest: hex(&patch.digest),
            unsupported: patch.unsupported(),
            sources: Vec::new(),
            unread: None,
            objects: objects.collect(),
            sections: sections.collect(),
            size: patch
                .sections
                .iter()
                .fold(0, |sum, s| sum.saturating_add(s.size)),
            undefined: undefined.map(|s| s.name.clone()).collect(),
            klp_symbols,
            relocations,
        }
    }
}

/// The text of `livegraft info`.
impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |count| counted(count, "byte", "bytes");
        self.sources
            .iter()
            .try_for_each(|source| write!(f, "{source}"))?;
        if let Some(why) = &self.unread {
            writeln!(f, "what it changes is not shown: {why}")?;
        }
        for object in &self.objects {
            writeln!(
                f,
                "{}  build-id {}",
                spoken(object.name.as_deref()),
                object.build_id
            )?;
            for build_id in &object.other_build_ids {
                writeln!(f, "  or build-id {build_id}")?;
            }
            if object.recovered_symbols != 0 {
                let count = object.recovered_symbols;
                writeln!(f, "  {count} symbols by addresses that its build proved")?;
            }
            for func in &object.funcs {
                let sympos = match func.sympos {
                    0 => String::new(),
                    n => format!(",{n}"),
                };
                writeln!(
                    f,
                    "  {}{sympos} at {:#x} ({}) -> {} ({})",
                    func.old_name,
                    func.address,
                    bytes(func.size),
                    func.new_name,
                    bytes(func.new_size)
                )?;
            }
        }
        writeln!(f, "sections: {}", bytes(self.size))?;
        for section in &self.sections {
            writeln!(
                f,
                "  {:2} {:6} {}",
                section.access, section.size, section.name
            )?;
        }
        let list = |f: &mut fmt::Formatter<'_>, title: &str, names: &[String]| {
            if names.is_empty() {
                return Ok(());
            }
            writeln!(f, "{title}:")?;
            names.iter().try_for_each(|name| writeln!(f, "  {name}"))
        };
        list(f, "symbols of the target", &self.klp_symbols)?;
        list(f, "resolved as the target does", &self.undefined)?;
        if !self.relocations.is_empty() {
            writeln!(f, "relocations:")?;
            for (name, count) in &self.relocations {
                writeln!(f, "  {count:6} {name}")?;
            }
        }
        if let Some(sentence) = &self.unsupported {
            writeln!(f, "not loadable: {sentence}")?;
        }
        write!(f, "format {}, sha256 {}", self.format_version, self.digest)
    }
}
