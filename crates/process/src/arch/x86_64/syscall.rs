//! System calls of a stopped task: which number, may it be restarted, how to make it do one for us.

use crate::sys::Registers;

/// Offset of `gs_base` in `user_regs_struct`, for PTRACE_POKEUSER.
pub const GS_BASE: usize = std::mem::offset_of!(libc::user_regs_struct, gs_base);
/// Offset of `rax` in `user_regs_struct`.
pub const RAX: usize = std::mem::offset_of!(libc::user_regs_struct, rax);

/// System call numbers that the engine makes a task perform or looks for.
pub mod nr {
    /// rt_sigreturn
    pub const RT_SIGRETURN: u64 = 15;
    /// mmap
    pub const MMAP: u64 = 9;
    /// munmap
    pub const MUNMAP: u64 = 11;
    /// mremap
    pub const MREMAP: u64 = 25;
    /// close
    pub const CLOSE: u64 = 3;
    /// rt_sigaction
    pub const RT_SIGACTION: u64 = 13;
    /// ftruncate
    pub const FTRUNCATE: u64 = 77;
    /// futex
    pub const FUTEX: u64 = 202;
    /// restart_syscall
    pub const RESTART_SYSCALL: u64 = 219;
    /// memfd_create
    pub const MEMFD_CREATE: u64 = 319;
}

const EINTR: i64 = -4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// The calls that a ptrace stop ends with EINTR although no handler ran (signal(7), "Interruption of system calls and
/// library functions by stop signals", and FACTS measured with each): epoll_wait, epoll_pwait, epoll_pwait2, read,
/// readv, recvfrom, recvmsg, recvmmsg, accept, accept4, connect, write, writev, sendto, sendmsg, sendmmsg,
/// rt_sigtimedwait, semop, semtimedop, io_getevents, io_pgetevents, io_uring_enter. Not `close`: it must never be
/// made twice.
pub const EINTR_REPAIR: [i64; 22] = [
    232, 281, 441, 0, 19, 45, 47, 299, 43, 288, 42, 1, 20, 44, 46, 307, 128, 65, 220, 208, 333, 426,
];

/// Whether the registers show a call that our interruption ended and that nobody else would restart.
pub fn needs_eintr_repair(regs: &Registers) -> bool {
    regs.rax as i64 == EINTR && EINTR_REPAIR.contains(&(regs.orig_rax as i64))
}

/// What `rax` must be so that the kernel restarts the call, unless a handler runs first (-ERESTARTNOHAND: with a
/// handler the program sees the EINTR that it would have seen anyway).
pub fn repair_eintr() -> u64 {
    ERESTARTNOHAND as u64
}

/// Whether the task stopped inside a system call that the kernel will restart when it goes on.
pub fn at_restartable_call(regs: &Registers) -> bool {
    regs.orig_rax as i64 >= 0
        && matches!(
            regs.rax as i64,
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
        )
}

/// Calls in which programs wait for something to happen, and that neither an allocator nor a dynamic loader waits in:
/// read, readv, recvfrom, recvmsg, recvmmsg, accept, accept4, poll, ppoll, select, pselect6, epoll_wait, epoll_pwait,
/// epoll_pwait2, nanosleep, clock_nanosleep, pause, rt_sigsuspend, rt_sigtimedwait, wait4, waitid, io_getevents,
/// io_pgetevents, io_uring_enter, semop, semtimedop, msgrcv, mq_timedreceive; restart_syscall, which goes on with a
/// wait that has a timeout, as no lock of theirs has. Not futex.
const WAITS: [i64; 29] = [
    0, 19, 45, 47, 299, 43, 288, 7, 271, 23, 270, 232, 281, 441, 35, 230, 34, 130, 128, 61, 247,
    208, 333, 426, 65, 220, 70, 243, 219,
];

/// Whether the task sleeps in a call of [`WAITS`].
pub fn waits(regs: &Registers) -> bool {
    at_restartable_call(regs) && WAITS.contains(&(regs.orig_rax as i64))
}

/// Whether the task sleeps in `futex`.
pub fn waits_in_futex(regs: &Registers) -> bool {
    at_restartable_call(regs) && regs.orig_rax == nr::FUTEX
}

/// The general registers by their DWARF numbers, for an unwind.
pub fn dwarf_registers(regs: &Registers) -> [Option<u64>; 16] {
    let r = regs;
    [
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
    .map(Some)
}

/// Whether the task runs 64-bit code (`__USER_CS`).
pub fn is_64_bit(regs: &Registers) -> bool {
    regs.cs == 0x33
}

/// Registers that make the task return through the frame, by a call at `gadget` (`syscall; ret`). At the entry of this
/// call another one can be put in its place: until then a task that is let alone is back where it was.
pub fn prepare_call(saved: &Registers, gadget: u64, frame: u64) -> Registers {
    let mut regs = *saved;
    regs.rip = gadget;
    // As if the trampoline's address, at the frame's begin, had been popped.
    regs.rsp = frame.wrapping_add(8);
    regs.rax = nr::RT_SIGRETURN;
    regs.orig_rax = u64::MAX;
    regs.eflags &= !0x400; // DF clear, as the ABI wants it
    regs
}

/// At the entry of that call: has the task make this one instead, and return through the frame then.
pub fn replace_call(regs: &mut Registers, frame: u64, number: u64, args: [u64; 6]) {
    regs.rsp = frame;
    regs.orig_rax = number;
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
}

/// Registers that make the task call a function and then return through the frame, whose first word is the function's
/// return address.
pub fn prepare_function_call(
    saved: &Registers,
    function: u64,
    frame: u64,
    args: [u64; 6],
) -> Registers {
    let mut regs = *saved;
    regs.rip = function;
    regs.rsp = frame;
    regs.rax = 0; // no vector registers hold arguments
    regs.orig_rax = u64::MAX;
    [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9] = args;
    regs.eflags &= !0x400;
    regs
}

/// Whether the task has returned from the function that it was made to call, and is about to return through the frame.
pub fn has_returned(regs: &Registers, frame: u64) -> bool {
    regs.orig_rax == nr::RT_SIGRETURN && regs.rsp == frame.wrapping_add(8)
}

/// Registers that undo the entry into `rt_sigreturn` of [`has_returned`]: the task goes on at the trampoline that makes
/// that call.
pub fn before_return(regs: &Registers, restorer: u64) -> Registers {
    let mut regs = *regs;
    regs.rip = restorer;
    regs.orig_rax = u64::MAX;
    regs
}
