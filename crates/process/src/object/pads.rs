//! Padding between functions, for entries that have none of their own.

use std::ops::Range;

use super::loaded::LoadedObject;
use crate::arch;

/// The most bytes between two functions that are taken for padding.
const LARGEST: u64 = 256;

impl LoadedObject {
    /// Stretches (avma) of NOPs between two functions, from the end of one that nothing gets behind to the start of the
    /// next, which lie within a range (avma). Nobody runs into them and nobody jumps there, so that nobody can be in
    /// the middle of one.
    pub fn padding(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut pads = Vec::new();
        let mut at = within.start;
        while at < within.end {
            if let Some(function) = self.code_around(at) {
                at = function.end.max(at.saturating_add(1));
                pads.extend(self.pad_behind(&function));
            } else {
                at = at.saturating_add(1);
            }
        }
        for pad in &mut pads {
            *pad = pad.start.max(within.start)..pad.end.min(within.end);
        }
        pads.retain(|pad| pad.start < pad.end);
        pads
    }

    fn pad_behind(&self, function: &Range<u64>) -> Option<Range<u64>> {
        let is_free = |&at: &u64| self.code_around(at).is_none();
        let limit = function.end.checked_add(LARGEST)?;
        let end = (function.end..=limit).find(|at| !is_free(at))?;
        let pad = function.end..end;
        let nops = || {
            self.code(pad.clone())
                .is_some_and(|code| arch::all_nops(&code))
        };
        let ends = || {
            let code = self.code(function.clone());
            code.is_some_and(|code| arch::ends(function.start, &code))
        };
        (!pad.is_empty() && nops() && ends()).then_some(pad)
    }
}
