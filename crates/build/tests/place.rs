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

#[test]
fn other_ways_to_link() {
    let pie: &[&str] = &["-O2", "-fPIE", "-fcf-protection"];
    let pic: &[&str] = &["-O2", "-fPIC", "-ffunction-sections"];
    let ways: [(&[&str], &[&str]); 11] = [
        (pie, &["-pie", "-Wl,-z,pack-relative-relocs"]),
        (pie, &["-pie", "-fuse-ld=lld", "-Wl,--pack-dyn-relocs=relr"]),
        (pie, &["-pie", "-Wl,-z,ibtplt", "-Wl,-z,now"]),
        (
            pie,
            &["-pie", "-Wl,-z,noseparate-code", "-Wl,--hash-style=sysv"],
        ),
        (pie, &["-pie", "-rdynamic", "-Wl,--no-relax"]),
        (
            pie,
            &[
                "-pie",
                "-fuse-ld=lld",
                "-Wl,--no-relax",
                "-Wl,-z,retpolineplt",
            ],
        ),
        (pic, &["-shared", "-Wl,-Bsymbolic"]),
        (
            pic,
            &[
                "-shared",
                "-fuse-ld=lld",
                "-Wl,-Bsymbolic-functions",
                "-Wl,-z,now",
            ],
        ),
        (
            pic,
            &["-pie", "-Wl,--gc-sections", "-Wl,--sort-section=alignment"],
        ),
        (pic, &["-pie", "-fuse-ld=gold", "-Wl,--icf=safe", "-Wl,-O2"]),
        (&["-O2", "-fno-pie", "-mcmodel=large"], &["-no-pie"]),
    ];
    for (compile, with) in ways {
        let sources = c_sources();
        let sources: Vec<(&str, &str)> = sources
            .iter()
            .map(|(n, t)| (n.as_str(), t.as_str()))
            .collect();
        let with = [with, &["-lm"]].concat();
        let built = support::build(
            How {
                compiler: "gcc",
                compile,
                link: &with,
            },
            &sources,
        );
        check(&format!("{compile:?} {with:?}"), &built, 30);
    }
}

/// Two objects that were joined into one before the program was linked.
#[test]
fn a_joined_object() {
    let dir = tempfile::tempdir().unwrap();
    let how = How {
        compiler: "gcc",
        compile: &["-O2"],
        link: &["-lm"],
    };
    let sources = c_sources();
    let sources: Vec<(&str, &str)> = sources
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    compile(how, dir.path(), &sources);
    let joined = std::process::Command::new("ld")
        .current_dir(dir.path())
        .args(["-r", "a.o", "b.o", "-o", "joined.o"])
        .status();
    assert!(joined.unwrap().success());
    let objects = ["joined.o".to_owned(), "c.o".to_owned()];
    let built = link(how, dir, &objects);
    let placement = built.place().unwrap();
    let symbols = built.symbols();
    let mut right = 0;
    for (name, located) in placement.located(0) {
        let name = std::str::from_utf8(name).unwrap();
        assert!(symbols.named(name).any(|s| s.located == located), "{name}");
        right += 1;
    }
    assert!(right > 25, "{right}");
    // `helper` is in it twice.
    let refusal = placement.find(0, "helper").unwrap_err();
    assert!(refusal.to_string().contains("2 times"), "{refusal}");
}

/// Only what is loaded is used: a file without a section table has it too.
#[test]
fn no_section_table() {
    let sources = c_sources();
    let sources: Vec<(&str, &str)> = sources
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    let how = How {
        compiler: "gcc",
        compile: &["-O2"],
        link: &["-lm"],
    };
    let mut built = support::build(how, &sources);
    built.stripped[0x28..0x30].fill(0);
    built.stripped[0x3c..0x40].fill(0);
    check("no section table", &built, 30);
}

/// A crate, whose functions the linker throws away where nobody uses them.
#[test]
fn rust() {
    let dir = tempfile::tempdir().unwrap();
    let text = "
        use std::collections::BTreeMap;
        use std::fmt::Display;
        static TABLE: [u32; 5] = [3, 1, 4, 1, 5];
        #[inline(never)] fn shown<T: Display>(x: T, map: &mut BTreeMap<String, usize>) -> usize {
            let text = format!(\"<{x}>\");
            let length = text.len();
            map.insert(text, length);
            map.values().sum()
        }
        #[inline(never)] fn pick(x: usize) -> u32 { TABLE[x % 5] * x as u32 }
        fn main() {
            let mut map = BTreeMap::new();
            let count = std::env::args().count();
            let sum = shown(count, &mut map) + shown(\"two\", &mut map) + shown(1.5f64, &mut map);
            println!(\"{sum} {}\", pick(sum));
        }";
    std::fs::write(dir.path().join("r.rs"), text).unwrap();
    support::run(std::process::Command::new("rustc").current_dir(&dir).args([
        "--edition=2024",
        "-O",
        "-C",
        "codegen-units=1",
        "--emit=obj=r.o,link=linked",
        "r.rs",
        "-C",
        "link-arg=-Wl,--build-id",
    ]));
    support::run(
        std::process::Command::new("strip")
            .current_dir(&dir)
            .args(["linked", "-o", "stripped"]),
    );
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let built = Built {
        objects: vec![("r.o".to_owned(), read("r.o"))],
        linked: read("linked"),
        stripped: read("stripped"),
        dir,
    };
    let placement = built.place().unwrap();
    let symbols = built.symbols();
    let (mut right, mut ours) = (0, 0);
    for (name, located) in placement.located(0) {
        let name = std::str::from_utf8(name).unwrap();
        let known: Vec<_> = symbols.named(name).map(|s| s.located.svma).collect();
        assert!(
            known.is_empty() || known.contains(&located.svma),
            "{name} {located:x?} {known:x?}"
        );
        right += usize::from(!known.is_empty());
        ours += usize::from(name.contains("shown") || name.contains("pick"));
    }
    println!("{right} right, {:?}", placement.share());
    assert!(right > 12 && ours >= 4, "{right} {ours}");
}

/// Copies of inline functions that differ, since their objects were compiled in different ways: one is kept.
#[test]
fn copies_that_differ() {
    for linker in LINKERS {
        let dir = tempfile::tempdir().unwrap();
        let sources = cxx_sources();
        let mut objects = Vec::new();
        for ((name, text), flags) in sources.iter().zip([["-O2"], ["-O0"]]) {
            let how = How {
                compiler: "g++",
                compile: &flags,
                link: &[],
            };
            objects.extend(compile(how, dir.path(), &[(name, text)]));
        }
        let how = How {
            compiler: "g++",
            compile: &[],
            link: &[linker],
        };
        let built = link(how, dir, &objects);
        check(linker, &built, 30);
        let placement = built.place().unwrap();
        assert!(placement.share().discarded > 0);
        let inline = "_Z8describeRK5Shape";
        let [first, second] = [0, 1].map(|object| placement.find(object, inline).unwrap());
        assert_eq!(first, second);
        assert_eq!(first, built.symbols().find(None, inline).unwrap());
    }
}
