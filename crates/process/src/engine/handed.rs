//! What a process has handed to the kernel, which may give it back: data of epoll and of timers, signal handlers.

use super::Engine;
use super::reach::{Bound, Cut, Reach};
use super::rendezvous::Everyone;
use crate::arch::nr;
use crate::error::Error;
use crate::process::{Task, status_field};
use crate::search::Wanted;
use crate::sys;
use std::fs;
use std::path::Path;

const LAST_SIGNAL: u64 = 64;
/// The kernel's `struct sigaction`: handler, flags, restorer, mask.
const SIGACTION: usize = 32;

impl Engine {
    /// What can be read of it from outside. What can't be read is said to be unseen.
    pub(super) fn search_kernel(
        &self,
        tasks: &[Task],
        wanted: &Wanted,
        bound: Bound,
        reach: &mut Reach,
    ) -> Result<(), Cut> {
        let is_ring = |path: &str| path.starts_with("/[aio]") || path.contains("[io_uring]");
        let mut paths = self
            .maps
            .iter()
            .filter_map(|mapping| mapping.path.as_deref());
        if paths.any(|path| path.to_str().is_some_and(is_ring)) {
            reach.unseen.push(rings());
        }
        let mut tables: Vec<Task> = Vec::new();
        let mut pids = Vec::new();
        for &task in tasks {
            if !tables
                .iter()
                .any(|other| sys::same_files(other.tid, task.tid))
            {
                tables.push(task);
            }
            if !pids.contains(&task.pid) {
                pids.push(task.pid);
            }
        }
        for task in tables {
            search_files(&task.dir(), wanted, bound, reach)?;
        }
        for pid in pids {
            let dir = Path::new("/proc").join(pid.to_string());
            match fs::read_to_string(dir.join("timers")) {
                Ok(timers) => {
                    for word in timers.lines().filter_map(timer_word) {
                        reach.note_kernel(wanted, word, "a timer's data");
                    }
                }
                Err(error) => {
                    let what = format!("the timers of process {pid} ({error})");
                    reach.unseen.push(what);
                }
            }
            // Its handlers can be asked for by one of its own tasks only, and none of those makes calls for us.
            if pid != self.process.pid && caught(&dir) != 0 {
                reach.unseen.push(format!(
                    "the signal handlers of process {pid}, which runs in the same memory"
                ));
            }
        }
        Ok(())
    }

    /// The signals that the process has handlers for.
    pub(super) fn caught_signals(&self) -> Vec<u64> {
        let mask = caught(&self.process.live());
        (1..=LAST_SIGNAL)
            .filter(|signal| mask & 1 << (signal - 1) != 0)
            .collect()
    }
}

/// Has one of the tasks ask for the handlers.
pub(super) fn search_handlers(
    everyone: &mut Everyone<'_>,
    signals: &[u64],
    wanted: &Wanted,
    bound: Bound,
    reach: &mut Reach,
) -> Result<(), Cut> {
    for &signal in signals {
        bound.check()?;
        let args = |at: u64| [signal, 0, at, 8, 0, 0];
        let action: [u8; SIGACTION] =
            everyone.ask("ask for a signal's handler", nr::RT_SIGACTION, &args)?;
        for word in action.chunks_exact(8) {
            let word = word.try_into().map(u64::from_le_bytes).unwrap_or_default();
            reach.note_kernel(wanted, word, "a signal's handler");
        }
    }
    Ok(())
}

fn caught(dir: &Path) -> u64 {
    let mask = status_field(dir, "SigCgt");
    // What is not known may be anything.
    mask.and_then(|mask| u64::from_str_radix(&mask, 16).ok())
        .unwrap_or(u64::MAX)
}

fn rings() -> String {
    "what the kernel was given through io_uring or asynchronous I/O".to_owned()
}

fn search_files(dir: &Path, wanted: &Wanted, bound: Bound, reach: &mut Reach) -> Result<(), Cut> {
    let files = match fs::read_dir(dir.join("fd")) {
        Ok(files) => files,
        Err(_) if !dir.exists() => return Ok(()),
        Err(error) => return Err(Error::io("looking at open files")(error).into()),
    };
    for file in files.filter_map(Result::ok) {
        bound.check()?;
        let Ok(link) = fs::read_link(file.path()) else {
            continue;
        };
        match link.to_str() {
            Some("anon_inode:[io_uring]") => reach.unseen.push(rings()),
            Some("anon_inode:[eventpoll]") => {
                let info = dir.join("fdinfo").join(file.file_name());
                let info = fs::read_to_string(info).unwrap_or_default();
                for word in info.lines().filter_map(epoll_word) {
                    reach.note_kernel(wanted, word, "the data of an epoll");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// `tfd:        5 events:       19 data:     55d0c0ffee  pos:0 ino:... sdev:...` (fs/eventpoll.c, ep_show_fdinfo)
fn epoll_word(line: &str) -> Option<u64> {
    let (_, data) = line.strip_prefix("tfd:")?.split_once("data:")?;
    u64::from_str_radix(data.split_ascii_whitespace().next()?, 16).ok()
}

/// `signal: 60/00007fff86e452a8` (fs/proc/base.c, show_timer)
fn timer_word(line: &str) -> Option<u64> {
    let (_, data) = line.strip_prefix("signal:")?.split_once('/')?;
    u64::from_str_radix(data.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_shows_is_read() {
        let epoll = "tfd:        5 events:       19 data:     7f12deadbeef  pos:0 ino:61 sdev:d";
        assert_eq!(epoll_word(epoll), Some(0x7f12_dead_beef));
        assert_eq!(epoll_word("pos:\t0"), None);
        assert_eq!(
            timer_word("signal: 60/00007fff86e452a8"),
            Some(0x7fff_86e4_52a8)
        );
        assert_eq!(timer_word("notify: signal/pid.2634"), None);
    }
}
