//! Where the versions of a patch's functions leave by a jump, with nothing of them left on the stack: `check` lists it.

use super::Engine;
use super::load::code_of;
use super::plan::Function;
use crate::arch;
use crate::link::Linked;
use crate::object::{ExitTo, Objects, WaysOut};
use crate::state::{Image, ImageFunction};
use crate::symbolize::readable;
use crate::unwind::Module;
use livegraft_model::{PatchId, Slot, Version};
use livegraft_patchfile::Func;
use std::ops::Range;

/// More code of one function, which a record may claim, is not read.
const LARGEST_BODY: u64 = 1 << 24;
/// `jmp *word(%rip)`, as a patch has it for what is out of reach.
const LARGEST_VENEER: u64 = 8;

/// Where a tail jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leads {
    /// To a function of the patch, by its entry: nobody switches himself there.
    Patched,
    /// To code of a patch that replaces nothing.
    PatchCode,
    /// To a function that is not in the patch: a task that has arrived there counts as outside.
    Outside,
    /// To an address that is computed, or kept in a structure.
    Unknown,
}

/// A tail jump of one version of a function.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckedExit {
    /// The function.
    pub function: String,
    /// `None`: the executable.
    pub object: Option<String>,
    /// It is the patch's version that jumps, not the one that it replaces.
    pub new: bool,
    /// Where to.
    pub leads: Leads,
    /// The name of what is there.
    pub to: Option<String>,
    /// The object that has it; `None`: a patch, or not known.
    pub to_object: Option<String>,
    /// Its address, where there is but one.
    pub address: Option<u64>,
    /// It leads through the PLT: in its stubs and in the resolver a task counts as inside.
    pub covered: bool,
}

/// A tail jump as the code has it.
#[derive(Debug, Default)]
struct Jump {
    ends: Vec<u64>,
    name: Option<String>,
    covered: bool,
}

impl Jump {
    fn by(ways: WaysOut, direct: Option<u64>, name: Option<String>) -> Jump {
        let covered = !ways.stubs.is_empty() || !ways.resolvers.is_empty();
        let ends = match ways.targets.is_empty() {
            true => direct.into_iter().collect(),
            false => ways.targets,
        };
        Jump {
            ends,
            name,
            covered,
        }
    }
}

/// What the ends of jumps are looked up in.
struct Places<'a> {
    engine: &'a Engine,
    objects: &'a Objects,
    linked: &'a Linked,
    /// Entries of the patch's functions, `endbr64` included, with their names.
    entries: Vec<(Range<u64>, String)>,
}

impl Engine {
    /// The tail jumps of all versions that a load would replace or bring.
    pub(super) fn exits(
        &self,
        functions: &[(Function<'_>, &Func)],
        objects: &Objects,
        linked: &Linked,
    ) -> Vec<CheckedExit> {
        let entry = |function: &Function<'_>| {
            let range = function.start..function.at().saturating_add(1);
            (range, function.name.clone())
        };
        let places = Places {
            engine: self,
            objects,
            linked,
            entries: functions.iter().map(|(f, _)| entry(f)).collect(),
        };
        let mut exits = Vec::new();
        for (function, func) in functions {
            let old = match self.replaced_image(function.start) {
                Some((image, replaced)) => {
                    let code = |range: &Range<u64>| self.code_in(image, range);
                    places.jumps_of_patch(&self.exact_bodies(image, replaced), &code)
                }
                None => places.jumps_of_original(function),
            };
            let code = |range: &Range<u64>| code_of(linked, range).map(<[u8]>::to_vec);
            let new = places.jumps_of_patch(&linked.body_of(func.new_func), &code);
            let jumps = old.into_iter().map(|jump| (jump, false));
            let jumps = jumps.chain(new.into_iter().map(|jump| (jump, true)));
            exits.extend(jumps.map(|(jump, new)| places.exit(function, new, jump)));
        }
        exits.sort();
        exits.dedup();
        exits
    }

    /// The replacement of the function at an address that tasks run now, if they run one.
    fn replaced_image(&self, start: u64) -> Option<(&Image, &ImageFunction)> {
        let slot = self.slot_at(start)?;
        let patch = self.runs_now(slot)?;
        let image = self.state.image(patch)?;
        let mut functions = image.functions.iter();
        Some((image, functions.find(|function| function.slot == slot)?))
    }

    /// The patch whose version of a function tasks run when no transition is open.
    pub(super) fn runs_now(&self, slot: Slot) -> Option<PatchId> {
        let universe = self.state.model.universe(self.state.model.settled())?;
        match universe.version(slot) {
            Version::Patched(patch) => Some(patch),
            Version::Original => None,
        }
    }

    fn exact_bodies(&self, image: &Image, function: &ImageFunction) -> Vec<Range<u64>> {
        let modules = self.modules_of(image);
        let parts: Vec<Range<u64>> = modules.iter().flat_map(Module::parts).collect();
        let exact = |&(after, last): &(u64, u64)| {
            let start = after.saturating_add(1);
            let known = parts.iter().find(|part| part.start == start).cloned();
            known.unwrap_or(start..last.saturating_add(1))
        };
        function.bodies.iter().map(exact).collect()
    }

    fn code_in(&self, image: &Image, range: &Range<u64>) -> Option<Vec<u8>> {
        let inside =
            image.start <= range.start && range.end <= image.start.checked_add(image.len)?;
        let len = range.end.checked_sub(range.start)?;
        let len = Some(len).filter(|&len| inside && len <= LARGEST_BODY)?;
        self.memory().read_vec(range.start, len as usize).ok()
    }
}

impl Places<'_> {
    fn jumps_of_original(&self, function: &Function<'_>) -> Vec<Jump> {
        let memory = &self.engine.process.memory;
        let mut function = function.clone();
        function.trace(self.objects, memory);
        let exits = function.outline.exits.iter().map(|exit| {
            let exits = std::slice::from_ref(exit);
            let ways = function.object.ways_out(exits, self.objects, memory);
            let direct = match exit.to {
                ExitTo::Code(at) => Some(at),
                ExitTo::Linked(_) | ExitTo::Computed => None,
            };
            Jump::by(ways, direct, exit.name.clone())
        });
        exits.collect()
    }

    /// Those of a version that a patch brings. Its code is ours: what it jumps through is a word or a veneer of its own.
    fn jumps_of_patch(
        &self,
        bodies: &[Range<u64>],
        code: &dyn Fn(&Range<u64>) -> Option<Vec<u8>>,
    ) -> Vec<Jump> {
        let word = |at: u64| {
            let bytes = code(&(at..at.checked_add(8)?))?;
            bytes.try_into().ok().map(u64::from_le_bytes)
        };
        let through = |end: u64, veneer: bool| {
            let object = self.objects.containing(end);
            let ways = object
                .map(|object| object.way_through(end, self.objects, &self.engine.process.memory));
            let mut jump = Jump::by(ways.unwrap_or_default(), Some(end), None);
            jump.covered |= veneer;
            jump
        };
        let mut jumps = Vec::new();
        for body in bodies {
            let Some(bytes) = code(body) else { continue };
            for to in arch::tail_targets(body.start, &bytes) {
                let split = bodies
                    .iter()
                    .any(|other| other != body && other.contains(&to));
                if split {
                    continue;
                }
                let veneer = code(&(to..to.saturating_add(LARGEST_VENEER)));
                let slot = veneer.and_then(|bytes| arch::plt_stub(to, &bytes));
                jumps.push(match slot.and_then(|(_, slot)| word(slot)) {
                    Some(end) => through(end, true),
                    None => through(to, false),
                });
            }
            let flow = arch::flow(body.start, &bytes);
            jumps.extend(flow.words.iter().map(|&at| match word(at) {
                Some(end) => through(end, false),
                None => Jump::default(),
            }));
            let is_table = |&&(at, _): &&(u64, u64)| {
                let first = code(&(at..at.saturating_add(4)));
                let first = first.and_then(|bytes| bytes.try_into().ok());
                let relative = first.map(i32::from_le_bytes);
                let relative = relative.map(|to| at.wrapping_add_signed(i64::from(to)));
                [relative, word(at)]
                    .into_iter()
                    .flatten()
                    .any(|to| bodies.iter().any(|body| body.contains(&to)))
            };
            if flow.computed > flow.tables.iter().filter(is_table).count() {
                jumps.push(Jump::default());
            }
        }
        jumps
    }

    fn exit(&self, function: &Function<'_>, new: bool, jump: Jump) -> CheckedExit {
        let entry = |at: &u64| self.entries.iter().find(|(range, _)| range.contains(at));
        let patched = jump.ends.iter().find_map(|at| Some((*at, entry(at)?)));
        let end = patched.map(|(at, _)| at).or(jump.ends.first().copied());
        let object = end.and_then(|at| self.objects.containing(at));
        let in_patch = end.and_then(|at| self.patch_code(at));
        let (leads, name) = match (patched, in_patch, &jump.name) {
            (Some((_, (_, name))), ..) => (Leads::Patched, Some(name.clone())),
            (None, Some(name), _) => (Leads::PatchCode, Some(name)),
            (None, None, None) if end.is_none() => (Leads::Unknown, None),
            (None, None, name) => {
                let symbol = || {
                    let (name, offset) = object?.symbolize(end?)?;
                    Some(match offset {
                        0 => name,
                        offset => format!("{name}+{offset:#x}"),
                    })
                };
                (Leads::Outside, name.clone().or_else(symbol))
            }
        };
        CheckedExit {
            function: function.name.clone(),
            object: function.object_name.clone(),
            new,
            leads,
            to: name.map(|name| readable(&name)),
            to_object: object.map(|object| readable(object.name())),
            address: end.filter(|_| patched.is_some() || jump.ends.len() == 1),
            covered: jump.covered,
        }
    }

    /// What lies at an address in the memory of this patch or of another one.
    fn patch_code(&self, at: u64) -> Option<String> {
        if let Some((name, offset)) = self.linked.symbolize(at) {
            return Some(match offset {
                0 => name.to_owned(),
                offset => format!("{name}+{offset:#x}"),
            });
        }
        let images = self.engine.state.images.iter();
        let mut images = images.filter(|image| image.block().contains(&at));
        let patch = self.engine.state.model.patch(images.next()?.id)?;
        Some(format!("code of patch {}", patch.name))
    }
}
