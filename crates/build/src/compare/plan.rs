//! What of the patched object a patch needs.

use std::collections::{BTreeMap, BTreeSet};

use super::code::{Code, Step, access, decode, is_near_branch};
use super::correlate::meant;
use super::error::Error;
use super::frames::Frames;
use super::module::{Kind, Meaning, Module, is_constant, is_pc_relative};
use super::pair::{Pair, Range, content, is_exceptions, is_private_constant};
use livegraft_patchfile::elf::Rela;

/// What is taken over, and what it replaces.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// For each item of the patched object its counterpart.
    pub backward: Vec<Option<usize>>,
    /// Items of the patched object that come along: changed and new functions, new variables and constants.
    pub items: BTreeSet<usize>,
    /// Which of them replace a function: those that are called, not the parts that are jumped to.
    pub replaced: BTreeSet<usize>,
    /// Functions of the original that became one with another one, and what they are now.
    pub merged: Vec<(usize, usize)>,
    /// Stretches of anonymous content by section: start to end, disjoint.
    pub content: BTreeMap<usize, BTreeMap<u64, u64>>,
}

/// R_X86_64_PLT32.
const PLT32: u32 = 4;

/// Something refers to something.
pub(super) struct Reference {
    pub rela: Rela,
    pub meaning: Meaning,
    /// What the addend lacks: the meaning is that of the addend plus this.
    pub from: i64,
    /// Bytes loaded, or `None` if the address is taken.
    pub access: Option<u64>,
}

impl Plan {
    /// The counterpart of an item of the patched object.
    pub fn old_of(&self, new: usize) -> Option<usize> {
        self.backward.get(new).copied().flatten()
    }

    /// Takes over the functions, and what they need that the target does not have.
    pub fn complete(
        &mut self,
        pair: &Pair<'_, '_>,
        frames: &Frames,
        functions: &BTreeSet<usize>,
    ) -> Result<(), Error> {
        let module = pair.new;
        self.backward.clone_from(&pair.backward);
        let mut work: Vec<usize> = functions.iter().copied().collect();
        self.items.extend(&work);
        let mut content_work: Vec<(usize, u64, u64)> = Vec::new();
        loop {
            let references = if let Some(item) = work.pop() {
                if let Some(table) = frames.table(module, item) {
                    content_work.push((table.section, table.start, table.len));
                }
                of_item(module, item)
            } else if let Some((section, start, len)) = content_work.pop() {
                if !self.add_content(section, start, len) {
                    continue;
                }
                of_content(module, section, start, start.saturating_add(len))
            } else {
                return Ok(());
            };
            for reference in references {
                match reference.meaning {
                    Meaning::Item(to, _) if self.comes_along(pair, to) && self.items.insert(to) => {
                        work.push(to)
                    }
                    Meaning::Anonymous(section, at) => {
                        let at = u64::try_from(at).ok();
                        let range =
                            at.and_then(|at| content(module, (section, at), reference.access));
                        let Some(range) = range.map(|c| c.range) else {
                            return Err(unnamed(module, section));
                        };
                        content_work.push((range.section, range.start, range.len));
                    }
                    Meaning::Piece(section, start, at) => {
                        let piece = content(module, (section, start), None).map(|c| c.range);
                        // Whatever is loaded must come along.
                        let whole = |r: &Range| {
                            reference.access.is_none_or(|len| {
                                let from = start.checked_add_signed(at);
                                let to = from.and_then(|from| from.checked_add(len));
                                from >= Some(r.start)
                                    && to.is_some_and(|to| to <= r.start.saturating_add(r.len))
                            })
                        };
                        let Some(range) = piece.filter(whole) else {
                            return Err(unnamed(module, section));
                        };
                        content_work.push((range.section, range.start, range.len));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether something that is referred to is not in the target.
    fn comes_along(&self, pair: &Pair<'_, '_>, to: usize) -> bool {
        let Some(item) = pair.new.item(to) else {
            return false;
        };
        let Some(old) = pair.old_of(to) else {
            return true;
        };
        if item.kind.is_code() {
            return false;
        }
        // A pointer that every object has for itself.
        if item.name.starts_with("DW.ref.") {
            return true;
        }
        let constant = item
            .section
            .and_then(|s| pair.new.section(s))
            .is_some_and(is_constant);
        // Tables and type information that every object may define: the loader takes the program's own.
        if item.shared && constant && item.kind == Kind::Variable {
            return true;
        }
        is_private_constant(pair.new, item)
            && !pair.same(Meaning::Item(old, 0), Meaning::Item(to, 0), None, None)
    }

    /// Adds a stretch; false if all of it was there.
    fn add_content(&mut self, section: usize, start: u64, len: u64) -> bool {
        let stretches = self.content.entry(section).or_default();
        let mut end = start.saturating_add(len);
        let mut begin = start;
        if let Some((_, &known)) = stretches.range(..=start).next_back()
            && known >= end
        {
            return false;
        }
        // Overlapping stretches become one, so that each byte is there once.
        while let Some((&s, &e)) = stretches.range(..end).next_back()
            && e > begin
        {
            stretches.remove(&s);
            begin = begin.min(s);
            end = end.max(e);
        }
        stretches.insert(begin, end);
        true
    }
}

fn unnamed(module: &Module<'_>, section: usize) -> Error {
    let what = module
        .section(section)
        .map_or("nothing", |s| s.name.as_str());
    Error::Unnamed {
        function: "the patch".to_owned(),
        what: format!("a place in section `{what}` that no symbol names"),
    }
}

/// All that a function or a variable refers to through relocations.
pub(super) fn of_item(module: &Module<'_>, number: usize) -> Vec<Reference> {
    let Some(item) = module.item(number) else {
        return Vec::new();
    };
    if !item.kind.is_code() {
        let end = item.start.saturating_add(item.size);
        return item
            .section
            .map(|s| of_content(module, s, item.start, end))
            .unwrap_or_default();
    }
    let mut references = Vec::new();
    let mut resolved = Vec::new();
    if let Some(code) = decode(module, number) {
        for step in &code.steps {
            let fields = code.fields(module, step);
            let here = code.start.wrapping_add(u64::from(step.at));
            let end = here.wrapping_add(step.ins.len() as u64);
            if fields.as_ref().is_some_and(Vec::is_empty) {
                resolved.extend(branch_out(module, &code, step, here));
            }
            for field in fields.into_iter().flatten() {
                let relative = is_pc_relative(field.rela.r_type);
                let from = end.wrapping_sub(field.rela.offset) as i64;
                references.push(Reference {
                    rela: *field.rela,
                    meaning: field.meaning,
                    from: if relative { from } else { 0 },
                    access: access(&step.ins).filter(|_| field.displacement),
                });
            }
        }
    }
    // Whatever did not fit an instruction counts as it stands.
    let relas = module.relas_of(item);
    if references.len() != relas.len() {
        references.clear();
        references.extend(relas.iter().map(|rela| Reference {
            rela: *rela,
            meaning: meant(module, rela),
            from: if is_pc_relative(rela.r_type) { 4 } else { 0 },
            access: None,
        }));
    }
    references.append(&mut resolved);
    references
}

/// A branch to another function of the section that the assembler has resolved, as a relocation would say it. A short one
/// has no room for that.
fn branch_out(module: &Module<'_>, code: &Code, step: &Step, here: u64) -> Option<Reference> {
    let size = module.item(code.item)?.size;
    let outside = is_near_branch(&step.ins) && step.ins.near_branch_target() >= size;
    let wide = step.offsets.has_immediate() && step.offsets.immediate_size() == 4;
    (outside && wide).then(|| Reference {
        rela: Rela {
            offset: here.wrapping_add(step.offsets.immediate_offset() as u64),
            r_type: PLT32,
            symbol: 0,
            addend: 0,
            via: 0,
        },
        meaning: code.branch(module, step),
        from: 4,
        access: None,
    })
}

/// What a stretch of data refers to; distances count from its start.
pub(super) fn of_content(
    module: &Module<'_>,
    section: usize,
    start: u64,
    end: u64,
) -> Vec<Reference> {
    let relas = module.relas(section, start, end);
    let exceptions = module.section(section).is_some_and(is_exceptions);
    let reference = |rela: &Rela| {
        let from = if is_pc_relative(rela.r_type) && !exceptions {
            start.wrapping_sub(rela.offset) as i64
        } else {
            0
        };
        Reference {
            rela: *rela,
            meaning: module.meaning(rela.symbol, rela.addend.wrapping_add(from)),
            from,
            access: None,
        }
    };
    relas.iter().map(reference).collect()
}
