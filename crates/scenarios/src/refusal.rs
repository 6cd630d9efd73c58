//! The life of a patch that is refused: one clear sentence, and the target is as it was.

use crate::cli::{self, Outcome};
use crate::inspect;
use crate::plan::{Build, Plan};
use crate::target::Target;
use crate::{Tracer, Uprobe, compile, require};
use std::path::Path;

/// Nobody in particular: `nobody` on Debian.
const NOBODY: u32 = 65534;

/// Insists that a command with `--json` was refused in words that contain all of `words` (`a|b`: one of them).
#[track_caller]
pub fn check(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.code, 1, "not a refusal: {outcome}");
    let error = &outcome.json["error"];
    let kind = error["kind"]
        .as_str()
        .unwrap_or_else(|| panic!("no kind: {outcome}"));
    assert!(
        !kind.is_empty()
            && kind
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
        "{kind}"
    );
    let message = error["message"]
        .as_str()
        .unwrap_or_else(|| panic!("no message: {outcome}"));
    check_sentence(message, words, outcome);
}

/// Insists that a command without `--json` was refused with one sentence on standard error.
#[track_caller]
pub fn check_text(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.code, 1, "not a refusal: {outcome}");
    assert_eq!(
        outcome.stderr.trim().lines().count(),
        1,
        "not one line on standard error: {outcome}"
    );
    check_sentence(&outcome.stderr, words, outcome);
}

#[track_caller]
fn check_sentence(sentence: &str, words: &str, outcome: &Outcome) {
    let lower = sentence.to_lowercase();
    for word in words.split_whitespace() {
        let found = word
            .split('|')
            .any(|choice| lower.contains(&choice.to_lowercase()));
        assert!(found, "`{word}` is not in the refusal: {outcome}");
    }
    assert!(!lower.contains("panicked"), "{outcome}");
}

/// Runs a command both ways, with and without `--json`, and insists on the refusal.
#[track_caller]
pub fn both_ways(arguments: &[&str], user: Option<u32>, words: &str) {
    check_text(&cli::start(arguments, user).finish(), words);
    let mut json = arguments.to_vec();
    json.push("--json");
    check(&cli::start(&json, user).finish(), words);
}

/// A scenario in `tests/refuse/`: everything is in its directives.
pub fn scenario(name: &str) {
    let plan = Plan::read(&format!("refuse/{name}"));
    let build = plan.targets().remove(0);
    let patch = plan.patches().remove(0);
    let exe = compile::compile_target(&plan, &build);
    let packed_for = match plan.get("packed-for") {
        Some(other) => compile::compile_program(&plan, &build, other),
        None => exe.clone(),
    };
    let uses: Vec<Build> = match plan.get("uses") {
        Some(list) => list
            .split_whitespace()
            .map(|name| patch.flag(&format!("-DUSE_{name}")))
            .collect(),
        None => vec![patch],
    };
    for patch in uses {
        refuse(&plan, &patch, &exe, &packed_for);
    }
}

/// The words of a `refuse` directive. A scenario with `uses` expects the name of what is used.
fn words<'a>(plan: &'a Plan, key: &'a str) -> Option<&'a str> {
    plan.get(key).map(|value| {
        value
            .strip_prefix("refuse ")
            .unwrap_or_else(|| panic!("`{value}` is not `refuse ..`"))
    })
}

fn refuse(plan: &Plan, patch: &Build, exe: &Path, packed_for: &Path) {
    let objects = compile::compile_patch_objects(plan, patch);
    let (pack, klp) = compile::pack_arguments(&objects, packed_for, "fix");
    let pack: Vec<&str> = pack.iter().map(String::as_str).collect();
    let used = patch.flags.first().map(|flag| {
        flag.trim_start_matches("-DUSE_")
            .trim_start_matches("FUNC_")
            .to_lowercase()
    });
    let used = used.map(|used| {
        used.replace("callbacks", "callback|pre_patch")
            .replace("states", "state")
    });
    if let Some(words) = words(plan, "pack") {
        both_ways(&pack, None, words);
        assert!(!klp.exists(), "a refused pack has left {}", klp.display());
        return;
    }
    let anywhere = words(plan, "pack-or-load").or(used.as_deref());
    let mut target = Target::start(plan, exe, &[]);
    target.expect("old");
    let packed = cli::livegraft(&pack);
    match (anywhere, packed.code) {
        (Some(words), 1) => check(&packed, words),
        _ => {
            packed.done();
            let words = anywhere
                .or(words(plan, "load"))
                .expect("a refusal is expected somewhere");
            refuse_load(plan, &target, &klp, words);
        }
    }
    target.expect("old");
    target.assert_untouched();
    target.end();
}

/// Does what `//# before:` says, has the load refused, and takes it back.
fn refuse_load(plan: &Plan, target: &Target, klp: &Path, words: &str) {
    let pid = target.pid_text();
    let load = [
        "load",
        klp.to_str().expect("a path in UTF-8"),
        "--pid",
        &pid,
    ];
    // Whatever refuses a load, `check` says it too.
    let refused = |load: &[&str]| {
        let mut check = load.to_vec();
        check[0] = "check";
        both_ways(&check, None, words);
        both_ways(load, None, words);
    };
    match plan.get("before") {
        None => refused(&load),
        Some("breakpoint") => {
            let (_, address) = inspect::function(target.pid(), target.exe(), "answer");
            let before = inspect::poke(target.pid(), address, 0xcc);
            refused(&load);
            assert_eq!(
                inspect::poke(target.pid(), address, before),
                0xcc,
                "the breakpoint was overwritten"
            );
        }
        Some("uprobe") => {
            let (offset, address) = inspect::function(target.pid(), target.exe(), "answer");
            let set = Uprobe::set(target.exe(), offset, target.pid());
            if require(
                "uprobes (CONFIG_UPROBES, and the right to set them)",
                set.is_ok(),
            ) {
                refused(&load);
                inspect::remove(set, target.pid(), address);
            }
        }
        Some("trace") => {
            let tracer = Tracer::attach(target.pid()).expect("tracing a child works");
            refused(&load);
            drop(tracer);
        }
        Some("nobody") => {
            // SAFETY-free way to ask who we are: the owner of our own /proc entry.
            use std::os::unix::fs::MetadataExt;
            let root = std::fs::metadata("/proc/self")
                .map(|metadata| metadata.uid() == 0)
                .unwrap_or(false);
            if require("root, to become nobody", root) {
                as_nobody(&load, words);
            }
        }
        Some(other) => panic!("`//# before: {other}` is unknown"),
    }
}

/// Copies what nobody must be able to reach to where nobody can, and tries.
fn as_nobody(load: &[&str], words: &str) {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    let dir = std::env::temp_dir().join(format!("livegraft-nobody-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).expect("the temporary directory can be written");
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod")
    };
    let put = |from: &Path, name: &str| {
        let to = dir.join(name);
        std::fs::copy(from, &to).expect("copying works");
        open(&to);
        to
    };
    open(&dir);
    let (binary, klp) = (
        put(&cli::binary(), "livegraft"),
        put(Path::new(load[1]), "fix.klp"),
    );
    for json in [false, true] {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&binary);
        command
            .arg(load[0])
            .arg(&klp)
            .args(&load[2..])
            .args(json.then_some("--json"));
        command
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let outcome = cli::run(command).finish();
        if json {
            check(&outcome, words)
        } else {
            check_text(&outcome, words)
        }
    }
    std::fs::remove_dir_all(&dir).expect("what was made can be removed");
}
