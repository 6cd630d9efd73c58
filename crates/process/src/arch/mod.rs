//! What depends on the processor. Each architecture offers the same names; the rest of the crate uses no other.

mod x86_64;

pub use x86_64::*;
