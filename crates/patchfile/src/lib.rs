//! The patch file: an ELF relocatable object in the format of the kernel's livepatch modules.
#![forbid(unsafe_code)]

mod patch;

pub use patch::*;
