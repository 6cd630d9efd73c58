//! What observing costs: `overhead ROUNDS SETUP COMMAND` runs the shell's COMMAND so many times plain and observed in turn,
//! after SETUP each time, and prints processor and wall-clock times. About each program is read what `livegraft build`
//! reads: its name, and all of those that compile, assemble or link.
use std::ffi::OsString;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use livegraft_observe::{Pid, Process, Watcher, command, run};

const TOOLS: [&str; 10] = [
    "gcc", "g++", "cc", "c++", "clang", "clang++", "cc1", "as", "ld", "ar",
];

#[derive(Default)]
struct Read(usize);

impl Watcher for Read {
    fn executed(&mut self, process: &Process) {
        let Ok(name) = process.name() else { return };
        let name = name.to_string_lossy();
        let name = name.rsplit('/').next().unwrap_or_default();
        self.0 += 1;
        if TOOLS.iter().any(|tool| name.ends_with(tool)) {
            let _ = (
                process.arguments(),
                process.environment(),
                process.directory(),
                process.program(),
            );
        }
    }
    fn ended(&mut self, _: Pid, _: ExitStatus) {}
}

/// Processor time of this process and of all children that were waited for, in seconds: user, system.
fn spent() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = (text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace())
    .map(|field| field.parse().unwrap_or(0.0))
    .collect();
    let ticks = |at: usize| fields.get(at).copied().unwrap_or(0.0) / 100.0;
    (ticks(11) + ticks(13), ticks(12) + ticks(14))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, setup, line] = &arguments[..] else {
        return Err("ROUNDS SETUP COMMAND".into());
    };
    let mut table: [[Vec<f64>; 3]; 2] = Default::default();
    let mut programs = 0;
    for round in 0..rounds.parse::<usize>()? * 2 {
        let observed = round % 2;
        Command::new("sh")
            .args(["-ec", setup])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        let (before, begin) = (spent(), Instant::now());
        let status = if observed == 1 {
            let mut command = command(&["sh", "-ec", line].map(OsString::from));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut watcher = Read::default();
            let status = run(command, &mut watcher, &AtomicBool::new(false))?;
            programs = watcher.0;
            status
        } else {
            Command::new("sh")
                .args(["-ec", line])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?
        };
        let (after, wall) = (spent(), begin.elapsed().as_secs_f64());
        if !status.success() {
            return Err(format!("{line}: {status}").into());
        }
        for (column, value) in [after.0 - before.0, after.1 - before.1, wall]
            .into_iter()
            .enumerate()
        {
            table[observed][column].push(value);
        }
    }
    println!("{programs} programs; medians in seconds: user, system, both, wall");
    let mut totals = [0.0; 2];
    for (name, (columns, total)) in ["plain", "observed"]
        .into_iter()
        .zip(table.iter_mut().zip(&mut totals))
    {
        let mut both: Vec<f64> = columns[0]
            .iter()
            .zip(&columns[1])
            .map(|(user, system)| user + system)
            .collect();
        *total = median(&mut both);
        let [user, system, wall] = columns.each_mut().map(|column| median(column));
        println!("{name:9} {user:8.2} {system:8.2} {total:8.2} {wall:8.2}");
    }
    println!(
        "processor time: {:+.1}%",
        (totals[1] / totals[0] - 1.0) * 100.0
    );
    Ok(())
}
