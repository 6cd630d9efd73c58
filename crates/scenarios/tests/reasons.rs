//! What a patch says of itself: why each function is in it, and in which instructions it differs. Everything comes from a
//! real build of tests/reasons, by gcc -O2.

use livegraft_scenarios::cli::{self, Outcome};
use livegraft_scenarios::compile::strip;
use livegraft_scenarios::plan::root;
use livegraft_scenarios::refusal::check;
use livegraft_scenarios::{Build, Plan, compile_patch, compile_target};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

struct Project {
    dir: TempDir,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

impl Project {
    fn new() -> Project {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("source");
        std::fs::create_dir(&source).expect("it is new");
        for name in ["lib.c", "lib.h", "main.c", "more.c", "Makefile"] {
            let from = root().join("tests/reasons").join(name);
            std::fs::copy(from, source.join(name)).expect("a file of the scenario");
        }
        Project { dir }
    }

    /// The program as its users have it, and a patch for it.
    fn build(&self, more: &[&str]) -> (Outcome, PathBuf) {
        let source = self.dir.path().join("source");
        let elsewhere = self.dir.path().join("shipped");
        let mut copy = Command::new("cp");
        assert!(
            copy.arg("-r")
                .arg(&source)
                .arg(&elsewhere)
                .status()
                .is_ok_and(|s| s.success())
        );
        let made = Command::new("make")
            .arg("-s")
            .current_dir(&elsewhere)
            .output();
        assert!(made.is_ok_and(|made| made.status.success()));
        let target = strip(&elsewhere.join("program"));
        let klp = self.dir.path().join("fix.klp");
        let diff = root().join("tests/reasons/fix.diff");
        let work = self.dir.path().join("work");
        let mut words = Vec::from(["build", "--source", text(&source), "--diff", text(&diff)]);
        words.extend([
            "--target",
            text(&target),
            "--work",
            text(&work),
            "-o",
            text(&klp),
        ]);
        words.extend(more);
        words.extend(["--", "make"]);
        (cli::livegraft(&words), klp)
    }
}

/// What is said of each function: its status and the reasons.
fn said(document: &Value) -> BTreeMap<String, String> {
    let sources = document["sources"].as_array().into_iter().flatten();
    let functions = sources.flat_map(|source| source["functions"].as_array().into_iter().flatten());
    let described = functions.map(|function| {
        let why = function["why"].as_array().into_iter().flatten();
        let mut all = Vec::from([function["status"].as_str().expect("a status")]);
        all.extend(why.map(|why| why.as_str().expect("a sentence")));
        let name = function["name"].as_str().expect("a name");
        (name.to_owned(), all.join("; "))
    });
    described.collect()
}

/// The lines that only one version of a function has, as `-text` and `+text`.
fn differing(document: &Value, name: &str) -> Vec<String> {
    let functions = document["sources"][0]["functions"].as_array();
    let function = functions.into_iter().flatten().find(|f| f["name"] == name);
    let function = function.unwrap_or_else(|| panic!("{name} is not in {document}"));
    let hunks = function["diff"].as_array().into_iter().flatten();
    let lines = hunks.flat_map(|hunk| hunk["lines"].as_array().into_iter().flatten());
    let changed = lines.filter_map(|line| {
        let sign = match line["side"].as_str()? {
            "old" => "-",
            "new" => "+",
            _ => return None,
        };
        let words: Vec<&str> = line["text"].as_str()?.split_whitespace().collect();
        Some(format!("{sign}{}", words.join(" ")))
    });
    changed.collect()
}

#[test]
fn each_function_has_its_reason() {
    let project = Project::new();
    let (built, klp) = project.build(&["--with-callers", "scaled"]);
    assert_eq!(built.code, 0, "{built}");
    let expected = [
        ("parse", "changed; its source is changed"),
        ("leaf", "changed; its source is changed"),
        ("bonus", "new"),
        (
            "scaled",
            "changed; `clamp`, which is inlined into it, is changed in the source",
        ),
        ("twice", "changed; it calls `scaled` (--with-callers)"),
        (
            "checked",
            "changed; it uses the macro `TWICE_LIMIT`, which is changed",
        ),
        (
            "bounded",
            "changed; `within`, which is inlined into it, uses the macro `LIMIT`, which is changed",
        ),
        (
            "look",
            "changed; it uses the constant `weights`, which is changed",
        ),
        (
            "leafy",
            "changed; it relies on the registers that `leaf` leaves alone",
        ),
        (
            "graded",
            "changed; its source is changed; its part `graded.cold` differs",
        ),
        ("graded.cold", "changed; a part of `graded`"),
        (
            "power.constprop.0",
            "changed; its source is changed; a copy of `power` that the compiler made (constprop)",
        ),
        (
            "around",
            "changed; `span`, which its variables are or lead to, has another layout",
        ),
        (
            "across",
            "changed; `span`, which its variables are or lead to, has another layout",
        ),
        ("factor", "changed; its code differs"),
        (
            "grown",
            "changed; `small`, which was inlined into it and is not any more, is changed in the source",
        ),
        (
            "thrice",
            "changed; `small`, which was inlined into it and is not any more, is changed in the source",
        ),
        (
            "small",
            "new; in the original it is inlined wherever it is called",
        ),
    ];
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(name, why)| ((*name).to_owned(), (*why).to_owned()))
        .collect();
    assert_eq!(said(&built.json), expected, "{built}");
    // The patch says what the build has said, and where each function is.
    let info = cli::livegraft(&["info", text(&klp)]).done();
    assert_eq!(info.json["sources"], built.json["sources"], "{info}");
    let functions = info.json["sources"][0]["functions"]
        .as_array()
        .expect("functions");
    for function in functions {
        let declared = function["declared"].as_str().expect("a place");
        assert!(declared.starts_with("lib.c:"), "{function}");
        assert!(function["diff"].is_null(), "{function}");
    }
}

#[test]
fn instructions_that_differ() {
    let project = Project::new();
    let (built, klp) = project.build(&["--with-callers", "scaled"]);
    assert_eq!(built.code, 0, "{built}");
    let diff = cli::livegraft(&["info", text(&klp), "--diff"]).done();
    let of = |name: &str| differing(&diff.json, name);
    // What only moved is no difference, nor is the line of an assertion.
    assert_eq!(of("scaled"), ["-xor %eax,%eax", "+mov $-1,%eax"]);
    assert_eq!(
        of("graded.cold"),
        ["-lea \"bad\",%rsi", "+lea \"very bad\",%rsi"]
    );
    assert_eq!(of("twice"), [""; 0]);
    let look = of("look");
    assert_eq!(look.len(), 2, "{look:?}");
    assert!(look[0].starts_with("-lea weights(%rip)"), "{look:?}");
    assert!(
        look[1].starts_with("+lea weights[changed](%rip)"),
        "{look:?}"
    );
    let parse = of("parse");
    assert!(parse.contains(&"+call bonus".to_owned()), "{parse:?}");
    let quiet = [
        "__assert_fail",
        "strlen",
        "puts",
        "calls",
        "too long",
        "mov $0x",
    ];
    assert!(
        !parse
            .iter()
            .any(|line| quiet.iter().any(|word| line.contains(word))),
        "{parse:?}"
    );
    // One function, and one that is not there.
    let one = cli::livegraft(&["info", text(&klp), "--diff", "graded"]).done();
    let names: Vec<String> = said(&one.json).into_keys().collect();
    assert_eq!(names, ["graded", "graded.cold"]);
    let none = cli::livegraft(&["info", text(&klp), "--diff", "grade"]);
    check(&none, "no function grade parse");
    assert_eq!(none.json["error"]["kind"], "no-function", "{none}");
}

/// The text, as a terminal and as a file has it.
#[test]
fn colours_are_for_terminals() {
    let project = Project::new();
    let (built, klp) = project.build(&[]);
    assert_eq!(built.code, 0, "{built}");
    let shown = |variables: &[(&str, &str)]| {
        let mut command = Command::new(cli::binary());
        command.args(["info", "--diff", text(&klp), "scaled"]);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        let output = command
            .envs(variables.iter().copied())
            .output()
            .expect("it runs");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let plain = shown(&[]);
    let lines: Vec<&str> = plain.lines().collect();
    assert!(lines[0].starts_with("changed scaled (lib.c:"), "{plain}");
    assert!(
        lines[1].contains("`clamp`, which is inlined into it"),
        "{plain}"
    );
    assert!(lines.contains(&"-   +0x11  xor     %eax,%eax"), "{plain}");
    assert!(lines.contains(&"+   +0x11  mov     $-1,%eax"), "{plain}");
    let coloured = shown(&[("CLICOLOR_FORCE", "1")]);
    assert!(
        coloured.contains("\x1b[32m+   +0x11  mov     $-1,%eax\x1b[0m"),
        "{coloured:?}"
    );
    let none = shown(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]);
    assert_eq!(none, plain);
}

#[test]
fn what_can_not_be_shown() {
    // Nobody calls it by such a name.
    let project = Project::new();
    check(
        &project.build(&["--with-callers", "scald"]).0,
        "scald lib.c --with-callers nm",
    );
    // A hand-written patch.
    let plan = Plan::read("sleeper");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let refused = cli::livegraft(&["info", text(&klp), "--diff"]);
    check(&refused, "no old code objdump");
    let info = cli::livegraft(&["info", text(&klp)]).done();
    assert_eq!(info.json["sources"], Value::Array(Vec::new()), "{info}");
}

/// Two objects alone, without their source: what `diff` writes and `pack` makes a patch of says it too.
#[test]
fn by_way_of_diff_and_pack() {
    let project = Project::new();
    let (built, _) = project.build(&[]);
    assert_eq!(built.code, 0, "{built}");
    let source = project.dir.path().join("source");
    let patched = project.dir.path().join("patched");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(&source)
        .arg(&patched)
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    let diff = std::fs::File::open(root().join("tests/reasons/fix.diff")).expect("the diff");
    let mut patch = Command::new("patch");
    let applied = patch
        .args(["-s", "-p1"])
        .current_dir(&patched)
        .stdin(diff)
        .status();
    assert!(applied.is_ok_and(|status| status.success()));
    let object = |tree: &Path| {
        let mut gcc = Command::new("gcc");
        gcc.args([
            "-O2",
            "-g",
            "-fPIE",
            "-ffunction-sections",
            "-fdata-sections",
            "-c",
        ]);
        let made = gcc
            .args(["lib.c", "-o", "sections.o"])
            .current_dir(tree)
            .status();
        assert!(made.is_ok_and(|status| status.success()));
        tree.join("sections.o")
    };
    let (old, new) = (object(&source), object(&patched));
    let extract = project.dir.path().join("extract.o");
    let found = cli::livegraft(&["diff", text(&old), text(&new), "-o", text(&extract)]).done();
    let why = said(&serde_json::json!({"sources": [{"functions": found.json["functions"]}]}));
    assert_eq!(why["same"], "unchanged");
    // gcc does not say that the instruction which differs is one of `clamp`.
    assert_eq!(why["scaled"], "changed; its code differs");
    assert_eq!(why["factor"], "changed; its code differs");
    let made = Command::new("make").arg("-s").current_dir(&source).output();
    assert!(made.is_ok_and(|made| made.status.success()));
    let (exe, klp) = (
        source.join("program"),
        project.dir.path().join("packed.klp"),
    );
    let packed = [
        "pack",
        text(&extract),
        "--target",
        text(&exe),
        "-o",
        text(&klp),
    ];
    cli::livegraft(&packed).done();
    let diff = cli::livegraft(&["info", text(&klp), "--diff"]).done();
    assert_eq!(diff.json["sources"][0]["path"], "lib.c", "{diff}");
    let mut known = why;
    known.retain(|_, said| !said.starts_with("unchanged"));
    assert_eq!(said(&diff.json), known);
    assert_eq!(
        differing(&diff.json, "scaled"),
        ["-xor %eax,%eax", "+mov $-1,%eax"]
    );
}
