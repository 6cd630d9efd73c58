//! Parts of MP4 files (ISO/IEC 14496-12), cut out by `?start=` and `?end=`.

use super::super::{Seen, http};
use super::Running;
use std::path::Path;

/// A second each.
const SAMPLES: u32 = 8;
/// Bytes of a sample: so many times its letter.
const SIZE: u32 = 10;
const SECOND: u32 = 1000;

/// The films that are asked for.
pub fn write(www: &Path) -> std::io::Result<()> {
    let dir = www.join("media");
    std::fs::create_dir_all(&dir)?;
    let good = film(&[(1, 2), (3, 1)], &[2, 2, 1, 1, 1, 1]);
    std::fs::write(dir.join("good.mp4"), good)?;
    // Two chunks of 2^31 samples: 0 of them in 32 bits.
    let bad = film(&[(1, 2), (2, 1 << 31), (4, 1)], &[2, 2, 2, 2]);
    std::fs::write(dir.join("bad.mp4"), bad)
}

/// `runs` says from which chunk on a chunk has how many samples, `chunks` how many are in each.
fn film(runs: &[(u32, u32)], chunks: &[u32]) -> Vec<u8> {
    let ftyp = atom(b"ftyp", b"isom\0\0\0\0isom");
    // The offsets of the chunks depend on the length of what comes before, which they do not change.
    let length = ftyp.len() + moov(runs, chunks, 0).len() + 8;
    let mut bytes = ftyp;
    bytes.extend(moov(runs, chunks, length as u32));
    bytes.extend(atom(b"mdat", samples(0, SAMPLES)));
    bytes
}

fn samples(from: u32, to: u32) -> Vec<u8> {
    let sample = |n: u32| vec![b'a' + n as u8; SIZE as usize];
    (from..to).flat_map(sample).collect()
}

fn atom(name: &[u8; 4], content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut bytes = (8 + content.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name);
    bytes.extend(content);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Version and flags, a count, and a table.
fn table(name: &[u8; 4], entries: u32, table: &[u32]) -> Vec<u8> {
    atom(name, words(&[&[0, entries], table].concat()))
}

fn moov(runs: &[(u32, u32)], chunks: &[u32], start: u32) -> Vec<u8> {
    let length = SAMPLES * SECOND;
    let zeros = |count: usize| vec![0; count];
    let runs: Vec<[u32; 3]> = runs
        .iter()
        .map(|(chunk, samples)| [*chunk, *samples, 1])
        .collect();
    let mut at = start;
    let offsets: Vec<u32> = (chunks.iter())
        .map(|samples| {
            at += samples * SIZE;
            at - samples * SIZE
        })
        .collect();
    let sizes = [vec![0, SAMPLES], vec![SIZE; SAMPLES as usize]].concat();
    let stbl = [
        table(b"stsd", 1, &[16, u32::from_be_bytes(*b"mp4v"), 0, 0]),
        table(b"stts", 1, &[SAMPLES, SECOND]),
        table(b"stsc", runs.len() as u32, &runs.concat()),
        atom(b"stsz", words(&[&[0], &sizes[..]].concat())),
        table(b"stco", chunks.len() as u32, &offsets),
    ];
    let mdhd = [words(&[0, 0, 0, SECOND, length]), zeros(4)].concat();
    let mdia = [
        atom(b"mdhd", mdhd),
        atom(b"hdlr", zeros(24)),
        atom(b"minf", atom(b"stbl", stbl.concat())),
    ];
    let tkhd = [words(&[0, 0, 0, 1, 0, length]), zeros(60)].concat();
    let trak = [atom(b"tkhd", tkhd), atom(b"mdia", mdia.concat())];
    let mvhd = [words(&[0, 0, 0, SECOND, length]), zeros(80)].concat();
    let moov = [atom(b"mvhd", mvhd), atom(b"trak", trak.concat())];
    atom(b"moov", moov.concat())
}

/// The samples that an answer ends with.
fn cut(port: u16, query: &str, from: u32, to: u32) -> Result<(), String> {
    let answer = http::get(port, &format!("/media/{query}"))?;
    let mdat = atom(b"mdat", samples(from, to));
    match answer.status == 200 && answer.body.ends_with(&mdat) {
        true => Ok(()),
        false => Err(format!("{query}: a wrong answer: {answer}")),
    }
}

pub fn exercise(running: &Running) -> Result<(), String> {
    let port = running.ports.web;
    for (query, from, to) in [
        ("good.mp4?start=1&end=5", 1, 5),
        ("good.mp4?start=5", 5, SAMPLES),
        ("good.mp4?end=3", 0, 3),
        ("bad.mp4?end=1", 0, 1),
    ] {
        cut(port, query, from, to)?;
    }
    Ok(())
}

/// The end of what is wanted is where the chunks with too many samples begin.
pub fn hole(running: &Running) -> Result<Seen, String> {
    match cut(running.ports.web, "bad.mp4?end=2", 0, 2) {
        Ok(()) => Ok(Seen::Behaves(
            "the first two seconds of the film".to_owned(),
        )),
        Err(error) => running.unanswered(&error),
    }
}
