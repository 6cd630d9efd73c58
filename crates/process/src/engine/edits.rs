//! Writing and taking back entries: single bytes where they stand, pages by one `mremap`.

use super::Engine;
use super::text::Text;
use crate::arch::{Edit, PAGE};
use crate::error::Error;
use crate::space::pages;
use crate::stack::{CodeRange, Ranges};
use crate::state::{Entry, Identity, Method, Purpose, Region};
use livegraft_model::{PatchId, Slot, Version};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

impl Engine {
    /// The slots whose entries must jump: those that the rules want, and those that a pun among them counts on. (A slot
    /// that no universe patches leads to the original in each.)
    pub(super) fn wanted(&self) -> BTreeSet<Slot> {
        let mut wanted = self.state.model.redirected();
        let mut new: Vec<Slot> = wanted.iter().copied().collect();
        while let Some(slot) = new.pop() {
            let counted = self.state.entry(slot).map(|entry| &entry.counts_on);
            new.extend(
                counted
                    .into_iter()
                    .flatten()
                    .filter(|&&other| wanted.insert(other)),
            );
        }
        wanted
    }

    /// Looks which objects are not there any more: a library that was closed, whose place may be another's by now.
    /// Nothing is written at its entries.
    pub(super) fn refresh_gone(&mut self) {
        let mut known: BTreeMap<&Identity, bool> = BTreeMap::new();
        let mut gone = BTreeSet::new();
        for (slot, entry) in self.state.slots() {
            let there = *known.entry(&entry.identity).or_insert_with_key(|identity| {
                let len = identity.len.min(PAGE as u32) as usize;
                let bytes = self.memory().read_vec(identity.at, len);
                bytes.is_ok_and(|bytes| Sha256::digest(bytes)[..] == identity.sha256)
            });
            if !there {
                gone.insert(slot);
            }
        }
        self.gone = gone;
    }

    /// The entries whose objects are there.
    pub(super) fn entries_there(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        let all = self.state.slots();
        all.filter(|(slot, _)| !self.gone.contains(slot))
    }

    /// The slot of the function at that address.
    pub(super) fn slot_at(&self, start: u64) -> Option<Slot> {
        let mut all = self.entries_there();
        all.find_map(|(slot, entry)| (entry.start == start).then_some(slot))
    }

    /// The bytes that should stand at an address range, given what its file says: the edits of all entries that jump
    /// laid over it.
    pub(super) fn overlay(&self, wanted: &BTreeSet<Slot>, address: u64, bytes: &mut [u8]) {
        for (slot, entry) in self.entries_there() {
            for edit in entry.edits.iter().filter(|_| wanted.contains(&slot)) {
                lay(address, bytes, edit.at, &edit.redirected);
            }
        }
    }

    /// The entries of a patch must be as we left them before anything is taken back.
    pub(super) fn compare_entries(&self, id: PatchId) -> Result<(), Error> {
        let text = Text::default();
        for (_, entry) in self.entries_of(id) {
            for edit in &entry.edits {
                self.compare_bytes(&entry.function, edit.at, &edit.redirected)?;
            }
            self.compare_pages(&text, entry)?;
        }
        Ok(())
    }

    /// The functions of a patch whose entries somebody else has changed.
    pub(super) fn foreign_entries(&self, id: PatchId) -> Vec<String> {
        let text = Text::default();
        let changed = |entry: &Entry| {
            let mut edits = entry.edits.iter();
            edits.any(|edit| self.stands(&text, edit) != Some(true))
        };
        self.entries_of(id)
            .filter(|(_, entry)| changed(entry))
            .map(|(slot, _)| self.state.display(slot))
            .collect()
    }

    fn entries_of(&self, id: PatchId) -> impl Iterator<Item = (Slot, &Entry)> {
        let patch = self.state.model.patch(id);
        let slots = patch.map_or(&[][..], |patch| &patch.slots);
        self.entries_there()
            .filter(move |(slot, _)| slots.contains(slot))
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

    /// Text pages must be what their files have there, our own entries apart, before copies of them take their place: a
    /// copied uprobe kills.
    fn compare_pages(&self, text: &Text, entry: &Entry) -> Result<(), Error> {
        let span = match entry.method {
            Method::Swap | Method::Rendezvous => edited_pages(&entry.edits).unwrap_or_default(),
            Method::Pun => return Ok(()),
        };
        let recorded = self.state.pages.iter();
        for (page, sha256) in recorded.filter(|(page, _)| span.contains(page)) {
            let found = self.digest_without_edits(text, *page);
            if found.ok_or(Error::Exited(self.process.pid))? != *sha256 {
                return Err(Error::ForeignPage {
                    function: entry.function.clone(),
                    page: *page,
                });
            }
        }
        Ok(())
    }

    /// Makes the text say what the record says: entries of redirected slots jump, all others are as in their files.
    /// Safe at every moment, because an entry that jumps in universe 0 runs the original. Somebody else's bytes are left
    /// alone, and `list` and `status` name them; with `all`, nothing at all is done when they are where an entry must
    /// jump.
    ///
    /// # Errors
    /// [`Error::ForeignBytes`] and [`Error::ForeignPage`], with `all`.
    pub(super) fn apply_edits(&mut self, all: bool) -> Result<(), Error> {
        self.refresh_gone();
        let wanted = self.wanted();
        let text = Text::default();
        let mut work: Vec<Slot> = Vec::new();
        let mut left: BTreeSet<Slot> = BTreeSet::new();
        for (slot, entry) in self.entries_there() {
            let redirect = wanted.contains(&slot);
            let edits = entry.edits.iter();
            let stand: Vec<Option<bool>> = edits.map(|edit| self.stands(&text, edit)).collect();
            if stand.iter().all(|&stands| stands == Some(redirect)) {
                continue;
            }
            let foreign = if stand.contains(&None) {
                let mut edits = entry.edits.iter();
                edits.try_for_each(|edit| {
                    self.compare_bytes(&entry.function, edit.at, &edit.original)
                })
            } else {
                self.compare_pages(&text, entry)
            };
            match foreign {
                Ok(()) => work.push(slot),
                Err(error) if all && redirect => return Err(error),
                Err(_) => {
                    left.insert(slot);
                }
            }
        }
        let (mut bytes, mut spans, mut inside) = (Vec::new(), Vec::new(), Vec::new());
        for slot in work {
            let redirect = wanted.contains(&slot);
            let Some(entry) = self.state.entry(slot) else {
                continue;
            };
            // A pun that can't be taken back goes on counting on others; one whose others can't jump must not jump.
            let counts_on = |slot: Slot, other: Slot| {
                let entry = self.state.entry(slot);
                entry.is_some_and(|entry| entry.counts_on.contains(&other))
            };
            let waits = left.iter().any(|&other| match redirect {
                true => counts_on(slot, other),
                false => counts_on(other, slot),
            });
            if waits {
                continue;
            }
            match entry.method {
                Method::Pun => bytes.extend(entry.edits.iter().filter_map(|edit| {
                    let value = edit.value(redirect).first();
                    value.map(|&byte| (edit.at, byte, redirect))
                })),
                Method::Swap => spans.extend(edited_pages(&entry.edits)),
                Method::Rendezvous => {
                    spans.extend(edited_pages(&entry.edits));
                    // What stands there is one instruction once it jumps: nobody can be within it.
                    inside.extend(
                        entry
                            .edits
                            .iter()
                            .filter(|_| redirect)
                            .map(|edit| CodeRange {
                                after: edit.at,
                                last: edit.at.saturating_add(edit.redirected.len() as u64 - 1),
                                slot,
                                version: Version::Original,
                            }),
                    );
                }
            }
        }
        // A pun may count on the redirected byte of an entry right behind it: it is written after that one, and taken
        // back before.
        bytes.sort_unstable_by_key(|&(at, ..)| Reverse(at));
        let (forth, back): (Vec<_>, Vec<_>) =
            bytes.into_iter().partition(|&(.., redirect)| redirect);
        for (at, byte, _) in back.into_iter().rev().chain(forth) {
            self.write(at, &[byte])?;
        }
        self.swap_all(merged(spans), &wanted, &Ranges::new(inside))
    }
}

/// Writes `value`, which belongs at `at`, into bytes that begin at `address`, as far as it lies in them.
pub(super) fn lay(address: u64, bytes: &mut [u8], at: u64, value: &[u8]) {
    for (at, &byte) in (at..).zip(value) {
        let place = at
            .checked_sub(address)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(place) = place.and_then(|at| bytes.get_mut(at)) {
            *place = byte;
        }
    }
}

/// Ranges that overlap or touch become one: what straddles a page is never written in halves.
pub(super) fn merged(mut spans: Vec<Range<u64>>) -> Vec<Range<u64>> {
    spans.sort_unstable_by_key(|span| span.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for span in spans {
        match all.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => all.push(span),
        }
    }
    all
}

/// The pages that edits touch.
pub(super) fn edited_pages(edits: &[Edit]) -> Option<Range<u64>> {
    let start = edits.iter().map(|edit| edit.at).min()?;
    let ends = edits
        .iter()
        .map(|edit| edit.at.saturating_add(edit.original.len() as u64));
    Some(pages(start..ends.max()?))
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
