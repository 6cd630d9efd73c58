//! Several patches in one process: of one function, of neighbours, and of the same name.

use livegraft_scenarios::refusal::check;
use livegraft_scenarios::{Build, Plan, Target, cli, compile_patch_as, compile_target};
use std::path::{Path, PathBuf};

fn start(name: &str) -> (Plan, Target) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let mut target = Target::start(&plan, &exe, &[]);
    target.expect("old");
    (plan, target)
}

/// A patch of the scenario, built with these flags.
fn patch(plan: &Plan, target: &Target, flags: &[&str], name: &str) -> PathBuf {
    let build = Build::new("gcc -O2 pic");
    let build = flags.iter().fold(build, |build, flag| build.flag(flag));
    compile_patch_as(plan, &build, target.exe(), name)
}

#[track_caller]
fn load(target: &mut Target, klp: &Path, verdict: &str) {
    target.load(klp, &[]).result(0, "loaded");
    target.expect(verdict);
}

#[track_caller]
fn unload(target: &mut Target, name: &str, verdict: &str) {
    let unloaded = target.livegraft(&["unload", name], &[]);
    unloaded.result(0, "unloaded");
    target.expect(verdict);
}

/// The patches of this name that `list` calls enabled, and no entry that is not as it should be.
#[track_caller]
fn enabled(target: &Target, name: &str) -> usize {
    let listed = cli::list(target.pid());
    let all = |field: &str| listed[field].as_array().cloned().unwrap_or_default();
    assert!(
        all("entries").iter().all(|entry| entry["intact"] == true),
        "{listed}"
    );
    let patches = all("patches");
    let enabled = patches
        .iter()
        .filter(|patch| patch["name"] == name && patch["state"] == "enabled");
    enabled.count()
}

/// `status` knows of no transition, and has nothing to say against the entries.
#[track_caller]
fn assert_at_rest(target: &Target) {
    let status = target.livegraft(&["status"], &[]).done();
    assert!(status.json["transition"].is_null(), "{status}");
    assert_eq!(status.json["entries_intact"], true, "{status}");
}

/// The patches of a pair: of both functions, of the first, of the second.
fn pair(length: usize) -> (Target, [PathBuf; 3], [String; 2]) {
    let (plan, target) = start("pairs");
    let (first, second) = (format!("first_{length}"), format!("second_{length}"));
    let flags = [format!("-DFIRST={first}"), format!("-DSECOND={second}")];
    let [one, two] = [&*flags[0], &*flags[1]];
    let patches = [
        patch(&plan, &target, &[one, two], "both"),
        patch(&plan, &target, &[one], "first"),
        patch(&plan, &target, &[two], "second"),
    ];
    (target, patches, [first, second])
}

/// What the first one's entry was planned for is gone when it is loaded alone.
#[test]
fn first_of_a_pair_after_both() {
    for length in 1..=4 {
        let (mut target, [both, first, _], [one, two]) = pair(length);
        for _ in 0..2 {
            load(&mut target, &both, &format!("{one} {two}"));
            unload(&mut target, "both", "old");
            load(&mut target, &first, &one);
            assert_eq!(enabled(&target, "first"), 1);
            unload(&mut target, "first", "old");
            target.assert_clean();
        }
        target.finish();
    }
}

/// The patch of both goes away while another one holds the first.
#[test]
fn first_of_a_pair_outlives_both() {
    for length in 1..=4 {
        let (mut target, [both, first, _], [one, two]) = pair(length);
        for _ in 0..2 {
            load(&mut target, &both, &format!("{one} {two}"));
            load(&mut target, &first, &format!("{one} {two}"));
            unload(&mut target, "both", &one);
            assert_eq!(enabled(&target, "first"), 1);
            assert_at_rest(&target);
            unload(&mut target, "first", "old");
            target.assert_clean();
        }
        target.finish();
    }
}

/// The other way round: the first is there before the second comes, and may stay when that goes.
#[test]
fn second_of_a_pair_comes_and_goes() {
    for length in 1..=4 {
        let (mut target, [both, first, second], [one, two]) = pair(length);
        for last in ["second", "first"] {
            load(&mut target, &both, &format!("{one} {two}"));
            unload(&mut target, "both", "old");
            load(&mut target, &second, &two);
            load(&mut target, &first, &format!("{one} {two}"));
            if last == "first" {
                unload(&mut target, "second", &one);
            } else {
                unload(&mut target, "first", &two);
            }
            unload(&mut target, last, "old");
            target.assert_clean();
        }
        target.finish();
    }
}

/// Never loaded together before: the first is planned beside a second that is original.
#[test]
fn second_of_a_pair_under_the_first() {
    for length in 1..=4 {
        let (mut target, [both, first, second], [one, two]) = pair(length);
        load(&mut target, &first, &one);
        // It may be refused, since it changes a byte that the first counts on; then nothing has changed.
        for (klp, name) in [(&second, "second"), (&both, "both")] {
            let outcome = target.load(klp, &[]);
            if outcome.code == 1 {
                check(&outcome, &format!("{two}|{one}"));
                target.expect(&one);
                continue;
            }
            outcome.result(0, "loaded");
            target.expect(&format!("{one} {two}"));
            unload(&mut target, name, &one);
        }
        unload(&mut target, "first", "old");
        target.finish();
    }
}

/// A patch that was changed and built again under its old name is another patch.
#[test]
fn same_name_with_other_contents() {
    let (plan, mut target) = start("versions");
    let first = patch(&plan, &target, &["-DADD=2"], "fix");
    let second = patch(&plan, &target, &["-DADD=3", "-DOTHER=2"], "fix");
    assert_ne!(first, second);
    for _ in 0..2 {
        load(&mut target, &first, "answer+2 other+1");
        check(&target.load(&second, &[]), "fix already|loaded");
        target.expect("answer+2 other+1");
        unload(&mut target, "fix", "old");
        assert_eq!(enabled(&target, "fix"), 0);
        load(&mut target, &second, "answer+3 other+2");
        for again in [&second, &first] {
            check(&target.load(again, &[]), "fix already|loaded");
            target.expect("answer+3 other+2");
        }
        assert_eq!(enabled(&target, "fix"), 1);
        assert_at_rest(&target);
        unload(&mut target, "fix", "old");
        assert_eq!(enabled(&target, "fix"), 0);
        assert_at_rest(&target);
        check(&target.livegraft(&["unload", "fix"], &[]), "fix not|no");
        target.assert_clean();
    }
    target.finish();
}

/// Two patches of one function, taken away in either order.
#[test]
fn two_patches_of_one_function() {
    let (plan, mut target) = start("versions");
    let a = patch(&plan, &target, &["-DADD=2", "-DOTHER=2"], "a");
    let b = patch(&plan, &target, &["-DADD=3"], "b");
    let (only_a, both, only_b) = ("answer+2 other+2", "answer+3 other+2", "answer+3 other+1");
    for _ in 0..2 {
        load(&mut target, &a, only_a);
        load(&mut target, &b, both);
        assert_eq!((enabled(&target, "a"), enabled(&target, "b")), (1, 1));
        unload(&mut target, "a", only_b);
        unload(&mut target, "b", "old");
        target.assert_clean();
        load(&mut target, &a, only_a);
        load(&mut target, &b, both);
        unload(&mut target, "b", only_a);
        assert_eq!((enabled(&target, "a"), enabled(&target, "b")), (1, 0));
        unload(&mut target, "a", "old");
        target.assert_clean();
        // The older one on top of the newer one.
        load(&mut target, &b, only_b);
        load(&mut target, &a, only_a);
        unload(&mut target, "b", only_a);
        load(&mut target, &b, both);
        unload(&mut target, "a", only_b);
        unload(&mut target, "b", "old");
        target.assert_clean();
    }
    target.finish();
}
