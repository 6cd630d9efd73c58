//! Our own priority, and lending it to a task until that has stopped.
//!
//! While nobody stands still for us we run last: on a processor that we share with a task of the target, it goes first.
//! Only where more tasks want to run than there are processors we would hardly ever run then, and so run first.
//!
//! On an oversubscribed machine a task that is to stop first needs its turn on a processor, and with a thousand
//! spinning tasks that takes seconds. Nothing of the task is changed for it: a thread of ours waits for a futex of ours
//! that says that the task owns it (FUTEX_LOCK_PI, kernel/futex/pi.c), and so the kernel lets the owner inherit the
//! waiter's priority for as long as it waits. When we die, the wait ends, and the loan with it.

use crate::sys::{self, Tid};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The real-time priority that is lent (SCHED_FIFO).
pub const LENT: i32 = 1;
/// No loan lasts longer.
const LONGEST: Duration = Duration::from_millis(100);

/// Adapts our priority to how busy the machine is; says whether that is very. Who may not raise it never lowers it.
pub fn adapt_priority() -> bool {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors =
        *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    let crowded = running_tasks().is_none_or(|running| running > processors);
    if sys::set_nice(-20) && !crowded {
        sys::set_nice(19);
    }
    crowded
}

/// How many tasks of the whole system run or want to (/proc/loadavg, fourth field).
fn running_tasks() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let (running, _) = text.split_ascii_whitespace().nth(3)?.split_once('/')?;
    running.parse().ok()
}

/// A loan's state in the low bits, its number above them.
///
/// No loan, or one that is over.
const IDLE: u64 = 0;
/// Asked for, and not begun: whoever asked can still take that back, and need not wait for a thread that may not have
/// had its first turn on a processor.
const ASKED: u64 = 1;
/// The thread waits.
const LENDING: u64 = 2;
/// From one loan's number to the next.
const NEXT: u64 = 4;

/// The thread that waits.
#[derive(Debug)]
pub struct Booster {
    requests: Sender<(Tid, u64)>,
    loan: Arc<AtomicU64>,
    thread: Arc<OnceLock<Tid>>,
}

/// A loan; dropping it takes it back.
#[derive(Debug)]
pub struct Loan {
    number: u64,
    loan: Arc<AtomicU64>,
    thread: Arc<OnceLock<Tid>>,
}

fn change(loan: &AtomicU64, from: u64, to: u64) -> bool {
    loan.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
        .is_ok()
}

impl Booster {
    /// Starts the thread; `None` when it may not have a priority to lend.
    pub fn start() -> Option<Booster> {
        let (requests, incoming) = channel();
        let loan = Arc::new(AtomicU64::new(IDLE));
        let thread = Arc::new(OnceLock::new());
        let (its_loan, its_thread) = (Arc::clone(&loan), Arc::clone(&thread));
        sys::prepare_loans();
        std::thread::Builder::new()
            .name("livegraft-boost".to_owned())
            .spawn(move || {
                let _ = its_thread.set(sys::own_tid());
                if !sys::run_first(Some(LENT)) {
                    return;
                }
                for (tid, number) in incoming {
                    if change(&its_loan, number | ASKED, number | LENDING) {
                        sys::lend_priority(tid, LONGEST);
                        its_loan.store(number | IDLE, Ordering::Release);
                    }
                }
            })
            .ok()?;
        Some(Booster {
            requests,
            loan,
            thread,
        })
    }

    /// Lets a task run as if it were us.
    pub fn lend(&self, tid: Tid) -> Option<Loan> {
        let last = self.loan.load(Ordering::Acquire);
        let number = (last & !(NEXT - 1)).wrapping_add(NEXT);
        // One loan at a time.
        if last & (NEXT - 1) != IDLE || !change(&self.loan, last, number | ASKED) {
            return None;
        }
        if self.requests.send((tid, number)).is_err() {
            self.loan.store(number | IDLE, Ordering::Release);
            return None;
        }
        Some(Loan {
            number,
            loan: Arc::clone(&self.loan),
            thread: Arc::clone(&self.thread),
        })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let number = self.number;
        if change(&self.loan, number | ASKED, number | IDLE) {
            return;
        }
        while self.loan.load(Ordering::Acquire) == number | LENDING {
            if let Some(&thread) = self.thread.get() {
                sys::end_loan(thread);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}
