//! Objects that lie: whatever is damaged, comparing gives a result or an error, never a panic, and what is extracted from a
//! result is an object again.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod common;

use std::time::{Duration, Instant};

use livegraft_build::compare::{Error, Options, compare, extract};

const SOURCE: &str = r#"
#include <assert.h>
int puts(const char *); int other(int); void abort(void);
struct node { int a; struct node *next; };
static struct node first = { 4, 0 };
static int calls;
static const char *const words[] = { "a", "b", "c" };
static __thread int seen;
static int helper(int x) { static int n; n += x; return n ^ CHANGED; }
int f(int x) { assert(x > 1); calls++; seen++; puts(words[x]); return helper(x) + first.a; }
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

fn both(original: &[u8], patched: &[u8]) -> Option<Error> {
    let options = Options {
        allow: vec!["data".to_owned(), "struct".to_owned()],
        with_callers: vec!["helper".to_owned()],
    };
    match compare(original, patched, &options) {
        Ok(comparison) => {
            if let Ok(made) = extract(&comparison) {
                object::File::parse(&*made).unwrap();
            }
            None
        }
        Err(error) => {
            assert!(error.to_string().len() < 4096);
            Some(error)
        }
    }
}

/// Damages one of two objects in every way until time is up, from places that are spread over the whole file.
fn damage(original: &[u8], patched: &[u8], time: Duration) {
    assert_eq!(both(original, patched), None);
    for len in 0..patched.len() {
        assert!(
            both(original, &patched[..len]).is_some(),
            "cut off at {len}"
        );
    }
    let until = Instant::now() + time;
    let mut tried = 0;
    let len = patched.len();
    // A step that shares no factor with the length meets every byte once.
    let step = (len / 3 * 2 + 1..).find(|s| gcd(*s, len) == 1).unwrap();
    let mut at = 0;
    for _ in 0..len {
        at = (at + step) % len;
        for value in [0x01u8, 0x40, 0x80, 0xff] {
            let mut damaged = patched.to_vec();
            damaged[at] ^= value;
            both(original, &damaged);
            both(&damaged, original);
            tried += 2;
        }
        if at % 8 == 0 {
            for value in [u64::MAX, 1 << 31, 1 << 63, len as u64] {
                let mut damaged = patched.to_vec();
                let end = len.min(at + 8);
                damaged[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                both(original, &damaged);
                tried += 1;
            }
        }
        if Instant::now() > until {
            break;
        }
    }
    assert!(tried > 500, "{tried}");
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn pair(tool: &str, flags: &str, extension: &str, source: &str) -> [Vec<u8>; 2] {
    ["3", "5"].map(|value| {
        common::compile(
            tool,
            &format!("{flags} -DCHANGED={value}"),
            extension,
            source,
        )
    })
}

#[test]
fn c() {
    let [original, patched] = pair("gcc", "-O2", "c", SOURCE);
    damage(&original, &patched, Duration::from_secs(10));
}

#[test]
fn c_with_debug_information() {
    let [original, patched] = pair("gcc", "-O1 -g", "c", SOURCE);
    damage(&original, &patched, Duration::from_secs(10));
}

#[test]
fn cpp() {
    let [original, patched] = pair("g++", "-O2", "cc", CPP);
    damage(&original, &patched, Duration::from_secs(10));
}

#[test]
fn what_is_no_object() {
    let [object, _] = pair("gcc", "-O2", "c", SOURCE);
    assert!(matches!(both(b"", &object), Some(Error::Object { .. })));
    assert!(matches!(
        both(&object, b"BC\xc0\xde...."),
        Some(Error::Lto { .. })
    ));
    let linked = std::fs::read("/proc/self/exe").unwrap();
    let Some(Error::Object { why, .. }) = both(&object, &linked) else {
        panic!()
    };
    assert!(why.contains("already linked"), "{why}");
}
