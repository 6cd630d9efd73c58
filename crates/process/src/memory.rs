//! Memory of the target, through one /proc/TID/mem that was opened before anything was verified: it names the
//! memory, not the process, so a process that execs away is seen as gone instead of being written to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// See the module.
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens the memory of the task whose /proc directory this is.
    ///
    /// # Errors
    /// EACCES, EPERM: ptrace access is denied.
    pub fn open(task_dir: &Path) -> io::Result<Memory> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(task_dir.join("mem"))?;
        Ok(Memory { file })
    }

    /// Reads as much as is there, at most `buf.len()` bytes.
    ///
    /// # Errors
    /// EIO: nothing is mapped at `address`, or the process has left this memory.
    pub fn read_some(&self, address: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.file.read_at(buf, address) {
            Ok(0) if !buf.is_empty() => Err(io::Error::from_raw_os_error(libc::EIO)),
            other => other,
        }
    }

    /// Reads all of `buf`.
    ///
    /// # Errors
    /// As [`Memory::read_some`].
    pub fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += self.read_some(address.wrapping_add(done as u64), rest)?;
        }
        Ok(())
    }

    /// Reads `len` bytes, which the caller has bounded.
    ///
    /// # Errors
    /// As [`Memory::read_some`].
    pub fn read_vec(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads one word.
    ///
    /// # Errors
    /// As [`Memory::read_some`].
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes, whatever the page's protection, then reads back and compares.
    ///
    /// # Errors
    /// EIO: not mapped, a shared read-only mapping, or what is there afterwards is not what was written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, address)?;
        let mut back = vec![0; bytes.len()];
        self.read(address, &mut back)?;
        if back != bytes {
            return Err(io::Error::other("what was written did not stay"));
        }
        Ok(())
    }
}

impl crate::object::ReadMemory for Memory {
    fn read_memory(&self, avma: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(avma, buf)
    }
}
