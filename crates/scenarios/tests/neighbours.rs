//! Others that touch the process, or share something with what is patched: a breakpoint near by, a filter,
//! a signal, another process.

use livegraft_scenarios::inspect::{function, poke};
use livegraft_scenarios::refusal::{both_ways, check};
use livegraft_scenarios::{
    Build, Outcome, Plan, Target, Uprobe, cli, compile_patch_as, compile_target, inspect, kill,
    note, require,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LEAVE: &[&str] = &["--timeout", "300ms", "--on-timeout", "leave"];

fn built(name: &str) -> (Plan, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    (plan, exe)
}

/// A patch of the scenario, built with these flags.
fn patch(plan: &Plan, object: &Path, flags: &[&str], name: &str) -> PathBuf {
    let build = Build::new("gcc -O2 pic");
    let build = flags.iter().fold(build, |build, flag| build.flag(flag));
    compile_patch_as(plan, &build, object, name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

const SWAP: &[&str] = &["--entry", "swap"];
/// What a refusal says of a byte that is not ours.
const FOREIGN: &str = "breakpoint|uprobe|changed";

/// Where a function lies in the process, before its page is replaced.
fn place(target: &Target, name: &str) -> u64 {
    function(target.pid(), target.exe(), name).1
}

/// Puts a breakpoint there, and gives what takes it out again.
fn breakpoint(target: &Target, address: u64) -> impl FnOnce() + use<> {
    let pid = target.pid();
    let before = poke(pid, address, 0xcc);
    move || assert_eq!(poke(pid, address, before), 0xcc, "it was overwritten")
}

/// A page that is replaced as a whole must not take somebody else's byte along.
#[test]
fn breakpoint_on_the_page_before_a_load() {
    let (plan, exe) = built("pages");
    let klp = patch(&plan, &exe, &["-DLOW"], "fix");
    let mut target = Target::start(&plan, &exe, &[]);
    let pid = target.pid_text();
    let load = ["load", text(&klp), "--pid", &pid, "--entry", "swap"];
    let quiet = place(&target, "quiet");
    let remove = breakpoint(&target, quiet);
    both_ways(&load, None, FOREIGN);
    assert_eq!(target.baseline().maps_difference(), None);
    target.expect("old");
    remove();
    target.assert_untouched();
    target.load(&klp, SWAP).result(0, "loaded");
    target.expect("low");
    assert_eq!(target.ask("quiet"), "old");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.finish();
}

#[test]
fn uprobe_on_the_page_before_a_load() {
    let (plan, exe) = built("pages");
    let klp = patch(&plan, &exe, &["-DLOW"], "fix");
    let mut target = Target::start(&plan, &exe, &[]);
    let pid = target.pid_text();
    let load = ["load", text(&klp), "--pid", &pid, "--entry", "swap"];
    let (offset, address) = function(target.pid(), target.exe(), "quiet");
    let probe = Uprobe::set(target.exe(), offset, target.pid());
    if require(
        "uprobes (CONFIG_UPROBES, and the right to set them)",
        probe.is_ok(),
    ) {
        both_ways(&load, None, FOREIGN);
        target.expect("old");
        assert_eq!(target.ask("quiet"), "old");
        inspect::remove(probe, target.pid(), address);
        target.load(&klp, SWAP).result(0, "loaded");
        target.expect("low");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
    }
    assert_eq!(target.ask("quiet"), "old");
    target.finish();
}

/// The same on the way back: the page would be replaced once more.
#[test]
fn breakpoint_on_the_page_before_an_unload() {
    let (plan, exe) = built("pages");
    let klp = patch(&plan, &exe, &["-DLOW"], "fix");
    let mut target = Target::start(&plan, &exe, &[]);
    let quiet = place(&target, "quiet");
    target.load(&klp, SWAP).result(0, "loaded");
    let remove = breakpoint(&target, quiet);
    check(&target.unload(&[]), FOREIGN);
    target.expect("low");
    let listed = cli::list(target.pid());
    assert_eq!(listed["patches"][0]["state"], "enabled", "{listed}");
    assert!(listed["transition"].is_null(), "{listed}");
    remove();
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    assert_eq!(target.ask("quiet"), "old");
    target.finish();
}

/// An entry that lies on two pages comes and goes in one motion, also when another one on the first of them does.
#[test]
fn two_swaps_of_which_one_straddles() {
    let (plan, exe) = built("pages");
    for (flags, verdict) in [
        (&["-DLOW", "-DSTRADDLER"][..], "low straddler"),
        (&["-DSTRADDLER", "-DHIGH"], "straddler high"),
        (&["-DLOW", "-DSTRADDLER", "-DHIGH"], "low straddler high"),
    ] {
        let klp = patch(&plan, &exe, flags, "fix");
        let mut target = Target::start(&plan, &exe, &[]);
        for _ in 0..20 {
            target.load(&klp, SWAP).result(0, "loaded");
            target.expect(verdict);
            target.unload(&[]).result(0, "unloaded");
            target.expect("old");
        }
        target.finish();
    }
}

/// Where the first instruction is short, the entry jumps to padding, and from there on. A task may be between the two
/// jumps when they are taken back.
#[test]
fn task_in_the_padding() {
    let (plan, exe) = built("padding");
    let klp = patch(&plan, &exe, &[], "fix");
    let mut target = Target::start(&plan, &exe, &[]);
    for _ in 0..60 {
        let load = target.load(&klp, SWAP);
        if load.code == 1 {
            // Padding of this kind need not be used.
            check(&load, "padded redirect");
            break;
        }
        load.result(0, "loaded");
        target.unload(&[]).result(0, "unloaded");
    }
    target.expect("old");
    target.finish();
}

/// Each loop is all old or all new.
fn loops(entry: &str, flags: &[&str]) {
    let (plan, exe) = built("selfloop");
    let klp = patch(&plan, &exe, flags, "fix");
    let mut target = Target::start(&plan, &exe, &[]);
    for _ in 0..15 {
        let load = ["--entry", entry, "--timeout", "60s"];
        target.load(&klp, &load).result(0, "loaded");
        target.expect("new");
        target.unload(&["--timeout", "60s"]).result(0, "unloaded");
        target.expect("old");
    }
    target.finish();
}

#[test]
fn function_that_jumps_to_its_own_entry_by_pun() {
    loops("pun", &[]);
}

#[test]
fn function_that_jumps_to_its_own_entry_by_swap() {
    loops("swap", &[]);
}

/// Both versions do, the new one by a tail call.
#[test]
fn both_versions_jump_to_the_entry() {
    loops("swap", &["-DTAIL"]);
}

fn sleeper(flags: &[&str]) -> (Target, PathBuf) {
    let (plan, exe) = built("sleeper");
    let klp = patch(&plan, &exe, flags, "fix");
    let mut target = Target::start(&plan, &exe, &[]);
    target.expect("old");
    (target, klp)
}

/// Whether `list` and `status` find all entries as they should be; they must agree.
#[track_caller]
fn intact(target: &Target) -> bool {
    let listed = cli::list(target.pid());
    let entries = listed["entries"].as_array().expect("entries");
    let listed = entries.iter().all(|entry| entry["intact"] == true);
    let status = target.livegraft(&["status"], &[]).done();
    assert_eq!(status.json["entries_intact"], listed, "{status}");
    listed
}

fn transition_is_open(target: &Target) -> bool {
    !cli::list(target.pid())["transition"].is_null()
}

/// Nobody may be told that all tasks run the new version while an entry can't lead there.
#[test]
fn breakpoint_while_a_transition_is_open() {
    let (mut target, klp) = sleeper(&["-DSPARE"]);
    let spare = place(&target, "spare");
    for (operation, version) in [("load", "new"), ("unload", "old")] {
        let left = match operation {
            "load" => target.load(&klp, LEAVE),
            _ => target.unload(LEAVE),
        };
        left.result(4, "timed-out");
        let remove = breakpoint(&target, spare);
        assert_eq!(target.ask("wake"), version);
        for _ in 0..2 {
            let outcome = target.livegraft(&["resume"], &[]);
            check(&outcome, FOREIGN);
            check(&outcome, "spare");
            assert_eq!(outcome.json["error"]["kind"], "foreign-bytes", "{outcome}");
            assert!(transition_is_open(&target), "{outcome}");
            assert!(!intact(&target), "{outcome}");
        }
        remove();
        assert!(transition_is_open(&target));
        target.livegraft(&["resume"], &[]).done();
        assert!(!transition_is_open(&target) && intact(&target));
        target.expect(version);
        assert_eq!(target.ask("spare"), version);
    }
    target.finish();
}

/// Who uses `%gs` must not meet a redirected entry: nobody is led to a patch any more, and everyone may go back.
#[test]
fn gs_user_that_appears_while_a_transition_is_open() {
    let (mut target, klp) = sleeper(&[]);
    let refused = |outcome: Outcome| {
        check(&outcome, "gs");
        assert_eq!(outcome.json["error"]["kind"], "gs-in-use", "{outcome}");
    };
    target.load(&klp, LEAVE).result(4, "timed-out");
    assert_eq!(target.ask("gs"), "kept");
    refused(target.livegraft(&["resume"], &[]));
    assert!(!transition_is_open(&target));
    target.expect("old");
    assert_eq!(target.ask("sleeper"), "old");
    target.assert_clean();
    refused(target.load(&klp, LEAVE));
    assert_eq!(target.ask("gs-base"), "kept");
    target.ask("no-gs");
    // While a patch is taken away that goes on, and can't be turned round.
    target.load(&klp, LEAVE).result(4, "timed-out");
    assert_eq!(target.ask("wake"), "new");
    target.livegraft(&["resume"], &[]).done();
    target.unload(LEAVE).result(4, "timed-out");
    assert_eq!(target.ask("gs"), "kept");
    target.livegraft(&["resume"], LEAVE).result(4, "timed-out");
    refused(target.livegraft(&["reverse"], &["--timeout", "300ms"]));
    assert!(transition_is_open(&target));
    target.assert_undisturbed();
    assert_eq!(target.ask("wake"), "old");
    target.livegraft(&["resume"], &[]).result(0, "unloaded");
    target.expect("old");
    target.assert_clean();
    assert_eq!(target.ask("gs-base"), "kept");
    target.ask("no-gs");
    target.finish();
}

/// Loads into a process part of which may not map memory.
fn filtered(which: &str, entry: &str) {
    let (plan, exe) = built("seccomp");
    let klp = patch(&plan, &exe, &[], "fix");
    let mut target = Target::start(&plan, &exe, &[which]);
    target.expect("old");
    for _ in 0..3 {
        let load = target.load(&klp, &["--entry", entry]);
        load.result(0, "loaded");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
    }
    target.finish();
}

#[test]
fn seccomp_filter_of_one_task() {
    for entry in ["pun", "swap"] {
        filtered("one", entry);
    }
}

#[test]
fn seccomp_filter_of_all_tasks() {
    for entry in ["pun", "swap"] {
        filtered("all", entry);
    }
}

/// What lies below an alternate stack is not stack.
#[test]
fn alternate_stack_that_is_nearly_full() {
    let (plan, exe) = built("altstack");
    let klp = patch(&plan, &exe, &[], "fix");
    // How much a call for livegraft takes depends on the processor: 1 to 4 KiB.
    for left in [800, 1500, 2500, 3500, 32768] {
        let mut target = Target::start(&plan, &exe, &[&left.to_string()]);
        target.expect("old");
        let load = target.load(&klp, &[]);
        if left < 32768 && load.code == 1 {
            check(&load, "stack");
            target.expect("old");
            assert_eq!(target.ask("release"), "ok");
            target.load(&klp, &[]).result(0, "loaded");
        } else {
            load.result(0, "loaded");
            target.expect("new");
            assert_eq!(target.ask("release"), "ok");
        }
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
}

fn is_stopped(pid: i32) -> bool {
    inspect::tasks(pid).into_iter().all(|tid| {
        let status = inspect::status(&format!("/proc/{pid}/task/{tid}/status"));
        status["State"].starts_with('T')
    })
}

/// Stops a process and lets it go on, again and again, until told to end; the last is a stop. Gives the number of stops.
fn stop_again_and_again(pid: i32, until: &AtomicBool) -> Result<usize, String> {
    for stops in 1.. {
        kill(pid, libc::SIGSTOP);
        let sent = Instant::now();
        while !is_stopped(pid) {
            if sent.elapsed() > Duration::from_secs(2) {
                return Err(format!("stop {stops} of process {pid} was lost"));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        if until.load(Ordering::Acquire) {
            return Ok(stops);
        }
        kill(pid, libc::SIGCONT);
        std::thread::sleep(Duration::from_micros(stops as u64 % 7 * 100));
    }
    unreachable!("it is told to end before that");
}

/// A stop that arrives while a task makes a call for livegraft holds afterwards.
#[test]
fn no_stop_is_lost() {
    let (plan, exe) = built("refuse/trace");
    let klp = patch(&plan, &exe, &[], "fix");
    let mut all = 0;
    // The first load into a process makes the most calls.
    for _ in 0..25 {
        let mut target = Target::start(&plan, &exe, &[]);
        let (pid, until) = (target.pid(), AtomicBool::new(false));
        let stops = std::thread::scope(|scope| {
            let stopper = scope.spawn(|| stop_again_and_again(pid, &until));
            let outcomes = (target.load(&klp, SWAP), target.unload(&[]));
            until.store(true, Ordering::Release);
            let stops = stopper.join().expect("it ends");
            outcomes.0.result(0, "loaded");
            outcomes.1.result(0, "unloaded");
            stops
        });
        all += stops.unwrap_or_else(|lost| panic!("{lost}, {all} stops before were not"));
        kill(target.pid(), libc::SIGCONT);
        target.expect("old");
        target.finish();
    }
    note(&format!("{all} stops"));
}

/// Two programs that have nothing to do with each other look alike, and one has children.
#[test]
fn two_unrelated_programs_at_once() {
    let plan = Plan::read("family");
    let build = Build::new("gcc -O2 pie");
    std::thread::scope(|scope| {
        for build in [build.clone(), build.flag("-DSECOND")] {
            let plan = &plan;
            scope.spawn(move || {
                let exe = compile_target(plan, &build);
                let klp = patch(plan, &exe, &[], "fix");
                for _ in 0..25 {
                    let mut target = Target::start(plan, &exe, &[]);
                    for _ in 0..4 {
                        target.load(&klp, &[]).result(0, "loaded");
                        target.expect("new");
                        target.unload(&[]).result(0, "unloaded");
                        target.expect("old");
                    }
                    target.finish();
                }
            });
        }
    });
}

/// A busy task that leaves the old code right after it was looked at, and then sleeps, is looked at again.
#[test]
fn busy_tasks_that_leave_and_sleep() {
    let (plan, exe) = built("leavers");
    let klp = patch(&plan, &exe, &[], "fix");
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let mut target = Target::start(&plan, &exe, &[]);
        target.expect("old");
        let loaded = target.load(&klp, &["--timeout", "5s"]).result(0, "loaded");
        slowest = slowest.max(loaded.elapsed);
        target.expect("new");
        target.unload(&["--timeout", "5s"]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
    note(&format!("the slowest load took {slowest:?}"));
}

/// A uprobe on an entry that is redirected already: its callers run the original meanwhile, which is said, and when it
/// is gone the next command puts the redirection back.
#[test]
fn uprobe_on_a_redirected_entry() {
    let (mut target, klp) = sleeper(&["-DSPARE"]);
    target.load(&klp, LEAVE).result(4, "timed-out");
    assert_eq!(target.ask("wake"), "new");
    target.livegraft(&["resume"], &[]).done();
    assert_eq!(target.ask("spare"), "new");
    let (offset, address) = function(target.pid(), target.exe(), "spare");
    let set = Uprobe::set(target.exe(), offset, target.pid());
    if require(
        "uprobes (CONFIG_UPROBES, and the right to set them)",
        set.is_ok(),
    ) {
        assert!(["old", "new"].contains(&target.ask("spare").as_str()));
        assert!(!intact(&target));
        check(&target.unload(&[]), FOREIGN);
        inspect::remove(set, target.pid(), address);
        target.livegraft(&["resume"], &[]).done();
        assert!(intact(&target));
        assert_eq!(target.ask("spare"), "new");
    }
    target.unload(LEAVE).result(4, "timed-out");
    assert_eq!(target.ask("wake"), "old");
    target.livegraft(&["resume"], &[]).done();
    target.finish();
}

fn output(words: &[&str]) -> String {
    let output = std::process::Command::new(words[0])
        .args(&words[1..])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// A debugger that attaches to a patched process, looks at all stacks, stops at a breakpoint in the patched function's
/// place, and leaves.
#[test]
fn debugger_afterwards() {
    if !require("gdb", livegraft_scenarios::compile::has_command("gdb")) {
        return;
    }
    for entry in ["pun", "swap", "rendezvous"] {
        let (plan, exe) = built("many");
        let klp = patch(&plan, &exe, &[], "fix");
        let mut target = Target::start(&plan, &exe, &["5", "2"]);
        target.load(&klp, &["--entry", entry]).result(0, "loaded");
        let pid = target.pid_text();
        let gdb = ["gdb", "-nx", "-batch", "-p", &pid, "-ex"];
        let mut stacks = gdb.to_vec();
        stacks.extend(["thread apply all backtrace", "-ex", "detach"]);
        let said = output(&stacks);
        assert!(
            said.contains("sem_wait") || said.contains("futex"),
            "{said}"
        );
        target.assert_undisturbed();
        target.expect("new");
        let mut stop = gdb.to_vec();
        stop.extend([
            "break answer",
            "-ex",
            "continue",
            "-ex",
            "delete",
            "-ex",
            "detach",
        ]);
        let said = output(&stop);
        assert!(said.contains("Breakpoint 1, "), "{said}");
        target.assert_undisturbed();
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        target.finish();
    }
}

/// Who traces the process keeps commands that change it out, and nothing more.
#[test]
fn strace_at_the_same_time() {
    if !require(
        "strace",
        livegraft_scenarios::compile::has_command("strace"),
    ) {
        return;
    }
    let (plan, exe) = built("many");
    let klp = patch(&plan, &exe, &[], "fix");
    let mut target = Target::start(&plan, &exe, &["5", "2"]);
    let mut strace = std::process::Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-p", &target.pid_text()])
        .spawn()
        .expect("it runs");
    let traced = |target: &Target| {
        let status = inspect::status(&format!("/proc/{}/status", target.pid()));
        status["TracerPid"] != "0"
    };
    while !traced(&target) {
        std::thread::sleep(Duration::from_millis(1));
    }
    check(&target.load(&klp, &[]), "traced strace");
    target.expect("old");
    kill(strace.id() as i32, libc::SIGINT);
    strace.wait().expect("it ends");
    target.load(&klp, &[]).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}
