//! Dead words on the stack of a task that must move by itself: it can be told of those that stay dead, and only of those.

use livegraft_scenarios::cycle::has_compilers;
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target};
use std::path::PathBuf;

const LEAVE: &[&str] = &["--timeout", "300ms", "--on-timeout", "leave"];
const AT_ONCE: &[&str] = &["--timeout", "2ms", "--on-timeout", "leave"];
/// The programs, see target.c, and whose they are.
const STAYS: &str = "0";
const BUSY: &str = "1";
const BY_POINTER: &str = "2";
const WITH_ALLOCA: &str = "3";
const WITH_ARGUMENTS: &str = "4";
const BY_TAIL: &str = "5";
const OTHER_THREAD: &str = "6";
const OF_THREAD: &str = "0";
const OF_MAIN: &str = "1";

/// Runs one of the programs with each compiler.
fn each_build(program: &str, whose: &[&str], run: impl Fn(Target, PathBuf)) {
    let plan = Plan::read("pinned");
    for build in plan.targets() {
        if !has_compilers([&build]) {
            continue;
        }
        let exe = compile_target(&plan, &build);
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        for whose in whose {
            let mut target = Target::start(&plan, &exe, &[program, whose]);
            target.expect("old");
            run(target, klp.clone());
        }
    }
}

#[test]
fn a_task_moves_past_what_stays_dead() {
    each_build(STAYS, &[OF_THREAD, OF_MAIN], |mut target, klp| {
        for _ in 0..3 {
            target.load(&klp, LEAVE).result(4, "timed-out");
            // Nobody is at work, and its very next call is new.
            assert_eq!(target.ask("wake"), "new");
            target.livegraft(&["resume"], &[]).result(0, "loaded");
            target.expect("new");
            target.unload(LEAVE).result(4, "timed-out");
            assert_eq!(target.ask("wake"), "old");
            target.livegraft(&["resume"], &[]).result(0, "unloaded");
            target.expect("old");
        }
        target.finish();
    });
}

/// The word becomes the return address of a call of old code, in which the task must not move. It says when it did.
fn stays_old(program: &str, whose: &[&str]) {
    each_build(program, whose, |mut target, klp| {
        target.load(&klp, LEAVE).result(4, "timed-out");
        assert_eq!(target.ask("wake"), "old");
        target.livegraft(&["resume"], &[]).result(0, "loaded");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    });
}

#[test]
fn another_function_by_the_same_call() {
    stays_old(BY_POINTER, &[OF_THREAD, OF_MAIN]);
}

#[test]
fn another_depth_of_the_stack() {
    stays_old(WITH_ALLOCA, &[OF_THREAD, OF_MAIN]);
    stays_old(WITH_ARGUMENTS, &[OF_THREAD, OF_MAIN]);
}

#[test]
fn another_function_by_a_jump() {
    stays_old(BY_TAIL, &[OF_THREAD, OF_MAIN]);
}

#[test]
fn another_thread_on_the_same_stack() {
    stays_old(OTHER_THREAD, &[OF_THREAD]);
}

/// No call of the busy task may see two versions, whenever a controller leaves and another one goes on.
#[test]
fn many_transitions_of_a_busy_task() {
    each_build(BUSY, &[OF_THREAD, OF_MAIN], |mut target, klp| {
        for round in 0..25 {
            let options = if round % 5 == 0 { LEAVE } else { AT_ONCE };
            let loaded = target.load(&klp, options);
            if loaded.code != 0 {
                loaded.result(4, "timed-out");
                target.livegraft(&["resume"], &[]).result(0, "loaded");
            }
            assert_eq!(target.ask("holder"), "new");
            target.expect("new");
            let unloaded = target.unload(options);
            if unloaded.code != 0 {
                unloaded.result(4, "timed-out");
                target.livegraft(&["resume"], &[]).result(0, "unloaded");
            }
            assert_eq!(target.ask("holder"), "old");
            target.expect("old");
        }
        target.finish();
    });
}
