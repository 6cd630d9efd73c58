//! Little-endian fields of untrusted bytes.

/// `N` bytes at `offset`, or nothing when they do not lie in `bytes`.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    let end = offset.checked_add(N)?;
    bytes.get(offset..end)?.try_into().ok()
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

pub(crate) fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    array(bytes, offset).map(i64::from_le_bytes)
}

/// The NUL-terminated string at `offset`, without its NUL; empty when the offset or the terminator is missing.
pub(crate) fn string_at(bytes: &[u8], offset: usize) -> &[u8] {
    let tail = bytes.get(offset..).unwrap_or_default();
    match memchr::memchr(0, tail) {
        Some(end) => tail.get(..end).unwrap_or_default(),
        None => &[],
    }
}

/// `value` rounded up to a multiple of `align`, a power of two.
pub(crate) fn align_up(value: u64, align: u64) -> Option<u64> {
    let mask = align.checked_sub(1)?;
    Some(value.checked_add(mask)? & !mask)
}
