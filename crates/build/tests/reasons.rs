//! Why functions go into a patch, where they are declared and in which lines they differ, of a whole build: the places are
//! those of the patched source, although the comparison is compiled with the line numbers of the original.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use livegraft_build::capture::{Request, capture};
use livegraft_build::compare::Options;
use livegraft_build::patch;
use livegraft_patchfile::Info;
use livegraft_patchfile::changes::{Change, Side};

/// What a build of tests/reasons says.
fn changes(source: &Path) -> Vec<Change> {
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reasons");
    let tree = source.join("source");
    std::fs::create_dir(&tree).unwrap();
    for name in ["lib.c", "lib.h", "main.c", "more.c", "Makefile"] {
        std::fs::copy(scenario.join(name), tree.join(name)).unwrap();
    }
    let request = Request {
        source: tree,
        diff: scenario.join("fix.diff"),
        command: vec!["make".into()],
        work: Some(source.join("work")),
        ..Request::default()
    };
    let captured = capture(&request, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    let built = patch(&captured, &[], &Options::default()).unwrap();
    let mut info = Info::read(&built.bytes).unwrap();
    assert_eq!(info.sources.len(), 1, "{info}");
    info.sources.remove(0).functions
}

#[test]
fn places_are_those_of_the_patched_source() {
    let dir = tempfile::tempdir().unwrap();
    let changes = changes(dir.path());
    let patched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reasons");
    let text = std::fs::read_to_string(patched.join("lib.c")).unwrap();
    let of = |name: &str| changes.iter().find(|c| c.name == name).unwrap();
    let why = |name: &str| of(name).why.join("; ");
    // In the original; the diff adds six lines above.
    let line = |start: &str| text.lines().position(|l| l.starts_with(start)).unwrap() + 1;
    for (name, start, more) in [
        ("parse", "int parse", 6),
        ("leafy", "int leafy", 6),
        ("thrice", "int thrice", 15),
    ] {
        let declared = format!("lib.c:{}", line(start) + more);
        assert_eq!(of(name).declared, Some(declared), "{name}");
    }
    assert_eq!(of("bonus").declared.as_deref(), Some("lib.c:20"));
    assert_eq!(why("parse"), "its source is changed");
    assert_eq!(why("leaf"), "its source is changed");
    assert_eq!(
        why("scaled"),
        "`clamp`, which is inlined into it, is changed in the source"
    );
    assert_eq!(
        why("checked"),
        "it uses the macro `TWICE_LIMIT`, which is changed"
    );
    assert_eq!(
        why("across"),
        "`span`, which its variables are or lead to, has another layout"
    );
    assert_eq!(
        why("thrice"),
        "`small`, which was inlined into it and is not any more, is changed in the source"
    );
    assert_eq!(why("factor"), "its code differs");
    let hunks = of("parse").diff.as_ref().unwrap();
    let changed = line("\t\tsum += *s;") + 6;
    let at = hunks[0].at.as_deref().unwrap();
    assert!(at.starts_with("lib.c:"), "{at}");
    let places: Vec<usize> = hunks
        .iter()
        .filter_map(|hunk| hunk.at.as_ref()?.strip_prefix("lib.c:")?.parse().ok())
        .collect();
    assert!(places[0].abs_diff(changed) <= 2, "{places:?} {changed}");
    let added = hunks.iter().flat_map(|hunk| &hunk.lines);
    let mut added = added.filter(|line| line.side == Side::New);
    assert!(added.any(|line| line.text.contains("bonus")));
}
