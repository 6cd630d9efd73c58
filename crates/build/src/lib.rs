//! From a source diff to a patch: observe a build, compare its objects, find them in the binary that runs.
#![forbid(unsafe_code)]

pub mod capture;
pub mod compare;
pub mod emit;
mod patch;
pub mod place;

pub use patch::{Built, Error, Proof, changed_program, patch};
