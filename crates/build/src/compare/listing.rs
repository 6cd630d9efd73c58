//! Instructions as people read them: operands that are relocated are called by what they refer to.

use std::cell::Cell;

use iced_x86::{
    Formatter as _, GasFormatter, Instruction, MemorySize, OpKind, SymbolResolver, SymbolResult,
};

use super::Side;
use super::code::{Code, Field, access, is_near_branch};
use super::dwarf::LineTable;
use super::lines::is_line;
use super::module::{Meaning, Module};
use super::pair::{Pair, bytes, content, is_string_section};
use super::plan::of_content;

/// Characters of a string or constant that are shown.
const SHOWN: usize = 120;
/// Addresses of a table that are shown.
const ENTRIES: usize = 8;

/// How a place within a function is called.
pub(super) trait Labels {
    /// `item` is one of the side's object.
    fn label(&self, side: Side, item: usize, offset: u64) -> String;
}

/// All places are alike.
pub(super) struct NoLabels;

impl Labels for NoLabels {
    fn label(&self, _: Side, _: usize, _: u64) -> String {
        ".".to_owned()
    }
}

/// An instruction in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spelled {
    pub text: String,
    /// The text, and what of the operands it does not show: equal where the instructions mean the same.
    pub key: String,
}

/// Puts the instructions of one side into words.
pub(super) struct Speller<'p, 'm, 'a> {
    pub pair: &'p Pair<'m, 'a>,
    pub side: Side,
    pub labels: &'p dyn Labels,
    /// The side's line table.
    pub lines: Option<&'p LineTable>,
    /// How much content may still be looked at: where it is used up, content is called by its place.
    pub budget: &'p Cell<u64>,
}

/// What an operand refers to, and what is not shown of it.
#[derive(Default)]
struct Name {
    text: String,
    rest: String,
}

impl Name {
    fn shown(text: String) -> Name {
        Name {
            text,
            rest: String::new(),
        }
    }

    fn cut(full: String, shown: usize) -> Name {
        match full.char_indices().nth(shown) {
            Some((at, _)) => Name {
                text: format!("{}...", full.get(..at).unwrap_or_default()),
                rest: full,
            },
            None => Name::shown(full),
        }
    }
}

/// The names of an instruction's operands.
#[derive(Default)]
struct Operands {
    displacement: Option<String>,
    immediate: Option<String>,
}

impl SymbolResolver for Operands {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let memory = operand.is_none_or(|o| instruction.op_kind(o) == OpKind::Memory);
        let name = if memory {
            self.displacement.as_ref()
        } else {
            self.immediate.as_ref()
        };
        name.map(|name| SymbolResult::with_str(address, name))
    }
}

impl Speller<'_, '_, '_> {
    fn module(&self) -> &Module<'_> {
        match self.side {
            Side::Original => self.pair.old,
            Side::Patched => self.pair.new,
        }
    }

    /// An instruction by its number.
    pub fn spell(&self, code: &Code, number: usize) -> Option<Spelled> {
        let step = code.steps.get(number)?;
        let module = self.module();
        let mut operands = Operands::default();
        let mut rest = String::new();
        let fields = code.fields(module, step).unwrap_or_default();
        for field in fields.iter().filter(|f| !is_mark(f)) {
            let name = self.name(field.meaning, Some(&step.ins), field.displacement);
            rest.push_str(&name.rest);
            let text = format!("{}{}", name.text, through(field.rela.r_type));
            if field.displacement {
                operands.displacement = Some(text);
            } else {
                operands.immediate = Some(text);
            }
        }
        if is_near_branch(&step.ins) && fields.is_empty() {
            let name = self.name(code.branch(module, step), None, false);
            operands.immediate = Some(name.text);
        }
        if step.ins.is_ip_rel_memory_operand() && !fields.iter().any(|f| f.displacement) {
            let to = step.ins.ip_rel_memory_address();
            let at = (code.start as i64).wrapping_add(to as i64);
            let name = self.name(module.at(code.section, at), Some(&step.ins), true);
            rest.push_str(&name.rest);
            operands.displacement = Some(name.text);
        }
        let is_line = operands.immediate.is_none() && is_line(module, self.lines, code, number);
        let text = format(&step.ins, operands);
        if is_line {
            // A number that changes with every line above.
            let line = Some("__LINE__".to_owned());
            let key = Operands {
                immediate: line,
                displacement: None,
            };
            let key = format(&step.ins, key);
            return Some(Spelled { text, key });
        }
        let key = if rest.is_empty() {
            text.clone()
        } else {
            format!("{text}\0{rest}")
        };
        Some(Spelled { text, key })
    }

    /// What something is called. `ins`: the instruction that refers to it, by its displacement or by another field.
    fn name(&self, meaning: Meaning, ins: Option<&Instruction>, displacement: bool) -> Name {
        let module = self.module();
        match meaning {
            Meaning::Extern(symbol, at) => {
                let symbol = module.image.symbols.get(symbol);
                Name::shown(plus(symbol.map_or("?", |s| s.name.as_str()), at))
            }
            Meaning::Absolute(value) => Name::shown(format!("{value:#x}")),
            Meaning::Item(number, at) => {
                let code = module.item(number).is_some_and(|i| i.kind.is_code());
                match u64::try_from(at) {
                    Ok(at) if code && at != 0 => {
                        Name::shown(self.labels.label(self.side, number, at))
                    }
                    _ => Name::shown(plus(&self.item(number), at)),
                }
            }
            Meaning::Piece(section, start, at) => {
                let start = i64::try_from(start).unwrap_or(-1);
                let piece = self.name(Meaning::Anonymous(section, start), None, false);
                Name {
                    text: plus(&piece.text, at),
                    ..piece
                }
            }
            Meaning::Anonymous(section, at) => {
                let access = ins.and_then(access).filter(|_| displacement);
                let at = u64::try_from(at).ok();
                let found = at.and_then(|at| self.content(section, at, access, ins));
                let unnamed = || {
                    let name = module.section(section).map_or("?", |s| s.name.as_str());
                    Name::shown(plus(name, at.unwrap_or(0) as i64))
                };
                found.unwrap_or_else(unnamed)
            }
        }
    }

    /// The name in the original. A constant whose content is another one is not what that has by this name.
    fn item(&self, number: usize) -> String {
        let own = self.module().item(number);
        let own = own.map_or_else(|| "?".to_owned(), |item| item.name.clone());
        if self.side == Side::Original {
            return own;
        }
        let Some(old) = self.pair.backward.get(number).copied().flatten() else {
            return own;
        };
        let name = self.pair.old.item(old).map_or(own, |old| old.name.clone());
        let (a, b) = (Meaning::Item(old, 0), Meaning::Item(number, 0));
        if self.pair.same(a, b, None, None) {
            name
        } else {
            format!("{name}[changed]")
        }
    }

    fn content(
        &self,
        number: usize,
        at: u64,
        access: Option<u64>,
        ins: Option<&Instruction>,
    ) -> Option<Name> {
        let module = self.module();
        let section = module.section(number)?;
        let found = content(module, (number, at), access)?;
        let spent = found.range.len.checked_add(1)?;
        self.budget.set(self.budget.get().checked_sub(spent)?);
        let data = bytes(module, found.range)?;
        if is_string_section(section) && access.is_none() && section.entsize <= 1 {
            let text = data.strip_suffix(&[0]).unwrap_or(data);
            let text = format!("\"{}\"", String::from_utf8_lossy(text).escape_debug());
            return Some(Name::cut(text, SHOWN));
        }
        let end = found.range.start.checked_add(found.range.len)?;
        let references = of_content(module, number, found.range.start, end);
        if !references.is_empty() {
            let names: Vec<String> = references
                .iter()
                .map(|reference| match reference.meaning {
                    // One constant may lead to the next, and so round.
                    Meaning::Anonymous(..) | Meaning::Piece(..) => "...".to_owned(),
                    other => self.name(other, None, false).text,
                })
                .collect();
            let shown = names.get(..ENTRIES.min(names.len()))?.join(" ");
            let more = if names.len() > ENTRIES { " ..." } else { "" };
            return Some(Name {
                text: format!("table{{{shown}{more}}}"),
                rest: names.join(" "),
            });
        }
        let size = ins.map_or(MemorySize::Unknown, Instruction::memory_size);
        let number = match (size, data) {
            (MemorySize::Float64, _) => data
                .first_chunk()
                .map(|b| f64::from_le_bytes(*b).to_string()),
            (MemorySize::Float32, _) => data
                .first_chunk()
                .map(|b| f32::from_le_bytes(*b).to_string()),
            _ => None,
        };
        let hex = || {
            let all: Vec<String> = data.iter().map(|b| format!("{b:02x}")).collect();
            all.join(" ")
        };
        let text = number.unwrap_or_else(hex);
        let name = Name::cut(text, SHOWN);
        Some(Name {
            text: format!("{{{}}}", name.text),
            rest: format!("{} {}", name.rest, found.before),
        })
    }
}

fn format(ins: &Instruction, operands: Operands) -> String {
    let mut formatter = GasFormatter::with_options(Some(Box::new(operands)), None);
    let options = formatter.options_mut();
    options.set_space_after_operand_separator(false);
    options.set_first_operand_char_index(8);
    options.set_uppercase_hex(false);
    options.set_signed_immediate_operands(true);
    options.set_rip_relative_addresses(true);
    let mut text = String::new();
    formatter.format(ins, &mut text);
    // What a constant is needs no address.
    for end in ["\"", "}", "..."] {
        text = text.replace(&format!("{end}(%rip)"), end);
    }
    text.trim_end().to_owned()
}

fn plus(name: &str, at: i64) -> String {
    match at {
        0 => name.to_owned(),
        1.. => format!("{name}+{at:#x}"),
        _ => format!("{name}-{:#x}", at.unsigned_abs()),
    }
}

/// R_X86_64_TLSDESC_CALL fills nothing.
fn is_mark(field: &Field<'_>) -> bool {
    field.rela.r_type == 35
}

/// What a reference goes through, where it is not the thing itself.
fn through(r_type: u32) -> &'static str {
    match r_type {
        // GOTPCREL, GOTPCRELX, REX_GOTPCRELX
        9 | 41 | 42 => "@GOTPCREL",
        19 => "@tlsgd",
        20 => "@tlsld",
        21 => "@dtpoff",
        22 => "@gottpoff",
        23 => "@tpoff",
        34 => "@tlsdesc",
        _ => "",
    }
}
