//! The functions of the target's file and the direct branches between them.

use std::collections::{HashMap, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
    Register,
};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSymbol as _, ObjectSymbolTable as _};

use super::code::{CALL_CLOBBERED, Set, effect};
use super::stack::Frames;
use crate::{SymbolKind, TargetElf};

/// Instructions that one check may look at; more is a caller of a size that no compiler makes.
pub(super) const BUDGET: usize = 2_000_000;
/// Functions that one check may look at, callers of callers and what they call included.
pub(super) const MAX_FUNCTIONS: usize = 1000;
/// A range of code that belongs to one function.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function<'a> {
    pub start: u64,
    pub end: u64,
    name: Option<&'a str>,
}

/// Where control goes from an instruction.
pub(super) enum Goes<'n> {
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
    /// Code of callers that the patch replaces too: what it relies on is gone with it.
    replaced: Vec<(u64, u64)>,
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
            replaced: Vec::new(),
            slots: slots(target),
        }
    }

    pub fn function_at(&self, address: u64) -> Option<&Function<'a>> {
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
    pub fn sites(&self, entry: u64) -> impl Iterator<Item = (u64, bool)> + '_ {
        let from = self.branches.partition_point(|b| b.0 < entry);
        let sites = self.branches.get(from..).unwrap_or_default();
        sites
            .iter()
            .take_while(move |b| b.0 == entry)
            .filter(|b| !self.is_replaced(b.1))
            .map(|&(_, site)| (site, self.target.bytes_at(site, 1) == Some(&[0xe8])))
    }

    fn is_replaced(&self, site: u64) -> bool {
        let mut ranges = self.replaced.iter();
        ranges.any(|&(start, end)| (start..end).contains(&site))
    }

    pub fn leave_out(&mut self, ranges: Vec<(u64, u64)>) {
        self.replaced = ranges;
    }

    /// A call of `entry` at which the stack is not aligned.
    pub fn misaligned(&self, entry: u64) -> Option<u64> {
        let frames = self.frames.as_ref()?;
        self.sites(entry)
            .filter(|(site, call)| *call && frames.is_misaligned(*site))
            .find_map(|(site, _)| self.is_instruction(site).then_some(site))
    }

    /// Whether an instruction starts at an address; true if its function is unknown.
    pub fn is_instruction(&self, address: u64) -> bool {
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

    pub fn decode(&self, address: u64) -> Option<Instruction> {
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

    /// Whether control can come back from a function; after a call of one that never returns, callers have nothing.
    pub fn returns(&self, start: u64, end: u64) -> bool {
        let size = end.saturating_sub(start).min(BUDGET as u64);
        let Some(code) = self.target.bytes_at(start, size) else {
            return true;
        };
        let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
        decoder
            .into_iter()
            .any(|instruction| match self.goes(&instruction) {
                Goes::Returns
                | Goes::Calls { tail: true, .. }
                | Goes::CallsOut { tail: true, .. } => true,
                Goes::Jumps(to, _) => !(start..end).contains(&to),
                _ => instruction.is_invalid(),
            })
    }

    pub fn goes(&self, instruction: &Instruction) -> Goes<'_> {
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
