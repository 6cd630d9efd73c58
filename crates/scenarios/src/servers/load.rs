//! The load on a server for a while, and what its clients saw.

use super::ask::Lines;
use super::{Kind, POSTGRES, Server, run};
use std::process::Command;
use std::time::{Duration, Instant};

/// What the clients saw.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Answers.
    pub answers: u64,
    /// Broken connections, lost and wrong answers.
    pub errors: u64,
    /// 99% of the answers took no longer, in milliseconds.
    pub p99_ms: f64,
    /// The slowest.
    pub worst_ms: f64,
}

impl Seen {
    fn from_times(mut times: Vec<f64>, errors: u64) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
        Self {
            answers: times.len() as u64,
            errors,
            p99_ms: at(0.99).unwrap_or(f64::NAN),
            worst_ms: times.last().copied().unwrap_or(f64::NAN),
        }
    }
}

/// The number that follows a label in a report.
fn number(report: &str, label: &str) -> Option<f64> {
    let (_, rest) = report.split_once(label)?;
    let end = |c: char| !(c.is_ascii_digit() || c == '.');
    let rest = rest.trim_start_matches([' ', ':', '\t', '=']);
    rest.split(end).next()?.parse().ok()
}

fn required(report: &str, label: &str) -> Result<f64, String> {
    number(report, label).ok_or_else(|| format!("no `{label}` in\n{report}"))
}

impl Server {
    /// What the load needs to be there.
    pub fn prepare(&self) -> Result<(), String> {
        match self.kind {
            Kind::Dnsmasq => {
                let host = |n: usize| format!("h{n}.test A\nHoSt.example A\n");
                let text: String = (0..100).map(host).collect();
                std::fs::write(self.dir.join("queries"), text).map_err(|e| e.to_string())
            }
            Kind::Postgres => {
                let mut create = self.postgres("pgbench");
                run(create.args(["-i", "-q", "-s", "2", "postgres"])).map(drop)
            }
            Kind::Mariadb => {
                for (from, to) in [
                    ("cert", "cacert"),
                    ("cert", "client-cert"),
                    ("key", "client-key"),
                ] {
                    let [from, to] = [from, to].map(|name| self.dir.join(format!("{name}.pem")));
                    std::fs::copy(from, to).map_err(|e| e.to_string())?;
                }
                self.query("create database sbtest")?;
                run(self.sysbench().arg("prepare")).map(drop)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn postgres(&self, program: &str) -> Command {
        let mut command = Command::new(format!("{POSTGRES}/{program}"));
        command.current_dir(&self.dir).env("PGSSLMODE", "require");
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p"]);
        command.arg(self.port.to_string());
        command
    }

    fn sysbench(&self) -> Command {
        // The certificates that it uses are called client-cert.pem and so on.
        let mut command = Command::new("sysbench");
        command.current_dir(&self.dir);
        command.args(["oltp_read_write", "--tables=2", "--table-size=5000"]);
        command.args(["--threads=6", "--percentile=99", "--mysql-user=root"]);
        command.args(["--mysql-ssl=on", "--mysql-host=127.0.0.1"]);
        command.arg(format!("--mysql-port={}", self.port));
        command
    }

    /// Loads the server for so many seconds.
    pub fn load(&self, seconds: u64) -> Result<Seen, String> {
        match self.kind {
            Kind::Nginx => self.ab(seconds),
            Kind::Memcached => self.memcached(seconds),
            Kind::Dnsmasq => self.dnsperf(seconds),
            Kind::Postgres => self.pgbench(seconds),
            Kind::Mariadb => self.oltp(seconds),
            Kind::Redis => Ok(self.values(seconds, &stored_in_redis)),
        }
    }

    /// A new TLS connection for each request.
    fn ab(&self, seconds: u64) -> Result<Seen, String> {
        let url = format!("https://127.0.0.1:{}/", self.port);
        let mut command = Command::new("ab");
        command.args(["-q", "-c", "8", "-n", "10000000", "-t"]);
        let said = run(command.args([&seconds.to_string(), &url]))?;
        let wrong = number(&said, "Non-2xx responses").unwrap_or(0.0);
        Ok(Seen {
            answers: required(&said, "Complete requests")? as u64,
            errors: (required(&said, "Failed requests")? + wrong) as u64,
            p99_ms: required(&said, "  99%")?,
            worst_ms: required(&said, " 100%")?,
        })
    }

    /// Four clients that check what they get back, and handshakes one after the other.
    fn memcached(&self, seconds: u64) -> Result<Seen, String> {
        std::thread::scope(|scope| {
            let handshakes = scope.spawn(|| {
                let address = format!("127.0.0.1:{}", self.tls_port);
                let mut command = Command::new("openssl");
                command.args(["s_time", "-new", "-connect", &address, "-time"]);
                run(command.arg(seconds.to_string()))
            });
            let mut seen = self.values(seconds, &stored_in_memcached);
            seen.errors += u64::from(!matches!(handshakes.join(), Ok(Ok(_))));
            Ok(seen)
        })
    }

    /// Four clients that check what they get back.
    fn values(&self, seconds: u64, exchange: &Exchange) -> Seen {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut times = Vec::new();
        let mut errors = 0;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|number| scope.spawn(move || values(self.port, number, until, exchange)))
                .collect();
            for client in clients {
                match client.join() {
                    Ok((mut done, error)) => {
                        times.append(&mut done);
                        errors += u64::from(error.is_some_and(|e| {
                            eprintln!("{}: {e}", self.kind.name());
                            true
                        }));
                    }
                    Err(_) => errors += 1,
                }
            }
        });
        Seen::from_times(times, errors)
    }

    fn dnsperf(&self, seconds: u64) -> Result<Seen, String> {
        let mut command = Command::new("dnsperf");
        command.args(["-s", "127.0.0.1", "-d", "queries", "-q", "20", "-v", "-Q"]);
        command.args(["10000", "-p", &self.port.to_string(), "-l"]);
        let said = run(command.current_dir(&self.dir).arg(seconds.to_string()))?;
        let (mut times, mut errors) = (Vec::new(), required(&said, "Queries lost")? as u64);
        for line in said.lines().filter(|line| line.starts_with("> ")) {
            let time = line.rsplit(' ').next().and_then(|t| t.parse::<f64>().ok());
            match time.filter(|_| line.starts_with("> NOERROR ")) {
                Some(time) => times.push(time * 1000.0),
                None => errors += 1,
            }
        }
        Ok(Seen::from_times(times, errors))
    }

    /// Six clients that stay, and one that connects anew for each transaction. The balances must add up.
    fn pgbench(&self, seconds: u64) -> Result<Seen, String> {
        let time = seconds.to_string();
        let [stay, anew] = std::thread::scope(|scope| {
            let stay = scope.spawn(|| {
                let mut command = self.postgres("pgbench");
                command.args(["-n", "-c", "6", "-j", "2", "-l", "--log-prefix=pgbench"]);
                run(command.args(["-T", &time, "postgres"]))
            });
            let anew = scope.spawn(|| {
                let mut command = self.postgres("pgbench");
                run(command.args(["-n", "-S", "-C", "-c", "1", "-T", &time, "postgres"]))
            });
            [stay, anew].map(|run| run.join().map_err(|_| "it panicked".to_owned()))
        });
        let mut errors = 0;
        for said in [stay?, anew?] {
            match said {
                Ok(said) => errors += required(&said, "failed transactions")? as u64,
                Err(said) => {
                    eprintln!("{said}");
                    errors += 1;
                }
            }
        }
        let sums = "select sum(abalance) = (select sum(bbalance) from pgbench_branches) from pgbench_accounts";
        errors += u64::from(self.query(sums)? != "t");
        let mut times = Vec::new();
        let files = std::fs::read_dir(&self.dir).map_err(|e| e.to_string())?;
        for path in files.filter_map(|file| Some(file.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with("pgbench.")) {
                let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
                let time = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
                times.extend(text.lines().filter_map(time).map(|us| us / 1000.0));
                std::fs::remove_file(&path).map_err(|e| e.to_string())?;
            }
        }
        Ok(Seen::from_times(times, errors))
    }

    /// Six clients that stay, and one that connects anew for each query.
    fn oltp(&self, seconds: u64) -> Result<Seen, String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let (said, anew) = std::thread::scope(|scope| {
            let anew = scope.spawn(|| -> Result<(), String> {
                while Instant::now() < until {
                    let mut slap = self.mariadb("mariadb-slap");
                    slap.args(["--query=select 1", "--create-schema=sbtest", "--detach=1"]);
                    run(slap.arg("--number-of-queries=100"))?;
                }
                Ok(())
            });
            let said = run(self.sysbench().arg(format!("--time={seconds}")).arg("run"));
            let anew = anew.join().map_err(|_| "it panicked".to_owned());
            (said, anew.flatten())
        });
        let said = said?;
        // Its "ignored errors" are transactions that met another one's locks.
        let errors = required(&said, "reconnects")?;
        let broken = u64::from(anew.is_err_and(|error| {
            eprintln!("{error}");
            true
        }));
        Ok(Seen {
            answers: required(&said, "transactions")? as u64,
            errors: errors as u64 + broken,
            p99_ms: required(&said, "99th percentile")?,
            worst_ms: required(&said, "max")?,
        })
    }

    pub(super) fn mariadb(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let port = format!("--port={}", self.port);
        command.args(["--no-defaults", "-uroot", "-h127.0.0.1", "--ssl", &port]);
        command
    }
}

/// What a client says in a turn, and what it must get back.
type Exchange = dyn Fn(usize, u32) -> (String, String) + Sync;

fn stored_in_memcached(client: usize, turn: u32) -> (String, String) {
    let (value, flags) = (format!("{client}-{turn}"), turn % 1000);
    let length = value.len();
    (
        format!("set k{client} {flags} 0 {length}\r\n{value}\r\nget k{client}\r\n"),
        format!("STORED\r\nVALUE k{client} {flags} {length}\r\n{value}\r\nEND\r\n"),
    )
}

fn stored_in_redis(client: usize, turn: u32) -> (String, String) {
    let value = format!("{client}-{turn}");
    (
        format!("SET k{client} {value}\r\nGET k{client}\r\n"),
        format!("+OK\r\n${}\r\n{value}\r\n", value.len()),
    )
}

/// Sets a value and gets it back, again and again: how long each took, and what went wrong.
fn values(
    port: u16,
    client: usize,
    until: Instant,
    exchange: &Exchange,
) -> (Vec<f64>, Option<String>) {
    let mut times = Vec::new();
    let mut work = || -> Result<(), String> {
        let mut lines = Lines::connect(port)?;
        for turn in 0_u32.. {
            if Instant::now() >= until {
                break;
            }
            let (request, expected) = exchange(client, turn);
            let sent = Instant::now();
            let answer = lines.exchange(&request, expected.lines().count())?;
            times.push(sent.elapsed().as_secs_f64() * 1000.0);
            if answer != expected {
                return Err(format!("{answer:?} instead of {expected:?}"));
            }
        }
        Ok(())
    };
    let error = work().err();
    (times, error)
}
