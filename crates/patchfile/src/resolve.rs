//! Which symbol of which object an undefined name of the patch means.

use std::collections::HashMap;

use object::elf::{STB_GLOBAL, STT_TLS};

use crate::elf::{Image, SymPlace};
use crate::meta::Alias;
use crate::read::{SYM_PREFIX, spoken};
use crate::relocation::is_tls;
use crate::{EXECUTABLE, Error, SymbolKind, TargetElf, TargetSymbol};

/// Makes SHN_LIVEPATCH symbols of the undefined symbols in `used` that the patch's objects define; gives for each symbol
/// the object that it was found in, as the object is called in a patch file.
///
/// A name that one object defines and no other means that definition, the global one first. A name that a library
/// exports can be interposed, so it stays undefined and is resolved as that object itself would; so does a name that
/// no object defines.
pub(crate) fn resolve(
    image: &mut Image<'_>,
    used: &[bool],
    aliases: &[Alias],
    targets: &[&TargetElf<'_>],
) -> Result<Vec<Option<String>>, Error> {
    let mut said: HashMap<usize, &Alias> = HashMap::new();
    for alias in aliases {
        let name = || {
            image
                .symbols
                .get(alias.symbol)
                .map(|s| s.name.clone())
                .unwrap_or_default()
        };
        if image
            .symbols
            .get(alias.symbol)
            .is_none_or(|s| s.place != SymPlace::Undefined)
        {
            return Err(Error::AliasDefined { alias: name() });
        }
        let before = said.insert(alias.symbol, alias);
        if before.is_some_and(|b| {
            (&b.name, &b.object, b.sympos) != (&alias.name, &alias.object, alias.sympos)
        }) {
            return Err(Error::AliasTwice { alias: name() });
        }
        if !targets.iter().any(|t| t.object == alias.object) {
            let object = spoken(alias.object.as_deref());
            return Err(Error::AliasObject {
                alias: name(),
                object,
            });
        }
    }
    let tls = used_as_tls(image);
    let mut objects = vec![None; image.symbols.len()];
    for (number, symbol) in image.symbols.iter_mut().enumerate() {
        let used = used.get(number).copied().unwrap_or(false);
        if symbol.place != SymPlace::Undefined || number == 0 || !used {
            continue;
        }
        let found = match said.get(&number) {
            Some(alias) => {
                let target = targets.iter().find(|t| t.object == alias.object);
                let Some(target) = target else { continue };
                let found = target.find(&alias.name, alias.sympos)?;
                Some((*target, *found, alias.name.clone(), alias.sympos))
            }
            None => named(&symbol.name, targets)?
                .map(|(target, found, sympos)| (target, found, symbol.name.clone(), sympos)),
        };
        let Some((target, found, name, sympos)) = found else {
            continue;
        };
        let used_tls = tls.get(number).copied().unwrap_or(false);
        if used_tls != (found.kind == SymbolKind::ThreadLocal) {
            return Err(Error::ReferenceKind {
                symbol: name,
                object: spoken(target.object.as_deref()),
                used: if used_tls {
                    "thread-local"
                } else {
                    "not thread-local"
                },
                found: found.kind.spoken(),
            });
        }
        let object = target
            .object
            .clone()
            .unwrap_or_else(|| EXECUTABLE.to_owned());
        symbol.name = format!("{SYM_PREFIX}{object}.{name},{sympos}");
        symbol.place = SymPlace::Livepatch;
        symbol.bind = STB_GLOBAL.0;
        symbol.other = 0;
        if let Some(object_of) = objects.get_mut(number) {
            *object_of = Some(object);
        }
    }
    Ok(objects)
}

/// For each symbol, whether relocations use it as a thread-local variable.
fn used_as_tls(image: &Image<'_>) -> Vec<bool> {
    let mut tls: Vec<bool> = image.symbols.iter().map(|s| s.kind == STT_TLS.0).collect();
    for rela in image
        .sections
        .iter()
        .filter(|s| s.is_alloc())
        .flat_map(|s| &s.relas)
    {
        if let Some(tls) = tls.get_mut(rela.symbol) {
            *tls |= is_tls(rela.r_type);
        }
    }
    tls
}

type Found<'t, 'a> = (&'t TargetElf<'a>, TargetSymbol<'a>, u64);

fn named<'t, 'a>(
    name: &str,
    targets: &[&'t TargetElf<'a>],
) -> Result<Option<Found<'t, 'a>>, Error> {
    let mut in_objects: Vec<Found<'t, 'a>> = Vec::new();
    let mut several = Vec::new();
    for &target in targets {
        if target.interposable(name) {
            return Ok(None);
        }
        let all = target.occurrences(name);
        let Some(&first) = all.first() else { continue };
        let position = |n: usize| if all.len() == 1 { 0 } else { n as u64 + 1 };
        let object = spoken(target.object.as_deref());
        let global = all.iter().position(|s| s.global);
        match global.and_then(|n| Some((n, *all.get(n)?))) {
            Some((n, symbol)) => in_objects.push((target, *symbol, position(n))),
            None if all.iter().all(|s| s.svma == first.svma) => {
                in_objects.push((target, *first, position(0)));
            }
            None => several.push(format!("{object} has {} static ones", all.len())),
        }
    }
    if several.is_empty() && in_objects.len() <= 1 {
        return Ok(in_objects.pop());
    }
    for (target, _, _) in &in_objects {
        several.push(format!("{} has one", spoken(target.object.as_deref())));
    }
    let candidates = several.join(", ");
    Err(Error::AmbiguousReference {
        symbol: name.to_owned(),
        candidates,
    })
}
