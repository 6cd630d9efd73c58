//! What livegraft knows of a process: all of it is recorded in the process itself.

use crate::arch::Edit;
use livegraft_model::{Livepatch, PatchId, Slot, UniverseId};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The record. Which universe a task is in is not here: its gs base says that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Patches, universes, the open transition.
    pub model: Livepatch,
    /// Address of the first slot of universe 0's table, below 2 GiB; 0 before there is one.
    pub low: u64,
    /// Everything that livegraft mapped.
    pub regions: Vec<Region>,
    /// The redirected functions; a slot is an index here.
    pub entries: Vec<Entry>,
    /// Where the patches lie.
    pub images: Vec<Image>,
    /// The tables of the universes other than 0: address of the first slot.
    pub tables: Vec<(UniverseId, u64)>,
    /// Text pages that entries redirected by swap lie on: address, SHA-256 of what the file has there.
    pub pages: Vec<(u64, [u8; 32])>,
    /// Who works on the process.
    pub controller: Option<Controller>,
    /// When the open transition began, in milliseconds since the epoch.
    pub began_ms: u64,
    /// And in clock ticks since boot, as start times of processes are counted.
    pub began_ticks: u64,
    /// Drawn at random with the first record: tells a forked child's copy from somebody else's record.
    pub instance: u64,
    /// SHA-256 of which files are mapped executable, when no code in them was found to switch stacks.
    pub calm: Option<[u8; 32]>,
}

/// A process that works on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Its number.
    pub pid: i32,
    /// Its start time in clock ticks since boot.
    pub start_time: u64,
}

/// What a region is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The record itself.
    Registry,
    /// Table of universe 0.
    LowTable,
    /// Tables of the other universes.
    Tables,
    /// More room for the table right before it.
    TableRest,
    /// Private tables of tasks that wait.
    Pool,
    /// Stub, trampolines, relocated instructions, thunks.
    Trampolines,
    /// Where a pun leads.
    Pun,
    /// A page on its way into the text.
    Spare,
    /// A patch's code.
    Text,
    /// A patch's constants.
    Constants,
    /// A patch's variables.
    Data,
    /// What the program's unwinders keep about patches.
    Frames,
}

impl Purpose {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Purpose::Registry => "registry",
            Purpose::LowTable => "table of universe 0",
            Purpose::Tables => "tables of universes",
            Purpose::TableRest => "more of a table",
            Purpose::Pool => "private tables of waiting tasks",
            Purpose::Trampolines => "trampolines and self-switch",
            Purpose::Pun => "trampoline of a punned entry",
            Purpose::Spare => "spare text page",
            Purpose::Text => "code of a patch",
            Purpose::Constants => "constants of a patch",
            Purpose::Data => "variables of a patch",
            Purpose::Frames => "what unwinders keep about patches",
        }
    }

    /// The mapping's protection.
    pub fn protection(self) -> i32 {
        match self {
            Purpose::Trampolines | Purpose::Pun | Purpose::Spare | Purpose::Text => {
                libc::PROT_READ | libc::PROT_EXEC
            }
            Purpose::Data | Purpose::Frames => libc::PROT_READ | libc::PROT_WRITE,
            _ => libc::PROT_READ,
        }
    }
}

/// A mapping of livegraft's in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Bytes, whole pages.
    pub len: u64,
    /// What for.
    pub purpose: Purpose,
    /// A task may have reached it, or may still: it is never unmapped or rewritten. Until then it is merely planned,
    /// and a later command takes it away.
    pub reachable: bool,
}

impl Region {
    /// One past the last address.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// How an entry is redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Only the first byte changes.
    Pun,
    /// The text page is replaced in one motion.
    Swap,
    /// The same, while all tasks stand still: then the first bytes may be several instructions.
    Rendezvous,
}

impl Method {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Pun => "pun",
            Method::Swap => "swap",
            Method::Rendezvous => "rendezvous",
        }
    }
}

/// A function whose entry is, or was, redirected. It keeps its slot for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub function: String,
    /// `None`: the executable.
    pub object: Option<String>,
    /// Address of its first byte.
    pub start: u64,
    /// Its size.
    pub size: u64,
    /// Address of the byte that is redirected: the first, or the one after `endbr64`.
    pub at: u64,
    /// How.
    pub method: Method,
    /// What is written where.
    pub edits: Vec<Edit>,
    /// Where the entry jumps to.
    pub trampoline: u64,
    /// The relocated first instruction: where the original goes on.
    pub continuation: u64,
    /// Where a private table leads.
    pub thunk: u64,
    /// The ranges of the original: (after, last), as the stack check wants them.
    pub bodies: Vec<(u64, u64)>,
    /// Where the original jumps to outside of itself, through the PLT too, and its own entry if it jumps there.
    pub tails: Vec<u64>,
    /// What lies between it and those.
    pub leaving: Leaving,
    /// Entries behind this one whose redirected first bytes are part of this one's jump: while this one jumps, they do.
    pub counts_on: Vec<Slot>,
    /// What tells that the object is still there.
    pub identity: Identity,
}

/// Bytes of an object's headers, by which it is known again: another library may come to its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// Where they lie.
    pub at: u64,
    /// How many.
    pub len: u32,
    /// Their SHA-256.
    pub sha256: [u8; 32],
}

/// A patch in the target's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Whose.
    pub id: PatchId,
    /// SHA-256 of its file.
    pub digest: [u8; 32],
    /// First address of its memory.
    pub start: u64,
    /// How much.
    pub len: u64,
    /// Its call frame information: (first, one past the last) of each part.
    pub eh_frames: Vec<(u64, u64)>,
    /// The unwinders that know it: the functions that it was registered through.
    pub unwinders: Vec<u64>,
    /// Begins of the regions in which they keep notes about it.
    pub notes: Vec<u64>,
    /// They are being told to forget it; when nobody is at that, it is not known whether they have.
    pub forgetting: bool,
    /// Its functions.
    pub functions: Vec<ImageFunction>,
}

/// One replacement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFunction {
    /// What it replaces.
    pub slot: Slot,
    /// Address of the new function.
    pub entry: u64,
    /// Its ranges: (after, last).
    pub bodies: Vec<(u64, u64)>,
    /// Where it jumps to outside of itself.
    pub tails: Vec<u64>,
    /// What lies between it and those.
    pub leaving: Leaving,
}

/// Code of others that a version's tail jumps pass through, while nothing of the version is on the stack: it counts as
/// the version's own. As (after, last), as the stack check wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// PLT stubs and veneers: as a program counter only, since they call nothing.
    pub stubs: Vec<(u64, u64)>,
    /// The dynamic loader's resolvers: on the stack as well, of what they call.
    pub resolvers: Vec<(u64, u64)>,
}

impl Image {
    /// Its memory.
    pub fn block(&self) -> Range<u64> {
        self.start..self.start.saturating_add(self.len)
    }
}

impl State {
    /// The image of a patch.
    pub fn image(&self, id: PatchId) -> Option<&Image> {
        self.images.iter().find(|image| image.id == id)
    }

    /// The entry of a slot.
    pub fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.0 as usize)
    }

    /// All entries with their slots.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        let numbered = self.entries.iter().enumerate();
        numbered.map(|(index, entry)| (Slot(index as u32), entry))
    }

    /// The region that an address lies in.
    pub fn region_at(&self, address: u64) -> Option<&Region> {
        self.regions
            .iter()
            .find(|region| (region.start..region.end()).contains(&address))
    }

    /// How many bytes of a table there are from an address on.
    pub fn room_at(&self, address: u64) -> u64 {
        let mut end = self.region_at(address).map_or(address, Region::end);
        while let Some(more) = self.region_at(end)
            && more.start == end
            && more.purpose == Purpose::TableRest
        {
            end = more.end();
        }
        end.saturating_sub(address)
    }

    /// A function's name as the user knows it: `function`, or `function (object)`.
    pub fn display(&self, slot: Slot) -> String {
        match self.entry(slot) {
            None => format!("slot {}", slot.0),
            Some(Entry {
                function,
                object: None,
                ..
            }) => function.clone(),
            Some(Entry {
                function,
                object: Some(object),
                ..
            }) => format!("{function} ({object})"),
        }
    }
}
