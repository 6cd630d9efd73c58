//! redis-server, with two threads for its connections.

mod fixes;
mod resp;

use super::net::free_port;
use super::process::Process;
use super::{Case, Clients, Expected, Package, Row, Seen, Service};
use fixes::Fix;
use resp::{Connection, expect, expect_words};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// See the module.
pub struct Redis;

const PROGRAM: &str = "src/redis-server";

impl Package for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn configure(&self) -> &'static str {
        "true"
    }

    // SOURCE_DATE_EPOCH, as dpkg-buildpackage has it, goes into the program.
    fn make(&self) -> &'static str {
        "export SOURCE_DATE_EPOCH=1700000000 BUILD_TLS=yes CPPFLAGS='-Wdate-time -D_FORTIFY_SOURCE=2'
         export CFLAGS='-g -O2 -fstack-protector-strong -Wformat -Werror=format-security -I/usr/include/liblzf'
         export LDFLAGS='-Wl,-z,relro -Wl,-z,now -Wl,-no-as-needed -ldl -latomic -llzf'
         make -j2 -C src V=1 USE_SYSTEM_JEMALLOC=yes USE_SYSTEMD=yes USE_JEMALLOC=yes redis-server"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let fix = Fix::of(row)?;
        Some(Case {
            program: PROGRAM,
            expected: match fix {
                Fix::CheckAof => Expected::Refused(&["redis_check_aof_main", "never returns"]),
                _ => Expected::Loads,
            },
            shows_hole: fix.shows_hole(),
        })
    }

    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        let fix = Fix::of(row).ok_or("no case")?;
        let mut running = Running::start(fix, tree, dir)?;
        running.use_it()?;
        Ok(Box::new(running))
    }
}

/// A server and its clients.
struct Running {
    fix: Fix,
    // Dropped before what they use.
    clients: Option<Clients>,
    server: Server,
    /// Another node of its cluster, where the fix is about clusters.
    peer: Option<Server>,
}

/// A redis-server. Ended by its pid when dropped.
struct Server {
    process: Process,
    port: u16,
    bus: u16,
    tls: u16,
}

/// A port that nobody uses.
impl Server {
    fn start(tree: &Path, dir: &Path, settings: &[String]) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let (port, bus) = (free_port()?, free_port()?);
        let tls = free_port()?;
        let log = std::fs::File::create(dir.join("log"))
            .map_err(|e| format!("{}: {e}", dir.display()))?;
        let program = tree.join(PROGRAM);
        let child = Command::new(&program)
            .args(["--io-threads", "2", "--save", "", "--appendonly", "no"])
            .args(["--bind", "127.0.0.1", "--enable-debug-command", "local"])
            .args(["--crash-memcheck-enabled", "no"])
            .args(["--port", &port.to_string()])
            .args(["--cluster-port", &bus.to_string()])
            .args(settings.iter().map(|s| s.replace("TLS", &tls.to_string())))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let server = Self {
            process: Process::new(child),
            port,
            bus,
            tls,
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

    /// A connection that may do everything.
    fn connect(&self) -> Result<Connection, String> {
        let mut connection = Connection::open(self.port)?;
        if connection.ask(&[b"PING"])?.starts_with("-NOAUTH") {
            expect(&mut connection, "AUTH secret", "+OK")?;
        }
        Ok(connection)
    }

    /// Whether it has crashed, or does so within some seconds.
    fn has_crashed(&mut self) -> Result<bool, String> {
        let ended = self.process.ends_within(Duration::from_secs(20))?;
        Ok(ended.is_some())
    }
}

impl Running {
    fn start(fix: Fix, tree: &Path, dir: &Path) -> Result<Self, String> {
        let settings = fix.settings(tree, dir)?;
        Ok(Self {
            fix,
            clients: None,
            server: Server::start(tree, dir, &settings)?,
            peer: match fix {
                Fix::ClusterPacket => Some(Server::start(tree, &dir.join("peer"), &settings)?),
                _ => None,
            },
        })
    }

    /// Prepares what the fix is about, and starts the clients.
    fn use_it(&mut self) -> Result<(), String> {
        self.fix.prepare(self)?;
        let mut connections = Vec::new();
        for number in 0..4_u32 {
            connections.push((number, self.server.connect()?));
        }
        self.clients = Some(Clients::start(4, move || {
            let mut mine = connections.pop();
            let mut round = 0_u64;
            move || {
                let (number, connection) = mine.as_mut().ok_or("no connection")?;
                round += 1;
                requests(connection, *number, round)
            }
        }));
        Ok(())
    }
}

/// What a client does in a round; keys of one slot of a cluster each.
fn requests(connection: &mut Connection, client: u32, round: u64) -> Result<(), String> {
    let value = round.to_string();
    let key = format!("{{c{client}}}");
    expect(connection, &format!("SET {key} {value}"), "+OK")?;
    expect(connection, &format!("GET {key}"), &value)?;
    expect(connection, &format!("PFADD {key}hll {}", round % 50), ":")?;
    let counted = expect(connection, &format!("PFCOUNT {key}hll"), ":");
    counted?;
    // Each tenth is a script that was not compiled before.
    let script = format!("-- {}\nreturn redis.call('GET', KEYS[1])", round / 10);
    let eval: [&[u8]; 4] = [b"EVAL", script.as_bytes(), b"1", key.as_bytes()];
    expect_words(connection, &eval, &value)?;
    match round % 100 {
        0 => expect(connection, "SCRIPT FLUSH", "+OK"),
        _ => Ok(()),
    }
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        vec![self.server.process.pid()]
    }

    fn exercise(&mut self) -> Result<(), String> {
        self.fix.exercise(self)
    }

    fn hole(&mut self) -> Result<Seen, String> {
        self.fix.hole(self)
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
