//! The note `.note.livegraft`: what the klp structs do not say, and the checksum of the file.
//!
//! Descriptor, all numbers little-endian: checksum [32], format version u32, number of objects u32; per object, in the
//! order of `klp_patch.objs`: number of builds u32; per build: length of the build-id u16, the build-id, number of funcs
//! u32; per func, in the order of `klp_object.funcs`: svma u64, size u64, SHA-256 of the code [32]; then number of
//! recovered symbols u32; per symbol: length of the name u16, the name, sympos u64, kind u8 (st_type), svma u64, size
//! u64. Version 1 has one build per object, without the numbers of builds and of symbols. The checksum is the SHA-256 of
//! the whole file with its own 32 bytes zero. It finds accidents; it is no signature.

use std::ops::Range;

use object::LittleEndian as Le;
use object::elf;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use sha2::{Digest as _, Sha256};

use crate::elf::header;
use crate::{Build, Error, Fingerprint, Recovered, SymbolKind};

/// The section that holds the note.
pub(crate) const SECTION: &str = ".note.livegraft";
/// The format that this crate writes; it reads the one before too.
pub(crate) const VERSION: u32 = 2;
const ONE_BUILD: u32 = 1;
/// NT_VERSION-like: the only type of note that the owner has.
const TYPE: u32 = 1;
const OWNER: &[u8] = b"livegraft\0";
/// Header, and the owner with its padding to four bytes.
const DESC: usize = 12 + 12;

/// The whole section, with a checksum of zeros. An object's part of the note is its builds.
pub(crate) fn encode(objects: &[Vec<Build>]) -> Vec<u8> {
    let mut desc = vec![0; 32];
    desc.extend(VERSION.to_le_bytes());
    desc.extend((objects.len() as u32).to_le_bytes());
    for builds in objects {
        desc.extend((builds.len() as u32).to_le_bytes());
        for build in builds {
            desc.extend((build.build_id.len() as u16).to_le_bytes());
            desc.extend(&build.build_id);
            desc.extend((build.fingerprints.len() as u32).to_le_bytes());
            for func in &build.fingerprints {
                desc.extend(func.svma.to_le_bytes());
                desc.extend(func.size.to_le_bytes());
                desc.extend(func.sha256);
            }
            // `pack` refuses names that are longer than the length can say.
            desc.extend((build.symbols.len() as u32).to_le_bytes());
            for symbol in &build.symbols {
                desc.extend((symbol.name.len() as u16).to_le_bytes());
                desc.extend(symbol.name.as_bytes());
                desc.extend(symbol.sympos.to_le_bytes());
                desc.push(symbol.kind.st_type());
                desc.extend(symbol.svma.to_le_bytes());
                desc.extend(symbol.size.to_le_bytes());
            }
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
///
/// # Errors
/// If it has no place for it.
pub fn seal(bytes: &mut [u8]) -> Result<(), Error> {
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
pub(crate) fn decode(bytes: &[u8]) -> Result<(u32, Vec<Vec<Build>>), Error> {
    let range = find(bytes)?;
    let sum = checksum(bytes, &range).ok_or(Error::Corrupted)?;
    let mut desc = Cursor(bytes.get(range).ok_or(Error::Truncated)?);
    if desc.array::<32>()? != sum {
        return Err(Error::Corrupted);
    }
    let version = desc.number()?;
    if version != VERSION && version != ONE_BUILD {
        return Err(Error::Version {
            found: version,
            supported: VERSION,
        });
    }
    let mut objects = Vec::new();
    for _ in 0..desc.number()? {
        let count = if version == ONE_BUILD {
            1
        } else {
            desc.number()?
        };
        let mut builds: Vec<Build> = Vec::new();
        for _ in 0..count {
            builds.push(desc.build(version)?);
        }
        objects.push(builds);
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
    fn build(&mut self, version: u32) -> Result<Build, Error> {
        let length = u16::from_le_bytes(self.array()?);
        let build_id = self.take(usize::from(length))?.to_vec();
        let mut fingerprints = Vec::new();
        for _ in 0..self.number()? {
            fingerprints.push(Fingerprint {
                svma: u64::from_le_bytes(self.array()?),
                size: u64::from_le_bytes(self.array()?),
                sha256: self.array()?,
            });
        }
        let count = if version == ONE_BUILD {
            0
        } else {
            self.number()?
        };
        let mut symbols = Vec::new();
        for _ in 0..count {
            symbols.push(self.symbol()?);
        }
        Ok(Build {
            build_id,
            fingerprints,
            symbols,
        })
    }

    fn symbol(&mut self) -> Result<Recovered, Error> {
        let bad = || Error::Malformed("its note has a symbol that is none".into());
        let length = u16::from_le_bytes(self.array()?);
        let name = std::str::from_utf8(self.take(usize::from(length))?).map_err(|_| bad())?;
        let name = name.to_owned();
        let sympos = u64::from_le_bytes(self.array()?);
        let [st_type] = self.array()?;
        Ok(Recovered {
            name,
            sympos,
            kind: SymbolKind::from_st_type(st_type).ok_or_else(bad)?,
            svma: u64::from_le_bytes(self.array()?),
            size: u64::from_le_bytes(self.array()?),
        })
    }

    fn number(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

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
