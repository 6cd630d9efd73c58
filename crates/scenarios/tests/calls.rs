//! Interrupted system calls: nobody sees EINTR, no timeout ends early.

use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, note};
use std::time::Duration;

#[test]
fn no_call_is_interrupted() {
    let plan = Plan::read("eintr");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    let skipped = target.ask("skipped");
    livegraft_scenarios::require(&skipped, skipped.is_empty());
    for cycle in 0..40 {
        target.load(&klp, &[]).result(0, "loaded");
        // Now and then all calls come round, in between they are hit again while they start anew.
        if cycle % 10 == 9 {
            target.expect("new");
        } else {
            std::thread::sleep(Duration::from_millis(cycle * 3 % 20));
        }
        target.unload(&[]).result(0, "unloaded");
        if cycle % 10 == 4 {
            target.expect("old");
        }
    }
    target.expect("old");
    note(&format!(
        "the slowest call came round {} times",
        target.ask("rounds")
    ));
    target.finish();
}
