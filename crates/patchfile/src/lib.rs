//! The patch file: an ELF relocatable object in the format of the kernel's livepatch modules.
//!
//! [`pack`] makes one from compiled C, [`Patch::parse`] reads it, [`Info`] prints it. Whatever comes from a file is
//! hostile here: no index, range or size is used before it was checked.
#![forbid(unsafe_code)]

pub mod changes;
pub mod clobber;
pub mod elf;
mod error;
mod info;
mod meta;
mod note;
mod pack;
mod patch;
mod ranges;
mod read;
mod relocation;
mod resolve;
mod target;
mod words;
mod write;

pub use error::Error;
pub use info::{FuncInfo, Info, ObjectInfo, SectionInfo};
#[doc(hidden)]
pub use note::seal;
pub use pack::{Input, Target, join, merge, pack};
pub use patch::*;
pub use ranges::ranges_of;
pub use relocation::{relocation_name, relocation_width};
pub use target::{SymbolKind, TargetElf, TargetSymbol};
pub use words::counted;
pub use write::write as write_object;
