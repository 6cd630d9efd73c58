//! Where a build runs: in a copy that it sees at the path of the user's own tree.
//!
//! The copy is bound over the tree in a mount namespace of the command's own, so whatever has a path in it (`__FILE__`,
//! debug information, the caches of cmake) comes out as it did for the user, and the namespace ends with the command.
//! That needs root, or user namespaces. Where there are neither, original and patched copy are moved to one and the same
//! place in turn: paths then differ from the user's, but not between the two.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;

use livegraft_observe::{Pid, Process, Watcher, command, run};

use super::error::Error;

/// Binds each FROM over its TO, then becomes the command in its directory.
const BIND: &str = r#"n=$1; shift
while [ "$n" -gt 0 ]; do "$1" --bind -- "$2" "$3" || exit 125; shift 3; n=$((n-1)); done
cd -- "$1" || exit 125; shift; exec "$@""#;

/// How the tree comes to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Way {
    /// A mount namespace.
    Root,
    /// A mount namespace in a user namespace.
    User,
    /// Renaming.
    Plain,
}

/// What a command runs in.
pub(crate) struct Job<'a> {
    pub(crate) directory: PathBuf,
    pub(crate) argv: Vec<OsString>,
    /// `None`: ours.
    pub(crate) environment: Option<&'a [OsString]>,
    /// More of it.
    pub(crate) settings: Vec<(&'static str, OsString)>,
    /// Gets what it prints.
    pub(crate) log: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Site {
    way: Way,
    /// The user's directories, without symbolic links.
    areas: Vec<PathBuf>,
    /// Other names that the user has for them.
    aliases: Vec<PathBuf>,
    /// Where a copy is moved to while it is used.
    here: PathBuf,
}

/// For commands that are not looked at.
pub(crate) struct Unwatched;

impl Watcher for Unwatched {
    fn executed(&mut self, _: &Process) {}
    fn ended(&mut self, _: Pid, _: ExitStatus) {}
}

impl Site {
    /// For directories as the user names them. `here` is a path for the use of [`Way::Plain`]; nothing may stand there.
    pub(crate) fn new(way: Way, aliases: Vec<PathBuf>, here: PathBuf) -> Result<Self, Error> {
        let mut site = Self {
            way,
            areas: Vec::new(),
            aliases: Vec::new(),
            here,
        };
        for named in aliases {
            if !named.is_dir() {
                return Err(Error::NoDirectory(named));
            }
            site.areas
                .push(fs::canonicalize(&named).map_err(Error::io(&named))?);
            site.aliases
                .push(std::path::absolute(&named).map_err(Error::io(&named))?);
        }
        Ok(site)
    }

    /// The user's directories.
    pub(crate) fn areas(&self) -> &[PathBuf] {
        &self.areas
    }

    /// What is possible here. `scratch` is some directory that can be bound.
    pub(crate) fn way(scratch: &Path, interrupt: &AtomicBool) -> Result<Way, Error> {
        for way in [Way::Root, Way::User] {
            if way == Way::Root && !rustix::process::geteuid().is_root() {
                continue;
            }
            let site = Self::new(way, vec![scratch.to_owned()], PathBuf::new())?;
            let job = Job {
                directory: scratch.to_owned(),
                argv: vec!["true".into()],
                environment: None,
                settings: Vec::new(),
                log: PathBuf::from("/dev/null"),
            };
            let argv = site.argv(&[scratch.to_owned()], &job);
            if start(argv, &job, &mut Unwatched, interrupt).is_ok_and(|status| status.success()) {
                return Ok(way);
            }
        }
        if interrupt.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(livegraft_observe::Error::Interrupted.into());
        }
        Ok(Way::Plain)
    }

    /// Where what the build sees at `path` lies in `tree`, a directory of copies; itself, if it is in none.
    pub(crate) fn host(&self, tree: &Path, path: &Path) -> PathBuf {
        match self.within(path) {
            Some((area, rest)) => tree.join(area.to_string()).join(rest),
            None => path.to_owned(),
        }
    }

    /// Which area a path that the build sees lies in, and where there.
    pub(crate) fn within<'a>(&self, path: &'a Path) -> Option<(usize, &'a Path)> {
        (0..self.areas.len()).find_map(|area| {
            let rest = path.strip_prefix(self.seen(area));
            let rest = rest
                .or_else(|_| path.strip_prefix(&self.aliases[area]))
                .ok()?;
            Some((area, rest))
        })
    }

    /// A path for people: relative to the source if it lies in it.
    pub(crate) fn shown(&self, path: &Path) -> PathBuf {
        match self.within(path) {
            Some((0, rest)) => rest.to_owned(),
            _ => path.to_owned(),
        }
    }

    /// Where the build sees one of the areas.
    pub(crate) fn seen(&self, area: usize) -> PathBuf {
        match self.way {
            Way::Plain => self.here.join(area.to_string()),
            Way::Root | Way::User => self.areas[area].clone(),
        }
    }

    /// Runs a command that the user gave: where the copy has another path, it names that.
    pub(crate) fn translated(&self, argv: &[OsString]) -> Vec<OsString> {
        if self.way != Way::Plain {
            return argv.to_vec();
        }
        let translate = |argument: &OsString| {
            let mut bytes = argument.as_bytes().to_vec();
            for (area, own) in self.areas.iter().enumerate() {
                bytes = replace(
                    &bytes,
                    own.as_os_str().as_bytes(),
                    self.seen(area).as_os_str().as_bytes(),
                );
            }
            OsString::from_vec(bytes)
        };
        argv.iter().map(translate).collect()
    }

    /// Makes `tree` the one that commands see, until the guard is dropped.
    pub(crate) fn enter<'a>(&'a self, tree: &'a Path) -> Result<Entered<'a>, Error> {
        if self.way == Way::Plain {
            fs::rename(tree, &self.here).map_err(Error::io(&self.here))?;
        }
        Ok(Entered { site: self, tree })
    }

    fn argv(&self, from: &[PathBuf], job: &Job) -> Vec<OsString> {
        let mut argv: Vec<OsString> = Vec::new();
        // The command's PATH may be any.
        match self.way {
            Way::Root => argv.extend([tool("unshare"), "--mount".into()]),
            Way::User => argv.extend([
                tool("unshare"),
                "--user".into(),
                "--map-root-user".into(),
                "--mount".into(),
            ]),
            Way::Plain => {}
        }
        argv.extend(["/bin/sh", "-c", BIND, "sh"].map(OsString::from));
        if self.way == Way::Plain {
            argv.extend(["0".into(), job.directory.clone().into()]);
        } else {
            argv.push(self.areas.len().to_string().into());
            for (from, to) in from.iter().zip(&self.areas) {
                argv.extend([tool("mount"), from.into(), to.into()]);
            }
            argv.push(job.directory.clone().into());
        }
        if self.way == Way::User {
            let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
            argv.extend([
                tool("unshare"),
                "--user".into(),
                format!("--map-user={}", user.as_raw()).into(),
                format!("--map-group={}", group.as_raw()).into(),
                "--".into(),
            ]);
        }
        argv.extend(job.argv.iter().cloned());
        argv
    }
}

/// A tree in its place.
pub(crate) struct Entered<'a> {
    site: &'a Site,
    tree: &'a Path,
}

impl Entered<'_> {
    /// Runs a command there.
    pub(crate) fn run(
        &self,
        job: &Job,
        watcher: &mut dyn Watcher,
        interrupt: &AtomicBool,
    ) -> Result<ExitStatus, Error> {
        let from: Vec<PathBuf> = (0..self.site.areas.len())
            .map(|area| self.tree.join(area.to_string()))
            .collect();
        start(self.site.argv(&from, job), job, watcher, interrupt)
    }

    /// Where what the build sees at `path` lies now.
    pub(crate) fn host(&self, path: &Path) -> PathBuf {
        match self.site.way {
            Way::Plain => path.to_owned(),
            Way::Root | Way::User => self.site.host(self.tree, path),
        }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.site.way == Way::Plain {
            let _ = fs::rename(&self.site.here, self.tree);
        }
    }
}

fn start(
    argv: Vec<OsString>,
    job: &Job,
    watcher: &mut dyn Watcher,
    interrupt: &AtomicBool,
) -> Result<ExitStatus, Error> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(&job.log)
        .map_err(Error::io(&job.log))?;
    let second = log.try_clone().map_err(Error::io(&job.log))?;
    let mut command = command(&argv);
    command.stdin(Stdio::null()).stdout(log).stderr(second);
    if let Some(environment) = job.environment {
        command.env_clear();
        for setting in environment {
            let bytes = setting.as_bytes();
            if let Some(at) = bytes.iter().position(|b| *b == b'=').filter(|at| *at > 0) {
                command.env(
                    OsStr::from_bytes(&bytes[..at]),
                    OsStr::from_bytes(&bytes[at + 1..]),
                );
            }
        }
    }
    for (name, value) in &job.settings {
        command.env(name, value);
    }
    Ok(run(command, watcher, interrupt)?)
}

fn tool(name: &str) -> OsString {
    for directory in ["/usr/bin", "/bin", "/usr/sbin", "/sbin"] {
        let path = Path::new(directory).join(name);
        if path.exists() {
            return path.into();
        }
    }
    name.into()
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        // Not /a/bc for /a/b.
        let ends = rest
            .get(from.len())
            .is_none_or(|next| !next.is_ascii_alphanumeric() && !b"._-+".contains(next));
        if rest.starts_with(from) && ends {
            out.extend(to);
            at += from.len();
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_replaced_where_it_stands_whole() {
        let new = replace(b"-I/a/b/inc:/a/b /a/bc /a/b.c /x/a/b", b"/a/b", b"/N");
        assert_eq!(new, b"-I/N/inc:/N /a/bc /a/b.c /x/N");
    }

    #[test]
    fn paths_are_found_in_the_copy() {
        let area = tempfile::tempdir().expect("a directory");
        let link = area.path().with_extension("link");
        std::os::unix::fs::symlink(area.path(), &link).expect("a link");
        let site = Site::new(Way::Root, vec![link.clone()], PathBuf::new()).expect("a site");
        fs::remove_file(&link).expect("removes");
        let tree = Path::new("/w/original");
        for own in [area.path(), &link] {
            assert_eq!(site.host(tree, &own.join("a.o")), tree.join("0/a.o"));
        }
        assert_eq!(
            site.host(tree, Path::new("/usr/a.h")),
            Path::new("/usr/a.h")
        );
    }
}
