//! Why a function goes into the patch, as far as it can be proven.
//!
//! Its source is changed if the tokens of its body are other ones, and so for what debug information says is inlined into
//! it. Where neither is, a macro, a constant, a struct or the registers of a callee may tell. What can't be proven is not
//! said: then its code differs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::decide::{State, part_owner};
use super::declared::{Concrete, Decl, Declared};
use super::dwarf::Inlined;
use super::module::{Item, Meaning};
use super::pair::is_private_constant;
use super::plan::of_item;
use super::texts::{Body, Files, Texts};
use super::types::Structs;
use super::{Side, Why, code, names};

/// What tells it.
pub(super) struct Reasons<'t> {
    files: Files<'t>,
    declared: Option<[Declared; 2]>,
    inlined: Option<Inlined>,
    macros: BTreeSet<String>,
    /// Functions by their keys: whether their source is another one.
    known: RefCell<HashMap<String, Option<bool>>>,
}

/// Where functions first differ, by their numbers in the patched object.
pub(super) type Differs = HashMap<usize, (u64, u64)>;

impl<'t> Reasons<'t> {
    /// `any`: whether there is anything to give a reason for.
    pub fn new(state: &State<'_, '_, '_>, texts: &'t dyn Texts, any: bool) -> Self {
        let files = Files::new(texts);
        let pair = state.pair;
        let read = || {
            let structs = Structs::read(pair.old).zip(Structs::read(pair.new));
            let structs = structs.map(|(old, new)| Structs::all_changed(&old, &new));
            let structs = structs.unwrap_or_default();
            let old = Declared::read(pair.old, &structs)?;
            Some([old, Declared::read(pair.new, &structs)?])
        };
        Reasons {
            declared: any.then(read).flatten(),
            inlined: any.then(|| Inlined::read(pair.new)).flatten(),
            macros: if any {
                files.changed_macros()
            } else {
                BTreeSet::new()
            },
            files,
            known: RefCell::default(),
        }
    }

    /// Where a function of the patched object is declared.
    pub fn decl(&self, item: &Item) -> Option<&Decl> {
        let [_, new] = self.declared.as_ref()?;
        new.of(item)?.decl.as_ref()
    }

    /// Whether a function that is new has no code of its own in the original although that has its source.
    fn was_inlined(&self, item: &Item) -> bool {
        let old = self.declared.as_ref().map(|[old, _]| old);
        let decl = self.decl(item);
        decl.zip(old)
            .is_some_and(|(decl, old)| old.known.contains_key(&decl.key))
    }

    fn body(&self, side: Side, key: &str) -> Option<Body> {
        let [old, new] = self.declared.as_ref()?;
        let declared = if side == Side::Original { old } else { new };
        let decl = declared.known.get(key)?;
        self.files.body(side, decl, declared.lines(&decl.file))
    }

    /// Whether the source of a function is another one; `None`: that can't be told.
    fn is_changed(&self, key: &str) -> Option<bool> {
        if let Some(known) = self.known.borrow().get(key) {
            return *known;
        }
        let bodies = self.body(Side::Original, key);
        let bodies = bodies.zip(self.body(Side::Patched, key));
        let changed = bodies.map(|(old, new)| !old.tokens().eq(new.tokens()));
        self.known.borrow_mut().insert(key.to_owned(), changed);
        changed
    }

    /// The changed macros that a function's source names.
    fn macros_in(&self, key: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for side in [Side::Original, Side::Patched] {
            if let Some(body) = self.body(side, key) {
                let words = body.tokens().filter_map(|w| std::str::from_utf8(w).ok());
                found.extend(
                    words
                        .filter(|w| self.macros.contains(*w))
                        .map(str::to_owned),
                );
            }
        }
        found
    }

    /// What the sources of a function and of what is inlined into it say; and whether its own is known to be the same.
    fn by_source(&self, old: Option<&Concrete>, new: &Concrete) -> (BTreeSet<Why>, bool) {
        let mut why = BTreeSet::new();
        let own = new.decl.as_ref().map(|decl| decl.key.clone());
        let changed = own.as_deref().and_then(|key| self.is_changed(key));
        if changed == Some(true) {
            why.insert(Why::Source);
        }
        let inlined = new
            .inlined
            .iter()
            .chain(old.iter().flat_map(|c| &c.inlined));
        // What is split off a function and inlined into it again is itself.
        let inlined: BTreeMap<&str, &str> = inlined
            .filter(|decl| own.as_ref() != Some(&decl.key))
            .map(|decl| (decl.key.as_str(), decl.name.as_str()))
            .collect();
        for (key, name) in &inlined {
            if self.is_changed(key) == Some(true) {
                let name = (*name).to_owned();
                let still = new.inlined.iter().any(|decl| decl.key == **key);
                why.insert(if still {
                    Why::Inlined(name)
                } else {
                    Why::WasInlined(name)
                });
            }
        }
        if why.is_empty() {
            let own = own.iter().flat_map(|key| self.macros_in(key));
            why.extend(own.map(Why::Macro));
        }
        if why.is_empty() {
            for (key, name) in &inlined {
                let macros = self.macros_in(key).into_iter();
                why.extend(macros.map(|found| Why::InlinedMacro((*name).to_owned(), found)));
            }
        }
        (why, changed == Some(false))
    }
}

impl State<'_, '_, '_> {
    /// Finds the reasons of what differs, and of what goes with it.
    pub(super) fn find_reasons(&mut self, differs: &Differs, reasons: &Reasons<'_>) {
        for &number in differs.keys() {
            let why = self.reason(number, Some(differs), reasons);
            self.changed.entry(number).or_default().extend(why);
        }
    }

    /// Copies and parts that compilers make are called so; whose part differs may have a changed source itself.
    pub(super) fn complete_reasons(&mut self, reasons: &Reasons<'_>) {
        let module = self.pair.new;
        let numbers: Vec<usize> = self.changed.keys().chain(&self.new).copied().collect();
        for number in numbers {
            let Some(item) = module.item(number) else {
                continue;
            };
            let mut more = BTreeSet::new();
            if let Some((of, how)) = names::copy_of(&item.name) {
                more.insert(Why::Copy(of.to_owned(), how.to_owned()));
            } else if self.new.contains(&number) {
                let owner = part_owner(module, item).and_then(|owner| module.item(owner));
                if let Some(owner) = owner {
                    more.insert(Why::Part(owner.name.clone()));
                } else if reasons.was_inlined(item) {
                    more.insert(Why::Outlined);
                }
            }
            let has_part = |why: &Why| matches!(why, Why::HasPart(_));
            let found = self.changed.get(&number);
            if found.is_some_and(|why| why.iter().all(has_part)) {
                more.extend(self.reason(number, None, reasons));
                more.remove(&Why::Code);
            }
            if self.new.contains(&number) {
                self.new_why.insert(number, more);
            } else if let Some(why) = self.changed.get_mut(&number) {
                why.extend(more);
            }
        }
    }

    fn reason(
        &self,
        number: usize,
        differs: Option<&Differs>,
        reasons: &Reasons<'_>,
    ) -> BTreeSet<Why> {
        let pair = self.pair;
        let Some(item) = pair.new.item(number) else {
            return BTreeSet::from([Why::Code]);
        };
        if let Some(owner) = part_owner(pair.new, item).and_then(|o| pair.new.item(o)) {
            return BTreeSet::from([Why::Part(owner.name.clone())]);
        }
        let old = pair.backward.get(number).copied().flatten();
        let declared = reasons.declared.as_ref();
        let concrete = declared.and_then(|[_, after]| after.of(item));
        let before = declared.and_then(|[before, _]| before.of(pair.old.item(old?)?));
        let (mut why, same_source) = concrete.map_or((BTreeSet::new(), false), |concrete| {
            reasons.by_source(before, concrete)
        });
        if !why.is_empty() {
            return why;
        }
        why.extend(
            self.changed_constants(number)
                .into_iter()
                .map(Why::Constant),
        );
        let callee = || self.relied_on(number, differs?);
        let first = || self.first_in(item, differs?, reasons);
        if let Some(concrete) = concrete.filter(|_| why.is_empty()) {
            why.extend(concrete.structs.iter().cloned().map(Why::Struct));
        }
        if why.is_empty() {
            why.extend(callee().map(Why::Registers));
        }
        if why.is_empty() && !same_source {
            why.extend(first().map(Why::First));
        }
        if why.is_empty() {
            why.insert(Why::Code);
            if let (Some(old), Some(new)) = (before, concrete) {
                let now = new.inlined.difference(&old.inlined);
                let lacks =
                    |all: &BTreeSet<Decl>, decl: &Decl| all.iter().all(|d| d.key != decl.key);
                let now = now.filter(|decl| lacks(&old.inlined, decl));
                why.extend(now.map(|decl| Why::Inlines(decl.name.clone())));
                let gone = old.inlined.difference(&new.inlined);
                let gone = gone.filter(|decl| lacks(&new.inlined, decl));
                why.extend(gone.map(|decl| Why::InlinesNoMore(decl.name.clone())));
            }
            // These say why it differs.
            if why.len() > 1 {
                why.remove(&Why::Code);
            }
        }
        why
    }

    /// Static constants that a function uses and whose content is another one.
    fn changed_constants(&self, number: usize) -> BTreeSet<String> {
        let pair = self.pair;
        let references = of_item(pair.new, number).into_iter();
        let constants = references.filter_map(|reference| {
            let Meaning::Item(to, _) = reference.meaning else {
                return None;
            };
            let old = pair.backward.get(to).copied().flatten()?;
            let item = pair.new.item(to)?;
            let differs = is_private_constant(pair.new, item)
                && !pair.same(Meaning::Item(old, 0), Meaning::Item(to, 0), None, None);
            differs.then(|| names::source_name(&item.name).to_owned())
        });
        constants.collect()
    }

    /// What was inlined where a function first differs, if it differs wherever it was inlined: by debug information.
    fn first_in(&self, item: &Item, differs: &Differs, reasons: &Reasons<'_>) -> Option<String> {
        let new = self.pair.new;
        let inlined = reasons.inlined.as_ref()?;
        let section = item.section?;
        let (_, at) = differs.get(&new.item_at(section, item.start)?)?;
        let name = inlined.at(section, item.start.saturating_add(*at))?;
        // Where it was inlined and nothing differs, it is not what changed.
        let differs_at = |(section, at)| {
            let item = new.item_at(section, at);
            item.is_none_or(|i| differs.contains_key(&i) || self.is_part_of(i, differs))
        };
        inlined
            .places(name)
            .all(differs_at)
            .then(|| name.to_owned())
    }

    fn is_part_of(&self, item: usize, differs: &Differs) -> bool {
        let module = self.pair.new;
        let owner = module.item(item).and_then(|i| part_owner(module, i));
        self.new.contains(&item) || owner.is_some_and(|o| differs.contains_key(&o))
    }

    /// A changed function that this one calls, if all that differs are registers and moves.
    fn relied_on(&self, number: usize, differs: &Differs) -> Option<String> {
        let pair = self.pair;
        let old = pair.backward.get(number).copied().flatten()?;
        let (a, b) = (
            code::decode(pair.old, old)?,
            code::decode(pair.new, number)?,
        );
        if !code::same_but_registers(pair, &a, &b) {
            return None;
        }
        let mut callees = code::callees(pair.new, &b);
        let callee = callees.find(|to| *to != number && differs.contains_key(to))?;
        pair.new.item(callee).map(|i| i.name.clone())
    }
}
