//! Other kernels: a QEMU guest without acceleration that boots one of Debian's kernels, with a small system in memory
//! whose files are those of this machine, at the same places. What runs in it is a program of ours, which says on a
//! serial port of its own how each of its scenarios ended; the kernel and everybody else write to the other.

mod boot;
pub mod inside;
mod scenarios;

pub use boot::{Guest, Processor, Ran, System, kernel};
pub use scenarios::check_gs_base;

use crate::compile::{compile_patch, compile_target};
use crate::plan::{Build, Plan, root};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Where the guest finds what was built for it.
const MANIFEST: &str = "/manifest";

/// The programs that run in the guest.
const PROGRAMS: &[&str] = &[
    "many", "contract", "sleeper", "gsbase", "eintr", "seccomp", "altstack", "scarce",
];

/// Builds the programs and their patches, and puts all that the scenarios need into a system.
pub fn prepare(system: &mut System) {
    let mut manifest = serde_json::Map::new();
    for name in PROGRAMS {
        let plan = Plan::read(name);
        let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        system.add_program(&exe);
        system.add(&klp);
        system.add(&plan.dir.join("target.c"));
        manifest.insert((*name).to_owned(), json!([exe, klp]));
    }
    // By which the top of the repository is found.
    system.add(&root().join("crates/scenarios/Cargo.toml"));
    let livegraft = crate::cli::binary();
    system.add_stripped(&livegraft);
    manifest.insert("livegraft".to_owned(), json!(livegraft));
    system.write(MANIFEST, &Value::Object(manifest).to_string());
}

/// A program of the guest: its plan, itself, its patch.
fn built(name: &str) -> (Plan, PathBuf, PathBuf) {
    let files = &manifest()[name];
    let file = |index: usize| {
        let path = files[index].as_str();
        PathBuf::from(path.unwrap_or_else(|| panic!("{name} is not in {MANIFEST}")))
    };
    (Plan::read(name), file(0), file(1))
}

fn manifest() -> Value {
    let text = std::fs::read_to_string(MANIFEST).unwrap_or_else(|e| panic!("{MANIFEST}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{MANIFEST}: {e}"))
}

/// The names of the scenarios, in the order in which they run.
pub fn names() -> Vec<&'static str> {
    scenarios::ALL.iter().map(|(name, _)| *name).collect()
}
