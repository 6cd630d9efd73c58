//! Addresses that are rewritten.

use super::super::{Seen, http};
use super::Running;

/// Nothing that would have to be escaped.
pub fn exercise(running: &Running) -> Result<(), String> {
    let port = running.ports.web;
    http::get(port, "/escaped/a-path")?.must_be(200, "a-path")?;
    for (path, target) in [("a/b", "a/ba/b"), ("", "")] {
        let answer = http::get(port, &format!("/overlapping/{path}"))?;
        let wanted = format!("http://localhost/{target}");
        if answer.status != 302 || answer.field("Location") != Some(&wanted) {
            return Err(format!("a wrong answer: {}", answer.head));
        }
    }
    Ok(())
}

/// What was matched is escaped, and written behind memory that is too short for it.
pub fn escaped(running: &Running) -> Result<Seen, String> {
    let answer = http::get(running.ports.web, "/escaped/a+path")?;
    let seen = format!("/a+path is \"{}\"", answer.body.escape_ascii());
    match answer.must_be(200, "a+path") {
        Ok(()) => Ok(Seen::Behaves(seen)),
        Err(_) => Ok(Seen::Misbehaves(seen)),
    }
}

/// Thousands of characters, each in two groups, and three characters long while they are escaped.
pub fn overlapping(running: &Running) -> Result<Seen, String> {
    const LENGTH: usize = 4000;
    const TIMES: usize = 10;
    let path = format!("/overlapping/{}", "+".repeat(LENGTH));
    let wanted = format!("http://localhost/{}", "+".repeat(2 * LENGTH));
    for _ in 0..TIMES {
        let answer = match http::get(running.ports.web, &path) {
            Ok(answer) => answer,
            Err(error) => return running.unanswered(&error),
        };
        if answer.status != 302 || answer.field("Location") != Some(&wanted) {
            return Err(format!("a wrong answer: {}", answer.head));
        }
    }
    // The memory behind is looked at when it is freed.
    match running.dies()? {
        Some(died) => Ok(Seen::Misbehaves(died)),
        None => Ok(Seen::Behaves(format!(
            "{TIMES} redirections of {} characters",
            wanted.len()
        ))),
    }
}
