//! A function that is to be redirected: its code as the file has it, its parts, and the ways by which it leaves.

use crate::arch::{self, Site};
use crate::memory::Memory;
use crate::object::{ExitTo, LoadedObject, Objects, TailExit, WaysOut};
use crate::state::Leaving;
use std::ops::Range;

/// Bytes read before a function, for padding.
const BEFORE: u64 = 32;
/// Bytes read after a function, for padding and for the five claimed ones of a short function.
const AFTER: u64 = 32;

/// A function to redirect, as its file has it.
#[derive(Debug, Clone)]
pub(super) struct Function<'a> {
    pub name: String,
    pub object_name: Option<String>,
    pub object: &'a LoadedObject,
    pub start: u64,
    pub size: u64,
    /// From `BEFORE` bytes before the start (less at the start of the text) to `AFTER` bytes after the end.
    code: Vec<u8>,
    code_at: u64,
    /// What belongs to it besides; nothing before that is looked for.
    pub outline: Outline,
}

/// What belongs to a function besides its own range.
#[derive(Debug, Clone, Default)]
pub(super) struct Outline {
    /// Its own range, and the parts that were split off it.
    bodies: Vec<Range<u64>>,
    /// How it leaves without a return.
    pub exits: Vec<TailExit>,
    /// What it passes through then.
    pub ways: WaysOut,
}

/// What is passed through, as it is recorded.
pub(super) fn leaving(ways: &WaysOut) -> Leaving {
    let ranges = |list: &[(u64, u64)]| {
        list.iter()
            .map(|&(first, last)| (first.saturating_sub(1), last))
            .collect()
    };
    Leaving {
        stubs: ranges(&ways.stubs),
        resolvers: ranges(&ways.resolvers),
    }
}

impl<'a> Function<'a> {
    /// Reads the function's code from the object's file; `None` when it is not code there.
    pub fn read(
        name: &str,
        object_name: Option<&str>,
        object: &'a LoadedObject,
        start: u64,
        size: u64,
    ) -> Option<Function<'a>> {
        let end = start.checked_add(size).filter(|_| size > 0)?;
        let text = object
            .code_ranges()
            .into_iter()
            .find(|text| text.contains(&start))?;
        if end > text.end {
            return None;
        }
        let from = start.saturating_sub(BEFORE).max(text.start);
        let code = object.code(from..end.saturating_add(AFTER).min(text.end))?;
        let name = name.to_owned();
        let object_name = object_name.map(str::to_owned);
        Some(Function {
            name,
            object_name,
            object,
            start,
            size,
            code,
            code_at: from,
            outline: Outline::default(),
        })
    }

    /// Looks for its parts and its tail exits.
    pub fn trace(&mut self, objects: &Objects, memory: &Memory) {
        let own = self.start..self.start.saturating_add(self.size);
        let parts = self.object.split_bodies(&self.name, own.clone());
        let bodies: Vec<Range<u64>> = std::iter::once(own).chain(parts).collect();
        let exits = self.object.tail_exits(&bodies);
        let ways = self.object.ways_out(&exits, objects, memory);
        self.outline = Outline {
            bodies,
            exits,
            ways,
        };
    }

    pub fn parts(&self) -> &[Range<u64>] {
        self.outline.bodies.get(1..).unwrap_or_default()
    }

    /// Where it jumps to outside of itself, in the end.
    pub fn tails(&self) -> Vec<u64> {
        let direct = self.outline.exits.iter().filter_map(|exit| match exit.to {
            ExitTo::Code(at) => Some(at),
            _ => None,
        });
        let mut tails: Vec<u64> = direct
            .chain(self.outline.ways.targets.iter().copied())
            .collect();
        tails.sort_unstable();
        tails.dedup();
        tails
    }

    /// The function's own bytes.
    pub fn body(&self) -> &[u8] {
        let from = (self.start - self.code_at) as usize;
        self.code
            .get(from..from + self.size as usize)
            .unwrap_or_default()
    }

    /// The bytes whose running copies must be what the file says: the function, its padding, and what it claims.
    pub fn surroundings(&self) -> (u64, &[u8]) {
        (self.code_at, &self.code)
    }

    pub fn before(&self) -> &[u8] {
        self.code
            .get(..(self.start - self.code_at) as usize)
            .unwrap_or_default()
    }

    pub fn site(&self) -> Site<'_> {
        let skip = arch::skip_endbr(self.body());
        let from = (self.start - self.code_at) as usize + skip;
        Site {
            at: self.start + skip as u64,
            code: self.code.get(from..).unwrap_or_default(),
            len: (self.size as usize).saturating_sub(skip),
        }
    }

    /// Where it would be redirected.
    pub fn at(&self) -> u64 {
        self.start + arch::skip_endbr(self.body()) as u64
    }
}
