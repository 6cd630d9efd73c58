//! The callers of a function in the target's file, and what they do after the call.

use std::collections::{HashMap, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
    Register,
};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSymbol as _, ObjectSymbolTable as _};

use super::code::{CALL_CLOBBERED, Set, bit, effect};
use super::externals;
use super::stack::Frames;
use crate::{SymbolKind, TargetElf};

/// Instructions that one check may look at; more is a caller of a size that no compiler makes.
const BUDGET: usize = 2_000_000;
/// Functions that one check may look at, callers of callers and what they call included.
const MAX_FUNCTIONS: usize = 1000;
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

/// A range of code that belongs to one function.
#[derive(Debug, Clone, Copy)]
struct Function<'a> {
    start: u64,
    end: u64,
    name: Option<&'a str>,
}

/// Where control goes from an instruction.
enum Goes<'n> {
    On,
    /// To `.0`, and on if `.1`.
    Jumps(u64, bool),
    /// Calls or tail-jumps to a function of the object.
    Calls {
        entry: u64,
        tail: bool,
        also_on: bool,
    },
    /// The same to a function of another one, if its name is known.
    CallsOut {
        name: Option<&'n str>,
        tail: bool,
    },
    Returns,
    Ends,
}

pub(super) struct Callers<'t, 'a> {
    target: &'t TargetElf<'a>,
    frames: Option<Frames<'a>>,
    functions: Vec<Function<'a>>,
    /// Direct branches: (where to, from where), sorted.
    branches: Vec<(u64, u64)>,
    /// Names by the address of their GOT slot.
    slots: HashMap<u64, String>,
}

impl<'t, 'a> Callers<'t, 'a> {
    pub fn new(target: &'t TargetElf<'a>) -> Self {
        let frames = Frames::new(target);
        let mut functions: Vec<Function<'a>> = target
            .symbols
            .iter()
            .filter(|s| s.kind == SymbolKind::Function && s.size != 0)
            .map(|s| Function {
                start: s.svma,
                end: s.svma.saturating_add(s.size),
                name: Some(s.name),
            })
            .collect();
        functions.sort_by_key(|f| f.start);
        functions.dedup_by_key(|f| f.start);
        let named = functions.len();
        for (start, end) in frames.iter().flat_map(Frames::ranges) {
            let known = functions.get(..named).unwrap_or_default();
            let before = known.partition_point(|f| f.start <= start).checked_sub(1);
            if before
                .and_then(|i| known.get(i))
                .is_none_or(|f| f.end <= start)
            {
                functions.push(Function {
                    start,
                    end,
                    name: None,
                });
            }
        }
        functions.sort_by_key(|f| f.start);
        let branches = branches(target);
        Callers {
            target,
            frames,
            functions,
            branches,
            slots: slots(target),
        }
    }

    fn function_at(&self, address: u64) -> Option<&Function<'a>> {
        let next = self.functions.partition_point(|f| f.start <= address);
        self.functions
            .get(next.checked_sub(1)?)
            .filter(|f| address < f.end)
    }

    /// How messages call the function that contains an address.
    pub fn name_at(&self, address: u64) -> String {
        match self.function_at(address) {
            Some(Function {
                name: Some(name), ..
            }) => format!("`{name}`"),
            Some(Function { start, .. }) => format!("the function at {start:#x}"),
            None => "unknown code".to_owned(),
        }
    }

    /// The calls and jumps to an address: site and whether it is a call.
    fn sites(&self, entry: u64) -> impl Iterator<Item = (u64, bool)> + '_ {
        let from = self.branches.partition_point(|b| b.0 < entry);
        let sites = self.branches.get(from..).unwrap_or_default();
        sites
            .iter()
            .take_while(move |b| b.0 == entry)
            .map(|&(_, site)| (site, self.target.bytes_at(site, 1) == Some(&[0xe8])))
    }

    /// A call of `entry` at which the stack is not aligned.
    pub fn misaligned(&self, entry: u64) -> Option<u64> {
        let frames = self.frames.as_ref()?;
        self.sites(entry)
            .filter(|(site, call)| *call && self.is_instruction(*site))
            .find_map(|(site, _)| frames.is_misaligned(site).then_some(site))
    }

    /// Whether an instruction starts at an address; true if its function is unknown.
    fn is_instruction(&self, address: u64) -> bool {
        let Some(function) = self.function_at(address) else {
            return true;
        };
        let size = address.saturating_sub(function.start);
        let Some(code) = self.target.bytes_at(function.start, size) else {
            return false;
        };
        let mut decoder = Decoder::with_ip(64, code, function.start, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                return false;
            }
        }
        decoder.ip() == address
    }

    fn decode(&self, address: u64) -> Option<Instruction> {
        let code = (1..=15)
            .rev()
            .find_map(|n| self.target.bytes_at(address, n))?;
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        Some(decoder.decode()).filter(|i| !i.is_invalid())
    }

    /// What a function changes by itself or through direct calls, as its compiler may have known it.
    pub fn clobbered_by(&self, start: u64, end: u64) -> Set {
        let mut set = 0;
        let mut work = vec![(start, end)];
        let mut seen = HashSet::new();
        let mut factory = InstructionInfoFactory::new();
        while let Some((start, end)) = work.pop() {
            if !seen.insert(start) {
                continue;
            }
            if seen.len() > MAX_FUNCTIONS || set & CALL_CLOBBERED == CALL_CLOBBERED {
                return set;
            }
            let size = end.saturating_sub(start).min(BUDGET as u64);
            let Some(code) = self.target.bytes_at(start, size) else {
                continue;
            };
            let mut before = Instruction::default();
            for instruction in Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter() {
                if instruction.is_invalid() {
                    break;
                }
                let switch = is_switch(&before, &instruction);
                before = instruction;
                set |= effect(&mut factory, &instruction).changes;
                match self.goes(&instruction) {
                    Goes::Calls { entry, .. } => match self.function_at(entry) {
                        Some(f) => work.push((f.start, f.end)),
                        None => set |= CALL_CLOBBERED,
                    },
                    Goes::CallsOut { .. } if !switch => set |= CALL_CLOBBERED,
                    Goes::Jumps(to, _) if !(start..end).contains(&to) => {
                        if let Some(f) = self.function_at(to) {
                            work.push((f.start, f.end));
                        }
                    }
                    _ => {}
                }
            }
        }
        set
    }

    /// Whether a caller of `entry`, or a caller of that which hands the call on, reads one of `mask` after it.
    pub fn relies(&self, entry: u64, mask: Set) -> Option<Use> {
        let mut work = vec![(entry, mask)];
        let mut seen: HashMap<u64, Set> = HashMap::new();
        let mut walk = Walk::new(self);
        while let Some((entry, mask)) = work.pop() {
            let before = seen.entry(entry).or_default();
            let mask = mask & !*before;
            *before |= mask;
            if mask == 0 || seen.len() > MAX_FUNCTIONS {
                continue;
            }
            for (site, call) in self.sites(entry) {
                let mut left = mask;
                if call {
                    let (read, at_return) = walk.after(site.wrapping_add(5), mask, 0);
                    // The scan for opcodes may have found one inside an instruction.
                    if let Some(register) = read.filter(|_| self.is_instruction(site)) {
                        return Some(Use { site, register });
                    }
                    left = at_return;
                }
                // What the caller changes itself is known to its own callers.
                if let Some(function) = self.function_at(site).filter(|_| left != 0) {
                    left &= !walk.changed_in(function.start, function.end);
                    work.push((function.start, left));
                }
            }
        }
        None
    }

    fn goes(&self, instruction: &Instruction) -> Goes<'_> {
        let near = instruction.op0_kind() == OpKind::NearBranch64;
        let to = instruction.near_branch_target();
        // A part that the compiler split off is not a function of its own.
        let entry = |to: u64| {
            self.function_at(to).is_some_and(|f| {
                let part = f.name.is_some_and(|n| n.contains(".cold"));
                f.start == to && !part
            }) && self
                .function_at(instruction.ip())
                .is_none_or(|f| f.start != to)
        };
        match instruction.flow_control() {
            FlowControl::Next => Goes::On,
            FlowControl::Return => Goes::Returns,
            FlowControl::Call if near => match self.stub(to) {
                Some(name) => Goes::CallsOut {
                    name: Some(name),
                    tail: false,
                },
                None => Goes::Calls {
                    entry: to,
                    tail: false,
                    also_on: true,
                },
            },
            FlowControl::UnconditionalBranch if near => match self.stub(to) {
                Some(name) => Goes::CallsOut {
                    name: Some(name),
                    tail: true,
                },
                None if entry(to) => Goes::Calls {
                    entry: to,
                    tail: true,
                    also_on: false,
                },
                None => Goes::Jumps(to, false),
            },
            FlowControl::ConditionalBranch if near => {
                if entry(to) {
                    Goes::Calls {
                        entry: to,
                        tail: true,
                        also_on: true,
                    }
                } else {
                    Goes::Jumps(to, true)
                }
            }
            FlowControl::Call if instruction.mnemonic() != Mnemonic::Call => Goes::On,
            FlowControl::Call | FlowControl::IndirectCall => Goes::CallsOut {
                name: self.slot(instruction),
                tail: false,
            },
            FlowControl::IndirectBranch => Goes::CallsOut {
                name: self.slot(instruction),
                tail: true,
            },
            _ => Goes::Ends,
        }
    }

    /// The name behind `call *slot(%rip)`.
    fn slot(&self, instruction: &Instruction) -> Option<&str> {
        if !instruction.is_ip_rel_memory_operand() {
            return None;
        }
        self.slots
            .get(&instruction.ip_rel_memory_address())
            .map(String::as_str)
    }

    /// The name behind a PLT stub.
    fn stub(&self, address: u64) -> Option<&str> {
        let mut at = address;
        for _ in 0..2 {
            let instruction = self.decode(at)?;
            if instruction.mnemonic() == Mnemonic::Jmp {
                return self.slot(&instruction);
            }
            if instruction.mnemonic() != Mnemonic::Endbr64 {
                return None;
            }
            at = instruction.next_ip();
        }
        None
    }
}

/// A walk over the paths of the target's code, with what it has learned.
struct Walk<'c, 't, 'a> {
    callers: &'c Callers<'t, 'a>,
    factory: InstructionInfoFactory,
    changed: HashMap<u64, Set>,
    /// What functions read of a set of registers, at a depth.
    entries: HashMap<(u64, Set, usize), Option<Register>>,
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
            let effect = effect(&mut self.factory, &instruction);
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

/// A jump through a table of the function's own cases, not to another function: `jmp *table(,%rax,8)`, or a jump through
/// a register to which an offset was just added.
fn is_switch(before: &Instruction, instruction: &Instruction) -> bool {
    if !instruction.is_jmp_near_indirect() {
        return false;
    }
    match instruction.op0_kind() {
        OpKind::Memory => instruction.memory_index() != Register::None,
        _ => {
            before.mnemonic() == Mnemonic::Add
                && before.op0_register() == instruction.op0_register()
        }
    }
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

/// All that looks like a direct branch: a scan for opcodes, since decoding everything would take far longer.
fn branches(target: &TargetElf<'_>) -> Vec<(u64, u64)> {
    let mut branches = Vec::new();
    for (address, code) in target.code() {
        let end = address.saturating_add(code.len() as u64);
        let range = address..end;
        for (offset, window) in code.windows(5).enumerate() {
            let [opcode, rel @ ..] = window else { continue };
            let site = address.wrapping_add(offset as u64);
            let (site, length) = match *opcode {
                0xe8 | 0xe9 => (site, 5),
                // The second byte of a near jcc.
                0x80..=0x8f if before(code, offset) == Some(0x0f) => (site.wrapping_sub(1), 6),
                0xeb | 0x70..=0x7f => {
                    let rel = rel.first().map_or(0, |&b| i64::from(b as i8));
                    let to = site.wrapping_add(2).wrapping_add_signed(rel);
                    if range.contains(&to) {
                        branches.push((to, site));
                    }
                    continue;
                }
                _ => continue,
            };
            let rel = rel
                .first_chunk::<4>()
                .map_or(0, |b| i64::from(i32::from_le_bytes(*b)));
            let to = site.wrapping_add(length).wrapping_add_signed(rel);
            if range.contains(&to) {
                branches.push((to, site));
            }
        }
    }
    branches.sort_unstable();
    branches
}

fn before(code: &[u8], offset: usize) -> Option<u8> {
    code.get(offset.checked_sub(1)?).copied()
}

/// GOT slots and the names that the dynamic loader puts there.
fn slots(target: &TargetElf<'_>) -> HashMap<u64, String> {
    let mut slots = HashMap::new();
    let Ok(file) = ElfFile64::<object::LittleEndian>::parse(target.bytes) else {
        return slots;
    };
    let Some(symbols) = file.dynamic_symbol_table() else {
        return slots;
    };
    for (slot, relocation) in file.dynamic_relocations().into_iter().flatten() {
        if let object::RelocationTarget::Symbol(index) = relocation.target() {
            let symbol = symbols.symbol_by_index(index);
            if let Some(name) = symbol.ok().and_then(|s| s.name().ok().map(str::to_owned)) {
                slots.insert(slot, name);
            }
        }
    }
    slots
}
