//! Whatever ends a build, nothing of it runs on, and what it leaves is gone after the next at the latest.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use livegraft_build::capture::capture;

use super::case::{Case, listing};

/// Compiles, says so, and then takes for ever, in the foreground and in the background.
const BUILD: &str = "gcc -O2 -c a.c; (setsid sleep 1000 &); touch begun; sleep 1000";

fn start(case: &Case) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "interrupted::as_a_process",
            "--ignored",
            "--nocapture",
        ])
        .env("CASE", case.path("."))
        .env("CASE_COMMAND", &case.request.command[2])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
}

fn begin(case: &Case) -> Child {
    let child = start(case);
    let end = Instant::now() + Duration::from_secs(60);
    let begun = |case: &Case| {
        let found = Command::new("find")
            .arg(case.work())
            .args(["-name", "begun"])
            .output()
            .expect("find");
        !found.stdout.is_empty()
    };
    while !begun(case) {
        assert!(Instant::now() < end, "the build does not begin");
        sleep(Duration::from_millis(20));
    }
    child
}

/// Processes that have something to do with this directory.
fn users(directory: &Path) -> Vec<String> {
    let variable = format!("TMPDIR={}", directory.display());
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    (processes.map(|entry| entry.path()))
        .filter(|path| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&variable)
        })
        .map(|path| format!("{path:?}: {:?}", fs::read_to_string(path.join("cmdline"))))
        .collect()
}

fn gone(case: &Case) {
    let end = Instant::now() + Duration::from_secs(5);
    while !users(&case.work()).is_empty() {
        assert!(Instant::now() < end, "{:?}", users(&case.work()));
        sleep(Duration::from_millis(10));
    }
}

fn case() -> Case {
    let case = Case::new(&[("a.c", "int a(int x) { return x + 1; }\n")]).command(BUILD);
    case.edit(&[("a.c", "x + 1", "x + 3")]);
    case
}

#[test]
fn by_a_signal() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let case = case();
        let before = listing(&case.request.source);
        let mut child = begin(&case);
        assert!(!users(&case.work()).is_empty());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal)
            .expect("a signal");
        assert!(
            child.wait().expect("an end").success(),
            "it was interrupted and says so"
        );
        gone(&case);
        assert_eq!(before, listing(&case.request.source));
        let left: Vec<_> = fs::read_dir(case.work())
            .expect("a directory")
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn by_a_kill() {
    let case = case();
    let before = listing(&case.request.source);
    let mut child = begin(&case);
    child.kill().expect("a signal");
    child.wait().expect("an end");
    gone(&case);
    assert_eq!(before, listing(&case.request.source));
    assert_eq!(fs::read_dir(case.work()).expect("a directory").count(), 1);
    // The next removes it, whichever build it is for.
    let case = case.command("gcc -O2 -c a.c");
    drop(case.pairs(&["a.c"]));
    assert_eq!(fs::read_dir(case.work()).expect("a directory").count(), 1);
}

#[test]
fn by_a_kill_in_the_patched_build() {
    let case = Case::new(&[("a.c", "int a(int x) { return x + 1; }\n")]);
    let case = case.command("gcc -O2 -c a.c; grep -q 'x + 1' a.c || { touch begun; sleep 1000; }");
    case.edit(&[("a.c", "x + 1", "x + 3")]);
    let mut child = begin(&case);
    child.kill().expect("a signal");
    child.wait().expect("an end");
    gone(&case);
    // The original build is whole, and used.
    case.edit(&[("a.c", "return", "return /* x + 1 */ 2 *")]);
    let mut child = start(&case);
    assert!(child.wait().expect("an end").success());
    assert_eq!(
        fs::read_to_string(case.path("outcome")).expect("a file"),
        "reused: true"
    );
}

#[test]
#[ignore = "started by another test"]
fn as_a_process() {
    let (Some(directory), Some(command)) =
        (std::env::var_os("CASE"), std::env::var_os("CASE_COMMAND"))
    else {
        return;
    };
    let directory = Path::new(&directory);
    let mut request = Case::new(&[]).request;
    request.command = vec!["/bin/sh".into(), "-ec".into(), command];
    request.source = directory.join("src");
    request.diff = directory.join("fix.diff");
    request.work = Some(directory.join("work"));
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupt)).expect("a handler");
    }
    let outcome = match capture(&request, &mut |_| (), &interrupt) {
        Ok(capture) => format!("reused: {}", capture.reused),
        Err(error) => error.to_string(),
    };
    fs::write(directory.join("outcome"), outcome).expect("a file");
}
