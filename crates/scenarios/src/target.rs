//! A scenario's program while it runs.

use crate::inspect::{self, Baseline};
use crate::plan::Plan;
use crate::{cli, sys};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An answer that takes longer never comes. A thousand spinning threads on two cores take their time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that speaks the protocol of `tests/common/scn.h`. Ended and reaped when dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    complaints: Arc<Mutex<String>>,
    exe: PathBuf,
    patched: i32,
    baseline: Baseline,
    maps_memory: bool,
    mark: String,
}

/// Set in the environment of each program, so that what it leaves behind is found.
const MARK: &str = "LIVEGRAFT_SCENARIO";

/// One that no other program has.
fn mark() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{number}", std::process::id())
}

/// The processes that bear a mark, zombies apart.
fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let bears = |pid: &i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ
            .split(|&byte| byte == 0)
            .any(|entry| entry == wanted.as_bytes())
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(bears).collect()
}

impl Target {
    /// Starts a built target and waits until it is ready. Where things lie is the same each time, unless the scenario
    /// says `//# layout: random`: whether the place that a pun leads to is free shall not be a matter of luck.
    pub fn start(plan: &Plan, exe: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(exe);
        if plan.get("layout") != Some("random") {
            sys::without_randomization(&mut command);
        }
        let mark = mark();
        let mut child = command
            .args(arguments)
            .env(MARK, &mark)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", exe.display()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let complaints = Arc::new(Mutex::new(String::new()));
        let into = complaints.clone();
        std::thread::spawn(move || {
            let mut stderr = stderr;
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                into.lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let pid = child.id() as i32;
        let (stdin, exe) = (child.stdin.take(), exe.to_owned());
        let baseline = Baseline::take(pid);
        let maps_memory = plan.maps_memory();
        let mut target = Self {
            child,
            stdin,
            lines,
            complaints,
            exe,
            patched: pid,
            baseline,
            maps_memory,
            mark,
        };
        let first = target.next_line("to start");
        assert_eq!(first, "ready", "{}", target.obituary());
        target.rebase(pid);
        target
    }

    /// From now on the process to patch and to look at is this one: a child of the program.
    pub fn rebase(&mut self, pid: i32) {
        self.patched = pid;
        self.baseline = Baseline::take(pid);
    }

    /// The process to patch.
    pub fn pid(&self) -> i32 {
        self.patched
    }

    /// The same as text, for command lines.
    pub fn pid_text(&self) -> String {
        self.patched.to_string()
    }

    /// The program that it runs.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// What it looked like before anything was done to it.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// What is known of a program that does not answer.
    fn obituary(&mut self) -> String {
        std::thread::sleep(Duration::from_millis(100));
        let status = self
            .child
            .try_wait()
            .map(|status| status.map(|s| s.to_string()));
        let said = self
            .complaints
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone();
        format!("{}: {:?}, said {said:?}", self.exe.display(), status)
    }

    fn next_line(&mut self, for_what: &str) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(_) => panic!("no answer {for_what}: {}", self.obituary()),
        }
    }

    /// Sends a line and returns the answer; panics with the program's last words if it has ended.
    pub fn ask(&mut self, line: &str) -> String {
        let stdin = self.stdin.as_mut().expect("stdin is open until the end");
        let sent = writeln!(stdin, "{line}");
        assert!(sent.is_ok(), "can't send {line}: {}", self.obituary());
        self.next_line(&format!("to {line}"))
    }

    /// Asks for the scenario's verdict and insists on it.
    #[track_caller]
    pub fn expect(&mut self, verdict: &str) {
        let got = self.ask("check");
        assert_eq!(got, verdict, "the verdict of {}", self.exe.display());
    }

    /// Runs a livegraft command on it: `livegraft WORDS.. --pid PID MORE.. --json`.
    pub fn livegraft(&self, words: &[&str], more: &[&str]) -> cli::Outcome {
        let pid = self.pid_text();
        let arguments: Vec<&str> = words
            .iter()
            .copied()
            .chain(["--pid", &pid])
            .chain(more.iter().copied())
            .collect();
        cli::livegraft(&arguments)
    }

    /// Loads a patch.
    pub fn load(&self, klp: &Path, more: &[&str]) -> cli::Outcome {
        self.livegraft(&["load", klp.to_str().expect("a path in UTF-8")], more)
    }

    /// Unloads the patch `fix`.
    pub fn unload(&self, more: &[&str]) -> cli::Outcome {
        self.livegraft(&["unload", "fix"], more)
    }

    /// Insists that nothing of it was touched, as after a refusal.
    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(
            self.baseline.text_difference(),
            None,
            "the text was changed"
        );
        assert_eq!(
            self.baseline.maps_difference(),
            None,
            "the mappings were changed"
        );
        self.assert_undisturbed();
    }

    /// Insists that no task is traced or stopped.
    #[track_caller]
    pub fn assert_undisturbed(&self) {
        // A stop that has just ended may still show for a moment.
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let disturbed = inspect::disturbed_tasks(self.patched);
            if disturbed.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{disturbed:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Insists that text is as in the files and that everything mapped is accounted for.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_undisturbed();
        assert_eq!(
            self.baseline.text_difference(),
            None,
            "the text differs after unload"
        );
        self.assert_accounted();
    }

    /// Insists that `list` accounts for every mapping that is new.
    #[track_caller]
    pub fn assert_accounted(&self) {
        let listed = cli::list(self.patched);
        let rest = self.baseline.unaccounted(&listed, self.maps_memory);
        assert!(
            rest.is_empty(),
            "mappings that `list` does not name: {rest:x?}\nlist: {listed}"
        );
    }

    /// The end of every scenario, with nothing loaded: everything is as it was, the program ends by itself.
    #[track_caller]
    pub fn finish(mut self) {
        self.assert_clean();
        self.finish_gs();
        self.end();
    }

    /// No task is in a universe but the original one. The program is told that it may be interrupted now.
    #[track_caller]
    fn finish_gs(&mut self) {
        self.ask("hush");
        let bases = inspect::foreign_gs_bases(self.patched);
        assert!(bases.is_empty(), "{bases:?}");
    }

    /// Lets the program end, with whatever is loaded, and insists that it ends well.
    #[track_caller]
    pub fn end(mut self) {
        assert_eq!(self.ask("quit"), "ok");
        let status = self.wait();
        let said = self
            .complaints
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone();
        assert!(
            status.success(),
            "{} ended with {status}, said {said:?}",
            self.exe.display()
        );
        // What it forked may take a moment longer.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !marked(&self.mark).is_empty() {
            let left = marked(&self.mark);
            assert!(
                Instant::now() < deadline,
                "{} has left {left:?} behind",
                self.exe.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child works") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} does not end",
                self.exe.display()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The reason of a failure is often the program's end, which the failed command did not see.
            eprintln!("the target: {}", self.obituary());
        }
        if let Ok(None) = self.child.try_wait() {
            if self.patched != self.child.id() as i32 {
                sys::kill(self.patched, libc::SIGKILL);
            }
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        for pid in marked(&self.mark) {
            sys::kill(pid, libc::SIGKILL);
        }
    }
}
