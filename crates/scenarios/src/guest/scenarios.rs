//! What is tried under each kernel, with and without FSGSBASE. Without it tasks do not switch themselves.

use super::built;
use crate::cli::{self, Outcome, start};
use crate::refusal::check;
use crate::{Target, has_fsgsbase, inspect, set_gs_base};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One scenario; what it returns is shown.
pub type Scenario = fn() -> String;

/// All of them.
pub const ALL: &[(&str, Scenario)] = &[
    ("machine", machine),
    ("gs-base-stays", gs_base_stays),
    ("idle-and-spinning-tasks", idle_and_spinning_tasks),
    ("entries", entries),
    ("old-and-new-never-mix", old_and_new_never_mix),
    ("timeout-reverses", timeout_reverses),
    ("timeout-leaves", timeout_leaves),
    ("asleep-is-left-alone", asleep_is_left_alone),
    ("killed-while-it-waits", killed_while_it_waits),
    ("killed-at-any-moment", killed_at_any_moment),
    ("task-with-its-own-gs", task_with_its_own_gs),
    ("system-calls", system_calls),
    ("filters-and-stacks", filters_and_stacks),
    ("memory-that-is-not-promised", memory_that_is_not_promised),
];

const LEAVE: &[&str] = &["--timeout", "2s", "--on-timeout", "leave"];
const REVERSE: &[&str] = &["--timeout", "1s", "--on-timeout", "reverse"];
const LONG: &[&str] = &["--timeout", "60s"];

fn begin(name: &str, arguments: &[&str]) -> (Target, PathBuf) {
    let (plan, exe, klp) = built(name);
    let mut target = Target::start(&plan, &exe, arguments);
    target.expect("old");
    (target, klp)
}

/// Loads and unloads.
#[track_caller]
fn round(target: &mut Target, klp: &Path, more: &[&str]) -> [Outcome; 2] {
    let more: Vec<&str> = LONG.iter().chain(more).copied().collect();
    let loaded = target.load(klp, &more).result(0, "loaded");
    target.expect("new");
    let unloaded = target.unload(LONG).result(0, "unloaded");
    target.expect("old");
    [loaded, unloaded]
}

#[track_caller]
fn says(target: &mut Target, workers: &str, sleeper: &str) {
    assert_eq!(target.ask("workers"), workers, "the workers");
    assert_eq!(target.ask("sleeper"), sleeper, "the sleeper");
}

/// Lets the sleeper leave its job for a while in which a livegraft can move it.
fn out_and_resume(target: &mut Target) -> Outcome {
    assert_eq!(target.ask("out"), "ok");
    let resumed = target.livegraft(&["resume"], LONG).done();
    target.ask("in");
    resumed
}

/// What this machine is; the other side knows what it should be.
fn machine() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    format!("{} fsgsbase={}", release.trim(), has_fsgsbase())
}

/// The facts that everything else rests on.
pub fn gs_base_stays() -> String {
    let (plan, exe, _) = built("gsbase");
    check_gs_base(Target::start(&plan, &exe, &[]))
}

/// See `tests/gsbase/target.c`.
pub fn check_gs_base(mut target: Target) -> String {
    let mut numbers = |what: &str| -> Vec<u64> {
        let answer = target.ask(what);
        let words = answer.split(' ').map(|word| word.parse::<u64>());
        words.collect::<Result<_, _>>().expect("numbers")
    };
    let (blocks, subject, rival) = (numbers("blocks"), numbers("subject"), numbers("rival"));
    let set = |task: &[u64], base: u64| {
        set_gs_base(task[0] as i32, base).expect("a gs base can be set");
    };
    set(&rival, blocks[1]);
    for (base, name) in [(blocks[0], "A"), (0, "0"), (blocks[1], "B"), (0, "0")] {
        set(&subject, base);
        for what in [
            "here", "switches", "thread", "fork", "vfork", "handler", "altstack", "here",
        ] {
            assert_eq!(target.ask(what), name, "{what}");
        }
        assert_eq!(target.ask("exec"), "0", "another program");
        assert_eq!(target.ask("rival saw"), "B");
    }
    // What is set within a handler stays when it returns.
    set(&subject, blocks[0]);
    assert_eq!(target.ask("linger"), "ok");
    set(&subject, blocks[1]);
    assert_eq!(target.ask("leave"), "B");
    set(&subject, 0);
    assert_eq!(target.ask("end rival"), "ok");
    target.finish();
    String::new()
}

fn idle_and_spinning_tasks() -> String {
    let (mut target, klp) = begin("many", &["5", "1"]);
    let mut said = String::new();
    for _ in 0..2 {
        let [loaded, _] = round(&mut target, &klp, &[]);
        assert_eq!(loaded.number("tasks"), 7, "{loaded}");
        let field = |name: &str| loaded.number(name);
        let (time, stops) = (field("transition_us"), field("stops"));
        said = format!("7 tasks in {time} us, {stops} stops");
        target.assert_clean();
    }
    target.finish();
    said
}

/// The ways to redirect ask much of the kernel: mremap, moved instructions, all tasks at once.
fn entries() -> String {
    for entry in ["pun", "swap", "rendezvous"] {
        let (mut target, klp) = begin("many", &["2", "1"]);
        round(&mut target, &klp, &["--entry", entry]);
        target.finish();
    }
    String::new()
}

/// The program ends at the first call that mixes versions; threads and children come and go all the time.
fn old_and_new_never_mix() -> String {
    let (mut target, klp) = begin("contract", &["1", "3", "1"]);
    let mut times = Vec::new();
    for _ in 0..2 {
        let both = round(&mut target, &klp, &[]);
        times
            .extend(both.map(|outcome| (outcome.number("transition_us"), outcome.number("stops"))));
    }
    target.assert_clean();
    let counts = target.ask("counts");
    target.finish();
    format!("{counts}; {times:?}")
}

fn timeout_reverses() -> String {
    let (mut target, klp) = begin("sleeper", &["0"]);
    target.load(&klp, REVERSE).result(3, "reversed");
    says(&mut target, "old", "old");
    target.assert_clean();
    // The other way round, from a patch that is loaded.
    assert_eq!(target.ask("out"), "ok");
    target.load(&klp, LONG).result(0, "loaded");
    assert_eq!(target.ask("in"), "new");
    target.unload(REVERSE).result(3, "reversed");
    says(&mut target, "new", "new");
    assert_eq!(target.ask("out"), "ok");
    target.unload(LONG).result(0, "unloaded");
    assert_eq!(target.ask("in"), "old");
    target.finish();
    String::new()
}

#[track_caller]
fn timed_out(outcome: Outcome) {
    let outcome = outcome.result(4, "timed-out");
    let blocked = outcome.json["blocked"].as_array().expect("a list");
    assert_eq!(blocked.len(), 1, "{outcome}");
    assert_eq!(blocked[0]["name"], "sleeper", "{outcome}");
    assert_eq!(blocked[0]["armed"], has_fsgsbase(), "{outcome}");
    assert_eq!(outcome.json["self_switch"], has_fsgsbase(), "{outcome}");
}

/// The sleeper's stack is shown, and whether it will move by itself.
#[track_caller]
fn held(target: &Target) {
    let status = target.livegraft(&["status"], &[]).done();
    let tasks = status.json["tasks"].as_array().expect("tasks");
    let held: Vec<&Value> = tasks
        .iter()
        .filter(|task| !task["blocked"].is_null())
        .collect();
    assert_eq!(held.len(), 1, "{status}");
    let blocked = &held[0]["blocked"];
    assert_eq!(blocked["armed"], has_fsgsbase(), "{status}");
    let function = blocked["function"].as_str().unwrap_or_default();
    assert!(function.starts_with("job"), "{status}");
    assert!(
        blocked["frames"]
            .as_array()
            .is_some_and(|frames| frames.len() > 2),
        "{status}"
    );
    assert_eq!(
        status.json["transition"]["self_switch"],
        has_fsgsbase(),
        "{status}"
    );
    let listed = cli::list(target.pid());
    assert_eq!(listed["transition"]["self_switch"], has_fsgsbase());
    let pid = target.pid_text();
    for command in ["status", "list"] {
        let text = start(&[command, "--pid", &pid], None).finish().done();
        let says = text.stdout.contains("no task can switch itself");
        assert_eq!(says, !has_fsgsbase(), "{text}");
    }
}

fn timeout_leaves() -> String {
    let (mut target, klp) = begin("sleeper", &["0"]);
    timed_out(target.load(&klp, LEAVE));
    says(&mut target, "new", "old");
    held(&target);
    target.assert_undisturbed();
    // Nobody is at work: it moves by itself, or stays what it is.
    let alone = if has_fsgsbase() { "new" } else { "old" };
    assert_eq!(target.ask("wake"), alone);
    let resumed = out_and_resume(&mut target);
    assert_eq!(resumed.text("result"), "loaded", "{resumed}");
    says(&mut target, "new", "new");
    timed_out(target.unload(LEAVE));
    says(&mut target, "old", "new");
    assert_eq!(out_and_resume(&mut target).text("result"), "unloaded");
    says(&mut target, "old", "old");
    target.finish();
    String::new()
}

/// How often a task has slept or lost its processor: it does that for each stop.
fn switches(target: &Target, tid: i32) -> u64 {
    let status = inspect::status(&format!("/proc/{}/task/{tid}/status", target.pid()));
    let field = |key: &str| status[key].parse::<u64>().expect("a number");
    field("voluntary_ctxt_switches") + field("nonvoluntary_ctxt_switches")
}

fn task_named(target: &Target, name: &str) -> i32 {
    let is_named = |tid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{}/task/{tid}/comm", target.pid()));
        comm.is_ok_and(|comm| comm.trim() == name)
    };
    let tasks = inspect::tasks(target.pid());
    tasks.into_iter().find(is_named).expect("it is there")
}

fn load_in_background(target: &mut Target, klp: &Path) -> cli::Running {
    let klp = klp.to_str().expect("a path in UTF-8");
    let pid = target.pid_text();
    let load = start(
        &["load", klp, "--pid", &pid, "--timeout", "60s", "--json"],
        None,
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    while target.ask("workers") != "new" {
        assert!(Instant::now() < deadline, "the workers do not move");
        std::thread::sleep(Duration::from_millis(5));
    }
    load
}

/// A task that sleeps in the old version is looked at, but not stopped, until it has left; then it moves at once.
fn asleep_is_left_alone() -> String {
    let (mut target, klp) = begin("sleeper", &["0"]);
    let sleeper = task_named(&target, "sleeper");
    let load = load_in_background(&mut target, &klp);
    std::thread::sleep(Duration::from_millis(500));
    let before = switches(&target, sleeper);
    std::thread::sleep(Duration::from_millis(2000));
    assert_eq!(switches(&target, sleeper), before, "it was stopped again");
    assert_eq!(target.ask("out"), "ok");
    let left = Instant::now();
    let loaded = load.finish().done();
    let moved = left.elapsed();
    assert!(moved < Duration::from_secs(2), "{moved:?}");
    assert_eq!(target.ask("in"), "new");
    assert_eq!(target.ask("out"), "ok");
    target.unload(LONG).result(0, "unloaded");
    assert_eq!(target.ask("in"), "old");
    target.finish();
    let stops = loaded.number("stops");
    format!("{} us after it had left, {stops} stops", moved.as_micros())
}

fn killed_while_it_waits() -> String {
    let (mut target, klp) = begin("sleeper", &["0"]);
    let mut load = load_in_background(&mut target, &klp);
    std::thread::sleep(Duration::from_millis(500));
    load.kill();
    load.finish().expect(128 + libc::SIGKILL);
    says(&mut target, "new", "old");
    held(&target);
    target.assert_undisturbed();
    assert_eq!(out_and_resume(&mut target).text("result"), "loaded");
    says(&mut target, "new", "new");
    assert_eq!(target.ask("out"), "ok");
    target.unload(LONG).result(0, "unloaded");
    target.finish();
    String::new()
}

/// At moments spread over a whole load and a whole unload. The program goes on, and one command puts all in order.
fn killed_at_any_moment() -> String {
    const MOMENTS: u32 = 2;
    let (mut target, klp) = begin("contract", &["0", "4", "0"]);
    let [loaded, unloaded] = round(&mut target, &klp, &[]);
    let path = klp.to_str().expect("a path in UTF-8");
    let pid = target.pid_text();
    let mut killed = 0;
    for moment in 1..=MOMENTS {
        for (whole, arguments) in [
            (loaded.elapsed, ["load", path, "--pid", &pid]),
            (unloaded.elapsed, ["unload", "fix", "--pid", &pid]),
        ] {
            let mut running = start(&arguments, None);
            std::thread::sleep(whole * moment / (MOMENTS + 1));
            killed += u32::from(!running.ended());
            running.kill();
            let outcome = running.finish();
            assert!(
                [0, 128 + libc::SIGKILL].contains(&outcome.code),
                "{outcome}"
            );
            target.assert_undisturbed();
            let verdict = target.ask("check");
            assert!(["old", "new"].contains(&verdict.as_str()), "{verdict}");
            put_in_order(&mut target, &klp, arguments[0] == "load");
        }
    }
    target.assert_clean();
    target.finish();
    format!("{killed} of {} commands were killed", 2 * MOMENTS)
}

/// Whatever a killed command has left: afterwards the patch is loaded, or not.
fn put_in_order(target: &mut Target, klp: &Path, loaded: bool) {
    if !cli::list(target.pid())["transition"].is_null() {
        target.livegraft(&["resume"], LONG).done();
    }
    let is = cli::patch_state(target.pid(), "fix").as_deref() == Some("enabled");
    match (is, loaded) {
        (false, true) => drop(target.load(klp, LONG).result(0, "loaded")),
        (true, false) => drop(target.unload(LONG).result(0, "unloaded")),
        _ => {}
    }
    target.expect(if loaded { "new" } else { "old" });
}

/// A program that uses %gs itself is refused, and keeps what it has set.
fn task_with_its_own_gs() -> String {
    let (mut target, klp) = begin("sleeper", &["0"]);
    assert_eq!(target.ask("gs"), "kept");
    let refused = target.load(&klp, &[]);
    check(&refused, "gs");
    target.assert_undisturbed();
    assert_eq!(target.ask("gs"), "kept");
    assert_eq!(target.ask("no-gs"), "ok");
    says(&mut target, "old", "old");
    target.finish();
    refused.json["error"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Nobody sees EINTR.
fn system_calls() -> String {
    let (mut target, klp) = begin("eintr", &["1"]);
    let skipped = target.ask("skipped");
    for _ in 0..2 {
        target.load(&klp, LONG).result(0, "loaded");
        target.unload(LONG).result(0, "unloaded");
    }
    target.expect("old");
    target.finish();
    format!("skipped: {skipped}")
}

/// The task that makes our calls is under a filter, or on an alternate stack.
fn filters_and_stacks() -> String {
    for (name, argument) in [
        ("seccomp", "one"),
        ("seccomp", "all"),
        ("altstack", "32768"),
    ] {
        let (mut target, klp) = begin(name, &[argument]);
        round(&mut target, &klp, &[]);
        target.finish();
    }
    String::new()
}

/// What the kernel keeps for the whole machine, put back when dropped.
struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    fn set(name: &str, value: &str) -> Self {
        let path = Path::new("/proc/sys/vm").join(name);
        let before = std::fs::read_to_string(&path).expect("a setting");
        let setting = Self { path, before };
        setting.write(value);
        setting
    }

    fn write(&self, value: &str) {
        let written = std::fs::write(&self.path, value);
        written.unwrap_or_else(|e| panic!("{}: {value}: {e}", self.path.display()));
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.write(self.before.trim());
    }
}

/// The machine promises no more memory than it has, and the program has taken all that it gets; root gets some more.
fn memory_that_is_not_promised() -> String {
    const OF_ROOT: u64 = 64 << 10;
    const LEFT: u64 = 16 << 10;
    let (mut target, klp) = begin("scarce", &[]);
    assert_eq!(target.ask("weaken"), "ok");
    let promised = &inspect::status("/proc/meminfo")["Committed_AS"];
    let promised = promised
        .split(' ')
        .next()
        .and_then(|kib| kib.parse::<u64>().ok());
    let limit = promised.expect("a number") + OF_ROOT + LEFT;
    let _of_root = Setting::set("admin_reserve_kbytes", &OF_ROOT.to_string());
    let _limit = Setting::set("overcommit_kbytes", &limit.to_string());
    let strict = Setting::set("overcommit_memory", "2");
    let taken = target.ask("fill");
    assert_ne!(taken, "0 KiB");
    target.rebase(target.pid());
    let refused = target.load(&klp, LONG);
    check(&refused, "allowed map variables vm.overcommit_memory");
    target.assert_untouched();
    target.expect("old");
    drop(strict);
    round(&mut target, &klp, &[]);
    target.finish();
    format!("{taken} were taken")
}
