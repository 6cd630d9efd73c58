//! A server that runs.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// A process that was started. Killed by its pid when dropped, if it has not ended before.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Of a child whose pipes were taken.
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Itself, and the children of its main task: a master and its workers.
    pub fn with_children(&self) -> Vec<i32> {
        let main = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{main}/task/{main}/children"));
        let children = children.unwrap_or_default();
        let children = children.split(' ').filter_map(|pid| pid.parse().ok());
        std::iter::once(main).chain(children).collect()
    }

    /// How it ends, if it does within this time.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn ends_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>, String> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.0.try_wait().map_err(|e| e.to_string())?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks a master to end with its workers; those that have not done so after ten seconds are killed.
    pub fn end_with_children(&mut self) {
        let all = self.with_children();
        crate::kill(self.pid(), libc::SIGTERM);
        if !matches!(self.ends_within(Duration::from_secs(10)), Ok(Some(_))) {
            all.iter().for_each(|pid| crate::kill(*pid, libc::SIGKILL));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
