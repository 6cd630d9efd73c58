//! The record in the target: a private memfd mapping named `livegraft`, two buffers, one byte that says which holds.
//!
//! A commit writes the buffer that does not hold, then its descriptor, then the one byte. Whatever kills the writer,
//! one of the two buffers is whole and the byte names it.

use crate::error::Error;
use crate::memory::Memory;
use crate::object::Mapping;
use crate::state::State;
use std::io;

/// Bytes of the first mapping.
pub const INITIAL: u64 = 16 * 1024;
/// The name of the mapping in /proc/PID/maps.
pub const MAPPING: &str = "/memfd:livegraft";

const MAGIC: [u8; 8] = *b"LIVEGRFT";
const FORMAT: u32 = 6;
const SELECTOR: u64 = 16;
const DESCRIPTORS: [u64; 2] = [32, 80];
const HEADER: u64 = 128;
/// No record is larger: nothing that a target says makes us allocate more.
const LIMIT: u64 = 64 << 20;

/// A place where a record is, or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Descriptor {
    address: u64,
    capacity: u64,
    len: u64,
    crc: u64,
}

impl Descriptor {
    fn encode(self) -> Vec<u8> {
        let Descriptor {
            address,
            capacity,
            len,
            crc,
        } = self;
        let words = [address, capacity, len, crc];
        let check = u64::from(crc32fast::hash(&words.map(u64::to_le_bytes).concat()));
        words
            .into_iter()
            .chain([check])
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    fn read(memory: &Memory, at: u64) -> io::Result<Option<Descriptor>> {
        let bytes = memory.read_vec(at, 40)?;
        let mut words = bytes.chunks_exact(8).map(|word| {
            word.iter()
                .rev()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        });
        let mut next = || words.next().unwrap_or(0);
        let read = Descriptor {
            address: next(),
            capacity: next(),
            len: next(),
            crc: next(),
        };
        Ok(
            (read.encode() == bytes && read.len <= read.capacity && read.capacity <= LIMIT)
                .then_some(read),
        )
    }
}

/// The record's place in a process.
#[derive(Debug, Clone)]
pub struct Registry {
    base: u64,
    selector: u8,
    descriptors: [Descriptor; 2],
}

impl Registry {
    /// Finds the record of a process.
    ///
    /// # Errors
    /// [`Error::Registry`] when something of that name is there and does not read.
    pub fn find(
        pid: i32,
        memory: &Memory,
        maps: &[Mapping],
    ) -> Result<Option<(Registry, State)>, Error> {
        let refuse = |why: &str| Error::Registry {
            pid,
            why: why.to_owned(),
        };
        for mapping in maps.iter().filter(|mapping| is_ours(mapping)) {
            let Ok(header) = memory.read_vec(mapping.start, HEADER as usize) else {
                continue;
            };
            if !header.starts_with(&MAGIC) {
                continue;
            }
            if header.get(8..12) != Some(&FORMAT.to_le_bytes()) {
                return Err(refuse("it was written by another version of livegraft"));
            }
            let selector = header.get(SELECTOR as usize).copied().unwrap_or(0);
            let mut descriptors = [Descriptor::default(); 2];
            for (descriptor, at) in descriptors.iter_mut().zip(DESCRIPTORS) {
                let read = Descriptor::read(memory, mapping.start.saturating_add(at));
                // The one that does not hold may have been left half written.
                *descriptor = read.ok().flatten().unwrap_or_default();
            }
            let registry = Registry {
                base: mapping.start,
                selector,
                descriptors,
            };
            let holds = descriptors
                .get(usize::from(selector))
                .filter(|descriptor| descriptor.capacity != 0)
                .ok_or_else(|| refuse("its header is damaged"))?;
            let payload = memory
                .read_vec(holds.address, holds.len as usize)
                .map_err(|_| refuse("it leads nowhere"))?;
            if u64::from(crc32fast::hash(&payload)) != holds.crc {
                return Err(refuse("its checksum is wrong"));
            }
            let state =
                postcard::from_bytes(&payload).map_err(|_| refuse("its contents are damaged"))?;
            return Ok(Some((registry, state)));
        }
        Ok(None)
    }

    /// Writes the first record into a fresh mapping. The magic comes last: until then nothing is there.
    ///
    /// # Errors
    /// When the mapping can't be written.
    pub fn create(memory: &Memory, base: u64, state: &State) -> io::Result<Registry> {
        let half = (INITIAL - HEADER) / 2;
        let place = |index: u64| Descriptor {
            address: base + HEADER + index * half,
            capacity: half,
            ..Descriptor::default()
        };
        let mut registry = Registry {
            base,
            selector: 1,
            descriptors: [place(0), place(1)],
        };
        let [first, second] = DESCRIPTORS;
        memory.write(base + first, &registry.descriptors[0].encode())?;
        memory.write(base + second, &registry.descriptors[1].encode())?;
        registry.commit(memory, state)?;
        memory.write(base + 8, &FORMAT.to_le_bytes())?;
        memory.write(base, &MAGIC)?;
        Ok(registry)
    }

    /// Whether another memory has a record where ours is.
    pub fn is_at_same_place(&self, memory: &Memory) -> bool {
        let mut magic = [0; 8];
        memory.read(self.base, &mut magic).is_ok() && magic == MAGIC
    }

    /// How many bytes the buffer that the next commit would use lacks for this record and `extra` more.
    pub fn lacks(&self, state: &State, extra: u64) -> Option<u64> {
        let needed = (encode(state).len() as u64).saturating_add(extra);
        let capacity = self
            .descriptors
            .get(usize::from(1 - self.selector.min(1)))?
            .capacity;
        (needed > capacity).then_some(needed)
    }

    /// Gives the buffer that the next commit would use another place.
    pub fn move_spare(&mut self, address: u64, capacity: u64) {
        if let Some(spare) = self
            .descriptors
            .get_mut(usize::from(1 - self.selector.min(1)))
        {
            *spare = Descriptor {
                address,
                capacity,
                ..Descriptor::default()
            };
        }
    }

    /// Replaces the record in one motion.
    ///
    /// # Errors
    /// When the process has left this memory, or the record does not fit (see [`Registry::lacks`]).
    pub fn commit(&mut self, memory: &Memory, state: &State) -> io::Result<()> {
        let payload = encode(state);
        let next = 1 - self.selector.min(1);
        let index = usize::from(next);
        let (Some(descriptor), Some(&at)) =
            (self.descriptors.get_mut(index), DESCRIPTORS.get(index))
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if payload.len() as u64 > descriptor.capacity {
            return Err(io::Error::other("the record does not fit into its place"));
        }
        descriptor.len = payload.len() as u64;
        descriptor.crc = u64::from(crc32fast::hash(&payload));
        memory.write(descriptor.address, &payload)?;
        memory.write(self.base.saturating_add(at), &descriptor.encode())?;
        memory.write(self.base.saturating_add(SELECTOR), &[next])?;
        self.selector = next;
        Ok(())
    }
}

fn encode(state: &State) -> Vec<u8> {
    // Serialising plain data into a growing vector does not fail.
    postcard::to_stdvec(state).unwrap_or_default()
}

/// Whether a mapping bears our name.
pub fn is_ours(mapping: &Mapping) -> bool {
    mapping
        .path
        .as_deref()
        .and_then(|path| path.to_str())
        .is_some_and(|path| {
            path == MAPPING
                || path
                    .strip_prefix(MAPPING)
                    .is_some_and(|rest| rest == " (deleted)")
        })
}
