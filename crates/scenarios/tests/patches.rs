//! What patch code is made of: C++, Rust, and all that it may refer to.

use livegraft_scenarios::compile::has_command;
use livegraft_scenarios::cycle::{has_compilers, matrix, twice};
use livegraft_scenarios::refusal::both_ways;
use livegraft_scenarios::{
    Build, Plan, Target, cli, compile_patch, compile_target, inspect, require,
};
use std::path::Path;
use std::process::Command;

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

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// What a tool prints.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("it can be run");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The patch's functions have names in gdb, and its stacks go on to the program's; perf counts for them.
#[test]
fn debugger_and_profiler() {
    let plan = Plan::read("burner");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    let pid = target.pid_text();
    let file = klp.with_extension("elf");
    let symbols = |tool: &'static str, file: &Path| {
        let mut words = vec!["symbols".to_owned(), text(&klp).to_owned()];
        words.extend(["--pid", &pid, "--for", tool, "-o", text(file)].map(str::to_owned));
        words
    };
    let words = symbols("gdb", &file);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    both_ways(&words, None, "fix not loaded");
    assert!(!file.exists());
    target.load(&klp, &[]).result(0, "loaded");
    target.expect("new");
    cli::livegraft(&words).done();
    if require("gdb", has_command("gdb")) {
        let add = format!("add-symbol-file {}", text(&file));
        // It may be on its way from one call to the next.
        let named = (0..20).any(|_| {
            let stacks = output(
                Command::new("gdb")
                    .args(["-nx", "-batch", "-p", &pid, "-ex", &add])
                    .args(["-ex", "thread apply all bt"]),
            );
            let at = |name: &str| stacks.find(&format!(" {name} ("));
            let found = ["lp_burn", "lp_answer", "caller", "run"].map(at);
            found.iter().all(Option::is_some) && found.is_sorted()
        });
        assert!(named, "gdb has not seen the functions");
    }
    let map = format!("/tmp/perf-{pid}.map");
    let words = symbols("perf", Path::new(&map));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    cli::livegraft(&words).done();
    if require("perf", has_command("perf")) {
        let data = klp.with_extension("data");
        let record = ["record", "-e", "cpu-clock", "-o", text(&data), "-p", &pid];
        output(
            Command::new("perf")
                .args(record)
                .args(["--", "sleep", "0.3"]),
        );
        let report = ["report", "-i", text(&data), "--stdio"];
        let report = output(Command::new("perf").args(report));
        assert!(report.contains("lp_burn"), "{report}");
    }
    std::fs::remove_file(&map).expect("it was written");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}
