//! haproxy: a master and a worker of four threads, before a server of ours.

use super::http::{Answer, field};
use super::net::{Backend, Connection, free_port};
use super::process::Process;
use super::{Case, Clients, Expected, Package, Row, Seen, Service, h2, http};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// See the module.
pub struct Haproxy;

impl Package for Haproxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn configure(&self) -> &'static str {
        "true"
    }

    // As debian/rules has it, without OpenTracing.
    fn make(&self) -> &'static str {
        "export DEB_BUILD_MAINT_OPTIONS=hardening=+all DEB_LDFLAGS_MAINT_APPEND=-Wl,--as-needed\n\
         get() { dpkg-buildflags --get $1; }\n\
         make -j2 V=1 PREFIX=/usr IGNOREGIT=true TARGET=linux-glibc USE_SYSTEMD=1 USE_PCRE2=1 USE_PCRE2_JIT=1 \
         USE_OPENSSL=1 USE_SLZ=1 USE_LUA=1 USE_PROMEX=1 LUA_INC=/usr/include/lua5.3 \
         LUA_LIB_NAME=lua5.3 DEBUG_CFLAGS=\"$(get CFLAGS) $(get CPPFLAGS)\" LDFLAGS=\"$(get LDFLAGS)\" \
         VERSION=2.6.12 SUBVERS=-1 VERDATE=2023/12/16 haproxy"
    }

    // It can use OpenSSL's asynchronous jobs, whose stacks go from thread to thread.
    fn options(&self) -> &'static [&'static str] {
        &["--together"]
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let known = row
            .patch
            .starts_with("BUG-MAJOR-http-reject-any-empty-content-length");
        known.then_some(Case {
            program: "haproxy",
            expected: Expected::Loads,
            shows_hole: true,
        })
    }

    fn start(&self, _: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        Ok(Box::new(Running::start(&tree.join("haproxy"), dir)?))
    }
}

struct Running {
    process: Process,
    port: u16,
    /// HTTP/2 without TLS.
    port2: u16,
    clients: Option<Clients>,
    _backend: Backend,
}

/// Answers with what it was told of the body's length, and the body; what it says of its own length twice.
fn serve(connection: &mut Connection) -> Result<(), String> {
    loop {
        let head = connection.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let told = field(&head, "Content-Length");
        let length = told.and_then(|told| told.parse().ok()).unwrap_or(0);
        let body = connection.exactly(length)?;
        let told = told.map_or("nothing".to_owned(), |told| format!("\"{told}\""));
        let body = String::from_utf8_lossy(&body);
        let body = format!("{told} {body}");
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}, {length}\r\n\r\n");
        connection.send(head + &body)?;
    }
}

impl Running {
    fn start(program: &Path, dir: &Path) -> Result<Self, String> {
        let (port, port2, backend) = (free_port()?, free_port()?, Backend::start(serve)?);
        let conf = format!(
            "global\n  nbthread 4\n  maxconn 200\n  master-worker\n\
             defaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n\
             frontend all\n  bind 127.0.0.1:{port}\n  bind 127.0.0.1:{port2} proto h2\n  default_backend server\n\
             backend server\n  server server 127.0.0.1:{}\n",
            backend.port()
        );
        let path = dir.join("haproxy.cfg");
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        std::fs::write(&path, conf).map_err(io)?;
        let log = std::fs::File::create(dir.join("log")).map_err(io)?;
        let child = Command::new(program)
            .args(["-W", "-db", "-f"])
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let mut running = Self {
            process: Process::new(child),
            port,
            port2,
            clients: None,
            _backend: backend,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = post(port, "Content-Length: 3\r\n", "abc") {
            if Instant::now() > deadline {
                return Err(format!("haproxy does not answer: {error}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut turn = 0;
        running.clients = Some(Clients::start(3, move || {
            turn += 1;
            let (http2, mut staying) = (turn == 3, None);
            move || match http2 {
                true => over_http2(port2, "4", "load"),
                false => stay(&mut staying, port),
            }
        }));
        Ok(running)
    }
}

/// A request on a connection that stays.
fn stay(staying: &mut Option<Connection>, port: u16) -> Result<(), String> {
    let mut connection = match staying.take() {
        Some(connection) => connection,
        None => Connection::open(port)?,
    };
    connection.send(http::request("POST", "/", "", "load"))?;
    http::answer(&mut connection)?.must_be(200, "\"4\" load")?;
    *staying = Some(connection);
    Ok(())
}

/// A request whose lengths are as given.
fn post(port: u16, lengths: &str, body: &str) -> Result<Answer, String> {
    let head = format!("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lengths}\r\n");
    http::ask(port, head + body)
}

fn http2(port: u16, length: &str, body: &str) -> Result<h2::Answer, String> {
    let mut connection = Connection::open(port)?;
    let mut sent = h2::preface();
    let flags = if body.is_empty() { h2::END_STREAM } else { 0 };
    sent.extend(h2::headers(
        1,
        flags,
        "POST",
        "/",
        &[("content-length", length)],
    ));
    if !body.is_empty() {
        sent.extend(h2::frame(h2::DATA, h2::END_STREAM, 1, body.as_bytes()));
    }
    connection.send(sent)?;
    h2::answer(&mut connection, 1)
}

fn over_http2(port: u16, length: &str, body: &str) -> Result<(), String> {
    let answer = http2(port, length, body)?;
    let wanted = format!("\"{}\" {body}", body.len());
    match answer == h2::Answer::Ok(wanted.into_bytes()) {
        true => Ok(()),
        false => Err(format!("a wrong answer: {answer:?}")),
    }
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        self.process.with_children()
    }

    fn exercise(&mut self) -> Result<(), String> {
        let good = [
            "Content-Length: 3\r\n",
            "Content-Length: 3 , 3\r\n",
            "Content-Length:  3\r\nContent-Length: 3\r\n",
        ];
        for lengths in good {
            post(self.port, lengths, "abc")?.must_be(200, "\"3\" abc")?;
        }
        let bad = [
            "Content-Length: 3, 4\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: 3x\r\n",
        ];
        for lengths in bad {
            let answer = post(self.port, lengths, "abc")?;
            if answer.status != 400 {
                return Err(format!("{lengths:?}: a wrong answer: {answer}"));
            }
        }
        for length in ["3", "3, 3"] {
            over_http2(self.port2, length, "abc")?;
        }
        match http2(self.port2, "3, 4", "abc")? {
            h2::Answer::Reset => Ok(()),
            answer => Err(format!("3, 4: a wrong answer: {answer:?}")),
        }
    }

    /// A length without a number.
    fn hole(&mut self) -> Result<Seen, String> {
        let one = post(self.port, "Content-Length:\r\n", "")?;
        let two = http2(self.port2, "", "")?;
        match (one.status, &two) {
            (400, h2::Answer::Reset) => Ok(Seen::Behaves("400, and a reset in HTTP/2".to_owned())),
            (200, h2::Answer::Ok(_)) => Ok(Seen::Misbehaves(format!(
                "200; the server behind it is told a length of {}",
                String::from_utf8_lossy(&one.body).trim()
            ))),
            _ => Err(format!("{one}, {two:?}")),
        }
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.clients = None;
        self.process.end_with_children();
    }
}
