//! Clients that use a server all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that send requests one after the other until this is dropped.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    first_error: Mutex<Option<String>>,
}

impl Clients {
    /// So many of them; `client` makes what one does again and again: a request, and a look at its answer.
    pub fn start<Request>(count: usize, mut client: impl FnMut() -> Request) -> Self
    where
        Request: FnMut() -> Result<(), String> + Send + 'static,
    {
        let shared = Arc::new(Shared::default());
        let threads = (0..count)
            .map(|_| {
                let (shared, mut request) = (Arc::clone(&shared), client());
                std::thread::spawn(move || {
                    while !shared.stop.load(Ordering::Relaxed) {
                        match request() {
                            Ok(()) => shared.answered.fetch_add(1, Ordering::Relaxed),
                            Err(error) => {
                                let first = shared.first_error.lock();
                                if let Ok(mut first) = first {
                                    first.get_or_insert(error);
                                }
                                std::thread::sleep(Duration::from_millis(1));
                                shared.failed.fetch_add(1, Ordering::Relaxed)
                            }
                        };
                    }
                })
            })
            .collect();
        Self { shared, threads }
    }

    /// Requests that were answered well, and that were not.
    pub fn count(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.shared.answered), count(&self.shared.failed))
    }

    /// Waits until so many more were answered.
    ///
    /// # Errors
    /// The first that failed; none came within 20 s.
    pub fn more(&self, requests: u64) -> Result<(), String> {
        let (from, deadline) = (self.count().0, Instant::now() + Duration::from_secs(20));
        loop {
            if let Some(error) = self.error() {
                return Err(format!("a client: {error}"));
            }
            if self.count().0 >= from + requests {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("the clients get no answers".to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn error(&self) -> Option<String> {
        let first = self.shared.first_error.lock();
        first.ok().and_then(|first| first.clone())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
