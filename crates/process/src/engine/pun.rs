//! Entries whose own bytes spell where they jump to: one byte of them becomes the jump.

use super::Engine;
use super::edits::planned;
use super::plan::{Function, Plan};
use super::trampolines::Place;
use crate::arch::{self, NotRedirectable, PAGE};
use crate::space::pages;
use crate::state::{Entry, Method, Purpose};
use livegraft_model::Slot;
use std::ops::Range;

impl Engine {
    /// Plans an entry that jumps to where its own bytes lead.
    pub(super) fn pun(
        &self,
        plan: &mut Plan,
        function: &Function<'_>,
        slot: u32,
        place: Place,
        jumps: &[u64],
    ) -> Result<Entry, NotRedirectable> {
        let site = function.site();
        let claimed = site.at..site.at + arch::CLAIM as u64;
        let mut following = [0u8; 4];
        for (index, byte) in following.iter_mut().enumerate() {
            *byte = *site.code.get(index + 1).ok_or(NotRedirectable::NoRoom)?;
        }
        // An entry behind this one that is redirected with it: its first byte is a jump then, and stays one for as long
        // as this entry jumps. It must be a pun.
        let mut others: Vec<Range<u64>> = Vec::new();
        for entry in self.claims(plan) {
            others.extend(
                entry
                    .edits
                    .iter()
                    .map(|e| e.at..e.at + e.original.len() as u64),
            );
        }
        let mut counts_on = Vec::new();
        for &other in jumps
            .iter()
            .filter(|&&other| other > claimed.start && other < claimed.end)
        {
            let mut known = plan.entries.iter().enumerate();
            let known = known.find(|(_, entry)| entry.at == other);
            let Some((index, _)) = known.filter(|(_, entry)| entry.method == Method::Pun) else {
                return Err(NotRedirectable::Overlaps);
            };
            counts_on.push(Slot((self.state.entries.len() + index) as u32));
            if let Some(byte) = following.get_mut((other - site.at - 1) as usize) {
                *byte = 0xe9;
            }
            others.retain(|edit| edit.start != other);
        }
        if others
            .iter()
            .any(|edit| edit.start < claimed.end && edit.end > claimed.start)
        {
            return Err(NotRedirectable::Overlaps);
        }
        // And this entry must not be among the bytes that another pun counts on.
        let counted_on = self.claims(plan).any(|entry| {
            entry.method == Method::Pun
                && (entry.at + 1..entry.at + arch::CLAIM as u64).contains(&site.at)
        });
        if counted_on {
            return Err(NotRedirectable::Overlaps);
        }
        let target = arch::pun_target(site.at, following)?;
        let wanted = target..target + 8;
        self.plan_pun_pages(plan, &wanted)?;
        let edit = arch::pun_edit(&site).ok_or(NotRedirectable::NoRoom)?;
        if edit.original == edit.redirected {
            return Err(NotRedirectable::Taken);
        }
        let first = arch::continuation(&site, place.cell, 1)?;
        let both = (slot, place);
        let mut entry = self.entry(plan, function, both, Method::Pun, vec![edit], first)?;
        entry.trampoline = target;
        entry.counts_on = counts_on;
        let trampoline = arch::trampoline(plan.low, slot).ok_or(NotRedirectable::NoNearMemory)?;
        plan.writes.push((target, trampoline.to_vec()));
        Ok(entry)
    }

    /// Plans the pages of a pun's trampoline, or finds that they are ours already and these bytes of them unused.
    fn plan_pun_pages(&self, plan: &mut Plan, wanted: &Range<u64>) -> Result<(), NotRedirectable> {
        let taken = self.state.entries.iter().chain(&plan.entries).any(|entry| {
            entry.method == Method::Pun
                && entry.trampoline < wanted.end
                && wanted.start < entry.trampoline + 8
        });
        if taken {
            return Err(NotRedirectable::Taken);
        }
        let span = pages(wanted.clone());
        let mut missing = Vec::new();
        let mut page = span.start;
        while page < span.end {
            let ours = self
                .state
                .regions
                .iter()
                .chain(&plan.regions)
                .any(|region| {
                    region.purpose == Purpose::Pun && (region.start..region.end()).contains(&page)
                });
            if !ours {
                if !plan.space.is_free(&(page..page + PAGE)) {
                    return Err(NotRedirectable::Taken);
                }
                missing.push(page);
            }
            page += PAGE;
        }
        for page in missing {
            plan.add(planned(page, PAGE, Purpose::Pun));
        }
        Ok(())
    }
}
