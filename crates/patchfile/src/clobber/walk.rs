//! What callers do after a call: whether they still use what they had in registers.

use std::collections::HashMap;

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::callers::{BUDGET, Callers, Goes, MAX_FUNCTIONS};
use super::code::{CALL_CLOBBERED, Set, bit, effect};
use super::externals;

/// How deep a register is followed into functions that get it as an argument.
const DEPTH: usize = 4;
/// rdi, rsi, rdx, rcx, r8, r9.
const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// A register that is read after a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    /// The call.
    pub site: u64,
    /// What is read.
    pub register: Register,
}

/// Whether a caller of `entry`, or a caller of that which hands the call on, reads one of `mask` after it.
pub(super) fn relies(callers: &Callers<'_, '_>, entry: u64, mask: Set) -> Option<Use> {
    let mut work = vec![(entry, mask)];
    let mut seen: HashMap<u64, Set> = HashMap::new();
    let mut walk = Walk::new(callers);
    while let Some((entry, mask)) = work.pop() {
        let before = seen.entry(entry).or_default();
        let mask = mask & !*before;
        *before |= mask;
        if mask == 0 || seen.len() > MAX_FUNCTIONS {
            continue;
        }
        for (site, call) in callers.sites(entry) {
            let mut left = mask;
            if call {
                let (read, at_return) = walk.after(site.wrapping_add(5), mask, 0);
                // The scan for opcodes may have found one inside an instruction.
                if let Some(register) = read.filter(|_| callers.is_instruction(site)) {
                    return Some(Use { site, register });
                }
                left = at_return;
            }
            // What the caller changes itself is known to its own callers.
            if let Some(function) = callers.function_at(site).filter(|_| left != 0) {
                left &= !walk.changed_in(function.start, function.end);
                work.push((function.start, left));
            }
        }
    }
    None
}

/// A walk over the paths of the target's code, with what it has learned.
struct Walk<'c, 't, 'a> {
    callers: &'c Callers<'t, 'a>,
    factory: InstructionInfoFactory,
    changed: HashMap<u64, Set>,
    /// What functions read of a set of registers, at a depth.
    entries: HashMap<(u64, Set, usize), Option<Register>>,
    /// Whether functions ever return.
    returning: HashMap<u64, bool>,
    budget: usize,
}

impl<'c, 't, 'a> Walk<'c, 't, 'a> {
    fn new(callers: &'c Callers<'t, 'a>) -> Self {
        let factory = InstructionInfoFactory::new();
        Walk {
            callers,
            factory,
            changed: HashMap::new(),
            entries: HashMap::new(),
            returning: HashMap::new(),
            budget: BUDGET,
        }
    }

    fn changed_in(&mut self, start: u64, end: u64) -> Set {
        let callers = self.callers;
        *self
            .changed
            .entry(start)
            .or_insert_with(|| callers.clobbered_by(start, end))
    }

    /// Follows all paths from `start`: a register of `mask` that is read before it is written, and those that are still
    /// not written where a path returns. `depth` 0 is the caller, more is a function that it calls.
    fn after(&mut self, start: u64, mask: Set, depth: usize) -> (Option<Register>, Set) {
        let callers = self.callers;
        let range = callers
            .function_at(start.wrapping_sub(u64::from(depth == 0)))
            .copied();
        let mut work = vec![(start, mask)];
        let mut seen: HashMap<u64, Set> = HashMap::new();
        let mut at_return = 0;
        while let Some((at, mask)) = work.pop() {
            let before = seen.entry(at).or_default();
            let mask = mask & !*before;
            *before |= mask;
            self.budget = self.budget.saturating_sub(1);
            if mask == 0 || self.budget == 0 {
                continue;
            }
            let Some(instruction) = callers.decode(at) else {
                continue;
            };
            let mut effect = effect(&mut self.factory, &instruction);
            if depth != 0 {
                let formal = extracted(&instruction);
                effect.reads &= !formal;
                effect.sets |= formal;
            }
            let read = effect.reads & mask;
            if read != 0 && !only_saves(&instruction, depth != 0) {
                return (register(&instruction, &mut self.factory, read), at_return);
            }
            let left = mask & !effect.sets;
            let next = instruction.next_ip();
            match callers.goes(&instruction) {
                Goes::On if range.is_some_and(|r| next == r.end) => {}
                Goes::On => work.push((next, left)),
                Goes::Jumps(to, also_on) => {
                    work.push((to, left));
                    if also_on {
                        work.push((next, left));
                    }
                }
                Goes::Calls {
                    entry,
                    tail,
                    also_on,
                } => {
                    let (read, left) = self.call(entry, left, depth);
                    if read.is_some() {
                        return (read, at_return);
                    }
                    if tail {
                        at_return |= left;
                    }
                    if also_on && range.is_none_or(|r| next != r.end) {
                        work.push((next, left));
                    }
                }
                Goes::CallsOut { name, tail } => {
                    let count = name.and_then(externals::arguments).unwrap_or(0);
                    let read = ARGUMENTS
                        .into_iter()
                        .take(count)
                        .find(|r| bit(*r) & left != 0);
                    if read.is_some() {
                        return (read, at_return);
                    }
                    let ends = tail || name.is_some_and(externals::never_returns);
                    // Nothing call-clobbered survives a call that the compiler cannot see.
                    if !ends && left & !CALL_CLOBBERED != 0 {
                        work.push((next, left & !CALL_CLOBBERED));
                    }
                }
                Goes::Returns => at_return |= left,
                Goes::Ends => {}
            }
        }
        (None, at_return)
    }

    /// A call inside the object: what it reads of `mask`, and what it leaves alone.
    fn call(&mut self, entry: u64, mask: Set, depth: usize) -> (Option<Register>, Set) {
        if mask == 0 {
            return (None, 0);
        }
        let Some(function) = self.callers.function_at(entry).copied() else {
            return (None, 0);
        };
        let (start, end) = (function.start, function.end);
        let callers = self.callers;
        if !*self
            .returning
            .entry(start)
            .or_insert_with(|| callers.returns(start, end))
        {
            return (None, 0);
        }
        if depth < DEPTH {
            let key = (entry, mask, depth);
            let read = match self.entries.get(&key) {
                Some(read) => *read,
                None => {
                    let (read, _) = self.after(entry, mask, depth.saturating_add(1));
                    self.entries.insert(key, read);
                    read
                }
            };
            if read.is_some() {
                return (read, 0);
            }
        }
        (None, mask & !self.changed_in(function.start, function.end))
    }
}

/// A `push` of a call-clobbered register makes room; and a variadic callee stores all registers that might be arguments.
fn only_saves(instruction: &Instruction, callee: bool) -> bool {
    let stack = matches!(instruction.memory_base(), Register::RSP | Register::RBP);
    instruction.mnemonic() == Mnemonic::Push
        || (callee
            && stack
            && instruction.op0_kind() == OpKind::Memory
            && instruction.op1_kind() == OpKind::Register
            && matches!(
                instruction.mnemonic(),
                Mnemonic::Mov | Mnemonic::Movaps | Mnemonic::Vmovaps
            ))
}

/// What a callee does to a register that was no argument, since it has no value there: gcc takes the upper half of a
/// vector by `movhlps`, and loads 16 bits by `pinsrw $0`, into one that it uses nothing else of.
fn extracted(instruction: &Instruction) -> Set {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let takes = match instruction.mnemonic() {
        Mnemonic::Movhlps => first != second,
        Mnemonic::Pinsrw => {
            instruction.op1_kind() == OpKind::Memory && instruction.immediate(2) == 0
        }
        _ => false,
    };
    if takes { bit(first) } else { 0 }
}

/// The register of `set` that an instruction reads.
fn register(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
    set: Set,
) -> Option<Register> {
    let used = factory.info(instruction).used_registers();
    used.iter()
        .map(|u| u.register().full_register())
        .find(|r| bit(*r) & set != 0)
}
