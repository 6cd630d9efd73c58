//! Patches from source diffs: a program is built by make, stripped, started, and patched by what `livegraft build` makes
//! of its source and a diff.

use livegraft_scenarios::cli::{self, Outcome};
use livegraft_scenarios::compile::strip;
use livegraft_scenarios::cycle::twice;
use livegraft_scenarios::plan::root;
use livegraft_scenarios::refusal::check;
use livegraft_scenarios::{Plan, Target};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The source of the scenario's program in a directory of its own, and where builds are kept.
struct Project {
    dir: TempDir,
    common: String,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn diff(name: &str) -> PathBuf {
    root().join(format!("tests/built/{name}.diff"))
}

impl Project {
    fn new() -> Project {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("source");
        std::fs::create_dir(&source).expect("it is new");
        for name in ["target.c", "one.c", "other.c", "parts.h", "Makefile"] {
            let from = root().join("tests/built").join(name);
            std::fs::copy(from, source.join(name)).expect("a file of the scenario");
        }
        let common = format!("COMMON={}", root().join("tests/common").display());
        Project { dir, common }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// The program as its users have it: built elsewhere, stripped.
    fn shipped(&self, more: &[&str]) -> PathBuf {
        let elsewhere = self.dir.path().join(format!("shipped{}", more.len()));
        let copied = Command::new("cp")
            .arg("-r")
            .arg(self.source())
            .arg(&elsewhere)
            .status();
        assert!(copied.expect("cp").success());
        let mut make = Command::new("make");
        let made = make
            .current_dir(&elsewhere)
            .arg(&self.common)
            .args(more)
            .output();
        let made = made.expect("make");
        assert!(made.status.success(), "{made:?}");
        strip(&elsewhere.join("built"))
    }

    /// `livegraft build` with a diff of the scenario.
    fn build(&self, name: &str, target: Option<&Path>, more: &[&str]) -> (Outcome, PathBuf) {
        let klp = self.dir.path().join("fix.klp");
        let _ = std::fs::remove_file(&klp);
        let (source, diff, work) = (self.source(), diff(name), self.dir.path().join("work"));
        let mut words = Vec::from(["build", "--source", text(&source), "--diff", text(&diff)]);
        if let Some(target) = target {
            words.extend(["--target", text(target)]);
        }
        words.extend(["--work", text(&work), "-o", text(&klp)]);
        words.extend(more);
        words.extend(["--", "make", &self.common]);
        let outcome = cli::livegraft(&words);
        assert_eq!(klp.exists(), outcome.code == 0, "{outcome}");
        assert!(!source.join("one.o").exists(), "the source was changed");
        (outcome, klp)
    }

    /// One that makes no patch.
    #[track_caller]
    fn refused(&self, name: &str, target: Option<&Path>, words: &str) {
        check(&self.build(name, target, &[]).0, words);
    }
}

fn started(exe: &Path) -> Target {
    Target::start(&Plan::read("built"), exe, &[])
}

/// The names of what the patch replaces and brings.
fn functions(outcome: &Outcome) -> Vec<String> {
    let sources = outcome.json["sources"].as_array().into_iter().flatten();
    let functions = sources.flat_map(|source| source["functions"].as_array().into_iter().flatten());
    let mut names: Vec<String> = functions
        .map(|function| {
            let text = |field: &str| function[field].as_str().unwrap_or("?").to_owned();
            format!("{} {}", text("status"), text("name"))
        })
        .collect();
    names.sort();
    names
}

/// A static function of which there are two of one name, with static variables; a new variable, and new functions in two
/// files. The second run takes the original build of the first.
#[test]
fn a_fix_in_two_files() {
    let project = Project::new();
    let shipped = project.shipped(&[]);
    let (first, _) = project.build("fix", Some(&shipped), &[]);
    assert_eq!(first.json["reused"], false, "{first}");
    let (built, klp) = project.build("fix", Some(&shipped), &[]);
    assert_eq!(built.code, 0, "{built}");
    assert_eq!(built.json["reused"], true, "{built}");
    assert_eq!(built.json["targets"][0]["proof"], "identical", "{built}");
    assert_eq!(
        functions(&built),
        ["changed answer", "new bonus", "new surplus"]
    );
    twice(started(&shipped), &klp, None);
}

/// The target was linked in another way, so that it is told by its objects.
#[test]
fn object_by_object() {
    let project = Project::new();
    let shipped = project.shipped(&["CC=gcc -Wl,-z,separate-code,-z,max-page-size=0x10000"]);
    let (built, klp) = project.build("fix", Some(&shipped), &[]);
    assert_eq!(built.code, 0, "{built}");
    assert_eq!(built.json["targets"][0]["proof"], "objects", "{built}");
    twice(started(&shipped), &klp, None);
}

/// A macro in a header: its users change, and nobody else.
#[test]
fn a_changed_header() {
    let project = Project::new();
    let shipped = project.shipped(&[]);
    let (built, klp) = project.build("macro", Some(&shipped), &[]);
    assert_eq!(built.code, 0, "{built}");
    assert_eq!(functions(&built), ["changed answer"]);
    twice(started(&shipped), &klp, None);
}

/// Without a target nothing is proven, which is said; what runs is not what was built then.
#[test]
fn without_a_target() {
    let project = Project::new();
    let shipped = project.shipped(&["CFLAGS=-O1 -fPIE -pthread"]);
    let (built, klp) = project.build("fix", None, &[]);
    assert_eq!(built.code, 0, "{built}");
    assert_eq!(built.json["targets"][0]["proof"], "none", "{built}");
    let mut target = started(&shipped);
    let refused = target.load(&klp, &[]).expect(1);
    assert_eq!(refused.json["error"]["kind"], "wrong-build-id", "{refused}");
    target.expect("old");
    target.assert_untouched();
    target.end();
}

#[test]
fn nothing_to_patch() {
    let project = Project::new();
    let shipped = project.shipped(&[]);
    let (outcome, _) = project.build("comment", Some(&shipped), &[]);
    assert_eq!(
        outcome.json["error"]["kind"], "no-code-changed",
        "{outcome}"
    );
    check(&outcome, "changes no code");
}

#[test]
fn refusals() {
    let project = Project::new();
    let shipped = project.shipped(&[]);
    let exe = Some(shipped.as_path());
    project.refused("struct", exe, "last bytes one.c");
    project.refused("value", exe, "calls other.c");
    project.refused("broken", exe, "one.c error");
    let (allowed, _) = project.build("struct", exe, &["--allow", "last", "--allow", "sum"]);
    assert_eq!(allowed.code, 0, "{allowed}");
    // What runs was compiled from another source: one constant differs.
    let other = Project::new();
    let header = other.source().join("parts.h");
    let changed = std::fs::read_to_string(&header)
        .expect("a header")
        .replace("ADDED 1", "ADDED 3");
    std::fs::write(&header, changed).expect("a copy of our own");
    let stranger = other.shipped(&[]);
    project.refused("fix", Some(&stranger), "answer differs");
    project.refused("fix", Some(Path::new("/bin/true")), "true program");
}
