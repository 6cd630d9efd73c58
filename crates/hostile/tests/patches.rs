//! Files that lie: whatever is changed in a patch whose checksum is then made right again, in an object file, or in a
//! target, reading it never panics, and what is accepted is valid in every index and range.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::path::Path;
use std::process::Command;

use livegraft_hostile::assert_valid;
use livegraft_patchfile::{Error, Info, Input, Patch, Target, TargetElf, TargetSymbol, pack, seal};

const SOURCE: &str = r#"
#include <livepatch.h>
#include <stdio.h>
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
int main(void) { return answer(1); }";

fn compile(flags: &[&str], source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.c"), source).unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
    let mut gcc = Command::new("gcc");
    gcc.current_dir(dir.path())
        .args(flags)
        .arg("-I")
        .arg(include)
        .args(["-o", "x", "x.c"]);
    assert!(gcc.status().unwrap().success());
    std::fs::read(dir.path().join("x")).unwrap()
}

fn pack_one(object: &[u8], target: &[u8]) -> Result<Vec<u8>, Error> {
    pack_with(object, target, None)
}

fn pack_with(
    object: &[u8],
    target: &[u8],
    symbols: Option<&[TargetSymbol<'_>]>,
) -> Result<Vec<u8>, Error> {
    let path = Path::new("x");
    pack(
        &[Input {
            path,
            bytes: object,
        }],
        &[Target {
            path,
            bytes: target,
            debug: None,
            symbols,
        }],
    )
}

const FLIPS: [u8; 6] = [0x01, 0x02, 0x10, 0x40, 0x80, 0xff];

#[test]
fn patches_with_a_right_checksum() {
    let target = compile(&[], TARGET);
    let symbols = TargetElf::parse(Path::new("x"), &target, None)
        .unwrap()
        .symbols;
    let made = pack_with(
        &compile(&["-O2", "-fPIC", "-c"], SOURCE),
        &compile(&["-s"], TARGET),
        Some(&symbols),
    )
    .unwrap();
    let patch = Patch::parse(&made).unwrap();
    assert_valid(&patch);
    assert_eq!(patch.objects[0].builds[0].symbols[0].name, "number");
    let mut accepted = 0;
    for at in 0..made.len() {
        for flip in FLIPS {
            let mut damaged = made.clone();
            damaged[at] ^= flip;
            if seal(&mut damaged).is_ok()
                && let Ok(patch) = Patch::parse(&damaged)
            {
                accepted += 1;
                assert_valid(&patch);
                let _ = (patch.unsupported(), Info::new(&patch).to_string());
            }
        }
    }
    assert!(accepted > 0, "strings and code can be changed");
    // Numbers in the section and symbol tables at their limits.
    for at in (0..made.len().saturating_sub(8)).step_by(4) {
        for value in [u64::MAX, u64::MAX / 2, 1 << 31, 1 << 63, made.len() as u64] {
            let mut damaged = made.clone();
            damaged[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if seal(&mut damaged).is_ok()
                && let Ok(patch) = Patch::parse(&damaged)
            {
                assert_valid(&patch);
            }
        }
    }
}

/// A file of the format before this one: one build for each object, without the counts of builds and of symbols.
#[test]
fn the_format_before() {
    let object = compile(&["-O2", "-fPIC", "-c"], SOURCE);
    let mut made = pack_one(&object, &compile(&[], TARGET)).unwrap();
    let today = Patch::parse(&made).unwrap();
    let owner = b"livegraft\0\0\0";
    let at = made.windows(12).position(|w| w == owner).unwrap();
    let (size, desc) = (at - 8, at + 12);
    let end = desc + u32::from_le_bytes(made[size..size + 4].try_into().unwrap()) as usize;
    let mut old = made[desc..end].to_vec();
    old[32] = 1;
    old.drain(40..44);
    old.truncate(old.len() - 4);
    made[size..size + 4].copy_from_slice(&(old.len() as u32).to_le_bytes());
    made[desc..desc + old.len()].copy_from_slice(&old);
    seal(&mut made).unwrap();
    let before = Patch::parse(&made).unwrap();
    assert_eq!((before.format_version, today.format_version), (1, 2));
    assert_eq!(before.objects[0].builds, today.objects[0].builds);
}

#[test]
fn object_files() {
    let object = compile(&["-O2", "-fPIC", "-c"], SOURCE);
    let target = compile(&[], TARGET);
    for at in 0..object.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = object.clone();
            damaged[at] ^= flip;
            let _ = pack_one(&damaged, &target);
        }
    }
    for length in 0..object.len() {
        assert!(pack_one(&object[..length], &target).is_err(), "{length}");
    }
}

#[test]
fn targets() {
    let object = compile(&["-O2", "-fPIC", "-c"], SOURCE);
    let target = compile(&["-O2"], TARGET);
    for at in 0..target.len() {
        // The long runs of zeros between sections say nothing.
        if target[at] != 0 || at % 16 == 0 {
            let mut damaged = target.clone();
            damaged[at] ^= 0xff;
            let _ = pack_one(&object, &damaged);
        }
    }
}
