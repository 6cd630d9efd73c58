//! Writing and taking back entries: single bytes where they stand, pages by one `mremap`.

use super::Engine;
use crate::arch::{Edit, nr};
use crate::error::Error;
use crate::space::pages;
use crate::state::{Entry, Method, Purpose, Region};
use livegraft_model::{PatchId, Slot};
use std::collections::BTreeSet;
use std::ops::Range;

impl Engine {
    /// The slots whose entries the model wants redirected.
    fn wanted(&self) -> BTreeSet<Slot> {
        self.state.model.redirected()
    }

    /// The bytes that should stand at an address range, given what its file says: the edits of all redirected
    /// entries laid over it.
    pub(super) fn overlay(&self, address: u64, bytes: &mut [u8], redirected: &BTreeSet<Slot>) {
        for slot in redirected {
            for edit in self
                .state
                .entry(*slot)
                .into_iter()
                .flat_map(|entry| &entry.edits)
            {
                for (index, &byte) in edit.redirected.iter().enumerate() {
                    let place = (edit.at + index as u64).checked_sub(address);
                    if let Some(place) = place.and_then(|at| bytes.get_mut(at as usize)) {
                        *place = byte;
                    }
                }
            }
        }
    }

    /// Whether an edit stands in the text: `Some(true)` redirected, `Some(false)` original, `None` neither.
    pub(super) fn stands(&self, edit: &Edit) -> Option<bool> {
        let found = self.memory().read_vec(edit.at, edit.original.len()).ok()?;
        if found == edit.redirected {
            return Some(true);
        }
        (found == edit.original).then_some(false)
    }

    /// The entries of a patch must be as we left them before anything is taken back.
    pub(super) fn compare_entries(&self, id: PatchId) -> Result<(), Error> {
        let slots = self
            .state
            .model
            .patch(id)
            .map(|patch| patch.slots.as_slice());
        for entry in slots
            .unwrap_or_default()
            .iter()
            .filter_map(|&slot| self.state.entry(slot))
        {
            for edit in &entry.edits {
                self.compare_bytes(&entry.function, edit.at, &edit.redirected)?;
            }
        }
        Ok(())
    }

    /// The running text at an address must be these bytes.
    pub(super) fn compare_bytes(
        &self,
        function: &str,
        address: u64,
        wanted: &[u8],
    ) -> Result<(), Error> {
        let found = self
            .memory()
            .read_vec(address, wanted.len())
            .map_err(|_| Error::Exited(self.process.pid))?;
        let mut pairs = found.iter().zip(wanted).enumerate();
        let Some((index, (&found, &wanted))) = pairs.find(|(_, (found, wanted))| found != wanted)
        else {
            return Ok(());
        };
        Err(Error::ForeignBytes {
            function: function.to_owned(),
            address: address + index as u64,
            found,
            wanted,
            guess: match found {
                0xcc => "a breakpoint of a debugger, or a uprobe of perf, bpftrace or SystemTap",
                _ => "another tool has changed it",
            },
        })
    }

    /// Makes the text say what the record says: entries of redirected slots jump, all others are as in their files.
    /// Safe at every moment, because an entry that jumps in universe 0 runs the original.
    pub(super) fn apply_edits(&mut self) -> Result<(), Error> {
        let wanted = self.wanted();
        let mut bytes: Vec<(u64, u8, bool)> = Vec::new();
        let mut swapped: BTreeSet<(u64, u64)> = BTreeSet::new();
        for (index, entry) in self.state.entries.iter().enumerate() {
            let redirect = wanted.contains(&Slot(index as u32));
            let stand: Vec<Option<bool>> =
                entry.edits.iter().map(|edit| self.stands(edit)).collect();
            // Somebody else's bytes are left alone; `list` and `status` name them.
            if stand.contains(&None) || stand.iter().all(|&stands| stands == Some(redirect)) {
                continue;
            }
            match entry.method {
                Method::Pun => {
                    for edit in &entry.edits {
                        let value = if redirect {
                            &edit.redirected
                        } else {
                            &edit.original
                        };
                        bytes.extend(value.first().map(|&byte| (edit.at, byte, redirect)));
                    }
                }
                Method::Swap => {
                    let span = edited_pages(entry);
                    swapped.insert((span.start, span.end));
                }
            }
        }
        // A pun may count on the redirected byte of an entry right behind it: it is written after that one, and taken
        // back before.
        bytes.sort_unstable_by_key(|&(at, ..)| std::cmp::Reverse(at));
        let (forth, back): (Vec<_>, Vec<_>) =
            bytes.into_iter().partition(|&(.., redirect)| redirect);
        for (at, byte, _) in back.into_iter().rev().chain(forth) {
            self.write(at, &[byte])?;
        }
        for (start, end) in swapped {
            self.swap_pages(start..end, &wanted)?;
        }
        Ok(())
    }

    /// Replaces text pages by copies in which the wanted swap entries jump and the others don't.
    fn swap_pages(&mut self, span: Range<u64>, wanted: &BTreeSet<Slot>) -> Result<(), Error> {
        let len = span.end - span.start;
        self.check_limits(len)?;
        let scratch = self.plan_anywhere(len, Purpose::Spare)?;
        self.state.regions.push(scratch);
        self.commit()?;
        self.map(&[scratch])?;
        let io = |what: &'static str| Error::io(what);
        let now = self
            .memory()
            .read_vec(span.start, len as usize)
            .map_err(io("reading the text of the process"))?;
        let mut copy = now.clone();
        for (index, entry) in self.state.entries.iter().enumerate() {
            if entry.method != Method::Swap {
                continue;
            }
            let redirect = wanted.contains(&Slot(index as u32));
            for edit in &entry.edits {
                let value = if redirect {
                    &edit.redirected
                } else {
                    &edit.original
                };
                for (offset, &byte) in value.iter().enumerate() {
                    let place = (edit.at + offset as u64).checked_sub(span.start);
                    if let Some(place) = place.and_then(|at| copy.get_mut(at as usize)) {
                        *place = byte;
                    }
                }
            }
        }
        self.write(scratch.start, &copy)?;
        if self.memory().read_vec(span.start, len as usize).ok() != Some(now) {
            return Err(Error::Io {
                what: "replacing a text page".to_owned(),
                source: std::io::Error::other("somebody else is writing to it"),
            });
        }
        const FLAGS: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let args = [scratch.start, len, len, FLAGS, span.start, 0];
        self.host()?
            .call("replace a page of its code", nr::MREMAP, args)?;
        self.state
            .regions
            .retain(|region| region.start != scratch.start);
        Ok(())
    }

    /// mremap can fail after it has unmapped its destination when the process is at one of its limits: look first.
    fn check_limits(&mut self, len: u64) -> Result<(), Error> {
        self.refresh_maps()?;
        let pid = self.process.pid;
        let refuse = |what: &str| Error::RemoteCall {
            pid,
            what: format!("replace a page of its code: it is at the limit of its {what}"),
            source: std::io::Error::from_raw_os_error(libc::ENOMEM),
        };
        let most = std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok())
            .unwrap_or(65530);
        if self.maps.len().saturating_add(16) > most {
            return Err(refuse("mappings"));
        }
        let limits = std::fs::read_to_string(self.process.dir().join("limits")).unwrap_or_default();
        let limit = limits.lines().find_map(|line| {
            let value = line
                .strip_prefix("Max address space")?
                .split_ascii_whitespace()
                .next()?;
            value.parse::<u64>().ok()
        });
        let size = crate::process::status_field(&self.process.live, "VmSize")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        if limit.is_some_and(|limit| size * 1024 + 4 * len > limit) {
            return Err(refuse("address space"));
        }
        Ok(())
    }
}

/// The pages that an entry's edits touch.
pub(super) fn edited_pages(entry: &Entry) -> Range<u64> {
    let start = entry
        .edits
        .iter()
        .map(|edit| edit.at)
        .min()
        .unwrap_or(entry.at);
    let end = entry
        .edits
        .iter()
        .map(|edit| edit.at + edit.original.len() as u64)
        .max();
    pages(start..end.unwrap_or(entry.at + 1))
}

/// A planned region.
pub(super) fn planned(start: u64, len: u64, purpose: Purpose) -> Region {
    Region {
        start,
        len,
        purpose,
        reachable: false,
    }
}
