//! What in an object makes stacks that are no task's. Whoever sleeps on one of those is seen in no task, so a stack check
//! over the tasks does not see it either (FACTS.md, Unwinding).

use super::LoadedObject;
use super::file::{PT_LOAD, Segment};
use super::symbols::{Symbol, SymbolKind};
use crate::arch::{self, Resume};
use std::ops::Range;

/// What an object does with stacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackSwitching {
    /// What says so, after the object's name: ``calls `swapcontext` ``.
    pub how: String,
    /// Goroutines move from task to task and from stack to stack as they like.
    pub is_go: bool,
    /// Where a suspended stack's registers are to be found, as far as that is known.
    pub ways: Vec<Suspended>,
    /// There is code of which that is not known.
    pub not_understood: bool,
}

/// Where the registers of a suspended stack are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspended {
    /// In a `ucontext_t`, as the C library's swapcontext fills it.
    Ucontext,
    /// On the stack itself; somewhere is the stack pointer that they lie at.
    OnStack(Box<Resume>),
}

/// Functions whose import says that the object switches stacks with the C library's contexts. (getcontext alone is only
/// unwinding.)
const CONTEXTS: [&str; 2] = ["makecontext", "swapcontext"];

/// The same with other libraries'.
const SWITCHING_IMPORTS: [&str; 10] = [
    "make_fcontext",
    "jump_fcontext",
    "ontop_fcontext",
    "co_create",
    "co_switch",
    "coro_create",
    "coro_transfer",
    "pth_uctx_switch",
    "st_thread_create",
    "ASYNC_start_job",
];

/// OpenSSL's asynchronous jobs run on makecontext stacks, but only for callers of these.
const OPENSSL_ASYNC: [&str; 3] = [
    "SSL_waiting_for_async",
    "SSL_get_all_async_fds",
    "ASYNC_get_wait_ctx",
];

/// The same machinery compiled or assembled into the object itself.
const SWITCHING_CODE: [&str; 10] = [
    "make_fcontext",
    "jump_fcontext",
    "ontop_fcontext",
    "qemu_coroutine_switch",
    "co_switch",
    "coro_transfer",
    "tb_context_init",
    "mco_resume",
    "coctx_swap",
    "acosw",
];

/// What the C library switches stacks with is of interest where it is called.
const C_LIBRARIES: [&str; 4] = ["libc.so", "ld-linux", "ld-musl", "libc.musl"];

pub(super) fn find(object: &LoadedObject) -> Option<StackSwitching> {
    let mut found = StackSwitching {
        how: String::new(),
        is_go: is_go(object),
        ways: Vec::new(),
        not_understood: false,
    };
    if found.is_go {
        found.how = "contains Go code, whose goroutines run on stacks of their own".into();
        return Some(found);
    }
    let name = object.name();
    // libcrypto imports makecontext for ASYNC_start_job, and libssl calls that; both matter only when somebody uses it.
    let is_openssl = name.starts_with("libcrypto.so") || name.starts_with("libssl.so");
    // What libffi takes for a stack is room that its caller has made on the stack of the task.
    let is_ffi = name.starts_with("libffi.so");
    if is_openssl || is_ffi || C_LIBRARIES.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let by_name = by_name(object);
    if let Some((how, contexts)) = by_name {
        found.how = how;
        found.ways.extend(contexts.then_some(Suspended::Ucontext));
    }
    let mut switches = switches(object).into_iter().peekable();
    if let Some(first) = switches.peek()
        && found.how.is_empty()
    {
        found.how = format!("gives tasks other stacks, at {:#x} of its file", first.at);
    }
    for switch in switches {
        match switch.resume {
            Some(resume) => found.ways.push(Suspended::OnStack(Box::new(resume))),
            None => found.not_understood = true,
        }
    }
    (!found.how.is_empty()).then_some(found)
}

/// What its symbols say, and whether that is the C library's contexts.
fn by_name(object: &LoadedObject) -> Option<(String, bool)> {
    let imported = |wanted: &&&str| {
        let symbols = object.dynsym();
        symbols.is_some_and(|table| table.named(wanted).any(|symbol| !symbol.defined))
    };
    let contained = |wanted: &&&str| {
        let named = |s: Symbol<'_>| s.defined && s.kind != SymbolKind::ThreadLocal;
        let symbols = object.symtab();
        symbols.is_some_and(|table| table.named(wanted).any(named))
    };
    // What a static program does not call is not in it.
    let is_static = object.is_executable() && object.is_static();
    let contexts = CONTEXTS
        .iter()
        .find(|symbol| imported(symbol) || is_static && contained(symbol));
    if let Some(symbol) = contexts {
        return Some((format!("calls `{symbol}`"), true));
    }
    let mut calls = SWITCHING_IMPORTS.iter().chain(&OPENSSL_ASYNC);
    if let Some(symbol) = calls.find(imported) {
        return Some((format!("calls `{symbol}`"), false));
    }
    let linked_in: &[&str] = match is_static {
        true => &SWITCHING_IMPORTS,
        false => &[],
    };
    let own = SWITCHING_CODE.iter().chain(linked_in).find(contained)?;
    Some((format!("contains `{own}`"), false))
}

/// Its code that gives a task another stack, as far as instructions tell.
fn switches(object: &LoadedObject) -> Vec<arch::StackSwitch> {
    let mut found = Vec::new();
    for (within, bytes) in code(object) {
        let mut decoded = 0;
        arch::stack_pointer_loads(&bytes, &mut |at| {
            let svma = within.start.saturating_add(at as u64);
            if svma < decoded {
                return;
            }
            let frames = object.frames();
            let stretch =
                frames.map_or_else(|| within.clone(), |frames| frames.around(svma, &within));
            decoded = stretch.end;
            let offset = |svma: u64| (svma.clamp(within.start, within.end) - within.start) as usize;
            let code = bytes.get(offset(stretch.start)..offset(stretch.end));
            found.extend(arch::stack_switch(stretch.start, code.unwrap_or_default()));
        });
    }
    found
}

/// Its executable sections; its executable segments where it has no section headers.
fn code(object: &LoadedObject) -> Vec<(Range<u64>, Vec<u8>)> {
    const SHT_PROGBITS: u32 = 1;
    const SHF_EXECINSTR: u64 = 4;
    let elf = object.elf();
    let sections = elf.sections().iter();
    let sections = sections.filter(|s| s.kind == SHT_PROGBITS && s.flags & SHF_EXECINSTR != 0);
    let mut places: Vec<_> = sections.map(|s| (s.svma, s.offset, s.size)).collect();
    if places.is_empty() {
        let exec = |s: &&Segment| s.kind == PT_LOAD && s.is_exec();
        let segments = elf.segments().iter().filter(exec);
        places.extend(segments.map(|s| (s.svma, s.offset, s.file_size)));
    }
    let read = |(svma, offset, size): (u64, u64, u64)| {
        let bytes = elf.read(offset, size, "code").ok()?;
        Some((svma..svma.checked_add(size)?, bytes))
    };
    places.into_iter().filter_map(read).collect()
}

fn is_go(object: &LoadedObject) -> bool {
    let go_section =
        |name: &str| matches!(name, ".go.buildinfo" | ".note.go.buildid" | ".gopclntab");
    object
        .elf()
        .sections()
        .iter()
        .any(|section| go_section(&section.name))
        || object
            .elf()
            .notes()
            .iter()
            .any(|(name, _, _)| name.starts_with(b"Go"))
}
