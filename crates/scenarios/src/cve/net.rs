//! Connections to what is patched, and servers that it asks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than any answer here.
const MOST: usize = 1 << 20;

/// A port of the loopback that was free a moment ago.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

/// One end of a connection, with what was received and not yet taken.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// To a port of the loopback.
    pub fn open(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port));
        Self::of(stream.map_err(|e| format!("port {port}: {e}"))?)
    }

    fn of(stream: TcpStream) -> Result<Self, String> {
        let set = || -> std::io::Result<()> {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))
        };
        set().map_err(|e| e.to_string())?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// Sends all of it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), String> {
        let sent = self.stream.write_all(bytes.as_ref());
        sent.map_err(|e| format!("sending: {e}"))
    }

    /// Receives something more; false at the end.
    fn receive(&mut self) -> Result<bool, String> {
        let mut part = [0; 16 * 1024];
        let n = self.stream.read(&mut part);
        let n = n.map_err(|e| format!("receiving: {e}"))?;
        self.received.extend(&part[..n]);
        if self.received.len() > MOST {
            return Err("far too much was received".to_owned());
        }
        Ok(n > 0)
    }

    /// What comes up to and with an end mark.
    pub fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, String> {
        loop {
            let found = self.received.windows(mark.len()).position(|w| w == mark);
            if let Some(at) = found {
                return self.exactly(at + mark.len());
            }
            if !self.receive()? {
                return Err("the connection was closed".to_owned());
            }
        }
    }

    /// The next so many bytes.
    pub fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.received.len() < length {
            if !self.receive()? {
                return Err("the connection was closed".to_owned());
            }
        }
        Ok(self.received.drain(..length).collect())
    }

    /// What comes up to the end.
    pub fn rest(&mut self) -> Result<Vec<u8>, String> {
        while self.receive()? {}
        Ok(std::mem::take(&mut self.received))
    }

    /// What comes next, as it comes.
    pub fn some(&mut self) -> Result<Vec<u8>, String> {
        if self.received.is_empty() && !self.receive()? {
            return Err("the connection was closed".to_owned());
        }
        Ok(std::mem::take(&mut self.received))
    }
}

/// A server of ours: each connection on a thread of its own, until this is dropped.
#[derive(Debug)]
pub struct Backend {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// `serve` has a connection to itself; it is closed when that returns.
    pub fn start<Serve>(serve: Serve) -> Result<Self, String>
    where
        Serve: Fn(&mut Connection) -> Result<(), String> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, serve) = (Arc::clone(&stop), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    // Who has asked sees what is wrong with the answer.
                    let _ =
                        Connection::of(stream).and_then(|mut connection| serve(&mut connection));
                });
            }
        });
        Ok(Self {
            port,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // So that it wakes up.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
