//! dnsmasq, forwarding to a server of ours.

use super::{Case, Clients, Expected, Package, Row, Seen, Service};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// See the module.
pub struct Dnsmasq;

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
        let expected = match row.patch.trim_end_matches(".patch") {
            "CVE-2026-2291" => Expected::Refused(&["struct bigname"]),
            "CVE-2026-4890" | "CVE-2026-4891" | "CVE-2026-4892" | "CVE-2026-4893"
            | "CVE-2026-5172" => Expected::Loads,
            _ => return None,
        };
        Some(Case {
            program: "src/dnsmasq",
            expected,
            shows_hole: false,
        })
    }

    fn start(&self, _: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        Ok(Box::new(Running::start(&tree.join("src/dnsmasq"), dir)?))
    }
}

struct Running {
    child: Child,
    address: SocketAddr,
    // Dropped before the servers that they ask.
    clients: Option<Clients>,
    upstream: Upstream,
}

/// Answers every question for an address with 192.0.2.7.
struct Upstream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn socket() -> Result<UdpSocket, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let wait = Some(Duration::from_millis(500));
    socket.set_read_timeout(wait).map_err(|e| e.to_string())?;
    Ok(socket)
}

impl Upstream {
    fn start(socket: UdpSocket) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut packet)
                    && let Some(answer) = answer(&packet[..length])
                {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The end of the question in a packet.
fn question(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    while *packet.get(at)? != 0 {
        at += 1 + usize::from(packet[at]);
    }
    Some(at + 5)
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut packet = query.get(..question(query)?)?.to_vec();
    packet[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    // The name of the question, A, IN, no time to live: nothing of it is cached.
    packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 7]);
    Some(packet)
}

fn ask(socket: &UdpSocket, server: SocketAddr, name: &str) -> Result<Vec<u8>, String> {
    static ID: AtomicU16 = AtomicU16::new(1);
    let id = ID.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut packet = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    socket.send_to(&packet, server).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut answer = vec![0; 1500];
    while Instant::now() < deadline {
        if let Ok((length, _)) = socket.recv_from(&mut answer)
            && answer[..2] == id
        {
            answer.truncate(length);
            return Ok(answer);
        }
    }
    Err(format!("no answer for {name}"))
}

fn resolve(socket: &UdpSocket, server: SocketAddr, name: &str) -> Result<(), String> {
    let answer = ask(socket, server, name)?;
    match answer.ends_with(&[192, 0, 2, 7]) {
        true => Ok(()),
        false => Err(format!("a wrong answer for {name}: {answer:x?}")),
    }
}

impl Running {
    fn start(program: &Path, dir: &Path) -> Result<Self, String> {
        let upstream = socket()?;
        let address = |socket: &UdpSocket| socket.local_addr().map_err(|e| e.to_string());
        let server = address(&upstream)?;
        let free = address(&socket()?)?;
        let log = std::fs::File::create(dir.join("log")).map_err(|e| e.to_string())?;
        let child = Command::new(program)
            .args(["-k", "-C", "/dev/null", "--user=root", "--pid-file="])
            .args([
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                "--no-hosts",
            ])
            .args(["--no-resolv", "--cache-size=0", "--log-facility=-"])
            .arg(format!("--server=127.0.0.1#{}", server.port()))
            .arg(format!("--port={}", free.port()))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let mut running = Self {
            child,
            address: free,
            clients: None,
            upstream: Upstream::start(upstream),
        };
        let asking = socket()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = resolve(&asking, free, "first.example") {
            if Instant::now() > deadline {
                return Err(format!("dnsmasq does not answer: {error}"));
            }
        }
        let mut sockets = vec![socket()?, socket()?];
        running.clients = Some(Clients::start(2, move || {
            let socket = sockets.pop();
            move || {
                let socket = socket.as_ref().ok_or("no socket")?;
                resolve(socket, free, "some.example")
            }
        }));
        Ok(running)
    }
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        vec![self.child.id() as i32]
    }

    fn exercise(&mut self) -> Result<(), String> {
        resolve(&socket()?, self.address, "exercise.example")
    }

    fn hole(&mut self) -> Result<Seen, String> {
        Err("not written".to_owned())
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.clients = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.upstream;
    }
}
