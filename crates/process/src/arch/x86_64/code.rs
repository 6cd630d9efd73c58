//! The machine code that livegraft puts into a target: trampolines, and the stub by which a task switches itself.
//!
//! An entry jumps to its trampoline, one instruction that touches no register: `jmp *%gs:(A + 16*slot)`. A task that
//! waits has a private table whose slots lead to thunks; a thunk calls the stub, which scans the task's own stack and,
//! when nothing replaced is left on it, sets the gs base with `wrgsbase`; then the thunk jumps through the second
//! word of the slot, in whichever table the task is now.
//!
//! Where `wrgsbase` is not to be had, the stub waits a moment instead of switching, at a place where whoever visits the
//! task can move it: see [`AtCall::Wait`].
//!
//! The switch header lies right below a table, at `A - 64` seen through gs. That of an ordinary table is all zeros. Below
//! that of a private one lie its pins: the words on the stack that are dead, and what proves that they still are.

use super::SLOT_BYTES;
use crate::sys::Registers;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Bytes of a trampoline.
pub const TRAMPOLINE: u64 = 8;
/// Bytes of one entry's cell: continuation and thunk.
pub const CELL: u64 = 96;
/// Where in a cell its thunk is: behind the continuation.
pub const THUNK: u64 = 56;
/// Bytes of a thunk.
pub const THUNK_LEN: u64 = 35;
/// Bytes reserved for the stub at the start of a near region.
pub const STUB_AREA: u64 = 512;
/// Bytes of the header below a table.
pub const SWITCH_HEADER: u64 = 64;

const ARMED: i64 = -64;
const GS_TO: i64 = -56;
const STACK_LOW: i64 = -48;
const STACK_HIGH: i64 = -40;
const RANGES: i64 = -32;
const RANGE_COUNT: i64 = -24;
/// Bytes of the pins, in a byte of the header's first word.
const PIN_BYTES: i64 = ARMED + 2;
/// Bytes of one.
const PIN: u64 = 16;
/// In a pin's address: the word is dead. (All are multiples of eight.)
const DEAD: u64 = 1;

/// Where in a thunk its call of the stub returns to.
const AFTER_CALL: u64 = 10;
const RED_ZONE: i32 = 128;
/// So many times a waiting task looks at the clock during one call: 30 to 250 us.
const TURNS: u32 = 4096;
/// The registers that the stub uses, in the order in which it saves them.
const SAVED: usize = 9;

/// What a private table says below its first slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwitchHeader {
    /// The task may switch itself. One byte, so that it can be taken back while the stub runs.
    pub armed: bool,
    /// How many pins lie below the header.
    pub pins: u16,
    /// The gs base of the universe to switch to, or how long the task waits, see [`AtCall`].
    pub gs_to: u64,
    /// The stack that was seen: addresses from here ...
    pub stack_low: u64,
    /// ... up to here are scanned; on any other stack the task stays.
    pub stack_high: u64,
    /// Address of the ranges that must not be on the stack: pairs (after, last), sorted.
    pub ranges: u64,
    /// Number of pairs.
    pub range_count: u64,
    /// The universe that the table is a copy of.
    pub from: u32,
    /// The universe to switch to.
    pub to: u32,
    /// A number that no other word of the pool has at that place.
    pub magic: u64,
}

/// One step of the proof that a word on a task's stack is dead. They are gone through in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The word's address, a multiple of eight.
    pub at: u64,
    /// What it holds.
    pub word: u64,
    /// What is to be done with it.
    pub dead: bool,
}

/// The pins as they lie in memory, up to a header. One that is not `dead` must hold its word, or nothing is proven by those
/// that follow; one that is dead need not be minded while it holds its word.
pub fn pins(pins: &[Pin]) -> Vec<u8> {
    pins.iter()
        .flat_map(|pin| [pin.at | (u64::from(pin.dead) * DEAD), pin.word])
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// The header as it lies in memory.
pub fn header(header: &SwitchHeader) -> [u8; SWITCH_HEADER as usize] {
    let words = [
        u64::from(header.armed) | (u64::from(header.pins) * PIN) << 16,
        header.gs_to,
        header.stack_low,
        header.stack_high,
        header.ranges,
        header.range_count,
        u64::from(header.from) | u64::from(header.to) << 32,
        header.magic,
    ];
    let mut out = [0; SWITCH_HEADER as usize];
    for (place, word) in out.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Reads a header back.
pub fn decode_header(bytes: &[u8; SWITCH_HEADER as usize]) -> SwitchHeader {
    let mut words = [0u64; 8];
    for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = place
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
    }
    let [
        armed,
        gs_to,
        stack_low,
        stack_high,
        ranges,
        range_count,
        universes,
        magic,
    ] = words;
    SwitchHeader {
        armed: armed & 0xff == 1,
        pins: ((armed >> 16 & 0xffff) / PIN) as u16,
        gs_to,
        stack_low,
        stack_high,
        ranges,
        range_count,
        from: universes as u32,
        to: (universes >> 32) as u32,
        magic,
    }
}

/// A table's slots as bytes: for each slot the word that the trampoline takes and the word of the version.
pub fn table(slots: &[(u64, u64)]) -> Vec<u8> {
    slots
        .iter()
        .flat_map(|&(dispatch, version)| [dispatch, version])
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// `jmp *%gs:disp32`.
fn jump_through(address: u64) -> Option<[u8; 8]> {
    let [a, b, c, d] = i32::try_from(address).ok()?.to_le_bytes();
    Some([0x65, 0xff, 0x24, 0x25, a, b, c, d])
}

fn slot_address(low: u64, slot: u32) -> Option<u64> {
    low.checked_add(SLOT_BYTES.checked_mul(u64::from(slot))?)
}

/// What an entry jumps to, at any address. `None` when the slot is out of reach.
pub fn trampoline(low: u64, slot: u32) -> Option<[u8; TRAMPOLINE as usize]> {
    jump_through(slot_address(low, slot)?)
}

/// One entry's cell: `continuation` (the relocated first instructions and the jump back) at its begin, its thunk at
/// [`THUNK`]. `None` when a piece does not fit.
pub fn cell(base: u64, stub: u64, low: u64, slot: u32, continuation: &[u8]) -> Option<Vec<u8>> {
    let version = slot_address(low, slot)?.checked_add(8)?;
    let mut bytes = continuation.to_vec();
    if bytes.len() as u64 > THUNK {
        return None;
    }
    bytes.resize(THUNK as usize, 0xcc);
    // lea -128(%rsp),%rsp: step over the red zone.
    bytes.extend_from_slice(&[0x48, 0x8d, 0x64, 0x24, 0x80]);
    // call stub
    let after_call = base.checked_add(THUNK)?.checked_add(AFTER_CALL)?;
    let displacement = i32::try_from(stub.wrapping_sub(after_call) as i64).ok()?;
    bytes.push(0xe8);
    bytes.extend_from_slice(&displacement.to_le_bytes());
    // movq $0,-8(%rsp): leave no return address into the thunk behind, it would be a dead word later.
    bytes.extend_from_slice(&[0x48, 0xc7, 0x44, 0x24, 0xf8, 0, 0, 0, 0]);
    // lea 128(%rsp),%rsp
    bytes.extend_from_slice(&[0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0]);
    bytes.extend_from_slice(&jump_through(version)?);
    bytes.resize(CELL as usize, 0xcc);
    Some(bytes)
}

/// What a task does at a call where nothing replaced is on its stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtCall {
    /// It sets its gs base to the header's `gs_to`.
    Switch,
    /// It waits to be visited: for a moment, and only until the time stamp counter has reached the header's `gs_to`. A
    /// controller that is at work puts that off again and again; without one nobody waits. Then it goes on in the table
    /// that it has by then.
    Wait,
}

/// See [`stub`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stub {
    /// Its code.
    pub code: Vec<u8>,
    /// Where in it a task waits.
    pub waiting: std::ops::Range<u64>,
}

/// How many words of its stack a waiting task's registers are in, see [`before_waiting`].
pub const WAITING_WORDS: usize = SAVED + 2;

/// The registers of a waiting task as they were at the call, but for the program counter, and the first byte of the
/// thunk. `words` are those from its stack pointer on.
pub fn before_waiting(regs: &Registers, words: &[u64; WAITING_WORDS]) -> (Registers, u64) {
    let mut before = *regs;
    before.rsp = regs
        .rsp
        .wrapping_add(8 * WAITING_WORDS as u64)
        .wrapping_add(RED_ZONE as u64);
    before.r11 = words[0];
    before.r10 = words[1];
    before.r9 = words[2];
    before.r8 = words[3];
    before.rdi = words[4];
    before.rsi = words[5];
    before.rdx = words[6];
    before.rcx = words[7];
    before.rax = words[8];
    before.eflags = words[9];
    (before, words[10].wrapping_sub(AFTER_CALL))
}

/// The stub, position independent apart from `low`. It keeps every register and flag.
///
/// # Errors
/// When an instruction can't be encoded; never for `low` below 2 GiB.
pub fn stub(low: u64, at_call: AtCall) -> Result<Stub, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let field = |offset: i64| qword_ptr(low.wrapping_add_signed(offset)).gs();
    let saved: [_; SAVED] = [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11];
    let (mut wait, mut out, mut scan, mut search, mut left, mut next) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );

    let (mut found, mut pin, mut dead) = (a.create_label(), a.create_label(), a.create_label());
    let pins = low.wrapping_sub(SWITCH_HEADER) as i32;

    a.pushfq()?;
    for register in saved {
        a.push(register)?;
    }
    let armed = || byte_ptr(low.wrapping_add_signed(ARMED)).gs();
    a.cmp(armed(), 0)?;
    a.je(out)?;
    // rsi: the word at which the call found its return address; from there up to rdi the stack is scanned.
    let pushed = 8 * (saved.len() as i32 + 1) + 8 + RED_ZONE;
    a.lea(rsi, qword_ptr(rsp + pushed))?;
    a.mov(rdi, field(STACK_HIGH))?;
    a.cmp(rsi, field(STACK_LOW))?;
    a.jb(out)?;
    a.cmp(rsi, rdi)?;
    a.jae(out)?;
    a.test(sil, 7)?;
    a.jne(out)?;
    a.mov(r8, field(RANGES))?;
    a.mov(r9, field(RANGE_COUNT))?;
    a.set_label(&mut scan)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.xor(ecx, ecx)?;
    a.mov(rdx, r9)?;
    // Binary search among [rcx, rdx) for the pair with after < word <= last.
    a.set_label(&mut search)?;
    a.cmp(rcx, rdx)?;
    a.jae(next)?;
    a.lea(r10, qword_ptr(rcx + rdx))?;
    a.shr(r10, 1)?;
    a.mov(r11, r10)?;
    a.shl(r11, 4)?;
    a.cmp(rax, qword_ptr(r8 + r11))?;
    a.jbe(left)?;
    a.cmp(rax, qword_ptr(r8 + r11 + 8))?;
    a.jbe(found)?;
    a.lea(rcx, qword_ptr(r10 + 1))?;
    a.jmp(search)?;
    a.set_label(&mut left)?;
    a.mov(rdx, r10)?;
    a.jmp(search)?;
    // The word at rsi, in rax, is one of those. It may be dead: rcx goes through the pins, up to the header.
    a.set_label(&mut found)?;
    a.movzx(ecx, word_ptr(low.wrapping_add_signed(PIN_BYTES)).gs())?;
    a.neg(rcx)?;
    a.set_label(&mut pin)?;
    a.test(rcx, rcx)?;
    a.je(out)?;
    a.mov(r10, qword_ptr(rcx + pins).gs())?;
    a.mov(r11, qword_ptr(rcx + (pins + 8)).gs())?;
    a.add(rcx, PIN as i32)?;
    a.test(r10b, DEAD as i32)?;
    a.jne(dead)?;
    a.cmp(qword_ptr(r10), r11)?;
    a.jne(out)?;
    a.jmp(pin)?;
    a.set_label(&mut dead)?;
    a.cmp(r11, rax)?;
    a.jne(pin)?;
    a.dec(r10)?;
    a.cmp(r10, rsi)?;
    a.jne(pin)?;
    a.set_label(&mut next)?;
    a.add(rsi, 8)?;
    a.cmp(rsi, rdi)?;
    a.jb(scan)?;
    // Nothing replaced is left. A controller that takes the order back meanwhile looks for us at this place.
    a.mov(r8d, TURNS)?;
    a.set_label(&mut wait)?;
    a.cmp(armed(), 0)?;
    a.je(out)?;
    match at_call {
        AtCall::Switch => {
            a.mov(rax, field(GS_TO))?;
            a.wrgsbase(rax)?;
        }
        AtCall::Wait => {
            a.rdtsc()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.cmp(rax, field(GS_TO))?;
            a.jae(out)?;
            a.pause()?;
            a.dec(r8d)?;
            a.jne(wait)?;
        }
    }
    a.set_label(&mut out)?;
    for register in saved.into_iter().rev() {
        a.pop(register)?;
    }
    a.popfq()?;
    a.ret()?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let assembled = a.assemble_options(0, options)?;
    let waiting = match at_call {
        AtCall::Switch => 0..0,
        AtCall::Wait => assembled.label_ip(&wait)?..assembled.label_ip(&out)?,
    };
    Ok(Stub {
        code: assembled.inner.code_buffer,
        waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stub_fits_and_names_absolute_addresses() {
        for at_call in [AtCall::Switch, AtCall::Wait] {
            names_absolute_addresses(&stub(0x1234_0040, at_call).expect("encodes").code);
        }
    }

    fn names_absolute_addresses(bytes: &[u8]) {
        assert!(bytes.len() as u64 <= STUB_AREA, "{} bytes", bytes.len());
        let decoder = iced_x86::Decoder::with_ip(64, bytes, 0, 0);
        for instruction in decoder {
            assert!(!instruction.is_invalid());
            if instruction.segment_prefix() == iced_x86::Register::GS {
                let place = instruction.memory_displacement64();
                let header = match instruction.memory_base() {
                    iced_x86::Register::None => 0..0x40,
                    // The pins, from what is left of them.
                    iced_x86::Register::RCX => 0..0x10,
                    base => panic!("{base:?}: {instruction}"),
                };
                let header = 0x1234_0000 + header.start..0x1234_0000 + header.end;
                assert!(header.contains(&place), "{instruction}");
            }
        }
    }

    /// Where a task waits, its registers are saved, and nothing but the clock and the order decides.
    #[test]
    fn waiting_keeps_the_stack() {
        let stub = stub(0x1234_0040, AtCall::Wait).expect("encodes");
        let mut pushed = 0_usize;
        let mut within = 0;
        for instruction in iced_x86::Decoder::with_ip(64, &stub.code, 0, 0) {
            if stub.waiting.contains(&instruction.ip()) {
                within += 1;
                assert_eq!(pushed, SAVED + 1, "{instruction}");
                assert_eq!(instruction.stack_pointer_increment(), 0, "{instruction}");
            } else if instruction.stack_pointer_increment() < 0 {
                pushed += 1;
            }
        }
        assert!(within > 5, "{within}");
    }

    #[test]
    fn a_thunk_ends_with_its_jump() {
        let bytes = cell(0x2000, 0x1000, 0x1234_0040, 3, &[0x90]).expect("fits");
        assert_eq!(bytes.len() as u64, CELL);
        let end = (THUNK + THUNK_LEN) as usize;
        assert_eq!(
            bytes[end - 8..end],
            jump_through(0x1234_0078).expect("is low")
        );
        assert!(bytes[end..].iter().all(|&byte| byte == 0xcc));
    }

    #[test]
    fn header_reads_back() {
        let wanted = SwitchHeader {
            armed: true,
            pins: 24,
            gs_to: 1,
            stack_low: 2,
            stack_high: 3,
            ranges: 4,
            range_count: 5,
            from: 6,
            to: 7,
            magic: 8,
        };
        assert_eq!(decode_header(&header(&wanted)), wanted);
        let taken_back = SwitchHeader {
            armed: false,
            ..wanted
        };
        let mut bytes = header(&wanted);
        bytes[0] = 0;
        assert_eq!(decode_header(&bytes), taken_back);
    }
}
