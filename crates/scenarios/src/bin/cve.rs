//! `make cve`: real security fixes of Debian 12, each built into a patch and loaded into the program that lacks it.
//!
//! `cve [--list] [--again] [--table FILE] [PACKAGE[/WORD]]...` runs the rows of `tests/cve/pairs.tsv`, all or those of a
//! package whose fix's file name has the word in it. A row that was run already with this livegraft is not run again,
//! unless `--again`. `--table` writes what has come of all rows that were ever run to a file.

use livegraft_scenarios::cve::{self, Outcome, Places, Report, Row};
use livegraft_scenarios::{cli, raise_open_files};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

#[derive(Default)]
struct Asked {
    list: bool,
    again: bool,
    table: Option<PathBuf>,
    wanted: Vec<String>,
}

fn asked() -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => asked.list = true,
            "--again" => asked.again = true,
            "--table" => asked.table = Some(words.next().ok_or("--table FILE")?.into()),
            _ if word.starts_with('-') => return Err(format!("unknown: {word}")),
            _ => asked.wanted.push(word),
        }
    }
    Ok(asked)
}

fn is_wanted(row: &Row, wanted: &[String]) -> bool {
    let fits = |word: &String| match word.split_once('/') {
        Some((package, part)) => row.package == package && row.patch.contains(part),
        None => row.package == *word,
    };
    wanted.is_empty() || wanted.iter().any(fits)
}

/// Where a row's report is kept.
fn kept(row: &Row) -> Result<PathBuf, String> {
    Ok(Places::of(&row.package)?.row(row).with_extension("json"))
}

fn read(row: &Row) -> Result<Option<Report>, String> {
    let Ok(text) = std::fs::read_to_string(kept(row)?) else {
        return Ok(None);
    };
    Ok(serde_json::from_str(&text).ok())
}

/// Whether a row was run after livegraft was built.
fn is_fresh(row: &Row) -> Result<bool, String> {
    let time =
        |path: &std::path::Path| -> Option<SystemTime> { path.metadata().ok()?.modified().ok() };
    Ok(time(&kept(row)?) > time(&cli::binary()))
}

fn main() -> ExitCode {
    match asked().and_then(|asked| all(&asked)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cve: {error}");
            ExitCode::from(2)
        }
    }
}

fn all(asked: &Asked) -> Result<bool, String> {
    raise_open_files();
    let rows = cve::rows()?;
    let chosen: Vec<&Row> = rows
        .iter()
        .filter(|row| is_wanted(row, &asked.wanted))
        .collect();
    if chosen.is_empty() {
        return Err("no row is called that; --list has them".to_owned());
    }
    let mut well = true;
    for (n, row) in chosen.iter().enumerate() {
        let before = read(row)?;
        if asked.list {
            print(row, before.as_ref());
            continue;
        }
        if let Some(report) = before.filter(|_| !asked.again)
            && is_fresh(row)?
        {
            well &= report.unexpected.is_none();
            print(row, Some(&report));
            continue;
        }
        eprintln!("[{}/{}] {} {}", n + 1, chosen.len(), row.package, row.patch);
        let package = cve::package(&row.package);
        let package = package.ok_or_else(|| format!("no package {}", row.package))?;
        let report = cve::run(package, row);
        let text = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
        let path = kept(row)?;
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        well &= report.unexpected.is_none();
        print(row, Some(&report));
    }
    if let Some(path) = &asked.table {
        let mut reports = Vec::new();
        for row in &rows {
            reports.extend(read(row)?);
        }
        let text = cve::table(&reports);
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(well)
}

fn print(row: &Row, report: Option<&Report>) {
    let came = match report.map(|report| &report.outcome) {
        None => "not run yet".to_owned(),
        Some(Outcome::Loaded) => {
            let names = report.map(|report| report.replaced.join(" "));
            format!("loaded: {}", names.unwrap_or_default())
        }
        Some(Outcome::NoCode) => "changes no code".to_owned(),
        Some(Outcome::Refused(why)) => format!("refused: {why}"),
        Some(Outcome::Failed(why)) => format!("FAILED: {why}"),
    };
    let unexpected = report.and_then(|report| report.unexpected.as_ref());
    let unexpected = unexpected.map_or(String::new(), |why| format!("  !! {why}"));
    println!(
        "{:10} {} {}: {came}{unexpected}",
        row.package, row.kind, row.patch
    );
    if let Some((without, with)) = report.and_then(|report| report.hole.as_ref()) {
        println!("{:10}   without the patch: {without}; with it: {with}", "");
    }
}
