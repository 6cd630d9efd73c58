//! What the dynamic section says, and the words that the dynamic loader fills in.

use super::ObjectError;
use super::file::{ElfFile, PT_DYNAMIC, PT_GNU_RELRO, SHF_ALLOC, SHT_DYNSYM, SHT_RELA};
use super::raw::{i64_at, string_at, u32_at, u64_at};
use super::symbols::SymbolTable;

/// A string of .dynstr is not longer than this.
const MAX_NAME: u64 = 4096;
/// More entries are taken for damage.
const MAX_ENTRIES: u64 = 4096;

/// The entries of PT_DYNAMIC that are used here; addresses are svmas.
#[derive(Debug, Default)]
pub(crate) struct Dynamic {
    pub strings: Option<u64>,
    pub strings_size: u64,
    pub symbols: Option<u64>,
    pub hash: Option<u64>,
    pub gnu_hash: Option<u64>,
    pub versions: Option<u64>,
    pub rela: Option<(u64, u64)>,
    pub plt_rela: Option<(u64, u64)>,
    /// Relative relocations as a bitmap.
    pub relr: Option<(u64, u64)>,
    /// The GOT of the PLT: its third word leads to the loader's resolver.
    pub plt_got: Option<u64>,
    pub needed: Vec<String>,
    pub soname: Option<String>,
    /// The object looks into itself first (-Bsymbolic).
    pub symbolic: bool,
    /// Where the loader writes the address of its `r_debug`.
    pub debug_word: Option<u64>,
}

impl Dynamic {
    /// Reads PT_DYNAMIC; empty for a static program.
    pub fn read(elf: &ElfFile) -> Result<Dynamic, ObjectError> {
        let mut dynamic = Dynamic::default();
        let Some(segment) = elf.segment(PT_DYNAMIC) else {
            return Ok(dynamic);
        };
        let what = "the dynamic section";
        let bytes = elf.read(
            segment.offset,
            segment.file_size.min(MAX_ENTRIES << 4),
            what,
        )?;
        let mut needed = Vec::new();
        let (mut soname, mut rela, mut rela_size) = (None, None, 0);
        let (mut plt, mut plt_size) = (None, 0);
        let (mut relr, mut relr_size) = (None, 0);
        let mut word = segment.svma.saturating_add(8);
        for entry in bytes.chunks_exact(16) {
            let (tag, value) = (
                u64_at(entry, 0).unwrap_or_default(),
                u64_at(entry, 8).unwrap_or_default(),
            );
            match tag {
                0 => break,
                1 => needed.push(value),
                2 => plt_size = value,
                3 => dynamic.plt_got = Some(value),
                4 => dynamic.hash = Some(value),
                5 => dynamic.strings = Some(value),
                6 => dynamic.symbols = Some(value),
                7 => rela = Some(value),
                8 => rela_size = value,
                10 => dynamic.strings_size = value,
                14 => soname = Some(value),
                16 => dynamic.symbolic = true,
                21 => dynamic.debug_word = Some(word),
                23 => plt = Some(value),
                30 => dynamic.symbolic |= value & 2 != 0,
                35 => relr_size = value,
                36 => relr = Some(value),
                0x6fff_fef5 => dynamic.gnu_hash = Some(value),
                0x6fff_fff0 => dynamic.versions = Some(value),
                _ => {}
            }
            word = word.saturating_add(16);
        }
        dynamic.rela = rela.map(|at| (at, rela_size));
        dynamic.plt_rela = plt.map(|at| (at, plt_size));
        dynamic.relr = relr.map(|at| (at, relr_size));
        dynamic.soname = soname.and_then(|at| dynamic.string(elf, at));
        dynamic.needed = needed
            .iter()
            .filter_map(|&at| dynamic.string(elf, at))
            .collect();
        Ok(dynamic)
    }

    /// One string of .dynstr: read alone, because the whole table is only needed for symbols.
    fn string(&self, elf: &ElfFile, at: u64) -> Option<String> {
        let left = self.strings_size.checked_sub(at)?;
        let svma = self.strings?.checked_add(at)?;
        let bytes = elf
            .read_svma_up_to(svma, left.min(MAX_NAME), "the dynamic string table")
            .ok()?;
        let name = string_at(&bytes, 0);
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// .dynsym with its strings and versions.
    pub fn symbol_table(&self, elf: &ElfFile) -> Result<Option<SymbolTable>, ObjectError> {
        let (Some(symbols), Some(strings)) = (self.symbols, self.strings) else {
            return Ok(None);
        };
        let count = self.symbol_count(elf)?;
        let size = count.saturating_mul(24);
        let symbols = elf.read_svma(symbols, size, "the dynamic symbol table")?;
        let strings = elf.read_svma(strings, self.strings_size, "the dynamic string table")?;
        let versions = match self.versions {
            Some(at) => elf.read_svma(at, count.saturating_mul(2), "the symbol versions")?,
            None => Vec::new(),
        };
        Ok(Some(SymbolTable::new(symbols, strings, versions)))
    }

    /// The dynamic section does not say how many symbols there are; the section header or a hash table does.
    fn symbol_count(&self, elf: &ElfFile) -> Result<u64, ObjectError> {
        let section = elf
            .sections()
            .iter()
            .find(|s| s.kind == SHT_DYNSYM && Some(s.svma) == self.symbols);
        if let Some(section) = section {
            return Ok(section.size / 24);
        }
        if let Some(hash) = self.hash {
            let head = elf.read_svma(hash, 8, "the symbol hash table")?;
            return Ok(u64::from(u32_at(&head, 4).unwrap_or_default()));
        }
        match self.gnu_hash {
            Some(hash) => gnu_hash_count(elf, hash),
            None => Ok(0),
        }
    }
}

/// The last symbol of the last chain of DT_GNU_HASH is the last symbol of the table.
fn gnu_hash_count(elf: &ElfFile, hash: u64) -> Result<u64, ObjectError> {
    let what = "the symbol hash table";
    let damaged = || ObjectError::Damaged {
        path: elf.path().to_path_buf(),
        what,
    };
    let head = elf.read_svma(hash, 16, what)?;
    let word = |at| u64::from(u32_at(&head, at).unwrap_or_default());
    let (buckets, first, bloom) = (word(0), word(4), word(8));
    let bucket_svma = hash
        .checked_add(16)
        .and_then(|at| at.checked_add(bloom.checked_mul(8)?));
    let bucket_svma = bucket_svma.ok_or_else(damaged)?;
    let bucket_bytes = buckets.saturating_mul(4);
    let table = elf.read_svma(bucket_svma, bucket_bytes, what)?;
    let last = table
        .chunks_exact(4)
        .filter_map(|raw| u32_at(raw, 0))
        .max()
        .map_or(0, u64::from);
    if last < first {
        return Ok(first);
    }
    let chain = last.checked_sub(first).and_then(|n| n.checked_mul(4));
    let chain = chain
        .and_then(|at| bucket_svma.checked_add(bucket_bytes)?.checked_add(at))
        .ok_or_else(damaged)?;
    let words = elf.read_svma_up_to(chain, 1 << 24, what)?;
    let end = words
        .chunks_exact(4)
        .position(|raw| u32_at(raw, 0).is_some_and(|w| w & 1 == 1));
    let end = end
        .and_then(|at| u64::try_from(at).ok())
        .ok_or_else(damaged)?;
    last.checked_add(end)
        .and_then(|at| at.checked_add(1))
        .ok_or_else(damaged)
}

/// The relocations of the dynamic loader whose result says what a symbol was resolved to (x86-64 psABI, table 4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// GLOB_DAT, or a 64 in memory that is read-only once relocated.
    Address,
    /// JUMP_SLOT.
    Jump,
    /// TPOFF64.
    ThreadOffset,
    /// DTPMOD64.
    Module,
    /// DTPOFF64.
    ModuleOffset,
    /// IRELATIVE: the addend is the resolver's svma.
    Indirect,
}

/// A word that the dynamic loader fills in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub kind: SlotKind,
    pub svma: u64,
    /// Index into .dynsym; 0 for none.
    pub symbol: u32,
    pub addend: i64,
}

/// Words of data that hold addresses of this object itself, as (where, address), sorted: what RELATIVE and IRELATIVE
/// relocations say, and the packed relative ones.
pub(crate) fn relative_words(elf: &ElfFile, dynamic: &Dynamic) -> Vec<(u64, u64)> {
    let what = "the dynamic relocations";
    let mut words = Vec::new();
    for (svma, size) in [dynamic.rela, dynamic.plt_rela].into_iter().flatten() {
        let bytes = elf.read_svma(svma, size, what).unwrap_or_default();
        for raw in bytes.chunks_exact(24) {
            if let (Some(at), Some(8 | 37), Some(addend)) =
                (u64_at(raw, 0), u32_at(raw, 8), u64_at(raw, 16))
            {
                words.push((at, addend));
            }
        }
    }
    if let Some((svma, size)) = dynamic.relr {
        let bytes = elf.read_svma(svma, size, what).unwrap_or_default();
        let at = relr_places(bytes.chunks_exact(8).filter_map(|raw| u64_at(raw, 0)));
        let held = |at: u64| u64_at(&elf.read_svma(at, 8, what).ok()?, 0);
        words.extend(at.into_iter().filter_map(|at| Some((at, held(at)?))));
    }
    words.sort_unstable();
    words
}

/// The places of DT_RELR: an even entry is an address, an odd one a bitmap of the 63 words behind the last.
fn relr_places(entries: impl Iterator<Item = u64>) -> Vec<u64> {
    let (mut places, mut next) = (Vec::new(), 0_u64);
    for entry in entries {
        if entry & 1 == 0 {
            places.push(entry);
            next = entry.wrapping_add(8);
            continue;
        }
        let words = (1..64).filter(|bit| entry >> bit & 1 == 1);
        places.extend(words.map(|bit| next.wrapping_add(8 * (bit - 1))));
        next = next.wrapping_add(63 * 8);
    }
    places
}

/// All slots of an object, sorted by symbol.
pub(crate) fn read_slots(elf: &ElfFile, dynamic: &Dynamic) -> Result<Vec<Slot>, ObjectError> {
    let mut tables: Vec<(u64, u64)> = Vec::new();
    tables.extend(dynamic.rela);
    tables.extend(dynamic.plt_rela);
    if tables.is_empty() {
        // A static program has its IRELATIVE table only between two linker symbols, and in its section headers.
        let sections = elf
            .sections()
            .iter()
            .filter(|s| s.kind == SHT_RELA && s.flags & SHF_ALLOC != 0);
        tables.extend(sections.map(|s| (s.svma, s.size)));
    }
    let relro = elf
        .segment(PT_GNU_RELRO)
        .map(|s| s.svma_range())
        .unwrap_or_default();
    let mut slots = Vec::new();
    for (svma, size) in tables.into_iter().filter(|&(_, size)| size > 0) {
        let bytes = elf.read_svma(svma, size, "the dynamic relocations")?;
        for raw in bytes.chunks_exact(24) {
            let (Some(offset), Some(r_type), Some(symbol), Some(addend)) = (
                u64_at(raw, 0),
                u32_at(raw, 8),
                u32_at(raw, 12),
                i64_at(raw, 16),
            ) else {
                continue;
            };
            let kind = match r_type {
                6 => SlotKind::Address,
                // A writable word can have been changed by the program since (a hook, a table of callbacks).
                1 if relro.contains(&offset) => SlotKind::Address,
                7 => SlotKind::Jump,
                16 => SlotKind::Module,
                17 => SlotKind::ModuleOffset,
                18 => SlotKind::ThreadOffset,
                37 => SlotKind::Indirect,
                _ => continue,
            };
            slots.push(Slot {
                kind,
                svma: offset,
                symbol,
                addend,
            });
        }
    }
    slots.sort_by_key(|slot| slot.symbol);
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::relr_places;

    #[test]
    fn packed_relative_relocations_are_unpacked() {
        let places = relr_places([0x1000, 0b1011, 0x9, 0x3000].into_iter());
        assert_eq!(places, [0x1000, 0x1008, 0x1018, 0x1210, 0x3000]);
    }
}
