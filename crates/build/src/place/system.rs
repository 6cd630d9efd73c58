//! The constraint system over all objects. ARCHITECTURE.md has it as equations.
//!
//! Unknown are a base for each section and an address for each global name. A section at a base is an assumption from
//! which all its relocations follow: each says where its symbol lies, so where another section begins, and what must
//! be there. An assumption that contradicts what is known is dropped; one that is the only one left, and made of
//! enough code not to be chance, is known, and so is all that follows from it.

use std::cell::Cell;
use std::collections::HashMap;

use object::elf;

use super::follow::{Contradiction, Implied};
use super::linked::Linked;
use super::relocatable::{Kind, Place, Relocatable, Section};
use super::{Refusal, search, unwinding};

/// Fewer fixed bytes than this in only one place of the target may be chance.
const ENOUGH: usize = 24;
/// More candidates than this say nothing.
const CROWD: usize = 1024;
/// How often each relocation is read and each line of 64 bytes compared, on the average, at most.
const OFTEN: u64 = 50;
/// What is granted to small programs besides.
const ALWAYS: u64 = 10_000_000;
pub(super) const NONE: u32 = u32::MAX;

/// A section of an object that has an address of its own.
pub(super) struct Part {
    pub object: u32,
    pub section: u32,
    /// How many bytes no relocation touches.
    fixed: usize,
    /// Where its fixed bytes are, if it was looked for.
    pub candidates: Vec<u64>,
    /// There were too many to keep.
    pub crowded: bool,
    /// Where it lies (svma; in the TLS block for thread-local ones).
    pub base: Option<u64>,
    /// A copy that the linker left out, as it may.
    pub discarded: bool,
    /// Why the last candidate was dropped.
    pub dropped: Option<(u64, Contradiction)>,
}

/// A global name.
#[derive(Default)]
pub(super) struct Name {
    pub fact: Option<Fact>,
    /// (object, symbol).
    pub definitions: Vec<(u32, u32)>,
    /// The one that all references mean: neither weak nor one of several copies.
    pub strong: Option<(u32, u32)>,
    /// The last one of those; objects of two programs have several.
    firm: Option<(u32, u32)>,
    /// A function that chooses a function: references lead elsewhere.
    pub indirect: bool,
}

/// Where something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Address(u64),
    ThreadLocal(u64),
}

/// A section that must lie at a base but is not there.
pub(super) struct Broken {
    pub part: u32,
    pub base: u64,
}

pub(super) struct System<'s, 'a> {
    pub target: &'s Linked<'a>,
    pub objects: &'s [Relocatable<'a>],
    pub parts: Vec<Part>,
    /// Object, section: part.
    index: Vec<Vec<u32>>,
    pub names: Vec<Name>,
    /// Object, symbol: name.
    pub named: Vec<Vec<u32>>,
    /// Symbols in sections of strings and constants: (object, symbol).
    pub pieces: HashMap<(u32, u32), u64>,
    queue: Vec<(u32, u64, bool)>,
    pub broken: Option<Broken>,
    work: Cell<u64>,
    limit: u64,
}

impl<'s, 'a> System<'s, 'a> {
    /// Solves it as far as it can be solved.
    pub fn solve(
        target: &'s Linked<'a>,
        objects: &'s [Relocatable<'a>],
    ) -> Result<System<'s, 'a>, Refusal> {
        let mut system = System {
            target,
            objects,
            parts: Vec::new(),
            index: Vec::new(),
            names: Vec::new(),
            named: Vec::new(),
            pieces: HashMap::new(),
            queue: Vec::new(),
            broken: None,
            work: Cell::new(0),
            limit: 0,
        };
        system.number();
        system.limit = system.granted();
        system.look_for_code();
        system.take_exports();
        system.narrow()?;
        system.place_exception_tables();
        system.check_copies();
        if system.exhausted() {
            return Err(Refusal::TooMuch);
        }
        Ok(system)
    }

    /// Gives parts and names their numbers.
    fn number(&mut self) {
        let mut by_name: HashMap<&'a [u8], u32> = HashMap::new();
        for (number, object) in (0u32..).zip(self.objects) {
            let mut index = vec![NONE; object.sections.len()];
            for ((at, section), slot) in (0u32..).zip(&object.sections).zip(&mut index) {
                if !section.placed {
                    continue;
                }
                *slot = u32::try_from(self.parts.len()).unwrap_or(NONE);
                self.parts.push(Part {
                    object: number,
                    section: at,
                    fixed: section.fixed().map(|fixed| fixed.len()).sum(),
                    candidates: Vec::new(),
                    crowded: false,
                    base: None,
                    discarded: false,
                    dropped: None,
                });
            }
            self.index.push(index);
            let mut named = vec![NONE; object.symbols.len()];
            for ((at, symbol), slot) in (0u32..).zip(&object.symbols).zip(&mut named) {
                if symbol.local || symbol.name.is_empty() {
                    continue;
                }
                let fresh = u32::try_from(self.names.len()).unwrap_or(NONE);
                let name = *by_name.entry(symbol.name).or_insert(fresh);
                if name == fresh {
                    self.names.push(Name::default());
                }
                *slot = name;
                let in_group = object
                    .section_of(symbol)
                    .is_some_and(|(_, section)| section.comdat.is_some());
                let Some(name) = self.names.get_mut(name as usize) else {
                    continue;
                };
                if symbol.place == Place::Undefined {
                    continue;
                }
                name.indirect |= symbol.kind == elf::STT_GNU_IFUNC;
                if !symbol.weak && !in_group && symbol.place != Place::Common {
                    name.strong = name.firm.is_none().then_some((number, at));
                    name.firm = Some((number, at));
                }
                name.definitions.push((number, at));
            }
            self.named.push(named);
        }
    }

    fn granted(&self) -> u64 {
        let sections = self.objects.iter().flat_map(|object| &object.sections);
        let amount = sections.map(|s| s.relocations.len().saturating_add(s.data.len() / 64));
        let amount = amount.fold(0, usize::saturating_add) as u64;
        amount.saturating_mul(OFTEN).saturating_add(ALWAYS)
    }

    /// Looks for each section of code.
    fn look_for_code(&mut self) {
        let census = search::Census::of(self.target);
        let mut anchors = Vec::new();
        // Copies of inline functions and templates are looked for once.
        let mut first: HashMap<u64, u32> = HashMap::new();
        let mut copies: Vec<(u32, u32)> = Vec::new();
        for (number, part) in (0u32..).zip(&self.parts) {
            let Some(section) = self.section(part).filter(|s| s.kind == Kind::Code) else {
                continue;
            };
            if section.unknown.is_some() {
                continue;
            }
            let of = *first.entry(section.digest()).or_insert(number);
            let original = self.parts.get(of as usize).and_then(|p| self.section(p));
            if of != number && original.is_some_and(|original| original.is_alike(section)) {
                copies.push((number, of));
            } else {
                anchors.extend(census.anchor(section, number));
            }
        }
        let mut parts = std::mem::take(&mut self.parts);
        search::find(self.target, anchors, |number, base| {
            self.worked(1);
            let Some(part) = parts.get_mut(number as usize).filter(|part| !part.crowded) else {
                return !self.exhausted();
            };
            if let Some(section) = self.section(part)
                && self.fits(section, base)
            {
                part.crowded = part.candidates.len() >= CROWD;
                part.candidates.push(base);
                if part.crowded {
                    part.candidates.clear();
                }
            }
            !self.exhausted()
        });
        for (number, of) in copies {
            let found = parts.get(of as usize);
            let found = found.map(|part| (part.candidates.clone(), part.crowded));
            if let (Some(part), Some((candidates, crowded))) =
                (parts.get_mut(number as usize), found)
            {
                self.worked(candidates.len() as u64);
                (part.candidates, part.crowded) = (candidates, crowded);
            }
        }
        self.parts = parts;
    }

    /// The dynamic symbol table says where what is exported lies.
    fn take_exports(&mut self) {
        let mut exports: HashMap<&[u8], Option<u64>> = HashMap::new();
        for (name, svma) in self.target.exports() {
            exports
                .entry(name)
                .and_modify(|known| *known = known.filter(|&known| known == svma))
                .or_insert(Some(svma));
        }
        let mut facts = Implied::default();
        for (object, named) in self.objects.iter().zip(&self.named) {
            for (symbol, &name) in object.symbols.iter().zip(named) {
                if name != NONE
                    && let Some(Some(svma)) = exports.get(symbol.name)
                {
                    facts.names.insert(name, Fact::Address(*svma));
                }
            }
        }
        self.take(facts);
        self.drain();
    }

    /// Drops candidates until nothing changes. Sections that can only be in one place come first: most is known from
    /// them when the others have their turn.
    fn narrow(&mut self) -> Result<(), Refusal> {
        let mut order: Vec<u32> = (0..u32::try_from(self.parts.len()).unwrap_or(NONE)).collect();
        let fixed = |number: &u32| self.parts.get(*number as usize).map_or(0, |p| p.fixed);
        order.sort_by_key(|number| std::cmp::Reverse(fixed(number)));
        let mut most = 1;
        loop {
            let mut changed = false;
            self.worked(order.len() as u64 / 16);
            for &number in &order {
                let part = self.parts.get(number as usize);
                if part.is_some_and(|part| part.candidates.len() <= most) {
                    changed |= self.narrow_one(number);
                }
                if self.exhausted() {
                    return Err(Refusal::TooMuch);
                }
            }
            most = match (changed, most) {
                (true, _) => 1,
                (false, CROWD..) => return Ok(()),
                (false, _) => most.saturating_mul(8),
            };
        }
    }

    /// Call frame information says where a known function's exception table lies.
    fn place_exception_tables(&mut self) {
        let mut wanted = Vec::new();
        for (number, object) in (0u32..).zip(self.objects) {
            for (function, table) in unwinding::pairs(object) {
                let lies = self
                    .part_of(number, function.0)
                    .and_then(|part| self.parts.get(part as usize)?.base);
                // A copy that was left out lies where the kept one does, whose table may be another.
                let copy = object.sections.get(function.0);
                let certain = copy.is_some_and(|section| section.comdat.is_none());
                if let (Some(base), Some(part)) = (lies, self.part_of(number, table.0)) {
                    wanted.push((base.wrapping_add(function.1), part, table.1, certain));
                }
            }
        }
        if wanted.is_empty() {
            return;
        }
        let tables = unwinding::tables(self.target);
        for (function, number, offset, certain) in wanted {
            let Some(base) = tables.get(&function).and_then(|at| at.checked_sub(offset)) else {
                continue;
            };
            self.queue.push((number, base, certain));
            self.drain();
            let known = self.parts.get(number as usize).and_then(|part| part.base);
            if certain && known != Some(base) {
                self.broken.get_or_insert(Broken { part: number, base });
            }
        }
    }

    /// Of copies that several objects may have, one is in the program: where the name is known to lie.
    fn check_copies(&mut self) {
        for name in self.names.iter().filter(|name| !name.indirect) {
            let Some(fact) = name.fact else {
                continue;
            };
            let copy = |&(object, symbol): &(u32, u32)| {
                let (number, base) = self.begins(object, symbol, fact)?;
                let part = self.parts.get(number as usize)?;
                let kept = part.base == Some(base);
                self.section(part)?.comdat.map(|_| (number, base, kept))
            };
            let copies: Option<Vec<_>> = name.definitions.iter().map(copy).collect();
            if let Some(&[(part, base, _), ..]) = copies.as_deref()
                && copies.iter().flatten().all(|(_, _, kept)| !kept)
            {
                self.broken.get_or_insert(Broken { part, base });
            }
        }
    }

    /// Counts relocations that are read and lines of 64 bytes that are compared.
    pub fn worked(&self, amount: u64) {
        self.work.set(self.work.get().saturating_add(amount));
    }

    fn exhausted(&self) -> bool {
        self.work.get() >= self.limit
    }

    fn narrow_one(&mut self, number: u32) -> bool {
        let Some(part) = self.parts.get_mut(number as usize) else {
            return false;
        };
        if part.base.is_some() || part.discarded || part.crowded || part.candidates.is_empty() {
            return false;
        }
        let enough = part.fixed >= ENOUGH;
        let candidates = std::mem::take(&mut part.candidates);
        let before = candidates.len();
        let (mut left, mut last, mut dropped) = (Vec::new(), Implied::default(), None);
        for base in candidates {
            match self.follow(number, base) {
                Ok(implied) => {
                    left.push(base);
                    last = implied;
                }
                Err(contradiction) => dropped = Some((base, contradiction)),
            }
        }
        let only = match left.as_slice() {
            [base] if enough => Some(*base),
            _ => None,
        };
        let changed = left.len() != before || only.is_some();
        if let Some(part) = self.parts.get_mut(number as usize) {
            part.candidates = left;
            part.dropped = dropped.or(part.dropped.take());
            part.base = only;
        }
        if only.is_some() {
            self.take(last);
            self.drain();
        }
        changed
    }

    /// Makes knowledge of what follows from knowledge.
    fn take(&mut self, implied: Implied) {
        self.pieces.extend(implied.pieces);
        let mut bases: Vec<(u32, u64)> = implied.bases.into_iter().collect();
        bases.sort_unstable();
        self.queue
            .extend(bases.into_iter().map(|(part, base)| (part, base, true)));
        let mut names: Vec<(u32, Fact)> = implied.names.into_iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        for (number, fact) in names {
            let Some(name) = self.names.get_mut(number as usize) else {
                continue;
            };
            name.fact = Some(fact);
            if name.indirect {
                continue;
            }
            let strong = name.strong;
            for (object, symbol) in name.definitions.clone() {
                let certain = strong == Some((object, symbol));
                if let Some((part, base)) = self.begins(object, symbol, fact) {
                    self.queue.push((part, base, certain));
                }
            }
        }
    }

    /// The part that defines a symbol, and where it begins if the symbol lies there.
    fn begins(&self, object: u32, symbol: u32, fact: Fact) -> Option<(u32, u64)> {
        let (Fact::Address(at) | Fact::ThreadLocal(at)) = fact;
        let relocatable = self.objects.get(object as usize)?;
        let symbol = relocatable.symbols.get(symbol as usize)?;
        let (section, _) = relocatable.section_of(symbol)?;
        let part = self.part_of(object, section)?;
        Some((part, at.checked_sub(symbol.value)?))
    }

    /// Places what must be where it was referred to.
    fn drain(&mut self) {
        while let Some((number, base, certain)) = self.queue.pop() {
            let Some(part) = self.parts.get(number as usize) else {
                continue;
            };
            if part.base.is_some() || self.exhausted() {
                continue;
            }
            match self.place(number, base) {
                Some(implied) => {
                    if let Some(part) = self.parts.get_mut(number as usize) {
                        part.base = Some(base);
                        part.discarded = false;
                    }
                    self.take(implied);
                }
                None if certain => {
                    self.broken.get_or_insert(Broken { part: number, base });
                }
                None => {
                    let copy = self.parts.get(number as usize);
                    let copy = copy.and_then(|part| self.section(part)?.comdat).is_some();
                    if let Some(part) = self.parts.get_mut(number as usize) {
                        part.discarded = copy;
                    }
                }
            }
        }
    }

    fn place(&self, number: u32, base: u64) -> Option<Implied> {
        let section = self.section(self.parts.get(number as usize)?)?;
        if section.unknown.is_some() || !self.fits(section, base) {
            return None;
        }
        self.follow(number, base).ok()
    }

    /// Whether the bytes that no relocation touches are at `base`.
    pub fn fits(&self, section: &Section<'_>, base: u64) -> bool {
        let lines = (section.data.len() as u64 / 64).saturating_add(1);
        self.worked(lines);
        if base & section.align.wrapping_sub(1) != 0 {
            return false;
        }
        self.runs(section, base)
            .is_some_and(|runs| search::matches(section, runs))
    }

    /// What the target has where a section would lie; empty for one of zeroes, if there are zeroes.
    pub fn runs(&self, section: &Section<'_>, base: u64) -> Option<&'a [u8]> {
        let zero: &[u8] = &[];
        let end = base.checked_add(section.size)?;
        match section.kind {
            Kind::Zero => {
                let zeroes = self.target.is_zero(base..end) && !self.target.written(base..end);
                zeroes.then_some(zero)
            }
            Kind::ThreadLocal(zeroes) => {
                let tls = self.target.tls.filter(|tls| end <= tls.mem_size)?;
                if zeroes {
                    return Some(zero);
                }
                self.target.at(tls.svma.checked_add(base)?, section.size)
            }
            _ => self.target.at(base, section.size),
        }
    }

    pub fn section(&self, part: &Part) -> Option<&'s Section<'a>> {
        let object = self.objects.get(part.object as usize)?;
        object.sections.get(part.section as usize)
    }

    pub fn part_of(&self, object: u32, section: usize) -> Option<u32> {
        let part = *self.index.get(object as usize)?.get(section)?;
        (part != NONE).then_some(part)
    }

    /// The name that a global symbol defines or refers to.
    pub fn name_of(&self, object: u32, symbol: usize) -> Option<&Name> {
        let number = *self.named.get(object as usize)?.get(symbol)?;
        self.names.get(number as usize)
    }
}
