//! What a patch needs of its target, by the names that the target has for it, each with its proof.

use super::{Aim, Error};
use crate::capture::Pair;
use crate::emit::{Needs, Record};
use crate::place::{self, Located, Object, Placement, Refusal, Symbols};
use livegraft_patchfile::elf::{Image, SymPlace};
use livegraft_patchfile::{SymbolKind, TargetSymbol};
use object::elf;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

/// What tells where the symbols of a target are.
pub(super) enum Proven<'a> {
    Symbols(Symbols<'a>),
    Placed(Placed<'a>),
}

pub(super) struct Placed<'a> {
    pub placement: Placement<'a>,
    objects: &'a [(PathBuf, String, Vec<u8>)],
    /// Which object defines a global name.
    definer: HashMap<String, usize>,
}

/// The cheap proof, or the other one.
pub(super) fn prove<'a>(aim: &'a Aim<'_>) -> Result<Proven<'a>, Error> {
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

/// Whether the linker has removed what a record means from the target, and it is certain.
pub(super) fn lacks_record(
    aim: &Aim<'_>,
    proven: &Proven<'_>,
    pair: &Pair,
    record: &Record,
) -> bool {
    let absent = match proven {
        Proven::Symbols(symbols) => {
            let file = record.file.as_deref();
            let fits = |symbol: &place::Symbol<'_>| file.is_none() || symbol.file == file;
            !symbols.named(&record.name).any(fits)
        }
        Proven::Placed(placed) => match placed.record(aim, pair, record) {
            Err(Error::Place { source, .. }) => matches!(*source, Refusal::Absent { .. }),
            _ => false,
        },
    };
    absent && aim.program.collected
}

/// The same of a global name.
pub(super) fn lacks_name(aim: &Aim<'_>, proven: &Proven<'_>, name: &str) -> bool {
    let absent = match proven {
        Proven::Symbols(symbols) => symbols.named(name).next().is_none(),
        Proven::Placed(placed) => placed.definer.get(name).is_some_and(|&object| {
            let found = placed.placement.find(object, name);
            matches!(found, Err(Refusal::Absent { .. }))
        }),
    };
    absent && aim.program.collected
}

/// The symbols of one target that matter, by name, and which of them each record of an extract means.
#[derive(Default)]
pub(super) struct Table {
    /// In the order that `sympos` counts.
    symbols: BTreeMap<String, Vec<(Located, bool)>>,
    meant: BTreeMap<Meant, Located>,
    /// For names that come in another order in another target: what comes first here, in an order that all agree on.
    agreed: BTreeMap<String, Vec<Meant>>,
}

/// A record of an extract: its number; name, file and type; which of those.
type Meant = (usize, String, Option<String>, u8, usize);

fn meant(extract: usize, record: &Record) -> Meant {
    let (name, file) = (record.name.clone(), record.file.clone());
    (extract, name, file, record.kind, record.occurrence)
}

impl Table {
    pub fn sympos(&self, extract: usize, record: &Record) -> Option<u64> {
        self.position(&meant(extract, record))
    }

    fn position(&self, meant: &Meant) -> Option<u64> {
        let located = self.meant.get(meant)?;
        if let Some(order) = self.agreed.get(&meant.1) {
            let position = order.iter().position(|other| other == meant)?;
            return Some(position as u64 + 1);
        }
        let all = self.symbols.get(&meant.1)?;
        let same = all.iter().all(|(other, _)| other.svma == located.svma);
        let position = all.iter().position(|(other, _)| other == located)?;
        Some(if same { 0 } else { position as u64 + 1 })
    }

    pub fn symbols(&self) -> Vec<TargetSymbol<'_>> {
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

/// Where targets have symbols of one name in different orders (objects were linked in another one), they get the same:
/// a patch records for each build where a symbol is, and that counts before the build's own symbol table.
pub(super) fn agree(tables: &mut [Table]) {
    let names = tables.first().into_iter().flat_map(|t| t.meant.keys());
    let names: BTreeSet<String> = names.map(|meant| meant.1.clone()).collect();
    for name in names {
        let meant = tables.first().into_iter().flat_map(|t| t.meant.keys());
        let meant: Vec<Meant> = meant.filter(|m| m.1 == name).cloned().collect();
        let same = |meant: &Meant| {
            let mut all = tables.iter().map(|table| table.position(meant));
            let first = all.next().flatten();
            first.is_some() && all.all(|other| other == first)
        };
        if meant.iter().all(same) {
            continue;
        }
        for table in tables.iter_mut() {
            let known = table.symbols.remove(&name).unwrap_or_default();
            let global =
                |located: &Located| known.iter().any(|(k, global)| k == located && *global);
            let first = meant.iter().filter_map(|m| table.meant.get(m));
            let mut order: Vec<_> = first.map(|l| (*l, global(l))).collect();
            let rest = known.iter().filter(|k| !order.contains(k)).copied();
            let rest: Vec<_> = rest.collect();
            order.extend(rest);
            table.symbols.insert(name.clone(), order);
            table.agreed.insert(name.clone(), meant.clone());
        }
    }
}

pub(super) fn table(
    aim: &Aim<'_>,
    proven: &Proven<'_>,
    parts: &[(&Pair, Needs)],
) -> Result<Table, Error> {
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
        // What was joined has a source file for each object, and static symbols follow theirs.
        let (mut fits, mut file, mut files) = (Vec::new(), None, 0);
        for (number, symbol) in image.symbols.iter().enumerate() {
            if symbol.kind == elf::STT_FILE.0 {
                file = Some(&symbol.name);
                files += 1;
            } else if symbol.bind == elf::STB_LOCAL.0
                && symbol.name == record.name
                && symbol.kind == record.kind
            {
                fits.push((number, file));
            }
        }
        if files > 1 {
            fits.retain(|(_, file)| *file == record.file.as_ref());
        }
        let fits: Vec<usize> = fits.into_iter().map(|(number, _)| number).collect();
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
