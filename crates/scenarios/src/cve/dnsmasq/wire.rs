//! Questions and answers of the name system as bytes.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub const A: u16 = 1;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const MX: u16 = 15;
pub const AAAA: u16 = 28;
pub const OPT: u16 = 41;
pub const RRSIG: u16 = 46;
pub const NSEC: u16 = 47;
pub const NSEC3: u16 = 50;

pub const SERVFAIL: u8 = 2;
pub const NXDOMAIN: u8 = 3;

/// A name as its labels.
pub fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A record, of class IN.
pub fn record(owner: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = name(owner);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The name at a place of a packet, and what follows it there. One that is told by reference is not read, but passed.
fn read_name(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        match length {
            0 => return Some((labels.join("."), at + 1)),
            192.. => return Some((String::new(), at + 2)),
            _ => {
                let label = packet.get(at + 1..at + 1 + length)?;
                labels.push(String::from_utf8_lossy(label).to_lowercase());
            }
        }
        at += 1 + length;
    }
}

fn number(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

/// What was asked.
pub struct Question {
    pub name: String,
    pub kind: u16,
    /// Where it ends in its packet.
    pub end: usize,
    /// The options of its OPT record, if it has one.
    pub options: Option<Vec<u8>>,
}

impl Question {
    pub fn read(packet: &[u8]) -> Option<Self> {
        let (name, at) = read_name(packet, 12)?;
        let end = at + 4;
        // The OPT record is alone in its section, and its owner is the root.
        let options = match number(packet, end + 1) {
            Some(OPT) => {
                let length = usize::from(number(packet, end + 9)?);
                Some(packet.get(end + 11..end + 11 + length)?.to_vec())
            }
            _ => None,
        };
        Some(Self {
            name,
            kind: number(packet, at)?,
            end,
            options,
        })
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub rcode: u8,
    /// The server vouches for it: the AD bit.
    pub secure: bool,
    /// Type and data of the records of its answer section.
    pub records: Vec<(u16, Vec<u8>)>,
}

impl Answer {
    fn read(packet: &[u8]) -> Option<Self> {
        let mut at = Question::read(packet)?.end;
        let mut records = Vec::new();
        for _ in 0..number(packet, 6)? {
            at = read_name(packet, at)?.1;
            let length = usize::from(number(packet, at + 8)?);
            let data = packet.get(at + 10..at + 10 + length)?;
            records.push((number(packet, at)?, data.to_vec()));
            at += 10 + length;
        }
        Some(Self {
            rcode: packet[3] & 15,
            secure: packet[3] & 0x20 != 0,
            records,
        })
    }

    /// Whether it has such a record.
    pub fn has(&self, kind: u16, data: &[u8]) -> bool {
        let mut records = self.records.iter();
        records.any(|(other, theirs)| *other == kind && theirs == data)
    }
}

/// A socket on loopback that waits half a second.
pub fn socket() -> Result<UdpSocket, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let wait = Some(Duration::from_millis(500));
    socket.set_read_timeout(wait).map_err(|e| e.to_string())?;
    Ok(socket)
}

/// Asks once: `None` if no answer comes in this time.
///
/// # Errors
/// The question can't be sent, or what comes is no answer.
pub fn ask(
    server: SocketAddr,
    question: &str,
    kind: u16,
    wait: Duration,
) -> Result<Option<Answer>, String> {
    static ID: AtomicU16 = AtomicU16::new(1);
    let socket = socket()?;
    let id = ID.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // Recursion is desired, and to hear whether the answer is vouched for.
    let mut packet = vec![id[0], id[1], 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend(name(question));
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    socket.send_to(&packet, server).map_err(|e| e.to_string())?;
    let deadline = Instant::now() + wait;
    let mut answer = vec![0; 4096];
    while Instant::now() < deadline {
        if let Ok((length, _)) = socket.recv_from(&mut answer)
            && answer[..2] == id
        {
            let read = answer.get(..length).and_then(Answer::read);
            let read = read.ok_or_else(|| format!("no answer for {question}: {answer:x?}"));
            return read.map(Some);
        }
    }
    Ok(None)
}
