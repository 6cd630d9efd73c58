//! What is seen of a command, whatever it does with processes, threads and signals.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use livegraft_observe::{Error, Pid, Process, Watcher, command, run};

#[derive(Default)]
struct Seen {
    programs: Vec<(Pid, Vec<String>, Vec<Pid>)>,
    ends: Vec<(Pid, Option<i32>)>,
}

impl Watcher for Seen {
    fn executed(&mut self, process: &Process) {
        let arguments = process.arguments().expect("arguments");
        let name = process.name().expect("a name");
        assert_eq!(name, arguments.first().cloned().unwrap_or_default());
        let arguments = arguments
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        self.programs
            .push((process.pid, arguments, process.ancestors().collect()));
        assert!(process.program().expect("a program").is_absolute());
        assert!(process.directory().expect("a directory").is_absolute());
    }

    fn ended(&mut self, pid: Pid, status: ExitStatus) {
        self.ends.push((pid, status.code()));
    }
}

fn shell(line: &str) -> (Seen, Result<ExitStatus, Error>) {
    let mut seen = Seen::default();
    let argv = ["bash", "-c", line].map(OsString::from);
    let status = run(command(&argv), &mut seen, &AtomicBool::new(false));
    (seen, status)
}

impl Seen {
    fn of(&self, name: &str) -> Vec<&(Pid, Vec<String>, Vec<Pid>)> {
        self.programs
            .iter()
            .filter(|(_, arguments, _)| arguments.first().is_some_and(|first| first == name))
            .collect()
    }

    fn end(&self, pid: Pid) -> Option<i32> {
        self.ends
            .iter()
            .find(|(other, _)| *other == pid)
            .and_then(|(_, code)| *code)
    }
}

#[test]
fn programs_their_parents_and_ends() {
    let (seen, status) = shell("(sh -c 'exit 3'; env -i /bin/true; exit 7)");
    assert_eq!(status.expect("runs").code(), Some(7));
    let [(shell, arguments, ancestors)] = seen.of("sh")[..] else {
        panic!("{:?}", seen.programs);
    };
    assert_eq!(arguments, &["sh", "-c", "exit 3"]);
    assert_eq!(seen.end(*shell), Some(3));
    let bash = seen.of("bash")[0].0;
    assert_eq!(ancestors.last(), Some(&bash));
    // One process, two programs.
    assert_eq!(seen.of("env")[0].0, seen.of("/bin/true")[0].0);
    assert!(seen.of("env")[0].2.contains(&bash));
}

#[test]
fn many_at_once() {
    let (seen, status) = shell("for i in $(seq 200); do (/bin/true; /bin/true) & done; wait");
    assert!(status.expect("runs").success());
    assert_eq!(seen.of("/bin/true").len(), 400);
    let ended = |pid: &Pid| seen.end(*pid) == Some(0);
    assert!(seen.of("/bin/true").iter().all(|(pid, ..)| ended(pid)));
}

#[test]
fn names_of_any_length() {
    for length in [1, 500, 511, 512, 3000, 100_000] {
        let line = format!("(exec -a $(printf '%0{length}d' 7) /bin/true); (exec -a '' /bin/true)");
        let (seen, status) = shell(&line);
        assert!(status.expect("runs").success());
        let names = seen.programs.iter().filter_map(|(_, all, _)| all.first());
        let lengths = names.map(String::len);
        assert_eq!(lengths.filter(|&found| found == length).count(), 1);
    }
}

/// Who was created by somebody that is killed before it can tell is let go on all the same.
#[test]
fn creators_that_are_killed() {
    let (seen, status) = shell(
        "for i in $(seq 10 49); do timeout -s KILL 0.0$i sh -c 'while :; do /bin/true & done'; done; exit 6",
    );
    assert_eq!(status.expect("runs").code(), Some(6));
    assert!(seen.of("/bin/true").len() > 40);
}

#[test]
fn signals_reach_whom_they_are_for() {
    let (_, status) = shell("trap 'got=1' USR1; kill -USR1 $$; [ \"$got\" = 1 ]");
    assert!(status.expect("runs").success());
    let (_, status) = shell("kill -RTMIN+3 $$; true");
    assert_eq!(status.expect("ends").code(), None);
    // Stopped and continued by somebody who is not us.
    let (_, status) = shell(
        "me=$$; (while ! grep -q '^State:.*[Tt]' /proc/$me/status; do :; done; kill -CONT $me) & kill -STOP $$; wait",
    );
    assert!(status.expect("runs").success());
}

#[test]
fn a_thread_that_executes_a_program() {
    let source = "import os, threading\n\
                  threading.Thread(target=lambda: os.execv('/bin/sh', ['sh', '-c', 'exit 5'])).start()\n\
                  threading.Event().wait()";
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED: python3 is missing");
        return;
    }
    let mut seen = Seen::default();
    let argv = ["python3", "-c", source].map(OsString::from);
    let status = run(command(&argv), &mut seen, &AtomicBool::new(false)).expect("runs");
    assert_eq!(status.code(), Some(5));
    // The process keeps its number.
    assert_eq!(seen.of("sh").last().expect("sh").0, seen.programs[0].0);
}

#[test]
fn nothing_runs_on() {
    let begin = Instant::now();
    let (seen, status) = shell(
        "setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &); while ! [ \"$(pgrep -c -x sleep)\" -gt 2 ]; do :; done; echo $!",
    );
    assert!(status.expect("runs").success());
    for (pid, ..) in seen.of("sleep") {
        assert_eq!(
            seen.ends.iter().filter(|(other, _)| other == pid).count(),
            1
        );
        // Whoever inherits it may not have waited for it yet.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(
            status.is_empty() || status.contains("State:\tZ"),
            "{status}"
        );
    }
    let interrupt = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            interrupt.store(true, Ordering::Relaxed);
        });
        let argv = ["sh", "-c", "trap '' INT TERM; sleep 1000; sleep 1000"].map(OsString::from);
        let result = run(command(&argv), &mut Seen::default(), &interrupt);
        assert!(matches!(result, Err(Error::Interrupted)));
    });
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn two_observers_do_not_take_each_others_processes() {
    thread::scope(|scope| {
        for code in 0..4 {
            scope.spawn(move || {
                let (_, status) = shell(&format!(
                    "for i in $(seq 30); do /bin/true; done; exit {code}"
                ));
                assert_eq!(status.expect("runs").code(), Some(code));
            });
        }
        let own = Command::new("sh")
            .args(["-c", "sleep 0.1; exit 9"])
            .status()
            .expect("runs");
        assert_eq!(own.code(), Some(9));
    });
}

#[test]
fn what_is_no_command() {
    let mut seen = Seen::default();
    let status = run(
        command(&["no such command".into()]),
        &mut seen,
        &AtomicBool::new(false),
    );
    assert_eq!(status.expect("the shell says so").code(), Some(127));
}
