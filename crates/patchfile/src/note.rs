//! The note `.note.livegraft`: what the klp structs do not say, and the checksum of the file.
//!
//! Descriptor, all numbers little-endian: checksum [32], format version u32, number of objects u32; per object, in the
//! order of `klp_patch.objs`: length of the build-id u16, the build-id, number of funcs u32; per func, in the order of
//! `klp_object.funcs`: svma u64, size u64, SHA-256 of the code [32]. The checksum is the SHA-256 of the whole file with
//! its own 32 bytes zero. It finds accidents; it is no signature.

use std::ops::Range;

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use sha2::{Digest as _, Sha256};

use crate::elf::header;
use crate::{Error, Fingerprint};

/// The section that holds the note.
pub(crate) const SECTION: &str = ".note.livegraft";
/// The format that this crate writes and reads.
pub(crate) const VERSION: u32 = 1;
/// NT_VERSION-like: the only type of note that the owner has.
const TYPE: u32 = 1;
const OWNER: &[u8] = b"livegraft\0";
/// Header, and the owner with its padding to four bytes.
const DESC: usize = 12 + 12;

/// An object's part of the note.
#[derive(Debug, Clone)]
pub(crate) struct NoteObject {
    pub build_id: Vec<u8>,
    pub funcs: Vec<Fingerprint>,
}

/// The whole section, with a checksum of zeros.
pub(crate) fn encode(objects: &[NoteObject]) -> Vec<u8> {
    let mut desc = vec![0; 32];
    desc.extend(VERSION.to_le_bytes());
    desc.extend((objects.len() as u32).to_le_bytes());
    for object in objects {
        desc.extend((object.build_id.len() as u16).to_le_bytes());
        desc.extend(&object.build_id);
        desc.extend((object.funcs.len() as u32).to_le_bytes());
        for func in &object.funcs {
            desc.extend(func.svma.to_le_bytes());
            desc.extend(func.size.to_le_bytes());
            desc.extend(func.sha256);
        }
    }
    let mut note = Vec::new();
    note.extend((OWNER.len() as u32).to_le_bytes());
    note.extend((desc.len() as u32).to_le_bytes());
    note.extend(TYPE.to_le_bytes());
    note.extend(OWNER);
    note.extend([0; 2]);
    note.extend(desc);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// Finds the note's descriptor in the file.
fn find(bytes: &[u8]) -> Result<Range<usize>, Error> {
    let header = header(bytes)?;
    let table = header
        .sections(Le, bytes)
        .map_err(|e| Error::Malformed(e.to_string()))?;
    for section in table.iter() {
        if table.section_name(Le, section) != Ok(SECTION.as_bytes())
            || section.sh_type(Le) != elf::SHT_NOTE
        {
            continue;
        }
        let (start, end) = section
            .file_range(Le)
            .and_then(|(offset, size)| {
                let start = usize::try_from(offset).ok()?;
                Some((start, start.checked_add(usize::try_from(size).ok()?)?))
            })
            .ok_or(Error::Truncated)?;
        let note = bytes.get(start..end).ok_or(Error::Truncated)?;
        let size = note
            .get(4..8)
            .and_then(|b| b.first_chunk())
            .map(|b| u32::from_le_bytes(*b));
        if note.get(12..12 + OWNER.len()) != Some(OWNER) {
            return Err(Error::NotAPatch);
        }
        let desc = start.checked_add(DESC).ok_or(Error::Truncated)?;
        let desc_end = size
            .and_then(|s| desc.checked_add(s as usize))
            .filter(|&e| e <= end);
        return Ok(desc..desc_end.ok_or(Error::Corrupted)?);
    }
    Err(Error::NotAPatch)
}

fn checksum(bytes: &[u8], desc: &Range<usize>) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    let sum_end = desc.start.checked_add(32).filter(|&e| e <= desc.end)?;
    hash.update(bytes.get(..desc.start)?);
    hash.update([0; 32]);
    hash.update(bytes.get(sum_end..)?);
    Some(hash.finalize().into())
}

/// Puts the checksum into a finished file.
pub(crate) fn seal(bytes: &mut [u8]) -> Result<(), Error> {
    let desc = find(bytes)?;
    let sum = checksum(bytes, &desc).ok_or(Error::Corrupted)?;
    let place = bytes
        .get_mut(desc)
        .and_then(|b| b.get_mut(..32))
        .ok_or(Error::Corrupted)?;
    place.copy_from_slice(&sum);
    Ok(())
}

/// Checks the checksum, then the version, and reads the rest.
pub(crate) fn decode(bytes: &[u8]) -> Result<(u32, Vec<NoteObject>), Error> {
    let range = find(bytes)?;
    let sum = checksum(bytes, &range).ok_or(Error::Corrupted)?;
    let mut desc = Cursor(bytes.get(range).ok_or(Error::Truncated)?);
    if desc.array::<32>()? != sum {
        return Err(Error::Corrupted);
    }
    let version = u32::from_le_bytes(desc.array()?);
    if version != VERSION {
        return Err(Error::Version {
            found: version,
            supported: VERSION,
        });
    }
    let mut objects = Vec::new();
    for _ in 0..u32::from_le_bytes(desc.array()?) {
        let length = u16::from_le_bytes(desc.array()?);
        let build_id = desc.take(usize::from(length))?.to_vec();
        let mut funcs = Vec::new();
        for _ in 0..u32::from_le_bytes(desc.array()?) {
            funcs.push(Fingerprint {
                svma: u64::from_le_bytes(desc.array()?),
                size: u64::from_le_bytes(desc.array()?),
                sha256: desc.array()?,
            });
        }
        objects.push(NoteObject { build_id, funcs });
    }
    if !desc.0.is_empty() {
        return Err(Error::Malformed(
            "its note is longer than what it says".into(),
        ));
    }
    Ok((version, objects))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let short = || Error::Malformed("its note is shorter than what it says".into());
        let (head, tail) = self.0.split_at_checked(count).ok_or_else(short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
}
