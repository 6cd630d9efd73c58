//! Call frame information of the target: where functions are, and how the stack is aligned at a call.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, FrameDescriptionEntry, LittleEndian, UnwindContext,
    UnwindSection,
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
    /// By address: a search in the section itself is linear.
    fdes: Vec<FrameDescriptionEntry<Reader<'a>>>,
}

impl<'a> Frames<'a> {
    pub fn new(target: &TargetElf<'a>) -> Option<Self> {
        let file = ElfFile64::<object::LittleEndian>::parse(target.bytes).ok()?;
        let section = file.section_by_name(".eh_frame")?;
        let eh_frame = EhFrame::new(section.data().ok()?, LittleEndian);
        let mut bases = BaseAddresses::default().set_eh_frame(section.address());
        if let Some(text) = file.section_by_name(".text") {
            bases = bases.set_text(text.address());
        }
        if let Some(got) = file.section_by_name(".got") {
            bases = bases.set_got(got.address());
        }
        let mut fdes = Vec::new();
        let mut entries = eh_frame.entries(&bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            fdes.extend(partial.parse(EhFrame::cie_from_offset));
        }
        fdes.sort_by_key(FrameDescriptionEntry::initial_address);
        Some(Frames {
            eh_frame,
            bases,
            fdes,
        })
    }

    /// All ranges of code that have frame information.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.fdes.iter().map(|fde| {
            let start = fde.initial_address();
            (start, start.saturating_add(fde.len()))
        })
    }

    /// Whether rsp is surely not a multiple of 16 at an instruction. The CFA is one, by the psABI's rule for calls.
    pub fn is_misaligned(&self, address: u64) -> bool {
        let next = self
            .fdes
            .partition_point(|fde| fde.initial_address() <= address);
        let Some(fde) = next.checked_sub(1).and_then(|i| self.fdes.get(i)) else {
            return false;
        };
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
