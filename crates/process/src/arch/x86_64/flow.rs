//! Where code goes: its branches, its tables of jumps, its ways out, and who refers to an address.

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind,
    Register,
};

/// Larger tables of jumps are not read to their end.
const LARGEST_TABLE: u64 = 4096;
/// What is read of a table whose bound is not known.
const UNBOUNDED_TABLE: u64 = 256;
/// A PLT stub has at most so many instructions up to its jump: `endbr64`, and the relocation's number in a register.
const LONGEST_STUB: usize = 4;

/// Where a stretch of code goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    /// The targets of its direct jumps, conditional ones included.
    pub jumps: Vec<u64>,
    /// The targets of its direct calls.
    pub calls: Vec<u64>,
    /// The words that it jumps through: `jmp *word(%rip)`.
    pub words: Vec<u64>,
    /// How many jumps it has whose target is computed, or taken from a table or a structure.
    pub computed: usize,
    /// Addresses that it uses as such, where a table of its jumps may lie, and how many entries it has at most.
    pub tables: Vec<(u64, u64)>,
}

/// Decodes code from its first byte to its last.
pub fn flow(start: u64, code: &[u8]) -> Flow {
    let mut flow = Flow::default();
    // A switch: `cmp $n,%eax; ja default; lea table(%rip),%rdx; ...; jmp *%rax`.
    let (mut compared, mut bound, mut largest) = (None, None, None);
    let mut addresses = Vec::new();
    for instruction in &mut Decoder::with_ip(64, code, start, DecoderOptions::NONE) {
        if let Some(address) = address_in(&instruction) {
            addresses.push((address, bound));
        }
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                flow.jumps.push(instruction.near_branch_target());
                let above = matches!(
                    instruction.condition_code(),
                    ConditionCode::a | ConditionCode::be | ConditionCode::ae | ConditionCode::b
                );
                bound = compared.filter(|_| above);
                largest = largest.max(bound);
            }
            FlowControl::Call if instruction.op0_kind() == OpKind::NearBranch64 => {
                flow.calls.push(instruction.near_branch_target());
            }
            FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                flow.words.push(instruction.memory_displacement64());
            }
            FlowControl::IndirectBranch => flow.computed += 1,
            _ => {}
        }
        if instruction.flow_control() != FlowControl::Next
            && instruction.flow_control() != FlowControl::ConditionalBranch
        {
            bound = None;
        }
        let immediate = matches!(instruction.mnemonic(), Mnemonic::Cmp)
            && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
        compared = immediate.then(|| instruction.immediate(1).saturating_add(1));
    }
    let entries = |bound: Option<u64>| match bound.or(largest) {
        Some(bound) => bound.min(LARGEST_TABLE),
        None => UNBOUNDED_TABLE,
    };
    let bounded = addresses.into_iter();
    flow.tables = bounded.map(|(at, bound)| (at, entries(bound))).collect();
    for list in [&mut flow.jumps, &mut flow.calls, &mut flow.words] {
        list.sort_unstable();
        list.dedup();
    }
    flow.tables.sort_unstable();
    flow.tables.dedup_by_key(|(at, _)| *at);
    flow
}

/// What an instruction uses as an address: `lea table(%rip)`, or the displacement of `jmp *table(,%rax,8)` and of
/// `mov table(,%rax,8),%rax`.
fn address_in(instruction: &Instruction) -> Option<u64> {
    if instruction.is_ip_rel_memory_operand() {
        let is_address = instruction.mnemonic() == Mnemonic::Lea;
        return is_address.then(|| instruction.memory_displacement64());
    }
    let indexed = instruction.memory_index() != Register::None
        && instruction.memory_base() == Register::None
        && instruction.memory_index_scale() == 8;
    indexed.then(|| instruction.memory_displacement64())
}

/// Where the instructions of a stretch of code are.
pub fn instructions(start: u64, code: &[u8]) -> Vec<u64> {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    decoder.iter().map(|instruction| instruction.ip()).collect()
}

/// A PLT stub, `jmp *word(%rip)` with nothing but preparations before it: where it ends, and the word.
pub fn plt_stub(start: u64, code: &[u8]) -> Option<(u64, u64)> {
    let jump = first_jump(start, code)?;
    let through_word =
        jump.flow_control() == FlowControl::IndirectBranch && jump.is_ip_rel_memory_operand();
    through_word.then(|| (jump.next_ip(), jump.memory_displacement64()))
}

/// The code that a lazy PLT stub falls back to while its word is not bound (it pushes the relocation's number and jumps
/// to the head of the PLT, or is that head): where it ends, and where it jumps to.
pub fn lazy_stub(start: u64, code: &[u8]) -> Option<(u64, Option<u64>)> {
    let jump = first_jump(start, code)?;
    let direct = jump.flow_control() == FlowControl::UnconditionalBranch;
    Some((jump.next_ip(), direct.then(|| jump.near_branch_target())))
}

fn first_jump(start: u64, code: &[u8]) -> Option<Instruction> {
    let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    for instruction in decoder.into_iter().take(LONGEST_STUB) {
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
                return Some(instruction);
            }
            FlowControl::Next if !instruction.is_invalid() => {
                let prepares = matches!(
                    instruction.mnemonic(),
                    Mnemonic::Endbr64 | Mnemonic::Push | Mnemonic::Nop
                ) || instruction.op0_register().full_register() == Register::R11;
                if !prepares {
                    return None;
                }
            }
            _ => return None,
        }
    }
    None
}

/// Calls `each` with every place where four bytes may be an operand that stands for an address, as a call, a `lea` or a
/// number, and with that address. Which of them are is for [`refers`] to say: this looks at bytes.
///
/// `absolute`: numbers are addresses as well, in a program that is not position independent.
pub fn references(start: u64, code: &[u8], absolute: bool, each: &mut dyn FnMut(u64, u64)) {
    const CALL: u8 = 0xe8;
    const LEA: u8 = 0x8d;
    for (index, window) in code.windows(6).enumerate() {
        let &[first, second, a, b, c, d] = window else {
            continue;
        };
        let operand = [a, b, c, d];
        let at = start.wrapping_add(index as u64 + 2);
        let is_call = second == CALL;
        // ModRM of a displacement from the instruction pointer.
        let is_lea = first == LEA && second & 0xc7 == 0x05;
        if is_call || is_lea {
            let displacement = i64::from(i32::from_le_bytes(operand));
            each(at, at.wrapping_add(4).wrapping_add_signed(displacement));
        } else if absolute {
            each(at, u64::from(u32::from_le_bytes(operand)));
        }
    }
}

/// Whether the instruction at `place` in code that begins at `start` calls `target` or uses its address. What is no
/// instruction does not refer to anything.
pub fn refers(start: u64, code: &[u8], place: u64, target: u64) -> bool {
    for instruction in &mut Decoder::with_ip(64, code, start, DecoderOptions::NONE) {
        if instruction.next_ip() <= place {
            continue;
        }
        if instruction.ip() > place || instruction.is_invalid() {
            return false;
        }
        let calls =
            instruction.code() == Code::Call_rel32_64 && instruction.near_branch_target() == target;
        let loads = instruction.mnemonic() == Mnemonic::Lea
            && instruction.is_ip_rel_memory_operand()
            && instruction.memory_displacement64() == target;
        let numbers = (0..instruction.op_count()).any(|operand| {
            matches!(
                instruction.op_kind(operand),
                OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
            ) && instruction.immediate(operand) == target
        });
        return calls || loads || numbers;
    }
    false
}

/// The last instruction of code that is decoded from its begin.
pub(super) fn last(start: u64, code: &[u8]) -> Option<Instruction> {
    Decoder::with_ip(64, code, start, DecoderOptions::NONE)
        .into_iter()
        .last()
}

/// Whether code, decoded from its begin, ends with a call: then its end is a return address.
pub fn ends_with_call(start: u64, code: &[u8]) -> bool {
    let end = start.wrapping_add(code.len() as u64);
    let last = last(start, code);
    last.is_some_and(|last| {
        last.next_ip() == end
            && matches!(
                last.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plt_stubs_of_all_kinds_are_known() {
        // jmp *0x10(%rip)
        assert_eq!(
            plt_stub(0x1000, &[0xff, 0x25, 0x10, 0, 0, 0]),
            Some((0x1006, 0x1016))
        );
        // endbr64; bnd jmp *0x10(%rip)
        let stub = [0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 0x10, 0, 0, 0];
        assert_eq!(plt_stub(0x1000, &stub), Some((0x100b, 0x101b)));
        // push %rbp; jmp *0x10(%rip) prepares as well, for all that is known; mov %rdi,%rax does not.
        assert_eq!(
            plt_stub(0x1000, &[0x48, 0x89, 0xf8, 0xff, 0x25, 0x10, 0, 0, 0]),
            None
        );
        // push $3; jmp 0x1000
        let lazy = [0x68, 3, 0, 0, 0, 0xe9, 0xf6, 0xff, 0xff, 0xff];
        assert_eq!(lazy_stub(0x1000, &lazy), Some((0x100a, Some(0x1000))));
        // push 8(%rip); jmp *0x10(%rip)
        let head = [0xff, 0x35, 8, 0, 0, 0, 0xff, 0x25, 0x10, 0, 0, 0];
        assert_eq!(lazy_stub(0x1000, &head), Some((0x100c, None)));
    }

    #[test]
    fn the_flow_of_a_switch() {
        // cmp $6,%edi; ja +0x100; lea 0x1000(%rip),%rax; movslq (%rax,%rdi,4),%rdi; add %rax,%rdi; jmp *%rdi
        let code = [
            0x83, 0xff, 0x06, 0x0f, 0x87, 0, 1, 0, 0, 0x48, 0x8d, 0x05, 0, 0x10, 0, 0, 0x48, 0x63,
            0x3c, 0xb8, 0x48, 0x01, 0xc7, 0xff, 0xe7,
        ];
        let flow = flow(0x2000, &code);
        assert_eq!(flow.jumps, [0x2109]);
        assert_eq!(flow.tables, [(0x3010, 7)]);
        assert_eq!(flow.computed, 1);
    }

    #[test]
    fn a_return_address_follows_a_call() {
        // call +0; nop; call *%rax
        let code = [0xe8, 0, 0, 0, 0, 0x90, 0xff, 0xd0];
        let after = |len: usize| ends_with_call(0x1000, &code[..len]);
        assert!(after(5) && after(8));
        assert!(!(0..8).filter(|&len| len != 5).any(after));
    }

    #[test]
    fn a_reference_is_an_instruction() {
        // mov $0xe8,%eax holds the byte of a call; call +0 does call.
        let code = [0xb8, 0xe8, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0xc3];
        let mut found = Vec::new();
        references(0x1000, &code, false, &mut |at, to| found.push((at, to)));
        assert_eq!(found[0].0, 0x1002);
        assert!(!refers(0x1000, &code, found[0].0, found[0].1));
        assert!(found.contains(&(0x1006, 0x100a)));
        assert!(refers(0x1000, &code, 0x1006, 0x100a));
    }
}
