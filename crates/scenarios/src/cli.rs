//! Runs the `livegraft` command and judges what it says.

use serde_json::Value;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No livegraft command of any scenario needs that long, tenfold margin included.
const LIMIT: Duration = Duration::from_secs(180);

/// Cargo's target directory, from where this binary lies in it.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the test binary has a path");
    let profile = exe
        .ancestors()
        .find(|dir| dir.ends_with("debug") || dir.ends_with("release"));
    profile
        .and_then(|dir| dir.parent())
        .expect("the test binary lies in cargo's target directory")
        .to_owned()
}

/// The `livegraft` under test: `$LIVEGRAFT`, or the release build next to this test binary.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let chosen = std::env::var_os("LIVEGRAFT").map(PathBuf::from);
            let path = chosen.unwrap_or_else(|| target_dir().join("release/livegraft"));
            assert!(
                path.is_file(),
                "{} is missing: cargo build --release -p livegraft",
                path.display()
            );
            path
        })
        .clone()
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    /// The command line.
    pub command: String,
    /// The exit code; 128 + N if signal N ended it.
    pub code: i32,
    /// What it wrote, word for word.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The JSON document on standard output; null if there is none.
    pub json: Value,
    /// From start to end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Insists on this exit code.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Insists on exit code 0.
    pub fn done(self) -> Self {
        self.expect(0)
    }

    /// A field of the JSON document that must be a string.
    pub fn text(&self, field: &str) -> &str {
        self.json[field]
            .as_str()
            .unwrap_or_else(|| panic!("no text `{field}`: {self}"))
    }

    /// A field of the JSON document that must be a number.
    pub fn number(&self, field: &str) -> u64 {
        self.json[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no number `{field}`: {self}"))
    }

    /// Insists on a load or unload that ended like this, with at most one task stopped at once, apart from
    /// those that can't stop when they are told to (a vfork parent).
    pub fn result(self, code: i32, result: &str) -> Self {
        let this = self.expect(code);
        assert_eq!(this.text("result"), result, "{this}");
        let functions = this.json["functions"].as_array();
        let rendezvous = functions
            .into_iter()
            .flatten()
            .any(|function| function["entry"] == "rendezvous");
        let allowed = rendezvous || this.command.contains("--together");
        assert!(
            allowed || this.number("most_stopped") <= 1 + this.number("late_stops"),
            "more than one task was stopped at once: {this}"
        );
        this
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {} after {:?}\nstdout: {}\nstderr: {}",
            self.command, self.code, self.elapsed, self.stdout, self.stderr
        )
    }
}

/// A `livegraft` that is running.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    started: Instant,
    output: [Option<JoinHandle<String>>; 2],
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Starts a livegraft command as it is given, as another user if that is asked for.
pub fn start(arguments: &[&str], user: Option<u32>) -> Running {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    run(command)
}

/// Starts a prepared command in a process group of its own.
pub fn run(mut command: Command) -> Running {
    let text = format!("{command:?}");
    let started = Instant::now();
    let mut child = command
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("{text}: {e}"));
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    Running {
        child,
        command: text,
        started,
        output: [stdout, stderr],
    }
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("waiting for a child works")
            .is_some()
    }

    /// SIGKILL to it and to whatever it may have started.
    pub fn kill(&mut self) {
        if !self.ended() {
            crate::killpg(self.pid(), libc::SIGKILL);
        }
    }

    /// Waits for its end.
    pub fn finish(self) -> Outcome {
        self.finish_within(LIMIT)
    }

    /// Waits for its end, for so long.
    pub fn finish_within(mut self, limit: Duration) -> Outcome {
        use std::os::unix::process::ExitStatusExt;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child works") {
                break status;
            }
            if self.started.elapsed() > limit {
                self.kill();
                let status = self.child.wait();
                panic!(
                    "`{}` did not end within {limit:?} ({status:?})",
                    self.command
                );
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        let elapsed = self.started.elapsed();
        let [stdout, stderr] = self.output.each_mut().map(|thread| {
            thread
                .take()
                .map(|thread| thread.join().expect("reading output works"))
                .unwrap_or_default()
        });
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Outcome {
            command: std::mem::take(&mut self.command),
            code,
            stdout,
            stderr,
            json,
            elapsed,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Runs a livegraft command with `--json` and insists on JSON.
pub fn livegraft(arguments: &[&str]) -> Outcome {
    // First: what follows `--` is a command of its own.
    let all = [&["--json"], arguments].concat();
    let outcome = start(&all, None).finish();
    assert!(!outcome.json.is_null(), "no JSON document: {outcome}");
    outcome
}

/// The process' entry in `list --json`; null if there is none.
pub fn list(pid: i32) -> Value {
    let outcome = livegraft(&["list", "--pid", &pid.to_string()]).done();
    let processes = outcome.json["processes"]
        .as_array()
        .unwrap_or_else(|| panic!("no processes: {outcome}"));
    processes
        .iter()
        .find(|process| process["pid"] == pid)
        .cloned()
        .unwrap_or(Value::Null)
}

/// The state of a patch in `list --json`; `None` if it is not listed.
pub fn patch_state(pid: i32, patch: &str) -> Option<String> {
    let process = list(pid);
    let patches = process["patches"].as_array()?;
    let patch = patches.iter().find(|entry| entry["name"] == patch)?;
    patch["state"].as_str().map(str::to_owned)
}
