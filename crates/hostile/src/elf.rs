//! Where the numbers of an ELF file are that are worth changing.

use crate::mutate::Random;

const SHT_SYMTAB: u64 = 2;
const SHT_RELA: u64 = 4;
const SHT_DYNAMIC: u64 = 6;
const SHT_NOBITS: u64 = 8;
const SHT_DYNSYM: u64 = 11;

/// A number in a file: where, and its width in bytes.
pub(crate) type Field = (usize, usize);

const HEADER: [Field; 9] = [
    (16, 2),
    (18, 2),
    (32, 8),
    (40, 8),
    (54, 2),
    (56, 2),
    (58, 2),
    (60, 2),
    (62, 2),
];
const SECTION: [Field; 10] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 4),
    (44, 4),
    (48, 8),
    (56, 8),
];
const SEGMENT: [Field; 8] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 8),
    (48, 8),
];
const SYMBOL: [Field; 6] = [(0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (16, 8)];
const RELA: [Field; 4] = [(0, 8), (8, 4), (12, 4), (16, 8)];
const DYNAMIC: [Field; 2] = [(0, 8), (8, 8)];

/// A number of up to eight bytes, little-endian.
pub(crate) fn number(file: &[u8], (at, width): Field) -> Option<u64> {
    let bytes = file.get(at..at.checked_add(width)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)),
    )
}

/// The header of some section, if the table can be found.
pub(crate) fn section(file: &[u8], random: &mut Random) -> Option<usize> {
    entry(file, random, (40, 8), (60, 2), 64)
}

/// A place in a section's content.
pub(crate) struct Content {
    pub kind: u64,
    pub start: usize,
    pub size: usize,
}

/// What a section header says of its content, as far as it is in the file.
pub(crate) fn content(file: &[u8], header: usize) -> Option<Content> {
    let kind = number(file, (header + 4, 4))?;
    let start = usize::try_from(number(file, (header + 24, 8))?).ok()?;
    let size = usize::try_from(number(file, (header + 32, 8))?).ok()?;
    let room = file.len().checked_sub(start)?;
    let size = size.min(room);
    (kind != SHT_NOBITS && size != 0).then_some(Content { kind, start, size })
}

/// A number that is worth changing.
pub(crate) fn field(file: &[u8], random: &mut Random) -> Option<Field> {
    if !file.starts_with(b"\x7fELF") {
        return None;
    }
    let (base, fields): (usize, &[Field]) = match random.below(16) {
        0 => (0, &HEADER),
        1..=4 => (section(file, random)?, &SECTION),
        5 => (entry(file, random, (32, 8), (56, 2), 56)?, &SEGMENT),
        _ => {
            let header = section(file, random)?;
            let content = content(file, header)?;
            let (size, fields): (usize, &[Field]) = match content.kind {
                SHT_SYMTAB | SHT_DYNSYM => (24, &SYMBOL),
                SHT_RELA => (24, &RELA),
                SHT_DYNAMIC => (16, &DYNAMIC),
                _ => {
                    let width = [1, 1, 2, 4, 8][random.below(5)];
                    return Some((content.start + random.below(content.size), width));
                }
            };
            let number = random.below((content.size / size).max(1));
            (content.start + number * size, fields)
        }
    };
    let (at, width) = fields[random.below(fields.len())];
    Some((base.checked_add(at)?, width))
}

/// An entry of a table that the header tells of.
fn entry(
    file: &[u8],
    random: &mut Random,
    offset: Field,
    count: Field,
    size: usize,
) -> Option<usize> {
    let table = usize::try_from(number(file, offset)?).ok()?;
    let count = number(file, count)? as usize;
    let entry = table.checked_add(random.below(count.max(1)) * size)?;
    (entry < file.len()).then_some(entry)
}
