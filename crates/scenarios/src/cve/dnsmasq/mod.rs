//! dnsmasq, forwarding to a server of ours.

mod upstream;
mod wire;

use super::process::Process;
use super::{Case, Clients, Expected, Package, Row, Seen, Service, unique};
use crate::inspect;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use upstream::{ADDRESS, ADDRESS6, FORGED, LONGER, NO_WINDOW, OTHER_NET, SHORT, Upstream};
use wire::{A, AAAA, Answer, CNAME, MX, NXDOMAIN, SERVFAIL, socket};

/// See the module.
pub struct Dnsmasq;

/// By what it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fix {
    /// A union becomes larger, and objects of it live on in the cache: a trap.
    BigName,
    /// How it is proven that there is no such record.
    Denial,
    /// How a signature is checked.
    Signature,
    /// The process that runs scripts: it never leaves the function that changes, and nobody else enters it again.
    Helper,
    /// Whether an answer is for this client's net.
    Subnet,
    /// What is taken from an answer into the cache.
    Extract,
}

impl Fix {
    fn of(row: &Row) -> Option<Self> {
        Some(match row.patch.trim_end_matches(".patch") {
            "CVE-2026-2291" => Self::BigName,
            "CVE-2026-4890" => Self::Denial,
            "CVE-2026-4891" => Self::Signature,
            "CVE-2026-4892" => Self::Helper,
            "CVE-2026-4893" => Self::Subnet,
            "CVE-2026-5172" => Self::Extract,
            _ => return None,
        })
    }

    fn settings(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Denial | Self::Signature => {
                // The root must have one. No program knows the digest of the other: what it is for is unsigned.
                let others = [
                    format!("--trust-anchor=.,1,8,2,{}", "0".repeat(64)),
                    "--trust-anchor=example,1,8,255,00".to_owned(),
                    "--dnssec".to_owned(),
                ];
                let anchors = upstream::anchors().map(|anchor| format!("--trust-anchor={anchor}"));
                return anchors.chain(others).collect();
            }
            Self::Subnet => &["--add-subnet=32"],
            Self::Extract => &["--cache-rr=MX"],
            Self::Helper => &["--script-arp", "--dhcp-script=/bin/true"],
            Self::BigName => &[],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

impl Package for Dnsmasq {
    fn name(&self) -> &'static str {
        "dnsmasq"
    }

    fn configure(&self) -> &'static str {
        "true"
    }

    fn make(&self) -> &'static str {
        "make -j2 CFLAGS='-g -O2 -fstack-protector-strong -Wformat -Werror=format-security -D_FORTIFY_SOURCE=2 -fPIE' \
         LDFLAGS='-pie -Wl,-z,relro -Wl,-z,now' \
         COPTS='-DHAVE_DBUS -DHAVE_LIBIDN2 -DHAVE_NFTSET -DHAVE_CONNTRACK -DHAVE_DNSSEC'"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let fix = Fix::of(row)?;
        Some(Case {
            program: "src/dnsmasq",
            expected: match fix {
                Fix::BigName => Expected::Refused(&["struct bigname"]),
                _ => Expected::Loads,
            },
            shows_hole: !matches!(fix, Fix::BigName | Fix::Helper),
        })
    }

    fn caveat(&self, row: &Row) -> Option<&'static str> {
        let helper = "create_helper is called when dnsmasq starts, and the process that it makes never leaves it: the \
                      patch changes nothing in what runs, so dnsmasq with --dhcp-script has to be started anew";
        (Fix::of(row) == Some(Fix::Helper)).then_some(helper)
    }

    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        let fix = Fix::of(row).ok_or("no case")?;
        let running = Running::start(fix, &tree.join("src/dnsmasq"), dir)?;
        Ok(Box::new(running))
    }
}

struct Running {
    fix: Fix,
    address: SocketAddr,
    // Each is dropped before what it asks.
    clients: Option<Clients>,
    process: Process,
    _upstream: Upstream,
}

/// So many bytes of addresses and no more.
const MEMORY: u64 = 256 << 20;

/// Asks until there is an answer; it is heard of in 5 s, or there is none.
fn ask(server: SocketAddr, question: &str, kind: u16) -> Result<Answer, String> {
    let answer = wire::ask(server, question, kind, Duration::from_secs(5))?;
    answer.ok_or_else(|| format!("no answer for {question}"))
}

/// Insists on an answer with such a record.
fn resolve(server: SocketAddr, question: &str, kind: u16, data: &[u8]) -> Result<(), String> {
    let answer = ask(server, question, kind)?;
    match answer.rcode == 0 && answer.has(kind, data) {
        true => Ok(()),
        false => Err(format!("a wrong answer for {question}: {answer:x?}")),
    }
}

/// Some of everything; nothing of it is in the cache.
fn all_kinds(server: SocketAddr) -> Result<(), String> {
    let number = unique();
    let question = format!("n{number}.example");
    resolve(server, &question, A, &ADDRESS)?;
    resolve(server, &question, AAAA, &ADDRESS6)?;
    let mail = ask(server, &question, MX)?;
    // The name may be told by reference.
    if mail
        .records
        .first()
        .is_none_or(|(kind, data)| *kind != MX || !data.starts_with(&[0, 10]))
    {
        return Err(format!(
            "a wrong answer for the mail of {question}: {mail:x?}"
        ));
    }
    let alias = format!("alias{number}.example");
    resolve(server, &alias, A, &ADDRESS)?;
    match ask(server, &alias, A)?.records.first() {
        Some((CNAME, _)) => Ok(()),
        other => Err(format!("{alias} is no alias: {other:x?}")),
    }
}

/// What is signed is vouched for, what isn't there is vouched for too, and what is forged is not given.
fn signed(server: SocketAddr) -> Result<(), String> {
    for zone in ["nsec.test", "nsec3.test"] {
        let is = |label: &str, kind: u16, rcode: u8, secure: bool, records: usize| {
            let question = format!("{label}.{zone}");
            let answer = ask(server, &question, kind)?;
            let count = answer.records.len();
            match (answer.rcode, answer.secure, count) == (rcode, secure, records) {
                true => Ok(()),
                false => Err(format!("a wrong answer for {question}: {answer:x?}")),
            }
        };
        is("a", A, 0, true, 1)?;
        is("d", AAAA, 0, true, 0)?;
        is(&format!("b{}", unique()), A, NXDOMAIN, true, 0)?;
        is(FORGED, A, SERVFAIL, false, 0)?;
    }
    Ok(())
}

impl Running {
    fn start(fix: Fix, program: &Path, dir: &Path) -> Result<Self, String> {
        let upstream = socket()?;
        let local = |socket: &std::net::UdpSocket| socket.local_addr().map_err(|e| e.to_string());
        let server = local(&upstream)?;
        let address = local(&socket()?)?;
        let log = std::fs::File::create(dir.join("log")).map_err(|e| e.to_string())?;
        let child = Command::new("prlimit")
            .arg(format!("--as={MEMORY}"))
            .arg(program)
            .args(["-k", "-C", "/dev/null", "--user=root", "--pid-file="])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces"])
            .args(["--no-hosts", "--no-resolv", "--log-facility=-"])
            .args(fix.settings())
            .arg(format!("--server=127.0.0.1#{}", server.port()))
            .arg(format!("--port={}", address.port()))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let mut running = Self {
            fix,
            process: Process::new(child),
            address,
            clients: None,
            _upstream: Upstream::start(upstream),
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = resolve(address, "first.example", A, &ADDRESS) {
            if Instant::now() > deadline {
                return Err(format!("dnsmasq does not answer: {error}"));
            }
        }
        running.clients = Some(Clients::start(2, move || {
            move || match fix {
                Fix::Denial | Fix::Signature => signed(address),
                _ => all_kinds(address),
            }
        }));
        Ok(running)
    }

    /// Asks for something crafted, and then for something else: whether there are answers.
    fn craft(&mut self, question: &str, kind: u16) -> Result<(Option<Answer>, bool), String> {
        let wait = Duration::from_secs(2);
        let answer = wire::ask(self.address, question, kind, wait)?;
        let next = format!("n{}.example", unique());
        let lives = wire::ask(self.address, &next, A, wait)?.is_some();
        Ok((answer, lives))
    }

    /// The most memory that it ever had, bytes.
    fn most_memory(&self) -> u64 {
        let status = inspect::status(&format!("/proc/{}/status", self.process.pid()));
        let kilobytes = status
            .get("VmHWM")
            .and_then(|most| most.strip_suffix(" kB"));
        kilobytes.and_then(|most| most.parse().ok()).unwrap_or(0) * 1024
    }

    fn has_ended(&mut self) -> Result<bool, String> {
        Ok(self.process.ends_within(Duration::ZERO)?.is_some())
    }
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        vec![self.process.pid()]
    }

    fn exercise(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            all_kinds(self.address)?;
            if matches!(self.fix, Fix::Denial | Fix::Signature) {
                signed(self.address)?;
            }
        }
        Ok(())
    }

    fn hole(&mut self) -> Result<Seen, String> {
        let seen = |bad: bool, misbehaves: &str, behaves: &str| match bad {
            true => Ok(Seen::Misbehaves(misbehaves.to_owned())),
            false => Ok(Seen::Behaves(behaves.to_owned())),
        };
        match self.fix {
            Fix::Denial => {
                let (_, lives) = self.craft(NO_WINDOW, A)?;
                let loops = !lives && !self.has_ended()?;
                if !lives && !loops {
                    return Err("dnsmasq has ended".to_owned());
                }
                let bad = "an answer with an empty window in a bitmap, and it answers nobody again";
                seen(loops, bad, "it goes on answering")
            }
            Fix::Signature => {
                // The key of the zone is known by now, else it would be asked for.
                ask(self.address, "a.nsec.test", A)?;
                let (answer, lives) = self.craft(SHORT, A)?;
                let good = answer.is_some_and(|answer| answer.rcode == SERVFAIL);
                let ended = self.has_ended()?;
                if !(ended || lives && good) {
                    return Err("neither a crash nor SERVFAIL".to_owned());
                }
                seen(
                    ended,
                    "a signature of a negative length ends it",
                    "SERVFAIL",
                )
            }
            Fix::Subnet => {
                let answer = wire::ask(self.address, OTHER_NET, A, Duration::from_secs(2))?;
                let bad = "an answer that is for another net than the client's is passed on";
                seen(answer.is_some(), bad, "it is dropped")
            }
            Fix::Extract => {
                let (_, lives) = self.craft(LONGER, MX)?;
                let deadline = Instant::now() + Duration::from_secs(30);
                let bad =
                    "for a record that is longer than it says it takes all memory that it may have";
                while self.most_memory() < MEMORY / 2 {
                    if lives {
                        return seen(false, bad, "it goes on answering");
                    }
                    if self.has_ended()? || Instant::now() > deadline {
                        return Err("dnsmasq does not answer, and takes no memory".to_owned());
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                seen(true, bad, "")
            }
            Fix::BigName | Fix::Helper => Err("not shown".to_owned()),
        }
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}
