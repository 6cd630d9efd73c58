//! What stays mapped, and that it does not grow.

use livegraft_scenarios::cycle::check_listed;
use livegraft_scenarios::inspect::listed_mappings;
use livegraft_scenarios::{Build, Plan, Target, cli, compile_patch, compile_target, note};

#[test]
fn fifty_cycles_take_the_memory_of_one() {
    let plan = Plan::read("many");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &["20", "1"]);
    target.expect("old");
    let mut first = None;
    for cycle in 0..50 {
        let loaded = target.load(&klp, &[]).result(0, "loaded");
        check_listed(&target, &loaded);
        target.unload(&[]).result(0, "unloaded");
        target.assert_clean();
        let listed = cli::list(target.pid());
        let now = (
            target.baseline().added_bytes(),
            listed_mappings(&listed).len(),
        );
        let sum: u64 = listed_mappings(&listed)
            .iter()
            .map(|mapping| mapping.end - mapping.start)
            .sum();
        assert_eq!(listed["memory"]["bytes"], sum, "{listed}");
        let first = *first.get_or_insert(now);
        assert_eq!(now, first, "cycle {cycle}; {listed}");
    }
    note(&format!("mapped after unload: {first:?} (bytes, mappings)"));
    target.expect("old");
    target.finish();
}

/// Nothing that livegraft maps is ever writable and executable.
#[test]
fn nothing_is_writable_and_executable() {
    let plan = Plan::read("many");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let target = Target::start(&plan, &exe, &["3", "1"]);
    target.load(&klp, &[]).result(0, "loaded");
    let both: Vec<_> = livegraft_scenarios::inspect::maps(target.pid())
        .into_iter()
        .filter(|mapping| mapping.permissions.contains('w') && mapping.permissions.contains('x'))
        .collect();
    assert!(both.is_empty(), "{both:x?}");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

/// What the issue allows a small patch: 64 KiB, two pages per function, and the patch.
#[test]
fn small_patch_takes_little_memory() {
    let plan = Plan::read("many");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let target = Target::start(&plan, &exe, &["3", "1"]);
    target.load(&klp, &[]).result(0, "loaded");
    let listed = cli::list(target.pid());
    let bytes = listed["memory"]["bytes"].as_u64().expect("a number");
    let patch = std::fs::metadata(&klp).expect("it is there").len();
    assert!(
        bytes <= 64 * 1024 + 2 * 4096 + patch.next_multiple_of(4096),
        "{bytes} bytes: {listed}"
    );
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}
