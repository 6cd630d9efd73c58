//! Applying the relocations of a patch.

use std::collections::{BTreeMap, BTreeSet};

use super::x86_64::{self, Class, Field, StoreError};
use super::{GotKey, Layout, LinkError, ResolveError, Resolver, Value};
use livegraft_patchfile::{Patch, Place, Relocation, Section, Symbol};

const GOT_SYMBOL: &str = "_GLOBAL_OFFSET_TABLE_";
/// Tells __cxa_atexit whose destructor is registered.
const DSO_HANDLE: &str = "__dso_handle";
const TLS_GET_ADDR: &str = "__tls_get_addr";

/// A link under way.
pub(super) struct Linker<'a, 'o> {
    patch: &'a Patch,
    layout: &'a Layout,
    base: u64,
    resolver: &'a Resolver<'o>,
    /// The patched objects, in whose names undefined symbols are looked up.
    patched: Vec<Option<&'a str>>,
    /// The sections' bytes while they are worked on.
    sections: Vec<Vec<u8>>,
    /// Text, constants and data as they will be in memory; until the end only veneers and slots are in it.
    image: Vec<u8>,
    values: Vec<Option<Value>>,
    /// Relocations by place, to find the call that belongs to a TLS sequence.
    calls: BTreeMap<(usize, u64), usize>,
    /// Calls of __tls_get_addr that are no more.
    dropped: BTreeSet<usize>,
    /// Local-dynamic code gets the thread pointer instead of its module's storage.
    from_thread_pointer: bool,
}

/// The thread-local half of [`Value`].
#[derive(Clone, Copy)]
struct ThreadLocal {
    module: Option<u64>,
    offset: u64,
    tp_offset: Option<i64>,
}

impl<'a, 'o> Linker<'a, 'o> {
    pub fn new(
        patch: &'a Patch,
        layout: &'a Layout,
        base: u64,
        resolver: &'a Resolver<'o>,
    ) -> Result<Linker<'a, 'o>, LinkError> {
        let image_size = usize::try_from(layout.image_size);
        let image_size = image_size.map_err(|_| LinkError::TooLarge {
            size: layout.image_size,
            limit: u64::MAX,
        })?;
        let mut image = vec![0; image_size];
        let text_size = usize::try_from(layout.text_size)
            .unwrap_or(usize::MAX)
            .min(image_size);
        if let Some(text) = image.get_mut(..text_size) {
            text.fill(x86_64::FILLER);
        }
        let places = patch
            .relocations
            .iter()
            .enumerate()
            .map(|(index, r)| ((r.section, r.offset), index));
        Ok(Linker {
            patch,
            layout,
            base,
            resolver,
            patched: patch
                .objects
                .iter()
                .map(|object| object.name.as_deref())
                .collect(),
            sections: patch
                .sections
                .iter()
                .map(|section| section.data.to_vec())
                .collect(),
            image,
            values: vec![None; patch.symbols.len()],
            calls: places.collect(),
            dropped: BTreeSet::new(),
            from_thread_pointer: false,
        })
    }

    /// The image of the block, from its beginning to the last byte that is not zero.
    pub fn run(mut self) -> Result<Vec<u8>, LinkError> {
        self.from_thread_pointer = self.local_dynamic_is_static()?;
        // Sequences first: they decide which calls of __tls_get_addr remain.
        let is_sequence = |r: &Relocation| {
            matches!(
                x86_64::classify(r.r_type),
                Some(Class::GeneralDynamic | Class::LocalDynamic)
            )
        };
        let patch = self.patch;
        for relocation in patch.relocations.iter().filter(|r| is_sequence(r)) {
            self.apply(relocation)?;
        }
        for (index, relocation) in patch.relocations.iter().enumerate() {
            if !is_sequence(relocation) && !self.dropped.contains(&index) {
                self.apply(relocation)?;
            }
        }
        for (bytes, offset) in self.sections.iter().zip(&self.layout.sections) {
            if !bytes.is_empty() {
                x86_64::write(&mut self.image, *offset, bytes).ok_or(LinkError::WrongLayout)?;
            }
        }
        Ok(self.image)
    }

    fn apply(&mut self, r: &Relocation) -> Result<(), LinkError> {
        let class = x86_64::classify(r.r_type).ok_or_else(|| self.unsupported(r))?;
        let addend = i128::from(r.addend);
        let place = i128::from(self.place(r)?);
        let got = i128::from(self.base) + i128::from(self.layout.got);
        match class {
            Class::None => Ok(()),
            Class::Absolute(field) => {
                let address = self.address(r)?;
                self.store(r, field, i128::from(address) + addend)
            }
            Class::Branch | Class::Relative(Field::Signed32) => self.relative(r, place),
            Class::Relative(field) => {
                let address = self.address(r)?;
                self.store(r, field, i128::from(address) + addend - place)
            }
            Class::GotRelative(field) => {
                let slot = self.address_slot(r)?;
                self.store(r, field, i128::from(slot) + addend - place)
            }
            Class::GotOffset(field) => {
                let slot = self.address_slot(r)?;
                self.store(r, field, i128::from(slot) + addend - got)
            }
            Class::FromGot => {
                let address = self.address(r)?;
                self.store(r, Field::Word64, i128::from(address) + addend - got)
            }
            Class::GotBase(field) => self.store(r, field, got + addend - place),
            Class::Size(field) => match self.symbol(r)? {
                Symbol {
                    place: Place::Section(..),
                    size,
                    ..
                } => self.store(r, field, i128::from(*size) + addend),
                _ => Err(self.unsupported(r)),
            },
            Class::GeneralDynamic => self.general_dynamic(r, place),
            Class::LocalDynamic => self.local_dynamic(r, place),
            Class::ModuleOffset(field) => {
                let variable = self.thread_local(r)?;
                let offset = if self.from_thread_pointer {
                    i128::from(self.tp_offset(r, variable)?)
                } else {
                    i128::from(variable.offset)
                };
                self.store(r, field, offset + addend)
            }
            Class::ThreadSlot => {
                let variable = self.thread_local(r)?;
                let offset = self.tp_offset(r, variable)?;
                let slot =
                    self.fill_slot(GotKey::ThreadOffset(r.symbol), &[offset.cast_unsigned()])?;
                self.store(r, Field::Signed32, i128::from(slot) + addend - place)
            }
            Class::ThreadOffset(field) => {
                let variable = self.thread_local(r)?;
                let offset = self.tp_offset(r, variable)?;
                self.store(r, field, i128::from(offset) + addend)
            }
            Class::Descriptor => {
                let variable = self.thread_local(r)?;
                let offset = self.short_tp_offset(r, variable)?;
                let written = x86_64::write_descriptor(self.bytes(r)?, r.offset, offset);
                written.ok_or_else(|| self.unsupported(r))
            }
            Class::DescriptorCall => {
                let written = x86_64::write_descriptor_call(self.bytes(r)?, r.offset);
                written.ok_or_else(|| self.unsupported(r))
            }
        }
    }

    /// S + A - P; a branch that does not reach goes through a veneer.
    fn relative(&mut self, r: &Relocation, place: i128) -> Result<(), LinkError> {
        let address = self.address(r)?;
        let distance = i128::from(address) + i128::from(r.addend) - place;
        let veneer = self.layout.veneers.get(&r.symbol).copied();
        let is_branch = r.addend == -4 && x86_64::is_branch(self.bytes(r)?, r.offset);
        let (Err(_), Some(offset), true) = (i32::try_from(distance), veneer, is_branch) else {
            return self.store(r, Field::Signed32, distance);
        };
        let slot = self.address_slot(r)?;
        let avma = self.base.saturating_add(offset);
        let code = x86_64::veneer(avma, slot).ok_or(LinkError::WrongLayout)?;
        x86_64::write(&mut self.image, offset, &code).ok_or(LinkError::WrongLayout)?;
        self.store(r, Field::Signed32, i128::from(avma) - 4 - place)
    }

    /// A variable whose offset from the thread pointer is known needs no call; else the call stays.
    fn general_dynamic(&mut self, r: &Relocation, place: i128) -> Result<(), LinkError> {
        let variable = self.thread_local(r)?;
        let sequence = x86_64::general_dynamic(self.bytes(r)?, r.offset);
        let call =
            sequence.and_then(|sequence| Some((sequence, self.call_at(r, sequence.call_field)?)));
        if let (Some((sequence, call)), Some(_)) = (call, variable.tp_offset) {
            let offset = self.short_tp_offset(r, variable)?;
            let written = x86_64::write_variable_address(self.bytes(r)?, sequence, offset);
            written.ok_or_else(|| self.unsupported(r))?;
            self.dropped.insert(call);
            return Ok(());
        }
        let module = variable.module.ok_or_else(|| self.no_module(r))?;
        let slot = self.fill_slot(GotKey::Variable(r.symbol), &[module, variable.offset])?;
        self.store(
            r,
            Field::Signed32,
            i128::from(slot) + i128::from(r.addend) - place,
        )
    }

    fn local_dynamic(&mut self, r: &Relocation, place: i128) -> Result<(), LinkError> {
        let sequence = x86_64::local_dynamic(self.bytes(r)?, r.offset);
        let call =
            sequence.and_then(|sequence| Some((sequence, self.call_at(r, sequence.call_field)?)));
        if let (Some((sequence, call)), true) = (call, self.from_thread_pointer) {
            let written = x86_64::write_thread_pointer(self.bytes(r)?, sequence);
            written.ok_or_else(|| self.unsupported(r))?;
            self.dropped.insert(call);
            return Ok(());
        }
        let module = self
            .thread_local(r)?
            .module
            .ok_or_else(|| self.no_module(r))?;
        let slot = self.fill_slot(GotKey::Module(r.symbol), &[module, 0])?;
        self.store(
            r,
            Field::Signed32,
            i128::from(slot) + i128::from(r.addend) - place,
        )
    }

    /// Whether all local-dynamic code of the patch can do without __tls_get_addr. It is one decision, since which
    /// offsets belong to which call is not recorded.
    fn local_dynamic_is_static(&mut self) -> Result<bool, LinkError> {
        let patch = self.patch;
        let (mut sequences, mut is_static) = (false, true);
        let mut modules = BTreeSet::new();
        for r in &patch.relocations {
            match x86_64::classify(r.r_type) {
                Some(Class::LocalDynamic) => {
                    sequences = true;
                    let sequence = x86_64::local_dynamic(self.bytes(r)?, r.offset);
                    is_static &= sequence.is_some_and(|s| self.call_at(r, s.call_field).is_some());
                }
                Some(Class::ModuleOffset(_)) => {}
                _ => continue,
            }
            let variable = self.thread_local(r)?;
            is_static &= variable.tp_offset.is_some();
            modules.insert(variable.module);
            if !is_static && modules.len() > 1 {
                return Err(self.unsupported(r));
            }
        }
        Ok(sequences && is_static)
    }

    /// The relocation of the call of __tls_get_addr at an offset in the same section.
    fn call_at(&self, r: &Relocation, field: u64) -> Option<usize> {
        let index = *self.calls.get(&(r.section, field))?;
        let symbol = self
            .patch
            .symbols
            .get(self.patch.relocations.get(index)?.symbol)?;
        (symbol.name == TLS_GET_ADDR).then_some(index)
    }

    /// The symbol's value, resolved when it is first used.
    fn value(&mut self, r: &Relocation) -> Result<Value, LinkError> {
        if let Some(value) = self.values.get(r.symbol).copied().flatten() {
            return Ok(value);
        }
        let symbol = self.symbol(r)?;
        let programs = self.programs_own(symbol);
        let resolved = match &symbol.place {
            Place::Section(..) => {
                let avma = programs.or_else(|| super::placed(self.layout, self.base, symbol));
                let what = || format!("symbol `{}` lies in no section", symbol.name);
                Ok(Value::Address(
                    avma.ok_or_else(|| LinkError::Inconsistent { what: what() })?,
                ))
            }
            Place::Absolute(value) => Ok(Value::Address(*value)),
            Place::NotLoaded => {
                return Err(LinkError::NotLoaded {
                    place: self.describe(r),
                    symbol: self.name_of(r),
                });
            }
            Place::Livepatch {
                object,
                name,
                sympos,
            } => self.livepatch(object.as_deref(), name, *sympos),
            Place::Undefined if symbol.name.is_empty() => Ok(Value::Address(0)),
            Place::Undefined if symbol.name == GOT_SYMBOL => {
                Ok(Value::Address(self.base.saturating_add(self.layout.got)))
            }
            // The patch is nobody's who could be unloaded: any address of its own will do.
            Place::Undefined if symbol.name == DSO_HANDLE => {
                Ok(Value::Address(self.base.saturating_add(self.layout.got)))
            }
            Place::Undefined => self
                .resolver
                .undefined(&self.patched, &symbol.name, symbol.weak),
        };
        let value = resolved.map_err(|source| LinkError::Resolve {
            place: self.describe(r),
            source,
        })?;
        if let Some(known) = self.values.get_mut(r.symbol) {
            *known = Some(value);
        }
        Ok(value)
    }

    /// A symbol of a patched object: where the patch says that it is in the very build that runs, else by its name.
    fn livepatch(
        &self,
        object: Option<&str>,
        name: &str,
        sympos: u64,
    ) -> Result<Value, ResolveError> {
        let loaded = self.resolver.object(object)?;
        let mut patched = self.patch.objects.iter();
        let recovered = patched
            .find(|patched| patched.name.as_deref() == object)
            .and_then(|patched| patched.build(loaded.build_id())?.symbol(name, sympos));
        match recovered {
            Some(symbol) => self.resolver.recovered(loaded, symbol),
            None => self.resolver.livepatch(object, name, sympos),
        }
    }

    /// The program's instance of a variable that the patch has a definition of too, and of which there is to be one.
    fn programs_own(&self, symbol: &Symbol) -> Option<u64> {
        let in_data = match symbol.place {
            Place::Section(section, _) => self.section(section).is_some_and(|s| !s.exec),
            _ => false,
        };
        let shared = symbol.shared && in_data;
        shared.then(|| {
            self.resolver
                .shared(&self.patched, &symbol.name, symbol.size)
        })?
    }

    fn address(&mut self, r: &Relocation) -> Result<u64, LinkError> {
        match self.value(r)? {
            Value::Address(avma) => Ok(avma),
            Value::Tls { .. } => Err(self.mismatch(r)),
        }
    }

    fn thread_local(&mut self, r: &Relocation) -> Result<ThreadLocal, LinkError> {
        match self.value(r)? {
            Value::Tls {
                module,
                offset_in_module,
                tp_offset,
            } => Ok(ThreadLocal {
                module,
                offset: offset_in_module,
                tp_offset,
            }),
            Value::Address(_) => Err(self.mismatch(r)),
        }
    }

    fn tp_offset(&self, r: &Relocation, variable: ThreadLocal) -> Result<i64, LinkError> {
        variable.tp_offset.ok_or_else(|| LinkError::NoThreadOffset {
            place: self.describe(r),
            r_type: x86_64::name(r.r_type),
            symbol: self.name_of(r),
        })
    }

    fn short_tp_offset(&self, r: &Relocation, variable: ThreadLocal) -> Result<i32, LinkError> {
        i32::try_from(self.tp_offset(r, variable)?).map_err(|_| self.out_of_reach(r))
    }

    /// The GOT slot (avma) with the symbol's address.
    fn address_slot(&mut self, r: &Relocation) -> Result<u64, LinkError> {
        let address = self.address(r)?;
        self.fill_slot(GotKey::Address(r.symbol), &[address])
    }

    fn fill_slot(&mut self, key: GotKey, words: &[u64]) -> Result<u64, LinkError> {
        let offset = *self.layout.slots.get(&key).ok_or(LinkError::WrongLayout)?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        x86_64::write(&mut self.image, offset, &bytes).ok_or(LinkError::WrongLayout)?;
        Ok(self.base.saturating_add(offset))
    }

    fn store(&mut self, r: &Relocation, field: Field, value: i128) -> Result<(), LinkError> {
        match x86_64::store(self.bytes(r)?, r.offset, field, value) {
            Ok(()) => Ok(()),
            Err(StoreError::Overflow) => Err(self.out_of_reach(r)),
            Err(StoreError::Outside) => Err(LinkError::OutsideSection {
                place: self.describe(r),
                r_type: x86_64::name(r.r_type),
            }),
        }
    }

    fn bytes(&mut self, r: &Relocation) -> Result<&mut [u8], LinkError> {
        self.sections
            .get_mut(r.section)
            .map(Vec::as_mut_slice)
            .ok_or(LinkError::WrongLayout)
    }

    /// P (avma).
    fn place(&self, r: &Relocation) -> Result<u64, LinkError> {
        let section = self
            .layout
            .sections
            .get(r.section)
            .ok_or(LinkError::WrongLayout)?;
        let avma = self
            .base
            .checked_add(*section)
            .and_then(|avma| avma.checked_add(r.offset));
        avma.ok_or_else(|| LinkError::OutsideSection {
            place: self.describe(r),
            r_type: x86_64::name(r.r_type),
        })
    }

    fn symbol(&self, r: &Relocation) -> Result<&'a Symbol, LinkError> {
        self.patch
            .symbols
            .get(r.symbol)
            .ok_or(LinkError::WrongLayout)
    }

    fn section(&self, index: usize) -> Option<&'a Section> {
        self.patch.sections.get(index)
    }

    /// Where a relocation is, for people.
    fn describe(&self, r: &Relocation) -> String {
        let section = self
            .section(r.section)
            .map_or("?", |section| section.name.as_str());
        let contains = |symbol: &&Symbol| match symbol.place {
            Place::Section(its, start) => {
                symbol.func
                    && its == r.section
                    && (start..start.saturating_add(symbol.size)).contains(&r.offset)
            }
            _ => false,
        };
        match self.patch.symbols.iter().find(contains) {
            Some(function) => format!(
                "function `{}` of the patch ({section}+{:#x})",
                function.name, r.offset
            ),
            None => format!("{section}+{:#x} of the patch", r.offset),
        }
    }

    /// What a relocation is against, for people.
    fn name_of(&self, r: &Relocation) -> String {
        match self.patch.symbols.get(r.symbol) {
            Some(Symbol {
                name,
                place: Place::Section(section, _),
                ..
            }) if name.is_empty() => self
                .section(*section)
                .map(|section| section.name.clone())
                .unwrap_or_default(),
            Some(Symbol {
                place: Place::Livepatch { name, .. },
                ..
            }) => name.clone(),
            Some(symbol) => symbol.name.clone(),
            None => String::new(),
        }
    }

    fn unsupported(&self, r: &Relocation) -> LinkError {
        let (place, r_type, symbol) = self.parts(r);
        LinkError::Unsupported {
            place,
            r_type,
            symbol,
        }
    }

    fn out_of_reach(&self, r: &Relocation) -> LinkError {
        let (place, r_type, symbol) = self.parts(r);
        LinkError::OutOfReach {
            place,
            r_type,
            symbol,
        }
    }

    fn mismatch(&self, r: &Relocation) -> LinkError {
        let (place, r_type, symbol) = self.parts(r);
        LinkError::ThreadLocalMismatch {
            place,
            r_type,
            symbol,
        }
    }

    fn no_module(&self, r: &Relocation) -> LinkError {
        let (place, r_type, symbol) = self.parts(r);
        LinkError::NoModule {
            place,
            r_type,
            symbol,
        }
    }

    fn parts(&self, r: &Relocation) -> (String, String, String) {
        (self.describe(r), x86_64::name(r.r_type), self.name_of(r))
    }
}
