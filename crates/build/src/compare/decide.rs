//! From the comparison of single functions to what goes into the patch.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::code::{self, Verdict};
use super::correlate::{Unclear, correlate, meant, regrouped};
use super::difference::shown;
use super::error::Error;
use super::frames::{Frames, same_tables};
use super::lines::Lines;
use super::module::{Item, Meaning, Module, is_constant};
use super::names;
use super::pair::{Pair, is_private_constant};
use super::plan::Plan;
use super::reasons::Reasons;
use super::refuse::{self, Refusal};
use super::texts::Texts;
use super::{Datum, Function, Options, Side, Status, Why};

/// What [`super::Comparison`] is made of.
pub(super) struct Decided {
    pub functions: Vec<Function>,
    pub data: Vec<Datum>,
    pub refusals: Vec<Refusal>,
    pub allowed: Vec<Refusal>,
    pub uncalled: Vec<String>,
    pub plan: Plan,
    /// Why not all that a patch needs can be named.
    pub complete: Result<(), Error>,
}

/// What is known so far; functions by their number in the patched object.
pub(super) struct State<'p, 'm, 'a> {
    pub pair: &'p Pair<'m, 'a>,
    pub unclear: &'p [Unclear],
    /// Items of the patched object that the original has and the target lacks.
    pub absent: BTreeSet<usize>,
    pub changed: BTreeMap<usize, BTreeSet<Why>>,
    pub new: BTreeSet<usize>,
    /// Of those that are new what there is to say.
    pub new_why: BTreeMap<usize, BTreeSet<Why>>,
    pub removed: BTreeSet<usize>,
}

pub(super) fn decide(
    old: &Module<'_>,
    new: &Module<'_>,
    described: [&Module<'_>; 2],
    absent: &BTreeSet<(String, Option<String>)>,
    options: &Options,
    texts: &dyn Texts,
) -> Result<Decided, Error> {
    let mut pair = Pair::new(old, new);
    let unclear = correlate(&mut pair);
    let absent = pair.untie(absent);
    let pair = pair;
    let frames = [Frames::new(old), Frames::new(new)];
    let mut state = State {
        pair: &pair,
        unclear: &unclear,
        absent,
        changed: BTreeMap::new(),
        new: BTreeSet::new(),
        new_why: BTreeMap::new(),
        removed: BTreeSet::new(),
    };
    let mut differs = state.compare_all(&frames);
    let (merged, split) = state.regrouped(&mut differs);
    let any = !differs.is_empty() || !state.changed.is_empty() || !state.new.is_empty();
    let reasons = Reasons::new(&state, texts, any);
    state.find_reasons(&differs, &reasons);
    state.parts();
    let uncalled = state.with_callers(options);
    state.parts();
    state.complete_reasons(&reasons);
    if pair.exhausted() {
        return Err(Error::TooMuch);
    }
    let mut plan = Plan {
        merged,
        ..Plan::default()
    };
    let taken: BTreeSet<usize> = state.changed.keys().chain(&state.new).copied().collect();
    let complete = plan.complete(&pair, &frames[1], &taken);
    plan.replaced = state
        .changed
        .keys()
        .copied()
        .filter(|&f| new.item(f).is_some_and(|i| part_owner(new, i).is_none()))
        .collect();
    let data = state.data(&plan);
    let (refusals, allowed) = refuse::refuse(&state, described, &plan, &split, options);
    Ok(Decided {
        functions: state.functions(&reasons, texts),
        data,
        refusals,
        allowed,
        uncalled,
        plan,
        complete,
    })
}

/// The function that an item is a part of, if the object has it.
pub(super) fn part_owner(module: &Module<'_>, item: &Item) -> Option<usize> {
    let owner = names::owner_of_part(&item.name)?;
    let found = module.functions_named(owner);
    let of_file = |&f: &usize| module.item(f).is_some_and(|f| f.file == item.file);
    found
        .iter()
        .copied()
        .find(of_file)
        .or(found.first().copied())
}

impl State<'_, '_, '_> {
    /// Compares each function with its counterpart; gives where those that differ do so first.
    fn compare_all(&mut self, frames: &[Frames; 2]) -> HashMap<usize, (u64, u64)> {
        let pair = self.pair;
        let mut differs = HashMap::new();
        let mut same = Vec::new();
        let mut candidates = Vec::new();
        for (number, _) in pair.new.functions() {
            let Some(old) = pair.old_of(number) else {
                if !self.absent.contains(&number) {
                    self.new.insert(number);
                }
                continue;
            };
            match code::compare(pair, old, number) {
                Verdict::Same => same.push((old, number)),
                Verdict::Immediates(steps) => candidates.push((old, number, steps)),
                Verdict::Differs(at_old, at_new) => {
                    differs.insert(number, (at_old, at_new));
                }
            }
        }
        for (old, _) in pair.old.functions() {
            if pair.new_of(old).is_none() {
                self.removed.insert(old);
            }
        }
        for (old, new, at) in Lines::new(pair, &same, &candidates).unproven() {
            differs.insert(new, at);
            same.retain(|&s| s != (old, new));
        }
        let proven = candidates
            .iter()
            .map(|(old, new, _)| (*old, *new))
            .filter(|(_, n)| !differs.contains_key(n));
        same.extend(proven.collect::<Vec<_>>());
        for (old, new) in same {
            if !same_tables(pair, frames, old, new) {
                self.changed.entry(new).or_default().insert(Why::Exceptions);
            }
        }
        differs
    }

    /// Two names of one function in one of the objects may be those of two functions in the other. What became one replaces
    /// both; what became two can't replace one: gives these by their names.
    #[allow(clippy::type_complexity)]
    fn regrouped(
        &mut self,
        differs: &mut HashMap<usize, (u64, u64)>,
    ) -> (Vec<(usize, usize)>, Vec<String>) {
        let (mut merged, mut split) = (Vec::new(), Vec::new());
        let found = regrouped(self.pair).into_iter();
        for found in found.filter(|found| !self.absent.contains(&found.new)) {
            let verdict = code::compare(self.pair, found.old, found.new);
            let at = match verdict {
                Verdict::Differs(a, b) => Some((a, b)),
                Verdict::Immediates(_) => Some((0, 0)),
                Verdict::Same => None,
            };
            let alone = self.pair.new_of(found.old).is_none();
            if alone {
                self.removed.remove(&found.old);
                if let Some(at) = at {
                    differs.entry(found.new).or_insert(at);
                    merged.push((found.old, found.new));
                }
            } else if at.is_some() {
                split.push(found.name);
            }
        }
        (merged, split)
    }

    /// A function and the parts that were split off it go together.
    fn parts(&mut self) {
        let module = self.pair.new;
        let owners: Vec<(usize, usize)> = module
            .functions()
            .filter_map(|(part, item)| Some((part, part_owner(module, item)?)))
            .collect();
        let name = |item: usize| {
            module
                .item(item)
                .map(|i| i.name.clone())
                .unwrap_or_default()
        };
        loop {
            let mut more = false;
            for &(part, owner) in &owners {
                let part_in = self.changed.contains_key(&part) || self.new.contains(&part);
                let owner_in = self.changed.contains_key(&owner) || self.new.contains(&owner);
                if part_in && !owner_in {
                    self.changed
                        .entry(owner)
                        .or_default()
                        .insert(Why::HasPart(name(part)));
                    more = true;
                } else if owner_in && !part_in {
                    self.changed
                        .entry(part)
                        .or_default()
                        .insert(Why::Part(name(owner)));
                    more = true;
                }
            }
            if !more {
                return;
            }
        }
    }

    /// Takes the callers along that are asked for; gives the names that nothing refers to.
    fn with_callers(&mut self, options: &Options) -> Vec<String> {
        let module = self.pair.new;
        let asked: BTreeSet<&str> = options.with_callers.iter().map(String::as_str).collect();
        let mut called: BTreeSet<&str> = BTreeSet::new();
        let wanted = |item: &Item| {
            let mut names = [item.name.as_str(), names::source_name(&item.name)].into_iter();
            names.find_map(|name| asked.get(name).copied())
        };
        for (number, item) in module.functions().filter(|_| !asked.is_empty()) {
            let callees =
                module
                    .relas_of(item)
                    .iter()
                    .filter_map(|rela| match meant(module, rela) {
                        Meaning::Item(to, _) if to != number => {
                            wanted(module.item(to).filter(|i| i.kind.is_code())?)
                        }
                        Meaning::Extern(symbol, _) => {
                            let symbol = module.image.symbols.get(symbol)?;
                            asked.get(symbol.name.as_str()).copied()
                        }
                        _ => None,
                    });
            let callees: Vec<&str> = callees.collect();
            called.extend(&callees);
            if let Some(callee) = callees.first()
                && !self.new.contains(&number)
            {
                let why = self.changed.entry(number).or_default();
                if why.is_empty() {
                    why.insert(Why::Calls((*callee).to_owned()));
                }
            }
        }
        asked
            .difference(&called)
            .map(|name| (*name).to_owned())
            .collect()
    }

    fn functions(&self, reasons: &Reasons<'_>, texts: &dyn Texts) -> Vec<Function> {
        let pair = self.pair;
        let declared = |item: &Item| {
            let decl = reasons.decl(item)?;
            Some(shown(texts, Side::Patched, &decl.file, decl.line))
        };
        let describe = |module: &Module<'_>, item: &Item| Function {
            name: item.name.clone(),
            file: module.file_of(item).map(str::to_owned),
            declared: None,
            global: item.global,
            status: Status::Unchanged,
            why: Vec::new(),
            old_size: None,
            new_size: None,
            numbers: (None, None),
        };
        let mut functions = Vec::new();
        for (number, item) in pair.new.functions() {
            let old = pair.old_item_of(number);
            let mut function = match old {
                Some(old) => Function {
                    old_size: Some(old.size),
                    ..describe(pair.old, old)
                },
                None => describe(pair.new, item),
            };
            function.new_size = Some(item.size);
            function.numbers = (pair.backward.get(number).copied().flatten(), Some(number));
            function.declared = declared(item);
            if self.new.contains(&number) {
                function.status = Status::New;
                let why = self.new_why.get(&number);
                function.why = why.into_iter().flatten().cloned().collect();
            } else if let Some(why) = self.changed.get(&number) {
                function.status = Status::Changed;
                function.why = why.iter().cloned().collect();
            }
            functions.push(function);
        }
        for item in self.removed.iter().filter_map(|&o| pair.old.item(o)) {
            let old_size = Some(item.size);
            functions.push(Function {
                status: Status::Removed,
                old_size,
                ..describe(pair.old, item)
            });
        }
        functions
    }

    /// Named variables and constants that are not what they were.
    fn data(&self, plan: &Plan) -> Vec<Datum> {
        let pair = self.pair;
        let constant = |module: &Module<'_>, item: &Item| {
            let section = item.section.and_then(|s| module.section(s));
            section.is_some_and(is_constant)
        };
        let mut data = Vec::new();
        for (number, item) in pair
            .new
            .items
            .iter()
            .enumerate()
            .filter(|(_, i)| !i.kind.is_code())
        {
            let old = pair.old_item_of(number);
            let status = match old {
                None if self.absent.contains(&number) && !plan.items.contains(&number) => continue,
                None => Status::New,
                Some(old) if !pair.same_value(old, item) => Status::Changed,
                Some(_) => continue,
            };
            // A static constant that nothing in the patch uses is nobody's.
            if is_private_constant(pair.new, item)
                && !plan.items.contains(&number)
                && status == Status::New
            {
                continue;
            }
            data.push(Datum {
                name: old.unwrap_or(item).name.clone(),
                status,
                constant: constant(pair.new, item),
                old_size: old.map(|o| o.size),
                new_size: Some(item.size),
            });
        }
        for (number, item) in pair
            .old
            .items
            .iter()
            .enumerate()
            .filter(|(_, i)| !i.kind.is_code())
        {
            if pair.new_of(number).is_none() {
                data.push(Datum {
                    name: item.name.clone(),
                    status: Status::Removed,
                    constant: constant(pair.old, item),
                    old_size: Some(item.size),
                    new_size: None,
                });
            }
        }
        data
    }
}
