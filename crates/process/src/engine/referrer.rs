//! What refers to a patch's memory, in words for the user.

use super::Engine;
use super::reach::Held;
use crate::object::Objects;
use crate::state::Purpose;
use crate::symbolize::readable;

/// A word that refers to a patch's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Where in memory; `None`: in a register, or in the kernel.
    pub at: Option<u64>,
    /// In words: a mapping, a variable, a register.
    pub place: String,
    /// On whose stack or in whose registers: number and name.
    pub task: Option<(i32, String)>,
    /// The address that it stands for.
    pub value: u64,
    /// What lies there.
    pub to: String,
    /// It is mangled, as the C library keeps what atexit and setjmp are given.
    pub mangled: bool,
}

impl Engine {
    /// Says what a word lies in and what it leads to.
    pub(super) fn reference(&self, held: &Held, objects: Option<&Objects>) -> Reference {
        let mapping = |at: u64| {
            let mapping = self.maps.iter().find(|mapping| mapping.contains(at))?;
            let path = mapping.path.as_deref()?;
            let name = path.file_name().unwrap_or(path.as_os_str());
            Some(readable(&name.to_string_lossy()))
        };
        let variable = |at: u64| {
            let object = objects?.containing(at)?;
            let (name, offset) = object.variable_at(at)?;
            let (name, object) = (readable(&name), readable(object.name()));
            Some(match offset {
                0 => format!("{name} ({object})"),
                offset => format!("{name}+{offset:#x} ({object})"),
            })
        };
        let in_patch = |at: u64| {
            let mut images = self.state.images.iter();
            let image = images.find(|image| image.block().contains(&at))?;
            let patch = self.state.model.patch(image.id)?;
            Some(format!("variables of patch {}", patch.name))
        };
        let place = match (held.at, held.task) {
            (None, _) | (_, Some(_)) => held.place.to_owned(),
            (Some(at), None) => in_patch(at)
                .or_else(|| variable(at))
                .or_else(|| mapping(at))
                .unwrap_or_else(|| held.place.to_owned()),
        };
        Reference {
            at: held.at,
            place,
            task: held.task.map(|task| (task.tid, task.name())),
            value: held.value,
            to: self.part_of_patch(held.value),
            mangled: held.mangled,
        }
    }

    /// What of a patch lies at an address.
    fn part_of_patch(&self, at: u64) -> String {
        let mut images = self.state.images.iter();
        let image = images.find(|image| (image.start..=image.block().end).contains(&at));
        let within = |after: u64, last: u64| (after.saturating_add(1)..=last).contains(&at);
        let function = image.and_then(|image| {
            let mut functions = image.functions.iter();
            functions.find(|f| f.bodies.iter().any(|&(after, last)| within(after, last)))
        });
        if let Some(function) = function {
            let name = self.state.display(function.slot);
            return match at.wrapping_sub(function.entry) {
                0 => name,
                offset => format!("{name}+{offset:#x}"),
            };
        }
        match self.state.region_at(at) {
            Some(region) => {
                let what = match region.purpose {
                    Purpose::Text => "code",
                    Purpose::Constants => "constants",
                    _ => "variables",
                };
                format!("{what}+{:#x}", at.wrapping_sub(region.start))
            }
            None => "the end".to_owned(),
        }
    }
}
