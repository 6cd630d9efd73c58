//! Crates.

use std::fs;

use livegraft_build::capture::{Capture, Language};

use super::case::{Case, functions, has};

const LIB: &str = "#[inline(never)] pub fn two<T: Into<u64>>(x: T) -> u64 { x.into() * 2 }
#[inline(never)] pub fn one(x: u64) -> u64 { x + 1 }\n";
const MAIN: &str = "extern crate parts;
fn main() { println!(\"{}\", parts::two(std::process::id()) + parts::one(3)); }\n";
const OTHER: &str = "fn main() { println!(\"other\"); }\n";
const MAKEFILE: &str = "all: prog other
libparts.rlib: parts.rs
\trustc -O --crate-type rlib parts.rs
prog: main.rs libparts.rlib
\trustc -O -L. main.rs -o prog
other: other.rs
\trustc -O other.rs
";

fn case(command: &str) -> Case {
    let files = [
        ("parts.rs", LIB),
        ("main.rs", MAIN),
        ("other.rs", OTHER),
        ("Makefile", MAKEFILE),
    ];
    Case::new(&files).command(command)
}

fn sources(capture: &Capture) -> Vec<String> {
    let pairs = capture.pairs.iter();
    let mut sources: Vec<String> = pairs
        .map(|pair| pair.source.display().to_string())
        .collect();
    sources.sort();
    sources
}

#[test]
fn make_calls_rustc() {
    if !has(&["rustc"]) {
        return;
    }
    let case = case("make");
    case.edit(&[("parts.rs", "x + 1", "x + 7")]);
    let capture = case.capture().unwrap_or_else(|error| panic!("{error}"));
    // Who uses the crate is compiled again, and the same.
    assert_eq!(sources(&capture), ["parts.rs"]);
    let pair = &capture.pairs[0];
    assert_eq!(pair.language, Language::Rust);
    assert_eq!(pair.built, pair.original);
    assert!(pair.described.is_some());
    let objects = [&pair.original, &pair.patched]
        .map(|object| functions(object.as_ref().expect("an object")));
    assert!(
        objects[0].keys().any(|name| name.contains("3one")),
        "{:?}",
        objects[0].keys()
    );
    assert_ne!(objects[0], objects[1]);
    // The program is one of both crates; the other program of neither.
    let of = |name: &str| {
        capture
            .programs
            .iter()
            .find(|p| p.path.ends_with(name))
            .expect("a program")
    };
    let built = pair.built.as_ref().expect("an object");
    assert!(of("prog").objects.contains(built) && !of("other").objects.contains(built));
    assert!(of("prog").collected && !of("prog").stripped);
    drop(capture);

    // A generic function is compiled in the crate that uses it.
    case.edit(&[("parts.rs", "* 2", "* 3")]);
    let capture = case.capture().unwrap_or_else(|error| panic!("{error}"));
    assert!(capture.reused);
    assert_eq!(sources(&capture), ["main.rs"]);
}

#[test]
fn what_the_build_does_not_make_again() {
    if !has(&["rustc"]) {
        return;
    }
    let case = case("make -s prog");
    let makefile = MAKEFILE.replace("libparts.rlib: parts.rs", "libparts.rlib:");
    fs::write(case.source("Makefile"), &makefile).expect("a file");
    case.edit(&[("parts.rs", "x + 1", "x + 7")]);
    assert!(
        case.refused()
            .starts_with("the build did not compile the crate parts.rs again")
    );
    // It was there before the build.
    fs::write(case.source("Makefile"), MAKEFILE).expect("a file");
    super::case::shell(&case.source("."), "rustc -O --crate-type rlib parts.rs");
    assert!(case.refused().starts_with("libparts.rlib was built before"));
}
