//! livegraft is killed at random moments: the program lives, stays consistent, and a later command picks it up.

use livegraft_scenarios::cli::{self, start};
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, note};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// xorshift64: a seed that a failure names repeats its moments.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn seed() -> u64 {
    let chosen = std::env::var("LIVEGRAFT_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("the clock is set");
    chosen.unwrap_or(now.as_nanos() as u64 | 1)
}

/// The state that a killed command has left: whether a transition is open, and the patch's state.
fn state(target: &Target) -> (bool, Option<String>) {
    let listed = cli::list(target.pid());
    (
        !listed["transition"].is_null(),
        cli::patch_state(target.pid(), "fix"),
    )
}

/// Starts the command that fits the state, or now and then another one, and kills it after a while.
fn kill_one(target: &Target, klp: &Path, random: &mut Random) -> String {
    let (open, patch) = state(target);
    let enabled = patch.as_deref() == Some("enabled");
    let pid = target.pid_text();
    let klp = klp.to_str().expect("a path in UTF-8");
    let arguments: Vec<&str> = match (open, enabled) {
        (true, _) if random.below(3) == 0 => vec!["reverse", "--pid", &pid],
        (true, _) => vec!["resume", "--pid", &pid],
        (_, true) => vec!["unload", "fix", "--pid", &pid],
        _ => vec!["load", klp, "--pid", &pid],
    };
    let mut running = start(&arguments, None);
    // Most commands take 3 to 6 ms here; the later moments are for those that a busy task holds up.
    let longest = if random.below(4) == 0 { 20_000 } else { 5_000 };
    std::thread::sleep(Duration::from_micros(random.below(longest)));
    let early = !running.ended();
    running.kill();
    let outcome = running.finish();
    assert!(
        [0, 128 + libc::SIGKILL].contains(&outcome.code),
        "{outcome}"
    );
    format!("{} {}", arguments[0], if early { "killed" } else { "done" })
}

/// Brings the program to a quiet state with the commands that a user has, each of which must work.
fn recover(target: &mut Target, klp: &Path, context: &str) {
    let (open, _) = state(target);
    if open {
        let resumed = target.livegraft(&["resume"], &[]);
        assert_eq!(resumed.code, 0, "{context}: {resumed}");
    }
    let (open, patch) = state(target);
    assert!(!open, "{context}: a transition is open after resume");
    if patch.as_deref() == Some("enabled") {
        target.expect("new");
    } else {
        target.expect("old");
        let loaded = target.load(klp, &[]);
        assert_eq!(loaded.code, 0, "{context}: {loaded}");
        target.expect("new");
    }
    let unloaded = target.unload(&[]);
    assert_eq!(unloaded.code, 0, "{context}: {unloaded}");
    target.expect("old");
    target.assert_clean();
}

fn massacre(words: &str, arguments: &[&str], kills: usize) {
    let plan = Plan::read("contract");
    let exe = compile_target(&plan, &Build::new(words));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, arguments);
    target.expect("old");
    let seed = seed();
    let mut random = Random(seed);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..kills {
        let what = kill_one(&target, &klp, &mut random);
        let context = format!("LIVEGRAFT_SEED={seed}, moment {number}, {what}");
        // The program goes on by itself: its answer comes, whatever version it is.
        let verdict = target.ask("check");
        assert!(
            ["old", "new"].contains(&verdict.as_str()),
            "{context}: {verdict}"
        );
        target.assert_undisturbed();
        *counts.entry(what).or_default() += 1;
        if random.below(3) == 0 {
            recover(&mut target, &klp, &context);
        }
    }
    recover(
        &mut target,
        &klp,
        &format!("LIVEGRAFT_SEED={seed}, the end"),
    );
    note(&format!(
        "{words} {arguments:?}: {counts:?}; {}",
        target.ask("counts")
    ));
    target.finish();
}

#[test]
fn three_hundred_random_moments() {
    massacre("gcc -O2 pie", &["1", "6", "0"], 150);
    massacre("gcc -O2 pie", &["1", "3", "1"], 150);
}

/// The first load into a process maps everything, by calls that a task of the target makes: killed at any moment, the
/// task returns to what it was doing, and nothing is left that the next load stumbles over.
#[test]
fn first_load_killed() {
    first_loads("many", &["3", "1"]);
}

/// It also calls a function of the unwinder, while others throw exceptions.
#[test]
fn first_load_of_a_cpp_program_killed() {
    first_loads("exceptions", &[]);
}

fn first_loads(name: &str, arguments: &[&str]) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let seed = seed();
    let mut random = Random(seed);
    let mut killed = 0;
    for number in 0..60 {
        let mut target = Target::start(&plan, &exe, arguments);
        target.expect("old");
        let what = kill_one(&target, &klp, &mut random);
        killed += usize::from(what.ends_with("killed"));
        target.assert_undisturbed();
        recover(
            &mut target,
            &klp,
            &format!("LIVEGRAFT_SEED={seed}, process {number}, {what}"),
        );
        target.finish();
    }
    note(&format!("{name}: 60 first loads, {killed} of them killed"));
}
