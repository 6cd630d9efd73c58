//! What a symbol of the patch means in the process.
//!
//! The order is that of DESIGN.md ("Loading code"): a patched object's own definitions, then what the dynamic loader
//! already decided for that object (its GOT), then the search that the dynamic loader would make.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use livegraft_patchfile::Recovered;

use super::ResolveError;
use super::scope;
use crate::object::raw::u64_at;
use crate::object::{LoadedObject, Objects, ReadMemory, Slot, SlotKind, Symbol, SymbolKind};

/// What a symbol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A function or variable at an address (avma); 0 for a weak symbol that nothing defines.
    Address(u64),
    /// A thread-local variable.
    Tls {
        /// The module's number, as __tls_get_addr takes it.
        module: Option<u64>,
        /// Offset of the variable in the module's storage.
        offset_in_module: u64,
        /// Offset from the thread pointer (`%fs:0`), where that is the same for all threads.
        tp_offset: Option<i64>,
    },
}

/// An IFUNC that the process has not resolved: only its resolver can tell what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indirect {
    /// Its name.
    pub name: String,
    /// The object that defines it.
    pub object: String,
    /// The resolver's address (avma).
    pub resolver: u64,
}

/// Finds symbols in a process.
pub struct Resolver<'a> {
    /// What resolvers of IFUNCs have returned, by their addresses, where they may be called.
    returned: Option<&'a BTreeMap<u64, u64>>,
    wanted: RefCell<Vec<Indirect>>,
    pub(super) objects: &'a Objects,
    memory: &'a dyn ReadMemory,
    order: OnceCell<Vec<&'a LoadedObject>>,
}

impl<'a> Resolver<'a> {
    /// A resolver for the process whose objects and memory these are.
    pub fn new(objects: &'a Objects, memory: &'a dyn ReadMemory) -> Resolver<'a> {
        Resolver {
            objects,
            memory,
            order: OnceCell::new(),
            returned: None,
            wanted: RefCell::default(),
        }
    }

    /// The same, for a user who can have resolvers of IFUNCs called: what those at these addresses have returned. Any
    /// other IFUNC that is not resolved has its resolver's address instead of a function's; [`Resolver::wanted`] has them.
    pub fn with_returned(self, returned: &'a BTreeMap<u64, u64>) -> Resolver<'a> {
        Resolver {
            returned: Some(returned),
            ..self
        }
    }

    /// The IFUNCs that were looked up and are not resolved.
    pub fn wanted(&self) -> Vec<Indirect> {
        self.wanted.borrow().clone()
    }

    /// The object of that name; `None` is the executable.
    pub fn object(&self, name: Option<&str>) -> Result<&'a LoadedObject, ResolveError> {
        let missing = || ResolveError::ObjectNotLoaded {
            object: name.unwrap_or_default().to_owned(),
        };
        self.objects.by_name(name).ok_or_else(missing)
    }

    /// A symbol of a named object, static ones included. `sympos` as in [`LoadedObject::lookup`].
    pub fn livepatch(
        &self,
        object: Option<&str>,
        name: &str,
        sympos: u64,
    ) -> Result<Value, ResolveError> {
        let object = self.object(object)?;
        let found = object.lookup(name, sympos)?;
        self.value(object, name, found.svma, found.kind)
    }

    /// A symbol that the object's own tables do not have, at the address that was proven for its build.
    pub(super) fn recovered(
        &self,
        object: &LoadedObject,
        symbol: &Recovered,
    ) -> Result<Value, ResolveError> {
        use livegraft_patchfile::SymbolKind as Noted;
        let kind = match symbol.kind {
            Noted::Function => SymbolKind::Function,
            Noted::Ifunc => SymbolKind::IndirectFunction,
            Noted::ThreadLocal => SymbolKind::ThreadLocal,
            Noted::Variable | Noted::Label => SymbolKind::Other,
        };
        let start = object.avma(symbol.svma);
        let end = start.saturating_add(symbol.size);
        let span = object.span();
        let inside = span.start <= start && start < span.end && end <= span.end;
        if kind != SymbolKind::ThreadLocal && !inside {
            return Err(ResolveError::BadValue {
                name: symbol.name.clone(),
                object: object.name().to_owned(),
            });
        }
        self.value(object, &symbol.name, symbol.svma, kind)
    }

    /// A symbol that the patch does not define, as the objects that it patches would resolve it. `from`: these objects
    /// by name, in the order of the patch; the executable when it is empty.
    pub fn undefined(
        &self,
        from: &[Option<&str>],
        name: &str,
        weak: bool,
    ) -> Result<Value, ResolveError> {
        let mut patched: Vec<&LoadedObject> = Vec::new();
        for object in from {
            patched.push(self.object(*object)?);
        }
        if patched.is_empty() {
            patched.push(self.objects.executable());
        }
        if let Some(value) = self.own(&patched, name)? {
            return Ok(value);
        }
        for object in &patched {
            if let Some(value) = self.bound(object, name)? {
                return Ok(value);
            }
        }
        for object in &patched {
            if let Some((owner, symbol)) = self.search(object, name) {
                return self.value(owner, name, symbol.svma, symbol.kind);
            }
        }
        // A library that is patched, but loaded with a scope of its own.
        for object in patched.iter().filter(|object| object.is_interposable(name)) {
            if let Some(symbol) = object.own_definition(name)? {
                return self.value(object, name, symbol.svma, symbol.kind);
            }
        }
        if weak {
            return Ok(Value::Address(0));
        }
        let names: Vec<&str> = patched.iter().map(|object| object.name()).collect();
        Err(ResolveError::Undefined {
            name: name.to_owned(),
            object: names.join(", "),
        })
    }

    /// The variable of this name and size that one of these objects uses for its own definition of it.
    pub(super) fn shared(&self, from: &[Option<&str>], name: &str, size: u64) -> Option<u64> {
        from.iter().find_map(|&object| {
            let object = self.object(object).ok()?;
            let own = || {
                let own = object.own_definition(name).ok().flatten();
                own.filter(|symbol| !symbol.local)
            };
            let (owner, symbol) = match own() {
                Some(symbol) if !object.is_interposable(name) => (object, symbol),
                _ => self.search(object, name)?,
            };
            let fits = symbol.kind == SymbolKind::Other && symbol.size == size;
            fits.then(|| owner.avma(symbol.svma))
        })
    }

    /// A definition in a patched object that nothing can interpose: global ones first, then static ones.
    fn own(&self, patched: &[&LoadedObject], name: &str) -> Result<Option<Value>, ResolveError> {
        let mut statics: Option<(&LoadedObject, Symbol<'_>)> = None;
        for &object in patched {
            if object.is_interposable(name) {
                continue;
            }
            let Some(symbol) = object.own_definition(name)? else {
                continue;
            };
            if !symbol.local {
                return self.value(object, name, symbol.svma, symbol.kind).map(Some);
            }
            if let Some((first, _)) = statics {
                let (first, second) = (first.name().to_owned(), object.name().to_owned());
                return Err(ResolveError::InTwoObjects {
                    name: name.to_owned(),
                    first,
                    second,
                });
            }
            statics = Some((object, symbol));
        }
        let Some((object, symbol)) = statics else {
            return Ok(None);
        };
        self.value(object, name, symbol.svma, symbol.kind).map(Some)
    }

    /// The value of a definition.
    fn value(
        &self,
        object: &LoadedObject,
        name: &str,
        svma: u64,
        kind: SymbolKind,
    ) -> Result<Value, ResolveError> {
        match kind {
            SymbolKind::ThreadLocal => self.thread_local(object, name, svma),
            SymbolKind::IndirectFunction => self.indirect(object, name, svma).map(Value::Address),
            SymbolKind::Function | SymbolKind::Other => Ok(Value::Address(object.avma(svma))),
        }
    }

    /// What the dynamic loader bound the object's references to the name to, if it has any and they are bound.
    fn bound(&self, object: &LoadedObject, name: &str) -> Result<Option<Value>, ResolveError> {
        let Some(table) = object.dynsym() else {
            return Ok(None);
        };
        let (mut addresses, mut jumps) = (BTreeSet::new(), BTreeSet::new());
        let (mut thread, mut module, mut offset) = (None, None, None);
        let wanted = table.named(name).filter(|s| !s.defined || !s.old_version);
        for symbol in wanted {
            if !symbol.defined && symbol.svma != 0 && object.is_executable() {
                // The function's address for everyone is its PLT entry in this non-PIE program.
                return Ok(Some(Value::Address(object.avma(symbol.svma))));
            }
            for slot in slots_of(object.slots(), symbol.index) {
                let word = self.slot(object, slot, name)?;
                let unadded = word.wrapping_sub(slot.addend.cast_unsigned());
                match slot.kind {
                    SlotKind::Address if word != 0 => addresses.extend([unadded]),
                    SlotKind::Jump if self.is_bound_jump(object, slot, word) => {
                        jumps.extend([word])
                    }
                    SlotKind::ThreadOffset => thread = Some(unadded.cast_signed()),
                    SlotKind::Module => module = Some(word),
                    SlotKind::ModuleOffset => offset = Some(unadded),
                    _ => {}
                }
            }
        }
        // GLOB_DAT first: where the two differ it is the address that other objects compare with.
        for values in [addresses, jumps] {
            if values.len() > 1 {
                let (name, object) = (name.to_owned(), object.name().to_owned());
                return Err(ResolveError::TwoVersions { name, object });
            }
            if let Some(&value) = values.first() {
                return Ok(Some(Value::Address(value)));
            }
        }
        let module = module.zip(offset);
        if thread.is_none() && module.is_none() {
            return Ok(None);
        }
        self.bound_thread_local(object, name, thread, module)
            .map(Some)
    }

    /// What the slots say of a thread-local variable, and for the rest what its definition says.
    fn bound_thread_local(
        &self,
        object: &LoadedObject,
        name: &str,
        tp_offset: Option<i64>,
        module: Option<(u64, u64)>,
    ) -> Result<Value, ResolveError> {
        let defined = self
            .search(object, name)
            .filter(|(_, symbol)| symbol.kind == SymbolKind::ThreadLocal)
            .and_then(|(owner, symbol)| self.thread_local(owner, name, symbol.svma).ok());
        let (number, offset) = module.unzip();
        Ok(match defined {
            Some(Value::Tls {
                module,
                offset_in_module,
                tp_offset: known,
            }) => Value::Tls {
                module: number.or(module),
                offset_in_module: offset.unwrap_or(offset_in_module),
                tp_offset: tp_offset.or(known),
            },
            _ => Value::Tls {
                module: number,
                offset_in_module: offset.unwrap_or_default(),
                tp_offset,
            },
        })
    }

    /// The search of the dynamic loader for a reference from an object: the global scope, then the object's own.
    pub(super) fn search(
        &self,
        from: &LoadedObject,
        name: &str,
    ) -> Option<(&'a LoadedObject, Symbol<'a>)> {
        let global = self
            .order
            .get_or_init(|| scope::global(self.objects, self.memory));
        let find =
            |object: &&'a LoadedObject| object.exported(name).map(|symbol| (*object, symbol));
        global.iter().find_map(find).or_else(|| {
            let start = self.objects.iter().find(|o| std::ptr::eq(*o, from))?;
            scope::closure(self.objects, start).iter().find_map(find)
        })
    }

    /// The function that an IFUNC stands for, from any word in which the dynamic loader has put it.
    fn indirect(
        &self,
        object: &LoadedObject,
        name: &str,
        resolver: u64,
    ) -> Result<u64, ResolveError> {
        let in_code = |avma: u64| {
            object
                .code_ranges()
                .iter()
                .any(|range| range.contains(&avma))
        };
        for slot in object
            .slots()
            .iter()
            .filter(|slot| slot.kind == SlotKind::Indirect)
        {
            if slot.addend.cast_unsigned() == resolver {
                let word = self.slot(object, slot, name)?;
                if in_code(word) && self.is_bound_jump(object, slot, word) {
                    return Ok(word);
                }
            }
        }
        for other in self.objects.iter() {
            let Some(table) = other.dynsym() else {
                continue;
            };
            for symbol in table.named(name) {
                for slot in slots_of(other.slots(), symbol.index) {
                    let is_function = matches!(slot.kind, SlotKind::Address | SlotKind::Jump);
                    let word = self.slot(other, slot, name)?;
                    if is_function && in_code(word) && self.is_bound_jump(other, slot, word) {
                        return Ok(word);
                    }
                }
            }
        }
        let at = object.avma(resolver);
        let (name, object) = (name.to_owned(), object.name().to_owned());
        let Some(returned) = self.returned else {
            return Err(ResolveError::IndirectUnresolved { name, object });
        };
        if let Some(&function) = returned.get(&at) {
            return Ok(function);
        }
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.iter().any(|known| known.resolver == at) {
            wanted.push(Indirect {
                name,
                object,
                resolver: at,
            });
        }
        Ok(at)
    }

    /// A function's word that has been bound: not what the file has for it, moved by the bias, which is where a lazy
    /// JUMP_SLOT leads to the binder, and not an entry of the object's own PLT.
    fn is_bound_jump(&self, object: &LoadedObject, slot: &Slot, word: u64) -> bool {
        if word == 0 {
            return false;
        }
        if slot.kind != SlotKind::Jump {
            return true;
        }
        let file = object
            .elf()
            .read_svma(slot.svma, 8, "the GOT")
            .ok()
            .and_then(|bytes| u64_at(&bytes, 0));
        let lazy = file.filter(|&word| word != 0).map(|word| object.avma(word));
        let svma = object.svma(word);
        let in_plt = object.elf().sections().iter().any(|section| {
            let end = section.svma.saturating_add(section.size);
            section.name.starts_with(".plt") && (section.svma..end).contains(&svma)
        });
        lazy != Some(word) && !in_plt
    }

    /// Reads the word that a slot names.
    pub(super) fn slot(
        &self,
        object: &LoadedObject,
        slot: &Slot,
        name: &str,
    ) -> Result<u64, ResolveError> {
        let avma = object.avma(slot.svma);
        let mut word = [0; 8];
        let read = self.memory.read_memory(avma, &mut word);
        read.map_err(|source| ResolveError::Memory {
            name: name.to_owned(),
            avma,
            source,
        })?;
        Ok(u64::from_le_bytes(word))
    }
}

/// The slots of one symbol, out of slots sorted by symbol.
pub(super) fn slots_of(slots: &[Slot], symbol: u32) -> impl Iterator<Item = &Slot> {
    let start = slots.partition_point(|slot| slot.symbol < symbol);
    slots
        .iter()
        .skip(start)
        .take_while(move |slot| slot.symbol == symbol)
}
