//! Random edits of a small program are found exactly; what is no edit is no change.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod common;

use std::collections::BTreeSet;

use common::{compile, compile_in};
use livegraft_build::compare::{Options, Status, compare};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Functions that know nothing of each other's bodies, each with lines that can be edited without touching another one.
const FUNCTIONS: usize = 14;

/// The line of a function that an edit makes another one of.
fn line(kind: usize, function: usize, edited: bool) -> String {
    let e = usize::from(edited);
    let n = function * 3 + 5 + e;
    match kind {
        0 => format!("\tx += {n};"),
        1 => format!(
            "\tprintf(\"{} %d\\n\", x);",
            if edited { "NEW" } else { "old" }
        ),
        2 => format!(
            "\tif (x {} {function}) x = other_{}(x);",
            if edited { ">" } else { "<" },
            function % 3
        ),
        3 => format!("\tstate_{} += x;", (function + e) % 5),
        4 => format!("\tassert(x != {n});"),
        5 => format!("\tx ^= table[(x + {e}) & 7];"),
        6 => format!(
            "\tswitch (x) {{ case 0: x = other_0(1); break; case 1: x = other_1(4); break; case 2: x = other_2(x); break; \
             case 3: x = other_1({}); break; case 4: x = 7 * other_2(2); break; case 5: x = other_0(9) - 1; }}",
            40 + e
        ),
        7 => format!("\td = d * {}.25 + x;", 2 + e),
        8 => format!("\tx = function_{}(x);", (function + 1 + e) % FUNCTIONS),
        _ => format!(
            "\tstatic int own; own += x {} 3; x += own;",
            if edited { "-" } else { "+" }
        ),
    }
}

fn program(kinds: &[Vec<usize>], edit: Option<(usize, usize)>, comments: &[usize]) -> String {
    let mut text = String::from(
        "#include <assert.h>\n#include <stdio.h>\nint other_0(int), other_1(int), other_2(int);\n\
         static int state_0, state_1, state_2, state_3, state_4;\nextern int table[8];\n",
    );
    for function in 0..FUNCTIONS {
        text += &format!("int function_{function}(int x);\n");
    }
    for (function, lines) in kinds.iter().enumerate() {
        if comments.contains(&function) {
            text += "/* a comment */\n";
        }
        text += &format!(
            "__attribute__((noipa)) int function_{function}(int x)\n{{\n\tdouble d = x;\n"
        );
        for (number, &kind) in lines.iter().enumerate() {
            // Each once only: the last kind defines a variable.
            text += &format!(
                "\t{{\n{}\n\t}}\n",
                line(kind, function, edit == Some((function, number)))
            );
        }
        text += "\treturn x + (int)d;\n}\n";
    }
    text
}

fn changed(original: &[u8], patched: &[u8]) -> BTreeSet<String> {
    let comparison = compare(original, patched, &Options::default()).unwrap();
    assert_eq!(comparison.refusals, []);
    let functions = comparison
        .functions
        .iter()
        .filter(|f| f.status != Status::Unchanged);
    functions
        .map(|f| f.name.split(".cold").next().unwrap().to_owned())
        .collect()
}

#[test]
fn are_found_exactly() {
    let lines = prop::collection::vec(0usize..10, 2..5);
    let kinds = prop::collection::vec(lines, FUNCTIONS);
    let flags = prop::sample::select(vec![
        // Without it what follows a string is taken for a part of it.
        "-O2",
        "-O0 -fmerge-constants",
        "-O2 -g",
        "-Os",
        "-O2 -fPIC",
        "-O3",
    ]);
    let comments = prop::collection::vec(0..FUNCTIONS, 0..3);
    let strategy = (
        kinds,
        0..FUNCTIONS,
        any::<prop::sample::Index>(),
        flags,
        comments,
    );
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&strategy, |(kinds, function, number, flags, comments)| {
            let number = number.index(kinds[function].len());
            let original = compile("gcc", flags, "c", &program(&kinds, None, &[]));
            let commented = compile("gcc", flags, "c", &program(&kinds, None, &comments));
            // Small code loads one line before it branches, and shares the call of two assertions: what else may see the
            // number on the other way can't be told.
            let shares = |lines: &[usize]| lines.iter().filter(|&&kind| kind == 4).count() > 1;
            let doubtful = |name: &String| {
                let mut functions = (0..FUNCTIONS).filter(|&f| flags == "-Os" && shares(&kinds[f]));
                functions.any(|f| f != function && *name == format!("function_{f}"))
            };
            let changed = |original: &[u8], patched: &[u8]| {
                let mut changed = changed(original, patched);
                changed.retain(|name| !doubtful(name));
                changed
            };
            let comment = changed(&original, &commented);
            let itself = format!("function_{function}");
            prop_assert!(
                comment.is_empty()
                    || comment == BTreeSet::from([itself])
                        && flags == "-Os"
                        && shares(&kinds[function])
            );
            let edited = compile(
                "gcc",
                flags,
                "c",
                &program(&kinds, Some((function, number)), &comments),
            );
            let expected = BTreeSet::from([format!("function_{function}")]);
            prop_assert_eq!(changed(&original, &edited), expected);
            Ok(())
        })
        .unwrap();
}

#[test]
fn another_directory_is_no_edit() {
    let kinds: Vec<Vec<usize>> = (0..FUNCTIONS)
        .map(|f| vec![f % 10, (f * 7 + 1) % 10])
        .collect();
    let source = program(&kinds, None, &[]);
    for (tool, flags) in [
        ("gcc", "-O2 -g"),
        ("gcc", "-O0 -g3"),
        ("clang", "-O2 -g"),
        ("gcc", "-O2"),
    ] {
        let source = if tool == "clang" {
            source.replace("noipa", "noinline")
        } else {
            source.clone()
        };
        let objects = [(); 2].map(|()| {
            let dir = tempfile::tempdir().unwrap();
            compile_in(dir.path(), tool, flags, "c", &source)
        });
        if flags.contains("-g") {
            assert_ne!(
                objects[0], objects[1],
                "the directory is in the debug information"
            );
        }
        assert_eq!(changed(&objects[0], &objects[1]), BTreeSet::new());
        assert_eq!(changed(&objects[0], &objects[0]), BTreeSet::new());
    }
}
