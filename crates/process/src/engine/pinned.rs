//! Dead words that stay dead: what a task that is to switch itself need not mind on its own stack.
//!
//! A visit sees that a word is dead by an unwind; the stub, later, sees only words. What it can be told is that a frame is
//! still there, from the outermost one inwards:
//!
//! - The call that a function has in progress has its return address in one certain word, if the stack is equally deep at
//!   all of its calls ([`arch::depths`]). What this word holds tells which call it is.
//! - Where that call always calls the same function, that function is active: it has not returned, since its caller would
//!   go on, and it never leaves by a jump. So its own return address lies in that word, and so on.
//!
//! The words of an active frame between its return address and the depth of its calls are data: what it calls has its
//! return addresses below, and as long as no signal handler is on the stack, which the stub looks for, it is in a call.
//! The frame must be small, see [`Frame::may_host_a_stack`].
//!
//! How it begins: the process' main task has one stack, on which the start code of the C library comes to the call of
//! `main` once. A thread's begins with the function that its thread control block names. Its number, in the same block,
//! tells it from others on the same memory, which may have inherited its table.

use super::Engine;
use crate::arch::{self, CallSite, Callee, Depths, LARGEST_FUNCTION, Pin};
use crate::error::Error;
use crate::object::{LoadedObject, Mapping, Objects};
use crate::process::Task;
use crate::stack::{Hit, MOST_HITS};
use crate::sys::Registers;
use crate::unwind::{Frame, Stack};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// A proof that takes more than so many steps is not given to a task.
pub(super) const MOST_PINS: usize = 24;
/// So many stacks are looked into at once.
const MOST_STACKS: usize = 16;
/// The main task's frames from the outermost one up to `main`.
const START_FRAMES: usize = 3;
/// Where in its thread control block glibc keeps the number of a thread (nptl/descr.h: behind 704 bytes for the part that
/// the ABI knows, and a list node). It is believed only where it holds the number.
const NUMBER: u64 = 0x2d0;
/// The words that a thread control block has at most.
const THREAD_BLOCK: u64 = 4096;
/// Where a task's first function goes on when what it has called returns: so much is read of it.
const TAIL: u64 = 64;

/// What a function is to its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Where the process begins: it calls the start code of the C library.
    Process,
    /// Where a thread begins: in the C library.
    Thread,
    /// A function of the C library.
    Library,
    /// Any other.
    Own,
}

/// A call in progress, known by the address that it returns to.
#[derive(Debug, Clone)]
struct Place {
    role: Role,
    /// The function that calls.
    entry: u64,
    site: CallSite,
    depths: Rc<Depths>,
}

impl Place {
    /// The words between the return address of an active function and the depth of its calls, if its code and the unwind
    /// agree about where they are.
    fn body(&self, frame: &Frame, caller: &Frame) -> Option<Range<u64>> {
        let slot = frame.return_slot?;
        let fits = caller.low.checked_sub(8) == Some(slot)
            && slot.checked_sub(self.site.depth) == Some(frame.low);
        fits.then_some(slot.checked_sub(self.depths.least()?)?..slot)
    }
}

/// What is known of functions, the stacks whose functions are to be looked at, and what tasks were told.
#[derive(Debug, Default)]
pub(super) struct Pins {
    places: HashMap<u64, Option<Place>>,
    functions: HashMap<u64, Option<Rc<Depths>>>,
    wanted: RefCell<Vec<Vec<Frame>>>,
    /// The code that was mapped then.
    mapped: Vec<Mapping>,
    /// Where `__libc_start_main` is.
    start: Option<u64>,
    /// The dead words that tasks which switch themselves have been told of.
    told: HashMap<Task, Vec<u64>>,
}

/// Why there is no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unproven {
    /// Unwinds must be prepared first, or functions looked at, see [`Pins::learn`].
    Yet,
    /// It is not certain.
    Ever,
}

/// What was found on a task's stack.
pub(super) struct Seeming<'a> {
    pub task: Task,
    pub regs: &'a Registers,
    /// The stack that it is on.
    pub bounds: (u64, u64),
    pub hits: &'a [Hit],
}

impl Pins {
    /// What to tell a task of the dead words on its stack, as far as they are in its way: only those that lie further out
    /// than all that is live. What lies further in is left behind with that.
    ///
    /// `stack`: its stack, if that has been unwound.
    pub(super) fn for_task(
        &self,
        engine: &mut Engine,
        seeming: &Seeming<'_>,
        stack: Stack,
    ) -> Result<Vec<Pin>, Unproven> {
        let on_stack = seeming.hits.iter().filter(|hit| hit.stack.is_some());
        let mut left: Vec<Hit> = on_stack.copied().collect();
        if left.is_empty() || seeming.hits.len() >= MOST_HITS {
            return Ok(Vec::new());
        }
        if engine.unwinder.is_none() {
            return Err(Unproven::Yet);
        }
        let stack = match stack.frames.is_empty() {
            true => engine.unwind(seeming.regs),
            false => stack,
        };
        let mut live = left.clone();
        engine.dismiss(&stack, &mut live);
        let held = live.iter().filter_map(|hit| hit.stack).max();
        left.retain(|hit| hit.stack > held);
        match left.is_empty() {
            true => Ok(Vec::new()),
            false => self.prove(engine, seeming, &stack, left),
        }
    }

    /// A task has been told.
    pub(super) fn told(&mut self, task: Task, pins: &[Pin]) {
        let dead = pins.iter().filter(|pin| pin.dead);
        self.told.insert(task, dead.map(|pin| pin.at).collect());
    }

    /// Whether a task has been told of all words that are not `live`.
    pub(super) fn knows(&self, task: Task, all: &[Hit], live: &[Hit]) -> bool {
        let told = self.told.get(&task);
        let knows = |at: u64| told.is_some_and(|told| told.contains(&at));
        let mut dead = all.iter().filter(|hit| !live.contains(hit));
        dead.all(|hit| hit.stack.is_some_and(knows))
    }

    /// The steps of the proof that these words stay dead.
    fn prove(
        &self,
        engine: &Engine,
        seeming: &Seeming<'_>,
        stack: &Stack,
        mut left: Vec<Hit>,
    ) -> Result<Vec<Pin>, Unproven> {
        if !stack.complete || !engine.is_at_home(seeming.regs, seeming.bounds) {
            return Err(Unproven::Ever);
        }
        let mut pins = Vec::new();
        let mut frames = stack.frames.iter().rev();
        let mut caller = frames.next().ok_or(Unproven::Ever)?;
        let mut calls = self.place(caller, stack)?;
        let is_thread = calls.role == Role::Thread;
        for (index, frame) in frames.enumerate() {
            let place = self.place(frame, stack)?;
            let begins = pins.is_empty();
            let calls_it = match (calls.role, place.role) {
                (Role::Process, Role::Library) => begins && Some(place.entry) == self.start,
                (Role::Thread, Role::Library) => begins,
                (Role::Library, Role::Own) if is_thread => {
                    let told = thread_pins(engine, seeming, calls, place);
                    pins.extend(told.ok_or(Unproven::Ever)?);
                    index == 1
                }
                (Role::Library, Role::Own) => index < START_FRAMES && !calls.site.again,
                (Role::Library, Role::Library) | (Role::Own, Role::Own) => {
                    calls.site.to == Callee::Code(place.entry)
                }
                _ => false,
            };
            let certain = begins || calls.depths.constant().is_some();
            let body = place.body(frame, caller).ok_or(Unproven::Ever)?;
            if !calls_it || !certain {
                return Err(Unproven::Ever);
            }
            pins.push(Pin {
                at: body.end,
                word: caller.pc,
                dead: false,
            });
            if !frame.may_host_a_stack() {
                left.retain(|hit| {
                    let dead = hit
                        .stack
                        .filter(|at| body.contains(at) && at.is_multiple_of(8));
                    pins.extend(dead.map(|at| Pin {
                        at,
                        word: hit.address,
                        dead: true,
                    }));
                    dead.is_none()
                });
            }
            if pins.len() > MOST_PINS {
                break;
            }
            if left.is_empty() {
                return Ok(pins);
            }
            (caller, calls) = (frame, place);
        }
        Err(Unproven::Ever)
    }

    fn place(&self, frame: &Frame, stack: &Stack) -> Result<&Place, Unproven> {
        if frame.interrupted || frame.signal {
            return Err(Unproven::Ever);
        }
        let Some(place) = self.places.get(&frame.pc) else {
            let mut wanted = self.wanted.borrow_mut();
            if wanted.len() < MOST_STACKS {
                wanted.push(stack.frames.clone());
            }
            return Err(Unproven::Yet);
        };
        place.as_ref().ok_or(Unproven::Ever)
    }

    /// Whether there are stacks to be looked into.
    pub(super) fn must_learn(&self) -> bool {
        !self.wanted.borrow().is_empty()
    }

    /// Looks at the functions of the stacks that were seen. Takes milliseconds, so that it must not be done while a task
    /// stands still.
    pub(super) fn learn(&mut self, engine: &mut Engine) -> Result<(), Error> {
        engine.refresh_maps()?;
        // Other code may have come to the place of what was looked at.
        let mapped = engine.maps.iter().filter(|mapping| mapping.exec);
        let mapped: Vec<Mapping> = mapped.cloned().collect();
        if self.mapped != mapped {
            self.places.clear();
            self.functions.clear();
            self.mapped = mapped;
        }
        let objects = engine.mapped_objects()?;
        let library = objects.iter().find(|object| is_glibc(object));
        self.start = library.and_then(|library| {
            let start = library.exported("__libc_start_main")?;
            Some(library.avma(start.svma))
        });
        for frames in self.wanted.take() {
            for (index, frame) in frames.iter().rev().enumerate() {
                if frame.interrupted || frame.signal {
                    break;
                }
                if !self.places.contains_key(&frame.pc) {
                    let place = match index {
                        0 => outermost(engine, &objects, frame),
                        _ => self.look_at(engine, &objects, frame),
                    };
                    self.places.insert(frame.pc, place);
                }
                // What is not certain ends the proof.
                if self.places.get(&frame.pc).is_none_or(Option::is_none) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn look_at(&mut self, engine: &Engine, objects: &Objects, frame: &Frame) -> Option<Place> {
        let object = objects.containing(frame.site())?;
        let own = object.stretch_at(frame.site())?;
        let read = || depths(engine, object, &own).map(Rc::new);
        let depths = self.functions.entry(own.start).or_insert_with(read);
        let depths = depths.clone()?;
        Some(Place {
            role: match is_glibc(object) {
                true => Role::Library,
                false => Role::Own,
            },
            entry: own.start,
            site: *depths.site(frame.pc)?,
            depths,
        })
    }
}

/// A task's first function: nothing is called any more when what it has called has returned.
fn outermost(engine: &Engine, objects: &Objects, frame: &Frame) -> Option<Place> {
    let object = objects.containing(frame.site())?;
    let own = object.stretch_at(frame.site())?;
    let rest = frame.pc..own.end.min(frame.pc.checked_add(TAIL)?);
    let role = match (object.is_executable(), is_glibc(object)) {
        (true, _) => Role::Process,
        (_, true) => Role::Thread,
        _ => return None,
    };
    let code = object.code(rest.clone())?;
    (engine.runs(&rest, &code) && arch::calls_nothing(rest.start, &code)).then(|| Place {
        role,
        entry: own.start,
        site: CallSite {
            to: Callee::Unknown,
            depth: 0,
            again: false,
        },
        depths: Rc::default(),
    })
}

/// What is known of a function's calls, if it is what the file says and never leaves by a jump.
fn depths(engine: &Engine, object: &LoadedObject, own: &Range<u64>) -> Option<Depths> {
    if own.end.checked_sub(own.start)? > LARGEST_FUNCTION {
        return None;
    }
    let name = object
        .symbolize(own.start)
        .filter(|(_, offset)| *offset == 0);
    let name = name.map_or(String::new(), |(name, _)| name);
    let mut bodies = Vec::from([own.clone()]);
    bodies.extend(object.split_bodies(&name, own.clone()));
    if !object.tail_exits(&bodies).is_empty() {
        return None;
    }
    let read = |body: &Range<u64>| {
        let code = object.code(body.clone())?;
        engine.runs(body, &code).then_some((body.start, code))
    };
    let code: Option<Vec<(u64, Vec<u8>)>> = bodies.iter().map(read).collect();
    arch::depths(own.start, &code?)
}

/// What tells a thread, and that its function is the one that was called: what its thread control block says.
fn thread_pins(
    engine: &Engine,
    seeming: &Seeming<'_>,
    calls: &Place,
    place: &Place,
) -> Option<[Pin; 2]> {
    let Callee::Word(offset) = calls.site.to else {
        return None;
    };
    let base = seeming.regs.fs_base;
    let at = base.checked_add(offset).filter(|_| offset < THREAD_BLOCK)?;
    let read = |at: u64, word: u64| {
        let same = engine.memory().read_u64(at).ok() == Some(word);
        let dead = false;
        (same && at.is_multiple_of(8)).then_some(Pin { at, word, dead })
    };
    let number = base.checked_add(NUMBER)?;
    let holds = engine.memory().read_u64(number).ok()?;
    let told = seeming.task.own_number()?;
    if holds as u32 != told {
        return None;
    }
    Some([read(number, holds)?, read(at, place.entry)?])
}

fn is_glibc(object: &LoadedObject) -> bool {
    let library = !object.is_executable() && object.name().starts_with("libc.so.6");
    library && object.exported("gnu_get_libc_version").is_some()
}

impl Engine {
    /// Whether code in memory is what the file says, apart from where we redirect it.
    fn runs(&self, range: &Range<u64>, code: &[u8]) -> bool {
        let edited = |at: u64| {
            let mut edits = self.state.entries.iter().flat_map(|entry| &entry.edits);
            edits.any(|edit| {
                let offset = at.checked_sub(edit.at);
                offset.is_some_and(|offset| offset < edit.redirected.len() as u64)
            })
        };
        let now = self.memory().read_vec(range.start, code.len());
        now.is_ok_and(|now| {
            let bytes = (range.start..).zip(now.iter().zip(code));
            bytes
                .filter(|(_, (now, file))| now != file)
                .all(|(at, _)| edited(at))
        })
    }
}
