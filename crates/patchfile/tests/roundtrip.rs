//! pack -> parse -> info with the real compilers; and every damage to a patch file is an error.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bench, compilers, patch_of, symbol};
use livegraft_patchfile::{Error, Info, Patch};

const TARGET: &str = r#"
#include <stdio.h>
static volatile int counter = 7;
int shared_total;
__thread int per_thread = 3;
__attribute__((noinline)) static int helper(int x) { return x + counter; }
__attribute__((noinline)) int answer(int x) { shared_total++; return helper(x) + per_thread; }
int main(int argc, char **argv) { printf("%d\n", answer(argc)); return 0; }
"#;

const FIX: &str = r#"
#include <stdio.h>
#include <string.h>
extern volatile int counter; extern int shared_total;
extern __thread int per_thread;
extern int helper(int);
static int calls;
int table_common[10];
static const char *words[] = { "one", "two", "three" };
static __attribute__((noinline)) int inner(int x) { return helper(x) + strlen(words[x & 1]); }
static int lp_new(int x)
{
	calls++;
	table_common[x & 7]++;
	fprintf(stderr, "new string %d %s\n", calls, words[x & 1]);
	return inner(x) + counter + shared_total + per_thread;
}
"#;

#[test]
fn every_compiler_and_level() {
    let bench = Bench::new();
    for cc in compilers() {
        let target = bench.target(cc, "-O2", TARGET);
        for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
            for model in [
                "-fPIC",
                "-fno-pic",
                "-fPIE",
                "-fPIC -ffunction-sections -fdata-sections",
                "-fPIC -g -fcommon",
            ] {
                let flags = format!("{level} {model}");
                let made = bench.pack(cc, &flags, &patch_of(FIX, "answer"), &target);
                let made = made.unwrap_or_else(|e| panic!("{cc} {flags}: {e}"));
                let patch = Patch::parse(&made).unwrap_or_else(|e| panic!("{cc} {flags}: {e}"));
                let info = Info::new(&patch);
                let func = &info.objects[0].funcs[0];
                assert_eq!(
                    (func.old_name.as_str(), func.new_name.as_str()),
                    ("answer", "lp_new")
                );
                assert!(func.new_size > 0 && func.size > 0);
                assert_eq!(
                    info.klp_symbols,
                    [
                        "executable: counter",
                        "executable: helper",
                        "executable: per_thread",
                        "executable: shared_total"
                    ],
                    "{cc} {flags}"
                );
                assert!(
                    info.undefined.iter().any(|n| n == "stderr"),
                    "{cc} {flags}: {info:?}"
                );
                assert!(symbol(&patch, ".klp.sym.exe.per_thread,0").tls);
                assert!(info.to_string().contains("answer at 0x"));
                assert!(
                    serde_json::to_string(&info)
                        .unwrap()
                        .contains("\"old_name\":\"answer\"")
                );
                assert!(patch.sections.iter().any(|s| s.name == ".eh_frame"));
            }
        }
    }
}

#[test]
fn every_language_standard() {
    let bench = Bench::new();
    let target = bench.target(
        "gcc",
        "-O2",
        "int answer(int x) { return x + 1; } int main(void) { return answer(0); }",
    );
    let source = "static int lp_new(int x) { return x + 2; }
static struct klp_func funcs[2] = { { \"answer\", (void *)lp_new, 0, 0 }, { 0, 0, 0, 0 } };
static struct klp_object objs[2] = { { 0, funcs, { 0, 0, 0, 0 } }, { 0, 0, { 0, 0, 0, 0 } } };
static struct klp_patch patch = { objs, 0, 0, 0 };
extern int some_alias(int);
KLP_PATCH(patch);
KLP_SYM(some_alias, \"main\", NULL, 1);
";
    for cc in compilers() {
        let cxx = if cc == "gcc" { "g++" } else { "clang++" };
        let c = ["c89", "gnu89", "c99", "c11", "c17", "c2x"].map(|s| (cc, s));
        let cpp = ["c++98", "c++11", "c++17", "c++20"].map(|s| (cxx, s));
        for (cc, standard) in c.into_iter().chain(cpp) {
            let flags = format!("-O2 -fPIC -Wall -Wextra -Werror -std={standard}");
            let made = bench.pack(cc, &flags, source, &target);
            let made = made.unwrap_or_else(|e| panic!("{cc} {flags}: {e}"));
            assert_eq!(
                Patch::parse(&made).unwrap().objects[0].funcs[0].old_name,
                "answer"
            );
        }
    }
}

#[test]
fn each_changed_byte_and_each_truncation_is_an_error() {
    let bench = Bench::new();
    let target = bench.target("gcc", "-O2", TARGET);
    let made = bench
        .pack("gcc", "-O2 -fPIC", &patch_of(FIX, "answer"), &target)
        .unwrap();
    let good = Patch::parse(&made).unwrap();
    assert_eq!(good.unsupported(), None);
    for length in 0..made.len() {
        let error = Patch::parse(&made[..length]).unwrap_err();
        let expected = if length < 4 {
            Error::NotElf
        } else {
            Error::Truncated
        };
        assert_eq!(error, expected, "{length} of {} bytes", made.len());
    }
    let mut corrupted = 0;
    for at in 0..made.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = made.clone();
            damaged[at] ^= flip;
            match Patch::parse(&damaged) {
                Ok(_) => panic!("byte {at} changed by {flip:#x} and the patch is accepted"),
                Err(Error::Corrupted) => corrupted += 1,
                Err(_) => {}
            }
        }
    }
    assert!(
        corrupted > made.len() * 3 * 9 / 10,
        "{corrupted} of {}",
        made.len() * 3
    );
    let mut longer = made.clone();
    longer.push(0);
    assert_eq!(Patch::parse(&longer).unwrap_err(), Error::Corrupted);
}
