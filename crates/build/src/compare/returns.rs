//! Functions that never return: a task that is in one never leaves the old version.

use iced_x86::FlowControl;

use super::code::{Code, decode, is_near_branch};
use super::module::{Meaning, Module, is_plain_constant};
use super::names;

/// How many instructions before a jump through a table its address is taken at most.
const REACH: usize = 12;

/// Whether a function goes round in a loop for ever: it calls something again and again, and no instruction leaves it
/// but calls. (What ends the process after a loop looks the same.)
pub(super) fn loops_for_ever(module: &Module<'_>, item: usize) -> bool {
    let Some(code) = decode(module, item) else {
        return false;
    };
    let mut calls_in_loop = false;
    for (step, here) in code.steps.iter().enumerate() {
        let ins = &here.ins;
        match ins.flow_control() {
            FlowControl::Return => return false,
            FlowControl::IndirectBranch if !through_table(module, &code, step) => return false,
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
                if is_near_branch(ins) =>
            {
                match leads(module, &code, step) {
                    Some(to) => {
                        calls_in_loop |=
                            to <= step && !ends(module, &code, to) && has_call(&code, to, step);
                    }
                    None => return false,
                }
            }
            _ => {}
        }
    }
    calls_in_loop
}

/// The step that a branch leads to, if it stays in the function; a part that was split off it counts as its end.
fn leads(module: &Module<'_>, code: &Code, step: usize) -> Option<usize> {
    let here = code.steps.get(step)?;
    let fields = code.fields(module, here)?;
    let to = fields
        .first()
        .map_or_else(|| code.branch(module, here), |f| f.meaning);
    let Meaning::Item(item, at) = to else {
        return None;
    };
    if item == code.item {
        let at = u32::try_from(at).ok()?;
        return Some(code.at.partition_point(|&a| a < at));
    }
    let own = module.item(code.item)?;
    let part = names::owner_of_part(&module.item(item)?.name)? == own.name;
    part.then_some(usize::MAX)
}

fn through_table(module: &Module<'_>, code: &Code, step: usize) -> bool {
    let before = code
        .steps
        .get(step.saturating_sub(REACH)..=step)
        .unwrap_or(&[]);
    before
        .iter()
        .filter_map(|s| code.fields(module, s))
        .flatten()
        .any(|field| {
            let Meaning::Anonymous(section, _) = field.meaning else {
                return false;
            };
            module.section(section).is_some_and(is_plain_constant)
        })
}

/// What a handler of exceptions ends with, often one for several: it leads out of the function.
const ENDS: &[&str] = &["_Unwind_Resume", "__cxa_throw", "__cxa_rethrow"];

/// Whether the code from a step on calls such a thing before it branches.
fn ends(module: &Module<'_>, code: &Code, from: usize) -> bool {
    let steps = code.steps.get(from..).unwrap_or(&[]);
    for here in steps {
        match here.ins.flow_control() {
            FlowControl::Next => {}
            FlowControl::Call | FlowControl::IndirectCall => {
                let fields = code.fields(module, here);
                let meaning = fields.and_then(|fields| fields.first().map(|f| f.meaning));
                if let Some(Meaning::Extern(symbol, _)) = meaning {
                    let symbol = module.image.symbols.get(symbol);
                    if symbol.is_some_and(|s| ENDS.contains(&s.name.as_str())) {
                        return true;
                    }
                }
            }
            _ => return false,
        }
    }
    false
}

fn has_call(code: &Code, from: usize, to: usize) -> bool {
    let steps = code.steps.get(from..=to).unwrap_or(&[]);
    steps.iter().any(|s| {
        matches!(
            s.ins.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        )
    })
}
