//! Where thread-local variables are (x86-64 psABI, variant II: storage lies below the thread pointer).

use super::resolve::slots_of;
use super::{ResolveError, Resolver, Value};
use crate::object::{LoadedObject, PT_TLS, SlotKind};

/// The program is always module 1.
const EXECUTABLE_MODULE: u64 = 1;

/// What is known of a module's storage.
#[derive(Debug, Clone, Copy, Default)]
struct Module {
    number: Option<u64>,
    /// Offset of the storage's first byte from the thread pointer.
    tp_offset: Option<i64>,
}

impl Resolver<'_> {
    /// The variable at an offset in an object's thread-local storage.
    pub(super) fn thread_local(
        &self,
        object: &LoadedObject,
        name: &str,
        offset: u64,
    ) -> Result<Value, ResolveError> {
        let bad = || ResolveError::BadValue {
            name: name.to_owned(),
            object: object.name().to_owned(),
        };
        let segment = object.elf().segment(PT_TLS).ok_or_else(bad)?;
        if offset > segment.mem_size {
            return Err(bad());
        }
        let module = if object.is_executable() {
            let tp_offset =
                executable_offset(segment.svma, segment.mem_size, segment.align).ok_or_else(bad)?;
            Module {
                number: Some(EXECUTABLE_MODULE),
                tp_offset: Some(tp_offset),
            }
        } else {
            self.library_module(object, name)?
        };
        let inside = i64::try_from(offset).map_err(|_| bad())?;
        let tp_offset = module.tp_offset.and_then(|base| base.checked_add(inside));
        if module.number.is_none() && tp_offset.is_none() {
            return Err(ResolveError::ThreadLocalUnknown {
                name: name.to_owned(),
                object: object.name().to_owned(),
            });
        }
        Ok(Value::Tls {
            module: module.number,
            offset_in_module: offset,
            tp_offset,
        })
    }

    /// The loader keeps a library's module number and offset to itself; but it wrote them into the GOTs of those who
    /// use the library's variables, first of all into the library's own.
    fn library_module(&self, library: &LoadedObject, name: &str) -> Result<Module, ResolveError> {
        let mut module = Module::default();
        for slot in library.slots().iter().filter(|slot| slot.symbol == 0) {
            match slot.kind {
                SlotKind::ThreadOffset => {
                    let word = self.slot(library, slot, name)?.cast_signed();
                    module.tp_offset = Some(word.wrapping_sub(slot.addend));
                }
                SlotKind::Module => module.number = Some(self.slot(library, slot, name)?),
                _ => {}
            }
        }
        for user in self.objects.iter() {
            let Some(table) = user.dynsym() else { continue };
            let of_interest = |slot: &&crate::object::Slot| {
                slot.symbol != 0 && matches!(slot.kind, SlotKind::ThreadOffset | SlotKind::Module)
            };
            let mut symbols: Vec<u32> = user
                .slots()
                .iter()
                .filter(of_interest)
                .map(|slot| slot.symbol)
                .collect();
            symbols.dedup();
            for index in symbols {
                if module.number.is_some() && module.tp_offset.is_some() {
                    return Ok(module);
                }
                let Some(symbol) = table.get(index) else {
                    continue;
                };
                let used = String::from_utf8_lossy(symbol.name);
                // Only where the loader's search for the variable ends in this library is its word about it.
                let Some((_, definition)) = self
                    .search(user, &used)
                    .filter(|(owner, _)| std::ptr::eq(*owner, library))
                else {
                    continue;
                };
                for slot in slots_of(user.slots(), index) {
                    let word = self.slot(user, slot, name)?;
                    match slot.kind {
                        SlotKind::ThreadOffset => {
                            let inside = definition.svma.cast_signed().wrapping_add(slot.addend);
                            let base = word.cast_signed().wrapping_sub(inside);
                            module.tp_offset = module.tp_offset.or(Some(base));
                        }
                        SlotKind::Module => module.number = module.number.or(Some(word)),
                        _ => {}
                    }
                }
            }
        }
        module.number = module.number.filter(|&number| number != 0);
        Ok(module)
    }
}

/// Offset of the program's thread-local storage from the thread pointer, as the linker computed it: the storage ends at
/// the thread pointer, and begins at an address that is congruent to its svma modulo its alignment.
fn executable_offset(svma: u64, size: u64, align: u64) -> Option<i64> {
    let align = align.max(1);
    if !align.is_power_of_two() {
        return None;
    }
    let end = svma.wrapping_add(size);
    let padding = end.wrapping_neg() & align.checked_sub(1)?;
    i64::try_from(size.checked_add(padding)?)
        .ok()?
        .checked_neg()
}

#[cfg(test)]
mod tests {
    use super::executable_offset;

    #[test]
    fn storage_ends_at_the_thread_pointer() {
        assert_eq!(executable_offset(0x3dc0, 8, 4), Some(-8));
        assert_eq!(executable_offset(0x3dc0, 9, 8), Some(-16));
        assert_eq!(executable_offset(0x3dc0, 64, 64), Some(-64));
        assert_eq!(executable_offset(0, 0, 0), Some(0));
    }

    #[test]
    fn a_misaligned_segment_keeps_its_congruence() {
        // svma 8 modulo 16, 4 bytes: it begins at -8, which is 8 modulo 16.
        assert_eq!(executable_offset(0x1008, 4, 16), Some(-8));
        assert_eq!(executable_offset(0x1008, 8, 16), Some(-8));
        assert_eq!(executable_offset(0x1008, 9, 16), Some(-24));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(executable_offset(0, 8, 3), None);
        assert_eq!(executable_offset(0, u64::MAX, 8), None);
    }
}
