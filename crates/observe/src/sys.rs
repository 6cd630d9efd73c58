//! The system calls that have no safe wrapper elsewhere: ptrace, and waiting.
//!
//! All `unsafe` of this crate is here. ptrace requests and waits belong to the thread that spawned the command.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Process or thread id.
pub(crate) type Tid = i32;

const PTRACE_EVENT_STOP: i32 = 128;

/// What a wait has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Ended with this wait status.
    Ended(i32),
    /// It has executed a program; it was this task of its process that did, which has the process's number now.
    Executed(Tid),
    /// It has created this task, which is a tracee from its first instruction on.
    Created {
        /// The new one.
        child: Tid,
        /// It is a process for sure, not a thread.
        fork: bool,
    },
    /// Its own first stop, or a trap of ours.
    Began,
    /// It is stopped by job control, until SIGCONT.
    Halted,
    /// About to receive this signal, which must be passed on.
    Signal(i32),
}

fn cvt(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn request(request: libc::c_uint, tid: Tid, data: usize) -> io::Result<()> {
    // SAFETY: only requests whose data is a plain number come through here; none reads or writes our memory.
    cvt(unsafe { libc::ptrace(request, tid, 0usize, data) }).map(drop)
}

/// Waits until a child that has not been traced yet has stopped itself, and takes it and all that it creates as
/// tracees. They are killed with us: whoever kills us leaves no build running.
pub(crate) fn adopt(tid: Tid) -> io::Result<()> {
    let mut status = 0;
    loop {
        // SAFETY: status is ours and outlives the call.
        match cvt(unsafe { libc::waitpid(tid, &raw mut status, libc::WUNTRACED) }.into()) {
            Ok(_) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    if !libc::WIFSTOPPED(status) {
        return Err(io::Error::other("the shell did not wait"));
    }
    let options = libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SEIZE, tid, options as usize)?;
    kill(tid, libc::SIGCONT)
}

/// The next event of any tracee of this thread; `None` when there is none left.
pub(crate) fn wait() -> io::Result<Option<(Tid, Event)>> {
    let mut status = 0;
    // Without __WNOTHREAD we would take the children of the caller's other threads.
    let flags = libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: status is ours and outlives the call.
    let tid = match cvt(unsafe { libc::waitpid(-1, &raw mut status, flags) }.into()) {
        Ok(tid) => tid as Tid,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ECHILD) => Ok(None),
                Some(libc::EINTR) => wait(),
                _ => Err(error),
            };
        }
    };
    if !libc::WIFSTOPPED(status) {
        return Ok(Some((tid, Event::Ended(status))));
    }
    let signal = libc::WSTOPSIG(status);
    let event = match status >> 16 {
        0 => Event::Signal(signal),
        // Where there is no message it was killed just now, and its end comes next.
        libc::PTRACE_EVENT_EXEC => message(tid).map_or(Event::Began, Event::Executed),
        event @ (libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE) => {
            message(tid).map_or(Event::Began, |child| Event::Created {
                child,
                fork: event != libc::PTRACE_EVENT_CLONE,
            })
        }
        PTRACE_EVENT_STOP
            if matches!(
                signal,
                libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
            ) =>
        {
            Event::Halted
        }
        _ => Event::Began,
    };
    Ok(Some((tid, event)))
}

fn message(tid: Tid) -> io::Result<Tid> {
    let mut value: libc::c_ulong = 0;
    // SAFETY: PTRACE_GETEVENTMSG writes one unsigned long to value, which outlives the call.
    cvt(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0usize, &raw mut value) })?;
    Tid::try_from(value).map_err(io::Error::other)
}

/// The first argument of a tracee that stands right after exec, read from where its stack pointer tells (System V ABI for
/// x86-64, "Process Initialization"): opening a file of /proc costs as much as all of a short process's stops. `None`
/// where it is not a 64-bit process, or longer than any program's path.
pub(crate) fn first_argument(tid: Tid) -> Option<Vec<u8>> {
    /// __USER_CS of arch/x86: that of a 32-bit process is another.
    const CODE_64: libc::c_long = 0x33;
    let cs = peek(
        libc::PTRACE_PEEKUSER,
        tid,
        offset_of!(libc::user_regs_struct, cs),
    )?;
    let rsp = peek(
        libc::PTRACE_PEEKUSER,
        tid,
        offset_of!(libc::user_regs_struct, rsp),
    )?;
    if cs != CODE_64 {
        return None;
    }
    // The number of arguments lies at the stack pointer, then come pointers to them.
    let at = peek(libc::PTRACE_PEEKDATA, tid, (rsp as usize).checked_add(8)?)? as usize;
    let mut bytes = vec![0u8; 512];
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // Its end may be that of the stack.
    let remote = [
        (at, 4096 - at % 4096),
        (at.checked_next_multiple_of(4096)?, bytes.len()),
    ];
    let remote = remote.map(|(at, len)| libc::iovec {
        iov_base: at as *mut libc::c_void,
        iov_len: len,
    });
    // SAFETY: the kernel writes at most iov_len bytes to `bytes`, which outlives the call; the remote addresses are the
    // tracee's, and checked by the kernel.
    let read = cvt(unsafe {
        libc::process_vm_readv(tid, &raw const local, 1, remote.as_ptr(), 2, 0) as libc::c_long
    });
    bytes.truncate(usize::try_from(read.ok()?).ok()?);
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    Some(bytes)
}

/// A word of a stopped tracee.
fn peek(request: libc::c_uint, tid: Tid, at: usize) -> Option<libc::c_long> {
    // SAFETY: these requests read one word of the tracee; the C library returns it. -1 is no value that is asked for here.
    let word = unsafe { libc::ptrace(request, tid, at, 0usize) };
    (word != -1).then_some(word)
}

/// Lets a stopped tracee go on, with a signal or with none (0).
pub(crate) fn go_on(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, signal as usize)
}

/// Leaves a tracee stopped for job control, but tells us when that ends.
pub(crate) fn listen(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0)
}

/// Sends a signal to a tracee or child that was not waited for yet.
pub(crate) fn kill(pid: Tid, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    cvt(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// A process, by a handle that never means another one.
pub(crate) struct Handle(OwnedFd);

impl Handle {
    /// Of a child that was not waited for yet.
    pub(crate) fn open(pid: Tid) -> io::Result<Self> {
        // SAFETY: takes numbers only; the descriptor that it returns is nobody else's.
        let fd = cvt(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        // SAFETY: a null siginfo asks for the one that kill(2) would make.
        cvt(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, 0usize, 0) })
            .map(drop)
    }
}
