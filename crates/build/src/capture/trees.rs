//! The source files of both builds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::changed::is_text;
use super::lines;
use super::site::Site;
use super::units::absolute;
use crate::compare::{Side, Texts};

/// No source file is larger.
const LARGEST: u64 = 64 << 20;

/// The source files of both builds, generated ones too.
#[derive(Debug)]
pub struct Trees {
    /// Of the original and of the patched build.
    pub(super) trees: [PathBuf; 2],
    /// What the diff changes, relative to the source.
    pub(super) files: Vec<PathBuf>,
    pub(super) site: Site,
}

/// The source files as one pair of objects knows them.
#[derive(Debug)]
pub struct SourceTexts<'t> {
    trees: &'t Trees,
    /// The patched object was compiled with the line numbers of the original.
    numbered: bool,
    /// For each file with other numbers the lines that they mean.
    lines: RefCell<HashMap<PathBuf, HashMap<u64, u64>>>,
}

impl Trees {
    /// As a pair of objects knows them. `numbered`: see [`super::Pair::numbered`].
    pub fn of(&self, numbered: bool) -> SourceTexts<'_> {
        SourceTexts {
            trees: self,
            numbered,
            lines: RefCell::default(),
        }
    }

    /// A path that the compiler wrote. Where it was told to leave out the directory of the build (-ffile-prefix-map) it is
    /// relative to the source.
    fn seen(&self, path: &Path) -> PathBuf {
        absolute(&self.site.seen(0), path)
    }

    /// Files outside of the trees are the same in both, and not read.
    fn read(&self, side: Side, path: &Path) -> Option<Vec<u8>> {
        let path = self.seen(path);
        self.site.within(&path)?;
        let [original, patched] = &self.trees;
        let tree = if side == Side::Original {
            original
        } else {
            patched
        };
        let file = self.site.host(tree, &path);
        let metadata = fs::metadata(&file).ok()?;
        (metadata.is_file() && metadata.len() <= LARGEST).then(|| fs::read(&file).ok())?
    }

    /// The lines of a file by the numbers that they were compiled with; none where these are their own.
    fn numbers(&self, path: &Path) -> HashMap<u64, u64> {
        let mut lines = HashMap::new();
        let seen = self.seen(path);
        let changed = self.site.within(&seen);
        let changed = changed.is_some_and(|(area, file)| {
            area == 0 && is_text(file) && self.files.iter().any(|changed| changed == file)
        });
        let texts = || {
            let old = self.read(Side::Original, path)?;
            lines::numbered(&old, &self.read(Side::Patched, path)?)
        };
        let Some(text) = changed.then(texts).flatten() else {
            return lines;
        };
        let (mut number, mut line) = (1, 1);
        for text in text.split_inclusive(|b| *b == b'\n') {
            let given = text.strip_prefix(b"#line ").map(<[u8]>::trim_ascii);
            let given = given.and_then(|given| std::str::from_utf8(given).ok()?.parse().ok());
            if let Some(given) = given {
                number = given;
                continue;
            }
            lines.insert(number, line);
            number += 1;
            line += 1;
        }
        lines
    }
}

impl Texts for SourceTexts<'_> {
    fn text(&self, side: Side, path: &Path) -> Option<Vec<u8>> {
        self.trees.read(side, path)
    }

    fn changed(&self) -> Vec<PathBuf> {
        let root = self.trees.site.seen(0);
        let files = self.trees.files.iter();
        files.map(|file| root.join(file)).collect()
    }

    fn shown(&self, path: &Path) -> PathBuf {
        self.trees.site.shown(&self.trees.seen(path))
    }

    fn line(&self, side: Side, path: &Path, number: u64) -> u64 {
        if side == Side::Original || !self.numbered {
            return number;
        }
        let mut lines = self.lines.borrow_mut();
        let lines = lines
            .entry(path.to_owned())
            .or_insert_with(|| self.trees.numbers(path));
        lines.get(&number).copied().unwrap_or(number)
    }
}
