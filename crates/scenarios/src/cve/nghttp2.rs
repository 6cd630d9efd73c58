//! libnghttp2, in a server of ours: `tests/cve/nghttp2.c`.

use super::net::{Connection, free_port};
use super::process::Process;
use super::{Case, Clients, Expected, Package, Row, Seen, Service, h2};
use crate::plan::root;
use crate::servers::run;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// See the module.
pub struct Nghttp2;

const LIBRARY: &str = "lib/.libs/libnghttp2.so.14.24.1";

impl Package for Nghttp2 {
    fn name(&self) -> &'static str {
        "nghttp2"
    }

    // As dh_auto_configure calls it, without the programs.
    fn configure(&self) -> &'static str {
        "autoreconf -f -i\n\
         eval \"./configure $(dpkg-buildflags --export=cmdline)\" \
         --prefix=/usr --libdir=/usr/lib/x86_64-linux-gnu --disable-silent-rules --disable-maintainer-mode \
         --disable-dependency-tracking --disable-failmalloc --enable-lib-only"
    }

    fn make(&self) -> &'static str {
        "make -j2 -C lib"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        (row.patch == "CVE-2026-27135.patch").then_some(Case {
            program: LIBRARY,
            expected: Expected::Loads,
            shows_hole: true,
        })
    }

    fn start(&self, _: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        Ok(Box::new(Running::start(tree, dir)?))
    }
}

struct Running {
    // Dropped before the server that they ask.
    clients: Option<Clients>,
    process: Process,
    port: u16,
}

/// A client whose connection, and so its session in the library, stays.
struct Client {
    connection: Connection,
    stream: u32,
}

impl Client {
    fn open(port: u16) -> Result<Self, String> {
        let mut connection = Connection::open(port)?;
        connection.send(h2::preface())?;
        Ok(Self {
            connection,
            stream: 1,
        })
    }

    /// A request with so many bytes in two frames, after a frame that says how urgent it will be.
    fn request(&mut self, path: &str, bytes: usize) -> Result<(), String> {
        let urgency = [&self.stream.to_be_bytes()[..], b"u=2"].concat();
        let mut sent = h2::frame(h2::PRIORITY_UPDATE, 0, 0, &urgency);
        sent.extend(h2::headers(self.stream, 0, "POST", path, &[]));
        let half = vec![b'x'; bytes / 2];
        sent.extend(h2::frame(h2::DATA, 0, self.stream, &half));
        let rest = vec![b'x'; bytes - bytes / 2];
        sent.extend(h2::frame(h2::DATA, h2::END_STREAM, self.stream, &rest));
        self.connection.send(sent)?;
        let answer = h2::answer(&mut self.connection, self.stream)?;
        self.stream += 2;
        match answer == h2::Answer::Ok(format!("POST {path} {bytes}").into_bytes()) {
            true => Ok(()),
            false => Err(format!("a wrong answer: {answer:?}")),
        }
    }
}

impl Running {
    fn start(tree: &Path, dir: &Path) -> Result<Self, String> {
        let program = dir.join("server");
        let libraries = tree.join("lib/.libs");
        let mut compile = Command::new("cc");
        compile.args(["-g", "-O2", "-pthread", "-o"]).arg(&program);
        compile.arg(root().join("tests/cve/nghttp2.c"));
        compile.arg("-I").arg(tree.join("lib/includes"));
        compile.arg(tree.join(LIBRARY));
        compile.arg(format!("-Wl,-rpath,{}", libraries.display()));
        run(&mut compile)?;
        let port = free_port()?;
        let log = std::fs::File::create(dir.join("log"));
        let child = Command::new(&program)
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stderr(log.map_err(|e| e.to_string())?)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let mut running = Self {
            process: Process::new(child),
            port,
            clients: None,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        let first = || Client::open(port)?.request("/first", 1);
        while let Err(error) = first() {
            if Instant::now() > deadline {
                return Err(format!("the server does not answer: {error}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut stays = [true, true, false].into_iter();
        running.clients = Some(Clients::start(3, move || {
            let (stays, mut client) = (stays.next() == Some(true), None);
            move || {
                let mut used = match client.take() {
                    Some(client) => client,
                    None => Client::open(port)?,
                };
                used.request("/load", 300)?;
                client = stays.then_some(used);
                Ok(())
            }
        }));
        Ok(running)
    }
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        vec![self.process.pid()]
    }

    fn exercise(&mut self) -> Result<(), String> {
        let mut client = Client::open(self.port)?;
        for bytes in [0, 1, 5000] {
            client.request("/exercise", bytes)?;
        }
        // A frame of a wrong size ends the session.
        client
            .connection
            .send(h2::frame(h2::RST_STREAM, 0, 1, &[]))?;
        match h2::next(&mut client.connection)?.kind {
            h2::GOAWAY => Ok(()),
            kind => Err(format!("a frame of kind {kind} after one of a wrong size")),
        }
    }

    /// A frame that ends the session, and one of a wrong size behind it.
    fn hole(&mut self) -> Result<Seen, String> {
        let mut client = Client::open(self.port)?;
        client.request("/hole", 1)?;
        let mut sent = h2::frame(h2::PRIORITY_UPDATE, 0, 1, b"\0\0\0\x05u=2");
        sent.extend(h2::frame(h2::RST_STREAM, 0, 1, &[]));
        client.connection.send(sent)?;
        let next = h2::next(&mut client.connection);
        if let Ok(frame) = &next {
            return match frame.kind {
                h2::GOAWAY => Ok(Seen::Behaves("GOAWAY".to_owned())),
                kind => Err(format!("a frame of kind {kind}")),
            };
        }
        let ended = self.process.ends_within(Duration::from_secs(5))?;
        if let Some(signal) = ended.and_then(|status| status.signal()) {
            return Ok(Seen::Misbehaves(format!(
                "the server dies of signal {signal}"
            )));
        }
        Err(format!("{next:?}"))
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}
