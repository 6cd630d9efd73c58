//! The process target: live patching of a running Linux process, one task at a time.
//!
//! [`engine::Engine`] is a process under the hands of one command. See ARCHITECTURE.md for the idea.

pub mod arch;
pub mod boost;
pub mod engine;
pub mod error;
pub mod link;
pub mod memory;
pub mod object;
pub mod pages;
pub mod process;
pub mod registry;
pub mod remote;
pub mod search;
mod snapshot;
pub mod space;
pub mod stack;
pub mod state;
pub mod suspended;
pub mod symbolfile;
pub mod symbolize;
pub mod sys;
pub mod tracer;
pub mod unwind;

pub use engine::{Ended, Engine, OnTimeout, Options, Report};
pub use error::Error;
pub use state::Method;
