//! Linking a patch into a process from outside: its sections get addresses in a block of the target's memory, its
//! symbols the meaning that they have in the target, and the bytes to be written there come out.
//!
//! Nothing here touches the target except to read the words in which the dynamic loader left its decisions.
//! A function that the patch replaces is, seen from the patch, its original entry: that is where the symbol tables say
//! it is, so calls and pointers go through the redirection like everyone else's.

mod error;
mod layout;
mod relocate;
mod resolve;
mod scope;
mod tls;
mod x86_64;

use std::ops::Range;

pub use error::{LinkError, ResolveError};
use layout::GotKey;
pub use layout::Layout;
use livegraft_patchfile::{Patch, Place, Symbol};
pub use resolve::{Indirect, Resolver, Value};

use crate::object::is_split_body;
use relocate::Linker;

/// User addresses end here (47 bits), and what must be low ends at 2 GiB.
const USER_END: u64 = 1 << 47;
const LOW_END: u64 = 1 << 31;
const PAGE: u64 = 4096;

/// How memory is protected; nothing is writable and executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// r-x
    ReadExecute,
    /// r--
    Read,
    /// rw-
    ReadWrite,
}

impl Protection {
    /// As mmap's `prot`.
    pub fn prot(self) -> libc::c_int {
        match self {
            Protection::ReadExecute => libc::PROT_READ | libc::PROT_EXEC,
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A part of the patch's memory.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Where it goes, at a page.
    pub avma: u64,
    /// Its size in memory, whole pages.
    pub mem_size: u64,
    /// What it begins with; zeroes follow.
    pub bytes: Vec<u8>,
    /// How it is protected.
    pub protection: Protection,
}

/// A patch that is ready to be written into the target.
#[derive(Debug, Clone)]
pub struct Linked {
    /// In the order of their addresses, adjacent; empty ones are left out.
    pub segments: Vec<Segment>,
    /// Name and range (avma) of the patch's functions, in the order of their addresses.
    pub functions: Vec<(String, Range<u64>)>,
    /// Its call frame information (avma), one range for each object that was packed.
    pub eh_frames: Vec<Range<u64>>,
    symbols: Vec<Option<u64>>,
    bodies: Vec<Option<usize>>,
}

impl Linked {
    /// Where a symbol that the patch defines is (avma); `symbol` is an index into `Patch::symbols`.
    pub fn symbol_avma(&self, symbol: usize) -> Option<u64> {
        self.symbols.get(symbol).copied().flatten()
    }

    /// The ranges (avma) of a function of the patch and of the parts that the compiler split off it.
    pub fn body_of(&self, symbol: usize) -> Vec<Range<u64>> {
        let own = self
            .bodies
            .get(symbol)
            .copied()
            .flatten()
            .and_then(|at| self.functions.get(at));
        let Some((name, range)) = own else {
            return Vec::new();
        };
        let split = self
            .functions
            .iter()
            .filter(|(other, _)| is_split_body(other.as_bytes(), name.as_bytes()));
        std::iter::once(range.clone())
            .chain(split.map(|(_, range)| range.clone()))
            .collect()
    }

    /// The function of the patch that contains an address, and the offset in it.
    pub fn symbolize(&self, avma: u64) -> Option<(&str, u64)> {
        let (name, range) = self
            .functions
            .iter()
            .find(|(_, range)| range.contains(&avma))?;
        Some((name, avma.checked_sub(range.start)?))
    }
}

/// Links a patch for a block of memory at `base` (avma, a page) of `layout.total_size` bytes.
pub fn link(
    patch: &Patch,
    layout: &Layout,
    base: u64,
    resolver: &Resolver<'_>,
) -> Result<Linked, LinkError> {
    check_base(layout, base)?;
    if layout.digest != patch.digest || layout.sections.len() != patch.sections.len() {
        return Err(LinkError::WrongLayout);
    }
    let linker = Linker::new(patch, layout, base, resolver)?;
    let image = linker.run()?;
    let symbols: Vec<Option<u64>> = patch
        .symbols
        .iter()
        .map(|symbol| placed(layout, base, symbol))
        .collect();
    let (functions, bodies) = functions(patch, &symbols);
    let sections = patch.sections.iter().zip(&layout.sections);
    let eh_frames = sections.filter(|(section, _)| section.name == layout::EH_FRAME);
    Ok(Linked {
        segments: segments(layout, base, image),
        eh_frames: eh_frames
            .map(|(section, offset)| {
                let start = base.saturating_add(*offset);
                start..start.saturating_add(section.size)
            })
            .collect(),
        functions,
        symbols,
        bodies,
    })
}

fn check_base(layout: &Layout, base: u64) -> Result<(), LinkError> {
    let bad = |why| Err(LinkError::BadBase { base, why });
    let end = base.checked_add(layout.total_size);
    match end {
        _ if !base.is_multiple_of(PAGE) => bad("it is not at a page"),
        Some(end) if layout.needs_low && end > LOW_END => {
            bad("it is compiled without -fPIC and must lie below 2 GiB")
        }
        Some(end) if end <= USER_END => Ok(()),
        _ => bad("it does not fit into the address space"),
    }
}

fn placed(layout: &Layout, base: u64, symbol: &Symbol) -> Option<u64> {
    match symbol.place {
        Place::Section(section, offset) => base
            .checked_add(*layout.sections.get(section)?)?
            .checked_add(offset),
        _ => None,
    }
}

/// Name and range (avma) of the functions of a patch that lies at `base`, in the order of their addresses.
pub fn functions_at(patch: &Patch, layout: &Layout, base: u64) -> Vec<(String, Range<u64>)> {
    let placed = |symbol| placed(layout, base, symbol);
    let symbols: Vec<Option<u64>> = patch.symbols.iter().map(placed).collect();
    functions(patch, &symbols).0
}

type Functions = (Vec<(String, Range<u64>)>, Vec<Option<usize>>);

/// The patch's functions by address, and for each symbol which of them it is.
fn functions(patch: &Patch, symbols: &[Option<u64>]) -> Functions {
    let in_code = |symbol: &Symbol| match symbol.place {
        Place::Section(section, _) => patch.sections.get(section).is_some_and(|s| s.exec),
        _ => false,
    };
    let mut found: Vec<(usize, Range<u64>)> = Vec::new();
    for (index, (symbol, avma)) in patch.symbols.iter().zip(symbols).enumerate() {
        // Assembler code may leave out type and size; such a symbol counts when it names something.
        if let (Some(avma), true) = (*avma, in_code(symbol) && !symbol.name.is_empty()) {
            let size = if symbol.size > 0 {
                symbol.size
            } else {
                unsized_length(patch, symbol)
            };
            found.push((index, avma..avma.saturating_add(size)));
        }
    }
    found.sort_by_key(|(index, range)| (range.start, *index));
    let mut bodies = vec![None; patch.symbols.len()];
    let mut functions = Vec::with_capacity(found.len());
    for (at, (index, range)) in found.into_iter().enumerate() {
        if let (Some(body), Some(symbol)) = (bodies.get_mut(index), patch.symbols.get(index)) {
            *body = Some(at);
            functions.push((symbol.name.clone(), range));
        }
    }
    (functions, bodies)
}

/// A function without a size ends where the next symbol of its section begins, or with the section.
fn unsized_length(patch: &Patch, symbol: &Symbol) -> u64 {
    let Place::Section(section, offset) = symbol.place else {
        return 0;
    };
    let size = patch.sections.get(section).map_or(0, |s| s.size);
    let next = patch.symbols.iter().filter_map(|other| match other.place {
        Place::Section(its, at) if its == section && at > offset && !other.name.is_empty() => {
            Some(at)
        }
        _ => None,
    });
    next.min().unwrap_or(size).saturating_sub(offset)
}

/// Cuts the image at the borders of protection.
fn segments(layout: &Layout, base: u64, image: Vec<u8>) -> Vec<Segment> {
    let parts = [
        (layout.text_size, Protection::ReadExecute),
        (layout.ro_size, Protection::Read),
        (layout.rw_size, Protection::ReadWrite),
    ];
    let mut avma = base;
    let mut rest = image.as_slice();
    let mut segments = Vec::new();
    for (mem_size, protection) in parts {
        let length = usize::try_from(mem_size)
            .unwrap_or(usize::MAX)
            .min(rest.len());
        let (bytes, tail) = rest.split_at(length);
        if mem_size > 0 {
            segments.push(Segment {
                avma,
                mem_size,
                bytes: bytes.to_vec(),
                protection,
            });
        }
        avma = avma.saturating_add(mem_size);
        rest = tail;
    }
    segments
}
