//! The harness of the scenarios in `tests/`: it builds small C programs and patches, runs them, drives the `livegraft`
//! command at them, and looks at what is left behind.
//!
//! A scenario is a directory in `tests/` with its expectations in the header comment of its `target.c`, as lines
//! `//# key: value` (see [`plan`]). Nothing here knows how livegraft works: it is used as a user uses it, through its
//! command line and its JSON.

pub mod cli;
pub mod compile;
pub mod cve;
pub mod cycle;
pub mod guest;
pub mod inspect;
pub mod plan;
pub mod project;
pub mod redis;
pub mod refusal;
pub mod servers;
pub mod stock;
mod sys;
pub mod target;

pub use cli::{Outcome, livegraft};
pub use compile::{compile_patch, compile_patch_as, compile_target};
pub use plan::{Build, Plan};
pub use sys::{
    Tracer, Uprobe, bare_visit, children_time, has_fsgsbase, kill, killpg, peak_memory,
    raise_open_files, set_gs_base, walk_and_stop,
};
pub use target::Target;

use std::io::Write;

/// Says whether a requirement is there. Where it is not, a SKIP line appears in the output of `cargo test` (which would
/// swallow a `println!`), and with `LIVEGRAFT_REQUIRE=1` the test fails.
pub fn require(what: &str, present: bool) -> bool {
    if !present {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "LIVEGRAFT_REQUIRE is set, and {what} is missing"
        );
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let _ = writeln!(std::io::stderr(), "SKIP {test}: needs {what}");
    }
    present
}

/// A line of progress that `cargo test` does not swallow; for the scenarios that take long.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "     {text}");
}
