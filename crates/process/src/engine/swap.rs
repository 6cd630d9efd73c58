//! Replacing pages of text by copies, each in one `mremap`.

use super::edits::{edited_pages, lay, merged, planned};
use super::text::Text;
use super::{Engine, calls_per_stop};
use crate::arch::{Edit, nr};
use crate::error::Error;
use crate::stack::{CodeRange, Ranges};
use crate::state::{Method, Purpose, Region};
use livegraft_model::{Slot, Version};
use std::collections::BTreeSet;
use std::ops::Range;

/// So many copies are in the target at a time.
const MOST_COPIES: usize = 64;
pub(super) const REPLACE: &str = "replace a page of its code";

/// A copy that is about to take its place.
struct Copy {
    /// The text's pages.
    span: Range<u64>,
    /// What they held when the copy was made.
    before: Vec<u8>,
    /// Where the copy is.
    spare: Region,
}

impl Copy {
    /// The arguments of the call that puts it there.
    fn remap(&self) -> [u64; 6] {
        const FLAGS: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let Region { start, len, .. } = self.spare;
        [start, len, len, FLAGS, self.span.start, 0]
    }
}

impl Engine {
    /// Makes the entries in these pages say what is wanted. Padding that jumps is put back last, when every task was
    /// seen outside of it.
    pub(super) fn swap_all(
        &mut self,
        spans: Vec<Range<u64>>,
        wanted: &BTreeSet<Slot>,
        inside: &Ranges,
    ) -> Result<(), Error> {
        let padding = self.padding_to_leave(wanted);
        for spans in spans.chunks(MOST_COPIES) {
            self.swap_pages(spans, wanted, !padding.is_empty(), inside)?;
        }
        if !padding.is_empty() && self.is_padding_left(padding)? {
            for spans in spans.chunks(MOST_COPIES) {
                self.swap_pages(spans, wanted, false, &Ranges::default())?;
            }
        }
        Ok(())
    }

    /// Padding that still jumps although its entry is not wanted to, or will not be in a moment.
    fn padding_to_leave(&self, wanted: &BTreeSet<Slot>) -> Ranges {
        let text = Text::default();
        let unwanted = self
            .entries_there()
            .filter(|(slot, entry)| entry.method != Method::Pun && !wanted.contains(slot));
        let padding = unwanted.flat_map(|(slot, entry)| {
            let jumps =
                |edit: &&Edit| edit.at != entry.at && self.stands(&text, edit) == Some(true);
            let jumping: Vec<_> = entry.edits.iter().filter(jumps).collect();
            jumping.into_iter().map(move |edit| CodeRange {
                after: edit.at.saturating_sub(1),
                last: edit.at.saturating_add(edit.redirected.len() as u64 - 1),
                slot,
                version: Version::Original,
            })
        });
        Ranges::new(padding.collect())
    }

    /// Replaces text pages by copies in which the wanted entries jump and the others don't; padding that jumps may be
    /// kept as it is. Where a task must not be inside of what is replaced, all tasks stand still meanwhile.
    fn swap_pages(
        &mut self,
        spans: &[Range<u64>],
        wanted: &BTreeSet<Slot>,
        keep_padding: bool,
        inside: &Ranges,
    ) -> Result<(), Error> {
        let copies = self.make_copies(spans, wanted, keep_padding)?;
        let meets = |copy: &Copy| !inside.overlapping(&copy.span).is_empty();
        let (meeting, alone): (Vec<Copy>, Vec<Copy>) = copies.into_iter().partition(meets);
        for batch in alone.chunks(calls_per_stop(alone.len())) {
            self.still_as_copied(batch)?;
            let mut host = self.host()?;
            for copy in batch {
                host.call(REPLACE, nr::MREMAP, copy.remap())?;
            }
        }
        if !meeting.is_empty() {
            self.still_as_copied(&meeting)?;
            let within = inside.touching(meeting.iter().map(|copy| &copy.span));
            let mut everyone = self.rendezvous(&within)?;
            for copy in &meeting {
                everyone.call(REPLACE, nr::MREMAP, copy.remap())?;
            }
        }
        let made = |region: &Region| {
            let mut copies = alone.iter().chain(&meeting);
            copies.any(|copy| copy.spare.start == region.start)
        };
        self.state.regions.retain(|region| !made(region));
        Ok(())
    }

    /// Maps and writes copies. They lie side by side, and each is recorded for itself: one that has taken its place is
    /// not there any more when a later command clears up.
    fn make_copies(
        &mut self,
        spans: &[Range<u64>],
        wanted: &BTreeSet<Slot>,
        keep_padding: bool,
    ) -> Result<Vec<Copy>, Error> {
        let length = |span: &Range<u64>| span.end - span.start;
        let total = spans.iter().map(length).sum();
        self.check_limits(4 * total, spans.len())?;
        let block = self.plan_anywhere(total, Purpose::Spare)?;
        let mut at = block.start;
        let mut spares = Vec::with_capacity(spans.len());
        for span in spans {
            spares.push(planned(at, length(span), Purpose::Spare));
            at += length(span);
        }
        self.state.regions.extend(&spares);
        self.commit()?;
        self.map(&[block])?;
        let text = Text::default();
        let mut copies = Vec::with_capacity(spans.len());
        for (span, spare) in spans.iter().zip(spares) {
            let before = self
                .memory()
                .read_vec(span.start, spare.len as usize)
                .map_err(Error::io("reading the text of the process"))?;
            let mut copy = before.clone();
            for (slot, entry) in self.entries_there() {
                let edits = entry.edits.iter().filter(|edit| {
                    let end = edit.at.saturating_add(edit.original.len() as u64);
                    entry.method != Method::Pun && edit.at < span.end && end > span.start
                });
                for edit in edits {
                    let kept = keep_padding
                        && edit.at != entry.at
                        && self.stands(&text, edit) == Some(true);
                    let value = edit.value(kept || wanted.contains(&slot));
                    lay(span.start, &mut copy, edit.at, value);
                }
            }
            self.write(spare.start, &copy)?;
            copies.push(Copy {
                span: span.clone(),
                before,
                spare,
            });
        }
        Ok(copies)
    }

    /// Nobody else has written to the text since it was copied.
    fn still_as_copied(&self, copies: &[Copy]) -> Result<(), Error> {
        for copy in copies {
            let now = self.memory().read_vec(copy.span.start, copy.before.len());
            if now.ok().as_ref() != Some(&copy.before) {
                return Err(Error::Io {
                    what: "replacing a text page".to_owned(),
                    source: std::io::Error::other("somebody else is writing to it"),
                });
            }
        }
        Ok(())
    }

    /// Whether the pages of these entries could be replaced when `more` bytes are mapped: who opens a transition must be
    /// able to end it.
    pub(super) fn may_replace_pages(&mut self, slots: &[Slot], more: u64) -> Result<(), Error> {
        let entries = slots.iter().filter_map(|&slot| self.state.entry(slot));
        let entries = entries.filter(|entry| entry.method != Method::Pun);
        let spans = merged(entries.filter_map(|e| edited_pages(&e.edits)).collect());
        let total = |spans: &[Range<u64>]| spans.iter().map(|s| s.end - s.start).sum::<u64>();
        let Some(most) = spans.chunks(MOST_COPIES).map(total).max() else {
            return Ok(());
        };
        self.check_limits(4 * most + more, spans.len())?;
        self.host().map(drop)
    }
}
