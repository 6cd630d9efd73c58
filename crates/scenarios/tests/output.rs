//! What commands print: addresses in JSON, numbers in text.

use livegraft_scenarios::cli::{livegraft, start};
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, inspect};
use serde_json::Value;
use std::path::PathBuf;

fn built(name: &str) -> (Plan, PathBuf, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    (plan, exe, klp)
}

/// All fields of a document that are addresses.
fn addresses<'a>(document: &'a Value, found: &mut Vec<&'a Value>) {
    // Those by which the commands call an address.
    const NAMES: [&str; 6] = ["address", "stack", "start", "end", "at", "value"];
    match document {
        Value::Array(all) => all.iter().for_each(|value| addresses(value, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if NAMES.contains(&name.as_str()) {
                    found.push(value);
                }
                addresses(value, found);
            }
        }
        _ => {}
    }
}

/// Insists that a document has addresses, and that they are strings in hexadecimal, or not known.
#[track_caller]
fn in_hexadecimal(document: &Value) {
    let mut found = Vec::new();
    addresses(document, &mut found);
    assert!(!found.is_empty(), "no address: {document}");
    for value in found {
        let number = value.as_str().and_then(|text| text.strip_prefix("0x"));
        let number = number.map(|digits| u64::from_str_radix(digits, 16));
        let known = number.is_some_and(|number| number.is_ok());
        assert!(known || value.is_null(), "{value} in {document}");
    }
}

#[test]
fn addresses_in_json_are_hexadecimal() {
    let (plan, exe, klp) = built("sleeper");
    let path = klp.to_str().expect("UTF-8");
    let info = livegraft(&["info", path]).done().json;
    in_hexadecimal(&info);
    for func in info["objects"][0]["funcs"].as_array().expect("a list") {
        let name = func["old_name"].as_str().expect("a name");
        let (size, svma) = inspect::symbol(&exe, name);
        assert_eq!(func["address"], format!("{svma:#x}"), "{info}");
        assert_eq!(func["size"], size, "{info}");
    }
    let mut target = Target::start(&plan, &exe, &[]);
    let command = |target: &Target, words: &[&str], more: &[&str], code: i32| {
        let outcome = target.livegraft(words, more).expect(code);
        in_hexadecimal(&outcome.json);
    };
    command(&target, &["check", path], &[], 0);
    let leave = ["--timeout", "300ms", "--on-timeout", "leave"];
    command(&target, &["load", path], &leave, 4);
    command(&target, &["list"], &[], 0);
    command(&target, &["status"], &[], 0);
    target.ask("out");
    target.livegraft(&["resume"], &[]).done();
    target.ask("in");
    command(&target, &["unload", "fix"], &leave, 4);
    target.ask("out");
    target.livegraft(&["resume"], &[]).done();
    target.finish();

    // What `free` finds.
    let (plan, exe, klp) = built("free");
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, &[]).result(0, "loaded");
    assert_eq!(target.ask("leave heap"), "ok");
    target.unload(&[]).result(0, "unloaded");
    let kept = target.livegraft(&["free"], &["--stop", "5s"]).expect(1);
    in_hexadecimal(&kept.json);
    target.end();
}

/// What is counted agrees with its number.
#[test]
fn one_is_not_many() {
    let (plan, exe, klp) = built("backtrace");
    let target = Target::start(&plan, &exe, &[]);
    let (path, pid) = (klp.to_str().expect("UTF-8"), target.pid_text());
    for (words, says) in [
        (&["check", path][..], "\n1 task, looked at once:\n"),
        (&["load", path], ": 1 task runs it ("),
        (&["status"], "; 1 task in universe "),
        (&["unload", "fix"], ": 1 task is back ("),
    ] {
        let arguments = [words, &["--pid", &pid]].concat();
        let text = start(&arguments, None).finish().done();
        assert!(text.stdout.contains(says), "{text}");
    }
    target.finish();
}
