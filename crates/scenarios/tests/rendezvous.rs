//! The last way to redirect an entry: all tasks stand still for a moment, none within the bytes that change.

use livegraft_scenarios::cli::start;
use livegraft_scenarios::refusal::check;
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, note};
use std::path::PathBuf;
use std::time::Duration;

const FORCED: &[&str] = &["--entry", "rendezvous"];

fn started(words: &str, arguments: &[&str]) -> (Target, PathBuf) {
    built(&Build::new(words), arguments)
}

fn built(build: &Build, arguments: &[&str]) -> (Target, PathBuf) {
    let plan = Plan::read("rendezvous");
    let exe = compile_target(&plan, build);
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, arguments);
    target.expect("old");
    (target, klp)
}

#[test]
fn tasks_that_are_within_the_first_instructions_all_the_time() {
    for words in ["gcc -O2 pie", "gcc -O2 no-pie"] {
        let (mut target, klp) = started(words, &["4", "20"]);
        for _ in 0..50 {
            let loaded = target.load(&klp, FORCED).result(0, "loaded");
            // It is counted and shown. Only the first load meets: the entry stays known, but jumps anew each time.
            assert_eq!(loaded.number("most_stopped"), 25, "{loaded}");
            target.expect("new");
            let unloaded = target.unload(&[]).result(0, "unloaded");
            assert_eq!(unloaded.number("most_stopped"), 1, "{unloaded}");
            target.expect("old");
        }
        target.finish();
    }
}

/// More than the first five bytes move elsewhere when the function branches back into them: nobody must be in any of it.
#[test]
fn tasks_that_loop_within_the_first_instructions() {
    let build = Build::new("gcc -O2 pie").flag("-DLOOP");
    // One only: on a busy machine a task may wait within the loop for its turn, and each must be met outside of it.
    let (mut target, klp) = built(&build, &["1", "3"]);
    for _ in 0..30 {
        let loaded = target.load(&klp, FORCED).result(0, "loaded");
        assert_eq!(loaded.number("most_stopped"), 5, "{loaded}");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
    }
    target.ask("interrupt");
    let refused = target.load(&klp, FORCED);
    check(&refused, "task first bytes");
    target.expect("old");
    assert_eq!(target.ask("release"), "ok");
    target.load(&klp, FORCED).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

#[test]
fn a_thousand_tasks_meet() {
    let (mut target, klp) = started("gcc -O2 pie", &["1", "1000"]);
    let loaded = target.load(&klp, FORCED).result(0, "loaded");
    assert_eq!(loaded.number("most_stopped"), 1002, "{loaded}");
    let longest = Duration::from_micros(loaded.number("longest_stop_us"));
    note(&format!("1002 tasks stood still for {longest:?}"));
    assert!(longest < Duration::from_secs(3), "{loaded}");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

/// A task that waits for its vfork child can't be stopped before that ends, but runs no instruction either.
#[test]
fn vfork_parent_does_not_keep_the_others_waiting() {
    let (mut target, klp) = started("gcc -O2 pie", &["2", "2"]);
    target.ask("vfork");
    let before = std::time::Instant::now();
    // Its transition has to wait for the parent: it is left open.
    let more = [
        "--entry",
        "rendezvous",
        "--timeout",
        "300ms",
        "--on-timeout",
        "leave",
    ];
    target.load(&klp, &more).result(4, "timed-out");
    assert!(before.elapsed() < Duration::from_secs(10));
    target.expect("new");
    assert_eq!(target.ask("release"), "ok");
    target.livegraft(&["resume"], &[]).done();
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

#[test]
fn task_interrupted_within_the_first_instructions() {
    let (mut target, klp) = started("gcc -O2 pie", &["1", "1"]);
    target.ask("interrupt");
    let refused = target.load(&klp, FORCED);
    check(&refused, "task first bytes");
    target.expect("old");
    target.assert_clean();
    assert_eq!(target.ask("release"), "ok");
    target.load(&klp, FORCED).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

/// livegraft is killed while everybody stands still, or about then.
#[test]
fn killed_at_a_rendezvous() {
    let (mut target, klp) = started("gcc -O2 pie", &["1", "300"]);
    let klp = klp.to_str().expect("a path in UTF-8").to_owned();
    let mut killed = 0;
    for moment in 0..60_u64 {
        let pid = target.pid_text();
        let arguments = ["load", &klp, "--pid", &pid, "--entry", "rendezvous"];
        let mut running = start(&arguments, None);
        std::thread::sleep(Duration::from_micros(500 + moment * 500));
        killed += usize::from(!running.ended());
        running.kill();
        running.finish();
        target.assert_undisturbed();
        assert!(["old", "new"].contains(&target.ask("check").as_str()));
        target.livegraft(&["list"], &[]).done();
        if !target.livegraft(&["status"], &[]).json["transition"].is_null() {
            target.livegraft(&["resume"], &[]).done();
        }
        if target.ask("check") == "new" {
            target.unload(&[]).result(0, "unloaded");
        }
        target.expect("old");
    }
    note(&format!("60 loads, {killed} of them killed"));
    // A load that was killed before its transition opened may have left what the next one clears away.
    let klp = PathBuf::from(klp);
    target.load(&klp, FORCED).result(0, "loaded");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}
