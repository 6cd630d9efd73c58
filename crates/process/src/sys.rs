//! The system calls that have no safe wrapper elsewhere: ptrace, kcmp, PROCMAP_QUERY, waiting with a bound.
//!
//! All `unsafe` of this crate is here. ptrace requests belong to the thread that seized the task, so nothing here may
//! be called from a second thread.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Thread id.
pub type Tid = i32;

/// General registers as PTRACE_GETREGS gives them.
pub type Registers = libc::user_regs_struct;

const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_EVENT_STOP: i32 = 128;
/// `PTRACE_O_SUSPEND_SECCOMP`: filters do not judge the tracee's calls while we are attached.
pub const O_SUSPEND_SECCOMP: i64 = 1 << 21;
/// `PTRACE_O_TRACESYSGOOD`: system call stops are told from SIGTRAP.
pub const O_TRACESYSGOOD: i64 = 1;

/// Why a tracee stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_EVENT_STOP: our interrupt, or a group stop.
    Event,
    /// About to receive this signal, which must be passed on.
    Signal(i32),
    /// At the entry to or exit from a system call.
    Syscall,
    /// Another ptrace event.
    Other,
    /// It is gone.
    Exited,
}

fn cvt(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn request(request: libc::c_uint, tid: Tid, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: only requests whose addr and data are plain numbers come through here.
    cvt(unsafe { libc::ptrace(request, tid, addr, data) }).map(drop)
}

/// PTRACE_SEIZE with options.
///
/// # Errors
/// EPERM: no permission, traced already, or exiting. ESRCH: gone.
pub fn seize(tid: Tid, options: i64) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize)
}

/// PTRACE_INTERRUPT.
///
/// # Errors
/// ESRCH: gone.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// PTRACE_CONT, with a signal to deliver or 0.
///
/// # Errors
/// ESRCH: gone.
pub fn resume(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// PTRACE_SYSCALL, with a signal to deliver or 0.
///
/// # Errors
/// ESRCH: gone.
pub fn resume_to_syscall(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize)
}

/// PTRACE_DETACH.
///
/// # Errors
/// ESRCH: gone, or not stopped.
pub fn detach(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, 0)
}

/// PTRACE_GETREGS.
///
/// # Errors
/// ESRCH: gone.
pub fn registers(tid: Tid) -> io::Result<Registers> {
    let mut regs = MaybeUninit::<Registers>::zeroed();
    // SAFETY: the kernel writes one user_regs_struct to the pointer.
    cvt(unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0usize, regs.as_mut_ptr()) })?;
    // SAFETY: plain integers, written by the kernel (and zeroed before).
    Ok(unsafe { regs.assume_init() })
}

/// Registers that are all zero.
#[cfg(test)]
pub fn no_registers() -> Registers {
    // SAFETY: they are numbers.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// PTRACE_SETREGS.
///
/// # Errors
/// ESRCH: gone. EIO: a value that user space may not have.
pub fn set_registers(tid: Tid, regs: &Registers) -> io::Result<()> {
    // SAFETY: the kernel reads one user_regs_struct from the pointer.
    cvt(unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0usize, regs as *const Registers) })
        .map(drop)
}

/// PTRACE_POKEUSER of one general register, by its offset in `user_regs_struct`.
///
/// # Errors
/// ESRCH: gone. EIO: a value that user space may not have.
pub fn set_register(tid: Tid, offset: usize, value: u64) -> io::Result<()> {
    request(libc::PTRACE_POKEUSER, tid, offset, value as usize)
}

/// The blocked signals of a stopped task.
///
/// # Errors
/// ESRCH: gone.
pub fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes 8 bytes to the pointer.
    cvt(unsafe { libc::ptrace(PTRACE_GETSIGMASK, tid, 8usize, &mut mask as *mut u64) })?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped task.
///
/// # Errors
/// ESRCH: gone.
pub fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads 8 bytes from the pointer.
    cvt(unsafe { libc::ptrace(PTRACE_SETSIGMASK, tid, 8usize, &mask as *const u64) }).map(drop)
}

const NT_PRFPREG: usize = 2;
const NT_X86_XSTATE: usize = 0x202;
/// Bytes of the state of a processor that has no XSAVE.
const FXSAVE: usize = 512;

/// The extended state in the standard XSAVE format; of a processor that has no XSAVE, the 512 bytes of FXSAVE.
///
/// # Errors
/// ESRCH: gone.
pub fn extended_state(tid: Tid) -> io::Result<Vec<u8>> {
    match register_set(tid, NT_X86_XSTATE) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => register_set(tid, NT_PRFPREG),
        other => other,
    }
}

fn register_set(tid: Tid, which: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 16 * 1024];
    let mut iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: the kernel writes at most iov_len bytes to iov_base and updates iov_len.
    cvt(unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            tid,
            which,
            &mut iov as *mut libc::iovec,
        )
    })?;
    buf.truncate(iov.iov_len);
    Ok(buf)
}

/// Puts an extended state back that [`extended_state`] gave.
///
/// # Errors
/// ESRCH: gone. EINVAL: it is not one of this machine.
pub fn set_extended_state(tid: Tid, state: &[u8]) -> io::Result<()> {
    let which = match state.len() {
        FXSAVE => NT_PRFPREG,
        _ => NT_X86_XSTATE,
    };
    let iov = libc::iovec {
        iov_base: state.as_ptr().cast_mut().cast(),
        iov_len: state.len(),
    };
    // SAFETY: the kernel only reads, at most iov_len bytes from iov_base.
    cvt(unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            tid,
            which,
            &iov as *const libc::iovec,
        )
    })
    .map(drop)
}

/// Where a task's list of robust futexes begins, or `None` when it has registered none. It is a task's own: none is born
/// with one.
pub fn robust_list(tid: Tid) -> Option<u64> {
    let (mut head, mut len) = (0u64, 0usize);
    // SAFETY: the kernel writes one pointer and one size.
    let got = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid,
            &mut head as *mut u64,
            &mut len as *mut usize,
        )
    };
    (got == 0 && head != 0).then_some(head)
}

/// Address of the task's `struct rseq`, or `None` when it has registered none (or the kernel can't say).
pub fn rseq_area(tid: Tid) -> Option<u64> {
    // struct ptrace_rseq_configuration { u64 pointer; u32 size, signature, flags, pad; }
    let mut conf = [0u64; 3];
    // SAFETY: the kernel writes at most the 24 bytes that are announced.
    let got = unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            tid,
            24usize,
            conf.as_mut_ptr(),
        )
    };
    (got > 0 && conf[0] != 0).then_some(conf[0])
}

/// Blocks SIGCHLD for this thread, so that [`wait`] can sleep until a tracee reports. Must precede the first wait.
pub fn block_sigchld() {
    // SAFETY: a local set, initialised by sigemptyset.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Waits for a report of one tracee, at most `bound`; `None` when there was none.
///
/// # Errors
/// ECHILD: not our tracee.
pub fn wait(tid: Tid, bound: Duration) -> io::Result<Option<Stop>> {
    let mut deadline = None;
    loop {
        let mut status = 0;
        // SAFETY: status is a local.
        let got = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        if got == tid {
            return Ok(Some(classify(status)));
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + bound);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        wait_for_sigchld(left);
    }
}

fn wait_for_sigchld(bound: Duration) {
    let spec = libc::timespec {
        tv_sec: bound.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(bound.subsec_nanos()),
    };
    // SAFETY: local set and timespec; a null siginfo is allowed.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigtimedwait(set.as_ptr(), std::ptr::null_mut(), &spec);
    }
}

fn classify(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Exited;
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        (PTRACE_EVENT_STOP, _) => Stop::Event,
        (0, signal) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (0, signal) => Stop::Signal(signal),
        _ => Stop::Other,
    }
}

/// Whether two processes share their memory (kcmp, KCMP_VM); `false` when the kernel can't tell.
pub fn same_memory(a: i32, b: i32) -> bool {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0 }
}

/// Whether two tasks share their open files (kcmp, KCMP_FILES); `false` when the kernel can't tell.
pub fn same_files(a: Tid, b: Tid) -> bool {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_FILES, 0, 0) == 0 }
}

/// Whether the signal that a task has stopped for was sent by somebody, and is not that of a fault.
pub fn was_sent(tid: Tid) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one siginfo_t; all zeroes are one as well.
    let info = unsafe {
        libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0usize, info.as_mut_ptr());
        info.assume_init()
    };
    info.si_code <= 0
}

/// The signals that wait for a stopped task, or for its whole process: `siginfo_t`, at most `limit`.
///
/// # Errors
/// ESRCH: gone.
pub fn pending_signals(tid: Tid, shared: bool, limit: u64) -> io::Result<Vec<[u64; 16]>> {
    const AT_ONCE: usize = 32;
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut all = Vec::new();
    while (all.len() as u64) < limit {
        let args = Args {
            off: all.len() as u64,
            flags: u32::from(shared),
            nr: AT_ONCE as i32,
        };
        let mut buf = [[0u64; 16]; AT_ONCE];
        // SAFETY: the kernel reads one Args and writes at most `nr` siginfo_t, 128 bytes each, to the buffer.
        let got = cvt(unsafe {
            libc::ptrace(
                PTRACE_PEEKSIGINFO,
                tid,
                &args as *const Args,
                buf.as_mut_ptr(),
            )
        })?;
        let got = usize::try_from(got).unwrap_or(0);
        all.extend(buf.iter().take(got));
        if got < AT_ONCE {
            break;
        }
    }
    Ok(all)
}

/// Reads memory of a process by its number (process_vm_readv): twice as fast as /proc/PID/mem, but not what the process
/// itself may not read. Returns how much was read.
///
/// # Errors
/// EFAULT: nothing is there to be read. ESRCH, EPERM.
pub fn read_memory(pid: i32, address: u64, buf: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: buf.len(),
    };
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`; the remote address is the other process's.
    let got = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Ranges of pages of `range` that are in memory or swapped out, and neither a file's nor the page of zeros, as an open
/// /proc/PID/pagemap has them (PAGEMAP_SCAN, Linux >= 6.7); and how far that is all of them.
///
/// # Errors
/// ENOTTY: the kernel does not know the request.
pub fn anonymous_pages(
    pagemap: &File,
    range: &std::ops::Range<u64>,
) -> io::Result<(Vec<std::ops::Range<u64>>, u64)> {
    const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
    const FILE: u64 = 1 << 2;
    const PRESENT: u64 = 1 << 3;
    const SWAPPED: u64 = 1 << 4;
    const PFNZERO: u64 = 1 << 5;
    const AT_ONCE: usize = 256;
    // struct page_region { u64 start, end, categories; }
    let mut regions = [[0u64; 3]; AT_ONCE];
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: AT_ONCE as u64,
        category_inverted: FILE | PFNZERO,
        category_mask: FILE | PFNZERO,
        category_anyof_mask: PRESENT | SWAPPED,
        return_mask: PRESENT,
        ..PmScanArg::default()
    };
    // SAFETY: the structure has the layout and size that the request announces, and `vec` points to `vec_len` regions.
    let got = cvt(libc::c_long::from(unsafe {
        libc::ioctl(
            pagemap.as_raw_fd(),
            PAGEMAP_SCAN,
            &mut arg as *mut PmScanArg,
        )
    }))?;
    let got = regions.iter().take(usize::try_from(got).unwrap_or(0));
    let ranges = got.map(|&[start, end, _]| start..end);
    Ok((ranges.collect(), arg.walk_end))
}

/// The first range of an open file, from an offset on, that is no hole; `None`: nothing but a hole is left.
///
/// # Errors
/// ESPIPE, ENODEV: it is no file that has such.
pub fn data_from(file: &File, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    let seek = |from: u64, whence: libc::c_int| {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: numbers only.
        let at = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    };
    match seek(offset, libc::SEEK_DATA) {
        Ok(start) => Ok(Some(start..seek(start, libc::SEEK_HOLE)?)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the exclusive lock on an open file; `false` when another process holds it.
pub fn try_lock(file: &File) -> bool {
    // SAFETY: a valid descriptor.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// Whether the kernel lets user space use `wrgsbase` (AT_HWCAP2, HWCAP2_FSGSBASE).
pub fn has_fsgsbase() -> bool {
    // SAFETY: no pointers.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

/// The time stamp counter, as any task of this machine reads it.
pub fn time_stamp() -> u64 {
    // SAFETY: no memory is involved; the vDSO's clocks need the instruction as well.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// The mapping that covers an address, asked of an open /proc/PID/maps (PROCMAP_QUERY, Linux >= 6.11).
///
/// # Errors
/// ENOENT: nothing is mapped there. ENOTTY: the kernel does not know the request.
pub fn query_mapping(maps: &File, address: u64) -> io::Result<(u64, u64)> {
    const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_addr: address,
        ..ProcmapQuery::default()
    };
    // SAFETY: the structure has the layout and size that the request announces, and asks for no names.
    cvt(libc::c_long::from(unsafe {
        libc::ioctl(
            maps.as_raw_fd(),
            PROCMAP_QUERY,
            &mut query as *mut ProcmapQuery,
        )
    }))?;
    Ok((query.vma_start, query.vma_end))
}

/// Time since boot in clock ticks, as /proc/PID/stat counts start times.
pub fn boot_ticks() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel writes one timespec; sysconf has no pointers.
    let (now, per_second) = unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, now.as_mut_ptr());
        (now.assume_init(), libc::sysconf(libc::_SC_CLK_TCK))
    };
    let per_second = u64::try_from(per_second).unwrap_or(100).max(1);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    u64::try_from(now.tv_sec).unwrap_or(0) * per_second + nanos / (1_000_000_000 / per_second)
}

/// How long this thread has had a processor.
pub fn processor_time() -> Duration {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel writes one timespec, which was zeroed before.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, now.as_mut_ptr());
        now.assume_init()
    };
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Lets this thread run before all ordinary ones, with a real-time priority (SCHED_FIFO), or as before: while a task
/// stands still for us, nobody else's time slice may come between. `false` when we may not.
pub fn run_first(priority: Option<i32>) -> bool {
    let (policy, priority) = match priority {
        Some(priority) => (libc::SCHED_FIFO, priority),
        None => (libc::SCHED_OTHER, 0),
    };
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the kernel reads one sched_param.
    unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &param) == 0 }
}

/// Our own thread's number.
pub fn own_tid() -> Tid {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// The futex that a task is said to own while we lend it our priority.
static LOAN: AtomicU32 = AtomicU32::new(0);

extern "C" fn forget_loan(_signal: libc::c_int) {
    LOAN.store(0, Ordering::SeqCst);
}

fn loan_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Installs the handler that [`end_loan`] needs.
pub fn prepare_loans() {
    // SAFETY: the handler only stores to an atomic.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = forget_loan as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(loan_signal(), &action, std::ptr::null_mut());
    }
}

/// Waits, at most `longest`, for a futex that `owner` is said to own: meanwhile it inherits this thread's priority.
pub fn lend_priority(owner: Tid, longest: Duration) {
    let until = std::time::SystemTime::now() + longest;
    let until = until
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let until = libc::timespec {
        tv_sec: libc::time_t::try_from(until.as_secs()).unwrap_or(0),
        tv_nsec: libc::c_long::from(until.subsec_nanos()),
    };
    LOAN.store(owner as u32, Ordering::SeqCst);
    // SAFETY: the word is static and the timespec is read only during the call. When the call takes the lock (the
    // owner is gone, or `end_loan` has cleared the word), nobody else waits for it.
    unsafe {
        // Not FUTEX_PRIVATE: the owner is a task of another process.
        let operation = libc::FUTEX_LOCK_PI;
        libc::syscall(libc::SYS_futex, LOAN.as_ptr(), operation, 0, &until);
    }
    LOAN.store(0, Ordering::SeqCst);
}

/// Ends the wait of [`lend_priority`] in another thread of ours: the interrupted call finds the futex free.
pub fn end_loan(thread: Tid) {
    // SAFETY: numbers only.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, loan_signal());
    }
}

/// Sets this thread's priority among ordinary ones, from -20 (first) to 19 (last); `false` when we may not.
pub fn set_nice(nice: i32) -> bool {
    // SAFETY: numbers only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}
