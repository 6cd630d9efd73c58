//! Transitions that stay open: a task asleep in old code, timeouts, reverse, resume, a dead word, two controllers.

use livegraft_scenarios::cli::{self, Running, start};
use livegraft_scenarios::cycle::has_compilers;
use livegraft_scenarios::refusal::{both_ways, check};
use livegraft_scenarios::{Build, Outcome, Plan, Target, compile_patch, compile_target};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LEAVE: &[&str] = &["--timeout", "300ms", "--on-timeout", "leave"];
const REVERSE: &[&str] = &["--timeout", "300ms", "--on-timeout", "reverse"];

fn sleeper(build: &Build) -> (Target, PathBuf) {
    let plan = Plan::read("sleeper");
    let exe = compile_target(&plan, build);
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    target.expect("old");
    (target, klp)
}

/// Runs a scenario with each compiler that it names.
fn each_compiler(run: impl Fn(Target, PathBuf)) {
    for build in Plan::read("sleeper").targets() {
        if has_compilers([&build]) {
            let (target, klp) = sleeper(&build);
            run(target, klp);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[track_caller]
fn says(target: &mut Target, workers: &str, sleeper: &str) {
    assert_eq!(target.ask("workers"), workers, "the workers");
    assert_eq!(target.ask("sleeper"), sleeper, "the sleeper");
}

fn status(target: &Target) -> Value {
    target.livegraft(&["status"], &[]).done().json
}

/// The sleeper's line in `status`, which must be complete; it must be the only task that has not moved.
#[track_caller]
fn held_task(target: &Target, operation: &str, function: &str) -> Value {
    let status = status(target);
    assert_eq!(status["pid"], target.pid(), "{status}");
    assert_eq!(status["transition"]["patch"], "fix", "{status}");
    assert_eq!(status["transition"]["operation"], operation, "{status}");
    let tasks = status["tasks"]
        .as_array()
        .unwrap_or_else(|| panic!("no tasks: {status}"));
    let held: Vec<_> = tasks
        .iter()
        .filter(|task| !task["blocked"].is_null())
        .collect();
    assert_eq!(held.len(), 1, "{status}");
    let blocked = &held[0]["blocked"];
    // On the way back it is the patch's version, and said so: `job of patch fix`.
    let named = blocked["function"]
        .as_str()
        .and_then(|name| name.split(' ').next());
    assert_eq!(named, Some(function), "{status}");
    assert!(
        blocked["seconds"]
            .as_f64()
            .is_some_and(|seconds| (0.0..60.0).contains(&seconds)),
        "{status}"
    );
    for address in ["address", "stack"] {
        assert!(
            blocked[address]
                .as_str()
                .is_some_and(|text| text.starts_with("0x")),
            "{address}: {status}"
        );
    }
    let moved = if operation == "load" { 1 } else { 0 };
    for task in tasks {
        let expected = if task["blocked"].is_null() {
            moved
        } else {
            1 - moved
        };
        assert_eq!(task["patch_state"], expected, "{status}");
    }
    held[0].clone()
}

fn assert_idle(target: &Target) {
    let status = status(target);
    assert!(status["transition"].is_null(), "{status}");
    for task in status["tasks"].as_array().expect("tasks") {
        assert_eq!(task["patch_state"], -1, "{status}");
    }
}

/// Starts a load that will wait for the sleeper, and waits until all others have moved.
fn load_in_background(target: &mut Target, klp: &Path) -> Running {
    let load = start(
        &[
            "load",
            text(klp),
            "--pid",
            &target.pid_text(),
            "--timeout",
            "60s",
            "--json",
        ],
        None,
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while target.ask("workers") != "new" {
        assert!(Instant::now() < deadline, "the workers do not move");
        std::thread::sleep(Duration::from_millis(2));
    }
    load
}

#[track_caller]
fn timed_out(outcome: Outcome) {
    let outcome = outcome.result(4, "timed-out");
    let blocked = outcome.json["blocked"].as_array().expect("a list");
    assert_eq!(blocked.len(), 1, "{outcome}");
}

#[test]
fn timeout_leaves_the_transition_open_and_the_sleeper_moves_by_itself() {
    each_compiler(|mut target, klp| {
        timed_out(target.load(&klp, LEAVE));
        says(&mut target, "new", "old");
        let held = held_task(&target, "load", "job");
        assert_eq!(held["name"], "sleeper", "{held}");
        assert_eq!(held["blocked"]["armed"], true, "{held}");
        assert_eq!(
            cli::patch_state(target.pid(), "fix").as_deref(),
            Some("loading")
        );
        target.assert_undisturbed();
        // No livegraft runs: the very next call of job() is the new one.
        assert_eq!(target.ask("wake"), "new");
        let resumed = target.livegraft(&["resume"], &[]).done();
        assert_eq!(resumed.text("result"), "loaded", "{resumed}");
        assert_eq!(
            cli::patch_state(target.pid(), "fix").as_deref(),
            Some("enabled")
        );
        assert_idle(&target);
        target.expect("new");
        // The same on the way back.
        timed_out(target.unload(LEAVE));
        says(&mut target, "old", "new");
        held_task(&target, "unload", "job");
        assert_eq!(target.ask("wake"), "old");
        target.livegraft(&["resume"], &[]).done();
        target.expect("old");
        assert_eq!(target.ask("wake"), "old");
        target.finish();
    });
}

#[test]
fn timeout_reverses() {
    each_compiler(|mut target, klp| {
        target.load(&klp, REVERSE).result(3, "reversed");
        says(&mut target, "old", "old");
        assert_ne!(
            cli::patch_state(target.pid(), "fix").as_deref(),
            Some("enabled")
        );
        assert_idle(&target);
        target.assert_clean();
        assert_eq!(target.ask("wake"), "old");
        // It can be loaded afterwards, and its unload can be reversed too.
        timed_out(target.load(&klp, LEAVE));
        assert_eq!(target.ask("wake"), "new");
        target.livegraft(&["resume"], &[]).done();
        target.unload(REVERSE).result(3, "reversed");
        says(&mut target, "new", "new");
        assert_eq!(
            cli::patch_state(target.pid(), "fix").as_deref(),
            Some("enabled")
        );
        timed_out(target.unload(LEAVE));
        assert_eq!(target.ask("wake"), "old");
        target.livegraft(&["resume"], &[]).done();
        target.finish();
    });
}

#[test]
fn reverse_brings_everyone_back() {
    each_compiler(|mut target, klp| {
        timed_out(target.load(&klp, LEAVE));
        says(&mut target, "new", "old");
        let reversed = target.livegraft(&["reverse"], &[]).done();
        assert!(
            ["reversed", "unloaded"].contains(&reversed.text("result")),
            "{reversed}"
        );
        says(&mut target, "old", "old");
        assert_eq!(target.ask("wake"), "old");
        assert_idle(&target);
        target.assert_clean();
        check(&target.livegraft(&["reverse"], &[]), "no|nothing");
        // A reversed unload is loaded again.
        timed_out(target.load(&klp, LEAVE));
        assert_eq!(target.ask("wake"), "new");
        target.livegraft(&["resume"], &[]).done();
        timed_out(target.unload(LEAVE));
        says(&mut target, "old", "new");
        target.livegraft(&["reverse"], &[]).done();
        says(&mut target, "new", "new");
        assert_eq!(
            cli::patch_state(target.pid(), "fix").as_deref(),
            Some("enabled")
        );
        timed_out(target.unload(LEAVE));
        assert_eq!(target.ask("wake"), "old");
        target.livegraft(&["resume"], &[]).done();
        target.finish();
    });
}

/// The sleeper has moved already when the transition is turned round: it is brought back as well.
#[test]
fn reverse_after_the_sleeper_has_switched_itself() {
    each_compiler(|mut target, klp| {
        timed_out(target.load(&klp, LEAVE));
        assert_eq!(target.ask("wake"), "new");
        // Now it sleeps in the new job(), and has to leave that.
        let reverse = start(&["reverse", "--pid", &target.pid_text(), "--json"], None);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(target.ask("wake"), "old");
        reverse.finish().done();
        says(&mut target, "old", "old");
        target.finish();
    });
}

#[test]
fn controller_killed_while_it_waits() {
    each_compiler(|mut target, klp| {
        let mut load = load_in_background(&mut target, &klp);
        says(&mut target, "new", "old");
        std::thread::sleep(Duration::from_millis(100));
        let controller = status(&target)["transition"]["controller"].clone();
        assert_eq!(controller["pid"], load.pid(), "{controller}");
        assert_eq!(controller["alive"], true, "{controller}");
        load.kill();
        load.finish().expect(128 + libc::SIGKILL);
        let controller = status(&target)["transition"]["controller"].clone();
        assert_eq!(controller["alive"], false, "{controller}");
        target.assert_undisturbed();
        held_task(&target, "load", "job");
        assert_eq!(target.ask("wake"), "new");
        target.livegraft(&["resume"], &[]).done();
        target.expect("new");
        timed_out(target.unload(LEAVE));
        assert_eq!(target.ask("wake"), "old");
        target.livegraft(&["resume"], &[]).done();
        target.finish();
    });
}

#[test]
fn load_waits_for_the_sleeper() {
    each_compiler(|mut target, klp| {
        let load = load_in_background(&mut target, &klp);
        assert_eq!(target.ask("wake"), "new");
        let loaded = load.finish().result(0, "loaded");
        assert!(loaded.elapsed < Duration::from_secs(30), "{loaded}");
        target.expect("new");
        let unload = start(
            &["unload", "fix", "--pid", &target.pid_text(), "--json"],
            None,
        );
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(target.ask("wake"), "old");
        unload.finish().result(0, "unloaded");
        target.finish();
    });
}

#[test]
fn two_controllers_at_once() {
    let (mut target, klp) = sleeper(&Build::new("gcc -O2 pie"));
    let pid = target.pid_text();
    let load = load_in_background(&mut target, &klp);
    let controller = load.pid().to_string();
    both_ways(&["load", text(&klp), "--pid", &pid], None, &controller);
    for command in [
        &["unload", "fix", "--pid", &pid][..],
        &["resume", "--pid", &pid],
    ] {
        both_ways(command, None, &controller);
    }
    // Looking is always allowed.
    cli::list(target.pid());
    held_task(&target, "load", "job");
    assert_eq!(target.ask("wake"), "new");
    load.finish().result(0, "loaded");
    // Many at the same moment: one of them does it.
    timed_out(target.unload(LEAVE));
    assert_eq!(target.ask("wake"), "old");
    target.livegraft(&["resume"], &[]).done();
    let many = |target: &Target| -> Vec<Running> {
        let arguments = [
            "load",
            text(&klp),
            "--pid",
            &target.pid_text(),
            "--timeout",
            "60s",
            "--json",
        ];
        (0..6).map(|_| start(&arguments, None)).collect()
    };
    let loads = many(&target);
    std::thread::sleep(Duration::from_millis(500));
    target.ask("wake");
    let outcomes: Vec<Outcome> = loads.into_iter().map(Running::finish).collect();
    let done = outcomes.iter().filter(|outcome| outcome.code == 0).count();
    assert_eq!(done, 1, "{outcomes:#?}");
    outcomes
        .iter()
        .filter(|outcome| outcome.code != 0)
        .for_each(|outcome| check(outcome, ""));
    target.expect("new");
    timed_out(target.unload(LEAVE));
    assert_eq!(target.ask("wake"), "old");
    target.livegraft(&["resume"], &[]).done();
    target.finish();
}

/// A word that is no return address does not hold a task where a strict unwind proves that; else `status` says where it
/// lies.
#[test]
fn dead_word_on_the_stack() {
    let plan = Plan::read("deadword");
    for build in plan.targets() {
        let exe = compile_target(&plan, &build);
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        for busy in ["0", "1"] {
            let mut target = Target::start(&plan, &exe, &["64", busy]);
            for _ in 0..5 {
                target.expect("old");
                target.load(&klp, &[]).result(0, "loaded");
                target.expect("new");
                target.unload(&[]).result(0, "unloaded");
            }
            assert_eq!(target.ask("release"), "ok");
            target.finish();
        }
        let mut target = Target::start(&plan, &exe, &["4096", "0"]);
        target.expect("old");
        target.load(&klp, LEAVE).result(4, "timed-out");
        let held = held_task(&target, "load", "answer");
        assert_eq!(held["name"], "holder", "{held}");
        let number = |text: &str| {
            u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address")
        };
        let bounds = target.ask("where");
        let (low, high) = bounds.split_once(' ').expect("two addresses");
        let stack = number(held["blocked"]["stack"].as_str().expect("an address"));
        assert!(
            (number(low)..number(high)).contains(&stack),
            "{bounds}: {held}"
        );
        assert_eq!(target.ask("release"), "ok");
        target.livegraft(&["resume"], &[]).done();
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.finish();
    }
}

/// What looks like a dead word in a large frame may be a coroutine's return address. Here it is one.
#[test]
fn coroutine_on_a_stack_within_a_frame() {
    let plan = Plan::read("framestack");
    for build in plan.targets() {
        let exe = compile_target(&plan, &build);
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        let mut target = Target::start(&plan, &exe, &[]);
        target.expect("old");
        assert_eq!(target.ask("suspend"), "ok");
        target.load(&klp, LEAVE).result(4, "timed-out");
        target.expect("old");
        let status = status(&target);
        let mut tasks = status["tasks"].as_array().expect("a list").iter();
        let held = tasks.find(|task| task["blocked"]["function"] == "count");
        let held = held.unwrap_or_else(|| panic!("nobody is held: {status}"));
        assert_eq!(held["name"], "a suspended stack", "{held}");
        assert!(!held["blocked"]["stack"].is_null(), "{held}");
        assert_eq!(target.ask("finish"), "old", "{build}");
        target.livegraft(&["resume"], &[]).done();
        target.expect("new");
        assert_eq!(target.ask("suspend"), "ok");
        target.unload(LEAVE).result(4, "timed-out");
        target.expect("new");
        target.livegraft(&["reverse"], &[]).done();
        assert_eq!(target.ask("finish"), "new");
        target.unload(&[]).result(0, "unloaded");
        target.finish();
    }
}

/// Force moves the sleeper although it is within the function, and that is remembered.
#[test]
fn force_moves_the_sleeper() {
    each_compiler(|mut target, klp| {
        check(&target.livegraft(&["force"], &[]), "no");
        timed_out(target.load(&klp, LEAVE));
        says(&mut target, "new", "old");
        target.livegraft(&["force"], &[]).result(0, "loaded");
        assert_idle(&target);
        let forced = |target: &Target| cli::list(target.pid())["patches"][0]["forced"].clone();
        assert_eq!(forced(&target), true);
        // It finishes the old job, and its next one is new.
        assert_eq!(target.ask("wake"), "new");
        says(&mut target, "new", "new");
        timed_out(target.unload(LEAVE));
        target.livegraft(&["force"], &[]).result(0, "unloaded");
        assert_eq!(target.ask("wake"), "old");
        says(&mut target, "old", "old");
        assert_eq!(forced(&target), true);
        // Not before it was forced.
        timed_out(target.load(&klp, LEAVE));
        target.livegraft(&["reverse"], &[]).done();
        target.finish();
    });
}

/// Time runs out at the first look. Whoever is held has been told to switch itself all the same, and needs nobody for it.
#[test]
fn held_task_is_told_however_short_the_time() {
    const AT_ONCE: &[&str] = &["--timeout", "0s", "--on-timeout", "leave"];
    let told = |outcome: Outcome| {
        let outcome = outcome.result(4, "timed-out");
        let blocked = outcome.json["blocked"].as_array().expect("a list");
        let held = blocked.iter().find(|task| task["name"] == "sleeper");
        let held = held.unwrap_or_else(|| panic!("it is not held: {outcome}"));
        assert_eq!(held["armed"], true, "{outcome}");
    };
    let (mut target, klp) = sleeper(&Build::new("gcc -O2 pie"));
    told(target.load(&klp, AT_ONCE));
    assert_eq!(target.ask("wake"), "new");
    target.livegraft(&["resume"], &[]).done();
    says(&mut target, "new", "new");
    told(target.unload(AT_ONCE));
    assert_eq!(target.ask("wake"), "old");
    target.livegraft(&["resume"], &[]).done();
    says(&mut target, "old", "old");
    target.finish();
}
