//! The order in which the dynamic loader searches objects.

use crate::object::raw::u64_at;
use crate::object::{LoadedObject, Objects, ReadMemory};

/// More entries of the loader's list are taken for a loop.
const MAX_LINK_MAP: usize = 4096;

/// The global scope: the program, what LD_PRELOAD put in, then what the program needs, breadth-first.
pub(super) fn global<'a>(objects: &'a Objects, memory: &dyn ReadMemory) -> Vec<&'a LoadedObject> {
    let needed = closure(objects, objects.executable());
    let loaded = link_map(objects, memory);
    let is_needed = |object: &LoadedObject| needed.iter().any(|n| std::ptr::eq(*n, object));
    // Preloaded objects come right after the program in the loader's list, before the first that it needs.
    let preloaded = loaded
        .iter()
        .skip(1)
        .take_while(|&&object| !is_needed(object));
    let mut scope: Vec<&LoadedObject> = needed.iter().take(1).copied().collect();
    if loaded.iter().skip(1).any(|&object| is_needed(object)) {
        scope.extend(preloaded);
    }
    scope.extend(needed.iter().skip(1));
    scope
}

/// An object and what it needs, breadth-first; what is needed is found by its soname among the loaded objects.
pub(super) fn closure<'a>(objects: &'a Objects, start: &'a LoadedObject) -> Vec<&'a LoadedObject> {
    let mut found = vec![start];
    let mut at = 0;
    while let Some(object) = found.get(at).copied() {
        for needed in object.needed() {
            let base = needed.rsplit('/').next().unwrap_or(needed);
            if let Some(next) = objects.by_name(Some(base))
                && !found.iter().any(|known| std::ptr::eq(*known, next))
            {
                found.push(next);
            }
        }
        at = at.saturating_add(1);
    }
    found
}

/// The loader's own list (`r_debug`, `struct link_map` of <link.h>), in order; empty where it cannot be read.
fn link_map<'a>(objects: &'a Objects, memory: &dyn ReadMemory) -> Vec<&'a LoadedObject> {
    let mut found: Vec<&LoadedObject> = Vec::new();
    let executable = objects.executable();
    let word = |avma: u64| {
        let mut word = [0; 8];
        memory
            .read_memory(avma, &mut word)
            .ok()
            .map(|()| u64::from_le_bytes(word))
            .filter(|&word| word != 0)
    };
    let r_map = executable
        .dynamic()
        .debug_word
        .and_then(|svma| word(executable.avma(svma)));
    let mut next = r_map.and_then(|r_debug| word(r_debug.checked_add(8)?));
    for _ in 0..MAX_LINK_MAP {
        let Some(entry) = next else { break };
        let mut fields = [0; 40];
        if memory.read_memory(entry, &mut fields).is_err() {
            break;
        }
        let dynamic = u64_at(&fields, 16).unwrap_or_default();
        // The vdso is in the list, but is no file.
        if let Some(object) = objects.containing(dynamic) {
            found.push(object);
        }
        next = u64_at(&fields, 24).filter(|&next| next != 0);
    }
    found
}
