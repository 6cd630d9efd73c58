//! Where builds are kept: one directory per build, by a hash of all that it depends on.
//!
//! ```text
//! KEY/lock        held while somebody works here; its time is when somebody did last
//! KEY/original/N  the copies of the user's directories, built; N is 0 for the source, then those of --build-dir
//! KEY/kept/       linked programs, as they were before strip; objects that were temporary files
//! KEY/record      what was seen; written last, so that a directory without it is what a kill has left
//! KEY/patched/N, KEY/kept.patched, KEY/objects, KEY/tmp, KEY/here, KEY/log    as long as somebody works here
//! ```
//!
//! Beside the one that is worked on, those that were used last are kept, within [`Bounds`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use super::error::{Error, full};
use super::record::{Record, Stamp};
use super::site::Unwatched;

/// Changes with the form of what is stored.
const FORMAT: &[u8] = b"livegraft build 2";
/// The length of a key, in hexadecimal digits.
const KEY: usize = 20;
/// What is gone when nobody works.
const PASSING: &[&str] = &["patched", "kept.patched", "objects", "tmp", "here", "log"];
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

/// How long one may be unused, here and where sources are.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is kept of builds that nobody works on.
pub(crate) struct Bounds {
    builds: usize,
    /// Disk space of all of them together.
    bytes: u64,
    /// Since somebody worked on it.
    unused: Duration,
}

/// docs/commands.md says so too.
pub(crate) const BOUNDS: Bounds = Bounds {
    builds: 7,
    bytes: 16 << 30,
    unused: LONGEST,
};

/// The directory of one build, ours as long as this lives.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) directory: PathBuf,
    lock: File,
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

/// The builds in a directory. Only what is ours: the user may name one that holds other things.
fn builds(work: &Path) -> Result<Vec<PathBuf>, Error> {
    let is_key = |name: &OsStr| {
        let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        name.len() == KEY && name.as_bytes().iter().all(hex)
    };
    let mut builds = Vec::new();
    for entry in fs::read_dir(work).map_err(Error::io(work))? {
        let entry = entry.map_err(Error::io(work))?;
        if is_key(&entry.file_name()) && entry.path().join("lock").is_file() {
            builds.push(entry.path());
        }
    }
    Ok(builds)
}

/// Removes what a kill has left: builds that were not finished, and what is only there while somebody works.
pub(crate) fn clean(work: &Path) -> Result<(), Error> {
    fs::create_dir_all(work).map_err(Error::io(work))?;
    for directory in builds(work)? {
        if let Ok(store) = Store::lock(&directory) {
            store.tidy();
        }
    }
    Ok(())
}

/// Removes the builds that nobody works on as far as they are out of bounds; those that were used last stay.
pub(crate) fn prune(work: &Path, bounds: &Bounds) -> Result<(), Error> {
    // Nothing is held while it is measured: others shall find their builds.
    let mut idle: Vec<(SystemTime, PathBuf)> = builds(work)?
        .into_iter()
        .filter_map(|directory| Some((Store::lock(&directory).ok()?.used()?, directory)))
        .collect();
    idle.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    let mut bytes = 0u64;
    for (number, (used, directory)) in idle.iter().enumerate() {
        // A time to come is none at all.
        let unused = used.elapsed().unwrap_or_default();
        bytes = bytes.saturating_add(disk_space(directory));
        if (number >= bounds.builds || bytes > bounds.bytes || unused > bounds.unused)
            && let Ok(store) = Store::lock(directory)
            && store.used() == Some(*used)
        {
            // Without its record, which goes first, it is removed with its lock.
            store.forget()?;
        }
    }
    Ok(())
}

fn disk_space(directory: &Path) -> u64 {
    let files = WalkDir::new(directory).into_iter().flatten();
    let sizes = files.filter_map(|entry| Some(entry.metadata().ok()?.blocks()));
    sizes.fold(0u64, |sum, blocks| {
        sum.saturating_add(blocks.saturating_mul(512))
    })
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
                Ok(store) => {
                    let now = store.lock.set_modified(SystemTime::now());
                    now.map_err(Error::io(&directory))?;
                    return Ok(store);
                }
                Err(error) => return Err(error),
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
            lock,
        })
    }

    /// When somebody opened it last.
    fn used(&self) -> Option<SystemTime> {
        self.lock.metadata().and_then(|lock| lock.modified()).ok()
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
        full(to, &said)?;
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
        .take(KEY / 2)
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

    /// A name that a build may have.
    fn key_of(number: usize) -> String {
        format!("{number:0KEY$x}")
    }

    #[test]
    fn what_a_kill_has_left_is_removed_and_nothing_else() {
        let work = tempfile::tempdir().expect("a directory");
        let [half, whole, busy, other] = [1, 2, 3, 4].map(key_of);
        let at = |key: &str, name: &str| work.path().join(key).join(name);
        for (key, name) in [
            (&*half, "original/0/closed"),
            (&whole, "original/0"),
            (&whole, "patched/0"),
            (&busy, "patched"),
            // No lock; no key.
            (&other, "original"),
            ("dpkg", "original"),
        ] {
            fs::create_dir_all(at(key, name)).expect("a directory");
        }
        for (key, name) in [
            (&*half, "lock"),
            (&whole, "lock"),
            (&whole, "record"),
            ("dpkg", "lock"),
            (&half, "original/0/closed/f"),
        ] {
            fs::write(at(key, name), "").expect("a file");
        }
        let closed = fs::Permissions::from_mode(0o500);
        fs::set_permissions(at(&half, "original/0/closed"), closed).expect("a mode");
        let held = Store::open(work.path(), &busy).expect("a store");
        let second = Store::open(work.path(), &busy);
        assert!(matches!(second, Err(Error::Busy(_))));
        clean(work.path()).expect("cleans");
        assert!(!at(&half, "").exists());
        assert!(at(&whole, "original/0").exists() && !at(&whole, "patched").exists());
        assert!(at(&busy, "patched").exists() && at(&other, "original").exists());
        assert!(at("dpkg", "original").exists());
        drop(held);
        assert!(!at(&busy, "").exists());
    }

    #[test]
    fn what_is_out_of_bounds_is_removed() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let bounds = |builds, bytes| Bounds {
            builds,
            bytes,
            unused: 100 * hour,
        };
        // What is left of builds that were last used so many hours ago, each of 64 KiB, the second one at work.
        let left = |hours: &[u32], bounds: Bounds| -> Vec<u32> {
            let work = tempfile::tempdir().expect("a directory");
            let mut held = None;
            for (number, &ago) in hours.iter().enumerate() {
                let store = Store::open(work.path(), &key_of(number)).expect("a store");
                fs::create_dir_all(store.path("original/0")).expect("a directory");
                fs::write(store.path("original/0/f"), vec![1; 1 << 16]).expect("a file");
                fs::write(store.path("record"), "").expect("a record");
                let used = store.lock.set_modified(now - ago * hour);
                used.expect("a time");
                if number == 1 {
                    held = Some(store);
                }
            }
            prune(work.path(), &bounds).expect("prunes");
            drop(held);
            let there = |number: &usize| work.path().join(key_of(*number)).exists();
            let kept = (0..hours.len()).filter(there);
            kept.map(|number| hours[number]).collect()
        };
        assert_eq!(left(&[3, 200, 1, 2], bounds(9, 1 << 30)), [3, 200, 1, 2]);
        assert_eq!(left(&[3, 200, 1, 2], bounds(2, 1 << 30)), [200, 1, 2]);
        assert_eq!(left(&[101, 200, 1, 2], bounds(9, 1 << 30)), [200, 1, 2]);
        assert_eq!(left(&[3, 200, 1, 2], bounds(9, 150_000)), [200, 1]);
        assert_eq!(left(&[3, 200, 1, 2], bounds(0, 0)), [200]);
    }

    #[test]
    fn to_open_is_to_use() {
        let work = tempfile::tempdir().expect("a directory");
        let store = Store::open(work.path(), &key_of(1)).expect("a store");
        fs::write(store.path("record"), "").expect("a record");
        store
            .lock
            .set_modified(SystemTime::UNIX_EPOCH)
            .expect("a time");
        drop(store);
        let used = || {
            let lock = work.path().join(key_of(1)).join("lock");
            fs::metadata(lock)
                .and_then(|m| m.modified())
                .expect("a time")
        };
        clean(work.path()).expect("cleans");
        assert_eq!(used(), SystemTime::UNIX_EPOCH);
        drop(Store::open(work.path(), &key_of(1)).expect("a store"));
        assert!(
            used()
                .elapsed()
                .is_ok_and(|ago| ago < Duration::from_secs(60))
        );
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
