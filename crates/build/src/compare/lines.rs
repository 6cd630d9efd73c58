//! Line numbers in code: `__LINE__`, as assertions pass it on, changes with every line above and is no change.
//!
//! An immediate that differs is a line number if that can be shown: the call that takes it is one of the C library's
//! reports of a failed assertion; or the line tables of both objects give the same line for the call, or lines as far
//! from it, and the call takes a file's or function's name too; or the callee takes a file's or function's name, and what
//! its calls in the whole object pass in this place are numbers that are all different and keep their order.

use std::collections::HashMap;

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::code::{Code, decode, is_near_branch};
use super::dwarf::LineTable;
use super::module::{Meaning, Module};
use super::names;
use super::pair::{Pair, Range, bytes, content};

/// How many instructions may lie between a number and the call that takes it.
const REACH: usize = 24;
/// How far `__LINE__` may be from the line of the call, where the call takes several lines.
const SPREAD: i64 = 16;

/// A call's argument, as a name that is the same in both objects.
type Slot = (String, Register);

/// A number that a call takes.
struct Argument {
    slot: Slot,
    value: i64,
    /// The call takes a file's or function's name as well.
    named: bool,
    /// The offset of the call in its function.
    call: u64,
}

type Candidate = (usize, usize, Vec<usize>);

pub(super) struct Lines<'p, 'm, 'a> {
    pair: &'p Pair<'m, 'a>,
    same: &'p [(usize, usize)],
    candidates: &'p [Candidate],
    tables: Option<(LineTable, LineTable)>,
    /// What is passed in each slot, old and new, over all calls; filled when first asked.
    slots: Option<HashMap<Slot, Vec<(i64, i64)>>>,
}

impl<'p, 'm, 'a> Lines<'p, 'm, 'a> {
    /// `same`: functions without a difference; `candidates`: those that differ in immediates only.
    pub fn new(
        pair: &'p Pair<'m, 'a>,
        same: &'p [(usize, usize)],
        candidates: &'p [Candidate],
    ) -> Self {
        let tables = if candidates.is_empty() {
            None
        } else {
            LineTable::read(pair.old).zip(LineTable::read(pair.new))
        };
        Lines {
            pair,
            same,
            candidates,
            tables,
            slots: None,
        }
    }

    /// The candidates that have a difference that may be no line number, with its place.
    pub fn unproven(mut self) -> Vec<(usize, usize, (u64, u64))> {
        let mut unproven = Vec::new();
        for (old, new, steps) in self.candidates {
            let (Some(a), Some(b)) = (decode(self.pair.old, *old), decode(self.pair.new, *new))
            else {
                unproven.push((*old, *new, (0, 0)));
                continue;
            };
            for &step in steps {
                if !self.is_line(&a, &b, step) {
                    let at = |code: &Code| code.at.get(step).copied().unwrap_or(0).into();
                    unproven.push((*old, *new, (at(&a), at(&b))));
                    break;
                }
            }
        }
        unproven
    }

    fn is_line(&mut self, a: &Code, b: &Code, step: usize) -> bool {
        let old = argument(self.pair.old, a, step);
        let new = argument(self.pair.new, b, step);
        let (Some(old), Some(new)) = (old, new) else {
            return false;
        };
        if old.slot != new.slot || old.value <= 0 || new.value <= 0 {
            return false;
        }
        if is_assertion(&old.slot) {
            return true;
        }
        if let Some((x, y)) = &self.tables {
            let line = |t: &LineTable, code: &Code, at: u64| {
                t.line(code.section, code.start.saturating_add(at))
            };
            let (x, y) = (line(x, a, old.call), line(y, b, new.call));
            if let (Some(x), Some(y)) = (x, y) {
                let (x, y) = (
                    old.value.wrapping_sub(x as i64),
                    new.value.wrapping_sub(y as i64),
                );
                return x == y && (x == 0 || old.named && x.abs() <= SPREAD);
            }
        }
        old.named && self.keeps_order(&old.slot)
    }

    /// Whether all that is passed in a slot are different numbers that keep their order.
    fn keeps_order(&mut self, slot: &Slot) -> bool {
        if self.slots.is_none() {
            self.slots = Some(self.all_slots());
        }
        let Some(seen) = self.slots.as_ref().and_then(|s| s.get(slot)) else {
            return false;
        };
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        let rising = |w: &[(i64, i64)]| matches!(w, [a, b] if a.0 < b.0 && a.1 < b.1);
        sorted.len() >= 3 && sorted.windows(2).all(rising)
    }

    fn all_slots(&self) -> HashMap<Slot, Vec<(i64, i64)>> {
        let mut slots: HashMap<Slot, Vec<(i64, i64)>> = HashMap::new();
        let candidates = self.candidates.iter().map(|(old, new, _)| (*old, *new));
        for (old, new) in self.same.iter().copied().chain(candidates) {
            let (Some(a), Some(b)) = (decode(self.pair.old, old), decode(self.pair.new, new))
            else {
                continue;
            };
            for step in 0..a.steps.len() {
                let old = argument(self.pair.old, &a, step);
                if let Some(old) = old.filter(|o| o.named)
                    && let Some(new) = argument(self.pair.new, &b, step)
                {
                    slots
                        .entry(old.slot)
                        .or_default()
                        .push((old.value, new.value));
                }
            }
        }
        slots
    }
}

/// Whether a number is the line of the call that takes it, by what one of the objects says.
pub(super) fn is_line(
    module: &Module<'_>,
    table: Option<&LineTable>,
    code: &Code,
    step: usize,
) -> bool {
    let Some(argument) = argument(module, code, step) else {
        return false;
    };
    let call = code.start.saturating_add(argument.call);
    let line = table.and_then(|table| table.line(code.section, call));
    is_assertion(&argument.slot) || line.is_some_and(|line| line as i64 == argument.value)
}

/// The line in the C library's reports of failed assertions.
fn is_assertion((callee, register): &Slot) -> bool {
    let known = [
        "__assert_fail",
        "__assert",
        "__assert_perror_fail",
        "__assert_rtn",
    ];
    known.contains(&callee.as_str()) && *register == Register::RDX
}

/// The argument that an instruction loads with a number, if it does.
fn argument(module: &Module<'_>, code: &Code, step: usize) -> Option<Argument> {
    let (register, value, length) = number(code, step)?;
    let mut named = false;
    let mut at = step.checked_add(length)?;
    let mut callee = None;
    for _ in 0..REACH {
        let here = code.steps.get(at)?;
        let ins = &here.ins;
        let fields = code.fields(module, here)?;
        match ins.flow_control() {
            FlowControl::Next => {
                if loaded(ins) == Some(register) {
                    return None;
                }
                named |=
                    is_argument(ins) && fields.iter().any(|f| is_name(module, code, f.meaning));
            }
            FlowControl::Call | FlowControl::UnconditionalBranch if is_near_branch(ins) => {
                let to = fields
                    .first()
                    .map_or_else(|| code.branch(module, here), |f| f.meaning);
                match to {
                    Meaning::Item(own, offset) if own == code.item && !ins.is_call_near() => {
                        let offset = u32::try_from(offset).ok()?;
                        at = code.at.partition_point(|&a| a < offset);
                        continue;
                    }
                    to => callee = Some((name_of(module, to)?, u64::from(here.at))),
                }
            }
            FlowControl::IndirectCall => {
                // Through the GOT.
                let field = fields.first()?;
                callee = Some((name_of(module, field.meaning)?, u64::from(here.at)));
            }
            _ => return None,
        }
        if callee.is_some() {
            break;
        }
        at = at.checked_add(1)?;
    }
    let (callee, call) = callee?;
    for here in code
        .steps
        .get(step.saturating_sub(REACH)..step)?
        .iter()
        .rev()
    {
        if here.ins.flow_control() != FlowControl::Next {
            break;
        }
        named |= is_argument(&here.ins)
            && code
                .fields(module, here)?
                .iter()
                .any(|f| is_name(module, code, f.meaning));
    }
    Some(Argument {
        slot: (callee, register),
        value,
        named,
        call,
    })
}

/// The argument register that is loaded with a number here, the number, and how many instructions that takes: for small
/// code it is pushed and popped.
fn number(code: &Code, step: usize) -> Option<(Register, i64, usize)> {
    let ins = code.steps.get(step)?.ins;
    if ins.mnemonic() == Mnemonic::Push {
        let value = match ins.op0_kind() {
            OpKind::Immediate8to64 => ins.immediate8to64(),
            OpKind::Immediate32to64 => ins.immediate32to64(),
            _ => return None,
        };
        let next = code.steps.get(step.checked_add(1)?)?.ins;
        let register = argument_register(&next)?;
        return (next.mnemonic() == Mnemonic::Pop).then_some((register, value, 2));
    }
    let value = match ins.op1_kind() {
        OpKind::Immediate32 | OpKind::Immediate32to64 => i64::from(ins.immediate32() as i32),
        _ => return None,
    };
    Some((loaded(&ins)?, value, 1))
}

/// The argument register that an instruction loads.
fn loaded(ins: &Instruction) -> Option<Register> {
    argument_register(ins).filter(|_| ins.mnemonic() == Mnemonic::Mov)
}

fn argument_register(ins: &Instruction) -> Option<Register> {
    use Register as R;
    let register = ins.op0_register().full_register();
    let arguments = [R::RDI, R::RSI, R::RDX, R::RCX, R::R8, R::R9];
    arguments.contains(&register).then_some(register)
}

fn is_argument(ins: &Instruction) -> bool {
    loaded(ins).is_some() || ins.mnemonic() == Mnemonic::Lea
}

fn name_of(module: &Module<'_>, to: Meaning) -> Option<String> {
    match to {
        Meaning::Extern(symbol, 0) => Some(module.image.symbols.get(symbol)?.name.clone()),
        Meaning::Item(item, 0) => Some(module.item(item)?.key.clone()),
        _ => None,
    }
}

/// Whether a string is the name of a source file, or of the function itself as `__func__` gives it.
fn is_name(module: &Module<'_>, code: &Code, to: Meaning) -> bool {
    let range = match to {
        Meaning::Item(item, 0) => {
            let Some(item) = module.item(item) else {
                return false;
            };
            if ["__func__", "__FUNCTION__", "__PRETTY_FUNCTION__"]
                .iter()
                .any(|n| item.key.starts_with(n))
            {
                return true;
            }
            item.section.map(|section| Range {
                section,
                start: item.start,
                len: item.size,
            })
        }
        Meaning::Anonymous(section, at) => {
            let at = u64::try_from(at).ok();
            at.and_then(|at| content(module, (section, at), None))
                .map(|c| c.range)
        }
        Meaning::Piece(section, start, at) => start
            .checked_add_signed(at)
            .and_then(|at| content(module, (section, at), None))
            .map(|c| c.range),
        _ => None,
    };
    let Some(text) = range
        .filter(|r| r.len <= 4096)
        .and_then(|r| bytes(module, r))
    else {
        return false;
    };
    let Some(text) = text
        .split(|&b| b == 0)
        .next()
        .and_then(|t| std::str::from_utf8(t).ok())
    else {
        return false;
    };
    let endings = [
        ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".inc", ".y", ".l", ".C",
    ];
    let file = endings
        .iter()
        .any(|e| text.len() > e.len() && text.ends_with(e))
        && !text.contains([' ', '%', '\n']);
    let function = module
        .item(code.item)
        .is_some_and(|f| names::source_name(&f.name) == text);
    file || function
}
