//! Every way to build: each address that is found in the stripped program is that of the unstripped one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::{Built, How, compile, link, source};

const LINKERS: [&str; 3] = ["-fuse-ld=bfd", "-fuse-ld=gold", "-fuse-ld=lld"];

/// (name, compiler's flags, linker's flags)
const KINDS: [(&str, &[&str], &[&str]); 7] = [
    ("pie", &["-fPIE"], &["-pie"]),
    ("no-pie", &["-fno-pie"], &["-no-pie"]),
    ("static", &["-fno-pie"], &["-static", "-no-pie"]),
    ("static-pie", &["-fPIE"], &["-static-pie"]),
    ("no-plt", &["-fPIE", "-fno-plt"], &["-pie"]),
    ("pic, in a program", &["-fPIC"], &["-no-pie"]),
    ("shared", &["-fPIC"], &["-shared"]),
];

fn c_sources() -> Vec<(String, String)> {
    ["a.c", "b.c", "c.c"]
        .map(|name| (name.to_owned(), source(name)))
        .into()
}

fn check(what: &str, built: &Built, functions: usize) {
    let placement = built
        .place()
        .unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
    let (right, missed) = built.compare(&placement);
    println!("{what}: {right} right, {missed:?}");
    assert!(missed.is_empty(), "{what}: {missed:?}");
    assert!(right >= functions, "{what}: {right}");
}

/// All kinds of programs with all linkers, for one compiler and one set of flags.
fn all_kinds(compiler: &str, flags: &[&str], sources: &[(String, String)], at_least: usize) {
    let sources: Vec<(&str, &str)> = sources
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    for (kind, compile_flags, link_flags) in KINDS {
        let all: Vec<&str> = flags.iter().chain(compile_flags).copied().collect();
        let dir = tempfile::tempdir().unwrap();
        let how = How {
            compiler,
            compile: &all,
            link: &[],
        };
        let objects = compile(how, dir.path(), &sources);
        // gold can't link static-pie.
        let links = |linker: &&str| kind != "static-pie" || !linker.ends_with("gold");
        for linker in LINKERS.into_iter().filter(|linker| links(linker)) {
            let to = tempfile::tempdir().unwrap();
            for object in &objects {
                std::fs::copy(dir.path().join(object), to.path().join(object)).unwrap();
            }
            let mut with: Vec<&str> = link_flags.to_vec();
            with.extend([linker, "-lm"]);
            let built = link(How { link: &with, ..how }, to, &objects);
            check(
                &format!("{compiler} {flags:?} {kind} {linker}"),
                &built,
                at_least,
            );
        }
    }
}

#[test]
fn gcc_optimised() {
    all_kinds("gcc", &["-O2"], &c_sources(), 30);
}

#[test]
fn gcc_unoptimised() {
    all_kinds("gcc", &["-O0", "-fcommon"], &c_sources(), 30);
}

#[test]
fn gcc_with_sections() {
    all_kinds(
        "gcc",
        &["-O2", "-ffunction-sections", "-fdata-sections"],
        &c_sources(),
        30,
    );
}

#[test]
fn gcc_small_and_hardened() {
    all_kinds(
        "gcc",
        &["-Os", "-fcf-protection", "-fstack-protector-strong", "-g"],
        &c_sources(),
        30,
    );
}

#[test]
fn clang_optimised() {
    all_kinds("clang", &["-O2"], &c_sources(), 30);
}

#[test]
fn clang_with_sections() {
    all_kinds(
        "clang",
        &["-O1", "-ffunction-sections", "-fdata-sections"],
        &c_sources(),
        30,
    );
}

#[test]
fn clang_unoptimised() {
    all_kinds("clang", &["-O0"], &c_sources(), 30);
}

#[test]
fn initial_exec() {
    all_kinds(
        "gcc",
        &["-O2", "-ftls-model=initial-exec"],
        &c_sources(),
        30,
    );
}

#[test]
fn descriptors_of_thread_local_variables() {
    all_kinds("gcc", &["-O2", "-mtls-dialect=gnu2"], &c_sources(), 30);
}

fn cxx_sources() -> Vec<(String, String)> {
    ["x.cc", "y.cc"]
        .map(|name| (name.to_owned(), source(name)))
        .into()
}

#[test]
fn cxx() {
    all_kinds("g++", &["-O2"], &cxx_sources(), 15);
    all_kinds("g++", &["-O0"], &cxx_sources(), 15);
}

#[test]
fn cxx_of_clang() {
    all_kinds(
        "clang++",
        &["-O1", "-ffunction-sections"],
        &cxx_sources(),
        15,
    );
}

#[test]
fn every_rewritten_instruction() {
    let main = "void forms(void); void outside(void) {} int main(int argc, char **argv) \
                { if (argc > 9) forms(); return 0; }";
    let sources = [("forms.s", source("forms.s")), ("m.c", main.to_owned())];
    let sources = sources.map(|(name, text)| (name.to_owned(), text));
    // In a library `inside` goes through the GOT, so that its name is all that is checked.
    all_kinds("gcc", &["-O2"], &sources, 5);
}
