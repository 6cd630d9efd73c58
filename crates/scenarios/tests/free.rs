//! `free` gives the memory of an unloaded patch back, and only when nothing refers to it any more.

use livegraft_scenarios::cli::{self, start};
use livegraft_scenarios::inspect::{self, listed_mappings};
use livegraft_scenarios::refusal::both_ways;
use livegraft_scenarios::{
    Build, Outcome, Plan, Target, compile_patch, compile_patch_as, compile_target, note,
};
use std::path::PathBuf;
use std::time::Duration;

/// Long enough for a busy machine.
const STOP: &[&str] = &["--stop", "5s"];

fn prepare(words: &str) -> (Target, PathBuf) {
    prepare_with(words, &[])
}

fn prepare_with(words: &str, arguments: &[&str]) -> (Target, PathBuf) {
    let plan = Plan::read("free");
    let exe = compile_target(&plan, &Build::new(words));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, arguments);
    target.expect("old");
    (target, klp)
}

fn free(target: &Target, more: &[&str]) -> Outcome {
    target.livegraft(&["free", "fix"], more)
}

/// What of livegraft's in the process is a patch's.
fn of_patches(target: &Target) -> Vec<inspect::Mapping> {
    let mut mappings = listed_mappings(&cli::list(target.pid()));
    mappings.retain(|mapping| mapping.name.ends_with("of a patch"));
    mappings
}

fn is_mapped(target: &Target, mapping: &inspect::Mapping) -> bool {
    let maps = inspect::maps(target.pid());
    maps.iter()
        .any(|other| other.start < mapping.end && mapping.start < other.end)
}

/// Frees what nothing refers to. Words that a call has left on a stack are overwritten some time.
#[track_caller]
fn freed(target: &mut Target) -> Outcome {
    let before = of_patches(target);
    assert!(!before.is_empty());
    for _ in 0..20 {
        let outcome = free(target, STOP);
        if outcome.code == 0 {
            assert_eq!(outcome.text("result"), "freed", "{outcome}");
            let bytes: u64 = before
                .iter()
                .map(|mapping| mapping.end - mapping.start)
                .sum();
            assert_eq!(outcome.json["freed"][0]["bytes"], bytes, "{outcome}");
            assert_eq!(outcome.json["freed"][0]["patch"], "fix", "{outcome}");
            assert_eq!(
                outcome.number("most_stopped"),
                outcome.number("tasks"),
                "{outcome}"
            );
            let left: Vec<_> = before
                .iter()
                .filter(|mapping| is_mapped(target, mapping))
                .collect();
            assert!(left.is_empty(), "{left:x?}");
            assert_eq!(of_patches(target), []);
            assert_eq!(cli::patch_state(target.pid(), "fix"), None);
            return outcome;
        }
        note(&format!("kept: {}", outcome.json["kept"]));
        let all: Vec<_> = before
            .iter()
            .filter(|mapping| !is_mapped(target, mapping))
            .collect();
        assert!(all.is_empty(), "{all:x?}");
        target.expect("old");
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it is never freed: {}", free(target, STOP));
}

/// Loaded, unloaded, and freed, with everything as it was.
#[track_caller]
fn cycle(target: &mut Target, klp: &std::path::Path) {
    target.load(klp, &[]).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    freed(target);
    target.expect("old");
    target.assert_clean();
}

#[test]
fn memory_is_given_back_again_and_again() {
    for words in ["gcc -O2 pie", "gcc -O2 no-pie", "gcc -O2 static"] {
        let (mut target, klp) = prepare(words);
        let mut first = None;
        for _ in 0..5 {
            cycle(&mut target, &klp);
            let bytes = target.baseline().added_bytes();
            // The second patch finds the tables of the first.
            assert_eq!(bytes, *first.get_or_insert(bytes), "{words}");
        }
        both_ways(
            &["free", "fix", "--pid", &target.pid_text()],
            None,
            "not loaded",
        );
        let nothing = target.livegraft(&["free"], STOP).done();
        assert_eq!(nothing.text("result"), "nothing-to-free");
        target.finish();
    }
}

/// A pointer at a place keeps the patch, is named, and leads where it did; without it the patch goes.
#[track_caller]
fn keeps(
    target: &mut Target,
    klp: &std::path::Path,
    place: &str,
    named: &[(&str, &str)],
    answer: &str,
) {
    target.load(klp, &[]).result(0, "loaded");
    assert_eq!(target.ask(&format!("leave {place}")), "ok", "{place}");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    let before = (of_patches(target), inspect::maps(target.pid()));
    for more in [&[][..], STOP] {
        let outcome = free(target, more);
        assert_eq!(outcome.code, 1, "{place}: {outcome}");
        assert_eq!(outcome.text("result"), "kept", "{place}: {outcome}");
        let kept = &outcome.json["kept"][0];
        let field = |field: &str, text: &str| {
            let all = kept["shown"].as_array().expect("a list");
            let word = all
                .iter()
                .any(|word| word[field].to_string().contains(text));
            word || kept[field].to_string().contains(text)
        };
        for (name, text) in named {
            // Handlers are asked for when all stand still.
            if place != "handler" || !more.is_empty() {
                assert!(field(name, text), "{place}: no {name} {text} in {outcome}");
            }
        }
        assert_eq!(of_patches(target), before.0, "{place}");
        let text = start(
            &["free", "fix", "--pid", &target.pid_text(), "--stop", "5s"],
            None,
        )
        .finish();
        assert_eq!(text.code, 1, "{text}");
        assert!(
            text.stdout.starts_with("Patch fix stays in process"),
            "{text}"
        );
    }
    assert_eq!(
        cli::patch_state(target.pid(), "fix").as_deref(),
        Some("disabled")
    );
    assert_eq!(inspect::maps(target.pid()), before.1, "{place}");
    assert_eq!(target.ask(&format!("use {place}")), answer, "{place}");
}

fn dropped(target: &mut Target, place: &str) {
    assert_eq!(target.ask(&format!("drop {place}")), "ok", "{place}");
    freed(target);
    target.expect("old");
    target.assert_clean();
}

#[test]
fn pointers_in_memory_keep_a_patch() {
    for words in ["gcc -O2 pie", "gcc -O2 static"] {
        let (mut target, klp) = prepare(words);
        let constant = ("to", "constants+");
        let text = "a string of the patch";
        keeps(
            &mut target,
            &klp,
            "heap",
            &[("place", "[heap]"), constant],
            text,
        );
        dropped(&mut target, "heap");
        keeps(
            &mut target,
            &klp,
            "static",
            &[("place", "in_static (free)"), ("to", "code+")],
            text,
        );
        dropped(&mut target, "static");
        keeps(
            &mut target,
            &klp,
            "shared",
            &[("place", "zero"), constant],
            text,
        );
        dropped(&mut target, "shared");
        // Memory that nobody can read now.
        keeps(
            &mut target,
            &klp,
            "hidden",
            &[("place", "memory"), constant],
            "ok",
        );
        dropped(&mut target, "hidden");
        target.finish();
    }
}

#[test]
fn pointers_in_registers_keep_a_patch() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    keeps(
        &mut target,
        &klp,
        "register",
        &[("place", "register r12"), ("to", "constants+")],
        "ok",
    );
    dropped(&mut target, "register");
    keeps(
        &mut target,
        &klp,
        "vector",
        &[("place", "a vector register"), ("to", "constants+")],
        "ok",
    );
    dropped(&mut target, "vector");
    target.finish();
}

#[test]
fn pointers_in_the_kernel_keep_a_patch() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    keeps(
        &mut target,
        &klp,
        "handler",
        &[("place", "a signal's handler"), ("to", "code+")],
        "ok",
    );
    dropped(&mut target, "handler");
    for (place, named) in [
        ("timer", "a timer's data"),
        ("epoll", "the data of an epoll"),
        ("signal", "a signal that waits"),
    ] {
        keeps(
            &mut target,
            &klp,
            place,
            &[("place", named), ("to", "variables+")],
            "ok",
        );
        dropped(&mut target, place);
    }
    keeps(
        &mut target,
        &klp,
        "aio",
        &[("reason", "unseen"), ("unseen", "asynchronous I/O")],
        "ok",
    );
    dropped(&mut target, "aio");
    target.finish();
}

/// The C library keeps what runs at the end: mangled, or as it is.
#[test]
fn handlers_of_the_c_library_keep_a_patch() {
    for words in ["gcc -O2 pie", "gcc -O2 static"] {
        let (mut target, klp) = prepare(words);
        keeps(&mut target, &klp, "key", &[("to", "code+")], "ok");
        dropped(&mut target, "key");
        keeps(
            &mut target,
            &klp,
            "atexit",
            &[("to", "code+"), ("mangled", "true")],
            "ok",
        );
        // It is called now.
        target.finish();
    }
}

/// What was never touched is neither read nor filled, and what is read does not take long.
#[test]
fn large_memory_is_searched() {
    let (mut target, klp) = prepare_with("gcc -O2 pie", &["1024"]);
    let rss = |target: &Target| {
        let status = inspect::status(&format!("/proc/{}/status", target.pid()));
        let field = status["VmRSS"]
            .split(' ')
            .next()
            .expect("a number")
            .to_owned();
        field.parse::<u64>().expect("a number")
    };
    target.load(&klp, &[]).result(0, "loaded");
    assert_eq!(target.ask("leave sparse"), "ok");
    target.unload(&[]).result(0, "unloaded");
    let before = rss(&target);
    let kept = free(&target, &[]);
    assert_eq!(kept.code, 1, "{kept}");
    assert_eq!(
        kept.json["kept"][0]["shown"][0]["place"], "memfd:sparse",
        "{kept}"
    );
    assert_eq!(target.ask("use sparse"), "a string of the patch");
    assert_eq!(target.ask("drop sparse"), "ok");
    let gone = freed(&mut target);
    let searched = gone.number("searched_bytes");
    assert!(
        (1 << 30..(1 << 30) + (64 << 20)).contains(&searched),
        "{gone}"
    );
    note(&format!(
        "1 GiB: all stood still for {} us",
        gone.number("longest_stop_us")
    ));
    let grown = rss(&target).saturating_sub(before);
    assert!(grown < 8192, "it has grown by {grown} KiB");
    target.finish();
}

/// The child of a vfork has handlers of its own, which nobody can ask for, and its parent does not stop.
#[test]
fn a_vfork_keeps_a_patch() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    target.load(&klp, &[]).result(0, "loaded");
    target.unload(&[]).result(0, "unloaded");
    let before = of_patches(&target);
    assert_eq!(target.ask("leave vfork"), "ok");
    let kept = free(&target, STOP);
    assert_eq!((kept.code, kept.text("result")), (1, "kept"), "{kept}");
    let patch = &kept.json["kept"][0];
    assert_eq!(patch["reason"], "unseen", "{kept}");
    let why = patch["unseen"][0].as_str().expect("words");
    assert!(why.contains("runs in the same memory"), "{kept}");
    assert_eq!(of_patches(&target), before);
    target.assert_undisturbed();
    dropped(&mut target, "vfork");
    target.finish();
}

/// A pointer that is always moved away from where it is looked for next is found when all stand still.
#[test]
fn a_pointer_on_the_move_keeps_a_patch() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    target.load(&klp, &[]).result(0, "loaded");
    assert_eq!(target.ask("leave mover"), "ok");
    target.unload(&[]).result(0, "unloaded");
    let before = of_patches(&target);
    let (mut missed, mut found) = (0, 0);
    for _ in 0..40 {
        let kept = free(&target, &[]);
        assert_eq!(kept.code, 1, "{kept}");
        missed += usize::from(kept.json["kept"][0]["reason"] == "unproven");
        let kept = free(&target, STOP);
        assert_eq!(kept.code, 1, "{kept}");
        assert_eq!(kept.json["kept"][0]["reason"], "referenced", "{kept}");
        found += usize::from(kept.number("most_stopped") > 1);
    }
    note(&format!(
        "of 40 searches {missed} missed it; {found} found it with all stopped"
    ));
    assert!(
        missed > 0 && found > 0,
        "it does not move: {missed}, {found}"
    );
    assert_eq!(of_patches(&target), before);
    assert_eq!(target.ask("drop mover"), "a string of the patch");
    freed(&mut target);
    target.finish();
}

/// Another process that runs in the same memory counts as well.
#[test]
fn a_process_in_the_same_memory_keeps_a_patch() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    keeps(
        &mut target,
        &klp,
        "sharer",
        &[("place", "register r12"), ("to", "constants+")],
        "ok",
    );
    dropped(&mut target, "sharer");
    target.finish();
}

/// A patch that another one refers to goes together with that, and not before.
#[test]
fn patches_that_refer_to_each_other_go_together() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    let plan = Plan::read("free");
    let more = compile_patch_as(&plan, &Build::new("gcc -O2 pic"), target.exe(), "more");
    target.load(&klp, &[]).result(0, "loaded");
    assert_eq!(target.ask("leave heap"), "ok");
    target.load(&more, &[]).result(0, "loaded");
    assert_eq!(target.ask("leave take"), "ok");
    assert_eq!(target.ask("drop heap"), "ok");
    target.unload(&[]).result(0, "unloaded");
    let still_used = free(&target, STOP);
    assert_eq!(still_used.code, 1, "{still_used}");
    let word = &still_used.json["kept"][0]["shown"][0];
    assert_eq!(word["place"], "variables of patch more", "{still_used}");
    target
        .livegraft(&["unload", "more"], &[])
        .result(0, "unloaded");
    target.expect("old");
    assert_eq!(free(&target, STOP).code, 1);
    for _ in 0..20 {
        let both = target.livegraft(&["free"], STOP);
        if both.code == 0 {
            assert_eq!(both.text("result"), "freed", "{both}");
            assert_eq!(
                both.json["freed"].as_array().map(Vec::len),
                Some(2),
                "{both}"
            );
            break;
        }
        // Not one without the other.
        assert_eq!(
            both.json["kept"].as_array().map(Vec::len),
            Some(2),
            "{both}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(of_patches(&target), []);
    cycle(&mut target, &klp);
    target.finish();
}

#[test]
fn what_is_in_use_is_refused() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    let pid = target.pid_text();
    both_ways(&["free", "fix", "--pid", &pid], None, "no patches");
    target.load(&klp, &[]).result(0, "loaded");
    both_ways(
        &["free", "fix", "--pid", &pid, "--stop", "5s"],
        None,
        "is loaded unload",
    );
    both_ways(&["free", "other", "--pid", &pid], None, "not loaded");
    let nothing = target.livegraft(&["free"], STOP).done();
    assert_eq!(nothing.text("result"), "nothing-to-free");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    // Nobody is stopped for longer than he may be, nor all at once without leave.
    for more in [&[][..], &["--stop", "0.001ms"]] {
        let kept = free(&target, more);
        assert_eq!((kept.code, kept.text("result")), (1, "kept"), "{kept}");
        assert!(kept.number("most_stopped") <= 1, "{kept}");
    }
    target.expect("old");
    freed(&mut target);
    target.finish();
}

#[test]
fn a_forced_patch_stays_for_ever() {
    let plan = Plan::read("sleeper");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    let leave = &["--timeout", "300ms", "--on-timeout", "leave"];
    target.load(&klp, leave).result(4, "timed-out");
    let pid = target.pid_text();
    both_ways(
        &["free", "--pid", &pid, "--stop", "5s"],
        None,
        "transition open",
    );
    target.livegraft(
        &["resume"],
        &["--timeout", "300ms", "--on-timeout", "leave"],
    );
    assert_eq!(target.ask("wake"), "new");
    target.livegraft(&["resume"], &[]).done();
    target.unload(leave).result(4, "timed-out");
    target.livegraft(&["force"], &[]).result(0, "unloaded");
    both_ways(
        &["free", "fix", "--pid", &pid, "--stop", "5s"],
        None,
        "forced",
    );
    let kept = target.livegraft(&["free"], STOP);
    assert_eq!((kept.code, kept.text("result")), (1, "kept"), "{kept}");
    assert_eq!(kept.json["kept"][0]["reason"], "forced", "{kept}");
    // The sleeper returns into it.
    assert_eq!(target.ask("wake"), "old");
    target.expect("old");
    target.finish();
}

/// Killed at any moment: the patch is there as a whole, or gone, and the next command ends what was begun.
#[test]
fn killed_while_it_frees() {
    let (mut target, klp) = prepare("gcc -O2 pie");
    let (mut killed, mut gone) = (0, 0);
    for number in 0..60u64 {
        target.load(&klp, &[]).result(0, "loaded");
        target.expect("new");
        target.unload(&[]).result(0, "unloaded");
        let pid = target.pid_text();
        let mut running = start(&["free", "fix", "--pid", &pid, "--stop", "5s"], None);
        std::thread::sleep(Duration::from_micros(number * 7919 % 12_000));
        killed += usize::from(!running.ended());
        running.kill();
        running.finish();
        target.assert_undisturbed();
        target.expect("old");
        match cli::patch_state(target.pid(), "fix").as_deref() {
            Some("disabled") => drop(freed(&mut target)),
            None => {
                gone += 1;
                let nothing = target.livegraft(&["free"], STOP).done();
                assert_eq!(nothing.text("result"), "nothing-to-free");
                assert_eq!(of_patches(&target), []);
            }
            Some(other) => panic!("{other}"),
        }
        target.assert_clean();
    }
    note(&format!(
        "60 times, {killed} killed, {gone} after the patch was gone"
    ));
    target.finish();
}
