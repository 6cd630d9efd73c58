//! `info --diff`: the instructions in which the functions of a patch differ from those that they replace.

use anstyle::{AnsiColor, Style};
use livegraft_patchfile::changes::{Change, Hunk, Side, Source, Status};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

const HEAD: Style = Style::new().bold();
const PLACE: Style = AnsiColor::Cyan.on_default();
const OLD: Style = AnsiColor::Red.on_default();
const NEW: Style = AnsiColor::Green.on_default();

#[derive(Debug, Serialize)]
pub struct Differing {
    path: PathBuf,
    sources: Vec<Source>,
}

impl Differing {
    /// Of all functions, or of those that are asked for. The error: one that is not there, and what is.
    pub fn new(
        path: &Path,
        mut sources: Vec<Source>,
        functions: &[String],
    ) -> Result<Differing, (String, String)> {
        let all = || sources.iter().flat_map(|source| &source.functions);
        let unknown = |name: &&String| !all().any(|function| is_called(function, name));
        if let Some(name) = functions.iter().find(unknown) {
            let known: Vec<&str> = all().map(|function| function.name.as_str()).collect();
            return Err((name.clone(), known.join(", ")));
        }
        if !functions.is_empty() {
            for source in &mut sources {
                let asked = |f: &Change| functions.iter().any(|name| is_called(f, name));
                source.functions.retain(asked);
            }
            sources.retain(|source| !source.functions.is_empty());
        }
        Ok(Differing {
            path: path.to_owned(),
            sources,
        })
    }
}

/// The function itself, its parts and copies: `foo` is also `foo.cold` and `foo.constprop.0`.
fn is_called(function: &Change, name: &str) -> bool {
    let rest = function.name.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for source in &self.sources {
            for function in &source.functions {
                if !first {
                    writeln!(f)?;
                }
                first = false;
                let text = function.to_string();
                let (head, why) = text.split_once('\n').unwrap_or((&text, ""));
                let place = function.declared.as_deref().unwrap_or_default();
                if !place.starts_with(&source.path) {
                    write!(f, "{}: ", source.path)?;
                }
                write!(f, "{HEAD}{head}{HEAD:#}")?;
                writeln!(f, "{}{why}", if why.is_empty() { "" } else { "\n" })?;
                write_diff(f, function)?;
            }
        }
        Ok(())
    }
}

fn write_diff(f: &mut fmt::Formatter<'_>, function: &Change) -> fmt::Result {
    match (function.status, function.diff.as_deref()) {
        (Status::New | Status::Removed, _) => Ok(()),
        (_, Some([])) => writeln!(f, "      no instruction differs"),
        (_, Some(hunks)) => hunks.iter().try_for_each(|hunk| write_hunk(f, hunk)),
        (_, None) => writeln!(f, "      its instructions are not recorded"),
    }
}

fn write_hunk(f: &mut fmt::Formatter<'_>, hunk: &Hunk) -> fmt::Result {
    let place = hunk.at.as_deref().unwrap_or_default();
    let space = if place.is_empty() { "" } else { " " };
    writeln!(f, "{PLACE}@@{space}{place}{PLACE:#}")?;
    for line in &hunk.lines {
        let (sign, style) = match line.side {
            Side::Both => (' ', Style::new()),
            Side::Old => ('-', OLD),
            Side::New => ('+', NEW),
        };
        let offset = format!("+{:#x}", line.offset);
        writeln!(f, "{style}{sign} {offset:>7}  {}{style:#}", line.text)?;
    }
    Ok(())
}
