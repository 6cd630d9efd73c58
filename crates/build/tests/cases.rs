//! Pairs of sources, compiled by real compilers and compared. Each file in `cases` is both sources: a line that begins with
//! `-|` is only in the original, one with `+|` only in the patched one. The directives at the top say what must come out:
//!
//! | directive | meaning |
//! |---|---|
//! | `//#Compilers: gcc clang` | with which it is tried; otherwise all of the language |
//! | `//#Flags: -O2 -g` | a set of flags, once for each set; otherwise `-O2` |
//! | `//#OriginalFlags: -DX`, `//#PatchedFlags: -DX` | for one side only |
//! | `//#Changed: f g`, `New`, `Removed` | exactly these functions; parts that were split off need not be named |
//! | `//#Data: new x` | this variable or constant is reported so; several are allowed |
//! | `//#Refused: data x` | exactly these refusals, kind and symbol; `//#Allowed:` the same |
//! | `//#Allow: x`, `//#WithCallers: f` | options |
//! | `//#Why: f inlined` | a word of the reason given for `f` |
//! | `//#Error: words` | the comparison fails with a message that has them |
//! | `//#Undefined: x`, `//#Defined: x` | in the extract, exactly with this binding to the patch |
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{compile, tools_for};
use livegraft_build::compare::{Comparison, Options, Status, compare, extract};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// What a case says.
#[derive(Default)]
struct Case {
    compilers: Vec<String>,
    flags: Vec<String>,
    only: [String; 2],
    functions: [BTreeSet<String>; 3],
    data: Vec<String>,
    refused: BTreeSet<String>,
    allowed: BTreeSet<String>,
    options: Options,
    why: Vec<(String, String)>,
    error: Option<String>,
    undefined: Vec<String>,
    defined: Vec<String>,
    sources: [String; 2],
}

fn parse(text: &str) -> Case {
    let mut case = Case::default();
    for line in text.lines() {
        if let Some(directive) = line.strip_prefix("//#") {
            let (name, value) = directive.split_once(':').unwrap_or((directive, ""));
            let value = value.trim();
            let words = || value.split_whitespace().map(str::to_owned);
            match name {
                "Compilers" => case.compilers.extend(words()),
                "Flags" => case.flags.push(value.to_owned()),
                "OriginalFlags" => value.clone_into(&mut case.only[0]),
                "PatchedFlags" => value.clone_into(&mut case.only[1]),
                "Changed" => case.functions[0].extend(words()),
                "New" => case.functions[1].extend(words()),
                "Removed" => case.functions[2].extend(words()),
                "Data" => case.data.push(value.to_owned()),
                "Refused" => drop(case.refused.insert(value.to_owned())),
                "Allowed" => drop(case.allowed.insert(value.to_owned())),
                "Allow" => case.options.allow.extend(words()),
                "WithCallers" => case.options.with_callers.extend(words()),
                "Why" => {
                    let (function, word) = value.split_once(' ').unwrap();
                    case.why.push((function.to_owned(), word.to_owned()));
                }
                "Error" => case.error = Some(value.to_owned()),
                "Undefined" => case.undefined.extend(words()),
                "Defined" => case.defined.extend(words()),
                other => panic!("unknown directive {other}"),
            }
        }
        let sides: &[usize] = match line.get(..2) {
            Some("-|") => &[0],
            Some("+|") => &[1],
            _ => &[0, 1],
        };
        // Directives are not compiled: the source has the lines that it shows.
        let body = line
            .strip_prefix("-|")
            .or(line.strip_prefix("+|"))
            .unwrap_or(line);
        for &side in sides {
            case.sources[side].push_str(body);
            case.sources[side].push('\n');
        }
    }
    case
}

/// A part of a function goes with it, and compilers differ in what they split off.
fn names(comparison: &Comparison<'_>, status: Status) -> BTreeSet<String> {
    let functions = comparison.functions.iter().filter(|f| f.status == status);
    let names = functions.map(|f| f.name.split(".cold").next().unwrap().to_owned());
    // Clones are named by what they are clones of, where that is not a function itself.
    names.collect()
}

fn check(case: &Case, objects: &[Vec<u8>; 2]) -> Result<(), String> {
    let comparison = match (
        compare(&objects[0], &objects[1], &case.options),
        &case.error,
    ) {
        (Ok(comparison), None) => comparison,
        (Ok(_), Some(words)) => return Err(format!("it is not refused with `{words}`")),
        (Err(error), Some(words)) if error.to_string().contains(words) => return Ok(()),
        (Err(error), _) => return Err(format!("error: {error}")),
    };
    let mut wrong = Vec::new();
    let statuses = [Status::Changed, Status::New, Status::Removed];
    for (status, expected) in statuses.into_iter().zip(&case.functions) {
        let found = names(&comparison, status);
        if found != *expected {
            wrong.push(format!(
                "{}: {found:?} instead of {expected:?}",
                status.name()
            ));
        }
    }
    let listed = |list: &[livegraft_build::compare::Refusal]| -> BTreeSet<String> {
        list.iter()
            .map(|r| format!("{} {}", r.kind.name(), r.symbol))
            .collect()
    };
    if listed(&comparison.refusals) != case.refused {
        wrong.push(format!("refused: {:?}", comparison.refusals));
    }
    if listed(&comparison.allowed) != case.allowed {
        wrong.push(format!("allowed: {:?}", comparison.allowed));
    }
    for wanted in &case.data {
        let found = comparison
            .data
            .iter()
            .map(|d| format!("{} {}", d.status.name(), d.name));
        let found: Vec<String> = found.collect();
        if !found.contains(wanted) {
            wrong.push(format!("data: {found:?} lacks {wanted}"));
        }
    }
    for (function, word) in &case.why {
        let found = comparison
            .functions
            .iter()
            .filter(|f| f.name == *function)
            .flat_map(|f| &f.why);
        let found: Vec<String> = found.map(ToString::to_string).collect();
        if !found.iter().any(|w| w.contains(word)) {
            wrong.push(format!("why {function}: {found:?} does not say {word}"));
        }
    }
    if comparison.refusals.is_empty() && comparison.changes_code() {
        wrong.extend(check_extract(case, &comparison));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n    "))
    }
}

/// The extract is an object that the linker takes, and has what it should.
fn check_extract(case: &Case, comparison: &Comparison<'_>) -> Vec<String> {
    let bytes = match extract(comparison) {
        Ok(bytes) => bytes,
        Err(error) => return vec![format!("extract: {error}")],
    };
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a.o"), dir.path().join("b.o"));
    std::fs::write(&from, &bytes).unwrap();
    let ld = std::process::Command::new("ld")
        .arg("-r")
        .arg(&from)
        .arg("-o")
        .arg(&to)
        .output()
        .unwrap();
    let mut wrong = Vec::new();
    if !ld.status.success() || !ld.stderr.is_empty() {
        wrong.push(format!("ld -r: {}", String::from_utf8_lossy(&ld.stderr)));
    }
    let file = object::File::parse(&*bytes).unwrap();
    let has = |name: &str, undefined: bool| {
        file.symbols()
            .any(|s| s.name() == Ok(name) && s.is_undefined() == undefined)
    };
    for name in &case.undefined {
        if !has(name, true) {
            wrong.push(format!("`{name}` is not undefined in the extract"));
        }
    }
    for name in &case.defined {
        if !has(name, false) {
            wrong.push(format!("`{name}` is not defined in the extract"));
        }
    }
    wrong
}

fn run(extension: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut failures = Vec::new();
    let mut tried = 0;
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    for path in files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == extension))
    {
        let case = parse(&std::fs::read_to_string(path).unwrap());
        let all = tools_for(extension);
        let tools = if case.compilers.is_empty() {
            all
        } else {
            case.compilers.clone()
        };
        let default = vec!["-O2".to_owned()];
        for tool in &tools {
            for flags in if case.flags.is_empty() {
                &default
            } else {
                &case.flags
            } {
                let objects = [0, 1].map(|side| {
                    let flags = format!("{flags} {}", case.only[side]);
                    compile(tool, &flags, extension, &case.sources[side])
                });
                tried += 1;
                if let Err(why) = check(&case, &objects) {
                    let name = path.file_name().unwrap().to_string_lossy();
                    failures.push(format!("{name} ({tool} {flags}):\n    {why}"));
                }
            }
        }
    }
    assert!(tried > 0);
    assert!(
        failures.is_empty(),
        "{} of {tried}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn c() {
    run("c");
}

#[test]
fn cpp() {
    run("cc");
}

#[test]
fn rust() {
    run("rs");
}

#[test]
fn assembler() {
    run("s");
}

/// `livegraft build` compares objects with debug information, whatever the flags of what runs: that is the same code.
#[test]
fn debug_information_changes_no_code() {
    let code = |object: &[u8]| -> Vec<(String, Vec<u8>)> {
        let file = object::File::parse(object).unwrap();
        let sections = file
            .sections()
            .filter(|s| s.kind() == object::SectionKind::Text);
        let named =
            |s: object::Section<'_, '_>| (s.name().unwrap().to_owned(), s.data().unwrap().to_vec());
        sections.map(named).collect()
    };
    for (extension, step) in [("c", 4), ("cc", 3)] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
        let files = std::fs::read_dir(directory).unwrap();
        let mut files: Vec<_> = files.map(|e| e.unwrap().path()).collect();
        files.retain(|p| p.extension().is_some_and(|e| e == extension));
        files.sort();
        for path in files.iter().step_by(step) {
            let case = parse(&std::fs::read_to_string(path).unwrap());
            let all = tools_for(extension);
            let tools = if case.compilers.is_empty() {
                &all
            } else {
                &case.compilers
            };
            for tool in tools {
                let [plain, debug] = ["-O2", "-O2 -g -gz=none"]
                    .map(|flags| code(&compile(tool, flags, extension, &case.sources[0])));
                assert!(
                    !plain.is_empty() && plain == debug,
                    "{tool} {}",
                    path.display()
                );
            }
        }
    }
}
