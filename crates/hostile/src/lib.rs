//! Files that lie: what each reader of files is asked, once, for the fuzzers in `fuzz/` and for the tests here, which
//! ask it of the fuzzers' seeds and of what [`mutate`] makes of them.
//!
//! A reader may refuse whatever it likes. It may not panic, loop, or use memory or time out of proportion; and what it
//! accepts is what it promises.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod elf;
mod mutate;
mod parts;
mod readers;

pub use mutate::mutate;
pub use parts::{joined, parts};
pub use readers::{DEBUG, READERS, assert_valid};

/// A reader of files under test.
pub struct Reader {
    /// Its name, and that of its directory in `fuzz/seeds`.
    pub name: &'static str,
    /// A reader whose seeds it reads too.
    pub also: Option<&'static str>,
    /// What it reads, given as the parts of one input.
    pub read: fn(&[&[u8]]),
}

/// Gives an input to a reader.
pub fn read(reader: &Reader, input: &[u8]) {
    (reader.read)(&parts(input));
}

/// The reader of a name.
///
/// # Panics
/// If there is none.
pub fn reader(name: &str) -> &'static Reader {
    READERS
        .iter()
        .find(|reader| reader.name == name)
        .expect("one of READERS")
}
