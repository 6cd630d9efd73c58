//! The instructions of a changed function that differ.
//!
//! Instructions are the same that mean the same. Places within functions are called by the offset that they have in the
//! original, so that what only moved is no difference: instructions are matched without such places first, and then again
//! with the names that follow.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;

use livegraft_patchfile::changes::{Hunk, Line, Side as Who};
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::code::{Code, decode};
use super::dwarf::LineTable;
use super::listing::{Labels, NoLabels, Spelled, Speller};
use super::module::Module;
use super::pair::Pair;
use super::{Side, Texts};

/// Instructions that are shown around those that differ.
const AROUND: usize = 3;
/// Bytes of strings and constants that are looked at.
const CONTENT: u64 = 1 << 26;

/// A changed function in both objects.
struct Both {
    old: Code,
    new: Code,
    /// For each instruction of the new one the old one that it is.
    from: Vec<Option<usize>>,
}

/// The differences of all changed functions of two objects.
pub(super) struct Differences<'p, 'm, 'a> {
    pair: &'p Pair<'m, 'a>,
    lines: [Option<LineTable>; 2],
    budget: Cell<u64>,
    functions: Vec<Both>,
    /// Of the functions by their numbers in the patched and in the original object.
    by_new: HashMap<usize, usize>,
    by_old: HashMap<usize, usize>,
}

impl<'p, 'm, 'a> Differences<'p, 'm, 'a> {
    /// `changed`: the numbers of functions in both objects.
    pub fn new(pair: &'p Pair<'m, 'a>, changed: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut differences = Differences {
            pair,
            lines: [LineTable::read(pair.old), LineTable::read(pair.new)],
            budget: Cell::new(CONTENT),
            functions: Vec::new(),
            by_new: HashMap::new(),
            by_old: HashMap::new(),
        };
        for (old, new) in changed {
            let (Some(a), Some(b)) = (decode(pair.old, old), decode(pair.new, new)) else {
                continue;
            };
            let keys = |side, code: &Code| -> Vec<String> {
                let spelled = differences.spell(side, &NoLabels, code);
                spelled.into_iter().map(|spelled| spelled.key).collect()
            };
            let (x, y) = (keys(Side::Original, &a), keys(Side::Patched, &b));
            let mut from = vec![None; b.steps.len()];
            for op in capture_diff_slices(Algorithm::Myers, &x, &y) {
                if let DiffOp::Equal {
                    old_index,
                    new_index,
                    len,
                } = op
                {
                    let matched = from.iter_mut().skip(new_index).take(len);
                    for (place, old) in matched.zip(old_index..) {
                        *place = Some(old);
                    }
                }
            }
            let number = differences.functions.len();
            differences.by_new.insert(new, number);
            differences.by_old.insert(old, number);
            differences.functions.push(Both {
                old: a,
                new: b,
                from,
            });
        }
        differences
    }

    /// Where the instructions of a function differ; `None` where there are none that can be read.
    pub fn of(&self, new: usize, texts: &dyn Texts) -> Option<Vec<Hunk>> {
        let both = self.functions.get(*self.by_new.get(&new)?)?;
        let old = self.spell(Side::Original, self, &both.old);
        let new = self.spell(Side::Patched, self, &both.new);
        Some(self.hunks(&self.rows(both, &old, &new), texts))
    }

    fn spell(&self, side: Side, labels: &dyn Labels, code: &Code) -> Vec<Spelled> {
        let [old, new] = &self.lines;
        let lines = if side == Side::Original { old } else { new };
        let speller = Speller {
            pair: self.pair,
            side,
            labels,
            lines: lines.as_ref(),
            budget: &self.budget,
        };
        let numbers = 0..code.steps.len();
        numbers.filter_map(|n| speller.spell(code, n)).collect()
    }

    /// All instructions of both, in order: which of the old, which of the new, the text.
    fn rows<'s>(&self, both: &Both, old: &'s [Spelled], new: &'s [Spelled]) -> Vec<Row<'s>> {
        let mut rows = Vec::with_capacity(old.len().max(new.len()));
        // Of instructions that differ the old ones come first.
        let mut added = Vec::new();
        let mut next = 0usize;
        let row = |who, code: &Code, number: usize, text: &'s [Spelled]| {
            Some(Row {
                who,
                offset: code.at.get(number).copied()?,
                text: &text.get(number)?.text,
                section: code.section,
                at: code.start,
            })
        };
        for (number, from) in both.from.iter().enumerate() {
            let upto = from.unwrap_or(next);
            rows.extend((next..upto).filter_map(|n| row(Who::Old, &both.old, n, old)));
            next = next.max(upto);
            let Some(from) = *from else {
                added.extend(row(Who::New, &both.new, number, new));
                continue;
            };
            next = from.saturating_add(1);
            let same = old.get(from).map(|s| &s.key) == new.get(number).map(|s| &s.key);
            if same {
                rows.append(&mut added);
                rows.extend(row(Who::Both, &both.old, from, old));
            } else {
                rows.extend(row(Who::Old, &both.old, from, old));
                added.extend(row(Who::New, &both.new, number, new));
            }
        }
        rows.extend((next..old.len()).filter_map(|n| row(Who::Old, &both.old, n, old)));
        rows.append(&mut added);
        rows
    }

    fn hunks(&self, rows: &[Row<'_>], texts: &dyn Texts) -> Vec<Hunk> {
        let mut hunks: Vec<std::ops::Range<usize>> = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            if row.who == Who::Both {
                continue;
            }
            let end = number
                .saturating_add(AROUND)
                .saturating_add(1)
                .min(rows.len());
            match hunks.last_mut() {
                Some(last) if number.saturating_sub(AROUND) <= last.end => last.end = end,
                _ => hunks.push(number.saturating_sub(AROUND)..end),
            }
        }
        let made = hunks.into_iter().map(|range| {
            let rows = rows.get(range).unwrap_or_default();
            let place = |who: Who, side, lines: &Option<LineTable>| {
                let row = rows.iter().find(|row| row.who == who)?;
                let at = row.at.saturating_add(row.offset.into());
                let (file, line) = lines.as_ref()?.place(row.section, at)?;
                Some(shown(texts, side, file, line))
            };
            let [old, new] = &self.lines;
            Hunk {
                at: place(Who::New, Side::Patched, new)
                    .or_else(|| place(Who::Old, Side::Original, old)),
                lines: rows.iter().map(Row::line).collect(),
            }
        });
        made.collect()
    }
}

/// A place in the source, for people.
pub(super) fn shown(texts: &dyn Texts, side: Side, file: &Path, number: u64) -> String {
    let line = texts.line(side, file, number);
    format!("{}:{line}", texts.shown(file).display())
}

struct Row<'s> {
    who: Who,
    offset: u32,
    text: &'s str,
    section: usize,
    at: u64,
}

impl Row<'_> {
    fn line(&self) -> Line {
        Line {
            side: self.who,
            offset: self.offset,
            text: self.text.to_owned(),
        }
    }
}

impl Labels for Differences<'_, '_, '_> {
    fn label(&self, side: Side, item: usize, offset: u64) -> String {
        let (module, numbers): (&Module<'_>, _) = match side {
            Side::Original => (self.pair.old, &self.by_old),
            Side::Patched => (self.pair.new, &self.by_new),
        };
        let plain = |name: &str, offset: u64| format!("{name}+{offset:#x}");
        let name = module.item(item).map_or("?", |item| item.name.as_str());
        let Some(both) = numbers.get(&item).and_then(|n| self.functions.get(*n)) else {
            return plain(name, offset);
        };
        if side == Side::Original {
            return plain(name, offset);
        }
        let old = self.pair.old.item(both.old.item);
        let name = old.map_or(name, |old| old.name.as_str());
        // Padding is no instruction: what follows it is meant.
        let number = both.new.at.partition_point(|&at| u64::from(at) < offset);
        let from = match both.from.get(number) {
            Some(from) => from.and_then(|from| both.old.at.get(from)),
            None => None,
        };
        match from {
            Some(old) => plain(name, u64::from(*old)),
            None => format!("{} (new)", plain(name, offset)),
        }
    }
}
