//! By which methods the functions of an object could be redirected: planned as a load would, one function at a time, and
//! nothing is changed.

use super::Engine;
use super::plan::Function;
use crate::arch::NotRedirectable;
use crate::error::Error;
use crate::state::Method;
use std::ops::Range;

/// What each method would say to one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covered {
    /// Where it lies (avma).
    pub function: Range<u64>,
    /// Pun.
    pub pun: Result<(), NotRedirectable>,
    /// Swap.
    pub swap: Result<(), NotRedirectable>,
    /// Rendezvous, as far as it can be told without stopping anybody.
    pub rendezvous: Result<(), NotRedirectable>,
}

impl Engine {
    /// Plans the entry of every function of an object (`None`: the executable), alone and by each method. Functions are
    /// what symbol tables and call frame information name: in a stripped binary the parts that were split off functions
    /// are among them.
    ///
    /// # Errors
    /// [`Error::ObjectNotLoaded`], and where a plan can't even begin.
    pub fn coverage(&mut self, name: Option<&str>) -> Result<Vec<Covered>, Error> {
        let objects = self.objects()?;
        let pid = self.process.pid;
        let object = objects
            .by_name(name)
            .ok_or_else(|| Error::ObjectNotLoaded {
                pid,
                object: name.unwrap_or_default().to_owned(),
            })?;
        let mut empty = self.plan()?;
        self.plan_low_table(&mut empty, 1)?;
        let slot = self.state.entries.len() as u32;
        let mut all = Vec::new();
        for range in object.entries() {
            let size = range.end.saturating_sub(range.start);
            let read = Function::read("", name, object, range.start, size);
            let Some(function) = read else { continue };
            let plan = |method| {
                let mut plan = empty.clone();
                let place = self.plan_place(&mut plan, &function, || 1)?;
                let jumps = [function.at()];
                self.plan_by(&mut plan, &function, (slot, place), &jumps, method)
                    .map(drop)
            };
            all.push(Covered {
                function: range,
                pun: plan(Method::Pun),
                swap: plan(Method::Swap),
                rendezvous: plan(Method::Rendezvous),
            });
        }
        Ok(all)
    }
}
