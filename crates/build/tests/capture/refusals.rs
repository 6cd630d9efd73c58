use std::fs;

use super::case::Case;

const TWO: &[(&str, &str)] = &[
    ("a.c", "int a(int x) { return x + 1; }\n"),
    ("b.c", "int b(int x) { return x + 2; }\n"),
    ("s.S", ".globl s\ns:\tret\n"),
    ("README", "read me\n"),
];

fn case(line: &str) -> Case {
    let case = Case::new(TWO).command(line);
    case.edit(&[("a.c", "x + 1", "x + 3")]);
    case
}

#[test]
fn builds_that_fail() {
    let case = case("gcc -c a.c; gcc -c b.c -Dint=+; exit 1");
    let refused = case.refused();
    assert!(refused.starts_with("the original build failed (exit status: 1) at `gcc -c b.c -Dint=+`; all that it said is in work/"), "{refused}");
    assert!(refused.contains("error:"), "{refused}");

    let case = case.command("gcc -c a.c; gcc -c b.c");
    case.edit(&[("a.c", "x + 1", "y + 1")]);
    let refused = case.refused();
    assert!(
        refused.starts_with("the patched build failed (exit status: 1) at `gcc -c a.c`;"),
        "{refused}"
    );
    assert!(refused.contains("y"), "{refused}");
    // The original build is kept.
    case.edit(&[("a.c", "x + 1", "x + 4")]);
    assert!(case.pairs(&["a.c"]).reused);

    let case = case.command("no-such-command");
    assert!(
        case.refused()
            .starts_with("the original build failed (exit status: 127)"),
        "{}",
        case.refused()
    );
}

#[test]
fn builds_that_compile_nothing() {
    let refused = case("gcc -E a.c -o /dev/null; true").refused();
    assert!(
        refused.starts_with("the build calls no compiler of C, C++ or Rust"),
        "{refused}"
    );
    let mut nothing = case("");
    nothing.request.command.clear();
    assert_eq!(
        nothing.refused(),
        "no build command is given; it stands after --"
    );
}

#[test]
fn diffs_that_change_nothing() {
    let case = case("gcc -c a.c; gcc -c b.c");
    case.edit(&[("README", "me", "us")]);
    assert_eq!(
        case.refused(),
        "the diff changes no code: what the build compiles is the same with and without it (README)"
    );
    // A comment is no change to the compiler, whether line numbers move or not.
    for comment in ["x + 1; } // one", "/*\n*/\nx + 1; }"] {
        case.edit(&[("a.c", "x + 1; }", comment)]);
        assert_eq!(
            case.refused(),
            "the diff changes no code: what the build compiles is the same with and without it (a.c)"
        );
    }
}

#[test]
fn diffs_that_do_not_apply() {
    let case = case("touch never; exit 1");
    let diff = fs::read_to_string(&case.request.diff).expect("a file");
    fs::write(case.source("a.c"), "int a(int x) { return x + 3; }\n").expect("a file");
    assert_eq!(
        case.refused(),
        "fix.diff is applied already: a.c has its changes; the source must be what runs, without the fix"
    );
    fs::write(case.source("a.c"), "int a(int x) { return x + 2; }\n").expect("a file");
    assert_eq!(
        case.refused(),
        "fix.diff: a.c: hunk 1 at line 1 does not apply; the source must be the one that the diff was made for"
    );
    fs::write(&case.request.diff, diff.replace("a.c", "c.c")).expect("a file");
    assert!(
        case.refused()
            .starts_with("fix.diff: there is no file b/c.c in "),
        "{}",
        case.refused()
    );
    fs::write(&case.request.diff, "").expect("a file");
    assert_eq!(case.refused(), "fix.diff holds no diff");
    fs::remove_file(&case.request.diff).expect("removes");
    assert_eq!(
        case.refused(),
        "fix.diff: No such file or directory (os error 2)"
    );
}

#[test]
fn a_diff_with_other_line_ends() {
    let case = case("gcc -O2 -c a.c; gcc -O2 -c b.c");
    let diff = fs::read_to_string(&case.request.diff).expect("a file");
    fs::write(&case.request.diff, diff.replace('\n', "\r\n")).expect("a file");
    case.pairs(&["a.c"]);
    fs::write(case.source("a.c"), "int a(int x) { return x + 1; }\r\n").expect("a file");
    case.pairs(&["a.c"]);
}

#[test]
fn assembly_and_link_time_optimisation() {
    let case = case("gcc -c a.c; gcc -c s.S");
    case.edit(&[("s.S", "ret", "nop\n\tret")]);
    assert_eq!(
        case.refused(),
        "s.S is assembly and changes; only C, C++ and Rust can be compared"
    );
    let case = case.command("gcc -O2 -flto=auto -c a.c; gcc -c b.c");
    case.edit(&[("a.c", "x + 1", "x + 3")]);
    assert_eq!(
        case.refused(),
        "a.c is compiled with -flto=auto: what runs is made when all is linked; build the program without it (-fno-lto; for cargo, lto = \"off\"), or compare by hand what the link-time compiler makes (docs/patches.md)"
    );
    // What does not change is no hindrance.
    case.edit(&[("b.c", "x + 2", "x + 3")]);
    case.pairs(&["b.c"]);
}

#[test]
fn directories() {
    let mut case = case("gcc -c a.c");
    case.request.work = Some(case.source("work"));
    assert_eq!(
        case.capture()
            .map(drop)
            .map_err(|e| e.to_string().contains("lies within")),
        Err(true)
    );
    assert!(!case.source("work").exists());
    case.request.work = Some(case.work());
    case.request.build_dirs = vec![case.path("none")];
    assert_eq!(case.refused(), "none is no directory");
    case.request.build_dirs.clear();
    fs::create_dir(case.path("out")).expect("a directory");
    let case = case.command("gcc -c a.c -o ../out/a.o");
    let refused = case.refused();
    assert!(
        refused.starts_with("the build writes out/a.o outside of the source"),
        "{refused}"
    );
}

#[test]
fn two_at_once() {
    let case = case("gcc -O2 -c a.c");
    let _held = case.pairs(&["a.c"]);
    assert!(
        case.refused()
            .starts_with("another livegraft is at work on the same build in work/"),
        "{}",
        case.refused()
    );
}
