//! What came of the rows, and the table of it.

use super::{Row, Seen};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// How a row ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The patch was loaded, used and unloaded.
    Loaded,
    /// The fix changes no code of the program.
    NoCode,
    /// `build`, `load` or `unload` has said no, and why.
    Refused(String),
    /// Something else than livegraft's word: what.
    Failed(String),
}

/// What came of a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Of the row.
    pub package: String,
    /// Of the row.
    pub version: String,
    /// Of the row.
    pub patch: String,
    /// Of the row.
    pub kind: String,
    /// How it ended.
    pub outcome: Outcome,
    /// It is not what must come of the row.
    pub unexpected: Option<String>,
    /// What the patch replaces.
    pub replaced: Vec<String>,
    /// Those of them that the exercise enters.
    #[serde(default)]
    pub entered: Vec<String>,
    /// Functions that it adds.
    pub added: usize,
    /// How the target was proven: `identical` or `objects`.
    pub proof: String,
    /// Seconds that `livegraft build` took, both builds included.
    pub build_s: f64,
    /// From the redirection to the last task, microseconds; the longest of its processes.
    pub transition_us: u64,
    /// The longest stop of a task, microseconds.
    pub longest_stop_us: u64,
    /// Tasks of all processes.
    pub tasks: u64,
    /// Requests of clients during it all, and those that failed.
    pub requests: u64,
    /// See `requests`.
    pub failed: u64,
    /// What the input did that the fix is against: without the patch, and with it.
    pub hole: Option<(String, String)>,
    /// What a user must know before it is loaded, beyond what livegraft says.
    #[serde(default)]
    pub caveat: Option<String>,
}

impl Report {
    /// Nothing is known yet.
    pub fn new(row: &Row) -> Self {
        Self {
            package: row.package.clone(),
            version: row.version.clone(),
            patch: row.patch.clone(),
            kind: row.kind.clone(),
            outcome: Outcome::Failed("it was not run".to_owned()),
            unexpected: None,
            replaced: Vec::new(),
            entered: Vec::new(),
            added: 0,
            proof: String::new(),
            build_s: 0.0,
            transition_us: 0,
            longest_stop_us: 0,
            tasks: 0,
            requests: 0,
            failed: 0,
            hole: None,
            caveat: None,
        }
    }

    /// Notes what was seen of the hole.
    ///
    /// # Errors
    /// It is not there without the patch, or is there with it.
    pub fn hole(&mut self, without: Seen, with: Seen) -> Result<(), String> {
        match (without, with) {
            (Seen::Misbehaves(without), Seen::Behaves(with)) => {
                self.hole = Some((without, with));
                Ok(())
            }
            (without, with) => Err(format!(
                "the hole is not shown: without the patch {without:?}, with it {with:?}"
            )),
        }
    }
}

/// The reports as a table in Markdown, with what they come to.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "| package | fix | kind | came of it | functions | proof | moved in | longest stop | requests, failed |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let came = match &report.outcome {
            Outcome::Loaded => "loaded".to_owned(),
            Outcome::NoCode => "no code changes".to_owned(),
            Outcome::Refused(why) => format!("refused: {}", escaped(why)),
            Outcome::Failed(why) => format!("FAILED: {}", escaped(why)),
        };
        let patch = report.patch.trim_end_matches(".patch");
        let _ = write!(
            text,
            "| {} | {patch} | {} | {came} |",
            report.package, report.kind
        );
        if report.outcome == Outcome::Loaded {
            let _ = writeln!(
                text,
                " {} | {} | {} us, {} tasks | {} us | {}, {} |",
                functions(report),
                report.proof,
                report.transition_us,
                report.tasks,
                report.longest_stop_us,
                report.requests,
                report.failed
            );
        } else {
            text.push_str(" | | | | |\n");
        }
    }
    let is = |outcome: fn(&Outcome) -> bool| reports.iter().filter(|r| outcome(&r.outcome)).count();
    let loaded = is(|outcome| *outcome == Outcome::Loaded);
    let no_code = is(|outcome| *outcome == Outcome::NoCode);
    let refused = is(|outcome| matches!(outcome, Outcome::Refused(_)));
    let code = reports.len() - no_code;
    let _ = writeln!(
        text,
        "\n{} fixes: {no_code} change no code; of the other {code}, {loaded} load ({}%) and {refused} are refused.",
        reports.len(),
        (100 * loaded).checked_div(code).unwrap_or(0)
    );
    for report in reports.iter().filter(|r| r.outcome == Outcome::Loaded) {
        let never = |name: &&String| !report.entered.contains(name);
        let never: Vec<&str> = (report.replaced.iter().filter(never))
            .map(String::as_str)
            .collect();
        if !never.is_empty() {
            let patch = report.patch.trim_end_matches(".patch");
            let _ = writeln!(
                text,
                "\nOf {} {patch}, what uses the program here does not enter {}.",
                report.package,
                never.join(", ")
            );
        }
    }
    let holes: Vec<&Report> = reports.iter().filter(|r| r.hole.is_some()).collect();
    if !holes.is_empty() {
        text.push_str("\nThe holes themselves, the same input each time:\n\n| package | fix | without the patch | with it |\n|---|---|---|---|\n");
    }
    for report in holes {
        if let Some((without, with)) = &report.hole {
            let patch = report.patch.trim_end_matches(".patch");
            let _ = writeln!(
                text,
                "| {} | {patch} | {} | {} |",
                report.package,
                escaped(without),
                escaped(with)
            );
        }
    }
    let loaded = reports.iter().filter(|r| r.outcome == Outcome::Loaded);
    let caveats: Vec<String> = loaded
        .filter_map(|r| {
            let patch = r.patch.trim_end_matches(".patch");
            let caveat = r.caveat.as_ref()?;
            Some(format!("- {} {patch}: {}\n", r.package, escaped(caveat)))
        })
        .collect();
    if !caveats.is_empty() {
        text.push_str(
            "\nLoaded, with something that livegraft can't see and a user must know:\n\n",
        );
        text.extend(caveats);
    }
    text
}

fn functions(report: &Report) -> String {
    const MOST: usize = 4;
    let mut names: Vec<String> = (report.replaced.iter().take(MOST))
        .map(|name| format!("`{name}`"))
        .collect();
    if report.replaced.len() > MOST {
        names.push(format!("{} more", report.replaced.len() - MOST));
    }
    if report.added > 0 {
        names.push(format!("{} new", report.added));
    }
    names.join(", ")
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
