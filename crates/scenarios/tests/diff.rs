//! `livegraft diff`: what it extracts becomes a patch that runs.

use livegraft_scenarios::compile::out_dir;
use livegraft_scenarios::cycle::{has_compilers, twice};
use livegraft_scenarios::refusal::both_ways;
use livegraft_scenarios::{Build, Plan, Target, cli, compile_target};
use std::path::{Path, PathBuf};
use std::process::Command;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// An object of the scenario's program as `diff` wants it.
fn object(plan: &Plan, build: &Build, define: &str, name: &str) -> PathBuf {
    let object = out_dir().join(format!("{name}-{}.o", build.to_string().replace(' ', "")));
    let common = plan.dir.parent().expect("tests/").join("common");
    let shape = if build.shape == "pie" {
        "-fPIE"
    } else {
        "-fno-pie"
    };
    let status = Command::new(&build.compiler)
        .args(["-c", &build.optimisation, shape, "-pthread", define])
        .args([
            "-ffunction-sections",
            "-fdata-sections",
            "-g",
            "-I",
            text(&common),
        ])
        .arg(plan.dir.join("target.c"))
        .arg("-o")
        .arg(&object)
        .status();
    assert!(status.is_ok_and(|status| status.success()));
    object
}

#[test]
fn two_objects_become_a_patch() {
    let plan = Plan::read("diff");
    for build in plan.targets() {
        if !has_compilers([&build]) {
            continue;
        }
        let exe = compile_target(&plan, &build);
        let old = object(&plan, &build, "-DORIGINAL", "old");
        let new = object(&plan, &build, "-DFIXED", "new");
        let extract = old.with_extension("extract.o");
        let found = cli::livegraft(&["diff", text(&old), text(&new), "-o", text(&extract)]).done();
        assert_eq!(found.text("result"), "changed", "{found}");
        let functions = found.json["functions"].as_array().expect("functions");
        let status = |name: &str| {
            let called = |f: &&serde_json::Value| {
                // A clone (clamp.constprop.0) is the function.
                let found = f["name"].as_str().unwrap_or_default();
                found.split('.').next() == Some(name)
            };
            let function = functions.iter().find(called);
            function.map(|f| f["status"].as_str().unwrap_or_default())
        };
        let mut changed = vec![
            "total",
            "counted",
            "leaf",
            "dispatch",
            "factorial",
            "same_handler",
        ];
        // Only gcc counts on the registers that a callee leaves alone.
        changed.extend((build.compiler == "gcc").then_some("relying"));
        for name in changed {
            assert_eq!(status(name), Some("changed"), "{name}: {found}");
        }
        assert_eq!(status("clamp"), Some("new"), "{found}");
        for name in ["scale", "scn_check", "main"] {
            // Where a compiler has inlined it, it is not there.
            assert!(
                matches!(status(name), None | Some("unchanged")),
                "{name}: {found}"
            );
        }
        let klp = out_dir().join(format!("{}/fix.klp", build.to_string().replace(' ', "")));
        std::fs::create_dir_all(klp.parent().expect("a directory")).expect("it can be made");
        cli::livegraft(&[
            "pack",
            text(&extract),
            "--target",
            text(&exe),
            "-o",
            text(&klp),
        ])
        .done();
        twice(Target::start(&plan, &exe, &[]), &klp, None);
    }
}

#[test]
fn what_changes_no_code_is_said() {
    let plan = Plan::read("diff");
    let build = Build::new("gcc -O2 pie");
    let old = object(&plan, &build, "-DORIGINAL", "same");
    let outcome = cli::livegraft(&["diff", text(&old), text(&old), "-o", "/nonexistent/x.o"]);
    assert_eq!(outcome.expect(1).text("result"), "no-code-changed");
}

#[test]
fn refusals_write_nothing() {
    let plan = Plan::read("diff");
    let build = Build::new("gcc -O2 pie");
    let old = object(&plan, &build, "-DORIGINAL", "refused");
    let out = out_dir().join("refused.o");
    let words = ["diff", text(&old), "/dev/null", "-o", text(&out)];
    both_ways(&words, None, "patched object not ELF file give");
    let renamed = object(&plan, &build, "-Dmain=main(void);int main", "main");
    let refused = cli::livegraft(&["diff", text(&old), text(&renamed), "-o", text(&out)]);
    // The line table moves, nothing else: a declaration more is no code.
    assert_eq!(refused.expect(1).text("result"), "no-code-changed");
    assert!(!out.exists());
}
