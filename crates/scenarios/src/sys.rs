//! The few system calls that the harness makes itself.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::time::Duration;

/// Sends a signal to one process.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved; pid is a child of ours that has not been reaped.
    unsafe { libc::kill(pid, signal) };
}

/// Sends a signal to one process group.
pub fn killpg(group: i32, signal: i32) {
    // SAFETY: as above; the group was made by us for one child.
    unsafe { libc::killpg(group, signal) };
}

/// Runs a command: the most memory that it had at once, in bytes, and its exit code; `None` if a signal ended it.
pub fn peak_memory(command: &mut Command) -> io::Result<Option<(u64, i32)>> {
    let child = command.spawn()?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both are ours and outlive the call; the child has not been reaped.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, usage.as_mut_ptr()) };
    // SAFETY: it is a struct of numbers, zeroed.
    let usage = unsafe { usage.assume_init() };
    let ended = waited > 0 && libc::WIFEXITED(status);
    Ok(ended.then(|| (usage.ru_maxrss as u64 * 1024, libc::WEXITSTATUS(status))))
}

/// Processor time of all children that have ended, and of theirs.
pub fn children_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills a struct of ours, which is valid as zeros too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let part = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    part(usage.ru_utime) + part(usage.ru_stime)
}

/// Raises the limit of open files to what is allowed (redis-benchmark and 1000 threads want some).
pub fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid struct.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// The command will run without address space randomization.
pub fn without_randomization(command: &mut Command) {
    let switch_off = || {
        // SAFETY: no memory is involved.
        let old = unsafe { libc::personality(0xffff_ffff) };
        // SAFETY: as above.
        let result = unsafe {
            libc::personality(old as libc::c_ulong | libc::ADDR_NO_RANDOMIZE as libc::c_ulong)
        };
        if old == -1 || result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(switch_off) };
}

/// The command will not outlive the thread that starts it.
pub fn end_with_us(command: &mut Command) {
    let prepare = || {
        // SAFETY: no memory is involved.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Whether user space may use `wrgsbase` (AT_HWCAP2 bit 1).
pub fn has_fsgsbase() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

fn ptrace(request: libc::c_uint, tid: i32, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: data is null or points to what the request wants, see the callers.
    let result = unsafe { libc::ptrace(request, tid, null_mut::<libc::c_void>(), data) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits until a task that this thread traces stops; gives the signal that it stopped for, 0 if it is our interruption.
fn wait_for_stop(tid: i32) -> io::Result<usize> {
    let mut status = 0;
    loop {
        // SAFETY: status is valid; tid is traced by this thread.
        let got = unsafe { libc::waitpid(tid, &mut status, libc::__WALL) };
        if got == tid && libc::WIFSTOPPED(status) {
            let ours = status >> 16 == libc::PTRACE_EVENT_STOP;
            return Ok(if ours {
                0
            } else {
                libc::WSTOPSIG(status) as usize
            });
        }
        let error = io::Error::last_os_error();
        if got == tid || error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// SEIZE + INTERRUPT + GETREGS + DETACH of one task, nothing else: the least that a visit can cost. Gives its gs base.
/// A signal that arrives first is passed on.
pub fn bare_visit(tid: i32) -> io::Result<u64> {
    ptrace(libc::PTRACE_SEIZE, tid, null_mut())?;
    ptrace(libc::PTRACE_INTERRUPT, tid, null_mut())?;
    let signal = wait_for_stop(tid)?;
    let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
    ptrace(libc::PTRACE_GETREGS, tid, registers.as_mut_ptr().cast())?;
    ptrace(libc::PTRACE_DETACH, tid, signal as *mut libc::c_void)?;
    // SAFETY: PTRACE_GETREGS has filled it.
    Ok(unsafe { registers.assume_init() }.gs_base)
}

/// Sets the gs base of one task. A signal that arrives first is passed on.
pub fn set_gs_base(tid: i32, base: u64) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, tid, null_mut())?;
    ptrace(libc::PTRACE_INTERRUPT, tid, null_mut())?;
    let signal = wait_for_stop(tid)?;
    let offset = std::mem::offset_of!(libc::user_regs_struct, gs_base);
    // SAFETY: the request takes an offset and a number.
    let set = unsafe { libc::ptrace(libc::PTRACE_POKEUSER, tid, offset, base) };
    let failed = io::Error::last_os_error();
    ptrace(libc::PTRACE_DETACH, tid, signal as *mut libc::c_void)?;
    if set == -1 { Err(failed) } else { Ok(()) }
}

/// A task that this thread traces and that stands still. It goes on when this is dropped: one that is traced by a thread
/// that has given up can't even be reaped.
struct Standing(i32);

impl Standing {
    /// Lets go of it, with a signal.
    fn release(self, signal: i32) -> io::Result<()> {
        let tid = self.0;
        std::mem::forget(self);
        ptrace(libc::PTRACE_DETACH, tid, signal as usize as *mut _)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let _ = ptrace(libc::PTRACE_DETACH, self.0, null_mut());
    }
}

/// Executes one instruction of a task after the other until `there` says of its program counter that it is there, and
/// lets go of it with its process stopped by SIGSTOP. `begin` is called once the task stands still.
pub fn walk_and_stop(
    tid: i32,
    begin: &mut dyn FnMut(),
    there: &mut dyn FnMut(u64) -> bool,
) -> io::Result<u64> {
    const FAR: usize = 200_000;
    ptrace(libc::PTRACE_SEIZE, tid, null_mut())?;
    ptrace(libc::PTRACE_INTERRUPT, tid, null_mut())?;
    wait_for_stop(tid)?;
    let standing = Standing(tid);
    begin();
    let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
    for _ in 0..FAR {
        ptrace(libc::PTRACE_SINGLESTEP, tid, null_mut())?;
        wait_for_stop(tid)?;
        ptrace(libc::PTRACE_GETREGS, tid, registers.as_mut_ptr().cast())?;
        // SAFETY: PTRACE_GETREGS has filled it.
        let rip = unsafe { registers.assume_init() }.rip;
        if there(rip) {
            standing.release(libc::SIGSTOP)?;
            return Ok(rip);
        }
    }
    Err(io::Error::other("the task did not come there"))
}

/// Somebody else's tracer: attached, and doing nothing. Must be dropped by the thread that made it.
#[derive(Debug)]
pub struct Tracer(i32);

impl Tracer {
    /// Attaches to one task.
    pub fn attach(tid: i32) -> io::Result<Self> {
        ptrace(libc::PTRACE_SEIZE, tid, null_mut())?;
        Ok(Self(tid))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = ptrace(libc::PTRACE_INTERRUPT, self.0, null_mut());
        let signal = wait_for_stop(self.0).unwrap_or(0);
        let _ = ptrace(libc::PTRACE_DETACH, self.0, signal as *mut libc::c_void);
    }
}

/// A uprobe as perf and bpftrace set them; gone when dropped.
#[derive(Debug)]
pub struct Uprobe(i32);

impl Uprobe {
    /// Sets one at an offset of a file, for one process.
    pub fn set(file: &Path, offset: u64, pid: i32) -> io::Result<Self> {
        Self::open(file, offset, pid, -1)
    }

    /// Sets one for every process that runs on a processor. (One that tasks inherit can make their `clone` fail.)
    pub fn set_on(file: &Path, offset: u64, processor: i32) -> io::Result<Self> {
        Self::open(file, offset, -1, processor)
    }

    fn open(file: &Path, offset: u64, pid: i32, processor: i32) -> io::Result<Self> {
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
        let kind: u32 = kind.trim().parse().map_err(io::Error::other)?;
        let path =
            std::ffi::CString::new(file.to_str().unwrap_or_default()).map_err(io::Error::other)?;
        // struct perf_event_attr, PERF_ATTR_SIZE_VER1: type, size, config, sample_period, sample_type, read_format,
        // flags, wakeup, bp_type, config1 (the path), config2 (the offset).
        let mut attributes = [0_u64; 9];
        attributes[0] = u64::from(kind) | 72 << 32;
        attributes[7] = path.as_ptr() as u64;
        attributes[8] = offset;
        // SAFETY: the attributes are 72 bytes as their size field says, the path outlives the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                attributes.as_ptr(),
                pid,
                processor,
                -1,
                8_u64,
            )
        };
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self(fd as i32))
        }
    }

    /// How often the process (of a multi-threaded one, the task) has come by.
    pub fn count(&self) -> io::Result<u64> {
        let mut count = 0_u64;
        // SAFETY: the descriptor is ours, and a count without a read_format has eight bytes.
        let read = unsafe { libc::read(self.0, (&raw mut count).cast(), 8) };
        match read {
            8 => Ok(count),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Uprobe {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(self.0) };
    }
}
