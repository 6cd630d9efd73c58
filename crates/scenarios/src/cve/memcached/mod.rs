//! memcached with what Debian leaves out of its build and the fixes are about: its proxy, and its own password file.

mod client;

use super::net::free_port;
use super::process::Process;
use super::{Case, Clients, Expected, Package, Row, Seen, Service};
use client::Connection;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// See the module.
pub struct Memcached;

const PROGRAM: &str = "memcached";

/// By what it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fix {
    /// How a password is looked up.
    Password,
    /// How the proxy takes a request for several keys apart.
    Multiget,
    /// How it reads a line; a struct that each request in flight has becomes larger.
    Line,
}

impl Fix {
    fn of(row: &Row) -> Option<Self> {
        Some(match row.patch.trim_end_matches(".patch") {
            "0008-CVE-2026-47783-CVE-2026-47784" => Self::Password,
            "0009-CVE-2023-46852" => Self::Multiget,
            "CVE-2023-46853" => Self::Line,
            _ => return None,
        })
    }
}

impl Package for Memcached {
    fn name(&self) -> &'static str {
        "memcached"
    }

    fn configure(&self) -> &'static str {
        "CFLAGS='-g -O2 -fstack-protector-strong -Wformat -Werror=format-security' \
         CPPFLAGS='-Wdate-time -D_FORTIFY_SOURCE=2' LDFLAGS='-Wl,-z,relro -Wl,-z,now' \
         ./configure --enable-sasl --enable-sasl-pwdb --enable-tls --enable-proxy"
    }

    fn make(&self) -> &'static str {
        "make -C vendor && make -j2 memcached"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let fix = Fix::of(row)?;
        Some(Case {
            program: PROGRAM,
            expected: match fix {
                Fix::Password | Fix::Multiget => Expected::Loads,
                Fix::Line => Expected::Refused(&["struct mcp_parser_s"]),
            },
            shows_hole: fix == Fix::Multiget,
        })
    }

    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        let fix = Fix::of(row).ok_or("no case")?;
        Ok(Box::new(Running::start(fix, &tree.join(PROGRAM), dir)?))
    }
}

struct Running {
    fix: Fix,
    // Dropped before what they use.
    clients: Option<Clients>,
    server: Server,
    /// What the proxy asks.
    _backend: Option<Server>,
}

/// A memcached. Ended by its pid when dropped.
struct Server {
    process: Process,
    port: u16,
}

impl Server {
    fn start(program: &Path, dir: &Path, words: &[&str]) -> Result<Self, String> {
        let port = free_port()?;
        let log = std::fs::File::create(dir.join(format!("log.{port}")));
        let child = Command::new(program)
            .args(["-l", "127.0.0.1", "-U", "0", "-u", "root"])
            .args(["-p", &port.to_string()])
            .args(words)
            .env("SASL_CONF_PATH", dir)
            .env("MEMCACHED_SASL_PWDB", dir.join("passwords"))
            .stdin(Stdio::null())
            .stderr(log.map_err(|e| format!("{}: {e}", dir.display()))?)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let server = Self {
            process: Process::new(child),
            port,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while Connection::open(port).is_err() {
            if Instant::now() > deadline {
                return Err(format!("{} does not answer", program.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn has_crashed(&mut self) -> Result<bool, String> {
        let ended = self.process.ends_within(Duration::from_secs(10))?;
        Ok(ended.is_some())
    }
}

impl Running {
    fn start(fix: Fix, program: &Path, dir: &Path) -> Result<Self, String> {
        let write = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).map_err(|e| format!("{}: {e}", dir.display()))
        };
        let (server, backend) = if fix == Fix::Password {
            write("memcached.conf", "mech_list: plain\n")?;
            // libsasl adds the name of this machine.
            let host = "/proc/sys/kernel/hostname";
            let host = std::fs::read_to_string(host).map_err(|e| format!("{host}: {e}"))?;
            let host = host.trim();
            let users = format!("alice@{host}:secret\nbob@{host}:word:and more\n");
            write("passwords", &users)?;
            (Server::start(program, dir, &["-S"])?, None)
        } else {
            let backend = Server::start(program, dir, &[])?;
            let lua = include_str!("../../../../../tests/cve/memcached_proxy.lua");
            write("proxy.lua", &lua.replace("PORT", &backend.port.to_string()))?;
            let config = format!("proxy_config={}", dir.join("proxy.lua").display());
            let server = Server::start(program, dir, &["-o", &config])?;
            (server, Some(backend))
        };
        let port = server.port;
        let mut running = Self {
            fix,
            clients: None,
            server,
            _backend: backend,
        };
        let mut numbers = 0..4_u32;
        running.clients = Some(Clients::start(4, move || {
            let number = numbers.next().unwrap_or(0);
            let (mut connection, mut round) = (None, 0);
            move || {
                round += 1;
                if round % 50 == 1 {
                    connection = Some(Connection::open(port)?);
                }
                let connection = connection.as_mut().ok_or("no connection")?;
                match fix {
                    Fix::Password => signed_in(connection, number, round),
                    Fix::Multiget | Fix::Line => proxied(connection, number, round),
                }
            }
        }));
        Ok(running)
    }
}

/// What a client does where passwords are asked for: names itself, sets, gets.
fn signed_in(connection: &mut Connection, client: u32, round: u64) -> Result<(), String> {
    const GET: u8 = 0;
    const SET: u8 = 1;
    if round % 50 == 1 && !connection.authenticate("alice", "secret")? {
        return Err("the right password is wrong".to_owned());
    }
    let (key, value) = (format!("k{client}"), round.to_string());
    let set = connection.binary(SET, &[0; 8], &key, value.as_bytes())?;
    let got = connection.binary(GET, &[], &key, &[])?;
    match set.0 == 0 && got == (0, value.clone().into_bytes()) {
        true => Ok(()),
        false => Err(format!("{key} is {got:?} instead of {value}")),
    }
}

/// What a client of the proxy does: sets, gets one key and two.
fn proxied(connection: &mut Connection, client: u32, round: u64) -> Result<(), String> {
    let (a, b) = (format!("a{client}"), format!("b{client}"));
    for key in [&a, &b] {
        let value = format!("{key}:{round}");
        connection.ask(
            &format!("set {key} 0 0 {}\r\n{value}\r\n", value.len()),
            "STORED",
        )?;
    }
    let found = |key: &String| {
        let value = format!("{key}:{round}");
        [format!("VALUE {key} 0 {}", value.len()), value]
    };
    expect(connection, &format!("get {a}\r\n"), &found(&a))?;
    let both = [found(&a), found(&b)].concat();
    expect(connection, &format!("get {a} {b}\r\n"), &both)
}

/// Insists on these lines before `END`.
fn expect(connection: &mut Connection, request: &str, lines: &[String]) -> Result<(), String> {
    let answer = connection.ask(request, "END")?;
    match answer == lines {
        true => Ok(()),
        false => Err(format!("{request:?}: {answer:?} instead of {lines:?}")),
    }
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        vec![self.server.process.pid()]
    }

    fn exercise(&mut self) -> Result<(), String> {
        if self.fix == Fix::Password {
            for (user, password, right) in [
                ("alice", "secret", true),
                ("alice", "secre", false),
                ("alice", "secret1", false),
                ("alic", "secret", false),
                ("nobody", "secret", false),
                ("bob", "word", true),
                ("bob", "and more", false),
            ] {
                let believed = Connection::open(self.server.port)?.authenticate(user, password)?;
                if believed != right {
                    return Err(format!("{user} with {password}: {believed}"));
                }
            }
            return Ok(());
        }
        let mut connection = Connection::open(self.server.port)?;
        for round in 0..20 {
            proxied(&mut connection, 100, round)?;
        }
        let lines = [
            "VALUE a100 0 7".to_owned(),
            "a100:19".to_owned(),
            "SERVER_ERROR key too long".to_owned(),
        ];
        let long = "k".repeat(251);
        expect(&mut connection, &format!("get a100 {long}\r\n"), &lines)
    }

    fn hole(&mut self) -> Result<Seen, String> {
        if self.fix != Fix::Multiget {
            return Err("not shown".to_owned());
        }
        let mut connection = Connection::open(self.server.port)?;
        let answer = connection.ask(&format!("get {}a b\r\n", " ".repeat(600)), "END");
        match answer {
            Ok(lines)
                if lines
                    .iter()
                    .all(|line| line == "SERVER_ERROR malformed request") =>
            {
                Ok(Seen::Behaves("SERVER_ERROR malformed request".to_owned()))
            }
            Err(_) if self.server.has_crashed()? => Ok(Seen::Misbehaves(
                "`get`, 600 blanks and two keys end the server".to_owned(),
            )),
            other => Err(format!("{other:?}, and the server lives")),
        }
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.clients = None;
    }
}
