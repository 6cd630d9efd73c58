//! Several objects in one patch: executable and libraries, several object files, C++, stripped targets.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Bench, compilers, patch_of, symbol};
use livegraft_patchfile::{EXECUTABLE, Info, Input, Patch, Place, Target, pack};

const LIBRARY: &str = r#"
static volatile int hidden_count = 1;
int exported_count = 2;
__attribute__((visibility("hidden"))) int quiet(int x) { return x + hidden_count; }
int lib_answer(int x) { return quiet(x) + exported_count; }
"#;

const PROGRAM: &str = r#"
int lib_answer(int);
static volatile int own = 1;
int answer(int x) { return lib_answer(x) + own; }
int main(void) { return answer(1); }
"#;

const FIX: &str = r#"
#include <livepatch.h>
extern int hidden_count, exported_count, own;
extern int quiet(int), lib_answer(int);
static int new_lib(int x) { return quiet(x) + exported_count + hidden_count; }
static int new_answer(int x) { return lib_answer(x) * own; }
static struct klp_func exe_funcs[] = { { .old_name = "answer", .new_func = new_answer }, { 0 } };
static struct klp_func lib_funcs[] = { { .old_name = "lib_answer", .new_func = new_lib }, { 0 } };
static struct klp_object objs[] = {
	{ .name = 0, .funcs = exe_funcs },
	{ .name = "libone.two.so.1", .funcs = lib_funcs },
	{ 0 }
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
"#;

#[test]
fn an_executable_and_a_library() {
    let bench = Bench::new();
    for cc in compilers() {
        let soname = "-shared -fPIC -O1 -Wl,--build-id -Wl,-soname,libone.two.so.1";
        let library = bench.compile(cc, soname, LIBRARY, "libone.so");
        let program = bench.target(
            cc,
            &format!(
                "-O1 -Wl,--unresolved-symbols=ignore-all {}",
                bench.path("libone.so").display()
            ),
            PROGRAM,
        );
        let object = bench.compile(cc, "-O2 -fPIC -c", FIX, "fix.o");
        let inputs = [Input {
            path: Path::new("fix.o"),
            bytes: &object,
        }];
        let exe = Target {
            path: Path::new("server"),
            bytes: &program,
            debug: None,
            symbols: None,
        };
        let lib = Target {
            path: Path::new("libone.so"),
            bytes: &library,
            debug: None,
            symbols: None,
        };
        let patch = Patch::parse(&pack(&inputs, &[lib, exe]).unwrap()).unwrap();
        let names: Vec<_> = patch.objects.iter().map(|o| o.name.as_deref()).collect();
        assert_eq!(names, [None, Some("libone.two.so.1")]);
        assert!(
            patch
                .objects
                .iter()
                .all(|o| o.builds[0].build_id.len() == 20)
        );
        let info = Info::new(&patch);
        let expected = [
            "executable: own",
            "libone.two.so.1: hidden_count",
            "libone.two.so.1: quiet",
        ];
        assert_eq!(info.klp_symbols, expected, "{cc}");
        // What the library exports can be interposed: it is resolved as the library itself would.
        assert_eq!(symbol(&patch, "exported_count").place, Place::Undefined);
        assert_eq!(symbol(&patch, "lib_answer").place, Place::Undefined);
        let missing = pack(&inputs, &[exe]).unwrap_err().to_string();
        assert_eq!(
            missing,
            "the patch changes `libone.two.so.1`, for which no target was given; add its file with --target"
        );
    }
}

#[test]
fn a_library_without_soname_goes_by_its_file() {
    let bench = Bench::new();
    let library = bench.compile(
        "gcc",
        "-shared -fPIC -O1 -Wl,--build-id",
        LIBRARY,
        "libplain.so",
    );
    let source = patch_of("static int lp_new(int x) { return x; }", "lib_answer")
        .replace(".name = 0", ".name = \"libplain.so\"");
    let source = format!("#include <livepatch.h>\n{source}");
    let object = bench.compile("gcc", "-O2 -fPIC -c", &source, "fix.o");
    let made = pack(
        &[Input {
            path: Path::new("fix.o"),
            bytes: &object,
        }],
        &[Target {
            path: Path::new("/usr/lib/libplain.so"),
            bytes: &library,
            debug: None,
            symbols: None,
        }],
    );
    let patch = Patch::parse(&made.unwrap()).unwrap();
    assert_eq!(patch.objects[0].name.as_deref(), Some("libplain.so"));
}

#[test]
fn several_object_files() {
    let bench = Bench::new();
    let target = bench.target(
        "gcc",
        "-O1",
        "int answer(int x) { return x; } int main(void) { return answer(1); }",
    );
    let structs = format!(
        "#include <livepatch.h>\n{}",
        patch_of("int lp_new(int);", "answer")
    );
    let one = bench.compile("gcc", "-O2 -fPIC -fcommon -c", &structs, "one.o");
    let code = "int shared; int more(int);\nint lp_new(int x) { return more(x) + shared; }";
    let two = bench.compile("gcc", "-O2 -fPIC -fcommon -c", code, "two.o");
    let code = "int shared; int more(int x) { return x + shared++; }";
    let three = bench.compile("gcc", "-O2 -fPIC -fcommon -c", code, "three.o");
    let input = |name: &'static str, bytes| Input {
        path: Path::new(name),
        bytes,
    };
    let targets = [Target {
        path: Path::new("t"),
        bytes: &target,
        debug: None,
        symbols: None,
    }];
    let all = [
        input("one.o", &one[..]),
        input("two.o", &two),
        input("three.o", &three),
    ];
    let patch = Patch::parse(&pack(&all, &targets).unwrap()).unwrap();
    assert_eq!(Info::new(&patch).undefined, [""; 0]);
    assert!(matches!(symbol(&patch, "shared").place, Place::Section(..)));
    let alone = pack(&all[..1], &targets).unwrap_err().to_string();
    assert_eq!(
        alone,
        "the replacement `lp_new` of `answer` is not defined in the patch; add the object file that defines it"
    );
    let twice = [
        input("one.o", &one[..]),
        input("two.o", &two),
        input("again.o", &two),
    ];
    let error = pack(&twice, &targets).unwrap_err().to_string();
    assert!(
        error.starts_with("`ld -r` could not join the object files ("),
        "{error}"
    );
    assert!(
        error.contains("again.o") && error.contains("lp_new"),
        "{error}"
    );
}

#[test]
fn cplusplus_with_comdat_and_exceptions() {
    let bench = Bench::new();
    let target = bench.target(
        "gcc",
        "-O1",
        "int answer(int x) { return x; } int main(void) { return answer(1); }",
    );
    for cc in compilers() {
        let cxx = if cc == "gcc" { "g++" } else { "clang++" };
        let code = "
template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }
struct Base { virtual ~Base() {} virtual int go(int x) { return twice(x); } };
struct Derived : Base { int go(int x) { if (x > 9) throw 7; return x; } };
static int lp_new(int x) { Derived d; Base *b = &d; try { return b->go(x) + twice(x); } catch (int e) { return e; } }";
        let made = bench
            .pack(cxx, "-O2 -fPIC", &patch_of(code, "answer"), &target)
            .unwrap();
        let patch = Patch::parse(&made).unwrap();
        assert!(matches!(
            symbol(&patch, "_Z5twiceIiET_S0_").place,
            Place::Section(..)
        ));
        assert!(
            patch
                .sections
                .iter()
                .any(|s| s.name.starts_with(".gcc_except_table")),
            "{cxx}"
        );
        let code = "struct Early { Early(); }; static Early early;\nstatic int lp_new(int x) { return x; }";
        let error = bench
            .pack(cxx, "-O2 -fPIC", &patch_of(code, "answer"), &target)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("section `.init_array` holds constructors"),
            "{error}"
        );
    }
}

#[test]
fn a_stripped_target_and_its_debug_file() {
    let bench = Bench::new();
    let full = bench.target(
        "gcc",
        "-O1 -g -rdynamic",
        &format!("{PROGRAM}\nint lib_answer(int x) {{ return x; }}"),
    );
    let mut strip = std::process::Command::new("strip");
    strip
        .arg("-o")
        .arg(bench.path("bare"))
        .arg(bench.path("target"));
    assert!(strip.status().unwrap().success());
    let bare = std::fs::read(bench.path("bare")).unwrap();
    let exported = patch_of(
        "extern int lib_answer(int);\nstatic int lp_new(int x) { return lib_answer(x); }",
        "answer",
    );
    let patch = Patch::parse(&bench.pack("gcc", "-O2 -fPIC", &exported, &bare).unwrap()).unwrap();
    // The executable comes first in symbol resolution: what it exports is what it means.
    let place = Place::Livepatch {
        object: None,
        name: "lib_answer".to_owned(),
        sympos: 0,
    };
    assert!(patch.symbols.iter().any(|s| s.place == place));
    let statics = patch_of(
        "extern int own;\nstatic int lp_new(int x) { return own; }",
        "answer",
    );
    let patch = Patch::parse(&bench.pack("gcc", "-O2 -fPIC", &statics, &bare).unwrap()).unwrap();
    assert_eq!(symbol(&patch, "own").place, Place::Undefined);
    let object = std::fs::read(bench.path("fix.o")).unwrap();
    let made = pack(
        &[Input {
            path: Path::new("fix.o"),
            bytes: &object,
        }],
        &[Target {
            path: Path::new("target"),
            bytes: &bare,
            debug: Some(&full),
            symbols: None,
        }],
    );
    let patch = Patch::parse(&made.unwrap()).unwrap();
    assert_eq!(Info::new(&patch).klp_symbols, ["executable: own"]);
}

/// The file is one that binutils reads without a complaint, with the kernel's names and flags in it.
#[test]
fn as_readelf_sees_it() {
    let bench = Bench::new();
    let target = bench.target(
        "gcc",
        "-O1",
        &format!("{PROGRAM}\nint lib_answer(int x) {{ return x; }}"),
    );
    let code = "extern int own;\nstatic int lp_new(int x) { return own + x; }";
    let made = bench
        .pack("gcc", "-O2 -fPIC -g", &patch_of(code, "answer"), &target)
        .unwrap();
    std::fs::write(bench.path("x.klp"), made).unwrap();
    let run = std::process::Command::new("readelf")
        .args(["-aW"])
        .arg(bench.path("x.klp"))
        .output();
    let run = run.unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(
        run.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(
        text.contains(&format!(".klp.rela.{EXECUTABLE}.text")),
        "{text}"
    );
    assert!(text.contains("AIo"), "{text}");
    assert!(text.contains("OS [0xff20] .klp.sym.exe.own,0"), "{text}");
    assert!(text.contains("livegraft"), "{text}");
}
