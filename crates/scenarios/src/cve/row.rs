//! A row from the source to the unloaded patch.

use super::entered::entered;
use super::{Case, Expected, Outcome, Package, Places, Report, Row, Service};
use crate::cli;
use crate::inspect::Baseline;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Both builds of the largest package on a busy machine.
const BUILD_LIMIT: Duration = Duration::from_secs(3000);
/// Requests of the clients before and after each step.
const REQUESTS: u64 = 20;

/// Runs a row: whatever goes wrong is in the report.
pub fn run(package: &dyn Package, row: &Row) -> Report {
    let mut report = Report::new(row);
    let Some(case) = package.case(row) else {
        report.outcome = Outcome::Failed("no case is written for it".to_owned());
        report.unexpected = Some("a row without a case".to_owned());
        return report;
    };
    match story(package, row, &case, &mut report) {
        Ok(outcome) => report.outcome = outcome,
        Err(error) => report.outcome = Outcome::Failed(error),
    }
    report.unexpected = unexpected(&case, &report);
    report.caveat = package.caveat(row).map(str::to_owned);
    report
}

fn unexpected(case: &Case, report: &Report) -> Option<String> {
    match (case.expected, &report.outcome) {
        (Expected::Loads, Outcome::Loaded) if report.failed > 0 => {
            Some(format!("{} requests of clients failed", report.failed))
        }
        (Expected::Loads, Outcome::Loaded) => None,
        (Expected::NoCode, Outcome::NoCode) => None,
        (Expected::Refused(words), Outcome::Refused(why)) => {
            let missing = words.iter().find(|word| !why.contains(**word))?;
            Some(format!("refused, but not for `{missing}`"))
        }
        (expected, _) => Some(format!("expected: {expected:?}")),
    }
}

fn story(
    package: &dyn Package,
    row: &Row,
    case: &Case,
    report: &mut Report,
) -> Result<Outcome, String> {
    let places = Places::of(&row.package)?;
    places.prepare(package, row)?;
    let dir = places.row(row);
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(io)?;
    }
    std::fs::create_dir_all(&dir).map_err(io)?;
    // The program as its user has it: built here, long before anybody thinks of a patch.
    places.original(row)?;
    places.sh(package.make(), &places.tree)?;
    let built = dir.join("original");
    std::fs::rename(&places.tree, &built).map_err(io)?;
    places.original(row)?;
    let result = patched(package, row, case, &places, &built, report);
    // They are large, and made again in a moment.
    for directory in [&built, &dir.join("work"), &places.tree] {
        if directory.exists() {
            std::fs::remove_dir_all(directory).map_err(io)?;
        }
    }
    result
}

fn patched(
    package: &dyn Package,
    row: &Row,
    case: &Case,
    places: &Places,
    built: &Path,
    report: &mut Report,
) -> Result<Outcome, String> {
    let dir = places.row(row);
    let klp = dir.join("fix.klp");
    let mut build = Command::new(cli::binary());
    build
        .args(["--json", "build", "--source"])
        .arg(&places.tree)
        .arg("--diff")
        .arg(places.fix(row))
        .arg("--target")
        .arg(built.join(case.program))
        .arg("--work")
        .arg(dir.join("work"))
        .arg("-o")
        .arg(&klp)
        .args(["--", "sh", "-e", "-c", package.make()]);
    build.envs(places.settings()).stdin(Stdio::null());
    build.stdout(Stdio::piped()).stderr(Stdio::piped());
    let made = cli::run(build).finish_within(BUILD_LIMIT);
    report.build_s = made.elapsed.as_secs_f64();
    if made.code != 0 {
        let why = message(&made)?;
        return Ok(match why.contains("changes no code") {
            true => Outcome::NoCode,
            false => Outcome::Refused(why),
        });
    }
    for source in items(&made.json["sources"]) {
        for function in items(&source["functions"]) {
            let name = function["name"].as_str().unwrap_or("?").to_owned();
            match function["status"].as_str() {
                Some("changed") => report.replaced.push(name),
                Some("new") => report.added += 1,
                _ => {}
            }
        }
    }
    let proof = &made.json["targets"][0]["proof"];
    report.proof = proof.as_str().unwrap_or("?").to_owned();
    let without = match case.shows_hole {
        true => Some(start(package, row, built, &dir, "victim")?.hole()?),
        false => None,
    };
    let mut service = start(package, row, built, &dir, "running")?;
    service.clients().more(REQUESTS)?;
    let (pids, program) = (service.pids(), built.join(case.program));
    report.entered = entered(&pids, &program, &report.replaced, || service.exercise())?;
    let before: Vec<(i32, Baseline)> = service
        .pids()
        .into_iter()
        .map(|pid| (pid, Baseline::take(pid)))
        .collect();
    for (pid, _) in &before {
        let (klp, pid) = (klp.to_string_lossy(), pid.to_string());
        let load = [&["load", &*klp, "--pid", &pid], package.options()].concat();
        let loaded = cli::livegraft(&load);
        if loaded.code != 0 {
            return Ok(Outcome::Refused(message(&loaded)?));
        }
        let number = |field: &str| loaded.json[field].as_u64().unwrap_or(0);
        report.transition_us = report.transition_us.max(number("transition_us"));
        report.longest_stop_us = report.longest_stop_us.max(number("longest_stop_us"));
        report.tasks += number("tasks");
    }
    service.clients().more(REQUESTS)?;
    service.exercise()?;
    if let Some(without) = without {
        let with = service.hole()?;
        report.hole(without, with)?;
        service.clients().more(REQUESTS)?;
    }
    for (pid, baseline) in &before {
        let pid = pid.to_string();
        let unload = [&["unload", "fix", "--pid", &pid], package.options()].concat();
        let unloaded = cli::livegraft(&unload);
        if unloaded.code != 0 {
            return Ok(Outcome::Refused(message(&unloaded)?));
        }
        if let Some(difference) = baseline.text_difference() {
            return Err(format!("after the unload: {difference}"));
        }
    }
    service.exercise()?;
    service.clients().more(REQUESTS)?;
    if service.pids() != before.iter().map(|(pid, _)| *pid).collect::<Vec<_>>() {
        return Err("its processes are others now".to_owned());
    }
    (report.requests, report.failed) = service.clients().count();
    Ok(Outcome::Loaded)
}

fn start(
    package: &dyn Package,
    row: &Row,
    built: &Path,
    dir: &Path,
    name: &str,
) -> Result<Box<dyn Service>, String> {
    let own = dir.join(name);
    std::fs::create_dir_all(&own).map_err(|e| format!("{}: {e}", own.display()))?;
    package.start(row, built, &own)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What a command that failed has said.
fn message(outcome: &cli::Outcome) -> Result<String, String> {
    let message = outcome.json["error"]["message"].as_str();
    message
        .map(str::to_owned)
        .ok_or_else(|| format!("no message: {outcome}"))
}
