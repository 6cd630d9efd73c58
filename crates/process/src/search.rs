//! Searching memory for words that may be pointers into given ranges.
//!
//! Conservative: any word at a multiple of four bytes counts, whatever it is there for, with anything in the bits that no
//! address has; and what it stands for where the C library keeps a pointer mangled.

use std::ops::Range;

/// The bits of a user space address: programs keep tags in the others.
const ADDRESS: u64 = (1 << 47) - 1;
/// One process has one guard; what is not the C library's thread may have anything in its place.
const MOST_GUARDS: usize = 4;

/// A word that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word {
    /// Where.
    pub at: u64,
    /// The address that it stands for.
    pub value: u64,
    /// The C library's PTR_MANGLE was undone to see it.
    pub mangled: bool,
}

/// Memory is looked through in blocks of so many bytes, most of which hold nothing that is near.
const BLOCK: usize = 512;

/// What the upper halves of words are compared with, when all that is wanted has the same.
#[derive(Debug, Clone, Copy)]
struct Filter {
    /// Bits 32 to 46 of an address.
    upper: u32,
    /// The same as the upper 15 bits of a mangled one, for each guard.
    mangled: [u32; MOST_GUARDS],
}

impl Filter {
    fn new(low: u64, high: u64, guards: &[u64]) -> Option<Filter> {
        let upper = |address: u64| (address >> 32) as u32 & Filter::UPPER;
        let mut mangled = [u32::MAX; MOST_GUARDS];
        for (mangled, guard) in mangled.iter_mut().zip(guards) {
            *mangled = upper(low ^ guard);
        }
        (upper(low) == upper(high)).then_some(Filter {
            upper: upper(low),
            mangled,
        })
    }

    const UPPER: u32 = (ADDRESS >> 32) as u32;

    /// Whether a word may be wanted whose upper half lies in the block. Without a branch, so that the compiler can take
    /// several halves at once.
    fn passes(&self, block: &[u8]) -> bool {
        let mut passes = false;
        for half in block.chunks_exact(4) {
            let half = half.try_into().map(u32::from_le_bytes).unwrap_or_default();
            passes |= half & Filter::UPPER == self.upper;
            for mangled in self.mangled {
                passes |= half >> 17 == mangled;
            }
        }
        passes
    }
}

/// What is searched for.
#[derive(Debug, Clone)]
pub struct Wanted {
    filter: Option<Filter>,
    /// From the first address to one past the last, which pointers may have as well.
    ranges: Vec<Range<u64>>,
    guards: Vec<u64>,
    low: u64,
    span: u64,
}

/// glibc keeps pointers that an attacker would like to change (atexit, setjmp) as `rol(pointer ^ guard, 17)`
/// (sysdeps/unix/sysv/linux/x86_64/pointer_guard.h); the guard is in the thread control block.
fn demangle(word: u64, guard: u64) -> u64 {
    word.rotate_right(17) ^ guard
}

impl Wanted {
    /// Pointers into these ranges, mangled with any of the first of these guards or not at all.
    pub fn new(ranges: &[Range<u64>], guards: &[u64]) -> Wanted {
        let low = ranges.iter().map(|range| range.start).min();
        let high = ranges.iter().map(|range| range.end).max();
        let (low, high) = (low.unwrap_or(1), high.unwrap_or(0));
        Wanted {
            filter: Filter::new(low, high, guards),
            ranges: ranges.to_vec(),
            guards: guards.iter().copied().take(MOST_GUARDS).collect(),
            low,
            span: high.wrapping_sub(low),
        }
    }

    fn is_near(&self, address: u64) -> bool {
        address.wrapping_sub(self.low) <= self.span
    }

    fn holds(&self, address: u64) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|range| (range.start..=range.end).contains(&address))
    }

    /// The address that a word stands for, and whether it was mangled, if that is wanted.
    pub fn find(&self, word: u64) -> Option<(u64, bool)> {
        let plain = Some((word & ADDRESS, false));
        let mangled = self
            .guards
            .iter()
            .map(|&guard| (demangle(word, guard), true));
        let mut all = plain.into_iter().chain(mangled);
        all.find(|&(address, _)| self.holds(address))
    }

    /// Adds the words of `bytes`, which lie at `at`, a multiple of four.
    pub fn search(&self, at: u64, bytes: &[u8], found: &mut Vec<Word>) {
        let Some(filter) = &self.filter else {
            return self.search_words(at, bytes, found);
        };
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            if filter.passes(block) {
                // A word belongs to the block that its upper half is in.
                let end = index * BLOCK + block.len();
                let start = (index * BLOCK).saturating_sub(4);
                let block = bytes.get(start..end).unwrap_or_default();
                self.search_words(at.wrapping_add(start as u64), block, found);
            }
        }
    }

    fn search_words(&self, at: u64, bytes: &[u8], found: &mut Vec<Word>) {
        let skip = usize::from(!at.is_multiple_of(8)) * 4;
        let mut before: Option<u64> = (skip > 0).then(|| half(bytes)).flatten();
        let guard = self.guards.first().copied();
        let others = self.guards.get(1..).unwrap_or_default();
        let aligned = bytes.get(skip..).unwrap_or_default();
        for (index, chunk) in aligned.chunks_exact(8).enumerate() {
            let word = chunk.try_into().map(u64::from_le_bytes).unwrap_or_default();
            let between = before.map(|before| before >> 32 | word << 32);
            let near = self.is_near(word & ADDRESS)
                | between.is_some_and(|word| self.is_near(word & ADDRESS))
                | guard.is_some_and(|guard| self.is_near(demangle(word, guard)))
                | others
                    .iter()
                    .any(|&guard| self.is_near(demangle(word, guard)));
            if near {
                let here = at.wrapping_add(skip as u64 + 8 * index as u64);
                let straddles = between.filter(|word| self.holds(word & ADDRESS));
                found.extend(straddles.map(|word| Word {
                    at: here.wrapping_sub(4),
                    value: word & ADDRESS,
                    mangled: false,
                }));
                found.extend(self.find(word).map(|(value, mangled)| Word {
                    at: here,
                    value,
                    mangled,
                }));
            }
            before = Some(word);
        }
        let rest = aligned.chunks_exact(8).remainder();
        let last = before
            .zip(half(rest))
            .map(|(before, rest)| before >> 32 | rest);
        let last = last.filter(|word| self.holds(word & ADDRESS));
        found.extend(last.map(|word| Word {
            at: at.wrapping_add(bytes.len() as u64).wrapping_sub(8),
            value: word & ADDRESS,
            mangled: false,
        }));
    }
}

/// Four bytes as the upper half of a word.
fn half(bytes: &[u8]) -> Option<u64> {
    let half = bytes.first_chunk().map(|half| u32::from_le_bytes(*half));
    half.map(|half| u64::from(half) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x7f12_3456_7000;
    const END: u64 = START + 0x3000;
    const GUARD: u64 = 0x1234_5678_9abc_def0;

    fn all() -> Vec<Range<u64>> {
        std::iter::once(START..END).collect()
    }

    fn found(at: u64, bytes: &[u8]) -> Vec<Word> {
        let wanted = Wanted::new(&all(), &[GUARD]);
        let mut found = Vec::new();
        wanted.search(at, bytes, &mut found);
        found
    }

    fn placed(len: usize, at: usize, word: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        bytes
    }

    #[test]
    fn pointers_are_found_at_every_fourth_byte() {
        for base in [0x1000, 0x1004] {
            for len in [64, 60, BLOCK, 2 * BLOCK + 12] {
                for at in (0..=len - 8).step_by(4) {
                    for value in [START, START + 1, END - 1, END] {
                        let word = Word {
                            at: base + at as u64,
                            value,
                            mangled: false,
                        };
                        assert_eq!(
                            found(base, &placed(len, at, value)),
                            [word],
                            "{base:#x} {len}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_beside_the_range_is_not_found() {
        for value in [START - 1, END + 1, 0, u64::MAX, START << 1] {
            assert_eq!(found(0x1000, &placed(64, 16, value)), [], "{value:#x}");
        }
    }

    #[test]
    fn a_tag_does_not_hide_a_pointer() {
        for tagged in [START | 0xffff << 48, START | 0xfffb << 47, START | 7] {
            assert_eq!(
                found(0x1000, &placed(64, 16, tagged)).len(),
                1,
                "{tagged:#x}"
            );
        }
    }

    #[test]
    fn mangled_pointers_are_found_where_words_lie() {
        let mangled = ((START + 0x10) ^ GUARD).rotate_left(17);
        let word = Word {
            at: 0x1010,
            value: START + 0x10,
            mangled: true,
        };
        assert_eq!(found(0x1000, &placed(64, 16, mangled)), [word]);
        for at in (0..=3 * BLOCK - 8).step_by(8) {
            let bytes = placed(3 * BLOCK, at, mangled);
            assert_eq!(found(0x1000, &bytes).len(), 1, "{at}");
        }
        let wanted = Wanted::new(&all(), &[1, GUARD]);
        assert_eq!(wanted.find(mangled), Some((START + 0x10, true)));
        assert_eq!(Wanted::new(&all(), &[1]).find(mangled), None);
    }

    /// What the filter lets through is what the whole search finds, wherever the ranges lie.
    #[test]
    fn the_filter_hides_nothing() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for base in [0x7f00_0000_0000, 0x5555_ffff_f000, 0x1000, 0x7fff_ffff_0000] {
            let wanted = Wanted::new(
                &[base..base + 0x1000, base + 0x2000..base + 0x3000],
                &[random()],
            );
            let mut bytes = Vec::new();
            for _ in 0..4096 {
                let address = base + random() % 0x4000;
                let word = match random() % 8 {
                    0 => address,
                    1 => (address ^ wanted.guards[0]).rotate_left(17),
                    2 => address << 32 | random() >> 32,
                    3 => address.rotate_left(32),
                    _ => random(),
                };
                bytes.extend(word.to_le_bytes());
            }
            let (mut filtered, mut all) = (Vec::new(), Vec::new());
            wanted.search(0x4000, &bytes, &mut filtered);
            wanted.search_words(0x4000, &bytes, &mut all);
            assert!(all.len() > 100, "{base:#x}");
            assert_eq!(filtered, all, "{base:#x}");
        }
    }

    #[test]
    fn between_two_ranges_nothing_is_found() {
        let wanted = Wanted::new(&[START..END, END + 0x9000..END + 0xa000], &[]);
        assert_eq!(wanted.find(END + 0x5000), None);
        assert_eq!(wanted.find(END + 0x9000), Some((END + 0x9000, false)));
        let mut found = Vec::new();
        wanted.search(0, &placed(64, 0, END + 0x5000), &mut found);
        assert_eq!(found, []);
        assert_eq!(Wanted::new(&[], &[]).find(0), None);
    }
}
