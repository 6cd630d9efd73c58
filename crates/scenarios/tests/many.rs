//! Patches of many functions: redirected by swap, so that their trampolines lie densely; several pages of text at once.

use livegraft_scenarios::cli::{self, Outcome, start};
use livegraft_scenarios::inspect::{function, poke};
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, note};
use std::path::PathBuf;
use std::time::Duration;

fn built(count: &str) -> (Plan, PathBuf, PathBuf) {
    let plan = Plan::read("../benches/wide");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let patch = Build::new("gcc -O2 pic").flag(&format!("-DCOUNT={count}"));
    let klp = compile_patch(&plan, &patch, &exe);
    (plan, exe, klp)
}

fn started(count: &str) -> (Target, PathBuf) {
    let (plan, exe, klp) = built(count);
    let mut target = Target::start(&plan, &exe, &[]);
    target.expect("old");
    (target, klp)
}

/// How many functions each method redirects.
fn by(loaded: &Outcome, method: &str) -> usize {
    let functions = loaded.json["functions"].as_array().expect("a list");
    functions.iter().filter(|f| f["entry"] == method).count()
}

/// By each method, the one that is chosen first; again and again, with the memory of the first time; to the end.
#[test]
fn all_methods_carry_many() {
    for (count, number) in [("16", 16), ("SPREAD", 64), ("1024", 1024)] {
        for method in [None, Some("pun"), Some("swap"), Some("rendezvous")] {
            let (mut target, klp) = started(count);
            let more: Vec<&str> = method.into_iter().flat_map(|m| ["--entry", m]).collect();
            for _ in 0..3 {
                let loaded = target.load(&klp, &more).result(0, "loaded");
                let wanted = method.unwrap_or(if number < 64 { "pun" } else { "swap" });
                assert_eq!(by(&loaded, wanted), number, "{count} {method:?}: {loaded}");
                target.expect("new");
                target.unload(&[]).result(0, "unloaded");
                target.expect("old");
            }
            target.finish();
        }
    }
}

/// Two patches of which the second has more functions than the regions of the first have room for, and shares some.
#[test]
fn patches_on_top_of_each_other() {
    let (mut target, few) = started("16");
    let (.., more) = built("64");
    let second = more.with_file_name("second.klp");
    std::fs::copy(&more, &second).expect("a copy");
    let forced = ["--entry", "swap"];
    target.load(&few, &forced).result(0, "loaded");
    target.expect("new");
    target.load(&second, &forced).result(0, "loaded");
    target.expect("new");
    target.livegraft(&["unload", "fix"], &[]).done();
    target.expect("new");
    target.livegraft(&["unload", "second"], &[]).done();
    target.expect("old");
    target.finish();
}

/// Somebody's breakpoint keeps its page from being replaced: the functions there are redirected by pun.
#[test]
fn a_page_that_is_not_ours_is_left_alone() {
    let (mut target, klp) = started("SPREAD");
    let pid = target.pid();
    // Of no interest to the patch, on the same page as some that are.
    let (_, address) = function(pid, target.exe(), "answer_018");
    let before = poke(pid, address, 0xcc);
    let loaded = target.load(&klp, &[]).result(0, "loaded");
    let (puns, swaps) = (by(&loaded, "pun"), by(&loaded, "swap"));
    assert_eq!(puns + swaps, 64, "{loaded}");
    assert!(puns >= 16 && swaps >= 16, "{puns} puns, {swaps} swaps");
    assert_eq!(poke(pid, address, before), 0xcc, "it was overwritten");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.finish();
}

/// livegraft is killed while copies of several pages lie side by side, and some have taken their places.
#[test]
fn killed_among_the_pages() {
    let (mut target, klp) = started("SPREAD");
    let klp_text = klp.to_str().expect("a path in UTF-8").to_owned();
    let pid = target.pid_text();
    let mut killed = 0;
    for moment in 0..80_u64 {
        let enabled = cli::patch_state(target.pid(), "fix").as_deref() == Some("enabled");
        let arguments: Vec<&str> = match enabled {
            true => vec!["unload", "fix", "--pid", &pid],
            false => vec!["load", &klp_text, "--pid", &pid, "--entry", "swap"],
        };
        let mut running = start(&arguments, None);
        std::thread::sleep(Duration::from_micros(1000 + moment * 120));
        killed += usize::from(!running.ended());
        running.kill();
        running.finish();
        target.assert_undisturbed();
        // A main task that checks all functions alone is in one universe or the other.
        assert!(["old", "new"].contains(&target.ask("check").as_str()));
        if !target.livegraft(&["status"], &[]).json["transition"].is_null() {
            target.livegraft(&["resume"], &[]).done();
        }
    }
    note(&format!("80 commands, {killed} of them killed"));
    if cli::patch_state(target.pid(), "fix").as_deref() != Some("enabled") {
        target.load(&klp, &["--entry", "swap"]).result(0, "loaded");
    }
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.assert_clean();
    target.finish();
}

/// Tables that tasks live in are made longer where they are.
#[test]
fn a_small_patch_and_then_a_large_one() {
    let (mut target, few) = started("16");
    let (.., many) = built("1024");
    let second = many.with_file_name("second.klp");
    std::fs::copy(&many, &second).expect("a copy");
    target.load(&few, &[]).result(0, "loaded");
    target.expect("new");
    let loaded = target.load(&second, &[]).result(0, "loaded");
    assert_eq!(by(&loaded, "swap") + by(&loaded, "pun"), 1024, "{loaded}");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("new");
    target
        .livegraft(&["unload", "second"], &[])
        .result(0, "unloaded");
    target.expect("old");
    target.load(&few, &[]).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.assert_clean();
    target.finish();
}
