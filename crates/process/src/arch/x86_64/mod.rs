//! x86-64: universes through `%gs`, entries through `jmp rel32`.

mod code;
mod depth;
mod entry;
mod flow;
mod frame;
mod keeper;
mod resolver;
mod switch;
mod syscall;

pub use code::{
    AtCall, CELL, Pin, STUB_AREA, SWITCH_HEADER, SwitchHeader, THUNK, THUNK_LEN, TRAMPOLINE,
    WAITING_WORDS, before_waiting, cell, decode_header, header, pins, stub, table, trampoline,
};
pub use depth::{Callee, Depths, LARGEST_FUNCTION, Site as CallSite, calls_nothing, depths};
pub use entry::{
    CLAIM, Continuation, Edit, NotRedirectable, Rewrite, Site, all_nops, continuation, ends,
    last_return_address, leads_back, padding_after, padding_before, pun_edit, pun_target, rewrite,
    skip_endbr, tail_targets,
};
pub use flow::{Flow, ends_with_call, flow, instructions, lazy_stub, plt_stub, references, refers};
pub use frame::{RESTORER, SYSCALL_GADGET, alternate_stack, frame, uses_amx};
pub use keeper::Keeper;
pub use resolver::{COMPUTED, LONGEST_INSTRUCTION, Step, Target, step};
pub use switch::{Resume, StackSwitch, ends_in_call, stack_pointer_loads, stack_switch};
pub use syscall::{
    EINTR_REPAIR, GS_BASE, RAX, at_restartable_call, before_return, dwarf_registers, has_returned,
    is_64_bit, needs_eintr_repair, nr, prepare_call, prepare_function_call, repair_eintr,
    replace_call, waits, waits_in_futex,
};

/// Bytes between two slots of a table: the word that entries jump through, and the word of the version itself.
pub const SLOT_BYTES: u64 = 16;

/// Page size.
pub const PAGE: u64 = 4096;

/// Where a region that entries reach with a 32-bit displacement must lie: addresses below this.
pub const LOW_END: u64 = 0x4000_0000;

/// First address past user space.
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// How far code may lie from what it refers to (`rel32`), with room to spare.
pub const NEAR: u64 = 0x7000_0000;
