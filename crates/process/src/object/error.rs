//! Why an object of the target cannot be used.

use std::io;
use std::path::PathBuf;

/// One variant per cause.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// A file that the target maps cannot be opened.
    #[error(
        "{path}: the file that the process maps cannot be opened ({source}); run livegraft as root or as the process's user"
    )]
    Open {
        /// Path as in the target's maps.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file at the mapping's path is another one by now.
    #[error(
        "{path}: the file at this path is no longer the one that the process maps, and /proc/PID/map_files \
         is not readable; run livegraft with CAP_SYS_ADMIN, which reaches the mapped file itself"
    )]
    Replaced {
        /// Path as in the target's maps.
        path: PathBuf,
    },
    /// A mapped "file" that is a device, a pipe or a directory.
    #[error("{path}: not a regular file, so it cannot be an object of the process")]
    NotRegular {
        /// Path as in the target's maps.
        path: PathBuf,
    },
    /// Reading the file failed.
    #[error("{path}: reading {what} failed ({source})")]
    Read {
        /// Path as in the target's maps.
        path: PathBuf,
        /// Which part of the file.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No ELF magic.
    #[error("{path}: not an ELF file")]
    NotElf {
        /// Path as in the target's maps.
        path: PathBuf,
    },
    /// ELFCLASS32: an i386 or x32 process.
    #[error("{path}: a 32-bit program; only 64-bit x86-64 processes can be patched")]
    Is32Bit {
        /// Path as in the target's maps.
        path: PathBuf,
    },
    /// Another architecture.
    #[error(
        "{path}: built for another architecture (ELF machine {machine}); only x86-64 can be patched"
    )]
    WrongMachine {
        /// Path as in the target's maps.
        path: PathBuf,
        /// `e_machine`.
        machine: u16,
    },
    /// A header or table points outside of the file, or contradicts another.
    #[error("{path}: damaged ELF file: {what} does not lie in the file")]
    Damaged {
        /// Path as in the target's maps.
        path: PathBuf,
        /// Which part of the file.
        what: &'static str,
    },
    /// A table larger than any real one.
    #[error("{path}: damaged ELF file: {what} has {size} bytes")]
    TooLarge {
        /// Path as in the target's maps.
        path: PathBuf,
        /// Which part of the file.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// The maps show no mapping of the executable.
    #[error("the process maps no executable: it has exited, or is a kernel thread")]
    NoExecutable,
    /// No symbol of that name is defined in the object.
    #[error("{object} defines no symbol `{name}`{hint}")]
    NoSymbol {
        /// Name of the object.
        object: String,
        /// The name that was looked for.
        name: String,
        /// Says so when the object is stripped.
        hint: &'static str,
    },
    /// `sympos` is 0 and the name is not unique.
    #[error(
        "{object} defines {count} symbols `{name}`; say which one by its position in the symbol table (sympos 1 to {count})"
    )]
    Ambiguous {
        /// Name of the object.
        object: String,
        /// The name that was looked for.
        name: String,
        /// How many there are.
        count: u64,
    },
    /// `sympos` is larger than the number of symbols of that name.
    #[error(
        "{object} defines {} `{name}`, there is no number {sympos}; correct the sympos in the patch",
        livegraft_patchfile::counted(*.count, "symbol", "symbols")
    )]
    NoOccurrence {
        /// Name of the object.
        object: String,
        /// The name that was looked for.
        name: String,
        /// How many there are.
        count: u64,
        /// Which one was asked for.
        sympos: u64,
    },
}
