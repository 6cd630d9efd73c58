//! Damage that a random byte would seldom do: the numbers of an ELF file, content that is swapped, repeated or cut off.

use crate::elf::{self, Field};
use crate::parts::ranges;

/// Inputs do not grow beyond this.
const LARGEST: usize = 128 << 10;

/// A sequence of numbers, the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below a bound; 0 for 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound.max(1) as u64) as usize
    }
}

/// Damages one part of an input in one to four places.
pub fn mutate(input: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut parts: Vec<Vec<u8>> = ranges(input)
        .into_iter()
        .map(|r| input[r].to_vec())
        .collect();
    let which = random.below(parts.len());
    if let Some(part) = parts.get_mut(which) {
        for _ in 0..=random.below(4) {
            damage(part, &mut random);
        }
    }
    crate::joined(&parts)
}

fn damage(file: &mut Vec<u8>, random: &mut Random) {
    match random.below(32) {
        0 => {
            let len = random.below(file.len());
            file.truncate(len);
        }
        1 => repeat(file, random),
        2 | 3 => copy(file, random),
        _ => {
            let field = match elf::field(file, random) {
                Some(field) => field,
                None => {
                    let width = [1, 1, 2, 4, 8][random.below(5)];
                    (random.below(file.len()), width)
                }
            };
            change(file, field, random);
        }
    }
}

/// Another number in a field: a limit, a neighbour, one of the same field elsewhere, or any.
fn change(file: &mut [u8], field: Field, random: &mut Random) {
    let Some(old) = elf::number(file, field) else {
        return;
    };
    let (at, width) = field;
    let small = random.below(64) as u64;
    let other = elf::field(file, random).and_then(|(at, _)| elf::number(file, (at, width)));
    let bit = 1u64 << random.below(width * 8);
    let values = [
        0,
        u64::MAX,
        u64::MAX >> 1,
        1 << 31,
        u64::MAX - small,
        small,
        old.wrapping_add(1),
        old.wrapping_sub(1),
        old.wrapping_add(small),
        old.wrapping_sub(small),
        old.wrapping_mul(2),
        file.len() as u64,
        other.unwrap_or(old),
        other.unwrap_or(old),
        old ^ bit,
        old ^ bit,
        random.number(),
    ];
    let value = values[random.below(values.len())].to_le_bytes();
    if let Some(bytes) = file.get_mut(at..at + width) {
        bytes.copy_from_slice(&value[..width]);
    }
}

/// A section with its content many times over, at the end of the file: what is quadratic takes its time then.
fn repeat(file: &mut Vec<u8>, random: &mut Random) {
    let Some(header) = elf::section(file, random) else {
        return;
    };
    let Some(content) = elf::content(file, header) else {
        return;
    };
    let room = LARGEST.saturating_sub(file.len());
    let times = (1 + random.below(64)).min(room / content.size);
    if times == 0 {
        return;
    }
    let bytes = file[content.start..content.start + content.size].repeat(times);
    let (offset, size) = (file.len() as u64, bytes.len() as u64);
    file.extend(bytes);
    if let Some(fields) = file.get_mut(header + 24..header + 40) {
        fields[..8].copy_from_slice(&offset.to_le_bytes());
        fields[8..].copy_from_slice(&size.to_le_bytes());
    }
}

/// Some bytes over others.
fn copy(file: &mut [u8], random: &mut Random) {
    let len = 1 + random.below(64.min(file.len()));
    let (from, to) = (random.below(file.len()), random.below(file.len()));
    if from + len <= file.len() && to + len <= file.len() {
        file.copy_within(from..from + len, to);
    }
}
