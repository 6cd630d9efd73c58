//! The running text as it was at one moment: what many entries are compared with is read once, a page at a time.

use super::Engine;
use super::edits::lay;
use crate::arch::{Edit, PAGE};
use crate::memory::Memory;
use crate::object::LoadedObject;
use crate::space::pages;
use sha2::{Digest, Sha256};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

/// A page's SHA-256, and where it differs from its file; `None`: it or the file can't be read.
type Compared = Option<([u8; 32], Option<u64>)>;

/// See the module. Whoever writes to the text makes a new one.
#[derive(Debug, Clone, Default)]
pub(super) struct Text {
    pages: RefCell<BTreeMap<u64, Option<Vec<u8>>>>,
    digests: RefCell<BTreeMap<u64, Option<[u8; 32]>>>,
    compared: RefCell<BTreeMap<u64, Compared>>,
    sealed: OnceCell<Vec<Range<u64>>>,
}

impl Text {
    /// The bytes at an address; `None` where not all of them can be read.
    pub fn read(&self, memory: &Memory, at: u64, len: usize) -> Option<Vec<u8>> {
        let range = at..at.checked_add(len as u64)?;
        let mut bytes = Vec::with_capacity(len);
        let mut cache = self.pages.borrow_mut();
        for page in pages(range.clone()).step_by(PAGE as usize) {
            let whole = cache
                .entry(page)
                .or_insert_with(|| memory.read_vec(page, PAGE as usize).ok());
            let from = range.start.max(page) - page;
            let to = range.end.min(page.saturating_add(PAGE)) - page;
            bytes.extend_from_slice(whole.as_ref()?.get(from as usize..to as usize)?);
        }
        Some(bytes)
    }
}

impl Engine {
    /// Whether an edit stands in the text: `Some(true)` redirected, `Some(false)` original, `None` neither.
    pub(super) fn stands(&self, text: &Text, edit: &Edit) -> Option<bool> {
        let found = text.read(self.memory(), edit.at, edit.original.len())?;
        if found == edit.redirected {
            return Some(true);
        }
        (found == edit.original).then_some(false)
    }

    /// A page of text with the entries that jump put back.
    fn without_edits(&self, text: &Text, page: u64) -> Option<Vec<u8>> {
        let mut bytes = text.read(self.memory(), page, PAGE as usize)?;
        let edits = self.entries_there().flat_map(|(_, entry)| &entry.edits);
        let end = page.saturating_add(PAGE);
        let here = |edit: &&Edit| {
            edit.at < end && edit.at.saturating_add(edit.original.len() as u64) > page
        };
        for edit in edits.filter(here) {
            if self.stands(text, edit) == Some(true) {
                lay(page, &mut bytes, edit.at, &edit.original);
            }
        }
        Some(bytes)
    }

    /// The SHA-256 of a page of text with the entries that jump put back.
    pub(super) fn digest_without_edits(&self, text: &Text, page: u64) -> Option<[u8; 32]> {
        if let Some(&known) = text.digests.borrow().get(&page) {
            return known;
        }
        let digest = self
            .without_edits(text, page)
            .map(|bytes| Sha256::digest(bytes).into());
        text.digests.borrow_mut().insert(page, digest);
        digest
    }

    /// Compares a page of text, with the entries that jump put back, with what its file has there: the SHA-256, or the
    /// first address at which they differ.
    pub(super) fn compare_with_file(
        &self,
        text: &Text,
        object: &LoadedObject,
        page: u64,
    ) -> Result<[u8; 32], u64> {
        let compare = || {
            let file = object.page(page)?;
            let found = self.without_edits(text, page)?;
            let mut pairs = found.iter().zip(&file);
            let differs = pairs.position(|(found, file)| found != file);
            Some((
                Sha256::digest(&file).into(),
                differs.map(|at| page + at as u64),
            ))
        };
        match *text
            .compared
            .borrow_mut()
            .entry(page)
            .or_insert_with(compare)
        {
            Some((digest, None)) => Ok(digest),
            Some((_, Some(at))) => Err(at),
            None => Err(page),
        }
    }

    /// Whether the mapping around an address may not be replaced (mseal).
    pub(super) fn is_sealed(&self, text: &Text, address: u64) -> bool {
        let sealed = text.sealed.get_or_init(|| self.process.sealed_ranges());
        sealed.iter().any(|range| range.contains(&address))
    }
}
