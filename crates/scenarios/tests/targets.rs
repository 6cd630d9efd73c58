//! Programs of every kind: how they are linked, with which C library.

use livegraft_scenarios::compile::{compile_patch_objects, pack_arguments};
use livegraft_scenarios::cycle::{has_compilers, matrix, twice};
use livegraft_scenarios::refusal::both_ways;
use livegraft_scenarios::{
    Build, Plan, Target, compile_patch, compile_patch_as, compile_target, require,
};
use std::path::Path;

#[test]
fn static_programs() {
    matrix("static", &[]);
}

/// musl's dynamic loader is its C library.
#[test]
fn musl_programs() {
    let plan = Plan::read("static");
    for build in ["musl-gcc -O2 pie", "musl-gcc -O0 no-pie"].map(Build::new) {
        if has_compilers([&build]) {
            let exe = compile_target(&plan, &build);
            let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
            twice(Target::start(&plan, &exe, &[]), &klp, None);
        }
    }
}

/// What is certain of a thread of the GNU C library is not of one of musl's: nobody is made to register anything. A patch
/// that brings no call frame information has nothing to register, and stacks end at it.
#[test]
fn musl_programs_with_an_unwinder() {
    let plan = Plan::read("musl_unwinder");
    for build in plan.targets() {
        if !has_compilers([&build]) {
            continue;
        }
        let exe = compile_target(&plan, &build);
        let patch = Build::new("gcc -O2 pic");
        let klp = compile_patch(&plan, &patch, &exe);
        let mut target = Target::start(&plan, &exe, &[]);
        target.expect("old");
        let pid = target.pid_text();
        let load = ["load", klp.to_str().expect("UTF-8"), "--pid", &pid];
        both_ways(&load, None, "musl_unwinder GNU call|frame|information");
        target.expect("old");
        target.assert_untouched();
        let bare = patch.flag("-fno-asynchronous-unwind-tables");
        let klp = compile_patch(&plan, &bare, &exe);
        target.load(&klp, &[]).result(0, "loaded");
        target.expect("main() is not seen");
        target.unload(&[]).result(0, "unloaded");
        target.expect("old");
        target.finish();
    }
}

/// In a static program nothing is imported: coroutines are found by what is linked in.
#[test]
fn static_program_with_coroutines() {
    let plan = Plan::read("refuse/makecontext");
    let exe = compile_target(&plan, &Build::new("gcc -O2 static"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    let load = [
        "load",
        klp.to_str().expect("UTF-8"),
        "--pid",
        &target.pid_text(),
    ];
    both_ways(&load, None, "makecontext|swapcontext");
    target.expect("old");
    target.assert_untouched();
    target.end();
}

/// Two cycles under the circumstances of that name (see the program), by each entry method.
fn under(circumstances: &str) {
    let plan = Plan::read("circumstances");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    for entry in ["pun", "swap", "rendezvous"] {
        let target = Target::start(&plan, &exe, &[circumstances]);
        twice(target, &klp, Some(entry));
    }
}

macro_rules! circumstances {
    ($($name:ident)*) => { $( #[test] fn $name() { under(stringify!($name)); } )* };
}
/// Bytes of sealed text can be written, but its pages can't be replaced.
#[test]
fn sealed() {
    let plan = Plan::read("circumstances");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    for entry in ["swap", "rendezvous"] {
        let mut target = Target::start(&plan, &exe, &["sealed"]);
        let text = klp.to_str().expect("UTF-8");
        let load = ["load", text, "--pid", &target.pid_text(), "--entry", entry];
        both_ways(&load, None, "sealed");
        target.expect("old");
        target.assert_untouched();
        target.end();
    }
    twice(Target::start(&plan, &exe, &["sealed"]), &klp, None);
}

circumstances! {
    mdwe privileges mappings limit zombie deep altstack shared uring chroot namespaces lock ffi
}

/// An upgrade has replaced the program's file, or removed it, while it runs.
#[test]
fn program_whose_file_is_another_by_now() {
    let plan = Plan::read("circumstances");
    let built = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &built);
    let dir = livegraft_scenarios::compile::out_dir().join("upgraded");
    for (entry, replace) in [("pun", false), ("swap", true), ("rendezvous", false)] {
        std::fs::create_dir_all(&dir).expect("it can be made");
        let exe = dir.join("circumstances");
        std::fs::copy(&built, &exe).expect("it can be copied");
        let target = Target::start(&plan, &exe, &["upgraded"]);
        std::fs::remove_file(&exe).expect("it is there");
        if replace {
            std::fs::copy("/bin/true", &exe).expect("it can be copied");
        } else {
            std::fs::remove_dir_all(&dir).expect("it is there");
        }
        twice(target, &klp, Some(entry));
    }
}

/// A library as Debian ships it, with its symbols in a package of their own.
#[test]
fn static_function_of_a_stripped_library() {
    let libc = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
    let installed = Path::new("/usr/share/doc/libc6-dbg").is_dir() && libc.is_file();
    if !require("Debian's libc6 and libc6-dbg", installed) {
        return;
    }
    let plan = Plan::read("libc_static");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let called = |name: &str| Build::new("gcc -O2 pic").flag(&format!("-DNAME=\"{name}\""));
    let klp = compile_patch_as(&plan, &called("__drand48_iterate"), libc, "fix");
    twice(Target::start(&plan, &exe, &[]), &klp, None);
    let objects = compile_patch_objects(&plan, &called("__drand48_iterates"));
    let (pack, klp) = pack_arguments(&objects, libc, "none");
    let pack: Vec<&str> = pack.iter().map(String::as_str).collect();
    both_ways(&pack, None, "__drand48_iterates debug libc.so.6");
    assert!(!klp.exists());
}

#[test]
fn cxx_program_and_library() {
    matrix("cxx", &[]);
}

/// The one function whose mangled name contains this.
fn mangled(exe: &Path, part: &str) -> String {
    use object::{Object, ObjectSymbol};
    let bytes = std::fs::read(exe).expect("it was just built");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let names = file.symbols().filter_map(|symbol| symbol.name().ok());
    let names: Vec<&str> = names.filter(|name| name.contains(part)).collect();
    let [name] = names.as_slice() else {
        panic!("{part}: {names:?}")
    };
    (*name).to_owned()
}

#[test]
fn rust_program() {
    let plan = Plan::read("rust");
    for build in ["rustc -O pie", "rustc -g pie"].map(Build::new) {
        if !has_compilers([&build]) {
            return;
        }
        let exe = compile_target(&plan, &build);
        let names = [
            ("GRIND", "Grind$GT$5grind17h"),
            ("ENCODE", "4mill6encode17h"),
            ("DECODE", "4mill6decode17h"),
        ];
        let patch = names
            .iter()
            .fold(Build::new("gcc -O2 pic"), |patch, (flag, part)| {
                patch.flag(&format!("-D{flag}=\"{}\"", mangled(&exe, part)))
            });
        let klp = compile_patch_as(&plan, &patch, &exe, "fix");
        for entry in [None, Some("rendezvous")] {
            twice(Target::start(&plan, &exe, &[]), &klp, entry);
        }
    }
    // What a demangler makes of a name is not its name.
    let exe = compile_target(&plan, &Build::new("rustc -O pie"));
    let patch = Build::new("gcc -O2 pic").flag("-DGRIND=\"target::mill::grind\"");
    let patch = patch
        .flag("-DENCODE=\"encode\"")
        .flag("-DDECODE=\"decode\"");
    let objects = compile_patch_objects(&plan, &patch);
    let (pack, _) = pack_arguments(&objects, &exe, "none");
    let pack: Vec<&str> = pack.iter().map(String::as_str).collect();
    both_ways(&pack, None, "target::mill::grind symbol");
}
