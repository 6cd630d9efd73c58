//! Every task moves, none ever mixes versions, and the program notices nothing.

use livegraft_scenarios::cycle::{has_compilers, matrix};
use livegraft_scenarios::{
    Build, Outcome, Plan, Target, compile_patch, compile_target, kill, note, raise_open_files,
};
use std::path::PathBuf;
use std::time::Duration;

fn built(name: &str, build: &Build) -> (Plan, PathBuf, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, build);
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    (plan, exe, klp)
}

fn one_round(target: &mut Target, klp: &std::path::Path) -> (Outcome, Outcome) {
    let loaded = target.load(klp, &["--timeout", "60s"]).result(0, "loaded");
    target.expect("new");
    let unloaded = target.unload(&["--timeout", "60s"]).result(0, "unloaded");
    target.expect("old");
    (loaded, unloaded)
}

#[test]
fn one_to_a_thousand_tasks() {
    raise_open_files();
    let plan = Plan::read("many");
    for build in plan.targets() {
        if !has_compilers([&build]) {
            continue;
        }
        let (plan, exe, klp) = built("many", &build);
        for blocked in [0_u32, 9, 99, 999] {
            let mut target = Target::start(&plan, &exe, &[&blocked.to_string(), "2"]);
            target.expect("old");
            let (loaded, _) = one_round(&mut target, &klp);
            assert_eq!(loaded.number("tasks"), u64::from(blocked) + 3, "{loaded}");
            note(&format!(
                "{build}: {} tasks in {} us",
                blocked + 3,
                loaded.number("transition_us")
            ));
            one_round(&mut target, &klp);
            target.finish();
        }
    }
}

#[test]
fn sixty_spinning_tasks() {
    let (plan, exe, klp) = built("many", &Build::new("gcc -O2 pie"));
    let mut target = Target::start(&plan, &exe, &["10", "60"]);
    let (loaded, _) = one_round(&mut target, &klp);
    note(&format!(
        "60 spinning tasks in {} us",
        loaded.number("transition_us")
    ));
    target.finish();
}

/// 200 cycles under everything: hot loops, naps inside the replaced caller, threads and children that come and go.
#[test]
fn contract_between_caller_and_callee() {
    for (words, cycles) in [("gcc -O2 pie", 150), ("gcc -O0 pie", 50)] {
        let (plan, exe, klp) = built("contract", &Build::new(words));
        let mut target = Target::start(&plan, &exe, &["2", "4", "1"]);
        for cycle in 0..cycles {
            one_round(&mut target, &klp);
            if cycle % 50 == 49 {
                note(&format!(
                    "{words}: {} cycles, {}",
                    cycle + 1,
                    target.ask("counts")
                ));
            }
        }
        target.assert_clean();
        target.finish();
    }
}

#[test]
fn real_time_signals_arrive_complete_and_in_order() {
    let (plan, exe, klp) = built("rtsig", &Build::new("gcc -O2 pie"));
    let mut target = Target::start(&plan, &exe, &[]);
    for _ in 0..50 {
        one_round(&mut target, &klp);
    }
    note(&target.ask("counts"));
    target.finish();
}

#[test]
fn parent_sees_no_stop() {
    let (plan, exe, klp) = built("parent", &Build::new("gcc -O2 pie"));
    let mut target = Target::start(&plan, &exe, &[]);
    let child = target.ask("child").parse().expect("a pid");
    std::thread::sleep(Duration::from_millis(50));
    target.rebase(child);
    for _ in 0..20 {
        one_round(&mut target, &klp);
    }
    assert_eq!(target.ask("seen"), "sigchld=0 stops=0");
    target.finish();
}

#[test]
fn red_zone_is_left_alone() {
    matrix("redzone", &[]);
}

/// A program that was stopped by SIGSTOP is patched as it is, and stays stopped. (None of its tasks spins: one that
/// was stopped within the function could not leave it.)
#[test]
fn stopped_program_stays_stopped() {
    let (plan, exe, klp) = built("many", &Build::new("gcc -O2 pie"));
    let mut target = Target::start(&plan, &exe, &["5", "0"]);
    target.expect("old");
    kill(target.pid(), libc::SIGSTOP);
    let stopped = |target: &Target| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", target.pid())).expect("it lives");
        tasks.filter_map(Result::ok).all(|task| {
            std::fs::read_to_string(task.path().join("status"))
                .is_ok_and(|status| status.contains("State:\tT"))
        })
    };
    while !stopped(&target) {
        std::thread::sleep(Duration::from_millis(1));
    }
    target.load(&klp, &[]).result(0, "loaded");
    // A task that was looked at takes part in the stop again when it has had its turn on a processor.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !stopped(&target) {
        assert!(std::time::Instant::now() < deadline, "a task runs");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(target.pid(), libc::SIGCONT);
    target.expect("new");
    kill(target.pid(), libc::SIGSTOP);
    target.unload(&[]).result(0, "unloaded");
    kill(target.pid(), libc::SIGCONT);
    target.expect("old");
    target.finish();
}
