//! Where in the patch's memory each section goes.

use std::collections::BTreeMap;

use super::LinkError;
use super::x86_64::{Class, Field, VENEER_SIZE, classify, is_branch, name};
use crate::object::raw::align_up;
use livegraft_patchfile::{Patch, Place, Relocation, Section, Symbol};

const PAGE: u64 = 4096;
/// Within it everything in the patch reaches everything else.
const MAX_TOTAL: u64 = 1 << 30;
/// What is copied into the target, .bss left out.
const MAX_IMAGE: u64 = 256 << 20;
const SLOT_SIZE: u64 = 8;
pub(super) const EH_FRAME: &str = ".eh_frame";
/// An unwinder that call frame information is registered with reads up to a length of zero.
const TERMINATOR: u64 = 4;

/// What a GOT slot of the patch holds; the number is the symbol's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum GotKey {
    /// The symbol's address.
    Address(usize),
    /// Offset from the thread pointer.
    ThreadOffset(usize),
    /// Two words for __tls_get_addr: module and offset.
    Variable(usize),
    /// Two words for __tls_get_addr: module and 0.
    Module(usize),
}

/// The places of a patch's sections in one block of memory: text (r-x), then constants (r--), then data (rw-).
///
/// Depends on the patch alone, so that memory can be found before anything is resolved.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Bytes of code and veneers, whole pages.
    pub text_size: u64,
    /// Bytes of constants and of the GOT, whole pages.
    pub ro_size: u64,
    /// Bytes of data, whole pages.
    pub rw_size: u64,
    /// The sum of the three.
    pub total_size: u64,
    /// The patch holds its own addresses in 32 bits (not compiled with -fPIC): it must lie below 2 GiB.
    pub needs_low: bool,
    /// Bytes of the block that are not zero at the start, counted from its beginning.
    pub(super) image_size: u64,
    /// Offset of each section in the block.
    pub(super) sections: Vec<u64>,
    /// Offset of the GOT in the block, and of each slot.
    pub(super) got: u64,
    pub(super) slots: BTreeMap<GotKey, u64>,
    /// Offset of the veneer for a symbol in the block.
    pub(super) veneers: BTreeMap<usize, u64>,
    pub(super) digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Constant,
    Data,
    Zero,
}

impl Layout {
    /// Lays a patch out, with room for all slots and veneers it can come to need.
    pub fn of(patch: &Patch) -> Result<Layout, LinkError> {
        refuse_thread_local(patch)?;
        let parts = patch
            .sections
            .iter()
            .map(part_of)
            .collect::<Result<Vec<Part>, LinkError>>()?;
        let needs = Needs::of(patch)?;
        let mut layout = Layout {
            text_size: 0,
            ro_size: 0,
            rw_size: 0,
            total_size: 0,
            needs_low: needs.low,
            image_size: 0,
            sections: vec![0; patch.sections.len()],
            got: 0,
            slots: BTreeMap::new(),
            veneers: BTreeMap::new(),
            digest: patch.digest,
        };
        let mut end = Cursor(0);
        layout.place(patch, &parts, Part::Text, &mut end)?;
        for symbol in needs.veneers {
            layout
                .veneers
                .insert(symbol, end.take(VENEER_SIZE, VENEER_SIZE)?);
        }
        layout.text_size = end.close()?;
        layout.place(patch, &parts, Part::Constant, &mut end)?;
        layout.got = end.take(0, SLOT_SIZE)?;
        for key in needs.slots {
            let size = match key {
                GotKey::Address(_) | GotKey::ThreadOffset(_) => SLOT_SIZE,
                GotKey::Variable(_) | GotKey::Module(_) => SLOT_SIZE << 1,
            };
            layout.slots.insert(key, end.take(size, SLOT_SIZE)?);
        }
        let constants = end.close()?;
        layout.ro_size = constants.saturating_sub(layout.text_size);
        layout.place(patch, &parts, Part::Data, &mut end)?;
        layout.image_size = end.0;
        layout.place(patch, &parts, Part::Zero, &mut end)?;
        layout.total_size = end.close()?;
        layout.rw_size = layout.total_size.saturating_sub(constants);
        if layout.image_size > MAX_IMAGE {
            return Err(LinkError::TooLarge {
                size: layout.image_size,
                limit: MAX_IMAGE,
            });
        }
        Ok(layout)
    }

    fn place(
        &mut self,
        patch: &Patch,
        parts: &[Part],
        part: Part,
        end: &mut Cursor,
    ) -> Result<(), LinkError> {
        for ((section, _), offset) in patch
            .sections
            .iter()
            .zip(parts)
            .zip(&mut self.sections)
            .filter(|((_, its), _)| **its == part)
        {
            *offset = end.take(section.size, section.align.max(1))?;
            if section.name == EH_FRAME {
                end.take(TERMINATOR, 1)?;
            }
        }
        Ok(())
    }
}

/// The end of what is laid out so far.
struct Cursor(u64);

impl Cursor {
    fn take(&mut self, size: u64, align: u64) -> Result<u64, LinkError> {
        let start = align_up(self.0, align);
        match start.and_then(|start| Some((start, start.checked_add(size)?))) {
            Some((start, end)) if end <= MAX_TOTAL => {
                self.0 = end;
                Ok(start)
            }
            _ => Err(LinkError::TooLarge {
                size: self.0.saturating_add(size),
                limit: MAX_TOTAL,
            }),
        }
    }

    fn close(&mut self) -> Result<u64, LinkError> {
        self.take(0, PAGE)
    }
}

fn is_named(section: &Section, prefix: &str) -> bool {
    section
        .name
        .strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn part_of(section: &Section) -> Result<Part, LinkError> {
    let name = || section.name.clone();
    if section.write && section.exec {
        return Err(LinkError::WritableCode { section: name() });
    }
    if [".tdata", ".tbss"]
        .iter()
        .any(|prefix| is_named(section, prefix))
    {
        return Err(LinkError::ThreadLocalDefined { name: name() });
    }
    let constructors = [
        ".init_array",
        ".fini_array",
        ".preinit_array",
        ".ctors",
        ".dtors",
        ".init",
        ".fini",
    ];
    if section.size > 0 && constructors.iter().any(|prefix| is_named(section, prefix)) {
        return Err(LinkError::Constructors { section: name() });
    }
    if !section.align.max(1).is_power_of_two() || section.align > PAGE {
        return Err(LinkError::BadAlignment {
            section: name(),
            align: section.align,
        });
    }
    let data_size = u64::try_from(section.data.len()).unwrap_or(u64::MAX);
    if data_size > section.size || (data_size != section.size && data_size != 0) {
        return Err(LinkError::Inconsistent {
            what: format!("section {} has not the size it says", section.name),
        });
    }
    Ok(if section.exec {
        Part::Text
    } else if !section.write || is_named(section, ".data.rel.ro") {
        Part::Constant
    } else if data_size == 0 {
        Part::Zero
    } else {
        Part::Data
    })
}

fn refuse_thread_local(patch: &Patch) -> Result<(), LinkError> {
    let own = |symbol: &&Symbol| symbol.tls && matches!(symbol.place, Place::Section(..));
    match patch.symbols.iter().find(own) {
        Some(symbol) => Err(LinkError::ThreadLocalDefined {
            name: symbol.name.clone(),
        }),
        None => Ok(()),
    }
}

/// What the relocations ask for beside the sections.
#[derive(Default)]
struct Needs {
    slots: std::collections::BTreeSet<GotKey>,
    veneers: std::collections::BTreeSet<usize>,
    low: bool,
}

impl Needs {
    fn of(patch: &Patch) -> Result<Needs, LinkError> {
        let mut needs = Needs::default();
        for relocation in &patch.relocations {
            needs.add(patch, relocation)?;
        }
        Ok(needs)
    }

    fn add(&mut self, patch: &Patch, relocation: &Relocation) -> Result<(), LinkError> {
        let missing = || LinkError::Inconsistent {
            what: "a relocation names a section or symbol that is not there".into(),
        };
        let section = patch.sections.get(relocation.section).ok_or_else(missing)?;
        let target = patch.symbols.get(relocation.symbol).ok_or_else(missing)?;
        let class = classify(relocation.r_type).ok_or_else(|| LinkError::Unsupported {
            place: format!("{}+{:#x}", section.name, relocation.offset),
            r_type: name(relocation.r_type),
            symbol: target.name.clone(),
        })?;
        let symbol = relocation.symbol;
        let inside = matches!(target.place, Place::Section(..));
        let slot = match class {
            Class::GotRelative(_) | Class::GotOffset(_) => Some(GotKey::Address(symbol)),
            Class::GeneralDynamic => Some(GotKey::Variable(symbol)),
            Class::LocalDynamic => Some(GotKey::Module(symbol)),
            Class::ThreadSlot => Some(GotKey::ThreadOffset(symbol)),
            Class::Branch | Class::Relative(Field::Signed32)
                if section.exec && !inside && is_branch(&section.data, relocation.offset) =>
            {
                self.veneers.insert(symbol);
                Some(GotKey::Address(symbol))
            }
            _ => None,
        };
        self.slots.extend(slot);
        if let Class::Absolute(field) = class {
            self.low |= inside && field != Field::Word64;
        }
        Ok(())
    }
}
