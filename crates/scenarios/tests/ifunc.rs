//! Patches that refer to indirect functions (IFUNC) which the process has not resolved: a task calls their resolvers.

use livegraft_scenarios::cli::start;
use livegraft_scenarios::compile::{compile_program, has_command};
use livegraft_scenarios::cycle::{has_compilers, twice};
use livegraft_scenarios::refusal::{both_ways, check};
use livegraft_scenarios::{
    Build, Outcome, Plan, Target, cli, compile_patch, compile_patch_as, compile_target, note,
    require,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The program, and the patch that calls this function of its library.
fn prepare(function: Option<&str>, arguments: &[&str]) -> (Target, PathBuf) {
    let plan = Plan::read("ifunc");
    let exe = compile_target(&plan, &plan.targets()[0]);
    let build = Build::new("gcc -O2 pic");
    let build = match function {
        Some(function) => build.flag(&format!("-DIFUNC={function}")),
        None => build,
    };
    let klp = compile_patch(&plan, &build, &exe);
    (Target::start(&plan, &exe, arguments), klp)
}

/// What `check` says would be resolved.
fn unresolved(target: &Target, klp: &Path) -> Vec<String> {
    let checked = target.livegraft(&["check", text(klp)], &[]).done();
    assert_eq!(checked.text("result"), "would-load", "{checked}");
    let list = checked.json["unresolved"].as_array().expect("a list");
    let name = |value: &serde_json::Value| {
        format!(
            "{} in {}",
            value["name"].as_str().expect("a name"),
            value["object"].as_str().expect("an object")
        )
    };
    let mut names: Vec<String> = list.iter().map(name).collect();
    names.sort();
    names
}

fn naps(target: &mut Target) -> u64 {
    target.ask("naps").parse().expect("a number")
}

/// The task that calls naps again, and the program's handlers are its own.
#[track_caller]
fn is_well(target: &mut Target) {
    let before = naps(target);
    let deadline = Instant::now() + Duration::from_secs(5);
    while naps(target) < before + 10 {
        assert!(Instant::now() < deadline, "the task has not come back");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(target.ask("fault"), "handled");
}

#[test]
fn of_the_c_library_and_the_mathematical_one() {
    let (mut target, klp) = prepare(None, &[]);
    let wanted = ["ceil", "fmaf", "tan", "time", "wcsrchr"];
    let named = |name| match name {
        "time" | "wcsrchr" => format!("{name} in libc.so.6"),
        name => format!("{name} in libm.so.6"),
    };
    assert_eq!(unresolved(&target, &klp), wanted.map(named));
    target.assert_untouched();
    let said = livegraft_text(&["check", text(&klp), "--pid", &target.pid_text()]);
    assert!(
        said.contains("wcsrchr in libc.so.6") && said.contains("resolver"),
        "{said}"
    );
    is_well(&mut target);
    twice(target, &klp, None);
}

fn livegraft_text(arguments: &[&str]) -> String {
    let output = Command::new(cli::binary()).args(arguments).output();
    String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned()
}

#[test]
fn of_a_library_of_the_program() {
    let (mut target, klp) = prepare(Some("chosen"), &[]);
    let name = "chosen in libscenario.so".to_owned();
    let all = unresolved(&target, &klp);
    assert!(all.contains(&name), "{all:?}");
    target.load(&klp, &[]).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    twice(target, &klp, None);
    // Once the program has called it, nobody needs to.
    let (mut target, klp) = prepare(Some("chosen"), &[]);
    assert_eq!(target.ask("call"), "2");
    let all = unresolved(&target, &klp);
    assert!(!all.contains(&name), "{all:?}");
    twice(target, &klp, None);
}

#[test]
fn of_the_program() {
    let plan = Plan::read("ifunc_own");
    for build in plan.targets() {
        for patch in plan.patches() {
            if !has_compilers([&build, &patch]) {
                continue;
            }
            note(&format!("{build}, patch {patch}"));
            let exe = compile_target(&plan, &build);
            let klp = compile_patch(&plan, &patch, &exe);
            let mut target = Target::start(&plan, &exe, &[]);
            let names = unresolved(&target, &klp);
            assert_eq!(names.len(), 2, "{names:?}");
            assert_eq!(target.ask("asked"), "no");
            target.load(&klp, &[]).result(0, "loaded");
            assert_eq!(target.ask("asked"), "yes");
            target.unload(&[]).result(0, "unloaded");
            twice(target, &klp, None);
        }
    }
}

/// Every cycle starts with a process that has resolved nothing; the task that calls never notices.
#[test]
fn again_and_again() {
    for _ in 0..20 {
        let (mut target, klp) = prepare(Some("chosen"), &[]);
        target.load(&klp, &[]).result(0, "loaded");
        target.expect("new");
        is_well(&mut target);
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
}

/// Refused, with everything as it was.
fn refused(function: &str, words: &str) {
    let (mut target, klp) = prepare(Some(function), &[]);
    target.expect("old");
    let load = ["load", text(&klp), "--pid", &target.pid_text()];
    both_ways(&load, None, words);
    target.expect("old");
    target.assert_untouched();
    is_well(&mut target);
    // Another patch is none the worse for it.
    let (_, other) = prepare(None, &[]);
    twice(target, &other, None);
}

#[test]
fn resolver_that_crashes() {
    refused("crashing", "crashing libscenario.so fault signal");
}

#[test]
fn resolver_that_takes_a_lock() {
    refused(
        "locked",
        "locked libscenario.so atomic|running|system calls",
    );
    // That is known without calling it.
    let (target, klp) = prepare(Some("locked"), &[]);
    let checked = target.livegraft(&["check", text(&klp)], &[]);
    check(&checked, "locked libscenario.so holds");
    target.assert_untouched();
    target.end();
}

#[test]
fn resolver_that_returns_no_function() {
    refused("none", "none libscenario.so 0x0 code");
    refused(
        "number_of_a_call",
        "number_of_a_call libscenario.so 0xe7 code",
    );
    refused("variable", "variable libscenario.so returned code");
}

/// It is broken off, and the task goes on where it was.
#[test]
fn resolver_that_never_returns() {
    let (mut target, klp) = prepare(Some("held"), &[]);
    assert_eq!(target.ask("hold"), "ok");
    assert_eq!(target.ask("entered"), "no");
    check(
        &target.load(&klp, &[]),
        "held libscenario.so return in time",
    );
    assert_eq!(target.ask("entered"), "yes");
    target.expect("old");
    target.assert_untouched();
    is_well(&mut target);
    assert_eq!(target.ask("let go"), "ok");
    twice(target, &klp, None);
}

/// livegraft is killed while a task calls a resolver for it: the task returns by itself, whatever that returns.
#[test]
fn killed_during_the_call() {
    for _ in 0..3 {
        let (mut target, klp) = prepare(Some("held"), &[]);
        assert_eq!(target.ask("hold"), "ok");
        let pid = target.pid_text();
        let mut load = start(&["load", text(&klp), "--pid", &pid], None);
        let deadline = Instant::now() + Duration::from_secs(10);
        while target.ask("entered") == "no" {
            assert!(Instant::now() < deadline, "the call has not begun");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!load.ended());
        load.kill();
        load.finish();
        target.expect("old");
        let before = naps(&mut target);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(naps(&mut target), before, "the task is in the resolver");
        assert_eq!(target.ask("let go"), "ok");
        is_well(&mut target);
        target.assert_untouched();
        twice(target, &klp, None);
    }
}

/// livegraft is killed at any moment of a load whose resolver takes a while.
#[test]
fn killed_at_any_moment() {
    let (mut target, klp) = prepare(Some("slow"), &[]);
    let pid = target.pid_text();
    let (mut early, mut left) = (0, 0);
    for round in 0..60_u64 {
        let before = naps(&mut target);
        let mut load = start(&["load", text(&klp), "--pid", &pid], None);
        std::thread::sleep(Duration::from_micros(round * 7919 % 30_000));
        early += u32::from(!load.ended());
        load.kill();
        load.finish();
        // Whether the task is still away.
        left += u32::from(naps(&mut target) <= before + 1);
        is_well(&mut target);
        let resumed = target.livegraft(&["resume"], &[]);
        assert!(
            resumed.code == 0 || resumed.json["error"]["kind"] == "not-patched",
            "{resumed}"
        );
        if cli::patch_state(target.pid(), "fix").as_deref() == Some("enabled") {
            target.expect("new");
            target.unload(&[]).result(0, "unloaded");
        }
        target.expect("old");
        // Loaded again it would take its old memory, with nothing to resolve.
        target.livegraft(&["free", "--stop", "5s"], &[]);
    }
    note(&format!(
        "{early} of 60 loads were killed, {left} tasks were away"
    ));
    assert!(early > 10, "{early} of 60 loads were killed");
    twice(target, &klp, None);
}

#[test]
fn nobody_is_in_a_safe_place() {
    let (mut target, klp) = prepare(None, &["handler"]);
    let load = ["load", text(&klp), "--pid", &target.pid_text()];
    both_ways(&load, None, "IFUNC resolver signal handler");
    target.expect("old");
    target.assert_untouched();
    target.end();
}

/// A service whose filter kills it for what it does not need.
#[test]
fn under_a_filter() {
    let hardened = Plan::read("hardened");
    let exe = compile_target(&hardened, &Build::new("gcc -O2 pie"));
    let build = Build::new("gcc -O2 pic").flag("-DLIBC_ONLY");
    let klp = compile_patch_as(&Plan::read("ifunc"), &build, &exe, "fix");
    let confined = |how: &str| {
        let mut target = Target::start(&hardened, &exe, &[how]);
        let children = format!("/proc/{0}/task/{0}/children", target.pid());
        let child = std::fs::read_to_string(children).expect("it is alive");
        target.rebase(child.trim().parse().expect("it has one child"));
        target
    };
    for how in ["filter", "all"] {
        let target = confined(how);
        assert_eq!(
            unresolved(&target, &klp),
            ["time in libc.so.6", "wcsrchr in libc.so.6"]
        );
        twice(target, &klp, None);
    }
    let mut target = confined("filter");
    let filtered = compile_program(&hardened, &Build::new("gcc -O2 pie"), "filtered.c");
    let load = ["load", text(&klp), "--pid", &target.pid_text(), "--json"];
    let words = "seccomp filter CAP_SYS_ADMIN";
    check(&through(&[text(&filtered)], &load), words);
    if require("setpriv", has_command("setpriv")) {
        let setpriv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"];
        check(&through(&setpriv, &load), words);
    }
    target.expect("old");
    target.assert_untouched();
    twice(target, &klp, None);
}

/// Runs livegraft through another command.
fn through(command: &[&str], arguments: &[&str]) -> Outcome {
    let mut all = Command::new(command[0]);
    all.args(&command[1..]).arg(cli::binary()).args(arguments);
    all.stdin(Stdio::null()).stdout(Stdio::piped());
    all.stderr(Stdio::piped());
    cli::run(all).finish()
}
