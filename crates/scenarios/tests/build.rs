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
        for name in [
            "target.c", "one.c", "other.c", "more.c", "parts.h", "Makefile",
        ] {
            let from = root().join("tests/built").join(name);
            std::fs::copy(from, source.join(name)).expect("a file of the scenario");
        }
        let common = format!("COMMON={}", root().join("tests/common").display());
        Project { dir, common }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// A copy of the source.
    fn copied(&self, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        let mut cp = Command::new("cp");
        let copied = cp.arg("-r").arg(self.source()).arg(&copy).status();
        assert!(copied.expect("cp").success());
        copy
    }

    fn make(&self, dir: &Path, more: &[&str]) {
        let mut make = Command::new("make");
        let made = make.current_dir(dir).arg(&self.common).args(more).output();
        let made = made.expect("make");
        assert!(made.status.success(), "{made:?}");
    }

    /// The program as its users have it: built elsewhere, stripped.
    fn shipped(&self, more: &[&str]) -> PathBuf {
        let elsewhere = self.copied(&format!("shipped{}", more.len()));
        self.make(&elsewhere, more);
        strip(&elsewhere.join("built"))
    }

    /// `livegraft build` with a diff of the scenario.
    fn build(&self, name: &str, target: Option<&Path>, more: &[&str]) -> (Outcome, PathBuf) {
        self.build_by(name, target, more, &[])
    }

    /// The same, with more words for make.
    fn build_by(
        &self,
        name: &str,
        target: Option<&Path>,
        more: &[&str],
        make: &[&str],
    ) -> (Outcome, PathBuf) {
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
        words.extend(make);
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

/// One patch for two programs that have their static functions and variables of one name in different orders.
#[test]
fn two_targets_in_different_orders() {
    let project = Project::new();
    let shipped = project.copied("shipped");
    project.make(&shipped, &["built", "twin"]);
    let [first, second] = ["built", "twin"].map(|name| strip(&shipped.join(name)));
    let more = ["--target", text(&second)];
    let (built, klp) = project.build_by("fix", Some(&first), &more, &["built", "twin"]);
    assert_eq!(built.code, 0, "{built}");
    for target in 0..2 {
        let proof = &built.json["targets"][target]["proof"];
        assert_eq!(proof, "identical", "{built}");
    }
    twice(started(&first), &klp, None);
    twice(started(&second), &klp, None);
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

/// gcc keeps values in registers over the call of a function that it sees leave them alone (-fipa-ra). The fix makes that
/// function use them all, so its caller goes with it, in which nothing was changed; alone it would lose them, which `pack`
/// says of one that is written by hand.
#[test]
fn registers_that_a_caller_relies_on() {
    let project = Project::new();
    let shipped = project.shipped(&[]);
    let (built, klp) = project.build("leaf", Some(&shipped), &[]);
    assert_eq!(built.code, 0, "{built}");
    assert_eq!(functions(&built), ["changed leaf", "changed spread"]);
    let said = built.json["sources"].to_string();
    assert!(
        said.contains("relies on the registers that `leaf` leaves alone"),
        "{built}"
    );
    twice(started(&shipped), &klp, None);
    let patch = project.dir.path().join("alone.c");
    let code = "#include <livepatch.h>\nint other_ask(int);\nstatic int lp_leaf(int x) { return x * 3 + (other_ask(1) == 12 ? 100 : 0); }\n\
        static struct klp_func funcs[] = { { .old_name = \"leaf\", .new_func = lp_leaf }, { } };\n\
        static struct klp_object objs[] = { { .funcs = funcs }, { } };\n\
        static struct klp_patch patch = { .objs = objs };\nKLP_PATCH(patch);\n";
    std::fs::write(&patch, code).expect("a file");
    let object = patch.with_extension("o");
    let include = root().join("include");
    let mut cc = Command::new("gcc");
    cc.args([
        "-O2",
        "-fPIC",
        "-c",
        "-I",
        text(&include),
        text(&patch),
        "-o",
    ]);
    assert!(cc.arg(&object).status().expect("gcc").success());
    // What the stripped program no longer says.
    let unstripped = project.dir.path().join("shipped0/built");
    let alone = project.dir.path().join("alone.klp");
    let packed = cli::livegraft(&[
        "pack",
        text(&object),
        "--target",
        text(&unstripped),
        "-o",
        text(&alone),
    ]);
    check(&packed, "leaf spread register");
    assert!(!alone.exists());
}

/// Two members of a struct change places, in a build without debug information: the comparison has it anyway.
#[test]
fn a_struct_that_lives_on() {
    let project = Project::new();
    let shipped = project.shipped(&[]);
    project.refused("node", Some(&shipped), "node more.c");
    let (allowed, _) = project.build("node", Some(&shipped), &["--allow", "node"]);
    assert_eq!(allowed.code, 0, "{allowed}");
}

/// By hand, as docs/patches.md says: what the link-time compiler makes of both sources is joined and compared.
#[test]
fn a_program_of_the_link_time_compiler() {
    let project = Project::new();
    let compiled = "CFLAGS=-O2 -fPIE -pthread -flto";
    let target = project.copied("target");
    project.make(&target, &[compiled, "CC=gcc -O2 -flto"]);
    let exe = target.join("built");
    let fix = text(&diff("fix")).to_owned();
    let parts = [("old", None), ("new", Some(fix))].map(|(name, fix)| {
        let dir = project.copied(name);
        if let Some(fix) = fix {
            let mut patch = Command::new("patch");
            patch.current_dir(&dir).args(["-p1", "-i", &fix]);
            assert!(patch.output().expect("patch").status.success());
        }
        let link = "CC=gcc -O2 -flto -ffunction-sections -fdata-sections -save-temps";
        project.make(&dir, &[compiled, link]);
        let files = std::fs::read_dir(&dir).expect("a directory");
        let mut objects: Vec<PathBuf> = files.map(|file| file.expect("an entry").path()).collect();
        objects.retain(|path| text(path).ends_with(".ltrans.o"));
        assert!(!objects.is_empty());
        let whole = project.dir.path().join(format!("{name}.o"));
        let mut ld = Command::new("ld");
        ld.args(["-r", "-o", text(&whole)]).args(&objects);
        assert!(ld.status().expect("ld").success());
        whole
    });
    let extract = project.dir.path().join("fix.o");
    let [old, new] = parts.each_ref().map(|path| text(path));
    cli::livegraft(&["diff", old, new, "-o", text(&extract)]).done();
    let klp = project.dir.path().join("fix.klp");
    let pack = [
        "pack",
        text(&extract),
        "--target",
        text(&exe),
        "-o",
        text(&klp),
    ];
    cli::livegraft(&pack).done();
    twice(started(&exe), &klp, None);
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
