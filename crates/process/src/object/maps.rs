//! `/proc/PID/task/TID/maps`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the maps file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address (avma).
    pub start: u64,
    /// One past the last address (avma).
    pub end: u64,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset of `start` in the file, in bytes.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub dev: (u32, u32),
    /// The file's inode number; 0 for anonymous memory.
    pub inode: u64,
    /// The last column, `[heap]` and the like included; a trailing ` (deleted)` is taken off.
    pub path: Option<PathBuf>,
    /// The path ended in ` (deleted)`.
    pub deleted: bool,
}

impl Mapping {
    /// Whether `avma` lies in the mapping.
    pub fn contains(&self, avma: u64) -> bool {
        (self.start..self.end).contains(&avma)
    }
}

/// Reads the mappings of a task's memory, in the order of their addresses.
///
/// `task_dir` is `/proc/PID/task/TID` of a live task: a zombie leader's own maps are empty. Pages that are in transit
/// between two reads of the file may be seen twice or not at all; whoever decides on them reads again under a stop.
pub fn read_mappings(task_dir: &Path) -> io::Result<Vec<Mapping>> {
    let text = std::fs::read(task_dir.join("maps"))?;
    let mut mappings: Vec<Mapping> = Vec::with_capacity(text.len() / 64);
    for line in text.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        let mapping = parse_line(line).ok_or_else(|| {
            let line = String::from_utf8_lossy(line);
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line of maps not understood: {line}"),
            )
        })?;
        mappings.push(mapping);
    }
    Ok(mappings)
}

/// `start-end perms offset major:minor inode   path`
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let (start, rest) = number(line, 16, b'-')?;
    let (end, rest) = number(rest, 16, b' ')?;
    let (perms, rest) = rest.split_at_checked(4)?;
    let (offset, rest) = number(rest.strip_prefix(b" ")?, 16, b' ')?;
    let (major, rest) = number(rest, 16, b':')?;
    let (minor, rest) = number(rest, 16, b' ')?;
    let (inode, rest) = number(rest, 10, b' ').or_else(|| number(rest, 10, b'\0'))?;
    let name = rest
        .iter()
        .position(|&b| b != b' ')
        .and_then(|at| rest.get(at..));
    let (path, deleted) = match name {
        None => (None, false),
        Some(name) => {
            let kept = name.strip_suffix(b" (deleted)");
            let path = OsString::from_vec(unescape(kept.unwrap_or(name)));
            (Some(PathBuf::from(path)), kept.is_some())
        }
    };
    if start > end {
        return None;
    }
    Some(Mapping {
        start,
        end,
        read: perms.first() == Some(&b'r'),
        write: perms.get(1) == Some(&b'w'),
        exec: perms.get(2) == Some(&b'x'),
        shared: perms.get(3) == Some(&b's'),
        offset,
        dev: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
        inode,
        path,
        deleted,
    })
}

/// A number up to `delimiter` (NUL stands for the end of the line), and what follows the delimiter.
fn number(bytes: &[u8], radix: u64, delimiter: u8) -> Option<(u64, &[u8])> {
    let mut value: u64 = 0;
    let mut at = 0usize;
    while let Some(&byte) = bytes.get(at) {
        if byte == delimiter {
            break;
        }
        let digit = char::from(byte).to_digit(u32::try_from(radix).ok()?)?;
        value = value.checked_mul(radix)?.checked_add(u64::from(digit))?;
        at = at.checked_add(1)?;
    }
    if at == 0 || (at == bytes.len() && delimiter != 0) {
        return None;
    }
    Some((value, bytes.get(at.checked_add(1)?..).unwrap_or_default()))
}

/// The kernel escapes a newline, and nothing else, as `\012` (show_map_vma, seq_path).
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(tail) => {
                out.push(b'\n');
                rest = tail;
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_mapping_is_read() {
        let line = b"7f0c1000-7f0c3000 r-xp 00026000 08:1f 131090                     /usr/lib/a b.so (deleted)";
        let mapping = parse_line(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f0c1000, 0x7f0c3000));
        assert!(mapping.read && !mapping.write && mapping.exec && !mapping.shared);
        assert_eq!(
            (mapping.offset, mapping.dev, mapping.inode),
            (0x26000, (8, 0x1f), 131090)
        );
        assert_eq!(mapping.path.unwrap(), Path::new("/usr/lib/a b.so"));
        assert!(mapping.deleted);
    }

    #[test]
    fn anonymous_and_named_memory() {
        let mapping = parse_line(b"7f0c1000-7f0c3000 rw-s 00000000 00:00 0 ").unwrap();
        assert!(mapping.path.is_none() && mapping.shared && mapping.write);
        let mapping = parse_line(b"7f0c1000-7f0c3000 rw-p 00000000 00:00 0").unwrap();
        assert!(mapping.path.is_none());
        let mapping = parse_line(b"1-2 rw-p 0 00:00 0      [heap]").unwrap();
        assert_eq!(mapping.path.unwrap(), Path::new("[heap]"));
    }

    #[test]
    fn a_newline_in_a_path_is_restored() {
        let mapping = parse_line(b"1000-2000 rw-p 00000000 00:01 7 /tmp/a\\012b\\").unwrap();
        assert_eq!(mapping.path.unwrap(), Path::new("/tmp/a\nb\\"));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            &b"xyz"[..],
            b"1000",
            b"2000-1000 rw-p 00000000 00:00 0",
            b"1000-2000 rw-p 00000000",
            b"10000000000000000000-2 rw-p 0 00:00 0",
            b"-1 r--p 0 00:00 0",
        ] {
            assert!(
                parse_line(line).is_none(),
                "{}",
                String::from_utf8_lossy(line)
            );
        }
    }

    #[test]
    fn our_own_maps_are_read() {
        let mappings = read_mappings(Path::new("/proc/thread-self")).unwrap();
        assert!(mappings.iter().any(|m| m.exec && m.inode != 0));
        assert!(mappings.is_sorted_by_key(|m| m.start));
    }
}
