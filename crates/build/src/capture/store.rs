//! Where builds are kept: one directory per build, by a hash of all that it depends on.
//!
//! ```text
//! KEY/lock        held while somebody works here
//! KEY/original/N  the copies of the user's directories, built; N is 0 for the source, then those of --build-dir
//! KEY/kept/       linked programs, as they were before strip
//! KEY/record      what was seen; written last, so that a directory without it is what a kill has left
//! KEY/patched/N, KEY/objects, KEY/tmp, KEY/here, KEY/log    as long as somebody works here
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::error::Error;
use super::record::{Record, Stamp};
use super::site::Unwatched;

/// Changes with the form of what is stored.
const FORMAT: &[u8] = b"livegraft build 1";
/// What is gone when nobody works.
const PASSING: &[&str] = &["patched", "objects", "tmp", "here", "log"];
/// Variables that say who builds and from where, not what.
const VOLATILE: &[&str] = &[
    "_",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "TERM",
    "COLUMNS",
    "LINES",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "WINDOWID",
    "TMPDIR",
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "DBUS_SESSION_BUS_ADDRESS",
    "TERM_PROGRAM",
    "COLORTERM",
    "LS_COLORS",
    "STY",
    "TMUX",
    "TMUX_PANE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
];

/// The directory of one build, ours as long as this lives.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) directory: PathBuf,
    _lock: File,
}

/// The directory for all builds: what the user names, or livegraft/build in the user's cache. Without symbolic links, and
/// not made yet.
pub(crate) fn work(named: Option<&Path>) -> Result<PathBuf, Error> {
    let from = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let work = match named {
        Some(named) => std::path::absolute(named).map_err(Error::io(named))?,
        None => (from("XDG_CACHE_HOME").filter(|path| path.is_absolute()))
            .or_else(|| from("HOME").map(|home| home.join(".cache")))
            .ok_or(Error::NoWorkDirectory)?
            .join("livegraft/build"),
    };
    for above in work.ancestors() {
        if let Ok(real) = fs::canonicalize(above) {
            return Ok(real.join(work.strip_prefix(above).unwrap_or(Path::new(""))));
        }
    }
    Ok(work)
}

/// Removes what a kill has left: builds that were not finished, and what is only there while somebody works.
pub(crate) fn clean(work: &Path) -> Result<(), Error> {
    fs::create_dir_all(work).map_err(Error::io(work))?;
    for entry in fs::read_dir(work).map_err(Error::io(work))? {
        let directory = entry.map_err(Error::io(work))?.path();
        // Only what is ours: the user may name a directory that holds other things.
        if directory.join("lock").is_file()
            && let Ok(store) = Store::lock(&directory)
        {
            store.tidy();
        }
    }
    Ok(())
}

impl Store {
    /// The directory for a build with this key.
    pub(crate) fn open(work: &Path, key: &str) -> Result<Self, Error> {
        let directory = work.join(key);
        // Whoever tidies may remove the directory right before we lock it.
        for _ in 0..100 {
            fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
            match Self::lock(&directory) {
                Err(Error::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        Err(Error::Busy(directory))
    }

    fn lock(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Busy(directory.to_owned()));
        }
        // The one that we have locked may have been removed before.
        let held = lock.metadata().map_err(Error::io(&path))?;
        let there = fs::metadata(&path).map_err(Error::io(&path))?;
        if (held.dev(), held.ino()) != (there.dev(), there.ino()) {
            return Err(Error::io(&path)(io::ErrorKind::NotFound.into()));
        }
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What was seen of the original build, if it is here and would still be made with the same programs.
    pub(crate) fn record(&self) -> Option<Record> {
        let bytes = fs::read(self.path("record")).ok()?;
        let record: Record = postcard::from_bytes(&bytes).ok()?;
        let same =
            |(path, stamp): (&OsString, &Stamp)| Stamp::of(Path::new(path)).as_ref() == Some(stamp);
        record.programs.iter().all(same).then_some(record)
    }

    pub(crate) fn save(&self, record: &Record) -> Result<(), Error> {
        let (new, path) = (self.path("record.new"), self.path("record"));
        let bytes = postcard::to_stdvec(record)
            .map_err(io::Error::other)
            .map_err(Error::io(&path))?;
        fs::write(&new, bytes).map_err(Error::io(&new))?;
        fs::rename(&new, &path).map_err(Error::io(&path))
    }

    /// Removes the original build.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        for name in ["record", "record.new"] {
            let _ = fs::remove_file(self.path(name));
        }
        for name in ["original", "kept"].iter().chain(PASSING) {
            remove(&self.path(name))?;
        }
        Ok(())
    }

    /// Leaves a whole build and nothing else, or nothing.
    fn tidy(&self) {
        if !self.path("original").exists()
            && self.path("here").exists()
            && self.path("record").exists()
        {
            let _ = fs::rename(self.path("here"), self.path("original"));
        }
        for name in PASSING {
            let _ = remove(&self.path(name));
        }
        if !self.path("record").exists() {
            let _ = remove(&self.directory);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.tidy();
    }
}

/// Removes a file or directory, also one that a build has made read-only.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.is_dir() {
        return fs::remove_file(path).map_err(Error::io(path));
    }
    if fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    writable(path);
    fs::remove_dir_all(path).map_err(Error::io(path))
}

/// Lets the owner write to all directories and files of a tree.
pub(crate) fn writable(tree: &Path) {
    for entry in WalkDir::new(tree).into_iter().flatten() {
        if let Ok(metadata) = entry.metadata()
            && !metadata.is_symlink()
            && metadata.mode() & 0o200 == 0
        {
            let mode = metadata.mode() | if metadata.is_dir() { 0o700 } else { 0o600 };
            let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode & 0o7777));
        }
    }
}

/// Copies a directory with all that file systems keep: times above all, which say what a build has to make again.
pub(crate) fn copy(
    from: &Path,
    to: &Path,
    log: &Path,
    interrupt: &AtomicBool,
) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::io(to))?;
    let mut argv: Vec<OsString> = ["cp", "-a", "--reflink=auto", "--"]
        .map(OsString::from)
        .to_vec();
    argv.extend([from.join(".").into(), to.into()]);
    let said = File::create(log).map_err(Error::io(log))?;
    let mut command = livegraft_observe::command(&argv);
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said);
    // It ends with us like a build.
    if !livegraft_observe::run(command, &mut Unwatched, interrupt)?.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        return Err(Error::Copy {
            path: from.to_owned(),
            message: said
                .lines()
                .next()
                .unwrap_or("cp does not say why")
                .to_owned(),
        });
    }
    if !rustix::process::geteuid().is_root() {
        writable(to);
    }
    Ok(())
}

/// A hash of all that the original build depends on: its directories, its command, the environment, what stands in the
/// directories of headers.
pub(crate) fn key(areas: &[PathBuf], way: &str, command: &[OsString]) -> Result<String, Error> {
    let mut hash = Hash(Sha256::new());
    hash.part(FORMAT);
    hash.part(way.as_bytes());
    for argument in command {
        hash.part(argument.as_bytes());
    }
    hash.part(b"");
    let mut variables: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| {
            !VOLATILE.iter().any(|v| name == v) && !name.as_bytes().starts_with(b"SSH_")
        })
        .collect();
    variables.sort();
    for (name, value) in variables {
        hash.part(name.as_bytes());
        hash.part(value.as_bytes());
    }
    for area in areas {
        hash.part(area.as_os_str().as_bytes());
        tree(&mut hash, area)?;
    }
    for headers in ["/usr/include", "/usr/local/include"] {
        for entry in WalkDir::new(headers)
            .sort_by_file_name()
            .into_iter()
            .flatten()
        {
            if let Ok(metadata) = entry.metadata() {
                hash.part(entry.path().as_os_str().as_bytes());
                hash.part(&metadata.len().to_le_bytes());
                hash.part(&metadata.mtime().to_le_bytes());
            }
        }
    }
    let digest = hash.0.finalize();
    Ok(digest
        .iter()
        .take(10)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn tree(hash: &mut Hash, area: &Path) -> Result<(), Error> {
    for entry in WalkDir::new(area).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(area).to_owned();
            Error::io(path)(error.into())
        })?;
        let relative = entry.path().strip_prefix(area).unwrap_or(entry.path());
        // git's own files change whenever it is asked something; builds ask it for the name of the version.
        let mut parts = relative.components().map(std::path::Component::as_os_str);
        if parts.next() == Some(OsStr::new(".git"))
            && parts
                .next()
                .is_some_and(|part| part != "HEAD" && part != "refs" && part != "packed-refs")
        {
            continue;
        }
        let metadata = entry
            .metadata()
            .map_err(|error| Error::io(entry.path())(error.into()))?;
        hash.part(relative.as_os_str().as_bytes());
        hash.part(&metadata.mode().to_le_bytes());
        if metadata.is_symlink() {
            let to = fs::read_link(entry.path()).map_err(Error::io(entry.path()))?;
            hash.part(to.as_os_str().as_bytes());
        } else if metadata.is_file() {
            hash.part(&metadata.len().to_le_bytes());
            hash.file(entry.path())?;
        }
    }
    Ok(())
}

struct Hash(Sha256);

impl Hash {
    /// With its length, so that no two lists of parts are the same bytes.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).map_err(Error::io(path))? {
                0 => return Ok(()),
                read => self.0.update(&buffer[..read]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kill_has_left_is_removed_and_nothing_else() {
        let work = tempfile::tempdir().expect("a directory");
        let at = |name: &str| work.path().join(name);
        for name in [
            "half/original/0",
            "whole/original/0",
            "whole/patched/0",
            "busy/patched",
            "mine/original",
        ] {
            fs::create_dir_all(at(name)).expect("a directory");
        }
        for name in ["half/lock", "whole/lock", "whole/record"] {
            fs::write(at(name), "").expect("a file");
        }
        fs::create_dir(at("half/original/0/closed")).expect("a directory");
        fs::write(at("half/original/0/closed/f"), "").expect("a file");
        fs::set_permissions(
            at("half/original/0/closed"),
            fs::Permissions::from_mode(0o500),
        )
        .expect("a mode");
        let busy = Store::open(work.path(), "busy").expect("a store");
        assert!(matches!(
            Store::open(work.path(), "busy"),
            Err(Error::Busy(_))
        ));
        clean(work.path()).expect("cleans");
        let left = |name: &str| at(name).exists();
        assert!(!left("half") && left("whole/original/0") && !left("whole/patched"));
        assert!(left("busy/patched") && left("mine/original"));
        drop(busy);
        assert!(!left("busy"));
    }

    #[test]
    fn the_key_is_what_the_build_depends_on() {
        let tree = tempfile::tempdir().expect("a directory");
        let file = tree.path().join("f.c");
        fs::write(&file, "a").expect("a file");
        let areas = [tree.path().to_owned()];
        let key = |command: &str| key(&areas, "", &[command.into()]).expect("a key");
        let first = key("make");
        assert_eq!(first, key("make"));
        assert_ne!(first, key("make -j"));
        fs::create_dir_all(tree.path().join(".git/objects")).expect("a directory");
        let second = key("make");
        fs::write(tree.path().join(".git/index"), "x").expect("a file");
        assert_eq!(second, key("make"));
        fs::write(&file, "b").expect("a file");
        assert_ne!(second, key("make"));
    }
}
