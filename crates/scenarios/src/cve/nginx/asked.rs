//! The servers that nginx asks: upstreams, the one that knows the users of the mail, a mail server, names.

use super::super::http::field;
use super::super::net::{Backend, Connection};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the upstreams answer where nothing else is asked for.
pub const CONTENT: &str = "from upstream";
/// An answer without a status line, as HTTP/0.9 has it.
pub const BARE: &str = "HTXX, and what follows";
/// Half of the Cyrillic words are in it.
pub const WORDS: &str = "цена: 5 €, дом";

/// All of them.
pub struct Asked {
    plain: Backend,
    scgi: Backend,
    uwsgi: Backend,
    before_tls: Backend,
    auth: Backend,
    _mail: Backend,
    names: Names,
    two_lines: Names,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Asked {
    pub fn start() -> Result<Self, String> {
        let before_tls = Backend::start(|connection| {
            connection.send("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nplain")?;
            // Until nginx has had enough.
            connection.rest().map(drop)
        })?;
        let mail = Backend::start(mail)?;
        let (seen, port) = (Arc::default(), mail.port());
        let noted = Arc::clone(&seen);
        Ok(Self {
            plain: Backend::start(plain)?,
            scgi: Backend::start(gateway)?,
            uwsgi: Backend::start(gateway)?,
            before_tls,
            auth: Backend::start(move |connection| auth(connection, &noted, port))?,
            _mail: mail,
            names: Names::start(b"client.example")?,
            two_lines: Names::start(b"client\r\nX-Not-Asked-For: yes.example")?,
            seen,
        })
    }

    /// Where they listen, in the order of the configuration.
    pub fn ports(&self) -> [u16; 7] {
        [
            self.plain.port(),
            self.scgi.port(),
            self.uwsgi.port(),
            self.before_tls.port(),
            self.auth.port(),
            self.names.port,
            self.two_lines.port,
        ]
    }

    /// What was asked about users, those of the load apart; the heads of the requests in their order.
    pub fn auth_requests(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

/// Long enough that nginx has read what came before.
fn pause() {
    std::thread::sleep(Duration::from_millis(300));
}

fn plain(connection: &mut Connection) -> Result<(), String> {
    let head = connection.until(b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let start = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n";
    match path {
        "/upstream/bare" => connection.send(BARE),
        "/upstream/bare-split" => split(connection, BARE),
        "/upstream/split" => {
            let length = CONTENT.len();
            split(
                connection,
                &format!("{start}Content-Length: {length}\r\n\r\n{CONTENT}"),
            )
        }
        // Each chunk comes to a buffer of its own.
        "/recode/bytes" => chunked(connection, start, WORDS.as_bytes().chunks(1)),
        "/recode/words" => {
            let (first, rest) = WORDS.as_bytes().split_at(1);
            chunked(connection, start, [first, rest].into_iter())
        }
        _ => {
            let length = CONTENT.len();
            connection.send(format!("{start}Content-Length: {length}\r\n\r\n{CONTENT}"))
        }
    }
}

/// The first two bytes, and the others later.
fn split(connection: &mut Connection, text: &str) -> Result<(), String> {
    let (first, rest) = text.split_at(2);
    connection.send(first)?;
    pause();
    connection.send(rest)
}

fn chunked<'a>(
    connection: &mut Connection,
    start: &str,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> Result<(), String> {
    let mut bytes = format!("{start}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in chunks {
        bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    connection.send(bytes)
}

/// SCGI and uwsgi: the request is one small write, the answer begins with its fields.
fn gateway(connection: &mut Connection) -> Result<(), String> {
    let request = connection.some()?;
    let is_split = request.windows(6).any(|part| part == b"/split");
    let length = CONTENT.len();
    let text = format!("HTML-Kind: page\r\nContent-Length: {length}\r\n\r\n{CONTENT}");
    match is_split {
        true => split(connection, &text),
        false => connection.send(text),
    }
}

/// Says of each user which mail server is his: of `again-...` at the second time, of `later-...` never.
fn auth(connection: &mut Connection, seen: &Mutex<Vec<String>>, mail: u16) -> Result<(), String> {
    let head = connection.until(b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&head).into_owned();
    let user = field(&head, "Auth-User").unwrap_or_default().to_owned();
    let is_none = field(&head, "Auth-Method") == Some("none");
    let mut before = false;
    if user != "load" {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        before = seen
            .iter()
            .any(|head| field(head, "Auth-User") == Some(&user));
        seen.push(head);
    }
    let answer = match &user {
        user if user.starts_with("again-") && !before => {
            "Auth-Status: WAIT\r\nAuth-Wait: 1\r\n".to_owned()
        }
        user if user.starts_with("later-") && !is_none => {
            "Auth-Status: not now\r\nAuth-Wait: 1\r\n".to_owned()
        }
        _ => format!("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {mail}\r\n"),
    };
    connection.send(format!("HTTP/1.0 200 OK\r\n{answer}\r\n"))
}

/// A mail server that is content with everything.
fn mail(connection: &mut Connection) -> Result<(), String> {
    connection.send("220 mail server\r\n")?;
    loop {
        let line = connection.until(b"\r\n")?;
        match line.get(..4) {
            Some(b"QUIT") => return connection.send("221 bye\r\n"),
            Some(b"NOOP") => connection.send("250 still here\r\n")?,
            _ => connection.send("250 mail server\r\n")?,
        }
    }
}

/// Gives every address one name, and every name the address 127.0.0.1.
struct Names {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Names {
    fn start(name: &'static [u8]) -> Result<Self, String> {
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let wait = Some(Duration::from_millis(200));
        socket.set_read_timeout(wait).map_err(|e| e.to_string())?;
        let port = socket.local_addr().map_err(|e| e.to_string())?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut packet)
                    && let Some(answer) = named(&packet[..length], name)
                {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self {
            port,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// RFC 1035, 4.1.
fn named(query: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    const PTR: &[u8] = &[0, 12];
    let mut at = 12;
    while *query.get(at)? != 0 {
        at += 1 + usize::from(query[at]);
    }
    let kind = query.get(at + 1..at + 3)?;
    let mut data = Vec::new();
    if kind == PTR {
        for label in name.split(|byte| *byte == b'.') {
            data.push(label.len() as u8);
            data.extend(label);
        }
        data.push(0);
    } else {
        data.extend([127, 0, 0, 1]);
    }
    let mut packet = query.get(..at + 5)?.to_vec();
    packet[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    // The name of the question, its kind, IN, a minute.
    packet.extend([0xc0, 12, kind[0], kind[1], 0, 1, 0, 0, 0, 60]);
    packet.extend((data.len() as u16).to_be_bytes());
    packet.extend(data);
    Some(packet)
}
