//! Which item of the original is which of the patched object.
//!
//! Any pairing of functions and constants gives a right patch, since all references go through it: a function is
//! unchanged only if all that it refers to is paired the same way. Only a variable has a state that must be kept, so a
//! static variable of a function is paired only with one that the same functions use.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash as _, Hasher as _};

use super::module::{Item, Kind, Meaning, Module, is_constant, is_pc_relative};
use super::names;
use super::pair::Pair;

/// A static variable of which it can't be told whether the original has it.
pub(super) struct Unclear {
    /// In the patched object.
    pub new: usize,
    /// What it may be in the original.
    pub candidates: Vec<usize>,
}

/// A function that was one with another one under two names and is not any more, or the other way round.
pub(super) struct Regrouped {
    pub name: String,
    pub old: usize,
    pub new: usize,
}

/// The names of functions that both objects define, where what they name is not paired.
pub(super) fn regrouped(pair: &Pair<'_, '_>) -> Vec<Regrouped> {
    fn names<'m>(m: &'m Module<'_>) -> BTreeMap<&'m str, usize> {
        let mut names = BTreeMap::new();
        for (number, item) in m.functions() {
            for &symbol in std::iter::once(&item.symbol).chain(&item.aliases) {
                let symbol = m.image.symbols.get(symbol);
                if let Some(symbol) = symbol.filter(|s| s.bind != object::elf::STB_LOCAL.0) {
                    names.insert(symbol.name.as_str(), number);
                }
            }
        }
        names
    }
    let news = names(pair.new);
    let both = names(pair.old).into_iter().filter_map(|(name, old)| {
        let new = *news.get(name)?;
        let paired = pair.new_of(old) == Some(new);
        (!paired).then(|| Regrouped {
            name: name.to_owned(),
            old,
            new,
        })
    });
    both.collect()
}

/// Pairs the items.
pub(super) fn correlate(pair: &mut Pair<'_, '_>) -> Vec<Unclear> {
    by_symbol(pair);
    let users = [Users::new(pair.old), Users::new(pair.new)];
    let mut unclear = Vec::new();
    let groups = [
        groups(pair.old, &pair.forward),
        groups(pair.new, &pair.backward),
    ];
    let [olds, news] = &groups;
    // Functions first: nothing of them depends on variables.
    for code in [true, false] {
        for (key, new) in news.iter().filter(|(k, _)| k.0.is_code() == code) {
            let Some(old) = olds.get(key) else { continue };
            let mut group = Group {
                old: old.clone(),
                new: new.clone(),
            };
            if code {
                group.functions(pair);
            } else {
                group.variables(pair, &users, &mut unclear);
            }
        }
    }
    unclear
}

/// Global symbols, and static ones whose name is unique and has no number.
fn by_symbol(pair: &mut Pair<'_, '_>) {
    fn index<'m>(m: &'m Module<'_>) -> HashMap<(&'m str, bool), Vec<usize>> {
        let mut names: HashMap<(&str, bool), Vec<usize>> = HashMap::new();
        for (number, item) in m.items.iter().enumerate() {
            for symbol in std::iter::once(&item.symbol).chain(&item.aliases) {
                if let Some(symbol) = m.image.symbols.get(*symbol) {
                    let key = (symbol.name.as_str(), item.kind.is_code());
                    let entry = names.entry(key).or_default();
                    if !entry.contains(&number) {
                        entry.push(number);
                    }
                }
            }
        }
        names
    }
    let (olds, news) = (index(pair.old), index(pair.new));
    for (number, item) in pair.new.items.iter().enumerate() {
        let unique = item.global || !names::is_numbered(&item.name);
        let key = (item.name.as_str(), item.kind.is_code());
        let (Some([old]), Some([_])) = (
            olds.get(&key).map(Vec::as_slice),
            news.get(&key).map(Vec::as_slice),
        ) else {
            continue;
        };
        let free = pair.forward.get(*old).is_some_and(Option::is_none);
        let same_kind = pair.old.item(*old).is_some_and(|o| o.kind == item.kind);
        if unique && free && same_kind {
            pair.tie(*old, number);
        }
    }
}

type Key = (Kind, bool, Option<String>, String);

/// What is not paired yet, by kind, whether it is constant, file and name without numbers.
fn groups(module: &Module<'_>, paired: &[Option<usize>]) -> BTreeMap<Key, Vec<usize>> {
    let mut groups: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    // Objects of one source file may call it differently; those that `ld -r` joined have several.
    let files = module
        .image
        .symbols
        .iter()
        .filter(|s| s.kind == object::elf::STT_FILE.0);
    let several = files.count() > 1;
    for (number, item) in module.items.iter().enumerate() {
        if paired.get(number).is_some_and(Option::is_none) {
            let section = item.section.and_then(|s| module.section(s));
            let constant = section.is_some_and(is_constant);
            let file = module.file_of(item).filter(|_| several).map(base_name);
            groups
                .entry((item.kind, constant, file, item.key.clone()))
                .or_default()
                .push(number);
        }
    }
    groups
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// Items of one name, not yet paired.
struct Group {
    old: Vec<usize>,
    new: Vec<usize>,
}

impl Group {
    /// Pairs those for which `same` finds exactly one on either side.
    fn unique<K: Ord>(
        &mut self,
        pair: &mut Pair<'_, '_>,
        key: impl Fn(&Module<'_>, bool, usize) -> Option<K>,
    ) {
        let mut table: BTreeMap<K, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for &old in &self.old {
            if let Some(key) = key(pair.old, false, old) {
                table.entry(key).or_default().0.push(old);
            }
        }
        for &new in &self.new {
            if let Some(key) = key(pair.new, true, new) {
                table.entry(key).or_default().1.push(new);
            }
        }
        for (olds, news) in table.into_values() {
            if let ([old], [new]) = (olds.as_slice(), news.as_slice()) {
                pair.tie(*old, *new);
                self.old.retain(|o| o != old);
                self.new.retain(|n| n != new);
            }
        }
    }

    fn functions(&mut self, pair: &mut Pair<'_, '_>) {
        self.unique(pair, |module, _, item| {
            module.item(item).map(|i| code_hash(module, i))
        });
        self.unique(pair, |module, _, item| {
            module.item(item).map(|i| i.name.clone())
        });
        self.unique(pair, |_, _, _| Some(()));
    }

    fn variables(
        &mut self,
        pair: &mut Pair<'_, '_>,
        users: &[Users; 2],
        unclear: &mut Vec<Unclear>,
    ) {
        let constant = |module: &Module<'_>, item: usize| {
            let section = module
                .item(item)
                .and_then(|i| i.section)
                .and_then(|s| module.section(s));
            section.is_some_and(is_constant)
        };
        let state = self.new.iter().any(|&n| !constant(pair.new, n));
        let [old_users, new_users] = users;
        let of = |new: bool, item: usize| {
            if new {
                new_users.of(item)
            } else {
                old_users.of(item)
            }
        };
        let value =
            |module: &Module<'_>, item: usize| module.item(item).map(|i| value_hash(module, i));
        if !state {
            self.unique(pair, |module, _, item| value(module, item));
            self.unique(pair, |_, new, item| Some(of(new, item).clone()));
            self.unique(pair, |_, _, _| Some(()));
            return;
        }
        self.unique(pair, |module, new, item| {
            Some((of(new, item).clone(), value(module, item)))
        });
        self.unique(pair, |_, new, item| Some(of(new, item).clone()));
        self.in_order(pair, users);
        self.overlapping(pair, of);
        // What is left has the name of something in the original and may be it: then its state must not be lost.
        if !self.old.is_empty() {
            for &new in &self.new {
                unclear.push(Unclear {
                    new,
                    candidates: self.old.clone(),
                });
            }
        }
    }

    /// Pairs variables that the same functions use, where each of these refers to them in the same order.
    fn in_order(&mut self, pair: &mut Pair<'_, '_>, [old_users, new_users]: &[Users; 2]) {
        let mut sets: BTreeMap<&BTreeSet<String>, (BTreeSet<usize>, BTreeSet<usize>)> =
            BTreeMap::new();
        for &old in &self.old {
            sets.entry(old_users.of(old)).or_default().0.insert(old);
        }
        for &new in &self.new {
            sets.entry(new_users.of(new)).or_default().1.insert(new);
        }
        for (users, (olds, news)) in sets {
            if users.is_empty() || olds.len() != news.len() {
                continue;
            }
            let mut found: BTreeMap<usize, usize> = BTreeMap::new();
            let agrees = users.iter().all(|user| {
                let a = old_users.order.get(user).map_or(&[][..], Vec::as_slice);
                let b = new_users.order.get(user).map_or(&[][..], Vec::as_slice);
                let a: Vec<usize> = a.iter().copied().filter(|i| olds.contains(i)).collect();
                let b: Vec<usize> = b.iter().copied().filter(|i| news.contains(i)).collect();
                let mut pairs = a.iter().zip(&b);
                a.len() == b.len() && pairs.all(|(a, b)| *found.entry(*a).or_insert(*b) == *b)
            });
            let back: BTreeSet<usize> = found.values().copied().collect();
            let same_size = |(old, new): (&usize, &usize)| {
                let size = |i: Option<&Item>| i.map(|i| i.size);
                size(pair.old.item(*old)) == size(pair.new.item(*new))
            };
            if agrees && back.len() == olds.len() && found.iter().all(same_size) {
                for (old, new) in found {
                    pair.tie(old, new);
                    self.old.retain(|&o| o != old);
                    self.new.retain(|&n| n != new);
                }
            }
        }
    }

    /// Pairs those that share users with each other and with nobody else.
    fn overlapping<'u>(
        &mut self,
        pair: &mut Pair<'_, '_>,
        of: impl Fn(bool, usize) -> &'u BTreeSet<String>,
    ) {
        if self.old.len().saturating_mul(self.new.len()) > 1 << 16 {
            return;
        }
        let share = |old: usize, new: usize| !of(false, old).is_disjoint(of(true, new));
        let mut found = Vec::new();
        for &old in &self.old {
            let news: Vec<usize> = self
                .new
                .iter()
                .copied()
                .filter(|&n| share(old, n))
                .collect();
            if let [new] = news.as_slice()
                && self.old.iter().filter(|&&o| share(o, *new)).count() == 1
            {
                found.push((old, *new));
            }
        }
        for (old, new) in found {
            pair.tie(old, new);
            self.old.retain(|&o| o != old);
            self.new.retain(|&n| n != new);
        }
    }
}

fn code_hash(module: &Module<'_>, item: &Item) -> u64 {
    let mut hash = DefaultHasher::new();
    module.bytes(item).hash(&mut hash);
    for rela in module.relas_of(item) {
        (rela.offset.wrapping_sub(item.start), rela.r_type).hash(&mut hash);
        if let Meaning::Item(to, at) = meant(module, rela) {
            module.item(to).map(|i| (&i.key, at)).hash(&mut hash);
        }
    }
    hash.finish()
}

fn value_hash(module: &Module<'_>, item: &Item) -> u64 {
    let mut hash = DefaultHasher::new();
    item.size.hash(&mut hash);
    let bytes = module.bytes(item);
    // All zeros in .bss and in .data are the same.
    if bytes.iter().any(|&b| b != 0) {
        bytes.hash(&mut hash);
    }
    for rela in module.relas_of(item) {
        (rela.offset.wrapping_sub(item.start), rela.r_type).hash(&mut hash);
    }
    hash.finish()
}

/// What a relocation means, for all that does not need the exact offset.
pub(super) fn meant(module: &Module<'_>, rela: &livegraft_patchfile::elf::Rela) -> Meaning {
    let from = if is_pc_relative(rela.r_type) { 4 } else { 0 };
    module.meaning(rela.symbol, rela.addend.wrapping_add(from))
}

/// Who refers to each item: functions by the names that they have in the source, variables by theirs.
struct Users {
    users: HashMap<usize, BTreeSet<String>>,
    /// For each user what it refers to, in order.
    order: HashMap<String, Vec<usize>>,
    nobody: BTreeSet<String>,
}

impl Users {
    fn new(module: &Module<'_>) -> Self {
        let mut users: HashMap<usize, BTreeSet<String>> = HashMap::new();
        let mut order: HashMap<String, Vec<usize>> = HashMap::new();
        for (number, section) in module.image.sections.iter().enumerate() {
            if !section.is_alloc() {
                continue;
            }
            for rela in &section.relas {
                let Meaning::Item(item, _) = meant(module, rela) else {
                    continue;
                };
                let numbered = module
                    .item(item)
                    .is_some_and(|i| !i.kind.is_code() && !i.global);
                let user = module
                    .item_at(number, rela.offset)
                    .and_then(|u| module.item(u));
                if let (true, Some(user)) = (numbered, user) {
                    let name = names::source_name(&user.name);
                    match order.get_mut(name) {
                        Some(order) => order.push(item),
                        None => drop(order.insert(name.to_owned(), vec![item])),
                    }
                    let set = users.entry(item).or_default();
                    if !set.contains(name) {
                        set.insert(name.to_owned());
                    }
                }
            }
        }
        Users {
            users,
            order,
            nobody: BTreeSet::new(),
        }
    }

    fn of(&self, item: usize) -> &BTreeSet<String> {
        self.users.get(&item).unwrap_or(&self.nobody)
    }
}
