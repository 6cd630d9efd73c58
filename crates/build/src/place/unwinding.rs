//! Exception tables, to which only call frame information refers: which function has which.

use std::collections::HashMap;

use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, LittleEndian, UnwindSection as _};
use object::LittleEndian as Le;
use object::elf;
use object::read::elf::ProgramHeader as _;

use super::linked::Linked;
use super::relocatable::{Kind, Relocatable};

/// A place in a section of an object.
pub(super) type Place = (usize, u64);

/// The address of each function's exception table (LSDA) in a linked file.
pub(super) fn tables(target: &Linked<'_>) -> HashMap<u64, u64> {
    let mut tables = HashMap::new();
    let header = target
        .headers
        .iter()
        .find(|h| h.p_type(Le) == elf::PT_GNU_EH_FRAME);
    let frames = header.and_then(|header| {
        let svma = header.p_vaddr(Le);
        let bytes = target.at(svma, header.p_filesz(Le))?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(svma);
        let parsed = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
        let svma = parsed.eh_frame_ptr().direct().ok()?;
        Some((svma, target.from(svma)?))
    });
    let Some((svma, bytes)) = frames else {
        return tables;
    };
    let frames = EhFrame::new(bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(svma);
    let mut entries = frames.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
            && let Some(table) = fde.lsda().and_then(|lsda| lsda.direct().ok())
        {
            tables.insert(fde.initial_address(), table);
        }
    }
    tables
}

/// Which function has which exception table in an object: in an entry of .eh_frame the relocation for the table follows
/// that for the function.
pub(super) fn pairs(object: &Relocatable<'_>) -> Vec<(Place, Place)> {
    let mut pairs = Vec::new();
    let mut function = None;
    for relocation in &object.eh_frame {
        let place = object
            .symbols
            .get(relocation.symbol as usize)
            .and_then(|symbol| {
                let (number, section) = object.section_of(symbol)?;
                let offset = symbol.value.checked_add_signed(relocation.addend)?;
                Some((number, offset, section))
            });
        function = match place {
            Some((number, offset, section)) if section.kind == Kind::Code => Some((number, offset)),
            Some((number, offset, section)) if section.name.starts_with(b".gcc_except_table") => {
                pairs.extend(function.map(|function| (function, (number, offset))));
                None
            }
            _ => None,
        };
    }
    pairs
}
