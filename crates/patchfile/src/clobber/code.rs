//! Registers as sets, and what the replacement's code does to them.

use std::collections::{HashMap, HashSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use crate::{Patch, Place, Relocation, Section};

/// A set of registers: general ones in bits 0..16, vector registers in 16..48, mask registers in 48..56.
pub(super) type Set = u64;

/// What a call may change by the psABI (figure 3.4): all but rbx, rsp, rbp, r12 to r15.
pub(super) const CALL_CLOBBERED: Set = 0x00ff_ffff_ffff_0fc7;

/// The set of one register; nothing for those that no compiler keeps a value in over a call.
pub(super) fn bit(register: Register) -> Set {
    let full = register.full_register();
    let number = full.number() as u32;
    if full.is_gpr() && number < 16 {
        1 << number
    } else if full.is_vector_register() && number < 32 {
        1 << (16 + number)
    } else if full.is_k() && number < 8 {
        1 << (48 + number)
    } else {
        0
    }
}

/// What one instruction does.
#[derive(Clone, Copy, Default)]
pub(super) struct Effect {
    /// Whose old value matters.
    pub reads: Set,
    /// What is wholly overwritten, in any case.
    pub sets: Set,
    /// What may be changed.
    pub changes: Set,
}

/// A write to a part of a register counts as one to all of it: compilers keep no value in the rest. And what an
/// instruction reads only in form (`or $-1`, `sbb %eax,%eax`, the upper half that `cvtsi2sd` leaves) is not read.
pub(super) fn effect(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> Effect {
    let mut effect = Effect::default();
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Nop | Mnemonic::Vzeroupper | Mnemonic::Endbr64
    ) {
        return effect;
    }
    for used in factory.info(instruction).used_registers() {
        let set = bit(used.register());
        match used.access() {
            OpAccess::Read | OpAccess::CondRead => effect.reads |= set,
            OpAccess::Write => {
                effect.changes |= set;
                effect.sets |= set;
            }
            OpAccess::CondWrite => effect.changes |= set,
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                effect.reads |= set;
                effect.changes |= set;
            }
            _ => {}
        }
    }
    let formal = read_in_form(instruction);
    effect.reads &= !formal;
    effect.sets |= formal & effect.changes;
    effect
}

/// Registers that an instruction names as sources although its result does not depend on them.
fn read_in_form(instruction: &Instruction) -> Set {
    use Mnemonic as M;
    let first = instruction.op0_register();
    let second = instruction.op1_register();
    let same = first != Register::None && first == second;
    let number = || instruction.immediate(1) as i64;
    match instruction.mnemonic() {
        M::Or if is_immediate(instruction) && number() == -1 => bit(first),
        M::And if is_immediate(instruction) && number() == 0 => bit(first),
        M::Xor
        | M::Sub
        | M::Sbb
        | M::Pxor
        | M::Xorps
        | M::Xorpd
        | M::Pcmpeqb
        | M::Pcmpeqw
        | M::Pcmpeqd
        | M::Pcmpeqq
            if same =>
        {
            bit(first)
        }
        M::Vpxor
        | M::Vxorps
        | M::Vxorpd
        | M::Vpcmpeqb
        | M::Vpcmpeqw
        | M::Vpcmpeqd
        | M::Vpcmpeqq
            if second == instruction.op2_register() =>
        {
            bit(second)
        }
        M::Cvtsi2sd
        | M::Cvtsi2ss
        | M::Cvtss2sd
        | M::Cvtsd2ss
        | M::Sqrtsd
        | M::Sqrtss
        | M::Roundsd
        | M::Roundss
        | M::Rcpss
        | M::Rsqrtss
            if !same =>
        {
            bit(first)
        }
        M::Vcvtsi2sd
        | M::Vcvtsi2ss
        | M::Vcvtss2sd
        | M::Vcvtsd2ss
        | M::Vsqrtsd
        | M::Vsqrtss
        | M::Vroundsd
        | M::Vroundss
            if second != instruction.op2_register() =>
        {
            bit(second)
        }
        _ => 0,
    }
}

fn is_immediate(instruction: &Instruction) -> bool {
    use OpKind as K;
    matches!(
        instruction.op1_kind(),
        K::Immediate8
            | K::Immediate16
            | K::Immediate32
            | K::Immediate8to16
            | K::Immediate8to32
            | K::Immediate8to64
            | K::Immediate32to64
    ) && instruction.op0_register() != Register::None
}

/// What the replacement does, with all that it calls inside the patch.
#[derive(Clone, Copy)]
pub(super) struct Summary {
    /// Registers that may have another value when it returns.
    pub clobbers: Set,
    /// Whether it relies on a stack aligned as by the psABI.
    pub needs_alignment: bool,
}

/// One function by itself.
struct One {
    summary: Summary,
    /// What it saves and restores, whatever it calls does.
    kept: Set,
}

const WORST: Summary = Summary {
    clobbers: CALL_CLOBBERED,
    needs_alignment: true,
};

/// The code of a patch.
pub(super) struct NewCode<'p> {
    patch: &'p Patch,
    relocations: HashMap<(usize, u64), &'p Relocation>,
}

/// A function of the patch: section, start and end.
type Range = (usize, u64, u64);

impl<'p> NewCode<'p> {
    pub fn new(patch: &'p Patch) -> Self {
        let exec = |r: &&Relocation| patch.sections.get(r.section).is_some_and(|s| s.exec);
        let relocations = patch
            .relocations
            .iter()
            .filter(exec)
            .map(|r| ((r.section, r.offset), r))
            .collect();
        NewCode { patch, relocations }
    }

    /// What the function of a symbol does.
    pub fn summary(&self, symbol: usize) -> Summary {
        let range = self.patch.symbols.get(symbol).and_then(|s| match s.place {
            Place::Section(section, at) if s.size != 0 => {
                Some((section, at, at.checked_add(s.size)?))
            }
            _ => None,
        });
        let Some(range) = range else { return WORST };
        let mut total = Summary {
            clobbers: 0,
            needs_alignment: false,
        };
        let mut kept = 0;
        let mut work = vec![range];
        let mut seen = HashSet::new();
        while let Some(range) = work.pop() {
            if !seen.insert(range) {
                continue;
            }
            let Some(one) = self.one(range, &mut work) else {
                return WORST;
            };
            total.clobbers |= one.summary.clobbers;
            if seen.len() == 1 {
                // What the outermost function saves and aligns holds for those that it calls.
                kept = one.kept;
                total.needs_alignment = one.summary.needs_alignment;
            }
        }
        Summary {
            clobbers: total.clobbers & !kept,
            ..total
        }
    }

    /// One function by itself; the functions that it calls go to `work`. `None`: cannot be followed.
    fn one(&self, range: Range, work: &mut Vec<Range>) -> Option<One> {
        let (number, start, end) = range;
        let section: &Section = self.patch.sections.get(number)?;
        let code = section
            .data
            .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?;
        let mut factory = InstructionInfoFactory::new();
        let mut clobbers = 0;
        let mut needs = false;
        let mut realigns = false;
        let mut tail = false;
        let mut saved = Saved::default();
        for instruction in Decoder::with_ip(64, code, start, DecoderOptions::NONE).iter() {
            if instruction.is_invalid() {
                return None;
            }
            let changes = effect(&mut factory, &instruction).changes;
            saved.see(&instruction, changes);
            realigns |= instruction.mnemonic() == Mnemonic::And
                && instruction.op0_register() == Register::RSP;
            needs |= aligned_stack_access(&instruction);
            clobbers |= changes;
            let call = instruction.is_call_near() || instruction.is_call_near_indirect();
            if instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect() {
                (needs, tail) = (true, tail || !call);
                clobbers |= CALL_CLOBBERED;
            } else if instruction.op0_kind() == OpKind::NearBranch64 {
                match self.branch(number, &instruction) {
                    Some((s, to)) if s == number && (start..end).contains(&to) && !call => {}
                    Some(to) => {
                        (needs, tail) = (needs || call, tail || !call);
                        work.push(self.function(to)?);
                    }
                    // Into the target or a library.
                    None => {
                        (needs, tail) = (true, tail || !call);
                        clobbers |= CALL_CLOBBERED;
                    }
                }
            }
        }
        let kept = if tail { 0 } else { saved.kept() };
        let summary = Summary {
            clobbers: clobbers & !kept,
            needs_alignment: tail || (needs && !realigns),
        };
        Some(One { summary, kept })
    }

    /// Where a direct branch goes, if it stays in the patch.
    fn branch(&self, section: usize, instruction: &Instruction) -> Option<(usize, u64)> {
        let field = instruction.next_ip().checked_sub(4)?;
        let Some(relocation) = self.relocations.get(&(section, field)) else {
            return Some((section, instruction.near_branch_target()));
        };
        let symbol = self.patch.symbols.get(relocation.symbol)?;
        let Place::Section(section, value) = symbol.place else {
            return None;
        };
        Some((
            section,
            value
                .checked_add_signed(relocation.addend)?
                .checked_add(4)?,
        ))
    }

    /// The function that contains a place.
    fn function(&self, (section, at): (usize, u64)) -> Option<Range> {
        self.patch
            .symbols
            .iter()
            .filter(|s| s.func)
            .find_map(|s| match s.place {
                Place::Section(number, start) if number == section => {
                    let end = start.checked_add(s.size)?;
                    (start..end).contains(&at).then_some((section, start, end))
                }
                _ => None,
            })
    }
}

/// Vector loads and stores that fault when misaligned, on the stack.
fn aligned_stack_access(instruction: &Instruction) -> bool {
    use Mnemonic::{Movapd, Movaps, Movdqa, Movntdq, Movntps, Vmovapd, Vmovaps, Vmovdqa};
    let base = instruction.memory_base();
    let moves = [
        Movaps, Movapd, Movdqa, Movntdq, Movntps, Vmovaps, Vmovapd, Vmovdqa,
    ];
    let stack = base == Register::RSP || base == Register::RBP;
    // Legacy SSE arithmetic with a memory operand of 16 bytes faults too.
    let arithmetic = instruction.memory_size().size() == 16
        && instruction.encoding() == iced_x86::EncodingKind::Legacy;
    let loose = matches!(
        instruction.mnemonic(),
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu
    );
    stack && !loose && (moves.contains(&instruction.mnemonic()) || arithmetic)
}

/// Call-clobbered registers that a function pushes before it changes them and pops before each return, as with
/// `no_caller_saved_registers`.
#[derive(Default)]
struct Saved {
    pushed: Vec<Register>,
    /// Changed since the entry.
    changed: Set,
    /// After the first branch, call, or change of rsp.
    in_body: bool,
    /// Bytes of the frame below what was pushed.
    room: u64,
    /// Registers that a `pop` was the last to change, since the last branch.
    popped: Set,
    restored: Option<Set>,
    spoiled: bool,
}

impl Saved {
    fn see(&mut self, instruction: &Instruction, changes: Set) {
        let register = instruction.op0_register();
        match instruction.mnemonic() {
            Mnemonic::Push if !self.in_body => {
                if bit(register) & self.changed == 0 {
                    self.pushed.push(register);
                } else {
                    self.pushed.push(Register::None);
                }
            }
            Mnemonic::Pop => {
                self.in_body = true;
                self.popped |= bit(register);
            }
            Mnemonic::Ret => {
                self.restored = Some(self.restored.unwrap_or(!0) & self.popped);
                self.popped = 0;
            }
            _ => {
                if instruction.mnemonic() == Mnemonic::Sub && register == Register::RSP {
                    self.room = self.room.saturating_add(instruction.immediate(1));
                }
                let straight = instruction.flow_control() == FlowControl::Next;
                self.in_body |= register == Register::RSP || !straight;
                self.popped &= if straight { !changes } else { 0 };
                self.spoiled |= self.may_overwrite(instruction);
            }
        }
        self.changed |= changes;
    }

    /// A store that may reach the pushed registers.
    fn may_overwrite(&self, instruction: &Instruction) -> bool {
        if instruction.op0_kind() != OpKind::Memory {
            return false;
        }
        let displacement = instruction.memory_displacement64() as i64;
        let size = instruction.memory_size().size() as i64;
        match instruction.memory_base() {
            Register::RSP => displacement.saturating_add(size) > self.room.min(1 << 30) as i64,
            // rbp lies at or above what was pushed after it.
            Register::RBP => displacement >= (self.pushed.len() as i64).saturating_mul(-8),
            _ => false,
        }
    }

    fn kept(&self) -> Set {
        if self.spoiled {
            return 0;
        }
        let pushed = self.pushed.iter().fold(0, |set, r| set | bit(*r));
        pushed & self.restored.unwrap_or(0)
    }
}
