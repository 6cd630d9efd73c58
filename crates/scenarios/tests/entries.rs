//! Entries of every kind, by each entry method; arguments of every shape; several objects in one patch.

use livegraft_scenarios::cycle::{self, LAYOUTS, matrix};
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, note, refusal};
use std::collections::BTreeMap;

#[test]
fn arguments_of_every_shape() {
    matrix("args", &[]);
}

#[test]
fn vectors_of_256_bits() {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if livegraft_scenarios::require("a CPU with AVX", cpu.contains(" avx ")) {
        matrix("wide", &[]);
    }
}

#[test]
fn several_objects_and_every_reference() {
    matrix("objects", &[]);
}

/// `//# function: NAME pun=.. swap=..` in order.
fn functions(plan: &Plan) -> Vec<(String, BTreeMap<String, String>)> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a name").to_owned();
        let methods = words.map(|word| word.split_once('=').expect("method=verdict"));
        (
            name,
            methods
                .map(|(method, verdict)| (method.to_owned(), verdict.to_owned()))
                .collect(),
        )
    };
    plan.all("function").map(parse).collect()
}

/// One function by one method, with a task that stays in its old universe meanwhile. Says whether it could be loaded.
fn one(plan: &Plan, build: &Build, name: &str, method: Option<&str>) -> bool {
    let exe = compile_target(plan, build);
    let patch = Build::new("gcc -O2 pic").flag(&format!("-DONLY={name}"));
    let klp = compile_patch(plan, &patch, &exe);
    let mut target = Target::start(plan, &exe, &[]);
    target.expect("old");
    let more: Vec<&str> = method
        .map(|method| ["--entry", method])
        .into_iter()
        .flatten()
        .collect();
    let outcome = target.load(&klp, &more);
    if outcome.code == 1 {
        refusal::check(&outcome, name);
        target.expect("old");
        target.assert_untouched();
        target.finish();
        return false;
    }
    target.unload(&[]).result(0, "unloaded");
    cycle::twice_as(target, &klp, method, &format!("{name}=new"));
    true
}

fn sweep(words: &str) {
    let plan = Plan::read("entries");
    let build = Build::new(words);
    let mut wrong = Vec::new();
    for (name, methods) in functions(&plan) {
        let mut said = Vec::new();
        for (method, verdict) in methods {
            let wanted = match verdict.as_str() {
                "pie" => build.shape == "pie",
                "yes" | "may" => true,
                _ => false,
            };
            let tries = if wanted && verdict != "may" {
                LAYOUTS
            } else {
                1
            };
            let loaded = (0..tries).any(|_| one(&plan, &build, &name, Some(&method)));
            if verdict != "may" && loaded != wanted {
                wrong.push(format!(
                    "{name} by {method}: {}",
                    if loaded { "loaded" } else { "refused" }
                ));
            }
            said.push(format!("{method} {}", if loaded { "yes" } else { "no" }));
        }
        // Without a forced method it must load in some way, if there is one.
        let some = said.iter().any(|words| words.ends_with("yes"));
        if some && !(0..LAYOUTS).any(|_| one(&plan, &build, &name, None)) {
            wrong.push(format!("{name} by any method: refused"));
        }
        note(&format!("{words} {name}: {}", said.join(", ")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_function_by_each_method_pie() {
    sweep("gcc -O2 pie");
}

#[test]
fn each_function_by_each_method_no_pie() {
    sweep("gcc -O2 no-pie");
}

#[test]
fn all_at_once() {
    let plan = Plan::read("entries");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let all: Vec<_> = functions(&plan)
        .into_iter()
        .map(|(name, _)| format!("{name}=new"))
        .collect();
    // The heap and the room that it may grow into lie where e_self_call's pun leads in one layout of twenty.
    let target = cycle::start_loadable(&plan, &exe, &[], &klp, None, "");
    let target = target.expect("no refusal is allowed");
    cycle::twice_as(target, &klp, None, &all.join(" "));
}

/// A task that is held in its old universe calls the originals through the redirected entries.
#[test]
fn originals_run_on_in_the_old_universe() {
    let plan = Plan::read("entries");
    for words in ["gcc -O2 pie", "gcc -O2 no-pie"] {
        let exe = compile_target(&plan, &Build::new(words));
        for (name, _) in functions(&plan) {
            let patch = Build::new("gcc -O2 pic")
                .flag("-DHOLD")
                .flag(&format!("-DONLY={name}"));
            let klp = compile_patch(&plan, &patch, &exe);
            let mut target = Target::start(&plan, &exe, &[]);
            let outcome = target.load(&klp, &["--timeout", "100ms", "--on-timeout", "leave"]);
            if outcome.code == 1 {
                refusal::check(&outcome, &name);
                note(&format!("{words} {name}: refused"));
                target.assert_untouched();
                target.finish();
                continue;
            }
            let outcome = outcome.result(4, "timed-out");
            assert!(
                !outcome.json["blocked"].as_array().is_none_or(Vec::is_empty),
                "{outcome}"
            );
            assert_eq!(
                target.ask("check"),
                format!("{name}=new"),
                "{words} {name}: the main task"
            );
            assert_eq!(target.ask("held"), "old", "{words} {name}: the held task");
            assert_eq!(
                target.ask("release"),
                "new",
                "{words} {name}: hold() after its release"
            );
            assert_eq!(
                target.ask("held"),
                format!("{name}=new"),
                "{words} {name}: the released task"
            );
            target.livegraft(&["resume"], &[]).done();
            let outcome = target
                .unload(&["--timeout", "100ms", "--on-timeout", "leave"])
                .result(4, "timed-out");
            assert!(
                !outcome.json["blocked"].as_array().is_none_or(Vec::is_empty),
                "{outcome}"
            );
            assert_eq!(target.ask("check"), "old", "{words} {name}");
            assert_eq!(target.ask("held"), format!("{name}=new"), "{words} {name}");
            assert_eq!(target.ask("release"), "old", "{words} {name}");
            target.livegraft(&["resume"], &[]).done();
            assert_eq!(target.ask("held"), "old", "{words} {name}");
            target.finish();
        }
    }
}
