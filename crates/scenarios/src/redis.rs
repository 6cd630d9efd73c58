//! Debian's stock redis-server, and the load on it; for the demo and the benchmarks.

use crate::compile;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The server's file.
pub const SERVER: &str = "/usr/bin/redis-server";

/// A redis-server on loopback, without anything on disk. Ended by its pid when dropped.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    /// The port that it listens on.
    pub port: u16,
}

impl Redis {
    /// Whether server and benchmark are installed.
    pub fn installed() -> bool {
        Path::new(SERVER).is_file()
            && ["redis-benchmark", "redis-cli"]
                .into_iter()
                .all(compile::has_command)
    }

    /// Starts one on a free port and waits until it answers.
    pub fn start() -> Result<Self, String> {
        let listener =
            TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        drop(listener);
        let child = Command::new(SERVER)
            .args([
                "--io-threads",
                "2",
                "--save",
                "",
                "--appendonly",
                "no",
                "--bind",
                "127.0.0.1",
            ])
            .args(["--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("{SERVER}: {e}"))?;
        let redis = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err(format!("{SERVER} does not answer on port {port}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(redis)
    }

    /// Its process id, as text.
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// What redis-cli prints for a command.
    pub fn cli(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new("redis-cli");
        command
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(words);
        let output = command.output().map_err(|e| format!("redis-cli: {e}"))?;
        if !output.status.success() {
            return Err(format!(
                "redis-cli {words:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }

    /// Commands that it has processed since it was started.
    pub fn processed(&self) -> Result<u64, String> {
        let info = self.cli(&["INFO", "stats"])?;
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.and_then(|number| number.trim().parse().ok())
            .ok_or_else(|| "INFO without a count".to_owned())
    }

    /// Starts redis-benchmark with so many requests for each of its two tests.
    pub fn benchmark(&self, requests: u64) -> Result<Benchmark, String> {
        let child = Command::new("redis-benchmark")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-c",
                "30",
                "-t",
                "get,ping_mbulk",
            ])
            .args(["-n", &requests.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("redis-benchmark: {e}"))?;
        Ok(Benchmark {
            child: Some(child),
            started: Instant::now(),
        })
    }

    /// How many requests (of each test) make a window of about this length.
    pub fn requests_for(&self, length: Duration) -> Result<u64, String> {
        let window = self.benchmark(20_000)?.finish()?;
        Ok((20_000.0 * length.as_secs_f64() / window.length.as_secs_f64()) as u64)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A redis-benchmark that is running.
#[derive(Debug)]
pub struct Benchmark {
    child: Option<Child>,
    started: Instant,
}

/// What a finished redis-benchmark says.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// From its start to its end.
    pub length: Duration,
    /// 99.9% of the requests took no longer, in milliseconds; of its tests, the worse.
    pub p999_ms: f64,
    /// Error replies and broken connections that it complained of.
    pub errors: u64,
}

impl Benchmark {
    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end and reads its report.
    pub fn finish(mut self) -> Result<Window, String> {
        let child = self.child.take().ok_or("already finished")?;
        let output = child
            .wait_with_output()
            .map_err(|e| format!("redis-benchmark: {e}"))?;
        let length = self.started.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        let complaints = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let errors = complaints
            .lines()
            .filter(|line| line.contains("rror"))
            .count() as u64;
        let errors = errors + u64::from(!output.status.success());
        let p999_ms = percentile(&text, 99.9).ok_or_else(|| format!("no percentiles in {text}"))?;
        Ok(Window {
            length,
            p999_ms,
            errors,
        })
    }
}

impl Drop for Benchmark {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// From lines such as `99.902% <= 0.303 milliseconds (cumulative count 99905)`: the first that reaches `percent`, and of
/// several tests the worst.
fn percentile(report: &str, percent: f64) -> Option<f64> {
    let mut worst = None;
    for section in report.split("Latency by percentile distribution").skip(1) {
        let line = |line: &str| {
            let (share, rest) = line.split_once("% <= ")?;
            Some((
                share.trim().parse::<f64>().ok()?,
                rest.split(' ').next()?.parse::<f64>().ok()?,
            ))
        };
        let reached = section
            .lines()
            .filter_map(line)
            .find(|(share, _)| *share >= percent)?;
        worst = Some(f64::max(worst.unwrap_or(0.0), reached.1));
    }
    worst
}

/// A client that checks every answer: what it has set it gets back, and pings are answered in one of the known ways.
#[derive(Debug)]
pub struct Checker {
    stop: Arc<AtomicBool>,
    checked: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Checker {
    /// Starts it.
    pub fn start(port: u16, pings: &'static [&'static str]) -> Result<Self, String> {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).map_err(|e| format!("port {port}: {e}"))?;
        let (stop, checked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stop_too, checked_too) = (stop.clone(), checked.clone());
        let thread =
            std::thread::spawn(move || check_answers(stream, pings, &stop_too, &checked_too));
        Ok(Self {
            stop,
            checked,
            thread: Some(thread),
        })
    }

    /// Ends it: how many answers it has checked, or the first wrong one.
    pub fn finish(mut self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or("already finished")?;
        thread
            .join()
            .map_err(|_| "the checking client panicked")??;
        Ok(self.checked.load(Ordering::Relaxed))
    }
}

fn check_answers(
    stream: TcpStream,
    pings: &[&str],
    stop: &AtomicBool,
    checked: &AtomicU64,
) -> Result<(), String> {
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .map_err(|e| e.to_string())?;
    let mut writer = stream.try_clone().map_err(|e| e.to_string())?;
    let mut reader = BufReader::new(stream);
    let mut ask = |command: &str, lines: usize| -> Result<String, String> {
        writer
            .write_all(format!("{command}\r\n").as_bytes())
            .map_err(|e| format!("{command}: {e}"))?;
        let mut answer = String::new();
        for _ in 0..lines {
            answer.clear();
            reader
                .read_line(&mut answer)
                .map_err(|e| format!("{command}: {e}"))?;
        }
        checked.fetch_add(1, Ordering::Relaxed);
        Ok(answer.trim_end().to_owned())
    };
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (set, get, ping) = (
            ask(&format!("SET checked {number}"), 1)?,
            ask("GET checked", 2)?,
            ask("PING", 1)?,
        );
        if set != "+OK" || get != number.to_string() || !pings.contains(&ping.as_str()) {
            return Err(format!(
                "wrong answers: SET {set}, GET {get} for {number}, PING {ping}"
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Compiles and packs the demo's patch.
pub fn demo_patch() -> Result<PathBuf, String> {
    let dir = compile::out_dir();
    let root = crate::plan::root();
    let object = dir.join("demo.o");
    let compiled = Command::new("gcc")
        .args(["-O2", "-fPIC", "-Wall", "-Wextra", "-I"])
        .arg(root.join("include"))
        .arg("-c")
        .arg(root.join("demo/patch.c"))
        .arg("-o")
        .arg(&object)
        .status()
        .map_err(|e| format!("gcc: {e}"))?;
    let klp = dir.join("answers.klp");
    let mut command = Command::new(crate::cli::binary());
    let packed = command
        .arg("pack")
        .arg(&object)
        .args(["--target", SERVER, "-o"])
        .arg(&klp)
        .output();
    let packed = packed.map_err(|e| format!("livegraft: {e}"))?;
    if !compiled.success() || !packed.status.success() {
        return Err(format!(
            "the patch could not be built: {}",
            String::from_utf8_lossy(&packed.stderr)
        ));
    }
    Ok(klp)
}
