//! The last resort: all tasks stand still, none of them within the bytes that are about to change.

use super::Engine;
use crate::arch::nr;
use crate::error::Error;
use crate::process::Task;
use crate::remote::{self, Host};
use crate::stack::{self, Ranges, Watched};
use crate::tracer::{Stopped, Stopping};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long it is tried to meet all tasks outside of those bytes.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the target runs between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// All tasks, stopped until this is dropped; one of them makes calls.
pub(super) struct Everyone<'a> {
    // Let go first: its own context is put back while the others still stand.
    host: Host<'a>,
    _others: Vec<Stopped>,
}

impl Everyone<'_> {
    /// See [`Host::call`].
    pub fn call(&mut self, what: &str, number: u64, args: [u64; 6]) -> Result<u64, Error> {
        self.host.call(what, number, args)
    }

    /// Makes a call that writes its answer, `N` bytes, to where `args` says for the address of `N` zeros.
    pub fn ask<const N: usize>(
        &mut self,
        what: &str,
        number: u64,
        args: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<[u8; N], Error> {
        let at = self.host.place(&[0; N])?;
        self.host.call(what, number, args(at))?;
        self.host.read_placed(at)
    }
}

/// Who is inside, or can't be stopped, and why that matters.
pub(super) type Obstacle = (Task, &'static str);

impl Engine {
    /// Stops all tasks such that none is within `inside`. What a task was interrupted in by a signal handler counts.
    pub(super) fn rendezvous(&mut self, inside: &Ranges) -> Result<Everyone<'_>, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.tracer.hold_late(true);
            let met = self.stop_everyone(inside, false);
            self.tracer.hold_late(false);
            match met? {
                Ok(all) => return self.choose_host(all),
                Err((task, why)) if Instant::now() > deadline => {
                    self.tracer.release_late();
                    let (pid, tid) = (self.process.pid, task.tid);
                    return Err(Error::Rendezvous { pid, tid, why });
                }
                Err(_) => {
                    self.tracer.release_late();
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Stops all tasks. `each`: also those that would stop before they ran another instruction must be met.
    pub(super) fn stop_everyone(
        &mut self,
        inside: &Ranges,
        each: bool,
    ) -> Result<Result<HashMap<Task, Stopped>, Obstacle>, Error> {
        let watched = Watched {
            replaced: Ranges::default(),
            entering: inside.clone(),
        };
        let mut all: HashMap<Task, Stopped> = HashMap::new();
        // Ended, or in the kernel with our order to stop before them.
        let mut harmless: HashSet<Task> = HashSet::new();
        loop {
            let listing = self.process.tasks()?;
            let fresh: Vec<(Task, i64)> = listing
                .tasks
                .into_iter()
                .filter(|task| !all.contains_key(task) && !harmless.contains(task))
                .map(|task| (task, remote::options(task)))
                .collect();
            if fresh.is_empty() && listing.complete {
                return Ok(Ok(all));
            }
            let mut obstacle = None;
            for (task, stopping) in self.tracer.stop_all(&fresh) {
                match stopping {
                    Stopping::Stopped(stopped) => {
                        if let Some(why) = self.is_in_the_way(&stopped, &watched) {
                            obstacle.get_or_insert((task, why));
                        }
                        all.insert(task, *stopped);
                    }
                    Stopping::Gone => {
                        harmless.insert(task);
                    }
                    // In the kernel, a vfork parent for one: it stops before it runs another instruction.
                    Stopping::Late => match task.asleep_at() {
                        Some((_, pc)) if inside.find(pc).is_none() && !each => {
                            harmless.insert(task);
                        }
                        _ => {
                            obstacle.get_or_insert((task, "it does not stop"));
                        }
                    },
                    Stopping::Denied(_) => {
                        obstacle.get_or_insert((task, "somebody else traces it"));
                    }
                }
            }
            if let Some(obstacle) = obstacle {
                return Ok(Err(obstacle));
            }
        }
    }

    fn is_in_the_way(&self, stopped: &Stopped, watched: &Watched) -> Option<&'static str> {
        let regs = &stopped.regs;
        let restorers = &self.gadgets.restorers;
        let none = Ranges::default();
        let worker = regs.rip == 0 && regs.rsp == 0;
        match stack::check(&self.process, regs, restorers, watched, &none) {
            Ok(found) if !found.hits.is_empty() => Some("it is within them"),
            Err(_) if !worker => Some("its stack can't be read"),
            _ => None,
        }
    }

    /// One of them makes calls from now on.
    pub(super) fn choose_host(
        &mut self,
        all: HashMap<Task, Stopped>,
    ) -> Result<Everyone<'_>, Error> {
        let pid = self.process.pid;
        // One that was interrupted in a call that restarts as it is does best, see `remote::suitability`.
        let (mut own, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(task, _)| task.pid == pid);
        own.sort_by_key(|(task, stopped)| match stopped.regs.orig_rax {
            nr::FUTEX => (0, task.tid),
            nr::RESTART_SYSCALL => (3, task.tid),
            number if number as i64 >= 0 => (1, task.tid),
            _ => (2, task.tid),
        });
        let mut others: Vec<Stopped> = others.into_iter().map(|(_, task)| task).collect();
        let mut rest = own.into_iter();
        let mut why = "it has no task that is suitable";
        while let Some((_, stopped)) = rest.next() {
            match Host::new(&self.process, &self.gadgets, Box::new(stopped)) {
                Ok(host) => {
                    others.extend(rest.map(|(_, stopped)| stopped));
                    return Ok(Everyone {
                        host,
                        _others: others,
                    });
                }
                Err((reason, stopped)) => {
                    why = reason;
                    others.push(*stopped);
                }
            }
        }
        let why = why.to_owned();
        Err(Error::NoHost { pid, why })
    }
}
