//! `check` says what a load would do, and who would be in its way, and changes nothing.

use livegraft_scenarios::cli::start;
use livegraft_scenarios::cycle::has_compilers;
use livegraft_scenarios::refusal::{both_ways, check};
use livegraft_scenarios::{
    Build, Outcome, Plan, Target, compile_patch, compile_patch_as, compile_target,
};
use std::path::PathBuf;

fn sleeper() -> (Target, PathBuf) {
    let plan = Plan::read("sleeper");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    target.expect("old");
    (target, klp)
}

fn checked(target: &Target, klp: &std::path::Path, more: &[&str]) -> Outcome {
    let outcome = target.livegraft(&["check", klp.to_str().expect("UTF-8")], more);
    let outcome = outcome.done();
    assert_eq!(outcome.text("result"), "would-load", "{outcome}");
    outcome
}

#[test]
fn sleeper_is_named_and_nothing_is_changed() {
    let (mut target, klp) = sleeper();
    let once = checked(&target, &klp, &[]);
    assert_eq!(once.number("tasks"), 8, "{once}");
    assert_eq!(once.number("looks"), 1, "{once}");
    let watched = checked(&target, &klp, &["--sample", "500ms"]);
    let looks = watched.number("looks");
    assert!(looks > 1, "{watched}");
    let busy = watched.json["busy"].as_array().expect("a list");
    // The busiest comes first.
    assert_eq!(busy[0]["name"], "sleeper", "{watched}");
    assert_eq!(busy[0]["function"], "job", "{watched}");
    assert_eq!(busy[0]["busy"], looks, "{watched}");
    assert_eq!(busy[0]["never_left"], true, "{watched}");
    let never: Vec<_> = watched.json["functions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|function| function["never_left"] == true)
        .collect();
    assert_eq!(never.len(), 1, "{watched}");
    assert_eq!(never[0]["name"], "job", "{watched}");
    let text = start(
        &[
            "check",
            klp.to_str().expect("UTF-8"),
            "--pid",
            &target.pid_text(),
            "--sample",
            "300ms",
        ],
        None,
    );
    let text = text.finish().done();
    assert!(text.stdout.contains("never left it"), "{text}");
    target.expect("old");
    target.assert_untouched();
    target.end();
}

/// What a load does is what was said.
#[test]
fn check_and_load_agree() {
    let (mut target, klp) = sleeper();
    for entry in ["pun", "swap", "rendezvous"] {
        let said = target.livegraft(
            &["check", klp.to_str().expect("UTF-8")],
            &["--entry", entry],
        );
        let leave = [
            "--entry",
            entry,
            "--timeout",
            "300ms",
            "--on-timeout",
            "leave",
        ];
        let load = target.load(&klp, &leave);
        assert_eq!(said.code == 0, load.code == 4, "{said}\n{load}");
        if said.code == 1 {
            check(
                &said,
                load.json["error"]["kind"]
                    .as_str()
                    .expect("a kind")
                    .split('-')
                    .next()
                    .expect("a word"),
            );
            continue;
        }
        let methods = |outcome: &Outcome| {
            let functions = outcome.json["functions"]
                .as_array()
                .expect("a list")
                .clone();
            let pairs = functions
                .into_iter()
                .map(|f| (f["name"].clone(), f["entry"].clone()));
            pairs.collect::<Vec<_>>()
        };
        assert_eq!(methods(&said), methods(&load));
        // While a transition is open there is nothing to check.
        both_ways(
            &[
                "check",
                klp.to_str().expect("UTF-8"),
                "--pid",
                &target.pid_text(),
            ],
            None,
            "transition",
        );
        target.livegraft(&["reverse"], &[]).done();
        target.expect("old");
        target.assert_clean();
    }
    target.load(&klp, &["--timeout", "300ms", "--on-timeout", "leave"]);
    assert_eq!(target.ask("wake"), "new");
    target.livegraft(&["resume"], &[]).done();
    both_ways(
        &[
            "check",
            klp.to_str().expect("UTF-8"),
            "--pid",
            &target.pid_text(),
        ],
        None,
        "already loaded",
    );
    target.unload(&["--timeout", "300ms", "--on-timeout", "leave"]);
    assert_eq!(target.ask("wake"), "old");
    target.livegraft(&["resume"], &[]).done();
    target.finish();
}

/// The jumps by which a version of a function leaves, as (where they lead, name of what is there, whether the way counts
/// as inside).
fn exits(checked: &Outcome, function: &str, version: &str) -> Vec<(String, String, bool)> {
    let all = checked.json["tail_exits"].as_array().expect("a list");
    let own = all
        .iter()
        .filter(|exit| exit["function"] == function && exit["version"] == version);
    own.map(|exit| {
        let text = |field: &str| exit[field].as_str().unwrap_or_default().to_owned();
        let inside = exit["counts_as_inside"].as_bool().expect("a truth value");
        (text("leads"), text("to"), inside)
    })
    .collect()
}

#[test]
fn tail_exits_are_listed() {
    let plan = Plan::read("tails");
    for build in plan.targets() {
        if !has_compilers([&build]) {
            continue;
        }
        let exe = compile_target(&plan, &build);
        let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
        let mut target = Target::start(&plan, &exe, &[]);
        target.expect("old");
        let first = checked(&target, &klp, &[]);
        let one =
            |leads: &str, to: &str, inside: bool| vec![(leads.to_owned(), to.to_owned(), inside)];
        for version in ["old", "new"] {
            let found = |function: &str| exits(&first, function, version);
            assert_eq!(
                found("hop"),
                one("patched", "land", false),
                "{build} {first}"
            );
            assert_eq!(
                found("choose"),
                one("unknown", "", false),
                "{build} {first}"
            );
            assert_eq!(found("pick"), [], "{build} {first}");
        }
        assert_eq!(exits(&first, "land", "old"), [], "{build} {first}");
        assert_eq!(
            exits(&first, "land", "new"),
            one("patch-code", "helper", false),
            "{first}"
        );
        // The program's own goes through a stub; the patch's GOT may have the function itself.
        assert_eq!(
            exits(&first, "shout", "old"),
            one("outside", "usleep", true),
            "{build} {first}"
        );
        let shouts = exits(&first, "shout", "new");
        let [(leads, to, _)] = shouts.as_slice() else {
            panic!("{build} {first}");
        };
        assert_eq!(
            (leads.as_str(), to.as_str()),
            ("outside", "usleep"),
            "{build} {first}"
        );

        let pid = target.pid_text();
        let text = start(
            &["check", klp.to_str().expect("UTF-8"), "--pid", &pid],
            None,
        );
        let text = text.finish().done().stdout;
        let lines = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!(
            lines("old and new: leaves by a jump to land, which the patch replaces too"),
            1,
            "{text}"
        );
        assert_eq!(
            lines("old and new: leaves by a jump through a register"),
            1,
            "{text}"
        );
        assert_eq!(lines("usleep"), 0, "{text}");
        assert_eq!(lines("3 jumps leave the patch"), 1, "{text}");

        // What is replaced next is the patch's own code.
        target.load(&klp, &[]).result(0, "loaded");
        target.expect("new");
        let second = compile_patch_as(&plan, &Build::new("gcc -O2 pic"), &exe, "more");
        let stacked = checked(&target, &second, &[]);
        for function in ["land", "hop", "choose", "shout", "pick"] {
            let expected = match exits(&first, function, "new") {
                // Only the patch's file has the names of what is no function of anybody else's.
                exits if function == "land" => {
                    vec![("patch-code".into(), "code of patch fix".into(), exits[0].2)]
                }
                exits => exits,
            };
            assert_eq!(
                exits(&stacked, function, "old"),
                expected,
                "{function} {stacked}"
            );
        }
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
}
