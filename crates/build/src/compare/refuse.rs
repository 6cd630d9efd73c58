//! What must not become a patch by itself.

use std::collections::BTreeSet;
use std::fmt;

use object::elf;

use super::correlate::meant;
use super::decide::{State, part_owner};
use super::dwarf;
use super::module::{Item, Kind, Meaning, Module, is_constant};
use super::pair::{Range, is_private_constant};
use super::plan::Plan;
use super::returns::loops_for_ever;
use super::types::Structs;
use super::{Options, names};

/// A thing that keeps a difference from becoming a patch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The function, variable, struct or section.
    pub symbol: String,
    /// What kind of thing it is.
    pub kind: RefusalKind,
    /// Why, and what to do: one sentence.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// A variable that exists begins with another value, or has another size.
    Data,
    /// A struct changed of which objects may live on.
    Struct,
    /// A function never returns, or runs once.
    NeverReturns,
    /// Code that no function symbol covers, or an assembler source.
    Assembly,
    /// A static variable of a function may be one that the original has.
    Static,
    /// What runs before `main` or at exit.
    Constructor,
    /// A variable in a section of its own kind, which the program may go through as a whole.
    Section,
    /// A thread-local variable that running threads have no room for.
    ThreadLocal,
    /// A function that chooses a function.
    Ifunc,
    /// Two names of one function became two functions.
    Alias,
}

impl RefusalKind {
    /// As `--allow` takes it.
    pub fn name(self) -> &'static str {
        match self {
            RefusalKind::Data => "data",
            RefusalKind::Struct => "struct",
            RefusalKind::NeverReturns => "never-returns",
            RefusalKind::Assembly => "assembly",
            RefusalKind::Static => "static",
            RefusalKind::Constructor => "constructor",
            RefusalKind::Section => "section",
            RefusalKind::ThreadLocal => "thread-local",
            RefusalKind::Ifunc => "ifunc",
            RefusalKind::Alias => "alias",
        }
    }

    /// Whether an author can take it on. The others no patch can carry out.
    pub fn allowable(self) -> bool {
        !matches!(
            self,
            RefusalKind::ThreadLocal | RefusalKind::Ifunc | RefusalKind::Alias
        )
    }
}

/// All refusals: those that stand, and those that the author has taken on.
pub(super) fn refuse(
    state: &State<'_, '_, '_>,
    described: [&Module<'_>; 2],
    plan: &Plan,
    split: &[String],
    options: &Options,
) -> (Vec<Refusal>, Vec<Refusal>) {
    let mut found = Found(BTreeSet::new());
    found.data(state, plan);
    found.functions(state);
    found.assembly(state);
    found.constructors(state);
    found.structs(state, described);
    for name in split {
        let reason = format!(
            "`{name}` is another name of a function in the running program and a function of its own in the patched \
             object, and one entry can't lead to two; give both the change, or compile with -fno-ipa-icf"
        );
        found.add(RefusalKind::Alias, name, reason);
    }
    let asked = |r: &Refusal| {
        let named = |a: &String| *a == r.symbol || a == r.kind.name();
        r.kind.allowable() && options.allow.iter().any(named)
    };
    let (allowed, refused) = found.0.into_iter().partition(asked);
    (refused, allowed)
}

struct Found(BTreeSet<Refusal>);

impl Found {
    fn add(&mut self, kind: RefusalKind, symbol: &str, reason: String) {
        self.0.insert(Refusal {
            symbol: symbol.to_owned(),
            kind,
            reason,
        });
    }

    fn data(&mut self, state: &State<'_, '_, '_>, plan: &Plan) {
        let pair = state.pair;
        for (number, item) in pair
            .new
            .items
            .iter()
            .enumerate()
            .filter(|(_, i)| !i.kind.is_code())
        {
            match pair.old_item_of(number) {
                Some(old) => self.existing(state, old, item),
                None if state.absent.contains(&number) && !plan.items.contains(&number) => {}
                None => self.new_variable(state, plan, number, item),
            }
        }
        for unclear in state.unclear {
            let Some(item) = pair.new.item(unclear.new) else {
                continue;
            };
            let candidates = unclear.candidates.iter().filter_map(|&c| pair.old.item(c));
            let candidates: Vec<String> = candidates.map(|c| format!("`{}`", c.name)).collect();
            let name = names::source_name(&item.name);
            let reason = format!(
                "it can't be told whether the static variable `{}` is one that the original has ({}), since no function \
                 uses both; if it is a new one, allow it with --allow {name}",
                item.name,
                candidates.join(", ")
            );
            self.add(RefusalKind::Static, name, reason);
        }
    }

    fn existing(&mut self, state: &State<'_, '_, '_>, old: &Item, new: &Item) {
        let name = &old.name;
        if is_private_constant(state.pair.new, new) && is_private_constant(state.pair.old, old) {
            // Functions that use it are changed and bring the new one. But a table of functions is often handed to others.
            let pair = state.pair;
            if points_to_code(pair.new, new) && !pair.same_value(old, new) {
                let reason = format!(
                    "the static table of functions `{name}` changed, and whoever has kept its address goes on with the \
                     old one; allow that with --allow {name}"
                );
                self.add(RefusalKind::Data, name, reason);
            }
            return;
        }
        if old.kind != new.kind {
            let reason =
                format!("the variable `{name}` is thread-local in only one of the objects");
            self.add(RefusalKind::ThreadLocal, name, reason);
        } else if old.size != new.size {
            let reason = format!(
                "`{name}` has {} bytes in the running program and {} in the patched object, and can't grow or shrink \
                 where it is; keep its size, or allow that the new code uses it as it is with --allow {name}",
                old.size, new.size
            );
            self.add(RefusalKind::Data, name, reason);
        } else if !state.pair.same_value(old, new) {
            let what = if name.starts_with("_ZTV") {
                "the virtual table"
            } else if new
                .section
                .and_then(|s| state.pair.new.section(s))
                .is_some_and(is_constant)
            {
                "the constant"
            } else {
                "the variable"
            };
            let reason = format!(
                "{what} `{name}` begins with another value, which a running program does not see; set it at run time, \
                 or allow that it keeps the value it has with --allow {name}"
            );
            self.add(RefusalKind::Data, name, reason);
        }
    }

    fn new_variable(&mut self, state: &State<'_, '_, '_>, plan: &Plan, number: usize, item: &Item) {
        let name = &item.name;
        if item.kind == Kind::ThreadLocal {
            let reason = format!(
                "the new variable `{name}` is thread-local, and running threads have no room for it; use a global variable"
            );
            self.add(RefusalKind::ThreadLocal, name, reason);
            return;
        }
        let Some(section) = item.section.and_then(|s| state.pair.new.section(s)) else {
            return;
        };
        let ordinary = [
            ".data", ".bss", ".rodata", ".lbss", ".ldata", ".lrodata", ".sdata", ".sbss",
        ];
        let ordinary = ordinary.iter().any(|o| {
            section
                .name
                .strip_prefix(o)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if !ordinary
            && (item.global
                || !is_private_constant(state.pair.new, item)
                || !plan.items.contains(&number))
        {
            let reason = format!(
                "the new variable `{name}` lies in section `{}`, which the running program may go through as a whole and \
                 would not find it in; allow that with --allow {name}",
                section.name
            );
            self.add(RefusalKind::Section, name, reason);
        }
    }

    fn functions(&mut self, state: &State<'_, '_, '_>) {
        let pair = state.pair;
        for &number in state.changed.keys() {
            let old = pair.old_of(number);
            let (Some(item), Some(old)) = (pair.new.item(number), old) else {
                continue;
            };
            let name = &item.name;
            if item.kind == Kind::Ifunc || pair.old.item(old).is_some_and(|o| o.kind == Kind::Ifunc)
            {
                let reason = format!(
                    "`{name}` chooses a function when the program is linked (ifunc) and has done so; change the functions \
                     that it chooses from"
                );
                self.add(RefusalKind::Ifunc, name, reason);
            } else if name == "main" || names::is_rust_main(name) {
                let reason = format!(
                    "`{name}` runs once and stays on the stack until the program ends, so that its new version would never \
                     run; move the change to a function that it calls, or allow it with --allow {name}"
                );
                self.add(RefusalKind::NeverReturns, name, reason);
            } else if part_owner(pair.new, item).is_none() && loops_for_ever(pair.old, old) {
                let reason = format!(
                    "`{name}` never returns, so that a task in it never leaves the old version; move the change to a \
                     function that it calls, or allow it with --allow {name}"
                );
                self.add(RefusalKind::NeverReturns, name, reason);
            }
            if pair.old.item(old).is_some_and(|o| o.guessed) || item.guessed {
                self.add(RefusalKind::Assembly, name, assembly(name));
            }
        }
        for &number in &state.new {
            if let Some(item) = pair.new.item(number).filter(|i| i.kind == Kind::Ifunc) {
                let reason = format!(
                    "the new function `{}` chooses a function when the program is linked (ifunc); define an ordinary one",
                    item.name
                );
                self.add(RefusalKind::Ifunc, &item.name, reason);
            }
        }
    }

    /// Code that belongs to no function is compared as it stands.
    fn assembly(&mut self, state: &State<'_, '_, '_>) {
        let pair = state.pair;
        if (!state.changed.is_empty() || !state.new.is_empty()) && dwarf::is_assembly(pair.new) {
            for &number in state.changed.keys().chain(&state.new) {
                if let Some(item) = pair.new.item(number) {
                    self.add(RefusalKind::Assembly, &item.name, assembly(&item.name));
                }
            }
        }
        let (old, new) = (loose_code(pair.old), loose_code(pair.new));
        let mut olds = old.iter();
        let same = old.len() == new.len()
            && new.iter().all(|(_, n)| {
                olds.next()
                    .is_some_and(|(_, o)| pair.same_bytes(*o, *n, None))
            });
        if !same && let Some((section, _)) = new.first().or(old.first()) {
            let reason = format!(
                "code in section `{section}` that belongs to no function differs, and can't be replaced; give assembler \
                 functions a type and a size (.type, .size)"
            );
            self.add(RefusalKind::Assembly, section, reason);
        }
    }

    fn constructors(&mut self, state: &State<'_, '_, '_>) {
        let pair = state.pair;
        let (old, new) = (constructors(pair.old), constructors(pair.new));
        for name in new.difference(&old) {
            let reason = format!(
                "`{name}` runs before `main` or at exit, and is new: the running program never calls it; allow that with \
                 --allow {name}"
            );
            self.add(RefusalKind::Constructor, name, reason);
        }
        for number in state.changed.keys() {
            if let Some(item) = pair
                .new
                .item(*number)
                .filter(|i| new.contains(&i.name) && old.contains(&i.name))
            {
                let reason = format!(
                    "`{0}` runs before `main` or at exit, and has changed: the running program has called it already; \
                     allow that with --allow {0}",
                    item.name
                );
                self.add(RefusalKind::Constructor, &item.name, reason);
            }
        }
    }

    fn structs(&mut self, state: &State<'_, '_, '_>, described: [&Module<'_>; 2]) {
        if state.changed.is_empty() && state.new.is_empty() {
            return;
        }
        let [old, new] = described.map(Structs::read);
        let (Some(old), Some(new)) = (old, new) else {
            return;
        };
        for changed in Structs::changed(&old, &new) {
            let name = &changed.name;
            let what = &changed.what;
            let (kind, has) = if changed.is_table {
                ("the virtual table of `", "that lead to it")
            } else {
                ("`struct ", "of it that live on")
            };
            let reason = format!(
                "{kind}{name}` changed ({what}), and objects {has} have the old layout; keep the layout, or allow it with \
                 --allow '{name}' if none does"
            );
            self.add(RefusalKind::Struct, name, reason);
        }
    }
}

/// Whether a constant holds the address of a function, or of something in another object that may be one.
fn points_to_code(module: &Module<'_>, item: &Item) -> bool {
    let relas = module.relas_of(item);
    relas
        .iter()
        .any(|rela| match module.meaning(rela.symbol, rela.addend) {
            Meaning::Item(to, 0) => module.item(to).is_some_and(|i| i.kind.is_code()),
            Meaning::Extern(..) => true,
            _ => false,
        })
}

fn assembly(name: &str) -> String {
    format!(
        "`{name}` is written in assembler, where it can't be told what its callers rely on; allow it with --allow {name}"
    )
}

/// Stretches of code outside of all functions that are more than padding, with the names of their sections.
fn loose_code<'m>(module: &'m Module<'_>) -> Vec<(&'m str, Range)> {
    let mut loose = Vec::new();
    for (number, section) in module.image.sections.iter().enumerate() {
        if section.flags & elf::SHF_EXECINSTR.0 == 0 || !section.is_alloc() {
            continue;
        }
        let items = module
            .items_in(number)
            .iter()
            .filter_map(|&i| module.item(i));
        let mut from = 0u64;
        let ends = items.map(|i| (i.start, i.start.saturating_add(i.size)));
        for (start, end) in ends.chain([(section.size, section.size)]) {
            if start > from {
                let gap = Range {
                    section: number,
                    start: from,
                    len: start.saturating_sub(from),
                };
                if !is_padding(
                    section
                        .data
                        .get(from as usize..start as usize)
                        .unwrap_or(&[]),
                ) {
                    loose.push((section.name.as_str(), gap));
                }
            }
            from = from.max(end);
        }
    }
    loose
}

fn is_padding(bytes: &[u8]) -> bool {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    bytes.iter().all(|&b| b == 0)
        || decoder
            .iter()
            .all(|i| !i.is_invalid() && matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3))
}

/// The names of the functions that the loader calls.
fn constructors(module: &Module<'_>) -> BTreeSet<String> {
    let kinds = [
        ".init_array",
        ".fini_array",
        ".preinit_array",
        ".ctors",
        ".dtors",
    ];
    let mut names = BTreeSet::new();
    for section in module.image.sections.iter().filter(|s| s.is_alloc()) {
        if kinds.iter().any(|k| section.name.starts_with(k)) {
            for rela in &section.relas {
                match meant(module, rela) {
                    Meaning::Item(item, _) => {
                        names.extend(module.item(item).map(|i| i.name.clone()))
                    }
                    Meaning::Extern(symbol, _) => {
                        names.extend(module.image.symbols.get(symbol).map(|s| s.name.clone()));
                    }
                    _ => {}
                }
            }
        }
    }
    names
}
