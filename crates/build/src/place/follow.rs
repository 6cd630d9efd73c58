//! What follows from the assumption that a section lies at a base: one relocation after the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use object::elf;

use super::relocatable::{Kind, Place, Section, Symbol};
use super::rewrite::{self, Value};
use super::system::{Fact, NONE, System};

/// What is wrong with a section at a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contradiction {
    /// Offset of the relocation in the section.
    pub offset: u32,
    pub cause: Cause,
}

/// Why a relocation contradicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// No linker writes that.
    Form,
    /// It leads to another import.
    Import(String),
    /// The symbol lies elsewhere.
    Elsewhere { is: u64, known: u64 },
    /// It is thread-local on one side only, or at an impossible address.
    Impossible,
    /// What would be there has another content: part, base.
    Content(u32, u64),
    /// The string or constant has another content: where it is, (object, section, offset).
    Merged(u64, (u32, u32, u64)),
}

/// What follows from an assumption.
#[derive(Default)]
pub(super) struct Implied {
    pub bases: HashMap<u32, u64>,
    pub names: HashMap<u32, Fact>,
    pub pieces: HashMap<(u32, u32), u64>,
}

impl System<'_, '_> {
    /// What follows if a part lies at `base`.
    pub fn contradiction(&self, number: u32, base: u64) -> Option<Contradiction> {
        self.follow(number, base).err()
    }

    pub fn follow(&self, number: u32, base: u64) -> Result<Implied, Contradiction> {
        let mut implied = Implied::default();
        let Some(part) = self.parts.get(number as usize) else {
            return Ok(implied);
        };
        let Some(section) = self.section(part) else {
            return Ok(implied);
        };
        let lies = match (section.kind, self.target.tls) {
            (Kind::ThreadLocal(_), Some(tls)) => tls.svma.wrapping_add(base),
            _ => base,
        };
        implied.bases.insert(number, base);
        let count = section.relocations.len() as u64;
        self.worked(count.saturating_add(1));
        for relocation in &section.relocations {
            let contradiction = |cause| Contradiction {
                offset: relocation.offset,
                cause,
            };
            let value = rewrite::read(self.target, section, relocation, lies)
                .ok_or_else(|| contradiction(Cause::Form))?;
            self.bind(
                (part.object, relocation.symbol, relocation.addend),
                value,
                &mut implied,
            )
            .map_err(contradiction)?;
        }
        implied.bases.remove(&number);
        Ok(implied)
    }

    /// What a value says about a symbol.
    fn bind(
        &self,
        (object, number, addend): (u32, u32, i64),
        value: Value<'_>,
        implied: &mut Implied,
    ) -> Result<(), Cause> {
        let relocatable = self.objects.get(object as usize);
        let Some(symbol) = relocatable.and_then(|o| o.symbols.get(number as usize)) else {
            return Ok(());
        };
        let fact = match value {
            Value::Any => return Ok(()),
            Value::Import(name) if !symbol.local && symbol.name == name => return Ok(()),
            Value::Import(name) => {
                return Err(Cause::Import(String::from_utf8_lossy(name).into_owned()));
            }
            Value::Address(at) => Fact::Address(at),
            Value::ThreadLocal(at) => Fact::ThreadLocal(at),
        };
        if symbol.local {
            return self.bind_definition((object, number), symbol, fact, addend, implied);
        }
        // A weak name that nothing defines is what the linker makes of it.
        if symbol.place == Place::Undefined && symbol.weak {
            return Ok(());
        }
        let stub = match fact {
            Fact::Address(at) => {
                let is_possible = self.target.has_no_sections() || self.target.in_plt(at);
                self.target.stub(at).filter(|_| is_possible)
            }
            Fact::ThreadLocal(_) => None,
        };
        if stub == Some(symbol.name) {
            return Ok(());
        }
        let names = self.named.get(object as usize);
        let Some(&name_number) = names.and_then(|n| n.get(number as usize)) else {
            return Ok(());
        };
        let Some(name) = self.names.get(name_number as usize) else {
            return Ok(());
        };
        if name.indirect {
            return Ok(());
        }
        // A function of the objects may look like a stub.
        if let (Some(stub), true) = (stub, name.definitions.is_empty()) {
            return Err(Cause::Import(String::from_utf8_lossy(stub).into_owned()));
        }
        let known = name
            .fact
            .or_else(|| implied.names.get(&name_number).copied());
        if let Some(known) = known {
            return agree(known, fact);
        }
        if let (Fact::Address(at), true) = (fact, name.definitions.is_empty())
            && !self.target.may_be(symbol.name, at)
        {
            return Err(Cause::Impossible);
        }
        implied.names.insert(name_number, fact);
        let Some((object, number)) = name.strong else {
            return Ok(());
        };
        let defined = self.objects.get(object as usize);
        match defined.and_then(|o| o.symbols.get(number as usize)) {
            Some(symbol) => self.bind_definition((object, number), symbol, fact, addend, implied),
            None => Ok(()),
        }
    }

    /// What it means for the section that defines a symbol that the symbol lies there.
    fn bind_definition(
        &self,
        (object, number): (u32, u32),
        symbol: &Symbol<'_>,
        fact: Fact,
        addend: i64,
        implied: &mut Implied,
    ) -> Result<(), Cause> {
        let (Fact::Address(at) | Fact::ThreadLocal(at)) = fact;
        if symbol.place == Place::Absolute {
            return agree(Fact::Address(symbol.value), fact);
        }
        let relocatable = self.objects.get(object as usize);
        let Some((number_of, section)) = relocatable.and_then(|o| o.section_of(symbol)) else {
            return Ok(());
        };
        let thread_local = matches!(section.kind, Kind::ThreadLocal(_));
        if thread_local != matches!(fact, Fact::ThreadLocal(_)) && section.kind != Kind::Other {
            return Err(Cause::Impossible);
        }
        if matches!(section.kind, Kind::Merged(..)) {
            let place = (object, u32::try_from(number_of).unwrap_or(NONE));
            return self.bind_piece((place, number), symbol, section, (at, addend), implied);
        }
        let Some(part) = self.part_of(object, number_of) else {
            return Ok(());
        };
        let base = at.checked_sub(symbol.value).ok_or(Cause::Impossible)?;
        let known = self.parts.get(part as usize).and_then(|part| part.base);
        if let Some(known) = known {
            return agree(Fact::Address(known), Fact::Address(base));
        }
        match implied.bases.entry(part) {
            Entry::Occupied(known) => agree(Fact::Address(*known.get()), Fact::Address(base)),
            Entry::Vacant(_) if !self.fits(section, base) => Err(Cause::Content(part, base)),
            Entry::Vacant(unknown) => {
                unknown.insert(base);
                Ok(())
            }
        }
    }

    /// A string or constant is told by its content.
    fn bind_piece(
        &self,
        ((object, section_number), number): ((u32, u32), u32),
        symbol: &Symbol<'_>,
        section: &Section<'_>,
        (at, addend): (u64, i64),
        implied: &mut Implied,
    ) -> Result<(), Cause> {
        // Which piece a reference to the section as a whole means is in the addend.
        let whole = symbol.kind == elf::STT_SECTION;
        let (offset, at) = if whole {
            (
                symbol.value.wrapping_add_signed(addend),
                at.wrapping_add_signed(addend),
            )
        } else {
            (symbol.value, at)
        };
        let Some(piece) = piece(section, offset) else {
            return Ok(());
        };
        if !whole {
            let known = self.pieces.get(&(object, number));
            let known = known.or_else(|| implied.pieces.get(&(object, number)));
            if let Some(&known) = known {
                return agree(Fact::Address(known), Fact::Address(at));
            }
        }
        let length = piece.len() as u64;
        self.worked(length / 64);
        if self.target.at(at, length) != Some(piece) {
            return Err(Cause::Merged(at, (object, section_number, offset)));
        }
        if !whole {
            implied.pieces.insert((object, number), at);
        }
        Ok(())
    }
}

fn agree(known: Fact, found: Fact) -> Result<(), Cause> {
    match (known, found) {
        _ if known == found => Ok(()),
        (Fact::Address(known), Fact::Address(is))
        | (Fact::ThreadLocal(known), Fact::ThreadLocal(is)) => Err(Cause::Elsewhere { is, known }),
        _ => Err(Cause::Impossible),
    }
}

/// The string or constant at an offset of a merged section, to its end.
pub(super) fn piece<'d>(section: &Section<'d>, offset: u64) -> Option<&'d [u8]> {
    let Kind::Merged(size, width) = section.kind else {
        return None;
    };
    let start = usize::try_from(offset).ok()?;
    let rest = section.data.get(start..)?;
    if size != 0 {
        let left = size.checked_sub(offset.checked_rem(size)?)?;
        return rest.get(..usize::try_from(left).ok()?);
    }
    let width = usize::try_from(width).ok()?;
    if width == 1 {
        return rest.get(..=memchr::memchr(0, rest)?);
    }
    let end = rest
        .chunks_exact(width)
        .position(|unit| unit.iter().all(|&byte| byte == 0))?;
    rest.get(..end.checked_add(1)?.checked_mul(width)?)
}
