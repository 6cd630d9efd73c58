//! The server that dnsmasq asks: it knows everything below `example`, and two signed zones.

use super::wire::{
    A, AAAA, CNAME, MX, NSEC, NSEC3, NXDOMAIN, OPT, Question, RRSIG, SOA, name, record,
};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The address of every name.
pub const ADDRESS: [u8; 4] = [192, 0, 2, 7];
/// The other address of every name: 2001:db8::7.
pub const ADDRESS6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// What takes mail for every name.
pub const MAIL: &str = "mail.example";
/// An answer for it says that it is for clients of another net.
pub const OTHER_NET: &str = "othernet.example";
/// Its MX record is longer than it says.
pub const LONGER: &str = "longer.example";
/// That it has no address is proven by an NSEC record whose bitmap has a window of no length.
pub const NO_WINDOW: &str = "nowindow.example";
/// The signature of its address is shorter than it says that it is signed by.
pub const SHORT: &str = "short.nsec.test";
/// Its address is not what was signed.
pub const FORGED: &str = "f";

/// Runs until it is dropped.
pub struct Upstream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub fn start(socket: UdpSocket) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 4096];
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

/// The sections of an answer.
#[derive(Default)]
struct Sections {
    rcode: u8,
    answer: Vec<Vec<u8>>,
    authority: Vec<Vec<u8>>,
    /// Bytes that no section has.
    rest: Vec<u8>,
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let question = Question::read(query)?;
    let sections = match zone_of(&question.name) {
        Some(zone) => signed(zone, &question),
        None => plain(&question),
    };
    let mut packet = query.get(..question.end)?.to_vec();
    let counts = [sections.answer.len() as u8, sections.authority.len() as u8];
    let options = question.options.as_deref().map(|o| echo(&question.name, o));
    packet[2..12].copy_from_slice(&[
        0x81,
        0x80 | sections.rcode,
        0,
        1,
        0,
        counts[0],
        0,
        counts[1],
        0,
        0,
    ]);
    packet.extend(sections.answer.concat());
    packet.extend(sections.authority.concat());
    // What is missing at the end of the last record must be followed by nothing else.
    match options.filter(|_| sections.rest.is_empty()) {
        Some(options) => {
            packet[11] = 1;
            // The root, the size of packets, no flags but DO, the options.
            packet.push(0);
            packet.extend([OPT.to_be_bytes(), 4096_u16.to_be_bytes()].concat());
            packet.extend([0, 0, 0x80, 0]);
            packet.extend((options.len() as u16).to_be_bytes());
            packet.extend(options);
        }
        None => packet.extend(sections.rest),
    }
    Some(packet)
}

/// The client's net as it was told (RFC 7871), but for one name.
fn echo(asked: &str, options: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    const SUBNET: [u8; 2] = [0, 8];
    if asked == OTHER_NET
        && options.starts_with(&SUBNET)
        && let Some(last) = options.last_mut()
    {
        *last ^= 1;
    }
    options
}

fn plain(question: &Question) -> Sections {
    let asked = question.name.as_str();
    let mut sections = Sections::default();
    let one = |kind, data: &[u8]| vec![record(asked, kind, 0, data)];
    match (asked, question.kind) {
        (NO_WINDOW, A) => {
            let nsec = [name(NO_WINDOW), vec![1, 0, 0, 0]].concat();
            sections.authority = one(NSEC, &nsec);
            let signed = signature(NSEC, 2, 0, &name("example"));
            sections.authority.extend(one(RRSIG, &signed));
        }
        (LONGER, MX) => {
            let mut whole = record(asked, MX, 0, &[&[0, 10][..], &name(MAIL)].concat());
            let start = name(asked).len() + 10;
            whole[start - 1] = 3;
            sections.rest = whole.split_off(start + 3);
            sections.answer = vec![whole];
        }
        (_, A) if asked.starts_with("alias") => {
            sections.answer = one(CNAME, &name("real.example"));
            sections.answer.push(record("real.example", A, 0, &ADDRESS));
        }
        (_, A) => sections.answer = one(A, &ADDRESS),
        (_, AAAA) => sections.answer = one(AAAA, &ADDRESS6),
        (_, MX) => sections.answer = one(MX, &[&[0, 10][..], &name(MAIL)].concat()),
        _ => {}
    }
    sections
}

/// The data of an RRSIG record that is valid until 2080, up to the name of the signer, which it ends with.
fn signature(covers: u16, labels: u8, key_tag: u16, signer: &[u8]) -> Vec<u8> {
    const RSASHA256: u8 = 8;
    let mut data = covers.to_be_bytes().to_vec();
    data.extend([RSASHA256, labels, 0, 0, 0, 0]);
    data.extend(3_471_292_800_u32.to_be_bytes());
    data.extend(1_577_836_800_u32.to_be_bytes());
    data.extend(key_tag.to_be_bytes());
    data.extend(signer);
    data
}

/// A record of a signed zone.
struct Signed {
    owner: String,
    ttl: u32,
    kind: u16,
    data: Vec<u8>,
}

/// What `tests/cve/sign.sh` has made.
const SIGNED: &str = include_str!("../../../../../tests/cve/signed.tsv");

/// The trust anchors of the signed zones, as dnsmasq takes them.
pub fn anchors() -> impl Iterator<Item = String> {
    let lines = SIGNED
        .lines()
        .filter_map(|line| line.strip_prefix("anchor\t"));
    lines.map(|line| line.replace(".\t", ",").replace('\t', ","))
}

/// The number of a zone's key.
fn key_tag(zone: &str) -> u16 {
    let start = format!("{zone},");
    let anchor = anchors().find_map(|anchor| anchor.strip_prefix(&start).map(str::to_owned));
    let tag = anchor
        .as_deref()
        .and_then(|anchor| anchor.split(',').next());
    tag.and_then(|tag| tag.parse().ok()).unwrap_or(0)
}

fn zone_of(asked: &str) -> Option<&'static str> {
    let zones = ["nsec.test", "nsec3.test"];
    zones.into_iter().find(|zone| asked.ends_with(zone))
}

fn records(zone: &str) -> Vec<Signed> {
    let lines = SIGNED.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let owner = fields.next()?.to_owned();
        let ttl = fields.next()?.parse().ok()?;
        let kind = fields.next()?.parse().ok()?;
        let text = fields.next()?;
        let pairs = (0..text.len()).step_by(2);
        let data = pairs.map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok());
        Some(Signed {
            owner,
            ttl,
            kind,
            data: data.collect::<Option<_>>()?,
        })
    });
    lines
        .filter(|record| record.owner.ends_with(zone))
        .collect()
}

fn signed(zone: &str, question: &Question) -> Sections {
    let (asked, kind) = (question.name.as_str(), question.kind);
    if (asked, kind) == (SHORT, A) {
        // It ends where the name of the signer begins.
        let data = signature(A, 3, key_tag(zone), &[]);
        return Sections {
            answer: vec![
                record(asked, A, 0, &ADDRESS),
                record(asked, RRSIG, 0, &data),
            ],
            rest: name(zone),
            ..Sections::default()
        };
    }
    let all = records(zone);
    let is_of = |record: &Signed, kind: u16| {
        record.kind == kind || record.kind == RRSIG && record.data.starts_with(&kind.to_be_bytes())
    };
    let write = |record: &Signed| {
        let mut bytes = super::wire::record(&record.owner, record.kind, record.ttl, &record.data);
        if asked.split('.').next() == Some(FORGED)
            && record.kind == A
            && let Some(last) = bytes.last_mut()
        {
            *last = 9;
        }
        bytes
    };
    let here = all.iter().filter(|record| record.owner == asked);
    let answer: Vec<_> = here.filter(|r| is_of(r, kind)).map(write).collect();
    if !answer.is_empty() {
        return Sections {
            answer,
            ..Sections::default()
        };
    }
    // All proofs that the zone has: they are few.
    let proofs = [SOA, NSEC, NSEC3];
    let proof = |r: &&Signed| proofs.iter().any(|kind| is_of(r, *kind));
    Sections {
        rcode: match all.iter().any(|record| record.owner == asked) {
            true => 0,
            false => NXDOMAIN,
        },
        authority: all.iter().filter(proof).map(write).collect(),
        ..Sections::default()
    }
}
