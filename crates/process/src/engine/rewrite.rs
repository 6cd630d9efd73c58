//! Entries that are redirected on a copy of their page: all the ways in which the bytes there may be arranged.

use super::Engine;
use super::edits::edited_pages;
use super::plan::{Function, Plan};
use super::trampolines::Place;
use crate::arch::{self, CLAIM, Continuation, Edit, NotRedirectable, PAGE, Rewrite, Site};
use crate::state::{Entry, Method};
use std::ops::Range;

/// How far padding may lie from an entry: a short jump there must reach.
const REACH: u64 = 128;

/// Padding that holds a jump: its address, and what stands there.
type Pad = (u64, [u8; CLAIM]);

impl Function<'_> {
    /// Padding in reach of the entry: right before the function, right behind it, then that of its neighbours.
    fn pads(&self) -> impl Iterator<Item = Pad> {
        let site = self.site();
        let before = arch::padding_before(self.start, self.before());
        let after = arch::padding_after(&site);
        let others = std::iter::once_with(|| self.neighbouring_pads()).flatten();
        before.into_iter().chain(after).chain(others)
    }

    fn neighbouring_pads(&self) -> Vec<Pad> {
        let at = self.at();
        let within = at.saturating_sub(REACH)..at.saturating_add(REACH);
        let fits = |pad: Range<u64>| {
            let starts = pad.clone().step_by(CLAIM);
            starts
                .map(|at| at..at + CLAIM as u64)
                .filter(move |place| place.end <= pad.end)
        };
        let places = self.object.padding(within).into_iter().flat_map(fits);
        let read = |place: Range<u64>| {
            let bytes = self.object.code(place.clone())?;
            Some((place.start, bytes.try_into().ok()?))
        };
        places.filter_map(read).collect()
    }

    /// Whether a part of it branches into the entry's first bytes.
    fn is_entered_behind(&self, site: &Site<'_>, end: usize) -> bool {
        self.parts().iter().any(|part| {
            let code = self.object.code(part.clone());
            code.is_some_and(|code| arch::leads_back(part.start, &code, site, end))
        })
    }
}

impl Engine {
    /// By a copy of the page.
    pub(super) fn by_page(
        &self,
        plan: &mut Plan,
        function: &Function<'_>,
        slot: u32,
        place: Place,
        jumps: &[u64],
        method: Method,
    ) -> Result<Entry, NotRedirectable> {
        let site = function.site();
        let mut why = None;
        let pads = std::iter::once(None).chain(function.pads().map(Some));
        let mut arranged = pads.filter_map(|pad| {
            self.arrange(plan, function, place, jumps, (pad, method))
                .map_err(|reason| match reason {
                    NotRedirectable::Overlaps => why = Some(reason),
                    _ => why = why.or(Some(reason)),
                })
                .ok()
        });
        let found = arranged.next();
        drop(arranged);
        let (edits, continuation) = found.ok_or(why.unwrap_or(NotRedirectable::NoRoom))?;
        if self.is_sealed(&plan.text, site.at) {
            return Err(NotRedirectable::Sealed);
        }
        let span = edited_pages(&edits).unwrap_or(site.at..site.at);
        let mut pages = Vec::new();
        for page in span.step_by(PAGE as usize) {
            let digest = self.compare_with_file(&plan.text, function.object, page);
            pages.push((page, digest.map_err(NotRedirectable::ForeignPage)?));
        }
        let trampoline = arch::trampoline(plan.low, slot).ok_or(NotRedirectable::NoNearMemory)?;
        let entry = self.entry(plan, function, (slot, place), method, edits, continuation)?;
        plan.writes.push((place.trampoline, trampoline.to_vec()));
        pages.retain(|page| !plan.pages.contains(page));
        plan.pages.append(&mut pages);
        Ok(entry)
    }

    /// One arrangement: what is written, and what moves elsewhere.
    fn arrange(
        &self,
        plan: &Plan,
        function: &Function<'_>,
        place: Place,
        jumps: &[u64],
        (pad, method): (Option<Pad>, Method),
    ) -> Result<(Vec<Edit>, Continuation), NotRedirectable> {
        let site = function.site();
        let standing = method == Method::Rendezvous;
        let Rewrite { edits, cover } = arch::rewrite(&site, place.trampoline, pad, standing)?;
        if edits
            .iter()
            .any(|edit| self.is_claimed(plan, edit, site.at, jumps))
        {
            return Err(NotRedirectable::Overlaps);
        }
        let changed = edits.last().map_or(0, |edit| edit.original.len());
        if function.is_entered_behind(&site, changed) {
            return Err(NotRedirectable::BranchInto);
        }
        let continuation = arch::continuation(&site, place.cell, cover)?;
        Ok((edits, continuation))
    }

    /// Whether another entry has bytes of this edit of the entry at `own`.
    fn is_claimed(&self, plan: &Plan, edit: &Edit, own: u64, jumps: &[u64]) -> bool {
        let span = edit.at..edit.at + edit.original.len() as u64;
        let claims = self.claims(plan).flat_map(|entry| {
            let claim = match entry.method {
                Method::Pun => entry.at..entry.at + CLAIM as u64,
                Method::Swap | Method::Rendezvous => entry.at..entry.at + 1,
            };
            let edits = entry.edits.iter();
            edits
                .map(|e| e.at..e.at + e.original.len() as u64)
                .chain([claim])
        });
        let mut claims = claims;
        jumps
            .iter()
            .any(|&jump| jump != own && span.contains(&jump))
            || claims.any(|other| other.start < span.end && span.start < other.end)
    }
}
