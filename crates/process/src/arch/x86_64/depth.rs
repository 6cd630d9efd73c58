//! How deep the stack is at a function's calls, proven from its code: all its paths are followed with what they do to the
//! stack pointer, and where that is not certain nothing is known of the function.
//!
//! Code that no direct path leads to is reached from a switch or by an exception. A switch jumps with the stack as it is;
//! an exception lands with the stack pointer that the call had. So where all calls and all switches find the same stack,
//! that code begins with it, and where they don't nothing is known.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use std::collections::BTreeMap;

/// More code of one function is not looked at.
pub const LARGEST_FUNCTION: u64 = 128 * 1024;
/// A switch's jump follows the load from its table within so many instructions.
const SWITCH: usize = 4;

/// What a call calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callee {
    /// Always the code at this address.
    Code(u64),
    /// What a word holds, so far from where a register or the thread pointer leads.
    Word(u64),
    /// Something else.
    Unknown,
}

/// A call of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// What it calls.
    pub to: Callee,
    /// How far below the function's own return address the stack pointer is when it calls.
    pub depth: u64,
    /// The function may come here more than once.
    pub again: bool,
}

/// The calls of a function, by the addresses that they return to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Depths(BTreeMap<u64, Site>);

impl Depths {
    /// The call that returns to an address.
    pub fn site(&self, return_address: u64) -> Option<&Site> {
        self.0.get(&return_address)
    }

    /// All calls, with what they return to.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Site)> {
        self.0.iter().map(|(&back, site)| (back, site))
    }

    /// The depth that all calls have: a call in progress has its return address in the same word then, whichever it is.
    pub fn constant(&self) -> Option<u64> {
        let first = self.0.values().next()?.depth;
        self.0
            .values()
            .all(|site| site.depth == first)
            .then_some(first)
    }

    /// The least depth: no call has its return address above.
    pub fn least(&self) -> Option<u64> {
        self.0.values().map(|site| site.depth).min()
    }
}

/// The stack pointer, and rbp where it is derived from it, as distances from the word with the return address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    sp: i64,
    bp: Option<i64>,
}

struct Step {
    next_ip: u64,
    before: Point,
    next: Vec<u64>,
}

/// See the module.
struct Walk<'a> {
    entry: u64,
    bodies: &'a [(u64, Vec<u8>)],
    steps: BTreeMap<u64, Step>,
    calls: BTreeMap<u64, (u64, Callee, Point)>,
    switches: BTreeMap<u64, Point>,
    work: Vec<(u64, Point)>,
    infos: InstructionInfoFactory,
}

/// The calls of the function that is entered at `entry` and consists of `bodies` (address and code). `None` where the
/// stack pointer is not known throughout (alloca, alignment, other stacks), or where it leaves by a jump.
pub fn depths(entry: u64, bodies: &[(u64, Vec<u8>)]) -> Option<Depths> {
    let all: u64 = bodies.iter().map(|(_, code)| code.len() as u64).sum();
    if all > LARGEST_FUNCTION {
        return None;
    }
    let mut walk = Walk {
        entry,
        bodies,
        steps: BTreeMap::new(),
        calls: BTreeMap::new(),
        switches: BTreeMap::new(),
        work: Vec::from([(entry, Point { sp: 0, bp: None })]),
        infos: InstructionInfoFactory::new(),
    };
    walk.follow()?;
    let mut opaque = !walk.switches.is_empty();
    let mut cursor = (0, 0);
    let mut begun = Vec::new();
    while let Some(at) = walk.unreached(&mut cursor)? {
        opaque = true;
        begun.push(at);
        let point = walk.usual()?;
        walk.work.push((at, point));
        walk.follow()?;
    }
    // What came to be known later holds for what was begun before as well.
    let mut usual = None;
    while opaque && usual != Some(walk.usual()?) {
        let point = walk.usual()?;
        usual = Some(point);
        walk.work.extend(begun.iter().map(|&at| (at, point)));
        walk.follow()?;
    }
    let sites = walk.calls.iter().map(|(&back, &(at, to, point))| {
        let site = Site {
            to,
            depth: u64::try_from(-point.sp).ok()?,
            again: opaque || walk.leads(back, at),
        };
        Some((back, site))
    });
    Some(Depths(sites.collect::<Option<_>>()?))
}

impl Walk<'_> {
    fn decode(&self, at: u64) -> Option<Instruction> {
        let mut bodies = self.bodies.iter();
        let code = bodies.find_map(|(start, code)| {
            let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
            code.get(offset..).filter(|rest| !rest.is_empty())
        })?;
        let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    fn is_own(&self, at: u64) -> bool {
        let mut bodies = self.bodies.iter();
        bodies.any(|(start, code)| {
            at.checked_sub(*start)
                .is_some_and(|offset| offset < code.len() as u64)
        })
    }

    fn follow(&mut self) -> Option<()> {
        while let Some((at, mut point)) = self.work.pop() {
            if let Some(step) = self.steps.get(&at) {
                let before = step.before;
                if before.sp != point.sp {
                    return None;
                }
                if before.bp.is_none() || before.bp == point.bp {
                    continue;
                }
                // Two paths meet with two values.
                point.bp = None;
            }
            let instruction = self.decode(at)?;
            let after = self.after(&instruction, point)?;
            let next = self.next(&instruction, point, after)?;
            self.work.extend(next.iter().map(|&to| (to, after)));
            let step = Step {
                next_ip: instruction.next_ip(),
                before: point,
                next,
            };
            self.steps.insert(at, step);
        }
        Some(())
    }

    /// Where a path goes on.
    fn next(&mut self, instruction: &Instruction, before: Point, after: Point) -> Option<Vec<u64>> {
        let next_ip = instruction.next_ip();
        let direct = instruction.op0_kind() == OpKind::NearBranch64;
        let jump = |walk: &Self| {
            let to = instruction.near_branch_target();
            // To its own entry: that is another call of it, for all that is known.
            (direct && walk.is_own(to) && !walk.is_entry(to)).then_some(to)
        };
        Some(match instruction.flow_control() {
            FlowControl::Next if instruction.mnemonic() == Mnemonic::Hlt => Vec::new(),
            FlowControl::Next => Vec::from([next_ip]),
            FlowControl::Call if instruction.mnemonic() == Mnemonic::Syscall => {
                Vec::from([next_ip])
            }
            FlowControl::Call | FlowControl::IndirectCall => {
                let to = callee(instruction)?;
                if let Callee::Code(to) = to
                    && self.is_own(to)
                    && to != self.entry
                {
                    return None;
                }
                let call = (instruction.ip(), to, before);
                self.calls.insert(next_ip, call);
                // Nothing follows a call that does not return.
                let follows = self.is_own(next_ip).then_some(next_ip);
                follows.into_iter().collect()
            }
            FlowControl::UnconditionalBranch => Vec::from([jump(self)?]),
            FlowControl::ConditionalBranch => Vec::from([jump(self)?, next_ip]),
            FlowControl::IndirectBranch if self.is_switch(instruction) => {
                self.switches.insert(instruction.ip(), after);
                Vec::new()
            }
            FlowControl::Return if matches!(instruction.code(), Code::Retnq) && before.sp == 0 => {
                Vec::new()
            }
            FlowControl::Exception => Vec::new(),
            FlowControl::Interrupt if instruction.code() == Code::Int3 => Vec::new(),
            _ => return None,
        })
    }

    fn is_entry(&self, at: u64) -> bool {
        let first = self.decode(self.entry);
        let behind = first
            .filter(|first| first.mnemonic() == Mnemonic::Endbr64)
            .map(|first| first.next_ip());
        at == self.entry || Some(at) == behind
    }

    /// What an instruction does to the stack pointer and to rbp.
    fn after(&mut self, instruction: &Instruction, before: Point) -> Option<Point> {
        let Point { sp, bp } = before;
        let mut after = before;
        let is = |operand: u32, register: Register| {
            instruction.op_kind(operand) == OpKind::Register
                && instruction.op_register(operand) == register
        };
        let plain_memory = instruction.memory_index() == Register::None
            && instruction.segment_prefix() == Register::None;
        let displaced = |from: i64| {
            from.checked_add(instruction.memory_displacement64().cast_signed())
                .filter(|_| plain_memory)
        };
        let address = match instruction.memory_base() {
            Register::RSP => displaced(sp),
            Register::RBP => bp.and_then(displaced),
            _ => None,
        };
        match instruction.mnemonic() {
            // The call comes back with the stack as it was.
            Mnemonic::Call | Mnemonic::Ret => return Some(before),
            Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Pop | Mnemonic::Popfq
                if !is(0, Register::RSP) || instruction.mnemonic() == Mnemonic::Push =>
            {
                after.sp = sp.checked_add(i64::from(instruction.stack_pointer_increment()))?;
            }
            Mnemonic::Sub | Mnemonic::Add if is(0, Register::RSP) => {
                let immediate = matches!(
                    instruction.op1_kind(),
                    OpKind::Immediate8to64 | OpKind::Immediate32to64
                );
                let by = immediate.then(|| instruction.immediate(1).cast_signed())?;
                after.sp = match instruction.mnemonic() {
                    Mnemonic::Sub => sp.checked_sub(by)?,
                    _ => sp.checked_add(by)?,
                };
            }
            Mnemonic::Lea if is(0, Register::RSP) => after.sp = address?,
            Mnemonic::Mov if is(0, Register::RSP) && is(1, Register::RBP) => after.sp = bp?,
            Mnemonic::Leave => after.sp = bp?.checked_add(8)?,
            _ if self.writes(instruction, Register::RSP) => return None,
            _ => {}
        }
        after.bp = match instruction.mnemonic() {
            Mnemonic::Mov if is(0, Register::RBP) && is(1, Register::RSP) => Some(sp),
            Mnemonic::Lea if is(0, Register::RBP) => address,
            _ if self.writes(instruction, Register::RBP) => None,
            _ => bp,
        };
        // Above its return address is its caller's.
        (after.sp <= 0 && after.sp % 8 == 0).then_some(after)
    }

    fn writes(&mut self, instruction: &Instruction, register: Register) -> bool {
        let info = self.infos.info(instruction);
        info.used_registers().iter().any(|used| {
            let writes = matches!(
                used.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            );
            writes && used.register().full_register() == register
        })
    }

    /// Whether a jump is that of a switch: to the sum of a table's address and an entry of it, or to an entry.
    fn is_switch(&self, jump: &Instruction) -> bool {
        if jump.op0_kind() == OpKind::Memory {
            return jump.memory_base() == Register::None
                && jump.memory_index() != Register::None
                && jump.memory_index_scale() == 8;
        }
        let target = jump.op0_register();
        let mut adjacent = jump.ip();
        let steps = self.steps.range(..jump.ip()).rev().take(SWITCH);
        let mut before = steps.map_while(|(&at, step)| {
            let follows = step.next_ip == adjacent;
            adjacent = at;
            self.decode(at).filter(|_| follows)
        });
        let add = before.next().filter(|add| {
            add.mnemonic() == Mnemonic::Add
                && add.op0_register() == target
                && add.op1_kind() == OpKind::Register
        });
        let Some(other) = add.map(|add| add.op1_register()) else {
            return false;
        };
        for instruction in before {
            let written = instruction.op0_register();
            if written == target || written == other {
                let base = if written == target { other } else { target };
                return instruction.mnemonic() == Mnemonic::Movsxd
                    && instruction.memory_base() == base
                    && instruction.memory_index() != Register::None
                    && instruction.memory_index_scale() == 4;
            }
        }
        false
    }

    /// The stack as all calls and all switches find it.
    fn usual(&self) -> Option<Point> {
        let calls = self.calls.values().map(|&(_, _, point)| point);
        let mut points = calls.chain(self.switches.values().copied());
        let mut usual = points.next()?;
        for point in points {
            if point.sp != usual.sp {
                return None;
            }
            usual.bp = usual.bp.filter(|_| point.bp == usual.bp);
        }
        Some(usual)
    }

    /// The first instruction that no path has led to yet, apart from what fills gaps, not before `at` in the body with
    /// this number. Nothing where two paths read the same bytes in two ways.
    fn unreached(&self, cursor: &mut (usize, u64)) -> Option<Option<u64>> {
        while let Some((start, code)) = self.bodies.get(cursor.0) {
            let end = start.checked_add(code.len() as u64)?;
            let mut at = cursor.1.max(*start);
            while at < end {
                if let Some(step) = self.steps.get(&at) {
                    at = step.next_ip;
                    continue;
                }
                let instruction = self.decode(at)?;
                let inside = self.steps.range(at..instruction.next_ip()).next().is_some();
                if inside {
                    return None;
                }
                let fills = matches!(
                    instruction.mnemonic(),
                    Mnemonic::Nop | Mnemonic::Int3 | Mnemonic::Ud2 | Mnemonic::Hlt
                );
                if !fills {
                    cursor.1 = at;
                    return Some(Some(at));
                }
                at = instruction.next_ip();
            }
            *cursor = (cursor.0 + 1, 0);
        }
        let mut steps = self.steps.iter().zip(self.steps.keys().skip(1));
        let apart = steps.all(|((_, step), &next)| step.next_ip <= next);
        apart.then_some(None)
    }

    /// Whether a path leads from one instruction to another.
    fn leads(&self, from: u64, to: u64) -> bool {
        let mut seen = std::collections::BTreeSet::new();
        let mut work = Vec::from([from]);
        while let Some(at) = work.pop() {
            if at == to {
                return true;
            }
            if seen.insert(at)
                && let Some(step) = self.steps.get(&at)
            {
                work.extend(&step.next);
            }
        }
        false
    }
}

fn callee(call: &Instruction) -> Option<Callee> {
    if call.mnemonic() != Mnemonic::Call || call.is_call_far_indirect() {
        return None;
    }
    Some(match call.op0_kind() {
        OpKind::NearBranch64 => Callee::Code(call.near_branch_target()),
        OpKind::Memory => {
            let by_register = call.memory_base() != Register::None
                && !call.is_ip_rel_memory_operand()
                && call.segment_prefix() == Register::None;
            let by_thread =
                call.memory_base() == Register::None && call.segment_prefix() == Register::FS;
            match call.memory_index() == Register::None && (by_register || by_thread) {
                true => Callee::Word(call.memory_displacement64()),
                false => Callee::Unknown,
            }
        }
        OpKind::Register => Callee::Unknown,
        _ => return None,
    })
}

/// Whether code calls nothing more, and jumps nowhere else, from its first byte on: what a task's first function does when
/// what it has called has returned.
pub fn calls_nothing(start: u64, code: &[u8]) -> bool {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match instruction.flow_control() {
            _ if instruction.is_invalid() => return false,
            FlowControl::Next if instruction.mnemonic() != Mnemonic::Hlt => {}
            FlowControl::Call if instruction.mnemonic() == Mnemonic::Syscall => {}
            FlowControl::Next | FlowControl::Return | FlowControl::Exception => return true,
            _ => return false,
        }
    }
    true
}
