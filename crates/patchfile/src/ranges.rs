//! Address ranges of DWARF entries.

use gimli::{AttributeValue, DebuggingInformationEntry, Dwarf, RangeIter, Reader, Unit};

/// The ranges of an entry of untrusted debug information: gimli's, which adds an entry's size to its start unchecked.
/// `None` where they do not read.
pub fn ranges_of<R: Reader>(
    dwarf: &Dwarf<R>,
    unit: &Unit<R>,
    entry: &DebuggingInformationEntry<R>,
) -> Option<RangeIter<R>> {
    // The last of each counts there, and attributes may come twice.
    let mut low = 0;
    let mut size = 0;
    for attribute in entry.attrs() {
        match (attribute.name(), attribute.value()) {
            (gimli::DW_AT_low_pc, value) => low = dwarf.attr_address(unit, value).ok()??,
            (gimli::DW_AT_high_pc, AttributeValue::Udata(value)) => size = value,
            _ => {}
        }
    }
    low.checked_add(size)?;
    dwarf.die_ranges(unit, entry).ok()
}
