//! Who refers to memory that is to go: every word of a process that may be a pointer into it.
//!
//! Memory and registers are looked through here, what the kernel keeps in [`super::handed`]; what is dead on stacks is told
//! from what is live in [`super::dead`]. While tasks run this
//! finds what lies still, but proves nothing: a pointer may move from where it was not looked yet to where it was. While
//! all stand still it is a proof, see [`super::free`].

use super::Engine;
use crate::error::Error;
use crate::object::Mapping;
use crate::pages::PageMap;
use crate::process::Task;
use crate::search::{Wanted, Word};
use crate::state::Purpose;
use crate::symbolize::readable;
use crate::sys::{self, Registers};
use crate::tracer::Stopped;
use livegraft_model::Standing;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CHUNK: u64 = 512 * 1024;
/// More words are not told apart.
const MOST_WORDS: usize = 1 << 16;
/// More signals are not looked at.
const MOST_SIGNALS: u64 = 4096;
/// Of the thread control block: glibc's pointer guard (tcbhead_t.pointer_guard).
const POINTER_GUARD: u64 = 0x30;
/// What the kernel maps has nothing of the program's in it.
const KERNELS_OWN: [&str; 5] = [
    "[vdso]",
    "[vvar]",
    "[vvar_vclock]",
    "[vsyscall]",
    "[uprobes]",
];

/// A word that refers to what is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub value: u64,
    pub mangled: bool,
    /// Where in memory; `None`: in what `place` says.
    pub at: Option<u64>,
    pub place: &'static str,
    /// In whose registers, or on whose stack.
    pub task: Option<Task>,
}

/// What a search has found.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// In memory, by address.
    pub words: Vec<Word>,
    /// In registers, in the kernel; and the words of memory that are on a stack.
    pub held: Vec<Held>,
    /// What could not be looked at.
    pub unseen: Vec<String>,
    /// How much memory was read.
    pub bytes: u64,
}

/// Why a search ended early.
#[derive(Debug)]
pub(super) enum Cut {
    OutOfTime,
    Failed(Error),
}

impl From<Error> for Cut {
    fn from(error: Error) -> Cut {
        Cut::Failed(error)
    }
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Cut {
        Cut::Failed(Error::io("reading the memory of the process")(error))
    }
}

/// Ends a search that takes longer than all tasks may stand still.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound(pub Option<Instant>);

impl Bound {
    pub fn check(self) -> Result<(), Cut> {
        match self.0 {
            Some(deadline) if Instant::now() > deadline => Err(Cut::OutOfTime),
            _ => Ok(()),
        }
    }

    /// All tasks stand still: what can't be read now can't be read at all.
    fn is_still(self) -> bool {
        self.0.is_some()
    }
}

impl Reach {
    fn note(&mut self, wanted: &Wanted, word: u64, place: &'static str, task: Option<Task>) {
        self.held
            .extend(wanted.find(word).map(|(value, mangled)| Held {
                value,
                mangled,
                at: None,
                place,
                task,
            }));
    }

    /// The same for what the kernel has.
    pub fn note_kernel(&mut self, wanted: &Wanted, word: u64, place: &'static str) {
        self.note(wanted, word, place, None);
    }
}

impl Engine {
    /// The pointer guard of a task, if its C library has one there.
    pub(super) fn pointer_guard(&self, regs: &Registers) -> Option<u64> {
        let at = regs.fs_base.checked_add(POINTER_GUARD);
        at.filter(|_| regs.fs_base != 0)
            .and_then(|at| self.memory().read_u64(at).ok())
            .filter(|&guard| guard != 0)
    }

    /// The registers of a stopped task, and the signals that wait for it.
    pub(super) fn search_registers(
        &self,
        task: Task,
        stopped: &Stopped,
        wanted: &Wanted,
        reach: &mut Reach,
    ) {
        let r = &stopped.regs;
        if r.rip == 0 && r.rsp == 0 {
            return; // an io_uring worker
        }
        let settled = Some(Standing::In(self.state.model.settled()));
        if self.standing(r.gs_base) != settled {
            let tid = task.tid;
            reach.unseen.push(format!(
                "task {tid} is not where all tasks should be (its gs base is {:#x})",
                r.gs_base
            ));
        }
        for (name, word) in [
            ("the program counter", r.rip),
            ("register rax", r.rax),
            ("register rbx", r.rbx),
            ("register rcx", r.rcx),
            ("register rdx", r.rdx),
            ("register rsi", r.rsi),
            ("register rdi", r.rdi),
            ("register rbp", r.rbp),
            ("the stack pointer", r.rsp),
            ("register r8", r.r8),
            ("register r9", r.r9),
            ("register r10", r.r10),
            ("register r11", r.r11),
            ("register r12", r.r12),
            ("register r13", r.r13),
            ("register r14", r.r14),
            ("register r15", r.r15),
            ("the thread pointer", r.fs_base),
        ] {
            reach.note(wanted, word, name, Some(task));
        }
        match sys::extended_state(stopped.tid) {
            Ok(state) => {
                for word in state.chunks_exact(8) {
                    let word = word.try_into().map(u64::from_le_bytes).unwrap_or_default();
                    reach.note(wanted, word, "a vector register", Some(task));
                }
            }
            Err(error) => reach.unseen.push(format!(
                "the vector registers of task {} ({error})",
                task.tid
            )),
        }
        for shared in [false, true] {
            match sys::pending_signals(stopped.tid, shared, MOST_SIGNALS) {
                Ok(signals) if (signals.len() as u64) < MOST_SIGNALS => {
                    for word in signals.iter().flatten() {
                        reach.note(wanted, *word, "a signal that waits", Some(task));
                    }
                }
                _ => reach
                    .unseen
                    .push(format!("the signals that wait for task {}", task.tid)),
            }
        }
    }

    /// All memory that may have been written to.
    pub(super) fn search_memory(
        &mut self,
        wanted: &Wanted,
        bound: Bound,
        reach: &mut Reach,
    ) -> Result<(), Cut> {
        self.refresh_maps()?;
        let pagemap = PageMap::open(&self.process.live())?;
        let mut buf = vec![0; CHUNK as usize];
        for mapping in &self.maps {
            let name = mapping.path.as_deref().and_then(|path| path.to_str());
            if name.is_some_and(|name| KERNELS_OWN.contains(&name)) {
                continue;
            }
            // Reading it may do things.
            if self.is_device(mapping) {
                if mapping.write {
                    let name = readable(name.unwrap_or_default());
                    reach.unseen.push(format!("memory of a device ({name})"));
                }
                continue;
            }
            for part in self.not_ours(mapping) {
                // A private mapping shows what others write to memory that has a file's name, as long as it is not written
                // to itself.
                if mapping.shared || mapping.inode != 0 && is_memory(mapping) {
                    self.search_shared(mapping, &part, wanted, bound, reach, &mut buf)?;
                }
                if !mapping.shared {
                    pagemap.written(part, &mut |range| {
                        self.search_range(mapping, range, wanted, bound, reach, &mut buf)
                    })?;
                }
            }
            bound.check()?;
            if reach.words.len() > MOST_WORDS {
                let what =
                    format!("what lies behind the first {MOST_WORDS} words that refer to it");
                reach.unseen.push(what);
                break;
            }
        }
        reach.words.sort_unstable();
        Ok(())
    }

    fn link_to(&self, mapping: &Mapping) -> PathBuf {
        let link = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
        self.process.live_process().join(link)
    }

    /// Whether a mapping is neither anonymous nor a file's; by its name where we may not ask.
    pub(super) fn is_device(&self, mapping: &Mapping) -> bool {
        let path = mapping.path.as_deref();
        if mapping.inode == 0 {
            return false;
        }
        match std::fs::metadata(self.link_to(mapping)) {
            Ok(metadata) => !metadata.is_file() && path != Some(Path::new("/dev/zero")),
            Err(_) => path.is_some_and(|path| {
                let memory = is_memory(mapping) || path.starts_with("/dev/hugepages");
                path.starts_with("/dev") && !memory || !path.is_absolute()
            }),
        }
    }

    /// A mapping without what livegraft itself keeps in it; the variables of patches are the program's.
    fn not_ours(&self, mapping: &Mapping) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = mapping.start;
        let mut ours: Vec<_> = self.state.regions.iter().collect();
        // What unwinders keep about a patch goes with it, once they have been told to forget it.
        ours.retain(|region| {
            (!mapping.write || region.purpose == Purpose::Frames)
                && region.purpose != Purpose::Data
                && mapping.start <= region.start
                && region.end() <= mapping.end
        });
        ours.sort_by_key(|region| region.start);
        for region in ours {
            parts.push(at..region.start);
            at = at.max(region.end());
        }
        parts.push(at..mapping.end);
        parts.retain(|part| part.start < part.end);
        parts
    }

    fn search_range(
        &self,
        mapping: &Mapping,
        range: Range<u64>,
        wanted: &Wanted,
        bound: Bound,
        reach: &mut Reach,
        buf: &mut [u8],
    ) -> Result<(), Cut> {
        search_pieces(
            range.clone(),
            wanted,
            bound,
            reach,
            buf,
            &mut |at, piece| {
                match self.memory().read(at, piece) {
                    Ok(()) => Ok(piece.len()),
                    // Gone since.
                    Err(_) if !bound.is_still() => Ok(0),
                    Err(error) => Err(error),
                }
            },
        )
        .or_else(|cut| match cut {
            Cut::Failed(error) if self.is_alive() => {
                reach.unseen.push(unreadable(mapping, &range, &error));
                Ok(())
            }
            Cut::Failed(_) => Err(Error::Exited(self.process.pid).into()),
            cut => Err(cut),
        })
    }

    /// Shared memory, by its file: what was written and is not mapped now counts, and no hole is filled by reading.
    fn search_shared(
        &self,
        mapping: &Mapping,
        part: &Range<u64>,
        wanted: &Wanted,
        bound: Bound,
        reach: &mut Reach,
        buf: &mut [u8],
    ) -> Result<(), Cut> {
        if !mapping.write && !is_memory(mapping) {
            return Ok(());
        }
        let Ok(file) = File::open(self.link_to(mapping)) else {
            // We may not look at it in that way.
            return self.search_range(mapping, part.clone(), wanted, bound, reach, buf);
        };
        let offset = mapping
            .offset
            .wrapping_add(part.start.wrapping_sub(mapping.start));
        let end = offset.saturating_add(part.end.saturating_sub(part.start));
        let mut at = offset;
        while at < end {
            let Some(data) = sys::data_from(&file, at)? else {
                break;
            };
            let to_avma = |offset_in: u64| part.start.wrapping_add(offset_in.wrapping_sub(offset));
            // A hole may end anywhere.
            let data = data.start.max(at) & !3..data.end.min(end);
            if data.start >= data.end {
                break;
            }
            let range = to_avma(data.start)..to_avma(data.end);
            search_pieces(range, wanted, bound, reach, buf, &mut |avma, piece| {
                let from = offset.wrapping_add(avma.wrapping_sub(part.start));
                file.read_at(piece, from)
            })?;
            at = data.end;
        }
        Ok(())
    }
}

/// Reads a range piece by piece and searches it. A piece that is cut short is the last.
fn search_pieces(
    range: Range<u64>,
    wanted: &Wanted,
    bound: Bound,
    reach: &mut Reach,
    buf: &mut [u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> Result<(), Cut> {
    let mut at = range.start;
    loop {
        bound.check()?;
        let want = (range.end - at).min(buf.len() as u64);
        let piece = buf.get_mut(..want as usize).unwrap_or_default();
        let got = read(at, piece)?;
        reach.bytes = reach.bytes.saturating_add(got as u64);
        wanted.search(at, piece.get(..got).unwrap_or_default(), &mut reach.words);
        let next = at.saturating_add(want);
        if got < piece.len() || next >= range.end || reach.words.len() > MOST_WORDS {
            return Ok(());
        }
        // A word may straddle two pieces.
        at = next - 4;
    }
}

/// Whether a shared mapping is memory by its nature, and no file on a disk, as far as its name tells.
fn is_memory(mapping: &Mapping) -> bool {
    let path = mapping.path.as_deref().and_then(|path| path.to_str());
    mapping.deleted
        || path.is_none_or(|path| {
            ["/memfd:", "/SYSV", "/dev/shm/", "/dev/zero"]
                .iter()
                .any(|prefix| path.starts_with(prefix))
        })
}

fn unreadable(mapping: &Mapping, range: &Range<u64>, error: &Error) -> String {
    let path = mapping.path.as_deref().map(|path| path.to_string_lossy());
    let name = readable(&path.unwrap_or_default());
    format!(
        "memory at {:#x}-{:#x} {name} can't be read ({error})",
        range.start, range.end
    )
}
