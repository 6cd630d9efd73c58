//! Strings that are reached from outside of them: as the linker takes them, so does a patch.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::process::Command;

use livegraft_build::compare::{Options, compare, extract};

/// gcc counts back from the end of the one string and from before the beginning of the other.
const SOURCE: &str = r#"
#include <string.h>
#define MAGIC "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
__attribute__((noipa)) int rest(const char *in, unsigned long left)
{
    return memcmp(&MAGIC[sizeof(MAGIC) - 1 - left], in, left) + CHANGED;
}
__attribute__((noipa)) int letter(unsigned long n) { return "abcdef"[n - 10] + CHANGED; }
"#;
const MAIN: &str = r#"
int rest(const char *, unsigned long), letter(unsigned long);
int main(void) { return rest("SM\r\n\r\n", 6) == 1 && letter(12) == 'c' + 1 ? 0 : 1; }
"#;

fn run(dir: &Path, program: &str, args: &[&str]) {
    let status = Command::new(program).current_dir(dir).args(args).status();
    assert!(status.unwrap().success(), "{program} {args:?}");
}

fn object(dir: &Path, shape: &str, changed: &str) -> Vec<u8> {
    let (changed, split) = (format!("-DCHANGED={changed}"), "-ffunction-sections");
    let args = [
        "-O2",
        shape,
        split,
        &changed,
        "-c",
        "-o",
        "x.o",
        "strings.c",
    ];
    run(dir, "gcc", &args);
    std::fs::read(dir.join("x.o")).unwrap()
}

#[test]
fn a_string_is_reached_from_outside() {
    for (shape, linked) in [("-fPIC", "-pie"), ("-fno-pie", "-no-pie")] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        std::fs::write(dir.join("strings.c"), SOURCE).unwrap();
        std::fs::write(dir.join("main.c"), MAIN).unwrap();
        let [old, new] = ["0", "1"].map(|changed| object(dir, shape, changed));
        let comparison = compare(&old, &new, &Options::default()).unwrap();
        assert_eq!(comparison.refusals, []);
        // What is extracted refers to nothing but the C library, so it can be linked, once its functions have names.
        std::fs::write(dir.join("extract.o"), extract(&comparison).unwrap()).unwrap();
        let names = ["--globalize-symbol=rest", "--globalize-symbol=letter"];
        run(dir, "objcopy", &[&names[..], &["extract.o"]].concat());
        run(
            dir,
            "gcc",
            &[linked, shape, "-o", "x", "main.c", "extract.o"],
        );
        let status = Command::new(dir.join("x")).status().unwrap();
        assert!(status.success(), "{shape}: {status}");
    }
}
