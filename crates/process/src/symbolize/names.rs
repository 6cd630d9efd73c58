//! Mangled names as their authors wrote them. Names come from untrusted files.

use std::fmt::{self, Write};

/// What a mangled name may become: some that fit a line stand for megabytes.
const LONGEST: usize = 4096;
/// A longer one is not looked at.
const LONGEST_MANGLED: usize = 1 << 14;
/// How deep the parts of a name may be nested.
const DEEPEST: u32 = 96;

/// The name for people: demangled if it is one of Rust's or C++'s, and without anything that a terminal would obey.
pub(crate) fn readable(name: &str) -> String {
    let demangled = if name.len() > LONGEST_MANGLED {
        None
    } else if is_rust(name) {
        rust(name)
    } else if name.starts_with("_Z") || name.starts_with("_GLOBAL__") {
        cpp(name)
    } else {
        None
    };
    printable(demangled.as_deref().unwrap_or(name))
}

/// Without control characters, and cut where it is too long.
pub(super) fn printable(text: &str) -> String {
    let mut kept: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(LONGEST)
        .collect();
    if kept.len() < text.len() && text.chars().nth(LONGEST).is_some() {
        kept.push_str("...");
    }
    kept
}

/// `_R...`, or `_ZN...17h<hash>E`, which a C++ compiler would not make.
fn is_rust(name: &str) -> bool {
    let is_legacy = || {
        let (_, tail) = name.strip_prefix("_ZN")?.rsplit_once("17h")?;
        let (hash, end) = tail.split_at_checked(16)?;
        let is_hash = hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(is_hash && (end == "E" || end.starts_with("E.")))
    };
    name.starts_with("_R") || is_legacy() == Some(true)
}

fn rust(name: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut text = Bounded::default();
    // The alternate form has no hash.
    write!(text, "{demangled:#}").ok()?;
    Some(text.0)
}

fn cpp(name: &str) -> Option<String> {
    let parsing = cpp_demangle::ParseOptions::default().recursion_limit(DEEPEST);
    let (symbol, rest) =
        cpp_demangle::BorrowedSymbol::with_tail_and_options(name.as_bytes(), &parsing).ok()?;
    if !rest.is_empty() {
        return None; // a name of C's that happens to begin like one
    }
    let showing = cpp_demangle::DemangleOptions::new()
        .no_return_type()
        .recursion_limit(DEEPEST);
    let mut text = Bounded::default();
    symbol.structured_demangle(&mut text, &showing).ok()?;
    Some(text.0)
}

/// Fails when it becomes too long.
#[derive(Default)]
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_language() {
        for (mangled, expected) in [
            ("main", "main"),
            ("job.part.0", "job.part.0"),
            ("_Zero", "_Zero"),
            ("_Zoo_x", "_Zoo_x"),
            ("_ZN3app5QueueIiE4holdEl", "app::Queue<int>::hold(long)"),
            ("_ZN3app4holdILi3EEEll", "app::hold<3>(long)"),
            ("_ZN12_GLOBAL__N_14waitEv", "(anonymous namespace)::wait()"),
            (
                "_ZN4core3ptr8drop_one17h0123456789abcdefE",
                "core::ptr::drop_one",
            ),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        ] {
            assert_eq!(readable(mangled), expected, "{mangled}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(readable("a\x1b[2Jb\r\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
        let long = "x".repeat(100_000);
        assert!(readable(&long).len() < 5000);
    }

    /// Nested, self-referring and cut names neither panic nor take long.
    #[test]
    fn hostile_names_are_survived() {
        let deep = format!("_Z1f{}i", "P".repeat(10_000));
        let wide = format!("_Z1f{}", "S_".repeat(5_000));
        let doubling = format!("_Z1fI{}E", "1aIS_S0_E".repeat(1_000));
        let rust = format!("_RMC0{}a", "TB1_B1_E".repeat(1_000));
        for name in [&deep, &wide, &doubling, &rust] {
            for end in (0..name.len()).step_by(97).chain([name.len()]) {
                let _ = readable(name.get(..end).unwrap_or_default());
            }
        }
        let mut state = 88_172_645_463_325_252_u64;
        for seed in [
            "_ZN3app5QueueIiE4holdEl",
            "_RNvNtCs1234_7mycrate3foo3bar",
            "_ZNSt6vectorIN3app4ItemESaIS1_EE9push_backEOS1_",
        ] {
            for _ in 0..20_000 {
                let mut bytes = seed.as_bytes().to_vec();
                for _ in 0..3 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let at = (state >> 8) as usize % bytes.len();
                    bytes[at] = b"ISEN_Z019aTBRP"[state as usize % 14];
                }
                let _ = readable(&String::from_utf8_lossy(&bytes));
            }
        }
    }
}
