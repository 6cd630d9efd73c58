//! The life of a patch that goes well: old, loaded, new, unloaded, old; twice.

use crate::cli::{self, Outcome};
use crate::plan::{Build, Plan};
use crate::target::Target;
use crate::{compile, require};
use std::path::Path;

/// Loads, looks, unloads, looks; then all of it again. Ends the program.
#[track_caller]
pub fn twice(target: Target, klp: &Path, entry: Option<&str>) {
    twice_as(target, klp, entry, "new");
}

/// The same, for a program whose verdict on the new version has other words.
#[track_caller]
pub fn twice_as(mut target: Target, klp: &Path, entry: Option<&str>, new: &str) {
    target.expect("old");
    for _ in 0..2 {
        let loaded = load(&target, klp, entry);
        target.expect(new);
        check_listed(&target, &loaded);
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.assert_clean();
    }
    target.finish();
}

/// Loads with a forced entry method, or with none.
#[track_caller]
pub fn load(target: &Target, klp: &Path, entry: Option<&str>) -> Outcome {
    let more: Vec<&str> = entry
        .map(|entry| ["--entry", entry])
        .into_iter()
        .flatten()
        .collect();
    let loaded = target.load(klp, &more).result(0, "loaded");
    let functions = loaded.json["functions"]
        .as_array()
        .unwrap_or_else(|| panic!("no functions: {loaded}"));
    assert!(!functions.is_empty(), "no functions: {loaded}");
    for function in functions {
        let method = function["entry"].as_str().unwrap_or_default();
        assert!(
            entry.map_or(
                ["pun", "swap", "rendezvous"].contains(&method),
                |entry| entry == method
            ),
            "{loaded}"
        );
    }
    assert!(loaded.number("tasks") >= 1, "{loaded}");
    loaded
}

/// `list` shows the patch as enabled, with its functions and intact entries, and accounts for its memory.
#[track_caller]
pub fn check_listed(target: &Target, loaded: &Outcome) {
    let listed = cli::list(target.pid());
    assert_eq!(
        listed["patches"][0]["name"], loaded.json["patch"],
        "{listed}"
    );
    assert_eq!(listed["patches"][0]["state"], "enabled", "{listed}");
    assert!(listed["transition"].is_null(), "{listed}");
    let entries = listed["entries"]
        .as_array()
        .unwrap_or_else(|| panic!("no entries: {listed}"));
    let redirected = entries.iter().filter(|entry| entry["redirected"] == true);
    assert_eq!(
        redirected.clone().count(),
        loaded.json["functions"].as_array().map_or(0, Vec::len),
        "{listed}"
    );
    assert!(
        redirected.clone().all(|entry| entry["intact"] == true),
        "{listed}"
    );
    target.assert_accounted();
}

/// Whether the compilers of these builds are there.
pub fn has_compilers<'a>(builds: impl IntoIterator<Item = &'a Build>) -> bool {
    builds
        .into_iter()
        .all(|build| require(&build.compiler, compile::has_command(&build.compiler)))
}

/// Every build of a scenario's target, each with every build of its patch, through [`twice`].
pub fn matrix(name: &str, arguments: &[&str]) {
    let plan = Plan::read(name);
    let entries: Vec<Option<&str>> = match plan.get("entry") {
        Some(list) => list
            .split(',')
            .map(|entry| Some(entry).filter(|entry| *entry != "auto"))
            .collect(),
        None => vec![None],
    };
    for build in plan.targets() {
        for patch in plan.patches() {
            if !has_compilers([&build, &patch]) {
                continue;
            }
            let exe = compile::compile_target(&plan, &build);
            let Some(klp) = pack(&plan, &patch, &exe) else {
                continue;
            };
            for entry in &entries {
                let forced = entry.map(|entry| entry.trim_end_matches('?'));
                // A method with a question mark may be impossible for some function of this build. So may both be in a
                // program at a low address, where a displacement may lead below 0.
                let choosy =
                    entry.is_some_and(|entry| entry.ends_with('?')) || build.shape == "no-pie";
                let relocations = plan.get("may-refuse").filter(|_| patch.shape == "no-pic");
                let words = [relocations, choosy.then_some("redirect")];
                let words: Vec<&str> = words.into_iter().flatten().collect();
                crate::note(&format!(
                    "{name}: {build}, patch {patch}, entry {}",
                    entry.unwrap_or("auto")
                ));
                let target = start_loadable(&plan, &exe, arguments, &klp, forced, &words.join("|"));
                if let Some(target) = target {
                    twice(target, &klp, forced);
                }
            }
        }
    }
}

/// How many address space layouts are tried before "the place is taken" counts as a refusal.
pub const LAYOUTS: usize = 8;

/// Starts a program into which the patch can be loaded, in one layout or the next. `None`: it is refused, in words that
/// the scenario allows (empty: it allows none), and nothing has changed.
pub fn start_loadable(
    plan: &Plan,
    exe: &Path,
    arguments: &[&str],
    klp: &Path,
    entry: Option<&str>,
    may_refuse: &str,
) -> Option<Target> {
    let more: Vec<&str> = entry
        .map(|entry| ["--entry", entry])
        .into_iter()
        .flatten()
        .collect();
    for layout in 1.. {
        let mut target = Target::start(plan, exe, arguments);
        target.expect("old");
        let outcome = target.load(klp, &more);
        if outcome.code == 0 {
            target.unload(&[]).result(0, "unloaded");
            return Some(target);
        }
        let taken = outcome.json["error"]["kind"] == "not-redirectable";
        if !may_refuse.contains("redirect") && taken && layout < LAYOUTS {
            crate::refusal::check(&outcome, "redirect");
            target.assert_untouched();
            continue;
        }
        assert!(!may_refuse.is_empty(), "{outcome}");
        crate::refusal::check(&outcome, may_refuse);
        target.assert_untouched();
        crate::note(&format!("refused: {}", outcome.json["error"]["message"]));
        target.finish();
        break;
    }
    None
}

/// Packs the patch; `None` if it is refused and the scenario allows that (`//# may-refuse:`).
fn pack(plan: &Plan, patch: &Build, exe: &Path) -> Option<std::path::PathBuf> {
    let Some(words) = plan.get("may-refuse").filter(|_| patch.shape == "no-pic") else {
        return Some(compile::compile_patch(plan, patch, exe));
    };
    let objects = compile::compile_patch_objects(plan, patch);
    let (arguments, klp) = compile::pack_arguments(&objects, exe, "fix");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = cli::livegraft(&arguments);
    if outcome.code == 0 {
        return Some(klp);
    }
    crate::refusal::check(&outcome, words);
    None
}
