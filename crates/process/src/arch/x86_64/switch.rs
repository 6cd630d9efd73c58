//! Code that gives its task another stack: what coroutines, fibers and green threads are made of.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

/// The stack pointer is kept at most so many instructions before another one takes its place.
const NEARBY: usize = 32;
/// From there to the end of the function are at most so many.
const LONGEST_RESUME: usize = 64;

/// Calls `each` with the offsets at which bytes may be an instruction that loads the stack pointer from somewhere. Most
/// are none that matters, see [`stack_switch`].
pub fn stack_pointer_loads(code: &[u8], each: &mut dyn FnMut(usize)) {
    // A block at a time, without a branch, so that it is done many bytes at once: nearly all blocks have none.
    for (block, bytes) in code.windows(BLOCK + 2).step_by(BLOCK).enumerate() {
        let offsets = || (0..BLOCK).filter(|&at| loads_at(bytes, at));
        if (0..BLOCK).fold(false, |any, at| any | loads_at(bytes, at)) {
            offsets().for_each(|at| each(block * BLOCK + at));
        }
    }
    let rest = code.len().saturating_sub(2) / BLOCK * BLOCK;
    let tail = code.get(rest..).unwrap_or_default();
    (0..tail.len().saturating_sub(2))
        .filter(|&at| loads_at(tail, at))
        .for_each(|at| each(rest + at));
}

const BLOCK: usize = 64;

/// Whether `add`, `mov` or `xchg` with the stack pointer as its destination begins here. Bounds are the caller's.
fn loads_at(bytes: &[u8], at: usize) -> bool {
    let byte = |index: usize| bytes.get(index).copied().unwrap_or_default();
    let (rex, opcode, modrm) = (byte(at), byte(at + 1), byte(at + 2));
    let wide = rex & 0xf8 == 0x48;
    let rm_is_rsp = (modrm & 0xc7 == 0xc4) & (rex & 1 == 0);
    let reg_is_rsp = (modrm & 0x38 == 0x20) & (rex & 4 == 0);
    let to_rm = (opcode == 0x01) | (opcode == 0x89) | (opcode == 0x87);
    let to_reg = (opcode == 0x03) | (opcode == 0x8b) | (opcode == 0x87);
    wide & (to_rm & rm_is_rsp | to_reg & reg_is_rsp)
}

/// Where code gives its task another stack, and what it left on that when it gave it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackSwitch {
    /// The instruction.
    pub at: u64,
    /// How it goes on there; `None`: not understood, or it copies stacks away and back.
    pub resume: Option<Resume>,
}

/// What lies above a suspended stack's saved stack pointer, as offsets from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resume {
    /// Where the address lies that it goes on at.
    pub pc: i64,
    /// Where the stack pointer is then.
    pub sp: i64,
    /// Where registers lie, by DWARF number.
    pub registers: [Option<i64>; 16],
    /// Where a value for MXCSR lies: its upper half is zero, or the processor would refuse it.
    pub mxcsr: Option<i64>,
}

/// Whether a function that begins at `start` gives its task another stack: it keeps the stack pointer, and right after
/// that takes a new one from a register or from memory, which it has not derived from its own. (One that does not keep
/// it is a `longjmp`.) Code that moves its stack by a number from a register, as those do which copy stacks away and
/// back, counts too: compilers only ever take room by a number.
pub fn stack_switch(start: u64, code: &[u8]) -> Option<StackSwitch> {
    let mut own = Own::default();
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let found = decoder.iter().find(|instruction| {
        let switches = own.is_left_by(instruction);
        own.follow(instruction);
        switches
    })?;
    let replaces = found.mnemonic() == Mnemonic::Mov;
    Some(StackSwitch {
        at: found.ip(),
        resume: replaces.then(|| resume(&mut decoder)).flatten(),
    })
}

/// Follows the code after a switch to where it leaves the function.
fn resume(decoder: &mut Decoder<'_>) -> Option<Resume> {
    let mut found = Resume::default();
    let mut depth = 0_i64;
    for i in decoder.iter().take(LONGEST_RESUME) {
        let to = dwarf_number(i.op0_register());
        let on_stack = (0..i.op_count())
            .any(|n| i.op_kind(n) == OpKind::Memory && i.memory_base() == Register::RSP)
            && i.memory_index() == Register::None;
        let here = depth.checked_add(i.memory_displacement64() as i64);
        match i.mnemonic() {
            Mnemonic::Ret => {
                (found.pc, found.sp) = (depth, depth.checked_add(8)?);
                return Some(found);
            }
            Mnemonic::Jmp if on_stack => {
                (found.pc, found.sp) = (here?, depth);
                return Some(found);
            }
            Mnemonic::Jmp if i.op0_kind() == OpKind::Register => {
                let register = found.registers.get(to?).copied().flatten();
                (found.pc, found.sp) = (register?, depth);
                return Some(found);
            }
            Mnemonic::Pop => {
                *found.registers.get_mut(to?)? = Some(depth);
                depth = depth.checked_add(8)?;
            }
            Mnemonic::Mov if on_stack && i.op0_kind() == OpKind::Register => {
                *found.registers.get_mut(to?)? = here;
            }
            Mnemonic::Lea if on_stack && i.op0_register() == Register::RSP => depth = here?,
            Mnemonic::Add if i.op0_register() == Register::RSP => {
                depth = depth.checked_add(i.immediate(1) as i64)?;
            }
            Mnemonic::Ldmxcsr if on_stack => found.mxcsr = here,
            _ if i.op0_register() == Register::RSP
                || !matches!(
                    i.flow_control(),
                    FlowControl::Next | FlowControl::ConditionalBranch
                ) =>
            {
                return None;
            }
            _ if i.op0_kind() == OpKind::Register => {
                if let Some(register) = to.and_then(|to| found.registers.get_mut(to)) {
                    *register = None;
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether seven bytes may end in a call.
pub fn ends_in_call(code: &[u8; 7]) -> bool {
    // call rel32; or `ff /2` with whatever its operand takes.
    let indirect = |at: usize| {
        let bytes = (code.get(at), code.get(at + 1));
        matches!(bytes, (Some(0xff), Some(modrm)) if modrm & 0x38 == 0x10)
    };
    code.get(2) == Some(&0xe8) || (0..6).any(indirect)
}

/// System V ABI, AMD64, figure 3.36.
fn dwarf_number(register: Register) -> Option<usize> {
    const ORDER: [Register; 16] = [
        Register::RAX,
        Register::RDX,
        Register::RCX,
        Register::RBX,
        Register::RSI,
        Register::RDI,
        Register::RBP,
        Register::RSP,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    ORDER
        .iter()
        .position(|&known| known == register.full_register())
}

/// What the instructions so far, in the order of their addresses, have done with the stack pointer.
#[derive(Debug, Default)]
struct Own {
    /// Registers that hold an address of the stack.
    registers: Vec<Register>,
    /// Registers that were written.
    written: Vec<Register>,
    /// How many instructions ago the stack pointer was kept.
    kept: Option<usize>,
}

impl Own {
    fn has(&self, register: Register) -> bool {
        const CALLEE_SAVED: [Register; 5] = [
            Register::RBX,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];
        // A part that was split off a function finds the stack pointer where the rest has put it.
        let from_before = CALLEE_SAVED.contains(&register) && !self.written.contains(&register);
        matches!(register, Register::RSP | Register::RBP)
            || from_before
            || self.registers.contains(&register)
    }

    fn is_left_by(&self, i: &Instruction) -> bool {
        let moves = match i.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 | Code::Xchg_rm64_r64 => self.kept.is_some(),
            Code::Add_r64_rm64 | Code::Add_rm64_r64 => true,
            _ => return false,
        };
        let exchanged = i.code() == Code::Xchg_rm64_r64 && i.op1_register() == Register::RSP;
        let (to, from) = if exchanged { (1, 0) } else { (0, 1) };
        let foreign = match i.op_kind(from) {
            OpKind::Register => !self.has(i.op_register(from)),
            _ => !self.has(i.memory_base()),
        };
        moves && foreign && i.op_kind(to) == OpKind::Register && i.op_register(to) == Register::RSP
    }

    fn follow(&mut self, i: &Instruction) {
        self.kept = match i.flow_control() {
            // swapcontext changes the signal mask on its way.
            _ if i.mnemonic() == Mnemonic::Syscall => self.kept,
            FlowControl::Next | FlowControl::ConditionalBranch => {
                self.kept.map(|ago| ago + 1).filter(|&ago| ago < NEARBY)
            }
            _ => None,
        };
        let to_register = i.op0_kind() == OpKind::Register;
        let written = if to_register {
            i.op0_register().full_register()
        } else {
            Register::None
        };
        let from_register = i.op_count() > 1 && i.op1_kind() == OpKind::Register;
        let own = match i.mnemonic() {
            Mnemonic::Mov if from_register => self.has(i.op1_register()),
            Mnemonic::Mov | Mnemonic::Lea => self.has(i.memory_base()),
            Mnemonic::Add | Mnemonic::Sub | Mnemonic::And => self.has(written),
            _ => false,
        };
        let keeps = match i.mnemonic() {
            // A frame pointer is no such thing.
            Mnemonic::Mov if from_register && i.op1_register() == Register::RSP => {
                written != Register::RBP
            }
            Mnemonic::Mov if from_register && !to_register => {
                self.registers.contains(&i.op1_register())
            }
            Mnemonic::Push => i.op0_register() == Register::RSP,
            _ => false,
        };
        if keeps {
            self.kept = Some(0);
        }
        if to_register
            && written != Register::RSP
            && !matches!(
                i.mnemonic(),
                Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push
            )
        {
            self.registers.retain(|&register| register != written);
            if own {
                self.registers.push(written);
            }
            if !self.written.contains(&written) {
                self.written.push(written);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(code: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        stack_pointer_loads(code, &mut |at| found.push(at));
        found
    }

    #[test]
    fn loads_are_found_across_blocks() {
        for length in 0..200 {
            let mut code = vec![0x90; length];
            code.extend([0x48, 0x89, 0xfc]); // mov %rdi,%rsp
            assert_eq!(loads(&code), [length]);
        }
        assert!(loads(&[0x48, 0x89]).is_empty());
        assert!(loads(&[0x48, 0x89, 0xe7]).is_empty()); // mov %rsp,%rdi
        assert_eq!(loads(&[0x48, 0x8b, 0x26]), [0]); // mov (%rsi),%rsp
    }

    #[test]
    fn a_switch_keeps_the_stack_it_leaves() {
        // mov %rsp,(%rdi); mov (%rsi),%rsp; pop %r15; pop %rbp; ret
        let code = [0x48, 0x89, 0x27, 0x48, 0x8b, 0x26, 0x41, 0x5f, 0x5d, 0xc3];
        let switch = stack_switch(0x1000, &code).expect("it is one");
        let resume = switch.resume.expect("it is understood");
        assert_eq!((switch.at, resume.pc, resume.sp), (0x1003, 16, 24));
        assert_eq!(
            (resume.registers[15], resume.registers[6]),
            (Some(0), Some(8))
        );
        // Without the first instruction it is a longjmp.
        assert_eq!(stack_switch(0x1000, &code[3..]), None);
    }

    #[test]
    fn room_of_a_variable_size_is_no_switch() {
        // push %rbp; mov %rsp,%rbp; mov %rsp,%rbx; sub %rax,%rsp; mov %rbx,%rsp; leave; ret
        let code = [
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xe3, 0x48, 0x29, 0xc4, 0x48, 0x89, 0xdc, 0xc9,
            0xc3,
        ];
        assert_eq!(stack_switch(0x1000, &code), None);
        // The second half of that, split off.
        assert_eq!(stack_switch(0x1000, &code[10..]), None);
    }

    #[test]
    fn a_moved_stack_is_switched() {
        // mov %rsp,%rbx; mov 0x30(%rax),%rcx; sub %rbx,%rcx; add %rcx,%rsp; ret
        let code = [
            0x48, 0x89, 0xe3, 0x48, 0x8b, 0x48, 0x30, 0x48, 0x29, 0xd9, 0x48, 0x01, 0xcc, 0xc3,
        ];
        let switch = stack_switch(0x1000, &code).expect("it is one");
        assert_eq!(switch.resume, None);
    }
}
