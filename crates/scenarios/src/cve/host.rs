//! A library in a program of ours (tests/cve/NAME.c), which answers requests: see tests/cve/host.h.

use super::process::Process;
use super::{Clients, Seen, Service};
use crate::plan::root;
use crate::servers::run;
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long an answer may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A library and the program around it.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    /// Its program in tests/cve, without `.c`.
    pub name: &'static str,
    /// Its directories with headers, in the built tree.
    pub headers: &'static [&'static str],
    /// Its files, in the built tree.
    pub files: &'static [&'static str],
    /// What clients ask all the time, beside what the row is about.
    pub load: &'static [Exchange],
}

/// A request and the answer to it.
#[derive(Debug, Clone)]
pub struct Exchange {
    name: &'static str,
    data: Cow<'static, str>,
    answer: &'static str,
}

impl Exchange {
    /// A request with what it is about.
    pub const fn new(name: &'static str, data: &'static str, answer: &'static str) -> Self {
        Self {
            name,
            data: Cow::Borrowed(data),
            answer,
        }
    }

    /// The same with data that is made.
    pub fn made(name: &'static str, data: String, answer: &'static str) -> Self {
        Self {
            name,
            data: Cow::Owned(data),
            answer,
        }
    }
}

/// What a row is about.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// What uses the functions that the fix changes, with the answers that both versions give.
    pub exercise: Vec<Exchange>,
    /// What the fix is against, with the answer that it gives.
    pub hole: Option<Exchange>,
}

/// See the module.
pub struct Host {
    // Dropped before the server that they ask.
    clients: Option<Clients>,
    process: Process,
    port: u16,
    about: About,
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, exchange: &Exchange) -> std::io::Result<String> {
        let mut request = format!("{} {}\n", exchange.name, exchange.data.len()).into_bytes();
        request.extend_from_slice(exchange.data.as_bytes());
        self.0.get_mut().write_all(&request)?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let size = line.trim_end().parse();
        let mut answer = vec![0; size.map_err(std::io::Error::other)?];
        self.0.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn insist(&mut self, exchange: &Exchange) -> Result<(), String> {
        match self.ask(exchange) {
            Ok(answer) if answer == exchange.answer => Ok(()),
            Ok(answer) => Err(format!(
                "{} answers `{answer}` instead of `{}`",
                exchange.name, exchange.answer
            )),
            Err(error) => Err(format!("{}: {error}", exchange.name)),
        }
    }
}

impl Host {
    /// Compiles the program against the library in the built tree and starts it with clients.
    ///
    /// # Errors
    /// It does not compile, start or answer.
    pub fn start(library: Library, about: About, tree: &Path, dir: &Path) -> Result<Self, String> {
        let program = dir.join("host");
        let source = root().join("tests/cve").join(library.name);
        let mut compile = Command::new("gcc");
        compile.args(["-g", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]);
        for headers in library.headers {
            compile.arg("-isystem").arg(tree.join(headers));
        }
        compile.arg(source.with_extension("c"));
        for file in library.files.iter().map(|file| tree.join(file)) {
            if let Some(directory) = file.parent() {
                compile.arg(format!("-Wl,-rpath,{}", directory.display()));
            }
            compile.arg(file);
        }
        run(compile.arg("-o").arg(&program))?;
        Self::run(Command::new(&program), library.load, about, dir)
    }

    /// Starts a program that answers requests, in a directory of its own, with clients that have these requests.
    ///
    /// # Errors
    /// It does not start or answer.
    pub fn run(
        mut program: Command,
        load: &[Exchange],
        about: About,
        dir: &Path,
    ) -> Result<Self, String> {
        let log = File::create(dir.join("log")).map_err(|e| e.to_string())?;
        let mut child = program
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{program:?}: {e}"))?;
        let said = child.stdout.take().ok_or("no output")?;
        let mut host = Self {
            process: Process::new(child),
            port: 0,
            about,
            clients: None,
        };
        let mut line = String::new();
        let read = BufReader::new(said).read_line(&mut line);
        read.map_err(|e| e.to_string())?;
        let port = line.trim_end().parse();
        host.port = port.map_err(|e| format!("{program:?} says `{line}`: {e}"))?;
        host.exercise()?;
        let (port, all) = (host.port, [load, &host.about.exercise].concat());
        host.clients = Some(Clients::start(3, move || {
            let (all, mut next, mut connection) = (all.clone(), 0, None);
            move || {
                let connection = match &mut connection {
                    Some(connection) => connection,
                    None => {
                        let opened = Connection::open(port).map_err(|e| e.to_string())?;
                        connection.insert(opened)
                    }
                };
                next = (next + 1) % all.len();
                connection.insist(&all[next])
            }
        }));
        Ok(host)
    }

    /// How it has ended.
    fn end(&mut self) -> Option<String> {
        let status = self.process.ends_within(Duration::from_secs(5)).ok()??;
        Some(match status.signal() {
            Some(libc::SIGSEGV) => "SIGSEGV ends the process".to_owned(),
            Some(libc::SIGABRT) => "SIGABRT ends the process".to_owned(),
            _ => format!("the process ends: {status}"),
        })
    }
}

impl Service for Host {
    fn pids(&self) -> Vec<i32> {
        vec![self.process.pid()]
    }

    fn exercise(&mut self) -> Result<(), String> {
        let mut connection = Connection::open(self.port).map_err(|e| e.to_string())?;
        let mut exercise = self.about.exercise.iter();
        exercise.try_for_each(|exchange| connection.insist(exchange))
    }

    fn hole(&mut self) -> Result<Seen, String> {
        let hole = self.about.hole.clone().ok_or("no hole is known")?;
        let mut connection = Connection::open(self.port).map_err(|e| e.to_string())?;
        match connection.ask(&hole) {
            Ok(answer) if answer == hole.answer => Ok(Seen::Behaves(answer)),
            Ok(answer) => Ok(Seen::Misbehaves(answer)),
            Err(error) => match self.end() {
                Some(end) => Ok(Seen::Misbehaves(end)),
                None => Err(format!("{}: {error}", hole.name)),
            },
        }
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}
