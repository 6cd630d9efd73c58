//! Where the symbols of a build's objects are in the target.

use std::collections::HashMap;

use livegraft_patchfile::{Fingerprint, SymbolKind, TargetSymbol};
use object::elf;
use sha2::{Digest as _, Sha256};

use super::linked::Linked;
use super::relocatable::{Kind, Place, Relocatable, Symbol};
use super::system::{Fact, System};
use super::{Object, Refusal, explain};

/// Proof that objects are what a target was linked from, and where in it they are.
pub struct Placement<'a> {
    target: Linked<'a>,
    objects: Vec<Relocatable<'a>>,
    /// Object, section.
    states: Vec<Vec<State>>,
    names: HashMap<&'a [u8], Known>,
    pieces: HashMap<(u32, u32), u64>,
    share: Share,
}

/// A function or variable of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Its address in the file's own numbering; for thread-local variables the offset in the TLS block.
    pub svma: u64,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: SymbolKind,
}

/// How much of the objects' code was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of code in the objects.
    pub code: u64,
    /// Bytes of it whose place is proven.
    pub placed: u64,
    /// Bytes of copies of inline functions and templates that the linker left out.
    pub discarded: u64,
}

/// What is known of a global name.
#[derive(Clone, Copy)]
struct Known {
    fact: Option<Fact>,
    /// More than one object defines it.
    several: bool,
    /// The definition that is there.
    kept: Option<Located>,
}

/// What is known of a section.
#[derive(Debug, Clone)]
enum State {
    At(u64),
    Discarded,
    Absent(String),
    Ambiguous(Vec<u64>),
    TooSmall,
    Unreferenced,
    Unknown(u32),
    /// Another (object, section) is there too.
    Folded(u32, u32, u64),
    /// Not in the program, or only in pieces.
    Other,
}

/// Finds the objects of a build in a target, of which nothing but what is loaded is used.
///
/// # Errors
/// What is damaged; what is in the target but differs from what was built. Symbols that were not found, or more than
/// once, are refused when they are asked for.
pub fn objects<'a>(target: &'a [u8], objects: &[Object<'a>]) -> Result<Placement<'a>, Refusal> {
    let target = Linked::read("the target", target)?;
    let objects: Vec<Relocatable<'a>> = objects
        .iter()
        .map(Relocatable::read)
        .collect::<Result<_, _>>()?;
    let system = System::solve(&target, &objects)?;
    // A few functions may be in any program by chance, and lead anywhere.
    if let Some(broken) = &system.broken
        && (found(&system) > 4 || explain::is_like(&system, broken.part, broken.base))
        && let Some(refusal) = explain::at(&system, broken.part, (broken.base, 0))
    {
        return Err(refusal);
    }
    if system.broken.is_some() {
        let objects = objects.len();
        return Err(Refusal::WrongProgram { objects });
    }
    let folded = folded(&system);
    let missing = missing(&system)?;
    let mut share = Share::default();
    let mut states: Vec<Vec<State>> = objects
        .iter()
        .map(|object| vec![State::Other; object.sections.len()])
        .collect();
    for (number, part) in (0u32..).zip(&system.parts) {
        let (Some(section), Some(state)) = (
            system.section(part),
            states
                .get_mut(part.object as usize)
                .and_then(|object| object.get_mut(part.section as usize)),
        ) else {
            continue;
        };
        *state = match (part.base, part.candidates.as_slice()) {
            (Some(base), _) => match folded.get(&number) {
                Some(&(object, section)) => State::Folded(object, section, base),
                None => State::At(base),
            },
            _ if part.discarded => State::Discarded,
            _ if section.unknown.is_some() => State::Unknown(section.unknown.unwrap_or(0)),
            (None, []) if part.crowded => State::TooSmall,
            (None, []) if section.kind != Kind::Code => State::Unreferenced,
            (None, []) if section.fixed().all(|fixed| fixed.len() < 8) => State::TooSmall,
            (None, []) => State::Absent(missing.get(&number).cloned().unwrap_or_default()),
            (None, [_]) => State::TooSmall,
            (None, several) => State::Ambiguous(several.to_vec()),
        };
        if section.kind == Kind::Code {
            share.code = share.code.saturating_add(section.size);
            match state {
                State::At(_) | State::Folded(..) => {
                    share.placed = share.placed.saturating_add(section.size);
                }
                State::Discarded => share.discarded = share.discarded.saturating_add(section.size),
                _ => {}
            }
        }
    }
    if share.placed == 0 {
        return Err(Refusal::WrongProgram {
            objects: objects.len(),
        });
    }
    let mut names: HashMap<&[u8], Known> = HashMap::new();
    for (number, object) in (0u32..).zip(&objects) {
        for (at, symbol) in object.symbols.iter().enumerate() {
            if let Some(name) = system.name_of(number, at) {
                let known = names.entry(symbol.name).or_insert(Known {
                    fact: name.fact,
                    several: name.definitions.len() > 1,
                    kept: None,
                });
                let state = match symbol.place {
                    Place::Section(section) => states
                        .get(number as usize)
                        .and_then(|sections| sections.get(section as usize)),
                    _ => None,
                };
                if let (Some(State::At(base)), Some(Fact::Address(svma))) = (state, name.fact)
                    && base.wrapping_add(symbol.value) == svma
                {
                    known.kept = Some(Located {
                        svma,
                        size: symbol.size,
                        kind: kind(symbol),
                    });
                }
            }
        }
    }
    let pieces = system.pieces;
    Ok(Placement {
        target,
        objects,
        states,
        names,
        pieces,
        share,
    })
}

/// How many tenths of the code were found.
fn found(system: &System<'_, '_>) -> u64 {
    let (mut placed, mut all) = (0u64, 0u64);
    for part in &system.parts {
        if let Some(section) = system.section(part).filter(|s| s.kind == Kind::Code) {
            all = all.saturating_add(section.size);
            if part.base.is_some() {
                placed = placed.saturating_add(section.size);
            }
        }
    }
    placed.saturating_mul(10).checked_div(all).unwrap_or(0)
}

/// Code and variables that lie where others lie: (object, section) of the other. Constants may.
fn folded(system: &System<'_, '_>) -> HashMap<u32, (u32, u32)> {
    let mut code: Vec<(u64, u64, u32)> = Vec::new();
    for (number, part) in (0u32..).zip(&system.parts) {
        if let (Some(base), Some(section)) = (part.base, system.section(part))
            && (section.kind == Kind::Code
                || section.write && matches!(section.kind, Kind::Data | Kind::Zero))
        {
            code.push((base, base.saturating_add(section.size), number));
        }
    }
    code.sort_unstable();
    let mut folded = HashMap::new();
    let mut before: Option<(u64, u32)> = None;
    for (base, end, number) in code {
        if let Some((last, other)) = before.filter(|(last, _)| base < *last) {
            let of = |number: u32| {
                let part = system.parts.get(number as usize)?;
                Some((part, system.section(part)?.comdat))
            };
            if let (Some((a, a_group)), Some((b, b_group))) = (of(number), of(other))
                && (a_group.is_none() || a_group != b_group)
            {
                folded.insert(number, (b.object, b.section));
                folded.entry(other).or_insert((a.object, a.section));
            }
            if end <= last {
                continue;
            }
        }
        before = Some((end, number));
    }
    folded
}

/// Code that was not found. What is not there any more gets a clause that says so; what is there, but not as it was
/// built, is an error.
fn missing(system: &System<'_, '_>) -> Result<HashMap<u32, String>, Refusal> {
    let mut missing = Vec::new();
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for (number, part) in (0u32..).zip(&system.parts) {
        let Some(section) = system.section(part).filter(|s| s.kind == Kind::Code) else {
            continue;
        };
        match part.base {
            Some(base) => taken.push((base, base.saturating_add(section.size))),
            None if part.discarded || section.unknown.is_some() => {}
            None if part.candidates.is_empty() && !part.crowded => missing.push(number),
            None => {}
        }
    }
    taken.sort_unstable();
    // Parts that lie over each other are refused elsewhere; here the last that begins before is enough.
    let free = |base: u64, size: u64| {
        let next = taken.partition_point(|(start, _)| *start < base.saturating_add(size));
        next.checked_sub(1)
            .and_then(|last| taken.get(last))
            .is_none_or(|(_, end)| *end <= base)
    };
    let resembling = explain::resembling(system, &missing);
    let mut clauses = HashMap::new();
    for number in missing {
        let Some(part) = system.parts.get(number as usize) else {
            continue;
        };
        let Some(section) = system.section(part) else {
            continue;
        };
        let alike = |(base, _): &(u64, usize)| free(*base, section.size);
        let dropped = part.dropped.as_ref().map(|(base, _)| (*base, 0));
        let fixed: usize = section.fixed().map(|fixed| fixed.len()).sum();
        let there = dropped
            .filter(|_| fixed >= 32)
            .filter(alike)
            .or_else(|| resembling.get(&number).copied().filter(alike));
        if let Some(place) = there {
            // A copy of an inline function that differs from the one that was kept resembles it.
            if section.comdat.is_none()
                && let Some(refusal) = explain::at(system, number, place)
            {
                return Err(refusal);
            }
            clauses.insert(
                number,
                format!(" (what is most like it is at {:#x})", place.0),
            );
        }
    }
    Ok(clauses)
}

impl<'a> Placement<'a> {
    /// NT_GNU_BUILD_ID of the target; empty where it has none.
    pub fn build_id(&self) -> &'a [u8] {
        self.target.build_id
    }

    /// How much of the objects' code was found.
    pub fn share(&self) -> Share {
        self.share
    }

    /// The function or variable of this name that an object defines, or that it refers to.
    ///
    /// # Errors
    /// Why it has no address that is certain.
    pub fn find(&self, object: usize, name: &str) -> Result<Located, Refusal> {
        let relocatable = self.objects.get(object);
        let symbols = relocatable.map_or(&[][..], |o| o.symbols.as_slice());
        let mut found: Vec<usize> = Vec::new();
        for (number, symbol) in symbols.iter().enumerate() {
            let kind = symbol.kind != elf::STT_SECTION && symbol.kind != elf::STT_FILE;
            if kind && symbol.name == name.as_bytes() {
                found.push(number);
            }
        }
        match found.as_slice() {
            [number] => self.at(object, *number),
            [] => Err(Refusal::NoSymbol {
                object: relocatable.map_or("", |o| o.name).to_owned(),
                symbol: name.to_owned(),
            }),
            several => Err(Refusal::SeveralSymbols {
                object: relocatable.map_or("", |o| o.name).to_owned(),
                symbol: name.to_owned(),
                count: several.len(),
            }),
        }
    }

    /// The symbol with this number in an object's symbol table.
    ///
    /// # Errors
    /// Why it has no address that is certain.
    pub fn at(&self, object: usize, number: usize) -> Result<Located, Refusal> {
        let none = || Refusal::NoSymbol {
            object: String::new(),
            symbol: number.to_string(),
        };
        let relocatable = self.objects.get(object).ok_or_else(none)?;
        let symbol = relocatable.symbols.get(number).ok_or_else(none)?;
        let object_name = || relocatable.name.to_owned();
        let name = || String::from_utf8_lossy(symbol.name).into_owned();
        let unreferenced = || Refusal::Unreferenced {
            object: object_name(),
            symbol: name(),
        };
        let known = self.names.get(symbol.name).filter(|_| !symbol.local);
        let fact = known.and_then(|known| known.fact);
        let located = |(Fact::Address(svma) | Fact::ThreadLocal(svma)), size| Located {
            svma,
            size,
            kind: kind(symbol),
        };
        let (section_number, section) = match symbol.place {
            Place::Section(_) => relocatable.section_of(symbol).ok_or_else(none)?,
            Place::Absolute => return Err(none()),
            Place::Common | Place::Undefined => {
                let fact = fact.ok_or_else(unreferenced)?;
                return Ok(located(fact, symbol.size));
            }
        };
        if matches!(section.kind, Kind::Merged(..)) {
            let key = u32::try_from(object).ok().zip(u32::try_from(number).ok());
            let svma = key.and_then(|key| self.pieces.get(&key).copied());
            let svma = svma.ok_or_else(unreferenced)?;
            return Ok(located(Fact::Address(svma), symbol.size));
        }
        let state = self
            .states
            .get(object)
            .and_then(|sections| sections.get(section_number));
        let absent = |why: &str| Refusal::Absent {
            object: object_name(),
            symbol: name(),
            why: why.to_owned(),
        };
        match state.unwrap_or(&State::Other) {
            State::At(base) => {
                let svma = base.checked_add(symbol.value).ok_or_else(none)?;
                // A weak definition lies there as well when another one has taken its place.
                let stands = match fact {
                    Some(Fact::Address(is) | Fact::ThreadLocal(is)) => is == svma,
                    None => {
                        let several = known.is_some_and(|known| known.several);
                        !(symbol.weak && several && section.comdat.is_none())
                    }
                };
                if stands {
                    Ok(located(Fact::Address(svma), symbol.size))
                } else {
                    Err(Refusal::Overridden {
                        object: object_name(),
                        symbol: name(),
                    })
                }
            }
            State::Discarded => self.kept(symbol).ok_or_else(|| absent("")),
            State::Absent(_) if !symbol.local && section.comdat.is_some() => {
                self.kept(symbol).ok_or_else(|| absent(""))
            }
            State::Absent(why) => Err(absent(why)),
            State::Ambiguous(bases) => {
                let mut list: Vec<String> = bases
                    .iter()
                    .take(4)
                    .map(|base| format!("{:#x}", base.wrapping_add(symbol.value)))
                    .collect();
                if bases.len() > 4 {
                    list.push("...".to_owned());
                }
                Err(Refusal::Ambiguous {
                    object: object_name(),
                    symbol: name(),
                    addresses: list.join(", "),
                })
            }
            State::TooSmall => Err(Refusal::TooSmall {
                object: object_name(),
                symbol: name(),
            }),
            State::Unreferenced | State::Other => Err(unreferenced()),
            State::Unknown(r_type) => Err(Refusal::Relocation {
                object: object_name(),
                symbol: name(),
                r_type: *r_type,
            }),
            State::Folded(other, other_section, base) => {
                let other = self.objects.get(*other as usize).ok_or_else(none)?;
                Err(Refusal::Folded {
                    object: object_name(),
                    symbol: name(),
                    other_object: other.name.to_owned(),
                    other: explain::spoken(other, *other_section as usize, 0),
                    svma: base.wrapping_add(symbol.value),
                })
            }
        }
    }

    /// Of a function that several objects define: the one that the linker kept.
    fn kept(&self, symbol: &Symbol<'a>) -> Option<Located> {
        self.names.get(symbol.name).filter(|_| !symbol.local)?.kept
    }

    /// What a patch records of a function that it replaces.
    pub fn fingerprint(&self, function: &Located) -> Option<Fingerprint> {
        fingerprint(&self.target, function)
    }

    /// The symbols of all objects as `pack` takes them for a target that has none of its own, in the order of the
    /// objects.
    pub fn recovered(&self) -> Vec<TargetSymbol<'a>> {
        let mut recovered = Vec::new();
        for (number, object) in self.objects.iter().enumerate() {
            for (at, symbol) in self.defined(object) {
                if let (Ok(located), Ok(name)) =
                    (self.at(number, at), std::str::from_utf8(symbol.name))
                {
                    recovered.push(TargetSymbol {
                        name,
                        svma: located.svma,
                        size: located.size,
                        kind: located.kind,
                        global: !symbol.local,
                        file: None,
                        dynamic: false,
                        interposable: false,
                    });
                }
            }
        }
        recovered
    }

    /// All symbols of an object that have a name, were found, and are in the program's symbol table too: `.L` labels
    /// are not.
    pub fn located(&self, object: usize) -> impl Iterator<Item = (&'a [u8], Located)> + '_ {
        let defined = self.objects.get(object).into_iter();
        defined
            .flat_map(|relocatable| self.defined(relocatable))
            .filter_map(move |(number, symbol)| Some((symbol.name, self.at(object, number).ok()?)))
    }

    /// The symbols that an object defines and that are in the program's symbol table too.
    fn defined<'o>(
        &self,
        object: &'o Relocatable<'a>,
    ) -> impl Iterator<Item = (usize, &'o Symbol<'a>)> + use<'o, 'a> {
        object.symbols.iter().enumerate().filter(|(_, symbol)| {
            matches!(symbol.place, Place::Section(_) | Place::Common)
                && !symbol.name.is_empty()
                && !symbol.name.starts_with(b".L")
                && symbol.kind != elf::STT_SECTION
        })
    }
}

pub(super) fn fingerprint(target: &Linked<'_>, function: &Located) -> Option<Fingerprint> {
    if function.size == 0 || function.kind != SymbolKind::Function {
        return None;
    }
    let code = target.at(function.svma, function.size)?;
    Some(Fingerprint {
        svma: function.svma,
        size: function.size,
        sha256: Sha256::digest(code).into(),
    })
}

fn kind(symbol: &Symbol<'_>) -> SymbolKind {
    match symbol.kind {
        elf::STT_FUNC => SymbolKind::Function,
        elf::STT_GNU_IFUNC => SymbolKind::Ifunc,
        elf::STT_OBJECT | elf::STT_COMMON => SymbolKind::Variable,
        elf::STT_TLS => SymbolKind::ThreadLocal,
        _ => SymbolKind::Label,
    }
}
