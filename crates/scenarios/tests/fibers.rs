//! Stacks that no task owns: coroutines, fibers. A replaced function that is only on a suspended one holds the transition.

use livegraft_scenarios::cycle::{has_compilers, twice};
use livegraft_scenarios::refusal::check;
use livegraft_scenarios::{Build, Plan, Target, cli, compile_patch, compile_target};
use std::path::PathBuf;

const LEAVE: &[&str] = &["--timeout", "300ms", "--on-timeout", "leave"];
const REVERSE: &[&str] = &["--timeout", "300ms", "--on-timeout", "reverse"];

fn start(build: &Build) -> (Target, PathBuf) {
    let plan = Plan::read("fibers");
    let exe = compile_target(&plan, build);
    // It suspends fibers in the same way.
    let mut patch = Build::new("gcc -O2 pic");
    patch.flags.clone_from(&build.flags);
    let klp = compile_patch(&plan, &patch, &exe);
    (Target::start(&plan, &exe, &[]), klp)
}

fn each_compiler(kind: &str, run: impl Fn(Target, PathBuf)) {
    for build in Plan::read("fibers").targets() {
        let flags = kind.split(' ').map(|flag| format!("-D{flag}"));
        let build = flags.fold(build, |build, flag| build.flag(&flag));
        if has_compilers([&build]) {
            let (target, klp) = start(&build);
            run(target, klp);
        }
    }
}

/// What the suspended stack is called in a report, and what it holds.
#[track_caller]
fn held_by_suspended(blocked: &serde_json::Value) {
    assert_eq!(blocked["name"], "a suspended stack", "{blocked}");
    let function = blocked["function"].as_str().unwrap_or_default();
    assert!(function.starts_with("count"), "{blocked}");
    assert!(blocked["stack"].is_string(), "{blocked}");
}

/// What is left on suspended stacks holds nobody; what they return to does, there and back.
fn one_task(kind: &str) {
    each_compiler(kind, |mut target, klp| {
        target.expect("old");
        let loaded = target.load(&klp, &[]).result(0, "loaded");
        assert_eq!(loaded.json["most_stopped"], 1, "{loaded}");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        assert_eq!(target.ask("inside 2"), "ok");
        let refused = target.load(&klp, REVERSE).result(3, "reversed");
        held_by_suspended(&refused.json["blocked"][0]);
        target.expect("old");
        let left = target.load(&klp, LEAVE).result(4, "timed-out");
        held_by_suspended(&left.json["blocked"][0]);
        target.expect("old");
        let status = cli::livegraft(&["status", "--pid", &target.pid_text()]).done();
        let tasks = status.json["tasks"].as_array().expect("a list");
        let fiber = tasks.iter().find(|task| task["tid"] == 0);
        let blocked = &fiber.unwrap_or_else(|| panic!("no fiber: {status}"))["blocked"];
        held_by_suspended(blocked);
        let frames = blocked["frames"].as_array().expect("a list").iter();
        let names: Vec<&str> = frames.filter_map(|f| f["function"].as_str()).collect();
        assert!(names.contains(&"count"), "{status}");
        assert_eq!(target.ask("outside 2"), "old, then old");
        target.livegraft(&["resume"], &[]).result(0, "loaded");
        target.expect("new");
        assert_eq!(target.ask("inside 3"), "ok");
        target.unload(LEAVE).result(4, "timed-out");
        target.expect("new");
        target.livegraft(&["reverse"], &[]).done();
        assert_eq!(target.ask("outside 3"), "new, then new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.assert_clean();
        target.finish();
    });
}

#[test]
fn contexts_of_the_c_library() {
    one_task("UCONTEXT");
}

#[test]
fn contexts_and_jumps() {
    one_task("JUMPS");
}

/// All that says that a fiber is suspended within the function is a hidden address, on the stack of a task that runs.
#[test]
fn jumps_out_of_the_function_itself() {
    one_task("JUMPS DIRECT");
}

#[test]
fn fibers_as_boost_has_them() {
    one_task("BOOST");
}

#[test]
fn fibers_as_ruby_has_them() {
    one_task("RUBY");
}

#[test]
fn stacks_in_the_heap() {
    one_task("BOOST HEAP");
}

/// Several tasks that hand each other a fiber move in one motion, if that is allowed. A fiber that is suspended within
/// the function half of the time is never in two versions.
#[test]
fn a_fiber_that_goes_from_task_to_task() {
    for kind in ["UCONTEXT", "BOOST"] {
        let (mut target, klp) = start(&Build::new("gcc -O2 pie").flag(&format!("-D{kind}")));
        assert_eq!(target.ask("threads"), "ok");
        target.rebase(target.pid());
        let refused = target.load(&klp, &[]);
        check(&refused, "tasks|--together");
        target.assert_untouched();
        target.expect("old");
        for _ in 0..10 {
            let loaded = target.load(&klp, &["--together"]).result(0, "loaded");
            assert_eq!(loaded.json["most_stopped"], 3, "{loaded}");
            target.expect("new");
            check(&target.unload(&[]), "tasks|--together");
            target.expect("new");
            target.unload(&["--together"]).result(0, "unloaded");
            target.expect("old");
        }
        target.finish();
    }
}

/// All writable memory is looked through while tasks stand still, so that must have a bound.
#[test]
fn too_much_memory() {
    let (mut target, klp) = start(&Build::new("gcc -O2 pie").flag("-DUCONTEXT"));
    assert_eq!(target.ask("fill"), "ok");
    target.rebase(target.pid());
    check(&target.load(&klp, &[]), "MiB");
    target.expect("old");
    target.assert_untouched();
    target.finish();
}

/// Whoever copies stacks away and back leaves them anywhere: what looks like a return address there is taken for one.
#[test]
fn copied_stacks() {
    let (mut target, klp) = start(&Build::new("gcc -O2 pie").flag("-DCOPIES"));
    target.expect("old");
    assert_eq!(target.ask("inside 2"), "ok");
    let refused = target.load(&klp, REVERSE).result(3, "reversed");
    held_by_suspended(&refused.json["blocked"][0]);
    assert_eq!(target.ask("outside 2"), "old, then old");
    target.expect("old");
    target.finish();
}

/// Lua's coroutines have no stacks of their own, and nothing to be careful about.
#[test]
fn coroutines_of_lua() {
    let plan = Plan::read("lua");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    twice(Target::start(&plan, &exe, &[]), &klp, None);
}

/// A library that switches stacks is opened between two commands: no code is searched twice, but this was not there.
#[test]
fn a_switch_that_comes_later() {
    let plan = Plan::read("late_switch");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let library = exe.with_file_name("libswitch.so");
    let mut gcc = std::process::Command::new("gcc");
    gcc.args(["-O2", "-fPIC", "-shared", "-o"]).arg(&library);
    let made = gcc.arg(plan.dir.join("switch.c")).status();
    assert!(made.expect("gcc").success());
    let mut target = Target::start(&plan, &exe, &[]);
    for _ in 0..2 {
        target.load(&klp, &[]).result(0, "loaded");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
    }
    assert_eq!(target.ask(&format!("open {}", library.display())), "ok");
    for _ in 0..2 {
        check(&target.load(&klp, &[]), "libswitch.so|--together");
    }
    target.expect("old");
    target.load(&klp, &["--together"]).result(0, "loaded");
    target.expect("new");
    check(&target.unload(&[]), "libswitch.so|--together");
    target.unload(&["--together"]).result(0, "unloaded");
    target.expect("old");
    target.assert_undisturbed();
    target.end();
}
