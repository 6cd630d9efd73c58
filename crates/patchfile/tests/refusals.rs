//! What `pack` refuses: each with its exact sentence.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Bench, patch_of};
use livegraft_patchfile::{Input, Patch, Place, Target, pack};

const TARGET: &str = r#"
__thread int per_thread;
int number = 3;
static int twin_a(int x);
__attribute__((noinline)) int answer(int x) { return twin_a(x) + per_thread + number; }
__attribute__((noinline)) static int twin_a(int x) { return x * 2; }
asm(".globl sizeless\n.type sizeless,@function\nsizeless: ret\n");
static int chosen(void) { return 1; }
static void *choose(void) { return chosen; }
int indirect(void) __attribute__((ifunc("choose")));
extern int other(void);
int main(void) { return answer(1) + other() + indirect(); }
"#;

const OTHER: &str = r#"
static volatile int counter = 2;
__attribute__((noinline)) static int twin(int x) { return x + counter; }
int other(void) { return twin(3); }
"#;

const NEW: &str = "static int lp_new(int x) { return x; }\n";

/// The target, with two static functions `twin` and two static variables `counter`.
fn target(bench: &Bench) -> Vec<u8> {
    let first = TARGET
        .replace("twin_a", "twin")
        .replace("__thread", "static volatile int counter = 1;\n__thread")
        .replace("return x * 2", "return x * counter");
    bench.compile("gcc", "-O1 -c", OTHER, "other.o");
    bench.target(
        "gcc",
        &format!("-O1 {}", bench.path("other.o").display()),
        &first,
    )
}

fn structs(body: &str) -> String {
    format!("{NEW}{body}\nKLP_PATCH(patch);\n")
}

fn one(func: &str, object: &str, patch: &str) -> String {
    structs(&format!(
        "static struct klp_func funcs[] = {{ {func}, {{ }} }};
static struct klp_object objs[] = {{ {{ .funcs = funcs, {object} }}, {{ }} }};
static struct klp_patch patch = {{ .objs = objs, {patch} }};"
    ))
}

const ANSWER: &str = "{ .old_name = \"answer\", .new_func = lp_new }";

#[test]
fn what_the_structs_ask_for() {
    let bench = Bench::new();
    let target = target(&bench);
    let say = |source: &str| bench.refusal(source, &target);
    let later =
        |what: &str| format!("the patch sets {what}, which is not supported yet; leave it out");
    let state = "static struct klp_state states[] = { { .id = 1, .version = 2 }, { } };\n";
    let callback = "static int pre(struct klp_object *o) { return !o; }\nstatic void post(struct klp_object *o) { (void)o; }\n";
    assert_eq!(
        say(&one(ANSWER, "", ".replace = 1")),
        later("klp_patch.replace")
    );
    assert_eq!(
        say(&one(ANSWER, "", ".immediate = 1")),
        later("klp_patch.immediate")
    );
    assert_eq!(
        say(&(state.to_owned() + &one(ANSWER, "", ".states = states"))),
        later("klp_patch.states")
    );
    assert_eq!(
        say(&(callback.to_owned() + &one(ANSWER, ".callbacks = { .pre_patch = pre }", ""))),
        later("the callback pre_patch for the executable")
    );
    assert_eq!(
        say(&(callback.to_owned() + &one(ANSWER, ".callbacks = { .post_unpatch = post }", ""))),
        later("the callback post_unpatch for the executable")
    );
    assert_eq!(
        say(&one(
            "{ .old_name = \"answer\", .new_func = lp_new, .immediate = 1 }",
            "",
            ""
        )),
        later("klp_func.immediate for `answer` in the executable")
    );
    assert_eq!(
        say(NEW),
        "the object names no patch; add KLP_PATCH(patch) from <livepatch.h>"
    );
    assert_eq!(
        say(&(one(ANSWER, "", "")
            + "static struct klp_patch second = { .objs = objs };\nKLP_PATCH(second);")),
        "there is more than one KLP_PATCH; keep one, with all objects in it"
    );
    assert_eq!(
        say(&structs("static struct klp_patch patch;")),
        "the patch has no objects; list at least one klp_object in klp_patch.objs"
    );
    assert_eq!(
        say(&structs("static struct klp_func funcs[] = { { 0 } }; static struct klp_object objs[] = { { .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };")),
        "object the executable has no funcs; list at least one klp_func or leave the object out"
            .replacen("object the", "the", 1)
    );
    assert_eq!(
        say(&structs(&format!(
            "static struct klp_func funcs[] = {{ {ANSWER}, {{ }} }};
static struct klp_object objs[] = {{ {{ .funcs = funcs }}, {{ .funcs = funcs }}, {{ }} }};
static struct klp_patch patch = {{ .objs = objs }};"
        ))),
        "the executable is listed twice; join its funcs in one klp_object"
    );
    assert_eq!(
        say(&one(ANSWER, ".name = \"libmissing.so.1\"", "")),
        "the patch changes `libmissing.so.1`, for which no target was given; add its file with --target"
    );
    assert_eq!(
        say(&one(ANSWER, ".name = \"exe\"", "")),
        "the object name `exe` stands for the executable in patch files; use NULL for the executable, or another soname"
    );
}

#[test]
fn functions_to_replace() {
    let bench = Bench::new();
    let target = target(&bench);
    let func = |fields: &str| bench.refusal(&one(&format!("{{ {fields} }}"), "", ""), &target);
    let named = |name: &str| func(&format!(".old_name = \"{name}\", .new_func = lp_new"));
    assert_eq!(
        named("answr"),
        "the executable has no symbol `answr`; correct the name, or install its debug symbols if it is stripped"
    );
    let twice = named("twin");
    assert!(
        twice.starts_with("the executable has 2 symbols `twin` (1: 0x"),
        "{twice}"
    );
    assert!(
        twice.ends_with(" bytes); set old_sympos to the number of the one that is meant"),
        "{twice}"
    );
    let range = func(".old_name = \"twin\", .new_func = lp_new, .old_sympos = 3");
    assert!(
        range.starts_with("the executable has 2 symbols `twin`, so there is no number 3 (1: 0x"),
        "{range}"
    );
    assert!(range.ends_with("; correct the sympos"), "{range}");
    assert_eq!(
        named("number"),
        "`number` in the executable is a variable, not a function; only functions can be replaced"
    );
    assert_eq!(
        named("indirect"),
        "`indirect` in the executable is an indirect function (ifunc), not a function; only functions can be replaced"
    );
    assert_eq!(
        named("sizeless"),
        "`sizeless` in the executable has size 0 in the symbol table, so its end is unknown; replace the function that contains it"
    );
    assert_eq!(
        func(".old_name = \"answer\""),
        "the klp_func for `answer` has no new_func; name its replacement"
    );
    assert_eq!(
        bench.refusal(
            &format!(
                "int elsewhere(int);\n{}",
                one("{ .old_name = \"answer\", .new_func = elsewhere }", "", "")
            ),
            &target
        ),
        "the replacement `elsewhere` of `answer` is not defined in the patch; add the object file that defines it"
    );
    assert_eq!(
        bench.refusal(
            &format!(
                "static int variable = 3;\n{}",
                one("{ .old_name = \"answer\", .new_func = &variable }", "", "")
            ),
            &target
        ),
        "the new_func of `answer` is not the start of a function; name a function, and do not strip the object file"
    );
    assert_eq!(
        bench.refusal(&one(&format!("{ANSWER}, {ANSWER}"), "", ""), &target),
        "`answer` in the executable is replaced twice; keep one klp_func for it"
    );
    // Static ones by number.
    let source = one(
        "{ .old_name = \"twin\", .new_func = lp_new, .old_sympos = 2 }",
        "",
        "",
    );
    let patch = Patch::parse(&bench.pack("gcc", "-O2", &source, &target).unwrap()).unwrap();
    assert_eq!(patch.objects[0].funcs[0].old_sympos, 2);
}

#[test]
fn references() {
    let bench = Bench::new();
    let target = target(&bench);
    let uses = |declare: &str, expression: &str| {
        patch_of(
            &format!("{declare}\nstatic int lp_new(int x) {{ return x + {expression}; }}"),
            "answer",
        )
    };
    assert_eq!(
        bench.refusal(&uses("extern int counter;", "counter"), &target),
        "the patch refers to `counter`, which is ambiguous in the target (the executable has 2 static ones); say which one with KLP_SYM(alias, \"counter\", object, sympos)"
    );
    let alias = |rest: &str| {
        uses(
            &format!("extern int counter_2;\nKLP_SYM(counter_2, {rest});"),
            "counter_2",
        )
    };
    let made = bench
        .pack("gcc", "-O2 -fPIC", &alias("\"counter\", 0, 2"), &target)
        .unwrap();
    let patch = Patch::parse(&made).unwrap();
    let place = Place::Livepatch {
        object: None,
        name: "counter".to_owned(),
        sympos: 2,
    };
    assert!(patch.symbols.iter().any(|s| s.place == place));
    assert!(!patch.symbols.iter().any(|s| s.name.contains("counter_2")));
    let range = bench.refusal(&alias("\"counter\", 0, 5"), &target);
    assert!(
        range.starts_with("the executable has 2 symbols `counter`, so there is no number 5 ("),
        "{range}"
    );
    assert_eq!(
        bench.refusal(&alias("\"counter\", \"libx.so\", 1"), &target),
        "KLP_SYM for `counter_2` names `libx.so`, which the patch does not change; name an object of the patch"
    );
    assert_eq!(
        bench.refusal(
            &uses("int mine = 1;\nKLP_SYM(mine, \"counter\", 0, 1);", "mine"),
            &target
        ),
        "KLP_SYM names `mine`, which the patch defines itself; declare it extern under a name of its own"
    );
    assert_eq!(
        bench.refusal(&uses("extern int per_thread;", "per_thread"), &target),
        "the patch uses `per_thread` of the executable as not thread-local, but it is a thread-local variable there; correct its declaration"
    );
    assert_eq!(
        bench.refusal(&uses("extern __thread int number;", "number"), &target),
        "the patch uses `number` of the executable as thread-local, but it is a variable there; correct its declaration"
    );
}

#[test]
fn what_the_compiler_made() {
    let bench = Bench::new();
    let target = target(&bench);
    let with = |code: &str| bench.refusal(&patch_of(&format!("{NEW}{code}"), "answer"), &target);
    assert_eq!(
        with("__attribute__((constructor)) void early(void) { }"),
        "section `.init_array` holds constructors or destructors (C++ static initialisers), which a patch cannot run; initialise with constants"
    );
    assert_eq!(
        with("__thread int own;"),
        "the patch defines the thread-local variable `own`, for which running threads have no room; use a shadow variable or a global"
    );
    assert_eq!(
        with(
            "static void *pick(void) { return lp_new; }\nint picked(int) __attribute__((ifunc(\"pick\")));"
        ),
        "the patch defines the indirect function (ifunc) `picked`; define an ordinary function"
    );
    assert_eq!(
        with("__attribute__((aligned(65536))) int wide[4] = { 1 };"),
        "section `.data` needs an alignment of 65536, more than a page; lower the alignment to 4096 or less"
    );
    let large = bench.pack(
        "gcc",
        "-O2 -fPIC -mcmodel=large",
        &patch_of(
            &format!("extern int number;\n{}", NEW.replace("x;", "x + number;")),
            "answer",
        ),
        &target,
    );
    assert_eq!(
        large.unwrap_err().to_string(),
        "section `.text` has a relocation of type R_X86_64_GOTPC64 (29), which livegraft cannot apply; compile with -fPIC and the default -mcmodel=small"
    );
    let lto = bench.pack("gcc", "-O2 -flto", &patch_of(NEW, "answer"), &target);
    assert_eq!(
        lto.unwrap_err().to_string(),
        "the object was compiled with -flto and holds no machine code; compile it with -fno-lto"
    );
    let junk = bench
        .pack_object(b"hello", &target)
        .unwrap_err()
        .to_string();
    assert_eq!(
        junk,
        "fix.o is not an x86-64 ELF object file (it is not an ELF file); compile it with `cc -O2 -fPIC -c`"
    );
    let linked = bench.pack_object(&target, &target).unwrap_err().to_string();
    assert_eq!(
        linked,
        "fix.o is not an x86-64 ELF object file (it is already linked); compile it with `cc -O2 -fPIC -c`"
    );
    assert_eq!(
        pack(&[], &[]).unwrap_err().to_string(),
        "no object file was given; compile the patch with `cc -O2 -fPIC -c` and pack the result"
    );
}

#[test]
fn targets() {
    let bench = Bench::new();
    let good = target(&bench);
    let pack = |target: &[u8]| bench.refusal(&one(ANSWER, "", ""), target);
    assert_eq!(
        pack(b"#!/bin/sh"),
        "target is not usable as a target: it is not an ELF file; give the executable or shared library itself"
    );
    let mut narrow = good.clone();
    narrow[4] = 1;
    assert_eq!(
        pack(&narrow),
        "target is not usable as a target: it is a 32-bit file; only 64-bit x86-64 is supported"
    );
    let mut arm = good.clone();
    arm[18] = 183;
    assert_eq!(
        pack(&arm),
        "target is not usable as a target: it is for another machine; only x86-64 is supported"
    );
    let none = bench.compile(
        "gcc",
        "-Wl,--build-id=none",
        "int answer(int x) { return x; } int main(void) { return answer(0); }",
        "none",
    );
    assert_eq!(
        pack(&none),
        "target has no build-id, by which a process is recognised; link it with -Wl,--build-id"
    );
    for length in (0..good.len()).step_by(97) {
        pack(&good[..length]);
    }
    let object = bench.compile(
        "gcc",
        "-O2 -c",
        &format!("#include <livepatch.h>\n{}", one(ANSWER, "", "")),
        "fix.o",
    );
    let path = Path::new("fix.o");
    let (a, b) = (Path::new("a"), Path::new("b"));
    let two = livegraft_patchfile::pack(
        &[Input {
            path,
            bytes: &object,
        }],
        &[
            Target {
                path: a,
                bytes: &good,
                debug: None,
                symbols: None,
            },
            Target {
                path: b,
                bytes: &good,
                debug: None,
                symbols: None,
            },
        ],
    );
    assert_eq!(
        two.unwrap_err().to_string(),
        "a and b are the same build of the executable; give each build once"
    );
}

#[test]
fn what_is_not_a_patch() {
    let bench = Bench::new();
    let target = target(&bench);
    let say = |bytes: &[u8]| Patch::parse(bytes).unwrap_err().to_string();
    assert_eq!(
        say(b"hello"),
        "the file is not an ELF file; give a patch that `livegraft pack` made"
    );
    assert_eq!(
        say(&target),
        "the file is not an ELF relocatable object; give a patch that `livegraft pack` made"
    );
    let object = bench.compile("gcc", "-O2 -c", "int x;", "x.o");
    assert_eq!(
        say(&object),
        "the file is an object file but not a livegraft patch; make one from it with `livegraft pack`"
    );
    assert_eq!(
        say(&object[..object.len() - 1]),
        "the file is cut off; copy it again or pack it again"
    );
    let mut made = bench
        .pack("gcc", "-O2", &one(ANSWER, "", ""), &target)
        .unwrap();
    made[100] ^= 1;
    assert_eq!(
        say(&made),
        "the patch is corrupted (its checksum does not match); copy it again or pack it again"
    );
}
