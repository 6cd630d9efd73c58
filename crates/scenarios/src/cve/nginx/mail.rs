//! Mail: SMTP to nginx, which asks who the user is and hands the connection on.

use super::super::Seen;
use super::super::http::field;
use super::super::net::Connection;
use super::Running;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::sync::atomic::{AtomicU32, Ordering};

fn base64(text: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(text)
}

/// A user that nobody has asked for yet.
fn user(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A session after the greetings.
fn session(port: u16) -> Result<Connection, String> {
    let mut connection = Connection::open(port)?;
    reply(&mut connection, "220")?;
    say(&mut connection, "EHLO client.example", "250")?;
    Ok(connection)
}

/// All lines of a reply, the last of which must begin with the code.
fn reply(connection: &mut Connection, code: &str) -> Result<String, String> {
    loop {
        let line = String::from_utf8_lossy(&connection.until(b"\r\n")?).into_owned();
        if line.as_bytes().get(3) != Some(&b'-') {
            return match line.starts_with(code) {
                true => Ok(line),
                false => Err(format!("a wrong reply: {line}")),
            };
        }
    }
}

fn say(connection: &mut Connection, line: &str, code: &str) -> Result<String, String> {
    connection.send(format!("{line}\r\n"))?;
    reply(connection, code).map_err(|error| format!("{line}: {error}"))
}

/// That the mail server is at the other end, and the end.
fn part(connection: &mut Connection) -> Result<(), String> {
    let line = say(connection, "NOOP", "250")?;
    if !line.contains("still here") {
        return Err(format!("a wrong reply: {line}"));
    }
    say(connection, "QUIT", "221").map(drop)
}

fn plain(connection: &mut Connection, user: &str, code: &str) -> Result<(), String> {
    let line = format!("AUTH PLAIN {}", base64(format!("\0{user}\0secret")));
    say(connection, &line, code).map(drop)
}

fn cram_md5(connection: &mut Connection, user: &str) -> Result<(), String> {
    const DIGEST: &str = "00112233445566778899aabbccddeeff";
    say(connection, "AUTH CRAM-MD5", "334")?;
    say(connection, &base64(format!("{user} {DIGEST}")), "235").map(drop)
}

/// A whole session.
pub fn login(port: u16, user: &str) -> Result<(), String> {
    let mut connection = session(port)?;
    say(&mut connection, "AUTH LOGIN", "334")?;
    say(&mut connection, &base64(user), "334")?;
    say(&mut connection, &base64("secret"), "235")?;
    part(&mut connection)
}

/// What was asked about a user.
fn asked(running: &Running, user: &str, name: &str) -> Result<Option<String>, String> {
    let requests = running.asked.auth_requests();
    let head = requests
        .iter()
        .rfind(|head| field(head, "Auth-User") == Some(user));
    let head = head.ok_or_else(|| format!("nothing was asked about {user}"))?;
    Ok(field(head, name).map(str::to_owned))
}

fn must_ask(running: &Running, user: &str, name: &str, value: &str) -> Result<(), String> {
    let asked = asked(running, user, name)?;
    match asked.as_deref() == Some(value) {
        true => Ok(()),
        false => Err(format!("about {user} was asked: {name} {asked:?}")),
    }
}

/// Every way to say who one is, and a few that are wrong.
pub fn exercise(running: &Running) -> Result<(), String> {
    let port = running.ports.mail;
    let who = user("plain");
    let mut connection = session(port)?;
    plain(&mut connection, &who, "235")?;
    part(&mut connection)?;
    must_ask(running, &who, "Auth-Pass", "secret")?;
    must_ask(running, &who, "Client-Host", "client.example")?;

    let who = user("login");
    login(port, &who)?;
    must_ask(running, &who, "Auth-Pass", "secret")?;

    let who = user("cram");
    let mut connection = session(port)?;
    cram_md5(&mut connection, &who)?;
    part(&mut connection)?;
    must_ask(running, &who, "Auth-Method", "cram-md5")?;

    let mut connection = session(port)?;
    for wrong in ["AUTH PLAIN %%%%", "AUTH LOGIN %%%%", "AUTH PLAIN YWJj"] {
        say(&mut connection, wrong, "50")?;
    }
    say(&mut connection, "MAIL FROM:<a@client.example>", "250")?;
    say(&mut connection, "RCPT TO:<b@localhost>", "250")?;
    part(&mut connection)
}

/// A user that is sent away, then one whose name can't be read, then mail without a name.
pub fn login_left_over(running: &Running) -> Result<Seen, String> {
    let who = user(&format!("later-{}", "a".repeat(100)));
    let mut connection = session(running.ports.mail)?;
    plain(&mut connection, &who, "535")?;
    say(&mut connection, "AUTH LOGIN %%%%", "50")?;
    say(
        &mut connection,
        "MAIL FROM:<left-over@client.example>",
        "250",
    )?;
    say(&mut connection, "RCPT TO:<b@localhost>", "250")?;
    let requests = running.asked.auth_requests();
    let of = |head: &&String| {
        let from = field(head, "Auth-SMTP-From");
        from.is_some_and(|from| from.contains("left-over"))
    };
    let head = requests.iter().rfind(of).ok_or("nothing was asked")?;
    let told = field(head, "Auth-User").unwrap_or_default();
    match told == who {
        true => Ok(Seen::Behaves(
            "the user of the last login that could be read is named".to_owned(),
        )),
        false => Ok(Seen::Misbehaves(format!(
            "{} bytes of the worker's memory are named as the user",
            who.len()
        ))),
    }
}

/// Whoever knows the users wants to be asked again in a second.
pub fn asked_again(running: &Running) -> Result<Seen, String> {
    let who = user("again");
    let mut connection = session(running.ports.mail)?;
    match cram_md5(&mut connection, &who).and_then(|()| part(&mut connection)) {
        Ok(()) => Ok(Seen::Behaves("logged in at the second attempt".to_owned())),
        Err(error) => running.unanswered(&error),
    }
}

/// The client's name has a line break in it.
pub fn name_of_two_lines(running: &Running) -> Result<Seen, String> {
    let who = user("lines");
    login(running.ports.mail_two_lines, &who)?;
    if let Some(value) = asked(running, &who, "X-Not-Asked-For")? {
        return Ok(Seen::Misbehaves(format!(
            "the client's name adds a field \"X-Not-Asked-For: {value}\" to what is asked about the user"
        )));
    }
    must_ask(running, &who, "Client-Host", "[TEMPUNAVAIL]")?;
    Ok(Seen::Behaves(
        "the client's name is [TEMPUNAVAIL]".to_owned(),
    ))
}
