//! The frame that makes a remote call survive us: if the controller dies, the task returns from the call into
//! `rt_sigreturn` with its own complete context (arch/x86/kernel/signal_64.c, struct rt_sigframe).

use super::syscall::at_restartable_call;
use crate::sys::Registers;

/// `syscall; ret`: where a remote call is made.
pub const SYSCALL_GADGET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// `mov $15,%rax; syscall`: the C library's `rt_sigreturn` trampoline, found on the stack of every signal handler.
pub const RESTORER: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

const RED_ZONE: u64 = 128;
const FXSAVE: usize = 512;
const SW_BYTES: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// XFEATURE_XTILEDATA: 8 KiB of AMX tiles, which a task that uses them would have to carry in its frame.
const TILE_DATA: u64 = 1 << 18;
/// UC_FP_XSTATE: the state is more than what FXSAVE saves, as the words at `SW_BYTES` say.
const UC_FP_XSTATE: u64 = 1;
/// UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const UC_FLAGS: u64 = 6;
const UCONTEXT: usize = 304;
/// Offset of `uc_stack` in `struct ucontext`.
const UC_STACK: u64 = 16;
const SIGINFO: usize = 128;

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// The alternate signal stack that a signal frame names (`uc_stack`): first address and size, as they were when the
/// handler began. `at` is where the frame's return address lies.
pub fn alternate_stack(at: u64, read: impl Fn(u64) -> Option<u64>) -> Option<(u64, u64)> {
    let stack = at.checked_add(8 + UC_STACK)?;
    Some((read(stack)?, read(stack.checked_add(16)?)?))
}

/// Whether AMX tiles are in use: such a task hosts no call.
pub fn uses_amx(xstate: &[u8]) -> bool {
    // xstate_bv of the XSAVE header; there is none where there is no XSAVE.
    word(xstate, FXSAVE).is_some_and(|in_use| in_use & TILE_DATA != 0)
}

/// The part of the extended state that the frame carries: (features, size in the standard format); no features where
/// the processor has no XSAVE.
fn features(xstate: &[u8]) -> Option<(u64, usize)> {
    if xstate.len() == FXSAVE {
        return Some((0, FXSAVE));
    }
    let features = word(xstate, SW_BYTES)? & !TILE_DATA;
    let mut size = FXSAVE + 64;
    for feature in 2..63u32 {
        if features & (1 << feature) != 0 {
            let leaf = std::arch::x86_64::__cpuid_count(0xd, feature);
            size = size.max(leaf.eax as usize + leaf.ebx as usize);
        }
    }
    (size <= xstate.len()).then_some((features, size))
}

/// Builds the frame below the red zone of a stopped task. Returns its address, which is the stack pointer for the
/// call, and its bytes; `None` when the extended state can't be carried or the stack pointer is nonsense.
pub fn frame(saved: &Registers, mask: u64, xstate: &[u8], restorer: u64) -> Option<(u64, Vec<u8>)> {
    let (features, size) = features(xstate)?;
    let top = saved.rsp.checked_sub(RED_ZONE)?;
    let fpstate = top.checked_sub(size as u64 + 4)? & !63;
    // Aligned as the stack is when a function begins: one may be called with the frame's first word as return address.
    let base = (fpstate.checked_sub((8 + UCONTEXT + SIGINFO) as u64)? & !15).checked_sub(8)?;
    let mut out = Vec::with_capacity((top - base) as usize);
    let put = |out: &mut Vec<u8>, value: u64| out.extend_from_slice(&value.to_le_bytes());
    put(&mut out, restorer);
    let extended = if features == 0 { 0 } else { UC_FP_XSTATE };
    put(&mut out, UC_FLAGS | extended);
    put(&mut out, 0);
    // uc_stack with flags that sigaltstack refuses: rt_sigreturn leaves the alternate stack alone then.
    put(&mut out, 0);
    put(&mut out, u64::from(u32::MAX));
    put(&mut out, 0);
    let mut context = *saved;
    if at_restartable_call(saved) {
        context.rip = saved.rip.wrapping_sub(2);
        context.rax = saved.orig_rax;
    }
    let r = &context;
    for value in [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.eflags,
    ] {
        put(&mut out, value);
    }
    put(&mut out, (r.cs & 0xffff) | (r.ss & 0xffff) << 48);
    for _ in 0..4 {
        put(&mut out, 0); // err, trapno, oldmask, cr2
    }
    put(&mut out, fpstate);
    for _ in 0..8 {
        put(&mut out, 0);
    }
    put(&mut out, mask);
    debug_assert_eq!(out.len(), 8 + UCONTEXT);
    out.resize((fpstate - base) as usize, 0);
    let mut state = xstate.get(..size)?.to_vec();
    if features == 0 {
        out.append(&mut state);
        return Some((base, out));
    }
    let sw = state.get_mut(SW_BYTES..FXSAVE)?;
    sw.fill(0);
    sw.get_mut(0..4)?.copy_from_slice(&MAGIC1.to_le_bytes());
    sw.get_mut(4..8)?
        .copy_from_slice(&(size as u32 + 4).to_le_bytes());
    sw.get_mut(8..16)?.copy_from_slice(&features.to_le_bytes());
    sw.get_mut(16..20)?
        .copy_from_slice(&(size as u32).to_le_bytes());
    out.append(&mut state);
    out.extend_from_slice(&MAGIC2.to_le_bytes());
    Some((base, out))
}
