//! The frames of a strict unwind as people know them: functions, objects, source lines, and what was inlined.
//!
//! Nothing of this is done while a task stands still: the unwind has the addresses, the names can wait. Files are
//! untrusted; what they say is bounded in size, in depth and in time, and what does not read is left out.

mod dwarf;
mod names;

use crate::object::{LoadedObject, Mapping, Objects};
use crate::unwind::{Frame, Stack};
use dwarf::{Budget, Debug};
use names::printable;
pub(crate) use names::readable;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Different addresses, beyond which the rest is shown without names.
const MOST_NAMED: usize = 1 << 14;
/// Bytes of DWARF of all objects.
const MOST_BYTES: u64 = 1 << 29;
/// For all names together.
const MOST_TIME: Duration = Duration::from_secs(10);
/// The frame that the kernel pushes for a signal handler.
const SIGNAL_FRAME: &str = "<signal handler called>";

/// One activation of a function, or of one that was inlined into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFrame {
    /// The next instruction: a return address in all frames but those that were interrupted. An inlined function has that
    /// of the function around it.
    pub address: u64,
    /// The function, demangled; `None` when no symbol is known.
    pub function: Option<String>,
    /// Of the address in the function, or in the object (svma) when there is no symbol; `None` in inlined functions
    /// and in the kernel's frame for a signal handler.
    pub offset: Option<u64>,
    /// The object, or what the kernel calls the mapping; `None` in memory without a file.
    pub object: Option<String>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u64>,
    /// It has no frame of its own.
    pub inlined: bool,
}

/// A stack with names, innermost frame first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedStack {
    /// The frames.
    pub frames: Vec<NamedFrame>,
    /// The last one is the outermost.
    pub complete: bool,
}

/// Code that no object has: a patch's, and livegraft's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where (avma).
    pub code: Range<u64>,
    /// What it is.
    pub name: String,
}

/// What is known of an address, apart from the address itself.
#[derive(Debug)]
struct Known {
    /// Innermost first; the last is the function itself, the others are inlined into it.
    functions: Vec<dwarf::Function>,
    /// Where offsets count from.
    start: Option<u64>,
    object: Option<String>,
}

/// Gives names to the frames of one process.
#[derive(Debug)]
pub struct Symbolizer {
    objects: Objects,
    maps: Vec<Mapping>,
    places: Vec<Place>,
    /// By the object's bias; `None`: it has no DWARF.
    debug: HashMap<u64, Option<Debug>>,
    known: HashMap<u64, Rc<Known>>,
    room: u64,
    budget: Budget,
}

impl Symbolizer {
    /// With the objects and the mappings of a process, and what else lies in it.
    pub fn new(objects: Objects, maps: Vec<Mapping>, places: Vec<Place>) -> Symbolizer {
        Symbolizer {
            objects,
            maps,
            places,
            debug: HashMap::new(),
            known: HashMap::new(),
            room: MOST_BYTES,
            budget: Budget::new(MOST_TIME),
        }
    }

    /// Names all frames of a stack.
    pub fn name(&mut self, stack: &Stack) -> NamedStack {
        let mut frames = Vec::with_capacity(stack.frames.len());
        for frame in &stack.frames {
            self.name_frame(frame, &mut frames);
        }
        NamedStack {
            frames,
            complete: stack.complete,
        }
    }

    fn name_frame(&mut self, frame: &Frame, named: &mut Vec<NamedFrame>) {
        let known = self.known(frame.site());
        if frame.signal {
            // What lies right before the code that a handler returns to has nothing to do with it.
            named.push(NamedFrame {
                address: frame.pc,
                function: Some(SIGNAL_FRAME.to_owned()),
                offset: None,
                object: known.object.clone(),
                file: None,
                line: None,
                inlined: false,
            });
            return;
        }
        let count = known.functions.len();
        for (index, function) in known.functions.iter().enumerate() {
            let inlined = index + 1 < count;
            let offset = known.start.map(|start| frame.pc.wrapping_sub(start));
            named.push(NamedFrame {
                address: frame.pc,
                function: function.name.clone(),
                offset: offset.filter(|_| !inlined),
                object: known.object.clone(),
                file: function.place.file.clone(),
                line: function.place.line,
                inlined,
            });
        }
    }

    /// What lies at an address within an instruction.
    fn known(&mut self, site: u64) -> Rc<Known> {
        if let Some(known) = self.known.get(&site) {
            return known.clone();
        }
        let known = if self.known.len() < MOST_NAMED {
            self.look_up(site)
        } else {
            self.without_name(site)
        };
        let known = Rc::new(known);
        if self.known.len() < MOST_NAMED {
            self.known.insert(site, known.clone());
        }
        known
    }

    fn look_up(&mut self, site: u64) -> Known {
        if let Some(place) = self.places.iter().find(|place| place.code.contains(&site)) {
            return Known {
                functions: Vec::from([function(Some(printable(&place.name)))]),
                start: Some(place.code.start),
                object: None,
            };
        }
        let Some(object) = self.objects.containing(site) else {
            return self.without_name(site);
        };
        let debug = match self.debug.entry(object.bias()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(read_debug(object, &mut self.room, &mut self.budget)),
        };
        let in_source = debug.as_mut().map(|debug| {
            let svma = object.svma(site);
            debug.functions_at(svma, &mut self.budget)
        });
        let mut functions = in_source.unwrap_or_default();
        for function in &mut functions {
            let name = function.name.as_deref();
            function.name = name.map(readable);
            let file = function.place.file.as_deref();
            function.place.file = file.map(printable);
        }
        if functions.is_empty() {
            functions.push(function(None));
        }
        // A symbol has the namespace of a function that DWARF gives no mangled name, and tells what was split off.
        let mut start = None;
        if let (Some((name, offset)), Some(outer)) = (object.symbolize(site), functions.last_mut())
        {
            outer.name = Some(readable(&name));
            start = Some(site.wrapping_sub(offset));
        } else if functions.last().is_none_or(|outer| outer.name.is_none()) {
            start = Some(object.bias());
        }
        Known {
            functions,
            start,
            object: Some(printable(object.name())),
        }
    }

    /// The object, or the mapping, and where in it.
    fn without_name(&self, site: u64) -> Known {
        let object = self.objects.containing(site);
        let mapping = self.maps.iter().find(|mapping| mapping.contains(site));
        let path = mapping.and_then(|mapping| mapping.path.as_ref());
        let (object, start) = match (object, path) {
            (Some(object), _) => (Some(object.name().to_owned()), Some(object.bias())),
            (None, Some(path)) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                let name = name.to_string_lossy().into_owned();
                (Some(name), mapping.map(|mapping| mapping.start))
            }
            (None, None) => (None, None),
        };
        Known {
            functions: Vec::from([function(None)]),
            start,
            object: object.map(|name| printable(&name)),
        }
    }
}

fn function(name: Option<String>) -> dwarf::Function {
    dwarf::Function {
        name,
        place: dwarf::Place::default(),
    }
}

/// What the debug sections of a file say of addresses (svma) in it: how many functions there are at each. For whoever
/// has a file and no process.
#[doc(hidden)]
pub fn functions_at(section: impl FnMut(&'static str) -> Vec<u8>, svmas: &[u64]) -> Vec<usize> {
    let mut budget = Budget::new(MOST_TIME);
    let Some(mut debug) = Debug::open(section, &mut budget) else {
        return Vec::new();
    };
    let count = |&svma| debug.functions_at(svma, &mut budget).len();
    svmas.iter().map(count).collect()
}

fn read_debug(object: &LoadedObject, room: &mut u64, budget: &mut Budget) -> Option<Debug> {
    Debug::open(object.debug_sections(room)?, budget)
}
