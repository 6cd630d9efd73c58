//! Files by WebDAV.

use super::super::{Seen, http};
use super::Running;

const CONTENT: &str = "the content of a file";

fn to(
    running: &Running,
    method: &str,
    path: &str,
    destination: &str,
) -> Result<http::Answer, String> {
    let fields = format!("Connection: close\r\nDestination: {destination}\r\n");
    http::ask(running.ports.web, http::request(method, path, &fields, ""))
}

pub fn exercise(running: &Running) -> Result<(), String> {
    let port = running.ports.web;
    let close = "Connection: close\r\n";
    let must = |answer: http::Answer, statuses: &[u16]| match statuses.contains(&answer.status) {
        true => Ok(()),
        false => Err(format!("a wrong answer: {answer}")),
    };
    let put = http::request("PUT", "/files/one", close, CONTENT);
    must(http::ask(port, put)?, &[201, 204])?;
    must(to(running, "COPY", "/files/one", "/files/two")?, &[204])?;
    must(
        to(
            running,
            "MOVE",
            "/files/two",
            "http://localhost/files/three",
        )?,
        &[204],
    )?;
    http::get(port, "/files/three")?.must_be(200, CONTENT)?;
    must(http::get(port, "/files/two")?, &[404])?;
    // The version with the fix refuses it earlier, in the same words.
    must(to(running, "COPY", "/files/one", "/files/there/")?, &[409])?;
    must(
        http::ask(port, http::request("DELETE", "/files/three", close, ""))?,
        &[204],
    )
}

/// A destination that is shorter than the location.
pub fn hole(running: &Running) -> Result<Seen, String> {
    let put = http::request("PUT", "/files/one", "Connection: close\r\n", CONTENT);
    http::ask(running.ports.web, put)?;
    match to(running, "COPY", "/files/one", "/x") {
        Ok(answer) if answer.status == 400 => Ok(Seen::Behaves("400 Bad Request".to_owned())),
        Ok(answer) => Ok(Seen::Misbehaves(format!(
            "the path of the destination is made of other memory: {}",
            answer.status
        ))),
        Err(error) => running.unanswered(&error),
    }
}
