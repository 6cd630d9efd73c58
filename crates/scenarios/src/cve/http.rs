//! HTTP/1 as its clients speak it.

use super::net::Connection;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// As 200.
    pub status: u16,
    /// The lines before the body, as they came.
    pub head: String,
    /// Without the chunks' sizes.
    pub body: Vec<u8>,
}

impl Answer {
    /// A field of the head.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// Insists on a status and a body.
    pub fn must_be(&self, status: u16, body: impl AsRef<[u8]>) -> Result<(), String> {
        match self.status == status && self.body == body.as_ref() {
            true => Ok(()),
            false => Err(format!("a wrong answer: {self}")),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 80;
        let shown = &self.body[..self.body.len().min(SHOWN)];
        write!(f, "{} \"{}\"", self.status, shown.escape_ascii())
    }
}

/// A field of a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A request on a connection of its own, and its answer.
pub fn ask(port: u16, request: impl AsRef<[u8]>) -> Result<Answer, String> {
    let mut connection = Connection::open(port)?;
    connection.send(request)?;
    answer(&mut connection)
}

/// A GET on a connection of its own.
pub fn get(port: u16, path: &str) -> Result<Answer, String> {
    ask(port, request("GET", path, "Connection: close\r\n", ""))
}

/// A request; `fields` are lines.
pub fn request(method: &str, path: &str, fields: &str, body: &str) -> String {
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}{length}\r\n{body}")
}

/// The next answer on a connection.
pub fn answer(connection: &mut Connection) -> Result<Answer, String> {
    let head = String::from_utf8_lossy(&connection.until(b"\r\n\r\n")?).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("no status: {head}"))?;
    let length = |text: &str| text.parse().map_err(|_| format!("no length: {text}"));
    let body = match (
        field(&head, "Content-Length"),
        field(&head, "Transfer-Encoding"),
    ) {
        _ if status == 204 || status == 304 => Vec::new(),
        (Some(text), _) => connection.exactly(length(text)?)?,
        (None, Some("chunked")) => chunks(connection)?,
        (None, _) => connection.rest()?,
    };
    Ok(Answer { status, head, body })
}

fn chunks(connection: &mut Connection) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line = String::from_utf8_lossy(&connection.until(b"\r\n")?).into_owned();
        let size = usize::from_str_radix(line.trim(), 16);
        let size = size.map_err(|_| format!("no size of a chunk: {line}"))?;
        body.extend(connection.exactly(size)?);
        connection.until(b"\r\n")?;
        if size == 0 {
            return Ok(body);
        }
    }
}
