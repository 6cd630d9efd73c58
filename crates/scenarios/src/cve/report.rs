//! What came of the rows.

use super::{Row, Seen};
use serde::{Deserialize, Serialize};

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
