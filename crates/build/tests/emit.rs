//! Extracts become patch files: local symbols are found in the target, each the one that is meant.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::path::Path;
use std::process::Command;

use livegraft_build::compare::{Options, compare, extract};
use livegraft_build::emit::{Error, emit_by_name, is_extract};
use livegraft_patchfile::{Input, Patch, Place, Target, TargetElf};

const A: &str =
    "static int count; static __attribute__((noipa)) int helper(int x) { return x + 1; }
int shared(int);
__attribute__((noipa)) int first(int x) { count += x; return helper(x) + shared(x) + CHANGED; }
int get_a(void) { return count + helper(2); }
int main(void) { return first(3); }
";
const B: &str =
    "static int count; static __attribute__((noipa)) int helper(int x) { return x + 2; }
#if CHANGED > 5
static int fresh; int brand_new(int x) { return fresh += x; }
#endif
__attribute__((noipa)) int shared(int x) { count -= x; return helper(x) + CHANGED; }
int get_b(void) { return count + helper(2); }
";

fn extract_of(name: &str, source: &str) -> Vec<u8> {
    let objects = [3, 9].map(|value| {
        let dir = tempfile::tempdir().unwrap();
        let file = format!("{name}.c");
        std::fs::write(dir.path().join(&file), source).unwrap();
        let status = Command::new("gcc")
            .current_dir(dir.path())
            .args([
                "-O2",
                "-fPIC",
                "-ffunction-sections",
                "-fdata-sections",
                "-c",
                "-o",
                "x.o",
            ])
            .arg(format!("-DCHANGED={value}"))
            .arg(&file)
            .status();
        assert!(status.unwrap().success());
        std::fs::read(dir.path().join("x.o")).unwrap()
    });
    let comparison = compare(&objects[0], &objects[1], &Options::default()).unwrap();
    assert_eq!(comparison.refusals, []);
    extract(&comparison).unwrap()
}

/// Both sources, linked in this order.
fn program(flags: &[&str], order: [&str; 2]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.c"), A).unwrap();
    std::fs::write(dir.path().join("b.c"), B).unwrap();
    let status = Command::new("gcc")
        .current_dir(dir.path())
        .args(["-O2", "-DCHANGED=3", "-Wl,--build-id", "-o", "program"])
        .args(flags)
        .args(order)
        .status();
    assert!(status.unwrap().success());
    std::fs::read(dir.path().join("program")).unwrap()
}

fn make(extracts: &[&[u8]], target: &[u8]) -> Result<Vec<u8>, Error> {
    let path = Path::new("x.o");
    let inputs: Vec<Input<'_>> = extracts.iter().map(|bytes| Input { path, bytes }).collect();
    let target = Target {
        path: Path::new("program"),
        bytes: target,
        debug: None,
        symbols: None,
    };
    emit_by_name(&inputs, &[target])
}

/// What of the target a patch refers to, with its sympos.
fn references(patch: &Patch) -> Vec<String> {
    let mut names: Vec<String> = patch
        .symbols
        .iter()
        .filter_map(|s| match &s.place {
            Place::Livepatch { name, sympos, .. } => Some(format!("{name},{sympos}")),
            _ => None,
        })
        .collect();
    names.sort();
    names
}

#[test]
fn two_locals_of_one_name_are_told_apart() {
    let (a, b) = (extract_of("a", A), extract_of("b", B));
    assert!(is_extract(&a) && is_extract(&b) && !is_extract(&program(&[], ["a.c", "b.c"])));
    for order in [["a.c", "b.c"], ["b.c", "a.c"]] {
        let target = program(&[], order);
        let found = TargetElf::parse(Path::new("program"), &target, None).unwrap();
        let number = |file| {
            1 + found
                .occurrences("count")
                .iter()
                .position(|s| s.file == Some(file))
                .unwrap()
        };
        let (first, second) = (number("a.c"), number("b.c"));
        assert_eq!(first + second, 3);
        let patch = Patch::parse(&make(&[&a], &target).unwrap()).unwrap();
        let expected = [
            format!("count,{first}"),
            format!("helper,{first}"),
            "shared,0".to_owned(),
        ];
        assert_eq!(references(&patch), expected);
        let patch = Patch::parse(&make(&[&b], &target).unwrap()).unwrap();
        assert_eq!(
            references(&patch),
            [format!("count,{second}"), format!("helper,{second}")]
        );
        // What is new is defined, with its own data.
        assert!(
            patch
                .symbols
                .iter()
                .any(|s| s.name == "brand_new" && matches!(s.place, Place::Section(..)))
        );
    }
}

#[test]
fn several_objects_become_one_patch() {
    let (a, b) = (extract_of("a", A), extract_of("b", B));
    let patch = Patch::parse(&make(&[&a, &b], &program(&[], ["a.c", "b.c"])).unwrap()).unwrap();
    let funcs: Vec<&str> = patch.objects[0]
        .funcs
        .iter()
        .map(|f| f.old_name.as_str())
        .collect();
    assert_eq!(funcs, ["first", "shared"]);
    // One that the other replaces is referred to by its entry.
    assert_eq!(
        references(&patch),
        ["count,1", "count,2", "helper,1", "helper,2", "shared,0"]
    );
}

#[test]
fn a_library() {
    let b = extract_of("b", B);
    let target = program(
        &["-shared", "-fPIC", "-Wl,-soname,libx.so.1"],
        ["a.c", "b.c"],
    );
    let patch = Patch::parse(&make(&[&b], &target).unwrap()).unwrap();
    assert_eq!(patch.objects[0].name.as_deref(), Some("libx.so.1"));
}

#[test]
fn refusals() {
    let a = extract_of("a", A);
    let stripped = program(&["-s", "-rdynamic"], ["a.c", "b.c"]);
    let Err(Error::Missing { symbol, file, .. }) = make(&[&a], &stripped) else {
        panic!()
    };
    assert_eq!((symbol.as_str(), file.as_str()), ("count", "a.c"));
    let several = emit_by_name(&[], &[]);
    assert_eq!(several, Err(Error::Targets { count: 0 }));
    let no_object = make(&[b"nothing"], &stripped);
    assert!(matches!(no_object, Err(Error::Pack(_))), "{no_object:?}");
    let hostile = |at: usize, value: u8| {
        let mut damaged = a.clone();
        damaged[at] ^= value;
        damaged
    };
    let target = program(&[], ["a.c", "b.c"]);
    for at in (0..a.len()).step_by(3) {
        // An error or a patch that can be read, never a panic.
        if let Ok(patch) = make(&[&hostile(at, 0xff)], &target) {
            Patch::parse(&patch).unwrap();
        }
    }
}
