//! What patch code is made of: C++, Rust, and all that it may refer to.

use livegraft_scenarios::cycle::{has_compilers, matrix, twice};
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, inspect};

#[test]
fn cpp() {
    matrix("cpp", &[]);
}

#[test]
fn rust_in_c() {
    if has_compilers([&Build::new("rustc -O pie")]) {
        matrix("rust_in_c", &[]);
    }
}

#[test]
fn rust() {
    let plan = Plan::read("rust_in_rust");
    for build in plan.targets() {
        if has_compilers([&build]) {
            let exe = compile_target(&plan, &build);
            let job = inspect::symbol_like(&exe, &["4work", "3job"]);
            let patch = Build::new("gcc -O2 pic").flag(&format!("-DOLD_NAME=\"{job}\""));
            let klp = compile_patch(&plan, &patch, &exe);
            twice(Target::start(&plan, &exe, &[]), &klp, None);
        }
    }
}

#[test]
fn weak_and_versioned_symbols() {
    matrix("symbols", &[]);
}
