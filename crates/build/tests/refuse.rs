//! What is not proven is refused, by name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use livegraft_build::place::{self, Difference, Object, Refusal};
use livegraft_patchfile::SymbolKind;
use support::{Built, How, build, source};

const PLAIN: How<'_> = How {
    compiler: "gcc",
    compile: &["-O2"],
    link: &["-lm"],
};
const SECTIONS: How<'_> = How {
    compiler: "gcc",
    compile: &["-O2", "-ffunction-sections", "-fdata-sections"],
    link: &["-lm"],
};

fn program(how: How<'_>, change: Option<(&str, &str, &str)>) -> Built {
    let sources: Vec<(&str, String)> = ["a.c", "b.c", "c.c"]
        .into_iter()
        .map(|name| {
            let text = source(name);
            match change.filter(|(file, ..)| *file == name) {
                Some((_, from, to)) => {
                    assert!(text.contains(from), "{from}");
                    (name, text.replacen(from, to, 1))
                }
                None => (name, text),
            }
        })
        .collect();
    let sources: Vec<(&str, &str)> = sources.iter().map(|(n, t)| (*n, t.as_str())).collect();
    build(how, &sources)
}

/// What placing the original's objects in a changed program says.
fn changed(how: How<'_>, change: (&str, &str, &str)) -> Refusal {
    let original = program(how, None);
    let target = program(how, Some(change));
    let refusal = match place::objects(&target.stripped, &original.views()) {
        Err(refusal) => refusal,
        Ok(placement) => panic!("{change:?} went unseen: {:?}", placement.share()),
    };
    println!("{refusal}\n");
    let difference = place::identical(&target.stripped, &original.linked);
    match difference {
        Err(difference) => println!("{difference}\n"),
        Ok(_) => panic!("{change:?} is no difference"),
    }
    refusal
}

fn is_code(refusal: &Refusal, name: &str, built: &str, runs: &str) {
    match refusal {
        Refusal::Code { function, side, .. } => {
            assert_eq!(function, name);
            assert!(side.built.contains(built), "{refusal}");
            assert!(side.runs.contains(runs), "{refusal}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_changed_number_in_an_instruction() {
    for how in [PLAIN, SECTIONS] {
        let refusal = changed(how, ("a.c", "return number * 3", "return number * 11"));
        is_code(&refusal, "helper", "", "");
        let refusal = changed(how, ("b.c", "return x + 1;", "return x + 100;"));
        is_code(&refusal, "one", "1(", "0x64(");
    }
}

#[test]
fn another_instruction_of_the_same_length() {
    for how in [PLAIN, SECTIONS] {
        let refusal = changed(how, ("a.c", "return a - b;", "return b - a;"));
        is_code(&refusal, "sub", "", "");
        let refusal = changed(how, ("b.c", "number ^= x;", "number |= x;"));
        is_code(&refusal, "helper", "xor", "or");
    }
}

#[test]
fn code_that_became_longer() {
    for how in [PLAIN, SECTIONS] {
        let change = ("b.c", "count++;", "count += x > 3 ? x * 5 : 9;");
        is_code(&changed(how, change), "other", "", "");
        let change = ("a.c", "calls++;", "calls += 1 + initialised;");
        is_code(&changed(how, change), "where", "", "");
    }
}

#[test]
fn another_callee() {
    for how in [PLAIN, SECTIONS] {
        let change = ("a.c", "case 3: return other(x);", "case 3: return pick(x);");
        is_code(&changed(how, change), "dispatch", "other", "");
        let change = ("a.c", "puts(\"five\")", "perror(\"five\")");
        is_code(&changed(how, change), "dispatch", "puts", "");
    }
}

#[test]
fn another_variable() {
    for how in [PLAIN, SECTIONS] {
        let change = ("a.c", "seen[x & 15]++;", "tentative[x & 15]++;");
        let refusal = changed(how, change);
        assert!(
            matches!(&refusal, Refusal::Code { .. } | Refusal::Data { .. }),
            "{refusal}"
        );
    }
}

#[test]
fn changed_data() {
    for how in [PLAIN, SECTIONS] {
        let cases = [
            (("b.c", "55, 89", "56, 89"), "bytes"),
            (
                ("a.c", "initialised = 42", "initialised = 43"),
                "initialised",
            ),
            (
                ("a.c", "\"fatal: %s: %s\\n\"", "\"fatal: %s; %s\\n\""),
                "a string",
            ),
            (("a.c", "x * 3.25", "x * 3.75"), "a constant"),
            (("b.c", "{ 1, 2, 3, 4 }", "{ 1, 2, 3, 5 }"), "deep"),
        ];
        for (change, named) in cases {
            match changed(how, change) {
                Refusal::Data { symbol, .. } => assert_eq!(symbol, named),
                // Where the string is that comes with it: the pointer to it says it first.
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn another_exception_is_caught() {
    let original = [("x.cc", source("x.cc")), ("y.cc", source("y.cc"))];
    let mut changed = original.clone();
    changed[0].1 = changed[0]
        .1
        .replace("const std::exception &e", "const std::bad_alloc &e");
    assert_ne!(original, changed);
    for compiler in ["g++", "clang++"] {
        for linker in ["-fuse-ld=bfd", "-fuse-ld=gold", "-fuse-ld=lld"] {
            let how = How {
                compiler,
                compile: &["-O1"],
                link: &[linker],
            };
            let [original, changed] = [&original, &changed].map(|sources| {
                let sources: Vec<(&str, &str)> =
                    sources.iter().map(|(n, t)| (*n, t.as_str())).collect();
                build(how, &sources)
            });
            assert!(original.place().is_ok());
            let refusal = place::objects(&changed.stripped, &original.views()).err();
            let refusal = refusal.expect("a table differs");
            println!("{compiler} {linker}: {refusal}");
            assert!(matches!(
                refusal,
                Refusal::Data { .. } | Refusal::Code { .. }
            ));
        }
    }
}

/// All objects have the same copy of it, and the program has another.
#[test]
fn a_changed_inline_function() {
    let unit = |n: u32, factor: u32| {
        format!(
            "#include <cstdio>
             inline __attribute__((noinline)) int shared(int x)
             {{ std::printf(\"%d\\n\", x * {factor}); return x ^ (x >> 3) ^ 0x1234; }}
             int part{n}(int x) {{ return shared(x + {n}) * 3 + shared(x * 5) + (x >> 2) * 77; }}"
        )
    };
    let main =
        "int part1(int), part2(int); int main(int c, char **) { return part1(c) + part2(c); }";
    let [original, changed] = [11, 13].map(|factor| {
        let how = How {
            compiler: "g++",
            ..PLAIN
        };
        let (one, two) = (unit(1, factor), unit(2, factor));
        build(
            how,
            &[("one.cc", &one), ("two.cc", &two), ("main.cc", main)],
        )
    });
    assert!(original.place().is_ok());
    let refusal = place::objects(&changed.stripped, &original.views()).err();
    is_code(&refusal.expect("it was changed"), "_Z6sharedi", "", "");
}

#[test]
fn a_changed_pointer() {
    for how in [PLAIN, SECTIONS] {
        let change = ("a.c", "= { add, sub, mul,", "= { sub, add, mul,");
        match changed(how, change) {
            Refusal::Data { symbol, .. } => assert_eq!(symbol, "table"),
            Refusal::Code { function, .. } => assert!(function == "add" || function == "sub"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn two_functions_that_nothing_tells_apart() {
    let text = "int __attribute__((used)) one(int x) { return x * 31 + 77 - (x >> 3) * x; }
                int __attribute__((used)) two(int x) { return x * 31 + 77 - (x >> 3) * x; }
                int main(int argc, char **argv) { return argc * 5 + (argv[0][0] ^ 0x77) + argv[0][1] * 77; }";
    let built = build(SECTIONS, &[("a.c", text)]);
    let placement = built.place().unwrap();
    for name in ["one", "two"] {
        let refusal = placement.find(0, name).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Ambiguous { symbol, .. } if symbol == name),
            "{refusal}"
        );
    }
    assert!(placement.find(0, "main").is_ok());
    // A caller tells them apart.
    let caller = text.replace("return argc * 5", "return one(argc) + 3 * two(argc)");
    let how = How {
        compile: &["-O2", "-ffunction-sections", "-fno-inline", "-fno-ipa-icf"],
        ..SECTIONS
    };
    let built = build(how, &[("a.c", &caller)]);
    let (_, missed) = built.compare(&built.place().unwrap());
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn a_function_that_the_linker_removed() {
    for linker in ["-fuse-ld=bfd", "-fuse-ld=gold", "-fuse-ld=lld"] {
        let how = How {
            link: &["-lm", "-Wl,--gc-sections", linker],
            ..SECTIONS
        };
        let built = program(how, None);
        let placement = built.place().unwrap();
        let (right, missed) = built.compare(&placement);
        assert!(missed.is_empty() && right > 30, "{right} {missed:?}");
        let refusal = placement.find(2, "unused").unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Absent { symbol, .. } if symbol == "unused"),
            "{refusal}"
        );
    }
}

#[test]
fn functions_that_were_folded_into_one() {
    let text = "int __attribute__((noinline)) one(int x) { return x * 31 + 77 - (x >> 3) * x; }
                int __attribute__((noinline)) two(int x) { return x * 31 + 77 - (x >> 3) * x; }
                int main(int argc, char **argv) { return one(argc) + 3 * two(argc + 1) + (argv[0][0] ^ 77) * argc; }";
    for linker in ["-fuse-ld=gold", "-fuse-ld=lld"] {
        let how = How {
            compile: &["-O2", "-ffunction-sections", "-fno-ipa-icf"],
            link: &[linker, "-Wl,--icf=all"],
            ..SECTIONS
        };
        let built = build(how, &[("a.c", text)]);
        let placement = built.place().unwrap();
        for (name, twin) in [("one", "two"), ("two", "one")] {
            match placement.find(0, name).unwrap_err() {
                Refusal::Folded { symbol, other, .. } => {
                    assert_eq!((symbol.as_str(), other.as_str()), (name, twin));
                }
                other => panic!("{other}"),
            }
        }
        assert!(placement.find(0, "main").is_ok());
    }
}

#[test]
fn a_weak_function_that_another_replaced() {
    let built = program(PLAIN, None);
    let placement = built.place().unwrap();
    let refusal = placement.find(1, "overridden").unwrap_err();
    assert!(matches!(refusal, Refusal::Overridden { .. }), "{refusal}");
    assert!(placement.find(2, "overridden").is_ok());
}

#[test]
fn another_program() {
    let built = program(PLAIN, None);
    for path in ["/bin/true", "/usr/bin/redis-server"] {
        let target = std::fs::read(path).unwrap();
        let refusal = place::objects(&target, &built.views()).err().unwrap();
        assert!(matches!(refusal, Refusal::WrongProgram { .. }), "{refusal}");
        let difference = place::identical(&target, &built.linked).err().unwrap();
        assert!(
            matches!(difference, Difference::Layout { .. }),
            "{difference}"
        );
    }
}

#[test]
fn link_time_optimisation() {
    for compile in [
        &["-O2", "-flto"][..],
        &["-O2", "-flto", "-ffat-lto-objects"],
    ] {
        let how = How {
            compile,
            link: &["-O2", "-flto", "-lm"],
            ..PLAIN
        };
        let refusal = program(how, None).place().err().unwrap();
        assert!(
            matches!(&refusal, Refusal::Lto { object } if object == "a.o"),
            "{refusal}"
        );
    }
}

#[test]
fn a_relocation_that_is_not_known() {
    let how = How {
        compile: &["-O2", "-fPIE", "-mcmodel=large"],
        link: &["-pie", "-lm"],
        ..PLAIN
    };
    let built = program(how, None);
    match built.place() {
        Ok(placement) => {
            let refusal = placement.find(0, "dispatch").unwrap_err();
            assert!(matches!(refusal, Refusal::Relocation { .. }), "{refusal}");
        }
        Err(refusal) => assert!(matches!(refusal, Refusal::WrongProgram { .. }), "{refusal}"),
    }
}

#[test]
fn files_of_another_kind() {
    let built = program(PLAIN, None);
    let object = Object {
        name: "a.o",
        bytes: &built.objects[0].1,
    };
    let text = Object {
        name: "notes",
        bytes: b"notes",
    };
    let linked = Object {
        name: "linked",
        bytes: &built.linked,
    };
    let refused =
        |target: &[u8], object: Object<'_>| place::objects(target, &[object]).err().unwrap();
    assert!(matches!(refused(b"", object), Refusal::NotElf { .. }));
    assert!(matches!(
        refused(object.bytes, object),
        Refusal::NotLinked { .. }
    ));
    assert!(matches!(
        refused(&built.stripped, text),
        Refusal::NotElf { .. }
    ));
    assert!(matches!(
        refused(&built.stripped, linked),
        Refusal::NotObject { .. }
    ));
    let difference = place::identical(&built.stripped, &built.stripped)
        .err()
        .unwrap();
    let unusable = matches!(difference, Difference::Unusable(Refusal::NoSymbols { .. }));
    assert!(unusable, "{difference}");
}

/// A bit that is changed anywhere is refused or makes no difference to any address.
#[test]
fn damaged_files() {
    let built = program(PLAIN, None);
    let views = built.views();
    let whole = built.place().unwrap();
    let all = |placement: &place::Placement<'_>| -> Vec<_> {
        let objects = (0..views.len()).flat_map(|n| placement.located(n));
        objects
            .map(|(name, located)| (name.to_vec(), located))
            .collect()
    };
    let right = all(&whole);
    for length in (0..built.stripped.len()).step_by(61) {
        let _ = place::objects(&built.stripped[..length], &views);
        let _ = place::identical(&built.stripped[..length], &built.linked);
    }
    let mut accepted = 0;
    for at in 0..built.stripped.len() {
        if built.stripped[at] == 0 && at % 16 != 0 {
            continue;
        }
        for flip in [0x01, 0x80] {
            let mut damaged = built.stripped.clone();
            damaged[at] ^= flip;
            let _ = place::identical(&damaged, &built.linked);
            if let Ok(placement) = place::objects(&damaged, &views) {
                accepted += 1;
                // Where a variable is can be what was changed; what a function is can't.
                for found in all(&placement) {
                    let function = found.1.kind == SymbolKind::Function;
                    assert!(!function || right.contains(&found), "{at:#x}: {found:x?}");
                }
            }
        }
    }
    println!("{accepted} flips outside of what the objects are");
    for at in (0..built.linked.len()).step_by(3) {
        let mut damaged = built.linked.clone();
        damaged[at] ^= 0x81;
        let _ = place::identical(&built.stripped, &damaged);
    }
    for (number, (name, bytes)) in built.objects.iter().enumerate() {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= if at % 2 == 0 { 0x01 } else { 0x80 };
            let mut views = built.views();
            views[number] = Object {
                name,
                bytes: &damaged,
            };
            if let Ok(placement) = place::objects(&built.stripped, &views) {
                for object in 0..views.len() {
                    let _ = placement.located(object).count();
                }
            }
        }
        for length in (0..bytes.len()).step_by(7) {
            let object = Object {
                name,
                bytes: &bytes[..length],
            };
            let _ = place::objects(&built.stripped, &[object]);
        }
    }
}
