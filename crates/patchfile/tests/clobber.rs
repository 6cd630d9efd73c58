//! What callers may know of a local function's body (gcc -fipa-ra, -fipa-stack-alignment), with real compilers.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, patch_of};
use livegraft_patchfile::{Error, Patch, TargetElf, clobber};

/// At -O2 gcc keeps b, c and d of `caller` in rsi, rdx and rcx over the call.
const LEAF: &str = r#"
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) static int leaf(int x) { return x * 3 + 1; }
__attribute__((noinline)) static int caller(int a, int b, int c, int d) { return leaf(a) + b * c - d; }
int main(int argc, char **argv) { printf("%d\n", caller(argc, atoi(argv[0]), atoi(argv[0]), argc)); return 0; }
"#;

const LOUD: &str = "#include <stdio.h>
static int lp_new(int x) { printf(\"leaf %d\\n\", x); return x * 3 + 2; }";

fn refusal(bench: &Bench, flags: &str, code: &str, old: &str, target: &[u8]) -> Result<(), String> {
    match bench.pack("gcc", flags, &patch_of(code, old), target) {
        Ok(_) => Ok(()),
        Err(error @ Error::Clobber(_)) => Err(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_caller_that_keeps_values_over_a_local_leaf() {
    let bench = Bench::new();
    let target = bench.target("gcc", "-O2", LEAF);
    let call = Patch::parse(
        &bench
            .pack(
                "gcc",
                "-O2",
                &patch_of("static int lp_new(int x) { return x; }", "leaf"),
                &target,
            )
            .unwrap(),
    );
    assert!(
        call.is_ok(),
        "a replacement that is as quiet as the original"
    );
    let error = refusal(&bench, "-O2 -fPIC", LOUD, "leaf", &target).unwrap_err();
    let (start, rest) = error.split_once("0x").unwrap();
    assert_eq!(start, "`caller` calls `leaf` at ");
    let (_, rest) = rest.split_once(' ').unwrap();
    assert!(
        rest.starts_with("and relies on it to leave rsi alone, which the replacement does not; replace the caller too, "),
        "{error}"
    );
    // The advice works.
    let advice = LOUD.replace(
        "static int lp_new",
        "__attribute__((no_caller_saved_registers, target(\"general-regs-only\"), force_align_arg_pointer)) static int lp_new",
    );
    assert_eq!(
        refusal(&bench, "-O2 -fPIC -w", &advice, "leaf", &target),
        Ok(())
    );
}

#[test]
fn a_caller_that_is_replaced_too() {
    let bench = Bench::new();
    let target = bench.target("gcc", "-O2", LEAF);
    let both = "#include <livepatch.h>
#include <stdio.h>
extern int leaf(int);
static int lp_leaf(int x) { printf(\"leaf %d\\n\", x); return x * 3 + 2; }
static int lp_caller(int a, int b, int c, int d) { return leaf(a) + b * c - d; }
static struct klp_func funcs[] = { { .old_name = \"leaf\", .new_func = lp_leaf },
\t{ .old_name = \"caller\", .new_func = lp_caller }, { } };
static struct klp_object objs[] = { { .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
";
    assert!(bench.pack("gcc", "-O2 -fPIC", both, &target).is_ok());
    // The caller of a caller that is not replaced still counts.
    let middle = LEAF
        .replace("static int caller", "static int middle(int a) { return leaf(a) + 5; }\n__attribute__((noinline)) static int caller")
        .replace("return leaf(a) + b", "return middle(a) + b");
    let target = bench.target("gcc", "-O2", &middle);
    let both = both
        .replace(
            "lp_caller(int a, int b, int c, int d) { return leaf(a) + b * c - d; }",
            "lp_middle(int a) { return leaf(a) + 6; }",
        )
        .replace("caller", "middle");
    let error = bench.pack("gcc", "-O2 -fPIC", &both, &target).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("`caller` calls `middle` at 0x"),
        "{error}"
    );
}

#[test]
fn a_caller_of_the_caller_and_a_tail_call() {
    let bench = Bench::new();
    let middle = LEAF
        .replace("static int caller", "static int middle(int a) { return leaf(a) + 5; }\n__attribute__((noinline)) static int caller")
        .replace("return leaf(a) + b", "return middle(a) + b");
    let target = bench.target("gcc", "-O2", &middle);
    let error = refusal(&bench, "-O2 -fPIC", LOUD, "leaf", &target).unwrap_err();
    assert!(error.starts_with("`caller` calls `leaf` at 0x"), "{error}");
    let tail = middle.replace("return leaf(a) + 5", "return leaf(a + 5)");
    let target = bench.target("gcc", "-O2", &tail);
    let error = refusal(&bench, "-O2 -fPIC", LOUD, "leaf", &target).unwrap_err();
    assert!(error.starts_with("`caller` calls `leaf` at 0x"), "{error}");
}

#[test]
fn a_register_that_is_handed_on() {
    let bench = Bench::new();
    let target = bench.target(
        "gcc",
        "-O2",
        "#include <stdlib.h>
static int total;
__attribute__((noinline)) static void leaf(char *p) { total += p != 0; }
__attribute__((noinline)) void drop(char *p) { leaf(p); free(p); }
int main(void) { drop(malloc(3)); return total; }",
    );
    let code = "#include <stdio.h>\nstatic void lp_new(char *p) { printf(\"%p\\n\", (void *)p); }";
    let error = refusal(&bench, "-O2 -fPIC", code, "leaf", &target).unwrap_err();
    assert!(error.starts_with("`drop` calls `leaf` at 0x"), "{error}");
}

#[test]
fn a_misaligned_call() {
    let bench = Bench::new();
    let target = bench.target(
        "gcc",
        "-O2 -fno-ipa-ra",
        "#include <stdio.h>
static volatile int total;
__attribute__((noinline)) static void leaf(int x) { total += x; }
__attribute__((noinline)) int caller(int x) { leaf(x); return total; }
__attribute__((noinline)) void middle(int x) { leaf(x); leaf(total); leaf(x); }
int main(int argc, char **argv) { (void)argv; middle(argc); printf(\"%d\\n\", caller(argc)); return 0; }",
    );
    let code = "#include <stdio.h>\nstatic void lp_new(int x) { printf(\"%d\\n\", x); }";
    let found = refusal(&bench, "-O2 -fPIC", code, "leaf", &target);
    let error = found.unwrap_err();
    let (start, rest) = error.split_once("0x").unwrap();
    assert_eq!(start, "`caller` calls `leaf` at ");
    let sentence = "with a stack that is not aligned to 16 bytes, which the replacement needs; \
                    give the replacement __attribute__((force_align_arg_pointer))";
    assert_eq!(rest.split_once(' ').unwrap().1, sentence);
    let advice = code.replace("static", "__attribute__((force_align_arg_pointer)) static");
    assert_eq!(
        refusal(&bench, "-O2 -fPIC", &advice, "leaf", &target),
        Ok(())
    );
}

#[test]
fn ordinary_calls_are_not_refused() {
    let bench = Bench::new();
    let target = bench.target("gcc", "-O2 -fno-ipa-ra -fno-ipa-stack-alignment", LEAF);
    assert_eq!(refusal(&bench, "-O2 -fPIC", LOUD, "leaf", &target), Ok(()));
    for flags in ["-O0", "-O1 -fno-ipa-ra", "-O2", "-O3", "-Os", "-O2 -mavx2"] {
        let target = bench.target(
            "gcc",
            &format!("{flags} -rdynamic"),
            "#include <stdio.h>
#include <stdarg.h>
#include <errno.h>
__attribute__((noinline)) int talk(const char *f, ...) { va_list v; va_start(v, f); int r = vprintf(f, v); va_end(v); return r; }
__attribute__((noinline)) int answer(int x) { return printf(\"old %d\\n\", x); }
__attribute__((noinline)) double half(double x, int y) { double r = answer(y) ? x / 2 : y; talk(\"%f %d\", r, y); return r + errno; }
int main(int argc, char **argv) { int n = answer(argc) == 3; talk(\"%d%s\", n, argv[0]); return half(argc, n) > 1; }",
        );
        for old in ["answer", "talk", "half"] {
            let code =
                "#include <stdio.h>\nstatic int lp_new(int x) { return printf(\"new %d\\n\", x); }";
            assert_eq!(
                refusal(&bench, "-O2 -fPIC", code, old, &target),
                Ok(()),
                "{flags} {old}"
            );
        }
    }
}

/// What gcc makes of a red-black tree's node that is moved: the upper half of a vector, through a register that has no
/// value yet.
#[test]
fn a_callee_that_takes_the_upper_half_of_a_vector() {
    let bench = Bench::new();
    let code = |half: &str| {
        format!(
            "#include <stdlib.h>
__attribute__((noinline)) static int leaf(int x) {{ return x * 3 + 1; }}
__attribute__((noinline)) static long take(void *p)
{{
	long r;
	__asm__ volatile(\"movdqu (%1),%%xmm0; {half}; movq %%xmm1,%0\" : \"=r\"(r) : \"r\"(p) : \"xmm0\");
	return r;
}}
__attribute__((noinline)) static long caller(int a, void *b) {{ return leaf(a) + take(b); }}
int main(int argc, char **argv) {{ return caller(argc, argv); }}"
        )
    };
    let new = r#"static int lp_new(int x) { __asm__ volatile("pxor %%xmm1,%%xmm1" ::: "xmm1"); return x; }"#;
    let target = bench.target("gcc", "-O2", &code("movhlps %%xmm0,%%xmm1"));
    assert_eq!(refusal(&bench, "-O2 -fPIC", new, "leaf", &target), Ok(()));
    let target = bench.target("gcc", "-O2", &code("paddq %%xmm0,%%xmm1"));
    let error = refusal(&bench, "-O2 -fPIC", new, "leaf", &target).unwrap_err();
    assert!(error.contains("leave xmm1 alone"), "{error}");
}

/// Every function of a real server, replaced by one that clobbers everything: few callers rely on anything.
#[test]
fn a_whole_server_is_quiet_and_quick() {
    let Ok(bytes) = std::fs::read("/usr/bin/redis-server") else {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "apt-get install redis-server"
        );
        eprintln!("SKIPPED: /usr/bin/redis-server is not installed (apt-get install redis-server)");
        return;
    };
    let bench = Bench::new();
    let small = bench.target(
        "gcc",
        "-O0",
        "int answer(void) { return 1; } int main(void) { return answer(); }",
    );
    let code = "#include <stdio.h>\nstatic int lp_new(int x) { return printf(\"new %d\\n\", x); }";
    let patch = Patch::parse(
        &bench
            .pack("gcc", "-O2 -fPIC", &patch_of(code, "answer"), &small)
            .unwrap(),
    )
    .unwrap();
    let path = std::path::Path::new("redis-server");
    let target = TargetElf::parse(path, &bytes, None).unwrap();
    let start = Instant::now();
    let checker = clobber::Checker::new(&target);
    let prepared = start.elapsed();
    let mut refused = Vec::new();
    let mut slowest = (Duration::ZERO, "");
    let mut count = 0;
    for symbol in target
        .symbols
        .iter()
        .filter(|s| s.kind == livegraft_patchfile::SymbolKind::Function && s.size > 0)
    {
        let mut func = patch.objects[0].funcs[0].clone();
        func.old_name = symbol.name.to_owned();
        let mut old = patch.objects[0].builds[0].fingerprints[0].clone();
        (old.svma, old.size) = (symbol.svma, symbol.size);
        let start = Instant::now();
        count += 1;
        if let Err(refusal) = checker.check(&patch, &func, &old) {
            refused.push(refusal.to_string());
        }
        slowest = slowest.max((start.elapsed(), symbol.name));
    }
    eprintln!(
        "{count} functions, {} refused, prepared in {prepared:?}, slowest {slowest:?}",
        refused.len()
    );
    for sentence in &refused {
        eprintln!("{sentence}");
    }
    assert!(
        refused.len() * 20 < count,
        "{} of {count} refused",
        refused.len()
    );
}
