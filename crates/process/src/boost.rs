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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// No loan lasts longer.
const LONGEST: Duration = Duration::from_millis(100);

/// Adapts our priority to how busy the machine is. Who may not raise it never lowers it.
pub fn adapt_priority() {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors =
        *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    let crowded = running_tasks().is_none_or(|running| running > processors);
    if sys::set_nice(-20) && !crowded {
        sys::set_nice(19);
    }
}

/// How many tasks of the whole system run or want to (/proc/loadavg, fourth field).
fn running_tasks() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let (running, _) = text.split_ascii_whitespace().nth(3)?.split_once('/')?;
    running.parse().ok()
}

/// The thread that waits.
#[derive(Debug)]
pub struct Booster {
    requests: Sender<Tid>,
    busy: Arc<AtomicBool>,
    thread: Arc<OnceLock<Tid>>,
}

/// A loan; dropping it takes it back.
#[derive(Debug)]
pub struct Loan {
    busy: Arc<AtomicBool>,
    thread: Arc<OnceLock<Tid>>,
}

impl Booster {
    /// Starts the thread; `None` when it may not have a priority to lend.
    pub fn start() -> Option<Booster> {
        let (requests, incoming) = channel();
        let busy = Arc::new(AtomicBool::new(false));
        let thread = Arc::new(OnceLock::new());
        let (its_busy, its_thread) = (Arc::clone(&busy), Arc::clone(&thread));
        sys::prepare_loans();
        std::thread::Builder::new()
            .name("livegraft-boost".to_owned())
            .spawn(move || {
                if !sys::run_first(true) {
                    // In this order: a loan asked for after this finds nobody, one before finds it over.
                    drop(incoming);
                    its_busy.store(false, Ordering::Release);
                    return;
                }
                let _ = its_thread.set(sys::own_tid());
                for tid in incoming {
                    sys::lend_priority(tid, LONGEST);
                    its_busy.store(false, Ordering::Release);
                }
            })
            .ok()?;
        Some(Booster {
            requests,
            busy,
            thread,
        })
    }

    /// Lets a task run as if it were us.
    pub fn lend(&self, tid: Tid) -> Option<Loan> {
        self.busy.store(true, Ordering::Release);
        if self.requests.send(tid).is_err() {
            self.busy.store(false, Ordering::Release);
            return None;
        }
        Some(Loan {
            busy: Arc::clone(&self.busy),
            thread: Arc::clone(&self.thread),
        })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        while self.busy.load(Ordering::Acquire) {
            if let Some(&thread) = self.thread.get() {
                sys::end_loan(thread);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}
