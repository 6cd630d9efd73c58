//! A task that is in a part of a replaced function, or on its way out of one, with nothing of the function on its stack.

use livegraft_scenarios::cycle::has_compilers;
use livegraft_scenarios::{
    Build, Plan, Target, compile, compile_patch, compile_target, inspect, kill, walk_and_stop,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

// Long enough for a busy machine to reach everybody else.
const LEAVE: &[&str] = &["--timeout", "1s", "--on-timeout", "leave"];

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address")
}

/// The only task that is held, as `status` shows it: it leaves out a task that it could not look at in time.
#[track_caller]
fn held(target: &Target, function: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let status = target.livegraft(&["status"], &[]).done().json;
        let tasks = status["tasks"].as_array().expect("tasks");
        let held: Vec<&Value> = tasks
            .iter()
            .map(|task| &task["blocked"])
            .filter(|blocked| !blocked.is_null())
            .collect();
        if let [one] = held.as_slice() {
            let named = one["function"].as_str().unwrap_or_default();
            assert_eq!(named.split(' ').next(), Some(function), "{status}");
            return (*one).clone();
        }
        let patient = held.is_empty() && Instant::now() < deadline;
        assert!(patient, "not one is held: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Offset and size of a symbol of a file, by `nm`.
fn symbol(exe: &Path, name: &str) -> Option<(u64, u64)> {
    let output = Command::new("nm").arg("-S").arg(exe).output().expect("nm");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[at, size, _, symbol] = words.as_slice() else {
            return None;
        };
        (symbol == name).then(|| (number(at), number(size)))
    })
}

/// Where the program's file begins in its memory, 0 where that is not position independent.
fn bias(target: &Target, build: &Build) -> u64 {
    if build.shape == "no-pie" {
        return 0;
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid())).expect("maps");
    let path = target.exe().to_str().expect("a path in UTF-8");
    let first = maps.lines().find(|line| line.ends_with(path));
    number(
        first
            .and_then(|line| line.split('-').next())
            .expect("a mapping"),
    )
}

/// A way into a part holds a load until the task has left, by the function that it came through: in a stripped program,
/// and in its twin with symbols, which also says where the part is.
fn part_holds(way: &str, function: &str, part: &str, with_symbols: bool) {
    let plan = Plan::read("split");
    for build in plan.targets() {
        if !has_compilers([&build]) {
            continue;
        }
        let full = compile_target(&plan, &build);
        let bare = compile_target(&plan, &build.flag("-s"));
        for exe in [&bare, &full]
            .into_iter()
            .take(1 + usize::from(with_symbols))
        {
            let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), exe);
            let mut target = Target::start(&plan, exe, &[]);
            target.expect("old");
            assert_eq!(target.ask(way), "ok");
            target.load(&klp, LEAVE).result(4, "timed-out");
            let blocked = held(&target, function);
            let at = number(blocked["address"].as_str().expect("an address"));
            let (start, size) = symbol(&full, part).unwrap_or_else(|| panic!("gcc made no {part}"));
            let offset = (at - bias(&target, &build)).wrapping_sub(start);
            assert!(offset <= size, "{way}: {at:#x} is not in {part}");
            assert_eq!(target.ask("release"), "ok");
            let resumed = target.livegraft(&["resume"], &[]).done();
            assert_eq!(resumed.text("result"), "loaded", "{resumed}");
            target.expect("new");
            target.unload(&[]).result(0, "unloaded");
            target.expect("old");
            target.finish();
        }
    }
}

#[test]
fn a_cold_part_holds() {
    part_holds("cold", "with_cold", "with_cold.cold", true);
}

/// It is reached by way of another part.
#[test]
fn the_rest_of_a_function_whose_head_is_inlined_holds() {
    part_holds("part", "with_part", "with_part.part.0", true);
}

/// By its name nobody would take it for a part.
#[test]
fn a_shared_part_holds() {
    part_holds("one", "shares_one", "shared_cold", false);
}

/// Nothing tells by which of its functions a task came there.
#[test]
fn a_shared_part_holds_whoever_is_in_it() {
    part_holds("two", "shares_one", "shared_cold", false);
}

fn leaver(build: &Build, patch: &Build) -> (Target, PathBuf) {
    let plan = Plan::read("tailplt");
    let exe = compile_target(&plan, build);
    let klp = compile_patch(&plan, patch, &exe);
    (Target::start(&plan, &exe, &[]), klp)
}

/// Lets the stopped program go on, and the transition end.
#[track_caller]
fn goes_on(mut target: Target, verdict: &str) -> Target {
    kill(target.pid(), libc::SIGCONT);
    target.livegraft(&["resume"], &[]).done();
    target.expect(verdict);
    target
}

#[test]
fn the_lookup_of_a_tail_call_holds() {
    for build in Plan::read("tailplt").targets() {
        let (mut target, klp) = leaver(&build, &Build::new("gcc -O2 pic"));
        assert_eq!(target.ask("go and wait"), "ok");
        target.load(&klp, LEAVE).result(4, "timed-out");
        let blocked = held(&target, "leave");
        assert!(blocked["stack"].is_string(), "{blocked}");
        assert_eq!(target.ask("release"), "ok");
        target.livegraft(&["resume"], &[]).done();
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
}

/// Stopped at a place on the way from the jump to the function.
fn way_holds(place: &str, bound: bool) {
    for build in Plan::read("tailplt").targets() {
        let (mut target, klp) = leaver(&build, &Build::new("gcc -O2 pic"));
        let tid = target.ask("tid").parse().expect("a number");
        let stub = number(&target.ask("where"));
        if bound {
            target.expect("old");
            assert_eq!(target.ask("go"), "ok");
            std::thread::sleep(Duration::from_millis(20));
        }
        let loader: Vec<_> = inspect::maps(target.pid())
            .into_iter()
            .filter(|mapping| format!("{mapping:?}").contains("ld-linux"))
            .collect();
        assert!(!loader.is_empty());
        let mut passed: Option<usize> = None;
        let pid = target.pid();
        let mut there = |at: u64| {
            // `jmp *word(%rip)`; `push $n; jmp head`; `push word(%rip); jmp *word(%rip)`; the resolver.
            let steps = if at == stub {
                Some(0)
            } else {
                passed.map(|n| n + 1)
            };
            passed = steps;
            match place {
                "stub" => steps == Some(0),
                "second half" => steps == Some(1),
                "head" => steps == Some(3),
                _ => steps.is_some() && loader.iter().any(|m| (m.start..m.end).contains(&at)),
            }
        };
        let mut begin = || {
            if !bound {
                assert_eq!(target.ask("go"), "ok");
            }
        };
        walk_and_stop(tid, &mut begin, &mut there).expect("it gets there");
        wait_until_stopped(pid);
        target.load(&klp, LEAVE).result(4, "timed-out");
        let blocked = held(&target, "leave");
        assert!(blocked["stack"].is_null(), "{place}: {blocked}");
        let mut target = goes_on(target, "new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
}

#[test]
fn the_stub_holds() {
    way_holds("stub", false);
}

#[test]
fn the_stub_holds_when_it_is_bound() {
    way_holds("stub", true);
}

#[test]
fn the_second_half_of_the_stub_holds() {
    way_holds("second half", false);
}

#[test]
fn the_head_of_the_plt_holds() {
    way_holds("head", false);
}

#[test]
fn the_resolver_holds() {
    way_holds("resolver", false);
}

/// A patch's own jump goes through its GOT: by a veneer, or from the code itself, which is within the function.
#[test]
fn the_way_through_a_veneer_holds() {
    let leaves = Build::new("gcc -O2 pic").flag("-DLEAVES");
    let (mut target, klp) = leaver(&Build::new("gcc -O2 pie"), &leaves);
    let tid = target.ask("tid").parse().expect("a number");
    target.expect("old");
    target.load(&klp, &[]).result(0, "loaded");
    target.expect("new");
    assert_eq!(target.ask("go"), "ok");
    let pid = target.pid();
    let text: Vec<_> = inspect::listed_mappings(&livegraft_scenarios::cli::list(pid))
        .into_iter()
        .map(|mapping| mapping.start..mapping.end)
        .collect();
    // Out of leave()'s last jump: the first `jmp *word(%rip)` in memory of the patch.
    let mut last = 0;
    let mut there = |at: u64| {
        let jumped = std::mem::replace(&mut last, at);
        // The first step may already arrive there, from nobody knows where.
        jumped != 0
            && text.iter().any(|range| range.contains(&at))
            && inspect::read(pid, at, 2) == [0xff, 0x25]
            && inspect::read(pid, jumped, 1) == [0xe9]
    };
    walk_and_stop(tid, &mut || {}, &mut there).expect("it gets there");
    wait_until_stopped(pid);
    target.unload(LEAVE).result(4, "timed-out");
    held(&target, "leave");
    let target = goes_on(target, "old");
    target.finish();
}

/// Padding through which an entry is entered is on the way as well.
#[test]
fn the_padding_on_the_way_holds() {
    let plan = Plan::read("tailpad");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    let tid = target.ask("tid").parse().expect("a number");
    let pad = inspect::function(target.pid(), &exe, "inner").1 - 5;
    target.expect("old");
    assert_eq!(target.ask("go"), "ok");
    std::thread::sleep(Duration::from_millis(20));
    let swap = [&["--entry", "swap"], LEAVE].concat();
    target.load(&klp, &swap).result(4, "timed-out");
    held(&target, "outer");
    assert_eq!(inspect::read(target.pid(), pad, 1), [0xe9]);
    let pid = target.pid();
    let mut release = || assert_eq!(target.ask("release"), "ok");
    walk_and_stop(tid, &mut release, &mut |at| at == pad).expect("it gets there");
    wait_until_stopped(pid);
    let resumed = target.livegraft(&["resume"], LEAVE);
    resumed.result(4, "timed-out");
    held(&target, "inner");
    let mut target = goes_on(target, "new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.finish();
}

fn wait_until_stopped(pid: i32) {
    let is_stopped = |tid: i32| {
        let status = inspect::status(&format!("/proc/{pid}/task/{tid}/status"));
        status
            .get("State")
            .is_some_and(|state| state.starts_with('T'))
    };
    while !inspect::tasks(pid).into_iter().all(is_stopped) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the scenarios build, for those who look at it.
#[test]
fn gcc_makes_the_parts() {
    let plan = Plan::read("split");
    assert!(compile::has_command("nm"));
    for build in plan.targets() {
        let full = compile_target(&plan, &build);
        for part in ["with_cold.cold", "with_part.part.0", "shared_cold"] {
            assert!(symbol(&full, part).is_some(), "gcc made no {part}");
        }
    }
}
