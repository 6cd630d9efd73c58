//! Exceptions, cancellation and backtraces through patch code, and the call in the target that they need.

use livegraft_scenarios::cli::start;
use livegraft_scenarios::cycle::{matrix, twice};
use livegraft_scenarios::refusal::{both_ways, check};
use livegraft_scenarios::{Build, Plan, Target, cli, compile_patch, compile_target, require};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[test]
fn exceptions() {
    matrix("exceptions", &[]);
}

/// The unwinder is in the program itself.
#[test]
fn exceptions_static() {
    let plan = Plan::read("exceptions");
    let dynamic = Build::new("gcc -O2 pie").flag("-static-libgcc");
    for build in ["gcc -O2 static", "gcc -O2 static-pie"]
        .map(Build::new)
        .iter()
        .chain([&dynamic])
    {
        let exe = compile_target(&plan, build);
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        let target = Target::start(&plan, &exe, &[]);
        target.load(&klp, &[]).result(0, "loaded");
        assert!(is_registered(&target), "{build}");
        target.unload(&[]).result(0, "unloaded");
        twice(target, &klp, None);
    }
}

/// Needs Debian's libc++-dev, libc++abi-dev and libunwind-dev of clang's version.
#[test]
fn exceptions_llvm() {
    let libraries = ["libc++.so", "libc++abi.so", "libunwind.so"];
    let there = |name: &&str| {
        let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib"];
        dirs.iter().any(|dir| Path::new(dir).join(name).exists())
    };
    if require("libc++", libraries.iter().all(there)) {
        matrix("exceptions_llvm", &[]);
    }
}

#[test]
fn cancellation_and_backtrace() {
    matrix("cancel", &[]);
}

fn prepare(name: &str, arguments: &[&str]) -> (Target, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &plan.targets()[0]);
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    (Target::start(&plan, &exe, arguments), klp)
}

/// Whether something has been registered with an unwinder.
fn is_registered(target: &Target) -> bool {
    let listed = cli::list(target.pid());
    let mappings = listed["memory"]["mappings"].as_array();
    let mut mappings = mappings.into_iter().flatten();
    mappings.any(|mapping| {
        let what = mapping["what"].as_str().unwrap_or_default();
        what.contains("unwinders")
    })
}

/// There is no unwinder when the patch is loaded, and one when it is loaded again.
#[test]
fn the_unwinder_comes_later() {
    let (mut target, klp) = prepare("backtrace", &[]);
    target.load(&klp, &[]).result(0, "loaded");
    assert!(!is_registered(&target));
    target.expect("main() is not seen");
    target.unload(&[]).result(0, "unloaded");
    assert!(!is_registered(&target));
    target.load(&klp, &[]).result(0, "loaded");
    assert!(is_registered(&target));
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.finish();
}

/// The unwinder forgets a patch before its memory goes; then another one can come to the same place.
#[test]
fn what_is_freed_is_forgotten() {
    let (mut target, klp) = prepare("unwinder", &["nanosleep"]);
    for _ in 0..3 {
        target.load(&klp, &[]).result(0, "loaded");
        assert!(is_registered(&target));
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.livegraft(&["free", "--stop", "5s"], &[]).done();
        assert!(!is_registered(&target));
        target.expect("old");
        target.assert_clean();
    }
    target.finish();
}

/// Where exceptions have been thrown meanwhile, the unwinder has an index of the patch's call frame information, and that
/// is seen: the patch stays, and nothing that is thrown gets lost.
#[test]
fn free_among_exceptions() {
    for build in ["gcc -O2 pie", "gcc -O2 static"].map(Build::new) {
        let plan = Plan::read("exceptions");
        let exe = compile_target(&plan, &build);
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        let mut target = Target::start(&plan, &exe, &[]);
        for _ in 0..3 {
            target.load(&klp, &[]).result(0, "loaded");
            target.expect("new");
            target.unload(&[]).result(0, "unloaded");
            target.expect("old");
            let freed = target.livegraft(&["free", "--stop", "5s"], &[]);
            assert_eq!(is_registered(&target), freed.code == 1, "{freed}");
            target.expect("old");
        }
        target.finish();
    }
}

/// The task that calls a function for us goes on as if nothing had happened, whatever it was doing.
#[test]
fn the_caller_does_not_notice() {
    for work in [
        "nanosleep",
        "poll",
        "select",
        "cond",
        "sem",
        "epoll",
        "read",
        "spin",
    ] {
        let (target, klp) = prepare("unwinder", &[work]);
        target.load(&klp, &[]).result(0, "loaded");
        assert!(is_registered(&target), "{work}");
        target.unload(&[]).result(0, "unloaded");
        twice(target, &klp, None);
    }
}

/// A program that does all its work in a signal handler, as those do that were forked in one.
#[test]
fn who_was_interrupted_holds_nothing() {
    for place in ["select-interrupted", "sigprocmask", "program"] {
        let (mut target, klp) = prepare("unwinder", &[place]);
        target.expect("old");
        target.load(&klp, &[]).result(0, "loaded");
        assert!(is_registered(&target), "{place}");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.end();
    }
}

#[test]
fn nobody_is_in_a_safe_place() {
    for (program, place, words) in [
        ("unwinder", "raise", "libgcc_s signal handler interrupted"),
        ("unwinder", "qsort", "libgcc_s signal handler interrupted"),
        ("unwinder", "altstack", "libgcc_s thread's stack"),
        ("unwinder", "unwinder", "libgcc_s _Unwind_Backtrace"),
        ("unwinder_fiber", "", "libgcc_s unwound|thread's"),
    ] {
        let (mut target, klp) = prepare(program, &[place]);
        target.expect("old");
        let load = [
            "load",
            klp.to_str().expect("UTF-8"),
            "--pid",
            &target.pid_text(),
        ];
        let path = load[1];
        let checked = target.livegraft(&["check", path], &["--sample", "200ms"]);
        let registers = &checked.done().json["registers"];
        let why = registers["why"].as_str().unwrap_or_default().to_owned();
        assert!(registers["task"].is_null(), "{registers}");
        let said = format!("{} {why}", registers["with"].as_str().unwrap_or_default());
        for word in words.split(' ') {
            let found = word.split('|').any(|choice| said.contains(choice));
            assert!(found, "`{word}` is not in {registers}");
        }
        let text = start(&["check", path, "--pid", &target.pid_text()], None);
        let text = text.finish().done();
        assert!(
            text.stdout.contains("warning: none was in such a place"),
            "{text}"
        );
        target.assert_untouched();
        both_ways(&load, None, words);
        target.expect("old");
        target.assert_untouched();
        target.end();
    }
}

/// `check` says what a load would have a task do, and who could; after the load there is nothing left to do.
#[test]
fn check_says_what_is_registered() {
    let (mut target, klp) = prepare("unwinder", &["nanosleep"]);
    let path = klp.to_str().expect("UTF-8");
    let registers = |target: &Target| {
        let checked = target.livegraft(&["check", path], &["--sample", "2s"]);
        checked.done().json["registers"].clone()
    };
    let before = registers(&target);
    assert_eq!(before["with"], "libgcc_s.so.1", "{before}");
    assert_eq!(before["task"], target.pid(), "{before}");
    assert!(before["why"].is_null(), "{before}");
    target.assert_untouched();
    target.load(&klp, &[]).result(0, "loaded");
    target.unload(&[]).result(0, "unloaded");
    assert!(registers(&target).is_null());
    target.expect("old");
    target.finish();
    // Nothing is registered where there is no unwinder.
    let (target, klp) = prepare("backtrace", &[]);
    let checked = target.livegraft(&["check", klp.to_str().expect("UTF-8")], &[]);
    let checked = checked.done();
    assert!(checked.json["registers"].is_null(), "{checked}");
    target.finish();
}

fn naps(target: &mut Target) -> u64 {
    target.ask("naps").parse().expect("a number")
}

/// The task that napped before naps again: it has come back from what it was made to call.
fn comes_back(target: &mut Target) {
    let before = naps(target);
    let deadline = Instant::now() + Duration::from_secs(5);
    while naps(target) < before + 10 {
        assert!(Instant::now() < deadline, "the task has not come back");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All of it works afterwards.
fn cycle(mut target: Target, klp: &Path) {
    target.load(klp, &[]).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    comes_back(&mut target);
    target.finish();
}

/// The call does not return in time.
#[test]
fn the_unwinder_is_busy() {
    let (mut target, klp) = prepare("unwinder_held", &[]);
    assert_eq!(target.ask("hold"), "ok");
    check(&target.load(&klp, &[]), "return in time libgcc_s");
    target.expect("old");
    // It may be registered at any time from now on, so its memory stays, and is accounted for.
    assert!(is_registered(&target));
    target.assert_accounted();
    let before = naps(&mut target);
    assert_eq!(target.ask("let go"), "ok");
    comes_back(&mut target);
    assert!(naps(&mut target) > before);
    cycle(target, &klp);
}

/// livegraft is killed while a task calls a function for it.
#[test]
fn killed_during_the_call() {
    let (mut target, klp) = prepare("unwinder_held", &[]);
    assert_eq!(target.ask("hold"), "ok");
    let pid = target.pid_text();
    let mut load = start(&["load", klp.to_str().expect("UTF-8"), "--pid", &pid], None);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut before = naps(&mut target);
    // Until the task naps no more.
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = naps(&mut target);
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "the call has not begun");
        before = now;
    }
    assert!(!load.ended());
    load.kill();
    load.finish();
    target.expect("old");
    assert_eq!(target.ask("let go"), "ok");
    comes_back(&mut target);
    cycle(target, &klp);
}
