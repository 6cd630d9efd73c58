//! Patches of every compiler, level and code model, linked into programs of every kind and run there: they must see
//! exactly what the program itself sees.

mod link_support;

use std::path::Path;

use link_support::{Running, both, compile, has, programs, symbol};

const LIBRARY: &[&str] = &[
    "-g",
    "-O2",
    "-fPIC",
    "-shared",
    "-Wl,-soname,liblinktest.so.1",
    "-Wl,--build-id",
];

/// The flags of patches, and whether they are position-independent.
const MODELS: &[(&str, &[&str], bool)] = &[
    ("gcc", &["-fPIC"], true),
    ("gcc", &["-fPIC", "-fno-plt"], true),
    ("gcc", &["-fPIE"], true),
    ("gcc", &["-fno-pic"], false),
    ("gcc", &["-fPIC", "-mcmodel=large"], true),
    ("gcc", &["-fPIC", "-mtls-dialect=gnu2"], true),
    (
        "gcc",
        &[
            "-fPIC",
            "-fcf-protection=full",
            "-ffunction-sections",
            "-fdata-sections",
        ],
        true,
    ),
    ("clang", &["-fPIC"], true),
    ("clang", &["-fPIC", "-fno-plt"], true),
    ("clang", &["-fPIE"], true),
    ("clang", &["-fno-pic"], false),
    ("clang", &["-fPIC", "-mcmodel=large"], true),
];

fn build_library(dir: &Path) {
    let source = programs().join("library.c");
    let mut args = LIBRARY.to_vec();
    args.extend(["-o", "liblinktest.so.1", source.to_str().unwrap()]);
    assert!(compile(dir, "gcc", &args));
}

fn build_host(dir: &Path, name: &str, flags: &[&str]) {
    let source = programs().join("host.c");
    let mut args = vec!["-g", "-O2", "-pthread", "-Wl,--build-id", "-o", name];
    args.extend(flags);
    args.push(source.to_str().unwrap());
    if flags.contains(&"-DNO_LIBRARY") {
        args.push("-lm");
    } else {
        args.extend(["./liblinktest.so.1", "-Wl,-rpath,$ORIGIN", "-lm"]);
    }
    assert!(compile(dir, "gcc", &args), "{name}");
}

/// Links and runs patches of all models at one level in one program.
fn run_matrix(dir: &Path, running: &mut Running, level: &str, define: &str, pie: bool) -> usize {
    let own = running.ask("own");
    let own_thread = running.ask("own-thread");
    let source = programs().join("patch.c");
    let mut ran = 0;
    for (compiler, flags, pic) in MODELS {
        if !pic && pie || !has(compiler) {
            continue;
        }
        let object = dir.join("patch.o");
        let mut args = vec![
            "-c",
            level,
            define,
            "-o",
            "patch.o",
            source.to_str().unwrap(),
        ];
        args.extend(*flags);
        assert!(compile(dir, compiler, &args), "{compiler} {flags:?}");
        let what = format!("{} {compiler} {level} {flags:?}", running.path.display());
        let patches = both(&object, None, &[&running.path]);
        let span = running.objects().executable().span();
        // Near the program, and so far away that calls need veneers.
        let places = [span.end, 0x2000_0000_0000];
        for (patch, from) in patches
            .iter()
            .flat_map(|patch| places.map(|from| (patch, from)))
        {
            let linked = match running.link(patch, from) {
                Ok(linked) => linked,
                // -fPIE refers to the program's data directly.
                Err(error) if flags == &["-fPIE"] && from != span.end => {
                    assert!(
                        error.to_string().contains("compile the patch with -fPIC"),
                        "{error}"
                    );
                    continue;
                }
                Err(error) => panic!("{what}: {error}"),
            };
            running.map(&linked);
            let function = linked.symbol_avma(symbol(patch, "lp_probe")).unwrap();
            assert_eq!(running.ask(&format!("call {function:x}")), own, "{what}");
            assert_eq!(
                running.ask(&format!("thread {function:x}")),
                own_thread,
                "{what}"
            );
            running.unmap(&linked);
            ran += 1;
        }
    }
    ran
}

fn matrix(name: &str, flags: &[&str], pie: bool) {
    let dir = tempfile::tempdir().unwrap();
    build_library(dir.path());
    build_host(dir.path(), name, flags);
    let mut running = Running::start(dir.path(), name, &[]);
    let define = flags.iter().find(|f| f.starts_with("-D")).unwrap();
    let levels = ["-O0", "-O1", "-O2", "-O3"];
    let ran: usize = levels
        .iter()
        .map(|level| run_matrix(dir.path(), &mut running, level, define, pie))
        .sum();
    assert!(ran >= 32, "{ran}");
}

#[test]
fn a_pie_that_binds_lazily() {
    matrix(
        "lazy",
        &["-fPIE", "-pie", "-Wl,-z,lazy", "-DADDRESSES"],
        true,
    );
}

#[test]
fn a_pie_that_binds_at_once() {
    matrix("now", &["-fPIE", "-pie", "-Wl,-z,now", "-DADDRESSES"], true);
}

#[test]
fn a_program_at_a_fixed_address() {
    matrix(
        "fixed",
        &["-fno-pie", "-no-pie", "-Wl,-z,lazy", "-DADDRESSES"],
        false,
    );
}

#[test]
fn a_static_program() {
    matrix("static", &["-fno-pie", "-static", "-DNO_LIBRARY"], false);
}

#[test]
fn a_static_pie() {
    matrix(
        "static_pie",
        &["-fPIE", "-static-pie", "-DNO_LIBRARY"],
        true,
    );
}

#[test]
fn a_library() {
    let dir = tempfile::tempdir().unwrap();
    build_library(dir.path());
    build_host(dir.path(), "host", &["-fPIE", "-pie"]);
    let mut running = Running::start(dir.path(), "host", &[]);
    let library = dir.path().join("liblinktest.so.1");
    let objects = running.objects();
    let loaded = objects.by_name(Some("liblinktest.so.1")).unwrap();
    let own = loaded.avma(loaded.lookup("lib_probe", 0).unwrap().svma);
    let span = loaded.span();
    let own = running.ask(&format!("call {own:x}"));
    assert!(own.starts_with("lib 0x"), "{own}");
    for (compiler, flags, pic) in MODELS {
        if !pic || flags == &["-fPIE"] || !has(compiler) {
            continue;
        }
        for level in ["-O0", "-O2"] {
            let source = programs().join("patch_library.c");
            let mut args = vec!["-c", level, "-o", "patch.o", source.to_str().unwrap()];
            args.extend(*flags);
            assert!(compile(dir.path(), compiler, &args));
            let what = format!("{compiler} {level} {flags:?}");
            let patches = both(
                &dir.path().join("patch.o"),
                Some("liblinktest.so.1"),
                &[&library],
            );
            for patch in &patches {
                let linked = running
                    .link(patch, span.end)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                running.map(&linked);
                let function = linked.symbol_avma(symbol(patch, "lp_probe")).unwrap();
                assert_eq!(running.ask(&format!("call {function:x}")), own, "{what}");
                running.unmap(&linked);
            }
        }
    }
}
