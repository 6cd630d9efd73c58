//! `make servers`: five of Debian's stock servers are patched under load, again and again, by the patches of
//! `demo/servers`. Prints what docs/servers.md shows. `servers NAME..` does that for these only.

use livegraft_scenarios::compile::{out_dir, pack_arguments};
use livegraft_scenarios::inspect::{self, Baseline};
use livegraft_scenarios::plan::root;
use livegraft_scenarios::servers::load::Seen;
use livegraft_scenarios::servers::names::Names;
use livegraft_scenarios::servers::{Kind, Server};
use livegraft_scenarios::{Outcome, cli, raise_open_files};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// How long the server is loaded, alone and while it is patched.
const ALONE: u64 = 6;
const PATCHED: u64 = 30;
/// How long a patch stays in.
const STAY: Duration = Duration::from_millis(100);
/// For patches of functions in which tasks sleep.
const PATIENCE: &[&str] = &["--timeout", "1s"];

fn main() -> ExitCode {
    raise_open_files();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names = Kind::ALL.map(|kind| kind.name());
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        eprintln!(
            "no server is called `{unknown}`; there are {}",
            names.join(", ")
        );
        return ExitCode::from(2);
    }
    let versions = ["libc6", "libssl3"].map(version);
    println!("Under {}", versions.join(", "));
    let mut code = ExitCode::SUCCESS;
    for kind in Kind::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == kind.name()) {
            continue;
        }
        if let Err(error) = story(kind) {
            eprintln!("{}: {error}", kind.name());
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// What came of all the times that a patch was loaded and unloaded.
#[derive(Debug, Default)]
struct Tally {
    loads: u64,
    methods: BTreeMap<String, BTreeSet<String>>,
    transitions_us: Vec<u64>,
    longest_stop_us: u64,
    most_stopped: u64,
    calls: u64,
    /// By what was said, how often.
    others: BTreeMap<String, u64>,
}

impl Tally {
    fn done(&mut self, outcome: &Outcome) {
        let number = |field: &str| outcome.json[field].as_u64().unwrap_or(0);
        self.transitions_us.push(number("transition_us"));
        self.longest_stop_us = self.longest_stop_us.max(number("longest_stop_us"));
        self.most_stopped = self.most_stopped.max(number("most_stopped"));
        for function in outcome.json["functions"].as_array().into_iter().flatten() {
            let text = |field: &str| function[field].as_str().unwrap_or("?").to_owned();
            self.methods
                .entry(text("name"))
                .or_default()
                .insert(text("entry"));
        }
    }

    fn print(&mut self, patch: &str, role: &str) {
        self.transitions_us.sort_unstable();
        let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1000.0);
        let methods = self.methods.iter().map(|(name, methods)| {
            let methods: Vec<&str> = methods.iter().map(String::as_str).collect();
            format!("`{name}` {}", methods.join("/"))
        });
        let mut notes: Vec<String> = methods.collect();
        let others = self.others.iter();
        notes.extend(others.map(|(said, times)| format!("{times} times: {said}")));
        if self.transitions_us.is_empty() {
            println!(
                "| {role} | {patch} | {} | {} | | | | |",
                notes.join("; "),
                self.loads
            );
            return;
        }
        println!(
            "| {role} | {patch} | {} | {} | {} | {:.1}, {:.1} | {} | {} |",
            notes.join("; "),
            self.loads,
            self.calls,
            ms(self.transitions_us.get(self.transitions_us.len() / 2)),
            ms(self.transitions_us.last()),
            self.longest_stop_us,
            self.most_stopped,
        );
    }
}

/// The patches for a server that can be packed. Those that can't are told of.
fn patches(kind: Kind) -> Result<Vec<(String, PathBuf)>, String> {
    let library = |name: &str| {
        let maps = std::fs::read_dir("/usr/lib/x86_64-linux-gnu")
            .into_iter()
            .flatten();
        let mut paths = maps.filter_map(|file| Some(file.ok()?.path()));
        paths.find(|path| path.file_name().is_some_and(|file| file == name))
    };
    let (libc, libcrypto) = (library("libc.so.6"), library("libcrypto.so.3"));
    let mut patches = Vec::new();
    for (patch, target) in [
        ("libc", libc.as_deref()),
        ("libcrypto", libcrypto.as_deref()),
        (kind.name(), Some(kind.program())),
        ("waiting", libc.as_deref()),
    ] {
        let target = target.ok_or_else(|| format!("no library for {patch}"))?;
        match pack(patch, target)? {
            Ok(klp) => patches.push((patch.to_owned(), klp)),
            Err(refusal) => println!("pack {patch}: {refusal}\n"),
        }
    }
    Ok(patches)
}

fn pack(patch: &str, target: &Path) -> Result<Result<PathBuf, String>, String> {
    let object = out_dir().join(format!("{patch}.o"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-I"]);
    gcc.arg(root().join("include")).arg("-c");
    gcc.arg(root().join(format!("demo/servers/{patch}.c")));
    let compiled = gcc.arg("-o").arg(&object).status();
    if !compiled.is_ok_and(|status| status.success()) {
        return Err(format!("demo/servers/{patch}.c does not compile"));
    }
    let (arguments, klp) = pack_arguments(&[object], target, patch);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = cli::livegraft(&arguments);
    Ok(match outcome.code {
        0 => Ok(klp),
        _ => Err(said(&outcome)),
    })
}

fn said(outcome: &Outcome) -> String {
    let message = outcome.json["error"]["message"].as_str();
    message.map_or_else(|| outcome.to_string(), str::to_owned)
}

/// What `list` says of a process; nothing of one that has ended.
fn listed(pid: i32) -> Value {
    let outcome = cli::livegraft(&["list", "--pid", &pid.to_string()]);
    outcome.json["processes"][0].clone()
}

fn is_enabled(pid: i32, patch: &str) -> bool {
    let listed = listed(pid);
    let mut patches = listed["patches"].as_array().into_iter().flatten();
    patches.any(|one| one["name"] == patch && one["state"] != "disabled")
}

/// The sum of all variables of all patches, of which only counters of calls ever change.
fn counters(pid: i32) -> u64 {
    let listed = listed(pid);
    let memory = listed["memory"]["mappings"]
        .as_array()
        .into_iter()
        .flatten();
    let variables = memory.filter(|part| part["what"].as_str() == Some("variables of a patch"));
    let address = |text: &Value| {
        let digits = text.as_str()?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    };
    variables
        .filter_map(|part| address(&part["start"]))
        .filter(|_| Path::new(&format!("/proc/{pid}/exe")).exists())
        .flat_map(|start| inspect::read(pid, start, 4096))
        .collect::<Vec<u8>>()
        .chunks_exact(8)
        .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
        .fold(0, u64::wrapping_add)
}

/// One life of a patch in one process.
fn cycle(pid: i32, name: &str, klp: &Path, tally: &mut Tally) -> Result<(), String> {
    let pid_text = pid.to_string();
    let klp = klp.to_str().ok_or("a path that is not UTF-8")?;
    let on = ["--pid", &pid_text];
    let command = |words: &[&str], more: &[&str]| {
        let words: Vec<&str> = words.iter().chain(&on).chain(more).copied().collect();
        cli::livegraft(&words)
    };
    let alive = || Path::new(&format!("/proc/{pid}")).exists();
    let loaded = command(&["load", klp], PATIENCE);
    tally.loads += 1;
    if loaded.code == 0 {
        tally.done(&loaded);
        let status = command(&["status"], &[]);
        let intact = status.json["entries_intact"] == true;
        if alive() && !intact {
            return Err(format!("after the load of {name}: {status}"));
        }
        let before = counters(pid);
        std::thread::sleep(STAY);
        tally.calls += counters(pid).saturating_sub(before);
        let unloaded = command(&["unload", name], PATIENCE);
        match unloaded.code {
            0 => tally.done(&unloaded),
            3 | 4 => {
                *tally
                    .others
                    .entry("unload timed out and was reversed".to_owned())
                    .or_default() += 1
            }
            _ if !alive() => {}
            _ => return Err(format!("unload: {}", said(&unloaded))),
        }
        return drain(pid, name);
    }
    let what = match loaded.code {
        _ if !alive() => "the process ended".to_owned(),
        3 | 4 => {
            let blocked = loaded.json["blocked"].as_array().into_iter().flatten();
            let by = |task: &Value| Some(task["function"].as_str()?.to_owned());
            let by: BTreeSet<String> = blocked.filter_map(by).collect();
            let by: Vec<String> = by.into_iter().collect();
            let how = ["reversed", "so did the way back at first"][usize::from(loaded.code == 4)];
            format!("timed out and {how}, blocked in {}", by.join(", "))
        }
        1 => said(&loaded).replace(&pid_text, "PID"),
        _ => return Err(loaded.to_string()),
    };
    *tally.others.entry(what).or_default() += 1;
    drain(pid, name)
}

/// What sleeps in the new version may take its time.
fn drain(pid: i32, name: &str) -> Result<(), String> {
    let pid_text = pid.to_string();
    for _ in 0..15 {
        if !is_enabled(pid, name) {
            return Ok(());
        }
        cli::livegraft(&[&["unload", name, "--pid", &pid_text], PATIENCE].concat());
    }
    Err(format!("{name} can't be unloaded from {pid}"))
}

/// What is visibly different with a server's own patch: a question, the old and the new answer.
fn question(kind: Kind) -> Option<[&'static str; 3]> {
    match kind {
        Kind::Nginx => Some(["Last-Modified", "20", "2000 00:00:00"]),
        Kind::Postgres => Some(["select version()", "Debian", "with a patch"]),
        Kind::Mariadb => Some(["select from_days(738886)", "2023", "2000-01-01"]),
        Kind::Memcached | Kind::Dnsmasq | Kind::Redis => None,
    }
}

/// Loads a server's own patch into its main process and workers, and asks.
fn ask(server: &Server, klp: &Path) -> Result<(), String> {
    let Some([question, old, new]) = question(server.kind) else {
        return Ok(());
    };
    let klp = klp.to_str().ok_or("a path that is not UTF-8")?;
    let expect = |expected: &str| {
        let answer = server.query(question)?;
        let shown = answer.strip_prefix(question).unwrap_or(&answer);
        println!("{question}: {}", shown.trim_start_matches([':', ' ']));
        let right = answer.contains(expected) && (expected == new || !answer.contains(new));
        right
            .then_some(())
            .ok_or_else(|| format!("no `{expected}` in {answer}"))
    };
    // What was forked for a client of just now may be gone.
    let on_all = |words: &[&str]| {
        for (_, pid) in server.processes() {
            let pid = pid.to_string();
            let outcome = cli::livegraft(&[words, &["--pid", &pid]].concat());
            if outcome.code != 0 && Path::new("/proc").join(&pid).exists() {
                return Err(said(&outcome));
            }
        }
        Ok(())
    };
    expect(old)?;
    on_all(&["load", klp])?;
    expect(new)?;
    if server.kind == Kind::Postgres {
        let refused = server.query("select 2147483647 + 1").unwrap_err();
        let said = refused
            .lines()
            .find(|line| line.contains("ERROR"))
            .unwrap_or_default();
        println!("select 2147483647 + 1: {said}");
    }
    on_all(&["unload", server.kind.name()])?;
    expect(old)
}

fn show(when: &str, seen: &Seen) {
    println!(
        "{when}: {} answers, {} errors, 99% within {:.2} ms, the slowest {:.1} ms",
        seen.answers, seen.errors, seen.p99_ms, seen.worst_ms
    );
}

fn version(package: &str) -> String {
    let mut command = Command::new("dpkg-query");
    command.args(["-W", "-f", "${Package} ${Version}", package]);
    let output = command
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&output).into_owned()
}

/// The processes of a server, without those that live only as long as one query.
fn lasting(server: &Server) -> Vec<(String, i32)> {
    let before = server.processes();
    std::thread::sleep(STAY);
    let now = server.processes().into_iter();
    now.filter(|process| before.contains(process)).collect()
}

fn story(kind: Kind) -> Result<(), String> {
    println!("\n## {}\n", version(kind.package()));
    let names = Names::install(kind)?;
    if names.is_some() {
        println!("Its own function was given a name by a debug file of ours.\n");
    }
    let patches = patches(kind)?;
    let server = Server::start(kind)?;
    server.prepare()?;
    if let Some((_, klp)) = patches.iter().find(|(name, _)| name == kind.name()) {
        ask(&server, klp)?;
    }
    let mut seen = vec![("alone", server.load(ALONE)?)];
    let mut tallies: BTreeMap<(String, String), Tally> = BTreeMap::new();
    let baselines = lasting(&server).into_iter();
    let baselines = baselines.map(|(_, pid)| (pid, Baseline::take(pid)));
    let baselines: Vec<(i32, Baseline)> = baselines.collect();
    let patched = std::thread::scope(|scope| -> Result<Seen, String> {
        let load = scope.spawn(|| server.load(PATCHED));
        std::thread::sleep(Duration::from_secs(1));
        let until = Instant::now() + Duration::from_secs(PATCHED - 6);
        let mut rounds = 0;
        while Instant::now() < until {
            rounds += 1;
            for (role, pid) in lasting(&server) {
                // Once is enough for those that do nothing.
                if role == "background" && rounds != 2 {
                    continue;
                }
                for (name, klp) in &patches {
                    if Instant::now() > until {
                        break;
                    }
                    let tally = tallies.entry((role.clone(), name.clone())).or_default();
                    cycle(pid, name, klp, tally)?;
                }
            }
        }
        load.join().map_err(|_| "the load panicked".to_owned())?
    })?;
    seen.push(("while it is patched", patched));
    seen.push(("alone again", server.load(ALONE)?));
    for (when, seen) in &seen {
        show(when, seen);
    }
    println!(
        "\n| process | patch | entries, and what else was said | loads | calls of the patch | transition, ms (median, longest) | longest stop, us | most stopped |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for ((role, patch), tally) in &mut tallies {
        tally.print(patch, role);
    }
    for (pid, baseline) in baselines {
        if Path::new(&format!("/proc/{pid}/exe")).exists() {
            if let Some(difference) = baseline.text_difference() {
                return Err(format!("the text of {pid} is not as it was: {difference}"));
            }
            let bases = inspect::foreign_gs_bases(pid);
            if !bases.is_empty() {
                return Err(format!("{bases:?}"));
            }
        }
    }
    let errors: u64 = seen.iter().map(|(_, seen)| seen.errors).sum();
    if errors > 0 {
        return Err(format!("its clients saw {errors} errors"));
    }
    Ok(())
}
