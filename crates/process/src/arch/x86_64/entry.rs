//! Redirecting the first bytes of a function: what is written, and what of it moves elsewhere.

use super::flow::last;
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, Mnemonic, OpKind,
};

const JMP_REL32: u8 = 0xe9;
const JMP_REL8: u8 = 0xeb;
/// Length of `jmp rel32`: the bytes of an entry that are claimed.
pub const CLAIM: usize = 5;

/// Why a function's entry can't be redirected by a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRedirectable {
    /// The first bytes are no instruction.
    #[error("its first bytes are no instruction")]
    Undecodable,
    /// The first instruction works only where it stands.
    #[error("its first instruction can't be moved")]
    Immovable,
    /// The displacement that the entry's bytes spell leads out of user space.
    #[error("the bytes of its entry spell a jump out of the address space")]
    OutOfSpace,
    /// Something is mapped where the pun leads.
    #[error("what its entry would jump to is taken")]
    Taken,
    /// Too short for a swap and no padding in reach.
    #[error("its first instruction is too short and no padding is in reach")]
    NoRoom,
    /// A branch leads into the bytes that a swap rewrites.
    #[error("a branch of its own leads into the first bytes of its entry")]
    BranchInto,
    /// Another redirected entry lies within these five bytes.
    #[error("another redirected function begins within its first five bytes")]
    Overlaps,
    /// A page swap would copy somebody else's bytes.
    #[error(
        "its page does not say what its file says at {0:#x} (a breakpoint of a debugger, a uprobe of perf, bpftrace or SystemTap, or another tool has changed it)"
    )]
    ForeignPage(u64),
    /// mseal.
    #[error("its page is sealed (mseal) and can't be replaced")]
    Sealed,
    /// No free memory within reach.
    #[error("no free memory is in reach of it")]
    NoNearMemory,
}

/// Bytes of running text that are replaced.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Edit {
    /// Where.
    pub at: u64,
    /// What the file says.
    pub original: Vec<u8>,
    /// What stands there while the function is redirected.
    pub redirected: Vec<u8>,
}

impl Edit {
    /// What stands there while the function is redirected, or while it is not.
    pub fn value(&self, redirect: bool) -> &[u8] {
        if redirect {
            &self.redirected
        } else {
            &self.original
        }
    }
}

/// An entry to redirect: `at` is the function's first byte, or the one after `endbr64`; `code` begins there and goes
/// on for as long as the text does, or at least 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Address of the first byte.
    pub at: u64,
    /// The original bytes from there on.
    pub code: &'a [u8],
    /// How many of them belong to the function.
    pub len: usize,
}

/// How many bytes of `endbr64` a function begins with: it stays where indirect branches must meet it.
pub fn skip_endbr(code: &[u8]) -> usize {
    if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) {
        4
    } else {
        0
    }
}

impl Site<'_> {
    /// The first instruction.
    ///
    /// # Errors
    /// [`NotRedirectable::Undecodable`].
    pub fn first(&self) -> Result<Instruction, NotRedirectable> {
        let mut decoder = Decoder::with_ip(64, self.code, self.at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(NotRedirectable::Undecodable);
        }
        Ok(instruction)
    }
}

/// The one byte that a pun changes.
pub fn pun_edit(site: &Site<'_>) -> Option<Edit> {
    Some(Edit {
        at: site.at,
        original: vec![*site.code.first()?],
        redirected: vec![JMP_REL32],
    })
}

/// Where a `jmp rel32` at the entry leads when bytes 1..4 stay as they are (as they will be: `following` are the four
/// bytes that stand there while this entry is redirected).
///
/// # Errors
/// [`NotRedirectable::OutOfSpace`].
pub fn pun_target(at: u64, following: [u8; 4]) -> Result<u64, NotRedirectable> {
    let target = at
        .wrapping_add(CLAIM as u64)
        .wrapping_add_signed(i64::from(i32::from_le_bytes(following)));
    if (super::PAGE * 16..super::USER_END - 16).contains(&target) {
        Ok(target)
    } else {
        Err(NotRedirectable::OutOfSpace)
    }
}

/// How the original is entered while its entry is redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The relocated first instruction and the jump back.
    pub bytes: Vec<u8>,
}

/// Relocates the instructions that begin in the first `cover` bytes to `to`, followed by a jump to the next one. A `call`
/// becomes a push of the original return address and a jump, so that what it calls returns into the function itself and
/// unwinders see it.
///
/// # Errors
/// [`NotRedirectable::Undecodable`], [`NotRedirectable::Immovable`].
pub fn continuation(
    site: &Site<'_>,
    to: u64,
    cover: usize,
) -> Result<Continuation, NotRedirectable> {
    let immovable = |_| NotRedirectable::Immovable;
    let jump = |target| Instruction::with_branch(Code::Jmp_rel32_64, target).map_err(immovable);
    let mut decoder = Decoder::with_ip(64, site.code, site.at, DecoderOptions::NONE);
    let mut block: Vec<Instruction> = Vec::with_capacity(8);
    loop {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(NotRedirectable::Undecodable);
        }
        let back = instruction.next_ip();
        let covered = back >= site.at.saturating_add(cover as u64);
        match instruction.flow_control() {
            // What it calls would return into bytes that are not there any more.
            FlowControl::Call | FlowControl::IndirectCall if !covered => {
                return Err(NotRedirectable::Immovable);
            }
            FlowControl::Call if instruction.code() == Code::Call_rel32_64 => {
                push_constant(&mut block, back)?;
                block.push(jump(instruction.near_branch_target())?);
                break;
            }
            FlowControl::IndirectCall => {
                push_constant(&mut block, back)?;
                block.push(jump_of_call(instruction)?);
                break;
            }
            FlowControl::Call
            | FlowControl::Interrupt
            | FlowControl::Exception
            | FlowControl::XbeginXabortXend => return Err(NotRedirectable::Immovable),
            FlowControl::Return
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch => {
                block.push(instruction);
                // What follows may be reached from within.
                if covered || back >= site.at.saturating_add(site.len as u64) {
                    break;
                }
            }
            FlowControl::Next | FlowControl::ConditionalBranch => {
                if instruction.mnemonic() == Mnemonic::Syscall {
                    return Err(NotRedirectable::Immovable);
                }
                block.push(instruction);
                if covered {
                    block.push(jump(back)?);
                    break;
                }
            }
        }
    }
    let encoded = BlockEncoder::encode(
        64,
        InstructionBlock::new(&block, to),
        BlockEncoderOptions::NONE,
    )
    .map_err(immovable)?;
    Ok(Continuation {
        bytes: encoded.code_buffer,
    })
}

/// An indirect call as a jump to the same place, behind the push of a return address.
fn jump_of_call(call: Instruction) -> Result<Instruction, NotRedirectable> {
    // The operand may depend on rsp, which the push moves.
    let by_rsp = call.op0_kind() == OpKind::Memory && call.memory_base() == iced_x86::Register::RSP
        || call.op0_register() == iced_x86::Register::RSP;
    if by_rsp || call.code() != Code::Call_rm64 {
        return Err(NotRedirectable::Immovable);
    }
    let mut jump = call;
    jump.set_code(Code::Jmp_rm64);
    Ok(jump)
}

/// `push imm32; movl imm32,4(%rsp)`: a 64-bit constant without a register.
fn push_constant(block: &mut Vec<Instruction>, value: u64) -> Result<(), NotRedirectable> {
    let immovable = |_| NotRedirectable::Immovable;
    let (low, high) = (value as u32 as i32, (value >> 32) as u32 as i32);
    block.push(Instruction::with1(Code::Pushq_imm32, low).map_err(immovable)?);
    let memory = iced_x86::MemoryOperand::with_base_displ(iced_x86::Register::RSP, 4);
    block.push(Instruction::with2(Code::Mov_rm32_imm32, memory, high).map_err(immovable)?);
    Ok(())
}

/// A way to redirect an entry on a copy of its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// What is written: padding first.
    pub edits: Vec<Edit>,
    /// The instructions that begin in so many bytes move elsewhere.
    pub cover: usize,
}

/// What a copy of the page says: `jmp rel32` at the entry, or a short jump to padding that holds one (`pad`: its address
/// and what stands there). While tasks run only bytes of the first instruction may change, since nobody can be in the
/// middle of it. When they all stand still (`standing`) it may be several instructions: with what branches back into
/// them, if that is near.
///
/// # Errors
/// [`NotRedirectable::NoRoom`], [`NotRedirectable::BranchInto`], [`NotRedirectable::NoNearMemory`].
pub fn rewrite(
    site: &Site<'_>,
    trampoline: u64,
    pad: Option<(u64, [u8; CLAIM])>,
    standing: bool,
) -> Result<Rewrite, NotRedirectable> {
    let far = NotRedirectable::NoNearMemory;
    let mut edits = Vec::new();
    let mut jump = match pad {
        None => jump_bytes(site.at, trampoline).ok_or(far)?,
        Some((at, original)) => {
            edits.push(Edit {
                at,
                original: original.to_vec(),
                redirected: jump_bytes(at, trampoline).ok_or(far)?,
            });
            let reach = i8::try_from(at.wrapping_sub(site.at.wrapping_add(2)) as i64);
            let reach = reach.map_err(|_| NotRedirectable::NoRoom)?;
            vec![JMP_REL8, reach.to_le_bytes()[0]]
        }
    };
    let cover = if standing {
        covered(site, jump.len())?
    } else if site.first()?.len() < jump.len() {
        return Err(NotRedirectable::NoRoom);
    } else if branches(site).any(|branch| leads_into(&branch, site, jump.len())) {
        return Err(NotRedirectable::BranchInto);
    } else {
        1
    };
    // Nobody must be within what moves elsewhere, although its tail stays as it is.
    let claimed = site.code.get(..cover.max(jump.len()));
    let original = claimed.ok_or(NotRedirectable::NoRoom)?.to_vec();
    jump.extend_from_slice(original.get(jump.len()..).unwrap_or_default());
    edits.push(Edit {
        at: site.at,
        original,
        redirected: jump,
    });
    Ok(Rewrite { edits, cover })
}

/// How many bytes at least move elsewhere when the first `len` are rewritten: those, and all up to the last branch that
/// leads back into them.
fn covered(site: &Site<'_>, len: usize) -> Result<usize, NotRedirectable> {
    /// What moves must fit into a cell, where it may be longer.
    const MOST: usize = 32;
    let padded = |end: usize| site.code.get(site.len..end).is_some_and(all_nops);
    if site.len < len && !(len..=site.len.saturating_add(32)).any(padded) {
        return Err(NotRedirectable::NoRoom);
    }
    let mut cover = len;
    loop {
        let behind = site.at.saturating_add(cover as u64);
        let back =
            branches(site).find(|branch| branch.ip() >= behind && leads_into(branch, site, cover));
        match back {
            None => return Ok(cover),
            Some(branch) => cover = (branch.next_ip() - site.at) as usize,
        }
        if cover > MOST {
            return Err(NotRedirectable::BranchInto);
        }
    }
}

fn branches<'a>(site: &Site<'a>) -> impl Iterator<Item = Instruction> + use<'a> {
    let body = site.code.get(..site.len.min(site.code.len()));
    Decoder::with_ip(64, body.unwrap_or_default(), site.at, DecoderOptions::NONE)
        .into_iter()
        .filter(|instruction| instruction.near_branch_target() != 0)
}

/// Whether it leads into bytes 1..end of the entry.
fn leads_into(branch: &Instruction, site: &Site<'_>, end: usize) -> bool {
    let target = branch.near_branch_target();
    target > site.at && target < site.at.saturating_add(end as u64)
}

/// Whether code elsewhere that belongs to the function branches into bytes 1..end of its entry.
pub fn leads_back(start: u64, code: &[u8], site: &Site<'_>, end: usize) -> bool {
    Decoder::with_ip(64, code, start, DecoderOptions::NONE)
        .into_iter()
        .any(|branch| leads_into(&branch, site, end))
}

/// `jmp rel32` at `from`; `None` when `to` is out of reach.
fn jump_bytes(from: u64, to: u64) -> Option<Vec<u8>> {
    let displacement = to.wrapping_sub(from.wrapping_add(CLAIM as u64)) as i64;
    let mut bytes = vec![JMP_REL32];
    bytes.extend_from_slice(&i32::try_from(displacement).ok()?.to_le_bytes());
    Some(bytes)
}

/// Five bytes of NOPs that end right before the function, of which `before` are the bytes in front: it does not matter
/// whether what precedes them runs into them, and so into the function.
pub fn padding_before(function: u64, before: &[u8]) -> Option<(u64, [u8; CLAIM])> {
    let found =
        (CLAIM..=before.len()).any(|len| before.get(before.len() - len..).is_some_and(all_nops));
    let bytes = before.last_chunk().filter(|_| found)?;
    Some((function.checked_sub(CLAIM as u64)?, *bytes))
}

/// Five bytes of NOPs right after the function.
pub fn padding_after(site: &Site<'_>) -> Option<(u64, [u8; CLAIM])> {
    let after = site.code.get(site.len..)?;
    let body = site.code.get(..site.len)?;
    let found = (CLAIM..=after.len().min(32)).any(|len| after.get(..len).is_some_and(all_nops));
    let bytes = after.first_chunk().filter(|_| found)?;
    (!runs_on(site.at, body)).then_some((site.at.checked_add(site.len as u64)?, *bytes))
}

/// Whether this code runs on behind its last byte, as far as that can be told: a call may be of a function that does not
/// return.
fn runs_on(start: u64, code: &[u8]) -> bool {
    let last = last(start, code);
    last.is_none_or(|last| {
        matches!(
            last.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch
        ) || last.is_invalid()
    })
}

/// Whether nothing gets behind the last byte of this code: it ends with a jump, a return, or what faults.
pub fn ends(start: u64, code: &[u8]) -> bool {
    let end = start.saturating_add(code.len() as u64);
    let last = last(start, code);
    last.is_some_and(|last| {
        last.next_ip() == end
            && matches!(
                last.flow_control(),
                FlowControl::Return
                    | FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Exception
            )
    })
}

/// Where this code jumps to outside of itself: the functions that it may leave to by a tail jump. Its own entry is among
/// them if it jumps there: whoever arrives so may be in the middle of a loop.
pub fn tail_targets(start: u64, code: &[u8]) -> Vec<u64> {
    const MOST: usize = 4096;
    let inside = start.saturating_add(1)..start.saturating_add(code.len() as u64);
    let entry = start + skip_endbr(code) as u64;
    let jumps = Decoder::with_ip(64, code, start, DecoderOptions::NONE)
        .into_iter()
        .filter(|jump| {
            matches!(
                jump.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
            )
        });
    let mut targets: Vec<u64> = jumps
        .map(|jump| jump.near_branch_target())
        .filter(|target| *target != 0 && (*target == entry || !inside.contains(target)))
        .take(MOST)
        .collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// The last address that a return into this code may have: one past its end when its last instruction is a call (of a
/// function that does not return, for one), else within it. One past the end is also where the next function begins,
/// and pointers to functions lie on many stacks.
pub fn last_return_address(start: u64, code: &[u8]) -> u64 {
    let end = start.saturating_add(code.len() as u64);
    let last = last(start, code);
    let ends_without_call = last.is_some_and(|last| {
        !last.is_invalid()
            && last.next_ip() == end
            && !matches!(
                last.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            )
    });
    if ends_without_call {
        end.saturating_sub(1)
    } else {
        end
    }
}

/// Whether the bytes are NOPs (or int3) from the first to the last.
pub fn all_nops(bytes: &[u8]) -> bool {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        // `data16 cs nopw` and its kin are all Nop to the decoder; `xchg %ax,%ax` too.
        if instruction.is_invalid()
            || !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
        {
            return false;
        }
    }
    true
}
