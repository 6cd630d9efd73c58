//! What livegraft must not do: each refusal is one clear sentence, and the target is as it was.

use livegraft_patchfile::Patch;
use livegraft_scenarios::cli::{self, start};
use livegraft_scenarios::refusal::{both_ways, check, scenario};
use livegraft_scenarios::{
    Build, Plan, Target, compile_patch, compile_target, inspect, kill, require,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

macro_rules! scenarios {
    ($($name:ident)*) => { $( #[test] fn $name() { scenario(stringify!($name)); } )* };
}
scenarios! {
    missing ambiguous build_id coroutine unredirectable breakpoint uprobe trace nobody gs go makecontext ipa_ra later sigreturn iostream
    rust_panic
}

#[test]
fn every_directory_has_a_test() {
    let listed = include_str!("refusals.rs");
    for entry in std::fs::read_dir(livegraft_scenarios::plan::root().join("tests/refuse"))
        .expect("it is there")
    {
        let name = entry.expect("it can be read").file_name();
        let name = name.to_str().expect("a name in UTF-8");
        assert!(
            listed.contains(name),
            "tests/refuse/{name} is not listed in refusals.rs"
        );
    }
}

/// The smallest target, and a patch for it.
fn answer() -> (Plan, PathBuf, PathBuf) {
    let plan = Plan::read("refuse/trace");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    (plan, exe, klp)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn refused_for(pid: i32, words: &str) {
    let (_, _, klp) = answer();
    both_ways(
        &["load", text(&klp), "--pid", &pid.to_string()],
        None,
        words,
    );
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A 32-bit program as small as can be: it jumps to itself.
fn tiny_32_bit_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    half(&mut elf, 2); // ET_EXEC
    half(&mut elf, 3); // EM_386
    [1, BASE + 84, 52, 0, 0]
        .into_iter()
        .for_each(|value| word(&mut elf, value));
    [52, 32, 1, 0, 0, 0]
        .into_iter()
        .for_each(|value| half(&mut elf, value));
    [1, 0, BASE, BASE, 86, 86, 5, 4096]
        .into_iter()
        .for_each(|value| word(&mut elf, value));
    elf.extend([0xeb, 0xfe]);
    elf
}

#[test]
fn process_of_32_bits() {
    let path = livegraft_scenarios::compile::out_dir().join("tiny-32");
    std::fs::write(&path, tiny_32_bit_program()).expect("it can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod works");
    let child = Command::new(&path).stdin(Stdio::null()).spawn();
    if require("a kernel that runs 32-bit programs", child.is_ok()) {
        let child = Ended(child.expect("just checked"));
        let pid = child.0.id() as i32;
        while !inspect::maps(pid)
            .iter()
            .any(|mapping| mapping.name.contains("[vdso]"))
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        let before = inspect::Baseline::take(pid);
        refused_for(pid, "32-bit");
        assert_eq!(before.maps_difference(), None);
        assert_eq!(before.text_difference(), None);
        assert!(inspect::disturbed_tasks(pid).is_empty());
    }
}

#[test]
fn kernel_thread() {
    let kthreadd = inspect::status("/proc/2/status");
    let is_one = kthreadd.get("Name").is_some_and(|name| name == "kthreadd");
    if require("kthreadd as pid 2", is_one) {
        refused_for(2, "kernel");
    }
}

#[test]
fn zombie() {
    let mut child = Command::new("true").spawn().expect("true runs");
    let pid = child.id() as i32;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !inspect::status(&format!("/proc/{pid}/status"))
        .get("State")
        .is_some_and(|state| state.starts_with('Z'))
    {
        assert!(Instant::now() < deadline, "{pid} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    refused_for(pid, "zombie|ended|exited");
    child.wait().expect("it can be reaped");
}

#[test]
fn no_such_process() {
    refused_for(0x3f_fff0, "process|4194288");
}

#[test]
fn not_an_elf() {
    let (plan, exe, klp) = answer();
    let dir = livegraft_scenarios::compile::out_dir();
    let prose = dir.join("prose.klp");
    std::fs::write(&prose, "This is no ELF file.\n".repeat(50)).expect("it can be written");
    let mut target = Target::start(&plan, &exe, &[]);
    both_ways(
        &["load", text(&prose), "--pid", &target.pid_text()],
        None,
        "ELF",
    );
    // An ELF file, but no patch.
    both_ways(
        &["load", text(&exe), "--pid", &target.pid_text()],
        None,
        "patch|relocatable",
    );
    both_ways(
        &[
            "load",
            text(&dir.join("absent.klp")),
            "--pid",
            &target.pid_text(),
        ],
        None,
        "absent.klp",
    );
    both_ways(
        &[
            "pack",
            text(&prose),
            "--target",
            text(&exe),
            "-o",
            text(&dir.join("out.klp")),
        ],
        None,
        "ELF",
    );
    both_ways(&["info", text(&prose)], None, "ELF");
    target.expect("old");
    target.assert_untouched();
    target.load(&klp, &[]).result(0, "loaded");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

#[test]
fn already_loaded() {
    let (plan, exe, klp) = answer();
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, &[]).result(0, "loaded");
    target.expect("new");
    both_ways(
        &["load", text(&klp), "--pid", &target.pid_text()],
        None,
        "fix already|loaded",
    );
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    both_ways(
        &["unload", "fix", "--pid", &target.pid_text()],
        None,
        "fix not|no",
    );
    both_ways(
        &["unload", "other", "--pid", &target.pid_text()],
        None,
        "other not|no",
    );
    target.expect("old");
    target.finish();
}

#[test]
fn looking_changes_nothing() {
    let (plan, exe, klp) = answer();
    let mut target = Target::start(&plan, &exe, &[]);
    let pid = target.pid_text();
    for command in [
        &["list"][..],
        &["list", "--pid", &pid],
        &["info", text(&klp)],
        &["status", "--pid", &pid],
    ] {
        cli::livegraft(command).done();
        start(command, None).finish().done();
        target.assert_untouched();
    }
    assert!(
        start(&["info", text(&klp)], None)
            .finish()
            .stdout
            .contains("answer")
    );
    target.load(&klp, &[]).result(0, "loaded");
    let all = cli::livegraft(&["list"]).done();
    let processes = all.json["processes"].as_array().expect("a list");
    assert!(
        processes
            .iter()
            .any(|process| process["pid"] == target.pid()),
        "{all}"
    );
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

#[test]
fn usage() {
    for arguments in [
        &["load"][..],
        &["no-such-command"],
        &["load", "a.klp"],
        &["load", "a.klp", "--pid", "x"],
    ] {
        let outcome = start(arguments, None).finish().expect(2);
        assert!(!outcome.stderr.is_empty(), "{outcome}");
    }
}

/// A flipped byte is a refusal; never a crash. The parser alone, for every byte and every length.
#[test]
fn corrupted_patch_is_never_misread() {
    let (_, _, klp) = answer();
    let good = std::fs::read(&klp).expect("it was just written");
    assert!(Patch::parse(&good).is_ok());
    let mut accepted = Vec::new();
    for at in 0..good.len() {
        for flip in [0x01, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            if Patch::parse(&bad).is_ok() {
                accepted.push(at);
            }
        }
    }
    assert!(
        accepted.is_empty(),
        "{} flipped bytes of {} go unnoticed, first {accepted:?}",
        accepted.len(),
        good.len()
    );
    for length in 0..good.len() {
        assert!(
            Patch::parse(&good[..length]).is_err(),
            "cut to {length} bytes"
        );
    }
}

/// The same through the command, for a sample of the bytes, at a live process.
#[test]
fn corrupted_patch_leaves_the_process_alone() {
    let (plan, exe, klp) = answer();
    let good = std::fs::read(&klp).expect("it was just written");
    let bad_path = klp.with_file_name("bad.klp");
    let mut target = Target::start(&plan, &exe, &[]);
    for sample in 0..60 {
        let mut bad = good.clone();
        if sample % 4 == 0 {
            bad.truncate(good.len() * sample / 60);
        } else {
            bad[(good.len() - 1) * sample / 59] ^= 0xff;
        }
        std::fs::write(&bad_path, &bad).expect("it can be written");
        let outcome = target.load(&bad_path, &[]);
        check(&outcome, "");
        target.assert_untouched();
    }
    target.expect("old");
    target.load(&klp, &[]).result(0, "loaded");
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.finish();
}

/// Somebody else changes an entry after the load: `list` says so, and unload does not write over it blindly.
#[test]
fn foreign_byte_in_a_redirected_entry_is_seen() {
    let (plan, exe, klp) = answer();
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, &[]).result(0, "loaded");
    let (_, address) = inspect::function(target.pid(), target.exe(), "answer");
    let before = inspect::poke(target.pid(), address, 0xcc);
    let listed = cli::list(target.pid());
    assert_eq!(listed["entries"][0]["intact"], false, "{listed}");
    check(&target.unload(&[]), "answer");
    assert_eq!(
        inspect::poke(target.pid(), address, before),
        0xcc,
        "the foreign byte was overwritten"
    );
    target.expect("new");
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.finish();
}

/// A process that ends while livegraft works on it is an error in words, not a hang.
#[test]
fn target_that_dies_meanwhile() {
    let plan = Plan::read("sleeper");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let target = Target::start(&plan, &exe, &[]);
    let running = start(
        &[
            "load",
            text(&klp),
            "--pid",
            &target.pid_text(),
            "--timeout",
            "60s",
            "--json",
        ],
        None,
    );
    std::thread::sleep(Duration::from_millis(300));
    kill(target.pid(), libc::SIGKILL);
    let outcome = running.finish();
    check(&outcome, "ended|exited|died|gone|process");
    assert!(outcome.elapsed < Duration::from_secs(30), "{outcome}");
}

/// A record that another version of livegraft has written is left alone, whatever is asked for.
#[test]
fn record_of_another_version() {
    let (plan, exe, klp) = answer();
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, &[]).result(0, "loaded");
    let maps = inspect::maps(target.pid());
    let record = maps.iter().find(|m| m.name.contains("memfd:livegraft"));
    let format = record.expect("there is a record").start + 8;
    let now = inspect::poke(target.pid(), format, 0);
    let pid = target.pid_text();
    for older in 1..now {
        inspect::poke(target.pid(), format, older);
        both_ways(&["unload", "fix", "--pid", &pid], None, "another version");
        both_ways(
            &["load", text(&klp), "--pid", &pid],
            None,
            "another version",
        );
    }
    target.expect("new");
    inspect::poke(target.pid(), format, now);
    target.unload(&[]).result(0, "unloaded");
    target.expect("old");
    target.finish();
}
