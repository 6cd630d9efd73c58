//! `build --debian` and full disks: what is refused before anything long is done. The long part is `make stock`.

use livegraft_scenarios::cli::{self, Outcome};
use livegraft_scenarios::compile::has_command;
use livegraft_scenarios::plan::root;
use livegraft_scenarios::refusal::check;
use livegraft_scenarios::require;
use std::path::Path;
use std::process::{Command, Stdio};

const REDIS: &str = "stock/redis-static";

fn is_root() -> bool {
    // Root in a container may lack what these namespaces need.
    let tried = Command::new("unshare")
        .args(["--net", "--mount", "true"])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

/// `livegraft build` with these words, after a shell has prepared a directory for its work in namespaces of its own.
fn build(namespace: &str, diff: &str, prepare: &str, words: &[&str]) -> Outcome {
    let dir = tempfile::tempdir().expect("a directory");
    let script = format!("set -e; cd \"$1\"; {prepare}; shift; exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args([namespace, "sh", "-c", &script, "sh"])
        .arg(dir.path());
    command
        .arg(cli::binary())
        .args(["--json", "build", "--diff"]);
    command.arg(root().join(format!("tests/{diff}.diff")));
    let (work, klp) = (dir.path().join("work"), dir.path().join("fix.klp"));
    command
        .arg("--work")
        .arg(&work)
        .arg("-o")
        .arg(&klp)
        .args(words);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let outcome = cli::run(command).finish();
    assert!(!klp.exists(), "{outcome}");
    let left = std::fs::read_dir(work.join("debian")).into_iter().flatten();
    let left = left.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let left: Vec<String> = left.filter(|name| name.ends_with(".download")).collect();
    assert!(left.is_empty(), "{left:?} are left: {outcome}");
    outcome
}

#[test]
fn packages_that_are_not_there() {
    let redis = has_command("dpkg-query") && Path::new("/usr/bin/redis-server").exists();
    if !require("unshare", is_root()) || !require("redis-server of Debian", redis) {
        return;
    }
    let outcome = build("--net", REDIS, "true", &["--debian", "no-such-package"]);
    check(&outcome, "no-such-package installed package");
    let outcome = build("--net", REDIS, "true", &["--debian", "redis-server=0.1"]);
    check(&outcome, "redis 0.1 installed --target");
    // Nothing was fetched before, and can be now.
    let outcome = build("--net", REDIS, "true", &["--debian", "redis-server"]);
    check(&outcome, "redis fetched resolv");
}

#[test]
fn disks_that_are_full() {
    let redis = has_command("dpkg-query") && Path::new("/usr/bin/redis-server").exists();
    if !require("unshare", is_root()) || !require("redis-server of Debian", redis) {
        return;
    }
    let small = "mkdir work; mount -t tmpfs -o size=512k none work";
    let outcome = build("--mount", REDIS, small, &["--debian", "redis-server"]);
    check(&outcome, "space --work");
    // There is enough for the source, and for its copy, but not for what the build makes.
    let root = root().display().to_string();
    let prepare =
        format!("mkdir work; mount -t tmpfs -o size=4m none work; cp -r {root}/tests/built source");
    let make = format!("make COMMON={root}/tests/common && head -c 8000000 /dev/zero >large");
    let words = ["--source", "source", "--", "sh", "-c", &make];
    let outcome = build("--mount", "built/fix", &prepare, &words);
    check(&outcome, "space --work");
}
