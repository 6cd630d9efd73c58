//! Two functions side by side, instruction by instruction.

use iced_x86::{
    Code as Op, ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic,
    OpKind, Register,
};
use livegraft_patchfile::elf::Rela;

use super::module::{Meaning, Module, is_pc_relative};
use super::pair::{Labels, Pair, Range};

/// An instruction and its place in the function.
pub(super) struct Step {
    pub at: u32,
    pub ins: Instruction,
    pub offsets: ConstantOffsets,
}

/// The instructions of a function, padding left out.
pub(super) struct Code {
    pub item: usize,
    pub section: usize,
    pub start: u64,
    pub steps: Vec<Step>,
    pub at: Vec<u32>,
}

/// What comparing two functions found.
pub(super) enum Verdict {
    Same,
    /// All is the same but immediates at these steps, which may be line numbers.
    Immediates(Vec<usize>),
    /// The offsets of the first instructions that differ, in the original and in the patched function.
    Differs(u64, u64),
}

/// Reads the instructions of a function. `None`: it has something that is no instruction.
pub(super) fn decode(module: &Module<'_>, item: usize) -> Option<Code> {
    let function = module.item(item)?;
    let bytes = module.bytes(function);
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let mut steps = Vec::with_capacity(bytes.len() / 4);
    while decoder.can_decode() {
        let ins = decoder.decode();
        if ins.is_invalid() {
            return None;
        }
        if ins.mnemonic() != Mnemonic::Nop {
            let offsets = decoder.get_constant_offsets(&ins);
            steps.push(Step {
                at: ins.ip() as u32,
                ins,
                offsets,
            });
        }
    }
    let at = steps.iter().map(|s| s.at).collect();
    Some(Code {
        item,
        section: function.section?,
        start: function.start,
        steps,
        at,
    })
}

/// A field of an instruction that a relocation fills.
pub(super) struct Field<'r> {
    pub rela: &'r Rela,
    pub meaning: Meaning,
    /// It is the displacement (else the immediate).
    pub displacement: bool,
}

impl Code {
    /// The relocated fields of a step; `None` if a relocation does not fit a field.
    pub fn fields<'r>(&self, module: &'r Module<'_>, step: &Step) -> Option<Vec<Field<'r>>> {
        let start = self.start.checked_add(u64::from(step.at))?;
        let end = start.checked_add(step.ins.len() as u64)?;
        let relas = module.relas(self.section, start, end);
        if relas.is_empty() {
            return Some(Vec::new());
        }
        let mut fields = Vec::with_capacity(relas.len());
        for rela in relas {
            let into = rela.offset.checked_sub(start)? as usize;
            let o = &step.offsets;
            let displacement = o.has_displacement() && o.displacement_offset() == into;
            // R_X86_64_TLSDESC_CALL and the like mark an instruction and fill nothing.
            let mark = into == 0 && matches!(rela.r_type, 35);
            let immediate = o.has_immediate() && o.immediate_offset() == into;
            if !(displacement || mark || immediate) {
                return None;
            }
            let from = if is_pc_relative(rela.r_type) {
                end.wrapping_sub(rela.offset) as i64
            } else {
                0
            };
            let meaning = module.meaning(rela.symbol, rela.addend.wrapping_add(from));
            fields.push(Field {
                rela,
                meaning,
                displacement,
            });
        }
        Some(fields)
    }

    /// Where a direct branch without a relocation leads.
    pub fn branch(&self, module: &Module<'_>, step: &Step) -> Meaning {
        let to = step.ins.near_branch_target();
        let size = module.item(self.item).map_or(0, |i| i.size);
        if to < size {
            return Meaning::Item(self.item, to as i64);
        }
        module.at(self.section, (self.start as i64).wrapping_add(to as i64))
    }
}

pub(super) fn is_near_branch(ins: &Instruction) -> bool {
    ins.op0_kind() == OpKind::NearBranch64
}

/// How many bytes a memory operand reads or writes at a fixed address; `None` if the address may be taken or indexed.
pub(super) fn access(ins: &Instruction) -> Option<u64> {
    let fixed = matches!(ins.memory_base(), Register::RIP | Register::None)
        && ins.memory_index() == Register::None;
    let size = ins.memory_size().size() as u64;
    let branch = matches!(
        ins.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall
    );
    (fixed && !branch && ins.mnemonic() != Mnemonic::Lea && size != 0).then_some(size)
}

/// Compares two functions that are each other's counterparts.
pub(super) fn compare(pair: &Pair<'_, '_>, old: usize, new: usize) -> Verdict {
    let (Some(a), Some(b)) = (decode(pair.old, old), decode(pair.new, new)) else {
        return compare_raw(pair, old, new);
    };
    let labels = Labels {
        old,
        new,
        old_at: &a.at,
        new_at: &b.at,
    };
    let mut immediates = Vec::new();
    for (number, (x, y)) in a.steps.iter().zip(&b.steps).enumerate() {
        match step(pair, &labels, (&a, x), (&b, y)) {
            Some(true) => {}
            Some(false) => immediates.push(number),
            None => return Verdict::Differs(x.at.into(), y.at.into()),
        }
    }
    if a.steps.len() != b.steps.len() {
        let shorter = a.steps.len().min(b.steps.len());
        let at = |code: &Code| {
            let at = code.at.get(shorter).or(code.at.last());
            at.copied().unwrap_or(0)
        };
        return Verdict::Differs(at(&a).into(), at(&b).into());
    }
    if immediates.is_empty() {
        Verdict::Same
    } else {
        Verdict::Immediates(immediates)
    }
}

/// What can't be decoded is compared as bytes.
fn compare_raw(pair: &Pair<'_, '_>, old: usize, new: usize) -> Verdict {
    let range = |module: &Module<'_>, item: usize| {
        let item = module.item(item)?;
        Some(Range {
            section: item.section?,
            start: item.start,
            len: item.size,
        })
    };
    let (Some(a), Some(b)) = (range(pair.old, old), range(pair.new, new)) else {
        return Verdict::Differs(0, 0);
    };
    if pair.same_bytes(a, b, None) {
        Verdict::Same
    } else {
        Verdict::Differs(0, 0)
    }
}

/// `Some(true)`: the same; `Some(false)`: the same but for a 32-bit immediate; `None`: different.
fn step(
    pair: &Pair<'_, '_>,
    labels: &Labels<'_>,
    (a, x): (&Code, &Step),
    (b, y): (&Code, &Step),
) -> Option<bool> {
    let branches = is_near_branch(&x.ins);
    if x.ins.mnemonic() != y.ins.mnemonic() || branches != is_near_branch(&y.ins) {
        return None;
    }
    let (fa, fb) = (a.fields(pair.old, x)?, b.fields(pair.new, y)?);
    if fa.len() != fb.len() {
        // Within the same section a branch may need no relocation, depending on where its target lies.
        let single = |f: &[Field<'_>], code: &Code, module: &Module<'_>, step: &Step| match f {
            [] => Some(code.branch(module, step)),
            [f] => Some(f.meaning),
            _ => None,
        };
        let (m, n) = (single(&fa, a, pair.old, x)?, single(&fb, b, pair.new, y)?);
        return (branches && pair.same(m, n, None, Some(labels))).then_some(true);
    }
    for (f, g) in fa.iter().zip(&fb) {
        let class = |t: u32| match t {
            // PLT32 is what PC32 is for a call; the linker may relax GOTPCREL either way.
            4 => 2,
            41 | 42 => 9,
            other => other,
        };
        let access = access(&x.ins).filter(|_| f.displacement);
        let same = f.displacement == g.displacement
            && class(f.rela.r_type) == class(g.rela.r_type)
            && pair.same(f.meaning, g.meaning, access, Some(labels));
        if !same {
            return None;
        }
    }
    if branches {
        let same = !fa.is_empty()
            || pair.same(
                a.branch(pair.old, x),
                b.branch(pair.new, y),
                None,
                Some(labels),
            );
        return same.then_some(true);
    }
    if x.ins == y.ins && !x.ins.is_ip_rel_memory_operand() {
        return Some(true);
    }
    let mut p = x.ins;
    let mut q = y.ins;
    if p.is_ip_rel_memory_operand() {
        // What it refers to was compared; without a relocation only the distance says it.
        let displaced = fa.iter().any(|f| f.displacement);
        let distance = |i: &Instruction| i.memory_displacement64().wrapping_sub(i.next_ip());
        if !q.is_ip_rel_memory_operand() || (!displaced && distance(&p) != distance(&q)) {
            return None;
        }
        p.set_memory_displacement64(0);
        q.set_memory_displacement64(0);
    }
    if p == q {
        return Some(true);
    }
    let relocated = fa.iter().any(|f| !f.displacement);
    (!relocated && without_number(&mut p)? == without_number(&mut q)? && p == q).then_some(false)
}

/// Takes out an immediate that can be a line number; says which operand it is.
fn without_number(ins: &mut Instruction) -> Option<u32> {
    // `push` has a short and a long form.
    if ins.code() == Op::Pushq_imm8 {
        ins.set_code(Op::Pushq_imm32);
    }
    let operand = ins.op_count().checked_sub(1)?;
    match (ins.mnemonic(), ins.op_kind(operand)) {
        (
            Mnemonic::Mov | Mnemonic::Push,
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate8to64,
        ) => {
            ins.set_op_kind(operand, OpKind::Immediate32);
            ins.set_immediate32(0);
            Some(operand)
        }
        _ => None,
    }
}

/// Whether two functions do the same, with the same numbers and references, but for registers and moves between them
/// and the stack.
pub(super) fn same_but_registers(pair: &Pair<'_, '_>, a: &Code, b: &Code) -> bool {
    use Mnemonic::{Lea, Mov, Movsxd, Pop, Push, Xchg};
    let numbers = |ins: &Instruction| -> Option<u64> {
        let operand = ins.op_count().checked_sub(1)?;
        ins.try_immediate(operand).ok()
    };
    let rest = |code: &Code| -> Vec<(Mnemonic, Option<u64>)> {
        let kept = code.steps.iter().filter(|s| {
            let moves = matches!(s.ins.mnemonic(), Mov | Movsxd | Push | Pop | Xchg | Lea);
            let stack = s.ins.op0_register() == Register::RSP;
            !(stack || moves && numbers(&s.ins).is_none())
        });
        let branch = |i: &Instruction| if is_near_branch(i) { None } else { numbers(i) };
        kept.map(|s| (s.ins.mnemonic(), branch(&s.ins))).collect()
    };
    let fields = |module: &Module<'_>, code: &Code| -> Option<Vec<Meaning>> {
        let mut all = Vec::new();
        for step in &code.steps {
            all.extend(code.fields(module, step)?.iter().map(|f| f.meaning));
        }
        Some(all)
    };
    let (Some(x), Some(y)) = (fields(pair.old, a), fields(pair.new, b)) else {
        return false;
    };
    let mut both = x.iter().zip(&y);
    rest(a) == rest(b) && x.len() == y.len() && both.all(|(x, y)| pair.same(*x, *y, None, None))
}

/// The functions of the object that a function calls.
pub(super) fn callees<'c>(
    module: &'c Module<'_>,
    code: &'c Code,
) -> impl Iterator<Item = usize> + 'c {
    let calls = code.steps.iter().filter(|s| s.ins.is_call_near());
    calls.filter_map(|step| {
        let fields = code.fields(module, step)?;
        let to = fields
            .first()
            .map_or_else(|| code.branch(module, step), |f| f.meaning);
        match to {
            Meaning::Item(item, 0) => Some(item),
            _ => None,
        }
    })
}
