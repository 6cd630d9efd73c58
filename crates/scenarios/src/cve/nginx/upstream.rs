//! What upstreams answer.

use super::super::net::Connection;
use super::super::{Seen, h2, http};
use super::asked::{BARE, CONTENT, WORDS};
use super::{PAGE, Running};

pub fn exercise(running: &Running) -> Result<(), String> {
    let port = running.ports.web;
    http::get(port, "/tls")?.must_be(200, PAGE)?;
    http::get(port, "/upstream")?.must_be(200, CONTENT)?;
    http::get(port, "/upstream/split")?.must_be(200, CONTENT)?;
    let answer = bare(port, "/upstream/bare")?;
    if answer != BARE.as_bytes() {
        return Err(format!("a wrong answer: {}", answer.escape_ascii()));
    }
    for path in ["/scgi", "/uwsgi"] {
        let answer = http::get(port, path)?;
        answer.must_be(200, CONTENT)?;
        if answer.field("HTML-Kind") != Some("page") {
            return Err(format!("a wrong answer: {}", answer.head));
        }
    }
    Ok(())
}

/// An answer that nginx hands on as it came, without a head.
fn bare(port: u16, path: &str) -> Result<Vec<u8>, String> {
    let mut connection = Connection::open(port)?;
    connection.send(http::request("GET", path, "Connection: close\r\n", ""))?;
    connection.rest()
}

/// Answers that begin like a status line, and only the second part of them shows that they have none.
pub fn split_line(running: &Running) -> Result<Seen, String> {
    let port = running.ports.web;
    let bare = bare(port, "/upstream/bare-split")?;
    let mut seen = vec![format!("the page is \"{}\"", bare.escape_ascii())];
    let mut good = bare == BARE.as_bytes();
    for path in ["/scgi/split", "/uwsgi/split"] {
        let answer = http::get(port, path)?;
        let name = answer
            .head
            .lines()
            .find(|line| line.ends_with("-Kind: page"));
        good &= name == Some("HTML-Kind: page");
        seen.push(format!("a field \"{}\"", name.unwrap_or_default()));
    }
    let seen = seen.join(", ");
    match good {
        true => Ok(Seen::Behaves(seen)),
        false => Ok(Seen::Misbehaves(seen)),
    }
}

/// The upstream answers without having been asked, and before TLS has begun. nginx sees that only if the answer is
/// there when it looks at the connection for the first time; a second request on the client's connection keeps it
/// busy that long.
pub fn answer_before_tls(running: &Running) -> Result<Seen, String> {
    const TIMES: usize = 60;
    const PREMATURE: &str = "upstream prematurely sent response";
    for turn in 1..=TIMES {
        let mut connection = Connection::open(running.ports.web2)?;
        let long = format!("/busy?x={}b", "a".repeat(22));
        let mut bytes = h2::preface();
        bytes.extend(h2::headers(1, h2::END_STREAM, "GET", "/before-tls", &[]));
        bytes.extend(h2::headers(3, h2::END_STREAM, "GET", &long, &[]));
        connection.send(bytes)?;
        match h2::answer(&mut connection, 1)? {
            h2::Answer::Ok(body) => {
                let body = body.escape_ascii();
                return Ok(Seen::Misbehaves(format!(
                    "200 \"{body}\", though TLS never began"
                )));
            }
            h2::Answer::Refused if running.logged(PREMATURE)?.is_some() => {
                return Ok(Seen::Behaves(format!(
                    "502, and \"{PREMATURE}\" in the log"
                )));
            }
            h2::Answer::Refused if turn < TIMES => {}
            other => return Err(format!("a wrong answer: {other:?}")),
        }
    }
    Err("nginx was never late enough".to_owned())
}

/// In windows-1251.
fn recoded() -> Vec<u8> {
    let byte = |c: char| match c {
        'а'..='я' => (c as u32 - 'а' as u32) as u8 + 0xe0,
        '€' => 0x88,
        c => c as u8,
    };
    WORDS.chars().map(byte).collect()
}

/// Characters that come in two parts, the second with others behind it.
pub fn recode(running: &Running) -> Result<(), String> {
    http::get(running.ports.web, "/recode/words")?.must_be(200, recoded())
}

/// Every byte in a buffer of its own.
pub fn recode_bytes(running: &Running) -> Result<Seen, String> {
    let answer = http::get(running.ports.web, "/recode/bytes")?;
    match answer.must_be(200, recoded()) {
        Ok(()) => Ok(Seen::Behaves("the same text in windows-1251".to_owned())),
        Err(_) => Ok(Seen::Misbehaves(format!(
            "another text: \"{}\"",
            answer.body.escape_ascii()
        ))),
    }
}
