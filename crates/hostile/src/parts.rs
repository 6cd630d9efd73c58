//! Several files as one input: each as its length (u32, little-endian) and its bytes.

use std::ops::Range;

/// More are left out.
const MOST: usize = 16;

/// Where the parts of an input lie. The last one ends where the input does, whatever its length says.
pub(crate) fn ranges(input: &[u8]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(len) = input.get(at..at + 4)
        && ranges.len() < MOST
    {
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let start = at + 4;
        let end = start.saturating_add(len).min(input.len());
        ranges.push(start..end);
        at = end;
    }
    ranges
}

/// The parts of an input.
pub fn parts(input: &[u8]) -> Vec<&[u8]> {
    ranges(input)
        .into_iter()
        .map(|range| &input[range])
        .collect()
}

/// One input of several parts.
pub fn joined<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    let mut input = Vec::new();
    for part in parts {
        let part = part.as_ref();
        input.extend((part.len() as u32).to_le_bytes());
        input.extend(part);
    }
    input
}
