//! A strict unwind: call frame information (.eh_frame) to the outermost frame, and nothing guessed.
//!
//! There is no fall-back to frame pointers or to what looks like a return address: where the information ends, the
//! unwind ends, and says so. Memory comes in as a callback, so nothing here knows of processes.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, EvaluationResult,
    FrameDescriptionEntry, LittleEndian, Register, RegisterRule, UnwindContext, UnwindExpression,
    UnwindSection, UnwindTableRow, Value,
};
use std::ops::Range;

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// Registers by their DWARF numbers (System V ABI, AMD64, figure 3.36); what is not known is `None`.
pub type Registers = [Option<u64>; 16];

/// rsp.
const RSP: usize = 7;
/// The return address' column.
const RETURN_ADDRESS: Register = Register(16);
/// rbx, rbp, r12 to r15: a function that says nothing of them leaves them alone.
const CALLEE_SAVED: [usize; 6] = [3, 6, 12, 13, 14, 15];
/// An expression that takes longer is damaged.
const MOST_STEPS: u32 = 1000;

/// The call frame information of one object.
#[derive(Debug)]
pub struct Module {
    /// The code that it speaks of, in the process.
    pub code: Vec<Range<u64>>,
    /// avma - svma.
    pub bias: u64,
    /// Contents and svma of .eh_frame.
    pub eh_frame: (Vec<u8>, u64),
    /// Contents and svma of .eh_frame_hdr; without it the information is searched from its begin.
    pub eh_frame_hdr: Option<(Vec<u8>, u64)>,
}

/// One activation of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it is: the next instruction, which is a return address in all frames but those that were interrupted.
    pub pc: u64,
    /// It was interrupted at `pc`, and has not called anything: the first frame, and who a signal handler interrupted.
    pub interrupted: bool,
    /// It is the kernel's frame for a signal handler.
    pub signal: bool,
    /// Its stack begins here ...
    pub low: u64,
    /// ... and ends here: the canonical frame address.
    pub high: u64,
    /// Where its return address lies; `None` in a signal frame.
    pub return_slot: Option<u64>,
}

impl Frame {
    /// An address within the instruction that the frame is at: the call, where `pc` is a return address.
    pub fn site(&self) -> u64 {
        if self.interrupted {
            self.pc
        } else {
            self.pc.wrapping_sub(1)
        }
    }

    /// Whether another stack may lie in a variable of it, so that what looks dead there may be returned to.
    pub fn may_host_a_stack(&self) -> bool {
        self.high.wrapping_sub(self.low) > LARGEST_CERTAIN
    }
}

/// A frame that is larger may host another stack in a variable of its own (a coroutine's), and what looks dead there
/// may be returned to. No stack of this size could take a signal: the kernel's frame for a handler is larger.
const LARGEST_CERTAIN: u64 = 1024;

/// A stack, innermost frame first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// The frames, as far as the information goes. Where it does not reach the outermost one, the last is that of whose
    /// caller nothing is known.
    pub frames: Vec<Frame>,
    /// The last one is the outermost: its caller is said to be undefined.
    pub complete: bool,
}

impl Stack {
    /// Whether the word at an address is certainly no return address: the unwind is complete, and the word lies in a
    /// frame that returns by another one, and that is too small to host another stack.
    pub fn is_dead(&self, at: u64) -> bool {
        self.is_unused(at, LARGEST_CERTAIN)
    }

    /// The same for a return address into code in which no other stack is ever left: how large the frame is does not
    /// matter then.
    pub fn is_dead_here(&self, at: u64) -> bool {
        self.is_unused(at, u64::MAX)
    }

    /// Whether the word at an address is the return address of one of its frames.
    pub fn returns_by(&self, at: u64) -> bool {
        self.frames
            .iter()
            .any(|frame| frame.return_slot == Some(at))
    }

    fn is_unused(&self, at: u64, largest: u64) -> bool {
        let mut frames = self.frames.iter();
        let frame = frames.find(|frame| (frame.low..frame.high).contains(&at));
        self.complete
            && frame.is_some_and(|frame| {
                !frame.signal
                    && frame.return_slot.is_some_and(|slot| slot != at)
                    && frame.high - frame.low <= largest
            })
    }
}

/// Unwinds stacks of one process.
#[derive(Debug, Default)]
pub struct Unwinder {
    modules: Vec<Module>,
    context: UnwindContext<usize>,
}

/// What a step from one frame to its caller found.
struct Caller {
    registers: Registers,
    /// `None`: there is no caller.
    pc: Option<u64>,
}

impl Unwinder {
    /// With what is known of the code.
    pub fn new(modules: Vec<Module>) -> Unwinder {
        Unwinder {
            modules,
            context: UnwindContext::new(),
        }
    }

    /// With what is known of more code.
    pub fn extend(&mut self, modules: Vec<Module>) {
        self.modules.extend(modules);
    }

    /// Unwinds from a stopped task's registers, at most `limit` frames. `read` reads a word of its memory.
    pub fn unwind(
        &mut self,
        mut pc: u64,
        mut registers: Registers,
        limit: usize,
        read: &dyn Fn(u64) -> Option<u64>,
    ) -> Stack {
        let mut stack = Stack::default();
        let mut interrupted = true;
        while stack.frames.len() < limit {
            let Some(low) = registers[RSP] else { break };
            if pc == 0 && !interrupted {
                break; // how old code marks its outermost frame, but nothing says so
            }
            let mut frame = Frame {
                pc,
                interrupted,
                signal: false,
                low,
                high: low,
                return_slot: None,
            };
            let caller = self.step(&mut frame, &registers, read);
            stack.frames.push(frame);
            let Some(caller) = caller else { break };
            let Some(address) = caller.pc else {
                stack.complete = true;
                break;
            };
            (registers, pc, interrupted) = (caller.registers, address, frame.signal);
        }
        stack
    }

    fn step(
        &mut self,
        frame: &mut Frame,
        registers: &Registers,
        read: &dyn Fn(u64) -> Option<u64>,
    ) -> Option<Caller> {
        let site = frame.site();
        let speaks = |module: &&Module| module.code.iter().any(|code| code.contains(&site));
        let mut found = self.modules.iter().filter(speaks).filter_map(|module| {
            let section = EhFrame::new(&module.eh_frame.0, LittleEndian);
            let fde = module.fde(&section, site.wrapping_sub(module.bias))?;
            Some((module, section, fde))
        });
        let (module, section, fde) = found.next()?;
        let address = site.wrapping_sub(module.bias);
        let bases = module.bases();
        let row = fde
            .unwind_info_for_address(&section, &bases, &mut self.context, address)
            .ok()?;
        frame.signal = fde.is_signal_trampoline();
        let evaluator = Evaluator {
            section: &section,
            fde: &fde,
            registers,
            read,
        };
        evaluator.caller(frame, row)
    }
}

impl Module {
    /// The stretch of code (svma) with call frame information of its own that an address (svma) lies in.
    pub fn stretch_at(&self, address: u64) -> Option<Range<u64>> {
        let section = EhFrame::new(&self.eh_frame.0, LittleEndian);
        let fde = self.fde(&section, address)?;
        let start = fde.initial_address();
        Some(start..start.checked_add(fde.len())?)
    }

    /// Where all such stretches begin (svma), sorted.
    pub fn starts(&self) -> Vec<u64> {
        let mut starts = self.starts_of_table().unwrap_or_else(|| {
            let parts = self.parts().into_iter();
            parts
                .map(|part| part.start.wrapping_sub(self.bias))
                .collect()
        });
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    fn starts_of_table(&self) -> Option<Vec<u64>> {
        let (hdr, _) = self.eh_frame_hdr.as_ref()?;
        let bases = self.bases();
        let hdr = EhFrameHdr::new(hdr, LittleEndian).parse(&bases, 8).ok()?;
        let table = hdr.table()?;
        let mut rows = table.iter(&bases);
        let mut starts = Vec::new();
        while let Ok(Some((start, _))) = rows.next() {
            starts.push(start.direct().ok()?);
        }
        Some(starts)
    }

    /// What it has information for, which is one function or a part of one each.
    pub fn parts(&self) -> Vec<Range<u64>> {
        let section = EhFrame::new(&self.eh_frame.0, LittleEndian);
        let bases = self.bases();
        let mut entries = section.entries(&bases);
        let mut parts = Vec::new();
        while let Ok(Some(entry)) = entries.next() {
            let gimli::CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(fde) = partial.parse(EhFrame::cie_from_offset) {
                let start = fde.initial_address().wrapping_add(self.bias);
                parts.push(start..start.saturating_add(fde.len()));
            }
        }
        parts
    }

    fn bases(&self) -> BaseAddresses {
        let bases = BaseAddresses::default().set_eh_frame(self.eh_frame.1);
        match &self.eh_frame_hdr {
            Some((_, svma)) => bases.set_eh_frame_hdr(*svma),
            None => bases,
        }
    }

    fn fde<'a>(
        &'a self,
        section: &EhFrame<Reader<'a>>,
        address: u64,
    ) -> Option<FrameDescriptionEntry<Reader<'a>>> {
        let bases = &self.bases();
        let Some((hdr, _)) = &self.eh_frame_hdr else {
            return section
                .fde_for_address(bases, address, EhFrame::cie_from_offset)
                .ok();
        };
        let hdr = EhFrameHdr::new(hdr, LittleEndian).parse(bases, 8).ok()?;
        hdr.table()?
            .fde_for_address(section, bases, address, EhFrame::cie_from_offset)
            .ok()
    }
}

/// Where the rules of one row are applied.
struct Evaluator<'a> {
    section: &'a EhFrame<Reader<'a>>,
    fde: &'a FrameDescriptionEntry<Reader<'a>>,
    registers: &'a Registers,
    read: &'a dyn Fn(u64) -> Option<u64>,
}

impl Evaluator<'_> {
    fn caller(&self, frame: &mut Frame, row: &UnwindTableRow<usize>) -> Option<Caller> {
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                self.register(*register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => self.evaluate(expression, None)?,
        };
        // A stack grows down: whoever calls is above. A signal frame may lead to another stack.
        if !frame.signal && cfa <= frame.low {
            return None;
        }
        frame.high = cfa;
        let mut registers: Registers = [None; 16];
        for (number, value) in registers.iter_mut().enumerate() {
            let register = Register(number as u16);
            *value = match row.register(register) {
                Some(rule) => self.apply(register, &rule, cfa),
                None if number == RSP => Some(cfa),
                None if CALLEE_SAVED.contains(&number) => self.register(register),
                None => None,
            };
        }
        let rule = row.register(RETURN_ADDRESS)?;
        match rule {
            RegisterRule::Undefined => {
                return Some(Caller {
                    registers,
                    pc: None,
                });
            }
            RegisterRule::Offset(offset) => {
                frame.return_slot = Some(cfa.wrapping_add_signed(offset))
            }
            _ => {}
        }
        if frame.signal {
            frame.return_slot = None;
        }
        let pc = Some(self.apply(RETURN_ADDRESS, &rule, cfa)?);
        Some(Caller { registers, pc })
    }

    fn register(&self, register: Register) -> Option<u64> {
        self.registers
            .get(usize::from(register.0))
            .copied()
            .flatten()
    }

    fn apply(&self, register: Register, rule: &RegisterRule<usize>, cfa: u64) -> Option<u64> {
        match rule {
            RegisterRule::SameValue => self.register(register),
            RegisterRule::Offset(offset) => (self.read)(cfa.wrapping_add_signed(*offset)),
            RegisterRule::ValOffset(offset) => Some(cfa.wrapping_add_signed(*offset)),
            RegisterRule::Register(other) => self.register(*other),
            RegisterRule::Expression(expression) => {
                (self.read)(self.evaluate(expression, Some(cfa))?)
            }
            RegisterRule::ValExpression(expression) => self.evaluate(expression, Some(cfa)),
            RegisterRule::Constant(value) => Some(*value),
            _ => None,
        }
    }

    /// `cfa` is on the expression's stack when it begins, where there is one already (DWARF 5, 6.4.2.3).
    fn evaluate(&self, expression: &UnwindExpression<usize>, cfa: Option<u64>) -> Option<u64> {
        let expression = expression.get(self.section).ok()?;
        let mut evaluation = expression.evaluation(self.fde.cie().encoding());
        evaluation.set_max_iterations(MOST_STEPS);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut state = evaluation.evaluate().ok()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size, .. } if size <= 8 => {
                    let word = (self.read)(address)?;
                    let bits = 64u32.checked_sub(8 * u32::from(size)).filter(|&n| n < 64)?;
                    let value = Value::Generic(word << bits >> bits);
                    evaluation.resume_with_memory(value).ok()?
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let value = Value::Generic(self.register(register)?);
                    evaluation.resume_with_register(value).ok()?
                }
                _ => return None,
            };
        }
        match evaluation.as_result() {
            [piece] => match piece.location {
                gimli::Location::Address { address } => Some(address),
                _ => None,
            },
            _ => None,
        }
    }
}
