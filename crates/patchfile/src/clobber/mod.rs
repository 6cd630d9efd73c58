//! What callers may know about the function that is replaced.
//!
//! A compiler that sees a callee's body may leave values in registers that it does not write (gcc `-fipa-ra`) and call
//! it with a stack that is not aligned (`-fipa-stack-alignment`). A replacement that uses those registers, or that needs
//! the alignment, then breaks the caller. Whether a caller does rely on it shows in the caller's code: it reads such a
//! register after the call before writing it. So ordinary calls are never refused.
//!
//! Limits, all towards accepting: a register that is only handed on to a function of another object counts as read when
//! that function is in `externals`; `push` counts as making room; a path ends at an indirect jump (a `switch` through a table); a caller without
//! symbol and frame information is followed only to its return.

mod callers;
mod code;
mod externals;
mod stack;
mod walk;

use iced_x86::Register;

use crate::{Fingerprint, Func, Patch, TargetElf};
use callers::Callers;
use code::{CALL_CLOBBERED, NewCode};
use walk::Use;

/// Why a replacement would break callers of the original.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A caller keeps a value in a register that only the original leaves alone.
    #[error(
        "{caller} calls `{func}` at {site:#x} and relies on it to leave {register} alone, which the replacement does \
         not; replace the caller too, or give the replacement __attribute__((no_caller_saved_registers, \
         target(\"general-regs-only\"))) and compile it with gcc"
    )]
    Register {
        /// The function that is replaced.
        func: String,
        /// The function that calls it.
        caller: String,
        /// The address of the call in the file.
        site: u64,
        /// The register.
        register: String,
    },
    /// A caller does not align the stack.
    #[error(
        "{caller} calls `{func}` at {site:#x} with a stack that is not aligned to 16 bytes, which the replacement \
         needs; give the replacement __attribute__((force_align_arg_pointer))"
    )]
    Stack {
        /// The function that is replaced.
        func: String,
        /// The function that calls it.
        caller: String,
        /// The address of the call in the file.
        site: u64,
    },
}

/// A target object, prepared for any number of checks.
pub struct Checker<'t, 'a> {
    callers: Callers<'t, 'a>,
}

impl<'t, 'a> Checker<'t, 'a> {
    /// Finds functions and calls in the object.
    pub fn new(target: &'t TargetElf<'a>) -> Self {
        Checker {
            callers: Callers::new(target),
        }
    }

    /// Leaves out callers that are replaced together with what they call: their new versions know the new callee. `old`:
    /// the originals.
    #[must_use]
    pub fn replacing(mut self, old: &[Fingerprint]) -> Self {
        let range = |f: &Fingerprint| (f.svma, f.svma.saturating_add(f.size));
        self.callers.leave_out(old.iter().map(range).collect());
        self
    }

    /// Checks one function of a patch against its callers in the object; `old`: its original there.
    ///
    /// # Errors
    /// The first caller that would break.
    pub fn check(&self, patch: &Patch, func: &Func, old: &Fingerprint) -> Result<(), Refusal> {
        let new = NewCode::new(patch).summary(func.new_func);
        let caller = |site: u64| self.callers.name_at(site);
        let end = old.svma.saturating_add(old.size);
        let written = self.callers.clobbered_by(old.svma, end);
        // After a call of a function that never returns, no caller has anything left to rely on.
        let returns = self.callers.returns(old.svma, end);
        let mask = if returns {
            new.clobbers & CALL_CLOBBERED & !written
        } else {
            0
        };
        if let Some(Use { site, register }) = walk::relies(&self.callers, old.svma, mask) {
            return Err(Refusal::Register {
                func: func.old_name.clone(),
                caller: caller(site),
                site,
                register: spell(register),
            });
        }
        let misaligned = self
            .callers
            .misaligned(old.svma)
            .filter(|_| new.needs_alignment);
        if let Some(site) = misaligned {
            return Err(Refusal::Stack {
                func: func.old_name.clone(),
                caller: caller(site),
                site,
            });
        }
        Ok(())
    }
}

fn spell(register: Register) -> String {
    let text = format!("{register:?}").to_lowercase();
    // A caller's value may lie in any width of it; the shortest name is the one that people know.
    text.strip_prefix("zmm")
        .map_or(text.clone(), |n| format!("xmm{n}"))
}

/// Checks one function; [`Checker`] is for several.
///
/// # Errors
/// The first caller that would break.
pub fn check(
    target: &TargetElf<'_>,
    patch: &Patch,
    func: &Func,
    old: &Fingerprint,
) -> Result<(), Refusal> {
    Checker::new(target).check(patch, func, old)
}
