//! Whether code only decides: what it does, an instruction at a time, that it could wait with or leave behind.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// The longest instruction.
pub const LONGEST_INSTRUCTION: usize = 15;

/// What is wrong with code whose way is not known.
pub const COMPUTED: &str = "goes to where only running it would show";

const SYSTEM_CALLS: &str = "makes system calls or raises interrupts";

/// Where code goes by a call or a jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To this address.
    Code(u64),
    /// To where the word at this address says.
    Word(u64),
    /// To what is computed, or taken from a table: within the function, if that is a `switch`.
    Computed,
}

/// Where an instruction goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// The instruction behind it, if that may be next, or is returned to.
    pub behind: Option<u64>,
    /// What it calls, or jumps to.
    pub target: Option<Target>,
}

/// What follows the instruction that these bytes begin with.
///
/// # Errors
/// It does more than to decide; in words that follow the name of the code.
pub fn step(at: u64, bytes: &[u8]) -> Result<Step, &'static str> {
    let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err("has code that can't be read");
    }
    if locks(&instruction) {
        return Err("uses atomic operations, as locks do");
    }
    if changes_task(&instruction) {
        return Err("changes the task's segments");
    }
    let behind = Some(instruction.next_ip());
    let word = || {
        let word = instruction.memory_displacement64();
        Target::Word(word)
    };
    let direct = || Target::Code(instruction.near_branch_target());
    let through_word = instruction.is_ip_rel_memory_operand();
    let step = |behind, target| Ok(Step { behind, target });
    match instruction.flow_control() {
        FlowControl::Next => step(behind, None),
        FlowControl::ConditionalBranch => step(behind, Some(direct())),
        FlowControl::UnconditionalBranch if instruction.op0_kind() == OpKind::NearBranch64 => {
            step(None, Some(direct()))
        }
        FlowControl::Call
            if matches!(
                instruction.mnemonic(),
                Mnemonic::Syscall | Mnemonic::Sysenter
            ) =>
        {
            Err(SYSTEM_CALLS)
        }
        FlowControl::Call if instruction.op0_kind() == OpKind::NearBranch64 => {
            step(behind, Some(direct()))
        }
        FlowControl::IndirectCall if through_word => step(behind, Some(word())),
        FlowControl::IndirectBranch if through_word => step(None, Some(word())),
        FlowControl::Return if instruction.mnemonic() == Mnemonic::Ret => step(None, None),
        // `ud2`: a fault, which is seen.
        FlowControl::Exception => step(None, None),
        FlowControl::IndirectBranch => step(None, Some(Target::Computed)),
        FlowControl::Call | FlowControl::IndirectCall | FlowControl::UnconditionalBranch => {
            Err(COMPUTED)
        }
        FlowControl::Interrupt => Err(SYSTEM_CALLS),
        FlowControl::Return | FlowControl::XbeginXabortXend => Err(COMPUTED),
    }
}

fn locks(instruction: &Instruction) -> bool {
    let in_memory = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    instruction.has_lock_prefix() || (instruction.mnemonic() == Mnemonic::Xchg && in_memory)
}

fn changes_task(instruction: &Instruction) -> bool {
    let segment = |register: Register| register.is_segment_register();
    match instruction.mnemonic() {
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase | Mnemonic::Wrpkru => true,
        Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => true,
        Mnemonic::Mov | Mnemonic::Pop => segment(instruction.op0_register()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(bytes: &[u8]) -> Result<Step, &'static str> {
        step(0x1000, bytes)
    }

    #[test]
    fn code_that_decides_is_followed() {
        let step = |behind, target| Ok(Step { behind, target });
        let code = |at| Some(Target::Code(at));
        assert_eq!(next(&[0x0f, 0xa2]), step(Some(0x1002), None)); // cpuid
        assert_eq!(next(&[0x74, 0x10]), step(Some(0x1002), code(0x1012))); // je
        assert_eq!(next(&[0xeb, 0xfe]), step(None, code(0x1000))); // jmp .
        assert_eq!(next(&[0xe8, 0, 1, 0, 0]), step(Some(0x1005), code(0x1105)));
        let word = Some(Target::Word(0x1016));
        assert_eq!(next(&[0xff, 0x15, 0x10, 0, 0, 0]), step(Some(0x1006), word));
        assert_eq!(next(&[0xff, 0x25, 0x10, 0, 0, 0]), step(None, word));
        let computed = Some(Target::Computed);
        assert_eq!(next(&[0xff, 0xe0]), step(None, computed)); // jmp *%rax
        assert_eq!(next(&[0xff, 0x60, 0x08]), step(None, computed)); // jmp *8(%rax)
        assert_eq!(next(&[0xc3]), step(None, None));
        assert_eq!(next(&[0x0f, 0x0b]), step(None, None)); // ud2
        assert_eq!(next(&[0x48, 0x89, 0x03]), step(Some(0x1003), None)); // mov %rax,(%rbx)
        assert_eq!(next(&[0x48, 0x87, 0xc3]), step(Some(0x1003), None)); // xchg %rax,%rbx
    }

    #[test]
    fn code_that_does_more_is_refused() {
        let all: [(&[u8], &str); 11] = [
            (&[0x0f, 0x05], "system calls"),
            (&[0xcd, 0x80], "system calls"),
            (&[0xcc], "system calls"),
            (&[0xf0, 0x0f, 0xb1, 0x0b], "atomic"), // lock cmpxchg %ecx,(%rbx)
            (&[0x87, 0x03], "atomic"),             // xchg %eax,(%rbx)
            (&[0xff, 0xd0], "running it"),         // call *%rax
            (&[0xff, 0x50, 0x08], "running it"),   // call *8(%rax)
            (&[0x8e, 0xe8], "segments"),           // mov %eax,%gs
            (&[0xf3, 0x48, 0x0f, 0xae, 0xd8], "segments"), // wrgsbase %rax
            (&[0x06], "can't be read"),
            (&[0xe8, 0], "can't be read"),
        ];
        for (bytes, words) in all {
            let refused = next(bytes).expect_err("it does more");
            assert!(refused.contains(words), "{bytes:x?}: {refused}");
        }
    }
}
