//! The programs and libraries that a build has linked, with their symbols, and which of them is the one that runs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use object::read::elf::{ElfFile64, FileHeader};
use object::{Object, ObjectSection, SectionFlags, SectionKind};

use super::arguments::Language;
use super::record::Record;
use super::rustc::{is_for_the_build, static_libraries};
use super::site::Site;
use super::units::{Unit, absolute};

/// A program or library, as the linker has made it: with its symbols, whatever strip did to it later.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where the build put it, as the build saw it.
    pub path: PathBuf,
    /// Where it is now.
    pub file: PathBuf,
    /// The objects that were given to the linker, those of archives that the build made included, whether it took them
    /// or not; archives of other origin as they are. What is gone by now is missing.
    pub objects: Vec<PathBuf>,
    /// The linker itself has left out the symbol table (`-s`).
    pub stripped: bool,
    /// The linker has left out what nothing refers to, and has symbols for all else.
    pub collected: bool,
}

/// How a program was told to be the one that runs. What is less than `BuildId` is no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// The same file name, up to a version at its end.
    Name,
    /// The same loadable sections, by name and size.
    Layout,
    /// The same loadable sections, by content.
    Sections,
    /// The same build-id.
    BuildId,
}

/// A large program is read as a whole; what is larger than this is none.
const LARGEST: u64 = 4 << 30;

/// The program that is most like `target`, and how much.
pub(crate) fn find<'a>(programs: &'a [Program], target: &Path) -> Option<(&'a Program, Likeness)> {
    let data = read(target)?;
    let elf = ElfFile64::<object::Endianness>::parse(&*data).ok()?;
    let mut best: Option<(&Program, Likeness)> = None;
    for program in programs {
        if let Some(likeness) = like(program, target, &elf)
            && best.is_none_or(|(_, other)| likeness > other)
        {
            best = Some((program, likeness));
        }
    }
    best
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::metadata(path).ok()?;
    (metadata.is_file() && metadata.len() <= LARGEST)
        .then(|| fs::read(path).ok())
        .flatten()
}

type Elf<'a> = ElfFile64<'a, object::Endianness>;

fn like(program: &Program, target: &Path, elf: &Elf) -> Option<Likeness> {
    let data = read(&program.file)?;
    let own = Elf::parse(&*data).ok()?;
    let e_type = |elf: &Elf| elf.elf_header().e_type(elf.endian());
    if e_type(&own) != e_type(elf) {
        return None;
    }
    if let (Ok(Some(a)), Ok(Some(b))) = (own.build_id(), elf.build_id())
        && a == b
    {
        return Some(Likeness::BuildId);
    }
    match (loadable(&own), loadable(elf)) {
        (Some(a), Some(b)) if a == b => return Some(Likeness::Sections),
        (Some(a), Some(b)) => {
            let layout = |sections: &[(String, u64, Vec<u8>)]| -> Vec<(String, u64)> {
                sections
                    .iter()
                    .map(|(name, size, _)| (name.clone(), *size))
                    .collect()
            };
            if layout(&a) == layout(&b) {
                return Some(Likeness::Layout);
            }
        }
        _ => {}
    }
    // libfoo.so.1.2.3 is installed as such and linked as libfoo.so.1.2.3 or libfoo.so.
    let name = |path: &Path| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        name.split_once(".so")
            .map_or(name.clone(), |(start, _)| start.to_owned())
    };
    (name(&program.path) == name(target)).then_some(Likeness::Name)
}

/// Name, size and content of what is loaded, notes aside: the build-id is one.
fn loadable(elf: &Elf) -> Option<Vec<(String, u64, Vec<u8>)>> {
    let mut sections = Vec::new();
    for section in elf.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        if sh_flags.0 & object::elf::SHF_ALLOC.0 == 0 || section.kind() == SectionKind::Note {
            continue;
        }
        let name = section.name().ok()?.to_owned();
        sections.push((name, section.size(), section.data().ok()?.to_vec()));
    }
    Some(sections)
}

/// All programs of a build. `kept` holds copies of what strip has changed; `remade` the objects that were temporary
/// files of a call that also links.
pub(crate) fn programs(
    record: &Record,
    units: &[Unit],
    site: &Site,
    tree: &Path,
    kept: &Path,
    remade: &HashMap<(usize, usize), PathBuf>,
) -> Vec<Program> {
    let mut archives: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
    let mut programs: HashMap<PathBuf, (usize, Program)> = HashMap::new();
    for (number, link) in record
        .links
        .iter()
        .enumerate()
        .filter(|(_, link)| link.success)
    {
        let output = absolute(Path::new("/"), &link.output);
        let mut inputs: Vec<PathBuf> = link
            .inputs
            .iter()
            .map(|i| absolute(Path::new("/"), Path::new(i)))
            .collect();
        if link.archive {
            archives.entry(output).or_default().append(&mut inputs);
            continue;
        }
        // A program for the build itself.
        if link
            .driver
            .is_some_and(|call| is_for_the_build(&record.calls[call].arguments))
        {
            continue;
        }
        let is_crate = |unit: &&Unit| unit.language == Language::Rust;
        let present = |members: &Vec<PathBuf>| -> Vec<PathBuf> {
            let members = members.iter().map(|member| site.host(tree, member));
            members.filter(|member| member.is_file()).collect()
        };
        let mut temporary = (units.iter())
            .filter(|unit| Some(unit.call) == link.driver && unit.object.is_none())
            .filter(|unit| !is_crate(unit));
        let crates = units.iter().filter(is_crate);
        let mut objects: Vec<PathBuf> = crates
            .filter(|unit| {
                let library = |object: &PathBuf| inputs.contains(object);
                Some(unit.call) == link.driver || unit.object.as_ref().is_some_and(library)
            })
            .filter_map(|unit| remade.get(&(unit.call, unit.at)).cloned())
            .filter(|object| object.is_file())
            .collect();
        for input in inputs {
            let host = site.host(tree, &input);
            let crates = units.iter().filter(is_crate);
            let mut library = crates.filter(|unit| unit.object.as_ref() == Some(&input));
            if let Some(unit) = library.next() {
                // What the build has made of other languages is in the library of a crate.
                let call = &record.calls[unit.call];
                for library in static_libraries(&call.arguments) {
                    let members = archives.get(&absolute(&call.directory, &library));
                    objects.extend(members.into_iter().flat_map(&present));
                }
            } else if let Some(members) = archives.get(&input) {
                objects.extend(present(members));
            } else if host.is_file() {
                objects.push(host);
            } else if let Some(unit) = temporary.next() {
                objects.extend(remade.get(&(unit.call, unit.at)).cloned());
            }
        }
        let file = match &link.kept {
            Some(name) => kept.join(name),
            None => site.host(tree, &output),
        };
        if file.is_file() {
            let program = Program {
                path: output.clone(),
                file,
                objects,
                stripped: link.stripped,
                collected: link.collected,
            };
            programs.insert(output, (number, program));
        }
    }
    let mut programs: Vec<_> = programs.into_values().collect();
    programs.sort_by_key(|(number, _)| *number);
    programs.into_iter().map(|(_, program)| program).collect()
}
