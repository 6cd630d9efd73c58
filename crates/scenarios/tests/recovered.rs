//! Programs without symbols, patched by what their builds prove.

use livegraft_build::place::{self, Object};
use livegraft_patchfile::{Input, Patch, Target as Packed, TargetSymbol, pack};
use livegraft_scenarios::compile::{compile_patch_objects, strip};
use livegraft_scenarios::cycle::twice;
use livegraft_scenarios::plan::root;
use livegraft_scenarios::{Build, Plan, Target, compile_target};
use std::path::{Path, PathBuf};
use std::process::Command;

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Packs the scenario's patch for stripped programs with these symbols; it is written next to the first one.
fn packed(plan: &Plan, targets: &[(&Path, &[TargetSymbol<'_>])]) -> PathBuf {
    let objects = compile_patch_objects(plan, &Build::new("gcc -O2 pic"));
    let bytes = read(&objects[0]);
    let files: Vec<Vec<u8>> = targets.iter().map(|(path, _)| read(path)).collect();
    let packed: Vec<Packed<'_>> = targets
        .iter()
        .zip(&files)
        .map(|((path, symbols), bytes)| Packed {
            path,
            bytes,
            debug: None,
            symbols: Some(symbols),
        })
        .collect();
    let input = Input {
        path: &objects[0],
        bytes: &bytes,
    };
    let klp = pack(&[input], &packed).unwrap_or_else(|e| panic!("{e}"));
    let patch = Patch::parse(&klp).expect("it was just packed");
    for build in &patch.objects[0].builds {
        let names: Vec<&str> = build.symbols.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["added", "counted", "mine", "triple"]);
    }
    let path = objects[0].with_file_name("fix.klp");
    std::fs::write(&path, klp).expect("a directory of our own");
    path
}

/// One patch for two builds of a program; a third build of it is another program.
#[test]
fn two_builds_that_are_linked_again() {
    let plan = Plan::read("recovered");
    let builds = ["gcc -O2 pie", "gcc -O1 no-pie", "gcc -O0 pie"].map(Build::new);
    let [whole, other, third] = builds.map(|build| compile_target(&plan, &build));
    let [stripped, other_stripped, third_stripped] = [&whole, &other, &third].map(|exe| strip(exe));
    let files = [&stripped, &whole, &other_stripped, &other].map(|path| read(path));
    let [a, a_linked, b, b_linked] = &files;
    let prove = |target, linked| match place::identical(target, linked) {
        Ok(symbols) => symbols.recovered(),
        Err(difference) => panic!("{difference}"),
    };
    let (a, b) = (prove(a, a_linked), prove(b, b_linked));
    let klp = packed(&plan, &[(&stripped, &a), (&other_stripped, &b)]);
    for exe in [&stripped, &other_stripped] {
        twice(Target::start(&plan, exe, &[]), &klp, None);
    }
    let mut target = Target::start(&plan, &third_stripped, &[]);
    let refused = target.load(&klp, &[]).expect(1);
    assert_eq!(refused.json["error"]["kind"], "wrong-build-id", "{refused}");
    target.expect("old");
    target.assert_untouched();
    target.end();
}

/// The same from the objects of the build alone.
#[test]
fn objects_of_the_build() {
    let plan = Plan::read("recovered");
    let dir = tempfile::tempdir().expect("a directory");
    let run = |command: &mut Command| {
        assert!(command.current_dir(&dir).status().expect("gcc").success());
    };
    run(Command::new("gcc")
        .args(["-O2", "-fPIE", "-pthread", "-c", "-o", "target.o", "-I"])
        .arg(root().join("tests/common"))
        .arg(plan.dir.join("target.c")));
    run(Command::new("gcc").args(["-pie", "-s", "-Wl,--build-id", "-o", "stripped", "target.o"]));
    let exe = dir.path().join("stripped");
    let (target, object) = (read(&exe), read(&dir.path().join("target.o")));
    let objects = [Object {
        name: "target.o",
        bytes: &object,
    }];
    let placement = place::objects(&target, &objects).unwrap_or_else(|e| panic!("{e}"));
    let klp = packed(&plan, &[(&exe, &placement.recovered())]);
    twice(Target::start(&plan, &exe, &[]), &klp, None);
}
