//! Patches from source diffs, for a program in Rust: built by cargo, stripped, started, and patched by what `livegraft
//! build` makes of its source and a diff.

use livegraft_scenarios::project::{Project, functions};

const LIB: &str = "parts/src/lib.rs";
/// A fix of a private function, which all profiles leave as it is.
const FIX: (&str, &str, &str) = (LIB, "rotate_left(3)", "rotate_left(4)");

fn project(profile: &str) -> Project {
    let made = ("target", "release/built");
    let command = "cargo build --release --offline";
    Project::new("built_rust", command, made, ("Cargo.toml", profile))
}

#[test]
fn fixes() {
    let project = project("");
    let built = project.patched(&[FIX], &["7private"], "public");
    assert_eq!(built.json["targets"][0]["proof"], "identical", "{built}");
    // The instance is in the program's crate, which the diff does not touch.
    let built = project.patched(
        &[(LIB, "into() * 3", "into() * 4")],
        &["7generic"],
        "generic",
    );
    assert_eq!(built.json["reused"], true, "{built}");
    assert_eq!(built.json["sources"][0]["path"], "target.rs", "{built}");
    let inlined = (LIB, "x * 7 + 1", "x * 7 + 2");
    project.patched(&[inlined], &["12inlined_here"], "inlined");
    let closure = ("target.rs", "x * by + 9", "x * by + 8");
    project.patched(&[closure], &["12with_closure"], "closure");
    let area = (LIB, "self.side * self.side", "self.side * self.side + 1");
    project.patched(&[area], &["4area"], "area");
    let name = (LIB, "\"square {}\"", "\"a square {}\"");
    project.patched(&[name], &["4name"], "name");
    // A new function; all lines behind it move.
    let new = "#[inline(never)]\nfn more(x: u64) -> u64 {\n    x + CALLS.load(Ordering::Relaxed) / (1 << 60)\n}\n\n#[inline(never)]\nfn private";
    let edits = [
        (LIB, "#[inline(never)]\nfn private", new),
        (LIB, "x.rotate_left(3) ^ 5", "more(x) ^ 4"),
    ];
    let built = project.patched(&edits, &["7private"], "public");
    assert!(
        functions(&built, "new")
            .iter()
            .any(|name| name.contains("4more")),
        "{built}"
    );
}

#[test]
fn nothing_to_patch() {
    let project = project("");
    // Panics say another line.
    project.unchanged(&[(
        LIB,
        "use std",
        "// A line that moves all others.\n\nuse std",
    )]);
    project.refused(
        &[("build.rs", "=build.rs", "=./build.rs")],
        "changes no code build.rs",
    );
}

#[test]
fn refusals() {
    let project = project("");
    let value = (LIB, "AtomicU64::new(5)", "AtomicU64::new(6)");
    project.refused(&[value], "CALLS another value");
    let grown = [
        (LIB, "pub side: u64,", "pub side: u64,\n    pub more: u64,"),
        (
            LIB,
            "self.side * self.side",
            "self.side * self.side + self.more",
        ),
        (LIB, "Square { side: 3 }", "Square { side: 3, more: 1 }"),
    ];
    project.refused(&grown, "struct Square bytes");
    let (area, name) = (
        "    fn area(&self) -> u64;\n",
        "    fn name(&self) -> String;\n",
    );
    let turned = (LIB, &*[area, name].concat(), &*[name, area].concat());
    project.refused(&[turned], "virtual table order");
    let ready = "println!(\"ready\");";
    let main = (
        "target.rs",
        ready,
        &*format!("{ready}\n    thread::yield_now();"),
    );
    project.refused(&[main], "main runs once");
    project.refused(
        &[(LIB, "rotate_left(3)", "rotate_left(3")],
        "patched build failed",
    );
}

/// The linker has left out the symbols: what runs is told by the objects of the crates.
#[test]
fn stripped_by_the_build() {
    let project = project("\n[profile.release]\nstrip = true\n");
    let built = project.patched(&[FIX], &["7private"], "public");
    assert_eq!(built.json["targets"][0]["proof"], "objects", "{built}");
}

/// All crates are optimised as one: the objects that rustc gives to the linker are compared, as far as the fix is in the
/// crate that is linked.
#[test]
fn link_time_optimisation() {
    let project = project("\n[profile.release]\nlto = \"fat\"\n");
    let closure = ("target.rs", "x * by + 9", "x * by + 8");
    project.patched(&[closure], &["12with_closure"], "closure");
    project.refused(&[FIX], "lib.rs lto without");
}
