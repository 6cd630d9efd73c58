//! A symbol table (.symtab or .dynsym) with an index by name.

use std::sync::OnceLock;

use super::raw::{string_at, u16_at, u32_at, u64_at};

const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;
const STB_LOCAL: u8 = 0;
const STT_SECTION: u8 = 3;
const STT_FILE: u8 = 4;
const VERSYM_HIDDEN: u16 = 0x8000;
const SYMBOL_SIZE: usize = 24;

/// What a symbol stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// STT_FUNC.
    Function,
    /// STT_GNU_IFUNC: its value is the address of a resolver, not of the function.
    IndirectFunction,
    /// STT_TLS: its value is an offset in the module's thread-local storage.
    ThreadLocal,
    /// STT_OBJECT, STT_COMMON, and untyped symbols of assembler code.
    Other,
}

/// A symbol as its table has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbol<'a> {
    /// Name up to a version suffix (`foo` of `foo@@V1`).
    pub name: &'a [u8],
    pub kind: SymbolKind,
    pub local: bool,
    /// STV_DEFAULT = 0, INTERNAL = 1, HIDDEN = 2, PROTECTED = 3.
    pub visibility: u8,
    pub defined: bool,
    pub svma: u64,
    pub size: u64,
    /// Bound to a version that is not the default one of its name.
    pub old_version: bool,
    /// Position in the table.
    pub index: u32,
}

/// The bytes of a table, and indices over them that are made when first asked for.
#[derive(Debug)]
pub(crate) struct SymbolTable {
    symbols: Vec<u8>,
    strings: Vec<u8>,
    versions: Vec<u8>,
    /// hash of name << 32 | position, sorted: symbols of a name are adjacent and in the order of the table.
    by_name: OnceLock<Vec<u64>>,
    /// (svma, position) of functions, sorted.
    by_svma: OnceLock<Vec<(u64, u32)>>,
    /// (svma, position) of all symbols, sorted.
    by_value: OnceLock<Vec<(u64, u32)>>,
    /// Positions of definitions with a size and a dot in their names.
    dotted: OnceLock<Vec<u32>>,
}

impl SymbolTable {
    /// From the contents of the symbol and string sections and, for .dynsym, of .gnu.version.
    pub fn new(symbols: Vec<u8>, strings: Vec<u8>, versions: Vec<u8>) -> SymbolTable {
        SymbolTable {
            symbols,
            strings,
            versions,
            by_name: OnceLock::new(),
            by_svma: OnceLock::new(),
            by_value: OnceLock::new(),
            dotted: OnceLock::new(),
        }
    }

    /// The symbol at a position.
    pub fn get(&self, index: u32) -> Option<Symbol<'_>> {
        let at = usize::try_from(index).ok()?.checked_mul(SYMBOL_SIZE)?;
        let raw = self.symbols.get(at..at.checked_add(SYMBOL_SIZE)?)?;
        let full = string_at(&self.strings, usize::try_from(u32_at(raw, 0)?).ok()?);
        let (name, suffix) = split_version(full);
        let (info, other) = (*raw.get(4)?, *raw.get(5)?);
        let section = u16_at(raw, 6)?;
        let kind = match info & 15 {
            2 => SymbolKind::Function,
            6 => SymbolKind::ThreadLocal,
            10 => SymbolKind::IndirectFunction,
            _ => SymbolKind::Other,
        };
        let named = !matches!(info & 15, STT_SECTION | STT_FILE) && !name.is_empty();
        let versym_at = usize::try_from(index).ok()?.checked_mul(2)?;
        let hidden = u16_at(&self.versions, versym_at).is_some_and(|v| v & VERSYM_HIDDEN != 0);
        Some(Symbol {
            name,
            kind,
            local: info >> 4 == STB_LOCAL,
            visibility: other & 3,
            defined: section != SHN_UNDEF && section != SHN_ABS && named,
            svma: u64_at(raw, 8)?,
            size: u64_at(raw, 16)?,
            old_version: hidden || (!suffix.is_empty() && !suffix.starts_with(b"@@")),
            index,
        })
    }

    /// The names in the table that end so.
    pub fn names_ending<'a>(&'a self, suffix: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let ending = [suffix.as_bytes(), b"\0"].concat();
        let ends: Vec<usize> = memchr::memmem::find_iter(&self.strings, &ending).collect();
        let length = suffix.len();
        ends.into_iter().filter_map(move |at| {
            let before = self.strings.get(..at)?;
            let start = memchr::memrchr(0, before).map_or(0, |nul| nul + 1);
            self.strings.get(start..at + length)
        })
    }

    /// All symbols in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        let count = u32::try_from(self.symbols.len() / SYMBOL_SIZE).unwrap_or(u32::MAX);
        (0..count).filter_map(|index| self.get(index))
    }

    /// All symbols, undefined ones included, of a name, in the order of the table.
    pub fn named<'a, 'n>(
        &'a self,
        name: &'n str,
    ) -> impl Iterator<Item = Symbol<'a>> + use<'a, 'n> {
        let index = self.by_name.get_or_init(|| {
            let hashed = self.iter().filter(|symbol| !symbol.name.is_empty());
            let mut keys: Vec<u64> = hashed
                .map(|s| (u64::from(hash(s.name)) << 32) | u64::from(s.index))
                .collect();
            keys.sort_unstable();
            keys
        });
        let wanted = u64::from(hash(name.as_bytes()));
        let start = index.partition_point(|key| key >> 32 < wanted);
        let same_hash = index
            .iter()
            .skip(start)
            .take_while(move |&&key| key >> 32 == wanted);
        same_hash
            .filter_map(|&key| self.get(u32::try_from(key & 0xffff_ffff).ok()?))
            .filter(|symbol| symbol.name == name.as_bytes())
    }

    /// What is defined at an address, by all its names.
    pub fn at(&self, svma: u64) -> impl Iterator<Item = Symbol<'_>> {
        let index = self.by_value.get_or_init(|| {
            let raw = self.symbols.chunks_exact(SYMBOL_SIZE).zip(0..);
            let mut keys: Vec<(u64, u32)> = raw
                .filter_map(|(raw, index)| Some((u64_at(raw, 8)?, index)))
                .collect();
            keys.sort_unstable();
            keys
        });
        let start = index.partition_point(|&(value, _)| value < svma);
        index
            .iter()
            .skip(start)
            .take_while(move |&&(value, _)| value == svma)
            .filter_map(|&(_, index)| self.get(index))
            .filter(|symbol| symbol.defined)
    }

    /// Definitions with a size whose names have a dot in them, as those of parts of functions do.
    pub fn dotted(&self) -> impl Iterator<Item = Symbol<'_>> {
        let index = self.dotted.get_or_init(|| {
            let dotted = self
                .iter()
                .filter(|s| s.defined && s.size > 0 && s.name.contains(&b'.'));
            dotted.map(|symbol| symbol.index).collect()
        });
        index.iter().filter_map(|&index| self.get(index))
    }

    /// The function whose range contains `svma`, and its start.
    pub fn function_at(&self, svma: u64) -> Option<Symbol<'_>> {
        let index = self.by_svma.get_or_init(|| {
            let functions = self.iter().filter(|s| {
                s.defined
                    && s.size > 0
                    && matches!(s.kind, SymbolKind::Function | SymbolKind::IndirectFunction)
            });
            let mut keys: Vec<(u64, u32)> = functions.map(|s| (s.svma, s.index)).collect();
            keys.sort_unstable();
            keys
        });
        let end = index.partition_point(|&(start, _)| start <= svma);
        let mut before = index.get(..end)?.iter().rev().take(64);
        // A short function can lie in front of the one that contains svma.
        let containing = |&(start, at): &(u64, u32)| {
            let symbol = self.get(at)?;
            (svma.checked_sub(start)? < symbol.size).then_some(symbol)
        };
        let first = before.find_map(containing)?;
        // Those that start at the same address are other names of it.
        let aliases = before
            .take_while(|(start, _)| *start == first.svma)
            .filter_map(containing);
        aliases.chain([first]).min_by_key(Symbol::rank)
    }
}

impl Symbol<'_> {
    /// Among several names of one address the least is the one to show: what others call it by, the name of today, and
    /// the one that its author would say (`read` rather than `__GI___read`).
    fn rank(&self) -> (bool, bool, bool, usize, usize, u32) {
        let underscores = self.name.iter().take_while(|&&byte| byte == b'_').count();
        (
            self.name.starts_with(b".L"),
            self.local,
            self.old_version,
            underscores,
            self.name.len(),
            self.index,
        )
    }
}

/// `foo@V1` and `foo@@V1` are how binutils writes versions into the names of .symtab.
fn split_version(full: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'@', full) {
        Some(at) if at > 0 => full.split_at(at),
        _ => (full, &[]),
    }
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |h, &byte| {
        (h ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
