//! Compiles the intact files that the fuzzers start from: `seeds DIRECTORY` writes DIRECTORY/READER/NAME.
//!
//! Those in `fuzz/seeds` were made so; beside them lie inputs that fuzzers found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::Command;

use livegraft_hostile::{DEBUG, joined};
use livegraft_patchfile::{Input, Target, pack};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

const C: &str = r#"
extern int puts(const char *); extern int other(int); void abort(void);
void __assert_fail(const char *, const char *, unsigned, const char *) __attribute__((noreturn));
struct node { int a; struct node *next; };
static struct node first = { 4, 0 };
static int calls;
static const char *const words[] = { "a", "b", "c" };
static __thread int seen;
static inline int helper(int x) { static int n; n += x; return n ^ CHANGED; }
int f(int x) { if (x < 1) __assert_fail("x", "f.c", __LINE__, "f"); calls++; seen++; puts(words[x]);
  return helper(x) + first.a; }
int g(int x) { switch (x) { case 0: return other(1); case 1: puts("one"); return 2; case 2: return f(9);
  case 3: return other(7) ^ 1; case 4: return other(1) - 3; case 5: return other(9) & 3; } return 0; }
double h(double x) { if (__builtin_expect(x > 7, 0)) { other(1); abort(); } return x * 2.5; }
"#;

const CPP: &str = r#"
struct Bad { int x; virtual ~Bad(); };
int risk(int);
template <class T> __attribute__((noinline)) T twice(T x) { return x * CHANGED; }
int f(int x) { static int n = risk(2); try { return risk(x) + n; } catch (Bad &b) { return twice(b.x); } }
"#;

const MAIN: &str = r#"
int shared; extern const char *names[]; extern __thread int seen; int far(int);
static int twice(int x) { shared += x; return x * 2 + shared; }
__attribute__((noinline)) int near_by(int x) { seen += x; return twice(x) ^ far(x) + names[x & 1][0]; }
void _start(void) { for (int i = 0; ; i++) shared += near_by(i) + twice(i); }
"#;

const FAR: &str = r#"
const char *names[] = { "first", "second" }; __thread int seen = 3; static int count;
int near_by(int);
int far(int x) { switch (x) { case 0: return 7; case 1: return near_by(3); case 2: count++; return 2;
  case 3: return count; case 4: return near_by(x * 9); } return x * 11 + count; }
"#;

const PATCH: &str = r#"
#include <livepatch.h>
extern int puts(const char *);
extern int number;
static const char *words[] = { "a", "b" };
static int calls;
static int lp_answer(int x) { calls++; puts(words[x & 1]); return x + number; }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = (void *)lp_answer }, { 0 } };
static struct klp_object objs[] = { { .funcs = funcs }, { 0 } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
"#;

const TARGET: &str =
    "int number; __attribute__((noinline)) int answer(int x) { return x + number; }
int main(void) { return answer(1); } void _start(void) { main(); for (;;); }";

const INLINE: &str = "extern int puts(const char *);
static inline __attribute__((always_inline)) int inner(int x) { return puts(\"a\") + x; }
static inline __attribute__((always_inline)) int outer(int x) { return inner(x) * 3; }
int f(int x) { return outer(x) + 1; }
int g(int x) { return x ? f(x - 1) + outer(x) : 7; }
";

/// Runs a compiler in `dir`; the result is the file `out` there.
fn run(dir: &Path, tool: &str, flags: &str, files: &[&str], out: &str) -> Vec<u8> {
    let status = Command::new(tool)
        .current_dir(dir)
        .args(flags.split_whitespace())
        .args(files)
        .args(["-o", out])
        .status();
    assert!(status.unwrap().success(), "{tool} {flags}");
    std::fs::read(dir.join(out)).unwrap()
}

fn compile(tool: &str, flags: &str, name: &str, source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), source).unwrap();
    run(dir.path(), tool, &format!("{flags} -c"), &[name], "x.o")
}

fn main() {
    let to = PathBuf::from(std::env::args_os().nth(1).expect("a directory"));
    let write = |reader: &str, name: &str, parts: &[Vec<u8>]| {
        let dir = to.join(reader);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), joined(parts)).unwrap();
    };

    let sections = "-ffunction-sections -fdata-sections";
    let pairs = [
        ("gcc", "gcc", "-O2", "f.c", C),
        ("gcc-g", "gcc", "-O1 -g", "f.c", C),
        ("gcc-g4", "gcc", "-O2 -gdwarf-4", "f.c", C),
        ("gcc-pic", "gcc", "-O2 -fPIC", "f.c", C),
        ("clang", "clang", "-O2", "f.c", C),
        ("clang-g", "clang", "-O2 -g", "f.c", C),
        ("gxx", "g++", "-O2", "f.cc", CPP),
        ("gxx-g", "g++", "-O2 -g", "f.cc", CPP),
    ];
    for (name, tool, flags, file, source) in pairs {
        let parts = ["3", "5"].map(|value| {
            let flags = format!("{flags} {sections} -DCHANGED={value}");
            compile(tool, &flags, file, source)
        });
        write("compare", name, &parts);
    }

    let links = [
        ("shared", "-O2 -fPIC", "-shared"),
        ("pie", "-O2 -fPIE", "-pie -Wl,--dynamic-linker=/x"),
        ("no-pie", "-O1 -fno-pie", "-no-pie -static"),
        (
            "sections",
            "-O2 -fPIC -ffunction-sections",
            "-shared -fuse-ld=lld",
        ),
    ];
    for (name, flags, link) in links {
        let dir = tempfile::tempdir().unwrap();
        let mut objects = Vec::new();
        for (file, source) in [("main", MAIN), ("far", FAR)] {
            let source_file = format!("{file}.c");
            std::fs::write(dir.path().join(&source_file), source).unwrap();
            let flags = format!("{flags} -c -fno-builtin");
            let out = format!("{file}.o");
            objects.push(run(dir.path(), "gcc", &flags, &[&source_file], &out));
        }
        let link = format!("-nostdlib -Wl,--build-id -Wl,-z,noseparate-code {link}");
        let linked = run(dir.path(), "gcc", &link, &["main.o", "far.o"], "linked");
        let stripped = run(dir.path(), "strip", "", &["linked"], "stripped");
        write("identical", name, &[stripped.clone(), linked]);
        objects.insert(0, stripped);
        write("place", name, &objects);
    }

    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/../../include");
    let object = compile("gcc", &format!("-O2 -fPIC -I{include}"), "p.c", PATCH);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.c"), TARGET).unwrap();
    let link = "-O2 -nostdlib -static -Wl,--build-id -Wl,-z,noseparate-code";
    let target = run(dir.path(), "gcc", link, &["t.c"], "t");
    let path = Path::new("x");
    let input = Input {
        path,
        bytes: &object,
    };
    let given = Target {
        path,
        bytes: &target,
        debug: None,
        symbols: None,
    };
    write("patch", "packed", &[pack(&[input], &[given]).unwrap()]);
    write("pack", "gcc", &[object, target]);

    for (name, tool, flags) in [
        ("gcc-4", "gcc", "-gdwarf-4"),
        ("gcc-5", "gcc", "-gdwarf-5"),
        ("clang-4", "clang", "-gdwarf-4"),
        ("clang-5", "clang", "-gdwarf-5 -gdwarf-aranges"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f.c"), INLINE).unwrap();
        let flags = format!("-shared -fPIC -nostdlib -O2 {flags}");
        let built = run(dir.path(), tool, &flags, &["f.c"], "f.so");
        let file = object::File::parse(&*built).unwrap();
        let data = |name: &str| {
            let section = file.section_by_name(name)?;
            Some(section.uncompressed_data().ok()?.into_owned())
        };
        let mut parts = DEBUG.map(|name| data(name).unwrap_or_default()).to_vec();
        let f = file.symbols().find(|s| s.name() == Ok("f")).unwrap();
        let svmas = (0..8).flat_map(|n| (f.address() + n * 4).to_le_bytes());
        parts.push(svmas.collect());
        write("symbolize", name, &parts);
    }
}
