//! What a function returned, kept for us by code of the target that stores `rax` where we can read it.

use super::syscall::prepare_function_call;
use crate::sys::Registers;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, Register};

/// `mov %rax,(REGISTER)`: its bytes, and the register, which a function preserves.
type Store = (&'static [u8], fn(&mut Registers) -> &mut u64);
const STORES: [Store; 6] = [
    (&[0x48, 0x89, 0x03], |regs| &mut regs.rbx),
    (&[0x48, 0x89, 0x45, 0x00], |regs| &mut regs.rbp),
    (&[0x49, 0x89, 0x04, 0x24], |regs| &mut regs.r12),
    (&[0x49, 0x89, 0x45, 0x00], |regs| &mut regs.r13),
    (&[0x49, 0x89, 0x06], |regs| &mut regs.r14),
    (&[0x49, 0x89, 0x07], |regs| &mut regs.r15),
];
/// An epilogue has at most so many instructions, and takes at most so many bytes off the stack.
const LONGEST: usize = 8;
const LARGEST: u64 = 256;
const WORD: u64 = 8;

/// The end of a function: `mov %rax,(REGISTER)`, then so many bytes are taken off the stack, `ret`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeper {
    at: u64,
    store: usize,
    popped: u64,
    ret: u64,
}

impl Keeper {
    /// Looks for one in code that lies at `start`.
    pub fn find(start: u64, code: &[u8]) -> Option<Keeper> {
        STORES.iter().enumerate().find_map(|(store, (bytes, _))| {
            let mut found = memchr::memmem::find_iter(code, bytes);
            found.find_map(|at| {
                let behind = at.checked_add(bytes.len())?;
                let (popped, ret) =
                    epilogue(start.checked_add(behind as u64)?, code.get(behind..)?)?;
                let at = start.checked_add(at as u64)?;
                Some(Keeper {
                    at,
                    store,
                    popped,
                    ret,
                })
            })
        })
    }

    /// Registers that make the task call a function, which takes nothing, and return through the frame as
    /// [`prepare_function_call`] does, by way of this code; what must lie at their stack pointer; and where the function's
    /// value will be.
    pub fn prepare(
        &self,
        saved: &Registers,
        function: u64,
        frame: u64,
    ) -> (Registers, Vec<u8>, u64) {
        // Behind the function's return address lies what the code takes off, and then what it returns to: the frame, or,
        // since the stack must be aligned, another `ret` before it.
        let odd = (WORD + self.popped) % (2 * WORD);
        let sp = frame.wrapping_sub(WORD + self.popped + odd);
        let mut words = self.at.to_le_bytes().to_vec();
        words.resize((WORD + self.popped) as usize, 0);
        if odd != 0 {
            words.extend_from_slice(&self.ret.to_le_bytes());
        }
        let kept = sp.wrapping_add(WORD);
        let mut regs = prepare_function_call(saved, function, sp, [0; 6]);
        if let Some((_, register)) = STORES.get(self.store) {
            *register(&mut regs) = kept;
        }
        (regs, words, kept)
    }
}

/// How much an epilogue takes off the stack, a word at least, and where its `ret` is.
fn epilogue(start: u64, code: &[u8]) -> Option<(u64, u64)> {
    let mut popped = 0_u64;
    let decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    for instruction in decoder.into_iter().take(LONGEST) {
        match instruction.mnemonic() {
            Mnemonic::Pop
                if instruction.op0_register().is_gpr64()
                    && instruction.op0_register() != Register::RSP =>
            {
                popped += WORD;
            }
            Mnemonic::Add
                if instruction.op0_register() == Register::RSP
                    && instruction.op1_kind() == iced_x86::OpKind::Immediate8to64 =>
            {
                popped = popped.checked_add(instruction.immediate(1))?;
            }
            Mnemonic::Ret if instruction.op_count() == 0 => {
                let usable = popped.is_multiple_of(WORD) && (WORD..=LARGEST).contains(&popped);
                return usable.then_some((popped, instruction.ip()));
            }
            _ => return None,
        }
        if popped > LARGEST {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = 0x7000_0008;

    /// Follows the code over the words, as the processor would: the word behind the last `ret`, and the stack pointer then.
    fn lands(code: &[u8]) -> Option<(u64, u64)> {
        let keeper = Keeper::find(0x1000, code)?;
        let saved = crate::sys::no_registers();
        let (mut regs, words, kept) = keeper.prepare(&saved, 0x5000, FRAME);
        assert_eq!(regs.rsp % 16, 8, "as at a function's entry");
        assert_eq!((regs.rip, kept), (0x5000, regs.rsp + 8));
        let register = STORES[keeper.store].1;
        assert_eq!(*register(&mut regs), kept);
        let word = |at: u64| match (at - regs.rsp) as usize {
            at if at < words.len() => {
                u64::from_le_bytes(words[at..at + 8].try_into().expect("8 bytes"))
            }
            _ => u64::MAX, // the frame's first word
        };
        assert_eq!(word(regs.rsp), keeper.at);
        let mut sp = regs.rsp + 8 + keeper.popped;
        let mut to = word(sp);
        sp += 8;
        if to == keeper.ret {
            to = word(sp);
            sp += 8;
        }
        Some((to, sp))
    }

    #[test]
    fn function_returns_through_the_frame() {
        let epilogues: [&[u8]; 4] = [
            &[0x48, 0x89, 0x03, 0x5b, 0xc3],
            &[0x48, 0x89, 0x03, 0x5b, 0x5d, 0xc3],
            &[
                0x48, 0x89, 0x03, 0x48, 0x83, 0xc4, 0x18, 0x5b, 0x41, 0x5c, 0xc3,
            ],
            &[0x49, 0x89, 0x06, 0x48, 0x83, 0xc4, 0x08, 0x41, 0x5e, 0xc3],
        ];
        for code in epilogues {
            assert_eq!(lands(code), Some((u64::MAX, FRAME + 8)), "{code:x?}");
        }
    }

    #[test]
    fn other_code_is_no_keeper() {
        let others: [&[u8]; 7] = [
            &[0x48, 0x89, 0x03, 0xc3], // nothing is taken off: no room for the value
            &[0x48, 0x89, 0x03, 0x5c, 0xc3], // pop %rsp
            &[0x48, 0x89, 0x03, 0x5b, 0xc2, 8, 0], // ret $8
            &[0x48, 0x89, 0x03, 0x48, 0x83, 0xc4, 0xf8, 0x5b, 0xc3], // takes off less than nothing
            &[0x48, 0x89, 0x03, 0x48, 0x83, 0xc4, 0x04, 0x5b, 0xc3], // half a word
            &[0x48, 0x89, 0x03, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3],
            &[0x48, 0x89, 0x03, 0x5b],
        ];
        for code in others {
            assert_eq!(Keeper::find(0x1000, code), None, "{code:x?}");
        }
    }
}
