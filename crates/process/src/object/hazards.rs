//! What in an object makes stacks that are no thread's stack. Whoever sleeps on one of those is seen in no task, so a
//! stack check over the tasks does not see it either (FACTS.md, Unwinding).

use super::LoadedObject;
use super::symbols::SymbolKind;

/// Functions whose import says that the object switches stacks. (getcontext alone is only unwinding.)
const SWITCHING_IMPORTS: [&str; 12] = [
    "makecontext",
    "swapcontext",
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
const SWITCHING_CODE: [&str; 8] = [
    "make_fcontext",
    "jump_fcontext",
    "ontop_fcontext",
    "qemu_coroutine_switch",
    "co_switch",
    "coro_transfer",
    "tb_context_init",
    "mco_resume",
];

pub(super) fn find(object: &LoadedObject) -> Option<String> {
    let name = object.name();
    if is_go(object) {
        return Some(format!(
            "{name} contains Go code, whose goroutines run on stacks of their own"
        ));
    }
    // libcrypto imports makecontext for ASYNC_start_job, and libssl calls that; both matter only when somebody uses it.
    let is_openssl = name.starts_with("libcrypto.so") || name.starts_with("libssl.so");
    if is_openssl {
        return None;
    }
    let imported = |wanted: &&&str| {
        object
            .dynsym()
            .is_some_and(|table| table.named(wanted).any(|symbol| !symbol.defined))
    };
    if let Some(symbol) = SWITCHING_IMPORTS
        .iter()
        .chain(&OPENSSL_ASYNC)
        .find(imported)
    {
        return Some(format!(
            "{name} calls `{symbol}`, so code can sleep on coroutine stacks"
        ));
    }
    if object
        .needed()
        .iter()
        .any(|needed| needed.starts_with("libboost_context.so"))
    {
        return Some(format!(
            "{name} uses libboost_context, so code can sleep on coroutine stacks"
        ));
    }
    let contained = |wanted: &&&str| {
        let named = |s: super::symbols::Symbol<'_>| s.defined && s.kind != SymbolKind::ThreadLocal;
        object
            .symtab()
            .is_some_and(|table| table.named(wanted).any(named))
    };
    // What a static program does not call is not in it.
    let linked_in: &[&str] = match object.is_executable() && object.is_static() {
        true => &SWITCHING_IMPORTS,
        false => &[],
    };
    let own = SWITCHING_CODE.iter().chain(linked_in).find(contained)?;
    Some(format!(
        "{name} contains `{own}`, so code can sleep on coroutine stacks"
    ))
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
