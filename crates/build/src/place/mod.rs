//! Where an object lies in a binary, proven.
//!
//! Two ways to prove that what runs is what was built, and to learn where each function and variable of it is, static
//! ones too, in a target without a symbol table:
//!
//! - [`identical`]: the build has linked the same program, unstripped, and all that is loaded is equal.
//! - [`objects`]: each section of the build's objects is found in the target, relocated fields left out, and all that
//!   the relocations say agrees.
//!
//! Neither reads the target's own symbol table. Whatever comes from a file is hostile here.

mod explain;
mod follow;
mod identical;
mod linked;
mod placement;
mod refusal;
mod relocatable;
mod rewrite;
mod search;
mod system;
mod unwinding;

use object::LittleEndian as Le;
use object::elf::{self, FileHeader64};
use object::read::elf::FileHeader as _;

pub use identical::{Difference, Symbol, Symbols, identical};
pub use placement::{Located, Placement, Share, objects};
pub use refusal::{Refusal, SideBySide};

/// A relocatable object of the build, compiled with the very flags of the target's build.
#[derive(Debug, Clone, Copy)]
pub struct Object<'a> {
    /// Its path, for messages.
    pub name: &'a str,
    /// The file.
    pub bytes: &'a [u8],
}

/// The header of a 64-bit x86-64 file; `file` is its name for messages.
fn header<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a FileHeader64<Le>, Refusal> {
    let fits = |header: &&FileHeader64<Le>| {
        bytes.get(5) == Some(&1) && header.e_machine(Le) == elf::EM_X86_64
    };
    let header = FileHeader64::<Le>::parse(bytes).ok().filter(fits);
    header.ok_or_else(|| Refusal::NotElf {
        file: file.to_owned(),
    })
}
