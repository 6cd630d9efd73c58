//! Why something was refused or failed: one variant per cause, each one sentence for the user.

use std::io;

/// See the module. Unless the sentence says otherwise the target is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// A thread's number instead of a process's.
    #[error("{tid} is a thread of process {pid}; name the process with --pid {pid}")]
    NotALeader {
        /// What was given.
        tid: i32,
        /// What it belongs to.
        pid: String,
    },
    /// A kernel thread.
    #[error("process {0} is a kernel thread; it has no user code to patch")]
    KernelThread(i32),
    /// A zombie without live threads.
    #[error("process {0} is a zombie: it has ended and only waits for its parent")]
    Zombie(i32),
    /// Ended, or executed another program, while at work.
    #[error("process {0} ended or executed another program meanwhile")]
    Exited(i32),
    /// EPERM/EACCES.
    #[error("no permission to trace process {0}; run as root or with CAP_SYS_PTRACE")]
    NoPermission(i32),
    /// Somebody else traces it.
    #[error(
        "task {tid} is already traced by process {tracer} ({name}); detach that debugger or tracer first"
    )]
    Traced {
        /// The task.
        tid: i32,
        /// Who.
        tracer: i32,
        /// Its name.
        name: String,
    },
    /// Another livegraft.
    #[error("another livegraft{} is at work on process {pid}; wait for it or end it", .other.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// The target.
        pid: i32,
        /// The controller that is recorded in it.
        other: Option<i32>,
    },
    /// 32-bit.
    #[error("process {0} runs 32-bit code; livegraft patches 64-bit x86 processes only")]
    ThirtyTwoBit(i32),
    /// `%gs`.
    #[error(
        "task {tid} uses %gs (its base is {value:#x}), which livegraft needs for itself; such a program can't be patched"
    )]
    GsInUse {
        /// The task.
        tid: i32,
        /// What was found.
        value: u64,
    },
    /// A coroutine of C++20.
    #[error(
        "{function} is a coroutine: {part} of it may go on from where an old one was suspended, with what the old code has put there, and nothing says whether any is"
    )]
    Coroutine {
        /// The function.
        function: String,
        /// What the compiler has made of its body.
        part: String,
    },
    /// Go.
    #[error("{object} {how}, and are moved from one to the other; livegraft can't follow them")]
    Goroutines {
        /// Which object.
        object: String,
        /// What says so.
        how: String,
    },
    /// Coroutines, in a process of several tasks.
    #[error(
        "{object} {how}, so any of the {tasks} tasks may go on where another has left a stack: they must move in one motion; `--together` allows to stop all of them at once for that"
    )]
    ForeignStacks {
        /// Which object.
        object: String,
        /// What says so.
        how: String,
        /// How many there are.
        tasks: usize,
    },
    /// Coroutines, and a large process.
    #[error(
        "{object} {how}, so code may sleep on stacks anywhere in the {mib} MiB that process {pid} has written to, and at most {limit} MiB can be looked through while tasks stand still"
    )]
    TooMuchMemory {
        /// Which object.
        object: String,
        /// What says so.
        how: String,
        /// The target.
        pid: i32,
        /// How much it has, in MiB.
        mib: u64,
        /// How much is possible, in MiB.
        limit: u64,
    },
    /// Not there.
    #[error(
        "process {pid} has not loaded `{object}`, which the patch changes; a patch for an object that is not loaded is not supported yet"
    )]
    ObjectNotLoaded {
        /// The target.
        pid: i32,
        /// The klp_object's name.
        object: String,
    },
    /// Another build.
    #[error(
        "`{object}` of process {pid} has build-id {found}, but the patch was packed against {wanted}; pack it against the file that runs"
    )]
    WrongBuildId {
        /// The target.
        pid: i32,
        /// The object.
        object: String,
        /// Hex.
        found: String,
        /// Hex.
        wanted: String,
    },
    /// The function's bytes in the file are not those of the fingerprint.
    #[error(
        "the code of `{function}` in {object} is not the code that the patch was packed against; pack it again"
    )]
    Fingerprint {
        /// The function.
        function: String,
        /// The object.
        object: String,
    },
    /// Running text differs from the file.
    #[error(
        "the running code of `{function}` is not what it should be at {address:#x} ({found:02x} instead of {wanted:02x}: {guess}); remove that first"
    )]
    ForeignBytes {
        /// The function.
        function: String,
        /// Where.
        address: u64,
        /// The byte there.
        found: u8,
        /// The byte in the file.
        wanted: u8,
        /// What it looks like.
        guess: &'static str,
    },
    /// A page that is to be replaced by a copy differs from the file beyond our own entries.
    #[error(
        "the page at {page:#x}, on which the entry of `{function}` lies, is not as its file has it (a breakpoint of a debugger, a uprobe of perf, bpftrace or SystemTap, or another tool has changed it); remove that first"
    )]
    ForeignPage {
        /// The function.
        function: String,
        /// The page.
        page: u64,
    },
    /// An entry can't be redirected.
    #[error("`{function}` can't be redirected{}: {why}", .forced.map(|method| format!(" by {method}")).unwrap_or_default())]
    NotRedirectable {
        /// The function.
        function: String,
        /// The method that the user insisted on.
        forced: Option<&'static str>,
        /// Why; both reasons where both methods were tried.
        why: String,
    },
    /// A rendezvous did not come about.
    #[error(
        "the tasks of process {pid} could not all be stopped outside of the first bytes of what is to be redirected (task {tid}: {why}); try again"
    )]
    Rendezvous {
        /// The target.
        pid: i32,
        /// Who.
        tid: i32,
        /// Why not.
        why: &'static str,
    },
    /// The rules refuse.
    #[error(transparent)]
    Refused(#[from] livegraft_model::Refusal),
    /// A field of the patch whose behaviour comes later.
    #[error("{0}")]
    Unsupported(String),
    /// An object's file can't be read.
    #[error("reading {object}: {source}")]
    Object {
        /// Which.
        object: String,
        /// Why.
        source: crate::object::ObjectError,
    },
    /// Linking.
    #[error(transparent)]
    Link(#[from] crate::link::LinkError),
    /// No task could host a remote call.
    #[error(
        "no task of process {pid} can perform a system call for livegraft now ({why}); try again"
    )]
    NoHost {
        /// The target.
        pid: i32,
        /// Why the last candidate could not.
        why: String,
    },
    /// No task could host a remote call, since we may not suspend filters.
    #[error(
        "task {tid} of process {pid} is under a seccomp filter, which might kill it for a call that it makes for livegraft; only a livegraft with CAP_SYS_ADMIN and under no filter itself may suspend it: run it as root, outside of a container that filters system calls"
    )]
    Filtered {
        /// The target.
        pid: i32,
        /// One of the tasks.
        tid: i32,
    },
    /// No task was in a place where it can call a function.
    #[error(
        "{purpose}: no task of process {pid} was found in a place where it can safely call a function ({why}); try again"
    )]
    NoSafeTask {
        /// The target.
        pid: i32,
        /// What can't be done.
        purpose: String,
        /// One task, and where it was.
        why: String,
    },
    /// A function that a task was made to call did not return.
    #[error(
        "task {tid} of process {pid} {} when it was to register the patch's call frame information with {object}; nothing is redirected, the patch's memory stays", if *.late { "did not return in time" } else { "caused a fault" }
    )]
    NotRegistered {
        /// The target.
        pid: i32,
        /// Who was to call it.
        tid: i32,
        /// The object that the unwinder is in.
        object: String,
        /// It is still at it.
        late: bool,
    },
    /// A resolver that is not called.
    #[error(
        "`{name}` in {object} is an indirect function (IFUNC) that the process has not resolved yet, and livegraft does not have it resolved: {why}; have the program call `{name}` before, or avoid `{name}` in the patch"
    )]
    Unresolvable {
        /// The function.
        name: String,
        /// The object that defines it.
        object: String,
        /// Why not.
        why: String,
    },
    /// A resolver that was called, and what it did.
    #[error(
        "the resolver of the indirect function (IFUNC) `{name}` in {object} {what} when task {tid} of process {pid} was made to call it; the task is back where it was, and nothing is loaded; avoid `{name}` in the patch"
    )]
    Resolver {
        /// The target.
        pid: i32,
        /// Who called it.
        tid: i32,
        /// The function.
        name: String,
        /// The object that defines it.
        object: String,
        /// What it did.
        what: String,
    },
    /// A static program without signal handlers.
    #[error(
        "process {0} has no code that returns from a signal handler (`rt_sigreturn`; a static program that installs none), which the calls that it has to make for livegraft need to survive livegraft's end; it can't be patched yet"
    )]
    NoRestorer(i32),
    /// A remote call failed.
    #[error("process {pid} is not allowed to {what} ({source}); the patch can't be placed")]
    RemoteCall {
        /// The target.
        pid: i32,
        /// In words.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No free address range.
    #[error("no free address range of {size} bytes is in reach of {object}")]
    NoSpace {
        /// How much.
        size: u64,
        /// For what.
        object: String,
    },
    /// The registry in the target does not read.
    #[error("what livegraft recorded in process {pid} can't be read ({why}); nothing was changed")]
    Registry {
        /// The target.
        pid: i32,
        /// Why.
        why: String,
    },
    /// Nothing of livegraft's in it.
    #[error("process {0} has no patches")]
    NotPatched(i32),
    /// All slots used.
    #[error(
        "process {0} has no room for so many more redirected functions behind those that it has; a patch of fewer functions fits"
    )]
    TooManyFunctions(i32),
    /// Anything else that the system said.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// A short stable name for the cause, for programs.
    pub fn kind(&self) -> &'static str {
        use livegraft_model::Refusal;
        match self {
            Error::NoProcess(_) => "no-process",
            Error::NotALeader { .. } => "not-a-process",
            Error::KernelThread(_) => "kernel-thread",
            Error::Zombie(_) => "zombie",
            Error::Exited(_) => "exited",
            Error::NoPermission(_) => "no-permission",
            Error::Traced { .. } => "already-traced",
            Error::Locked { .. } => "locked",
            Error::ThirtyTwoBit(_) => "32-bit",
            Error::GsInUse { .. } => "gs-in-use",
            Error::ForeignStacks { .. } => "foreign-stacks",
            Error::Goroutines { .. } => "goroutines",
            Error::Coroutine { .. } => "coroutine",
            Error::TooMuchMemory { .. } => "too-much-memory",
            Error::ObjectNotLoaded { .. } => "object-not-loaded",
            Error::WrongBuildId { .. } => "wrong-build-id",
            Error::Fingerprint { .. } => "fingerprint",
            Error::ForeignBytes { .. } | Error::ForeignPage { .. } => "foreign-bytes",
            Error::NotRedirectable { .. } => "not-redirectable",
            Error::Rendezvous { .. } => "rendezvous",
            Error::Refused(Refusal::TransitionOpen(_)) => "transition-open",
            Error::Refused(Refusal::AlreadyLoaded(_)) => "already-loaded",
            Error::Refused(Refusal::NotLoaded(_)) => "not-loaded",
            Error::Refused(Refusal::NothingOpen) => "nothing-open",
            Error::Refused(Refusal::StillLoaded(_)) => "still-loaded",
            Error::Refused(Refusal::Forced(_)) => "forced",
            Error::Unsupported(_) => "unsupported",
            Error::Object { .. } => "object",
            Error::Link(_) => "link",
            Error::NoHost { .. } => "no-host",
            Error::Filtered { .. } => "seccomp-filter",
            Error::NoSafeTask { .. } => "no-safe-task",
            Error::NotRegistered { .. } => "not-registered",
            Error::Unresolvable { .. } => "ifunc-unresolved",
            Error::Resolver { .. } => "ifunc-resolver",
            Error::NoRestorer(_) => "no-restorer",
            Error::RemoteCall { .. } => "remote-call",
            Error::NoSpace { .. } => "no-space",
            Error::Registry { .. } => "registry",
            Error::NotPatched(_) => "not-patched",
            Error::TooManyFunctions(_) => "too-many-functions",
            Error::Io { .. } => "io",
        }
    }

    /// Wraps what the system said while `what` was done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
