//! `make demo`: Debian's stock redis-server gets other answers while redis-benchmark hammers it, and loses them again.

use livegraft_scenarios::redis::{Benchmark, Checker, Redis, Window, demo_patch};
use livegraft_scenarios::{cli, raise_open_files};
use serde_json::Value;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

const WINDOW: Duration = Duration::from_millis(3000);
const PINGS: &[&str] = &["+PONG", "+PONG from the patch"];
const PATCH: &str = "answers";

fn main() -> ExitCode {
    raise_open_files();
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a livegraft command; its progress shows on standard error, its JSON is the result.
fn livegraft(arguments: &[&str]) -> Result<Value, String> {
    println!("\n$ livegraft {}", arguments.join(" "));
    let output = Command::new(cli::binary())
        .args(arguments)
        .arg("--json")
        .stderr(Stdio::inherit())
        .output();
    let output = output.map_err(|e| format!("livegraft: {e}"))?;
    let json: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("livegraft's JSON: {e}"))?;
    if !output.status.success() {
        return Err(format!("livegraft ended with {}: {json}", output.status));
    }
    println!(
        "  {}: {} tasks moved in {} us, {} stops, the longest {} us, {} stopped at once; {} us in all",
        json["result"].as_str().unwrap_or("?"),
        json["tasks"],
        json["transition_us"],
        json["stops"],
        json["longest_stop_us"],
        json["most_stopped"],
        json["total_us"]
    );
    Ok(json)
}

fn answers(redis: &Redis, when: &str) -> Result<[String; 2], String> {
    let (ping, echo, time) = (
        redis.cli(&["PING"])?,
        redis.cli(&["ECHO", "hello"])?,
        redis.cli(&["TIME"])?,
    );
    println!(
        "  {when:<13}  PING -> {ping}   ECHO hello -> {echo}   TIME -> {}",
        time.replace('\n', " ")
    );
    Ok([ping, echo])
}

/// The answers before, while and after; and what livegraft reported.
struct Story {
    before: [String; 2],
    reports: Vec<Value>,
}

impl Story {
    fn load(&mut self, redis: &Redis, klp: &str) -> Result<(), String> {
        self.reports
            .push(livegraft(&["load", klp, "--pid", &redis.pid()])?);
        let now = answers(redis, "patched")?;
        if now
            .iter()
            .zip(&self.before)
            .any(|(now, before)| now == before)
        {
            return Err("the answers have not changed".to_owned());
        }
        Ok(())
    }

    fn unload(&mut self, redis: &Redis) -> Result<(), String> {
        self.reports
            .push(livegraft(&["unload", PATCH, "--pid", &redis.pid()])?);
        if answers(redis, "unloaded")? != self.before {
            return Err("the old answers have not come back".to_owned());
        }
        Ok(())
    }
}

fn demo() -> Result<(), String> {
    if !Redis::installed() {
        return Err("redis is missing: apt-get install redis-server redis-tools".to_owned());
    }
    let redis = Redis::start()?;
    let klp = demo_patch()?;
    let klp = klp
        .to_str()
        .ok_or("the target directory's name is not UTF-8")?;
    println!(
        "Debian's redis-server, pid {}, port {}, with redis-benchmark on it all the time",
        redis.pid(),
        redis.port
    );
    let requests = redis.requests_for(WINDOW)?;
    let checker = Checker::start(redis.port, PINGS)?;
    let before = answers(&redis, "before")?;
    let mut story = Story {
        before,
        reports: Vec::new(),
    };
    let (mut alone, mut patching) = (Vec::new(), Vec::new());
    // A window alone, then one in which something happens; the load never pauses for it.
    alone.push(redis.benchmark(requests)?.finish()?);
    patching.push(meanwhile(redis.benchmark(requests)?, || {
        story.load(&redis, klp)
    })?);
    alone.push(redis.benchmark(requests)?.finish()?);
    patching.push(meanwhile(redis.benchmark(requests)?, || {
        story.unload(&redis)
    })?);
    alone.push(redis.benchmark(requests)?.finish()?);
    patching.push(meanwhile(redis.benchmark(requests)?, || {
        story.load(&redis, klp)?;
        std::thread::sleep(WINDOW / 4);
        story.unload(&redis)
    })?);
    let checked = checker.finish()?;
    summary(&redis, &story, &alone, &patching, checked)
}

/// Lets the benchmark get going, acts, and waits for the benchmark's end. The action must fall into it.
fn meanwhile(
    mut benchmark: Benchmark,
    act: impl FnOnce() -> Result<(), String>,
) -> Result<Window, String> {
    std::thread::sleep(WINDOW / 8);
    act()?;
    if benchmark.ended() {
        eprintln!("demo: the benchmark ended before the patching did");
    }
    benchmark.finish()
}

fn median(windows: &[Window]) -> f64 {
    let mut values: Vec<f64> = windows.iter().map(|window| window.p999_ms).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn summary(
    redis: &Redis,
    story: &Story,
    alone: &[Window],
    patching: &[Window],
    checked: u64,
) -> Result<(), String> {
    let errors: u64 = alone
        .iter()
        .chain(patching)
        .map(|window| window.errors)
        .sum();
    let sum = |field: &str| {
        story
            .reports
            .iter()
            .filter_map(|report| report[field].as_u64())
            .sum::<u64>()
    };
    let most = |field: &str| {
        story
            .reports
            .iter()
            .filter_map(|report| report[field].as_u64())
            .max()
            .unwrap_or(0)
    };
    let functions = story.reports[0]["functions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let methods = functions.iter().map(|function| {
        format!(
            "{} {}",
            function["name"].as_str().unwrap_or("?"),
            function["entry"].as_str().unwrap_or("?")
        )
    });
    println!("\nSummary");
    println!("  requests served        {}", redis.processed()?);
    println!("  errors                 {errors}  ({checked} answers were checked one by one)");
    println!("  loads and unloads      {}", story.reports.len());
    println!("  tasks moved            {}", sum("tasks"));
    println!(
        "  longest stop of a task {} us, {} stopped at once",
        most("longest_stop_us"),
        most("most_stopped")
    );
    println!(
        "  entry methods          {}",
        methods.collect::<Vec<_>>().join(", ")
    );
    println!("  p99.9 left alone       {:.3} ms", median(alone));
    println!("  p99.9 while patching   {:.3} ms", median(patching));
    if errors > 0 {
        Err(format!("{errors} errors"))
    } else {
        Ok(())
    }
}
