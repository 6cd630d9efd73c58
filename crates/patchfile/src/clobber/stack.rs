//! Call frame information of the target: where functions are, and how the stack is aligned at a call.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection,
};
use object::{Object as _, ObjectSection as _, read::elf::ElfFile64};

use crate::TargetElf;

/// rsp in DWARF's numbering for x86-64 (psABI figure 3.36).
const RSP: gimli::Register = gimli::Register(7);

type Reader<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// The `.eh_frame` of an object.
pub(super) struct Frames<'a> {
    eh_frame: EhFrame<Reader<'a>>,
    bases: BaseAddresses,
}

impl<'a> Frames<'a> {
    pub fn new(target: &TargetElf<'a>) -> Option<Self> {
        let file = ElfFile64::<object::LittleEndian>::parse(target.bytes).ok()?;
        let section = file.section_by_name(".eh_frame")?;
        let data = section.data().ok()?;
        let mut bases = BaseAddresses::default().set_eh_frame(section.address());
        if let Some(text) = file.section_by_name(".text") {
            bases = bases.set_text(text.address());
        }
        if let Some(got) = file.section_by_name(".got") {
            bases = bases.set_got(got.address());
        }
        Some(Frames {
            eh_frame: EhFrame::new(data, LittleEndian),
            bases,
        })
    }

    /// All ranges of code that have frame information.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut entries = self.eh_frame.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(fde) = partial.parse(EhFrame::cie_from_offset) {
                let start = fde.initial_address();
                ranges.push((start, start.saturating_add(fde.len())));
            }
        }
        ranges
    }

    /// Whether rsp is surely not a multiple of 16 at an instruction. The CFA is one, by the psABI's rule for calls.
    pub fn is_misaligned(&self, address: u64) -> bool {
        let fde = self
            .eh_frame
            .fde_for_address(&self.bases, address, EhFrame::cie_from_offset);
        let Ok(fde) = fde else { return false };
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(&self.eh_frame, &self.bases, &mut context, address);
        match row.map(|row| row.cfa().clone()) {
            Ok(CfaRule::RegisterAndOffset {
                register: RSP,
                offset,
            }) => offset.rem_euclid(16) != 0,
            _ => false,
        }
    }
}
