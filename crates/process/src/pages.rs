//! Which of a process's memory has contents of its own: what was never written need not be read.

use crate::arch::PAGE;
use crate::sys;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PRESENT_OR_SWAPPED: u64 = 3 << 62;
const OF_FILE: u64 = 1 << 61;
/// Entries of the page map read at once.
const AT_ONCE: u64 = 8192;

/// An open /proc/PID/pagemap.
#[derive(Debug)]
pub struct PageMap(File);

/// Called with each range; an error of its own ends the walk.
pub type Each<'a, E> = &'a mut dyn FnMut(Range<u64>) -> Result<(), E>;

impl PageMap {
    /// Opens that of a task (its /proc directory).
    ///
    /// # Errors
    /// EACCES: no ptrace access.
    pub fn open(task_dir: &Path) -> io::Result<PageMap> {
        File::open(task_dir.join("pagemap")).map(PageMap)
    }

    /// Calls `each` with the ranges of a private mapping that have been written to, swapped out ones included: what is
    /// neither a file's nor untouched.
    ///
    /// # Errors
    /// Those of the system, and of `each`.
    pub fn written<E: From<io::Error>>(
        &self,
        range: Range<u64>,
        each: Each<'_, E>,
    ) -> Result<(), E> {
        let mut at = range.start;
        while at < range.end {
            let (ranges, walked) = match sys::anonymous_pages(&self.0, &(at..range.end)) {
                // Before Linux 6.7.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                    return self.written_by_entries(at..range.end, each);
                }
                other => other?,
            };
            ranges.into_iter().try_for_each(&mut *each)?;
            if walked <= at {
                return Err(io::Error::from(io::ErrorKind::InvalidData).into());
            }
            at = walked;
        }
        Ok(())
    }

    fn written_by_entries<E: From<io::Error>>(
        &self,
        range: Range<u64>,
        each: Each<'_, E>,
    ) -> Result<(), E> {
        let mut at = range.start;
        let mut open: Option<Range<u64>> = None;
        while at < range.end {
            let count = ((range.end - at) / PAGE).clamp(1, AT_ONCE);
            let mut bytes = vec![0; count as usize * 8];
            self.0.read_exact_at(&mut bytes, at / PAGE * 8)?;
            for entry in bytes.chunks_exact(8) {
                let entry = entry.try_into().map(u64::from_le_bytes).unwrap_or_default();
                let written = entry & PRESENT_OR_SWAPPED != 0 && entry & OF_FILE == 0;
                let end = at.saturating_add(PAGE);
                open = match (open, written) {
                    (Some(range), true) => Some(range.start..end),
                    (None, true) => Some(at..end),
                    (Some(range), false) => {
                        each(range)?;
                        None
                    }
                    (None, false) => None,
                };
                at = end;
            }
        }
        open.map_or(Ok(()), each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways see what this process has written to, and nothing of its files.
    #[test]
    fn written_pages_are_found() {
        let here = Path::new("/proc/thread-self");
        let pagemap = PageMap::open(here).unwrap();
        let mut memory = vec![0u8; 64 * PAGE as usize];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let first = (start - memory.as_ptr() as u64) as usize;
        for page in [1, 2, 5] {
            memory[first + page * PAGE as usize] = 1;
        }
        let range = start..start + 8 * PAGE;
        let pages = |ways: &dyn Fn(Each<'_, io::Error>) -> io::Result<()>| {
            let mut found = Vec::new();
            ways(&mut |range: Range<u64>| {
                found.extend((range.start..range.end).step_by(PAGE as usize));
                Ok(())
            })
            .unwrap();
            found
        };
        let by_entries = pages(&|each| pagemap.written_by_entries(range.clone(), each));
        let scanned = pages(&|each| pagemap.written(range.clone(), each));
        for page in [1, 2, 5] {
            assert!(
                by_entries.contains(&(start + page * PAGE)),
                "{by_entries:x?}"
            );
        }
        assert_eq!(by_entries, scanned);
        let maps = crate::object::read_mappings(here).unwrap();
        let code = maps
            .iter()
            .find(|mapping| mapping.exec && mapping.inode != 0);
        let code = code.map(|mapping| mapping.start..mapping.end).unwrap();
        for ways in [
            pages(&|each| pagemap.written(code.clone(), each)),
            pages(&|each| pagemap.written_by_entries(code.clone(), each)),
        ] {
            assert_eq!(ways, []);
        }
        drop(memory);
    }
}
