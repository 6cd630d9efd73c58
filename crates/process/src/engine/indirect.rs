//! IFUNCs that the process has not resolved: a task is made to call their resolvers, before anything is changed.
//!
//! Whoever refers to an IFUNC has the dynamic loader call its resolver, in any task, at any time; so do we. The C
//! library's look at what the processor can do and take no lock. Anybody else's may be any code: it is looked through
//! first, and called only where it can neither wait for something nor leave something behind.

use super::Engine;
use super::safe::{self, is_libc, is_libm, is_loader};
use crate::arch::{self, Target};
use crate::error::Error;
use crate::link::Indirect;
use crate::object::{ExitTo, LoadedObject, Objects};
use crate::remote::Unfinished;
use std::collections::BTreeSet;

/// A resolver of more instructions, what it calls included, is not looked through.
const MOST_INSTRUCTIONS: usize = 4096;

impl Indirect {
    pub(super) fn unresolvable(&self, why: String) -> Error {
        Error::Unresolvable {
            name: self.name.clone(),
            object: self.object.clone(),
            why,
        }
    }
}

fn is_code_of(object: &LoadedObject, at: u64) -> bool {
    object.code_ranges().iter().any(|code| code.contains(&at))
}

/// All instructions of the function that an address is in, and where it jumps to, if its computed jumps lead only there.
fn whole(object: &LoadedObject, at: u64) -> Option<Vec<u64>> {
    let by_symbol = object.function_range(at);
    let mut by_frames = object.functions().into_iter();
    let range = by_symbol.or_else(|| by_frames.find(|range| range.contains(&at)))?;
    let mut all = arch::instructions(range.start, &object.code(range.clone())?);
    for exit in object.tail_exits(std::slice::from_ref(&range)) {
        match exit.to {
            ExitTo::Code(to) => all.push(to),
            // Its instruction is among them.
            ExitTo::Linked(_) => {}
            ExitTo::Computed => return None,
        }
    }
    Some(all)
}

impl Engine {
    /// Whether these resolvers can be called, for all that can be said without calling them.
    ///
    /// # Errors
    /// [`Error::Unresolvable`].
    pub(super) fn may_resolve(&self, objects: &Objects, wanted: &[Indirect]) -> Result<(), Error> {
        for indirect in wanted {
            let refuse = |why: String| indirect.unresolvable(why);
            if !self.gadgets.can_ask() {
                let why = "the C library has no code that would keep what its resolver returns";
                return Err(refuse(why.to_owned()));
            }
            let owner = objects.containing(indirect.resolver);
            let Some(owner) = owner.filter(|owner| is_code_of(owner, indirect.resolver)) else {
                return Err(refuse(
                    "its resolver is no code of a loaded object".to_owned(),
                ));
            };
            if is_libc(owner) || is_libm(owner) || is_loader(owner) {
                continue;
            }
            self.only_decides(objects, indirect.resolver).map_err(|(at, why)| {
                let at = match objects.containing(at).and_then(|o| o.symbolize(at)) {
                    Some((function, _)) => function,
                    None => format!("the code at {at:#x}"),
                };
                refuse(format!(
                    "its resolver may do more than decide ({at} {why}), and could wait for what the task that calls \
                     it holds"
                ))
            })?;
        }
        Ok(())
    }

    /// Looks through all code that may run when this is called. Else: where, and why not.
    fn only_decides(&self, objects: &Objects, start: u64) -> Result<(), (u64, &'static str)> {
        let (mut seen, mut next) = (BTreeSet::new(), Vec::from([start]));
        while let Some(at) = next.pop() {
            if !seen.insert(at) {
                continue;
            }
            if seen.len() > MOST_INSTRUCTIONS {
                return Err((start, "is too much code to be looked through"));
            }
            if !objects.containing(at).is_some_and(|o| is_code_of(o, at)) {
                return Err((at, "is no code of a loaded object"));
            }
            let mut bytes = [0; arch::LONGEST_INSTRUCTION];
            let read = self.memory().read_some(at, &mut bytes).unwrap_or(0);
            let step = arch::step(at, bytes.get(..read).unwrap_or_default());
            let step = step.map_err(|why| (at, why))?;
            next.extend(step.behind);
            match step.target {
                Some(Target::Code(target)) => next.push(target),
                Some(Target::Word(word)) => {
                    let stays = self.stays(objects, word);
                    let target = self.memory().read_u64(word).ok().filter(|_| stays);
                    next.push(target.ok_or((at, arch::COMPUTED))?);
                }
                Some(Target::Computed) => {
                    let function = objects.containing(at).and_then(|o| whole(o, at));
                    next.extend(function.ok_or((at, arch::COMPUTED))?);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Whether a word that is jumped through is the dynamic loader's, or nobody's to change. (A lazy one leads to the
    /// loader, which does more than decide.)
    fn stays(&self, objects: &Objects, word: u64) -> bool {
        let filled = |object: &LoadedObject| {
            let svma = object.svma(word);
            object.slots().iter().any(|slot| slot.svma == svma)
        };
        let mut maps = self.maps.iter();
        let mapping = maps.find(|mapping| (mapping.start..mapping.end).contains(&word));
        mapping.is_some_and(|m| !m.write) || objects.containing(word).is_some_and(filled)
    }

    /// Has a task call these resolvers, and keeps what they return.
    ///
    /// # Errors
    /// [`Error::NoSafeTask`]; [`Error::Resolver`]; [`Error::Exited`]. Nothing has changed then.
    pub(super) fn resolve(&mut self, objects: &Objects, wanted: &[Indirect]) -> Result<(), Error> {
        let Some(first) = wanted.first() else {
            return Ok(());
        };
        let purpose = format!(
            "the patch refers to `{}` in {}, an indirect function (IFUNC) that the process has not resolved yet, and \
             its resolver can't be called",
            first.name, first.object
        );
        let errno = safe::errno_offset(objects, &self.process.memory);
        let stopped = self.safe_task(objects, &purpose)?;
        let (pid, tid) = (self.process.pid, stopped.tid);
        let mut returned = Vec::new();
        let mut caller = safe::caller(&self.process, &self.gadgets, stopped, errno, &purpose)?;
        for indirect in wanted {
            let failed = |what: String| Error::Resolver {
                pid,
                tid,
                name: indirect.name.clone(),
                object: indirect.object.clone(),
                what,
            };
            let outcome = caller.ask(indirect.resolver);
            match outcome.unwrap_or(Err(Unfinished::Gone)) {
                Ok(function) => returned.push((indirect, function, failed)),
                Err(Unfinished::Late) => return Err(failed("did not return in time".to_owned())),
                Err(Unfinished::Faulted(signal)) => {
                    return Err(failed(format!("caused a fault (signal {signal})")));
                }
                Err(Unfinished::Gone) => return Err(Error::Exited(pid)),
            }
        }
        drop(caller);
        self.refresh_maps()?;
        for (indirect, function, failed) in returned {
            if !self.is_function(objects, function) {
                return Err(failed(format!(
                    "returned {function:#x}, where no loaded object has code,"
                )));
            }
            self.resolved.insert(indirect.resolver, function);
        }
        Ok(())
    }

    /// Whether a resolver may have meant this: code of an object, or of the vDSO, as `time` is.
    fn is_function(&self, objects: &Objects, at: u64) -> bool {
        let mut maps = self.maps.iter();
        let Some(mapping) = maps.find(|mapping| (mapping.start..mapping.end).contains(&at)) else {
            return false;
        };
        let of_object = || objects.containing(at).is_some_and(|o| is_code_of(o, at));
        let path = mapping.path.as_deref();
        mapping.exec && (of_object() || path.is_some_and(|path| path.as_os_str() == "[vdso]"))
    }
}
