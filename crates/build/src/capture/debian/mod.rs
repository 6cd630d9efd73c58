//! The source of an installed Debian package, and how to build it as Debian did.
//!
//! The source comes by apt, by a configuration of our own: the user's sources with `deb` made to `deb-src`, and the user's
//! keys, so that what is fetched is signed. Debian builds reproducibly: with the package's own rules, and the same
//! compiler, the program that comes out is the installed one with its symbols.

mod apt;
mod tools;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::error::Error;
use super::store::{LONGEST, remove};
use super::{Capture, Phase, Rebuild, Request, capture};
use tools::Tools;

/// The unpacked source, in a directory of its own.
const SOURCE: &str = "source";

/// What can go wrong with a package before its build.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// dpkg knows no such package.
    #[error(
        "{0} is neither an installed package nor the source of one; name what runs, or its version too: {0}=VERSION"
    )]
    Unknown(String),
    /// There is no target.
    #[error(
        "{name} {version} is not installed{}; say with --target what runs", .installed.as_ref().map(|installed| format!(" ({installed} is)")).unwrap_or_default()
    )]
    NotInstalled {
        /// As it was named.
        name: String,
        /// The version that was asked for.
        version: String,
        /// The one that is there.
        installed: Option<String>,
    },
    /// Installed packages disagree.
    #[error(
        "the installed packages of {name} are of versions {versions}; name one: {name}=VERSION"
    )]
    Ambiguous {
        /// The source.
        name: String,
        /// Its versions.
        versions: String,
    },
    /// apt.
    #[error("the source of {name} {version} can't be fetched: {message}")]
    Fetch {
        /// The source.
        name: String,
        /// Its version.
        version: String,
        /// apt's words.
        message: String,
    },
    /// Another version has taken its place.
    #[error(
        "the source of {name} {version} is not to be had any more ({message}); add an archive that has it to apt's sources, such as snapshot.debian.org, or unpack it and use --source"
    )]
    Gone {
        /// The source.
        name: String,
        /// Its version.
        version: String,
        /// apt's words.
        message: String,
    },
    /// Build dependencies.
    #[error("building {name} needs packages that are not installed: {missing}; install them: apt-get build-dep {}", .directory.display())]
    Dependencies {
        /// The source.
        name: String,
        /// The packages.
        missing: String,
        /// The unpacked source.
        directory: PathBuf,
    },
    /// Missing programs, files, an interrupt.
    #[error(transparent)]
    Other(#[from] Error),
}

/// An unpacked source package.
#[derive(Debug, Clone)]
pub struct DebianSource {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it is unpacked, by itself in a directory. It is kept.
    pub directory: PathBuf,
    /// Programs and libraries of the installed packages that were made of this version.
    pub installed: Vec<PathBuf>,
}

impl DebianSource {
    /// Builds it with and without a diff, as [`capture`] does: all that depends on the architecture, without tests, and no
    /// further than needed, so that nothing is stripped. The rules of some packages compile nothing before they install.
    ///
    /// # Errors
    /// [`Error`].
    pub fn capture(
        &self,
        diff: &Path,
        work: Option<&Path>,
        progress: &mut (dyn FnMut(Phase) + Send),
        interrupt: &AtomicBool,
    ) -> Result<Capture, Error> {
        let beside = self.directory.parent().unwrap_or(&self.directory);
        // debhelper has a name for what is before packages.
        let later = match self.is_debhelpers() {
            true => "install-arch",
            false => "binary-arch",
        };
        let mut targets = vec!["build-arch", later];
        // Which of them it was is noted.
        let noted = beside.join("compiles");
        if let Ok(known) = fs::read_to_string(&noted)
            && targets.contains(&&*known)
        {
            targets.retain(|target| *target == known);
        }
        let mut captured = Err(Error::NoCalls);
        for target in targets {
            captured = capture(&self.request(target, diff, work), progress, interrupt);
            match captured {
                Err(Error::NoCalls) => {}
                Ok(_) => {
                    fs::write(&noted, target).map_err(Error::io(&noted))?;
                    break;
                }
                Err(_) => break,
            }
        }
        // Packages, which are made beside the source.
        for entry in fs::read_dir(beside).map_err(Error::io(beside))?.flatten() {
            if ![&self.directory, &noted].contains(&&entry.path()) {
                remove(&entry.path())?;
            }
        }
        captured
    }

    fn is_debhelpers(&self) -> bool {
        let rules = fs::read_to_string(self.directory.join("debian/rules"));
        rules.is_ok_and(|rules| is_debhelpers(&rules))
    }

    /// The build by this target of the rules.
    #[must_use]
    pub fn request(&self, target: &str, diff: &Path, work: Option<&Path>) -> Request {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let options = format!("DEB_BUILD_OPTIONS=nocheck parallel={processors}");
        // Builds ask git for a commit: it must not find a repository that we happen to lie in.
        let mut ceiling = OsString::from("GIT_CEILING_DIRECTORIES=");
        ceiling.push(self.directory.parent().unwrap_or(&self.directory));
        let mut command: Vec<OsString> = vec!["env".into(), options.into(), ceiling];
        let build = ["dpkg-buildpackage", "-b", "-us", "-uc"];
        command.extend(build.map(OsString::from));
        command.push("--build-profiles=nocheck".into());
        command.push(format!("--rules-target={target}").into());
        let rebuild = if self.is_debhelpers() {
            let mut again = ["sh", "-c", FORGET, "sh"].map(OsString::from).to_vec();
            again.extend(command.iter().cloned());
            Rebuild::By(again)
        } else {
            Rebuild::Afresh
        };
        Request {
            source: self.directory.clone(),
            diff: diff.to_owned(),
            command,
            work: work.map(Path::to_owned),
            rebuild,
            ..Request::default()
        }
    }
}

/// debhelper does nothing twice that it has noted here.
const FORGET: &str = r#"rm -f debian/debhelper-build-stamp debian/*.debhelper.log; exec "$@""#;

/// Do these rules leave to debhelper what is done and in which order? All is done again then, and what is done by make only as
/// far as needed. Rules with stamp files of their own skip what they have done, whether or not that would be the same now.
fn is_debhelpers(rules: &str) -> bool {
    const SEQUENCES: &[&str] = &["build", "build-arch", "binary", "binary-arch"];
    let mut calls = false;
    for line in rules.lines() {
        if line.starts_with([' ', '\t']) {
            calls |= line.contains("dh $@");
        } else if !line.starts_with(['#', '.'])
            && let Some((targets, _)) = line.split_once(':')
            && targets
                .split_whitespace()
                .any(|target| SEQUENCES.contains(&target) || target.contains("stamp"))
        {
            return false;
        }
    }
    calls
}

/// Fetches and unpacks the source of an installed package, which may be named by its own name or by its source's, and
/// makes sure that it can be built. `work` as in [`Request`]. Without a `target` what is installed is one, so the version must be
/// an installed one.
///
/// # Errors
/// [`DebianError`].
pub fn debian(
    name: &str,
    version: Option<&str>,
    target: bool,
    work: Option<&Path>,
    interrupt: &AtomicBool,
) -> Result<DebianSource, DebianError> {
    let work = super::store::work(work)?.join("debian");
    let (_lock, tools) = alone(&work, interrupt)?;
    let Chosen {
        source: name,
        version,
        packages,
        installed,
    } = chosen(&tools, name, version)?;
    if packages.is_empty() && !target {
        return Err(DebianError::NotInstalled {
            name,
            version,
            installed,
        });
    }
    let directory = unpacked(&tools, &work, &name, &version)?;
    let checked = tools.run(
        &["dpkg-checkbuilddeps", "-Pnocheck"].map(OsString::from),
        &directory,
        &[],
    )?;
    if !checked.success {
        let missing = checked
            .text
            .split_once("dependencies: ")
            .map_or(&*checked.text, |(_, missing)| missing);
        return Err(DebianError::Dependencies {
            name,
            missing: missing.trim().replace('\n', " "),
            directory,
        });
    }
    let mut programs = Vec::new();
    for package in packages {
        let listed = tools.run(
            &["dpkg-query".into(), "-L".into(), package.into()],
            &work,
            &[],
        )?;
        programs.extend(
            listed
                .text
                .lines()
                .map(PathBuf::from)
                .filter(|path| is_program(path)),
        );
    }
    Ok(DebianSource {
        name,
        version,
        directory,
        installed: programs,
    })
}

/// Fetches and unpacks the source of a package, whether or not anything of it is installed or it could be built here;
/// where it lies. `work` as in [`Request`].
///
/// # Errors
/// [`DebianError::Fetch`], [`DebianError::Gone`], [`DebianError::Other`].
pub fn debian_source(
    name: &str,
    version: &str,
    work: Option<&Path>,
    interrupt: &AtomicBool,
) -> Result<PathBuf, DebianError> {
    let work = super::store::work(work)?.join("debian");
    let (_lock, tools) = alone(&work, interrupt)?;
    unpacked(&tools, &work, name, version)
}

/// One at a time: apt's lists and the log are everybody's. It is given back when the file is dropped.
fn alone<'a>(work: &Path, interrupt: &'a AtomicBool) -> Result<(File, Tools<'a>), Error> {
    fs::create_dir_all(work).map_err(Error::io(work))?;
    let lock = File::create(work.join("busy")).map_err(Error::io(work))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| Error::io(work)(error.into()))?;
    let log = work.join("log");
    Ok((lock, Tools { log, interrupt }))
}

/// Where the source lies; it is fetched if it is not there yet.
fn unpacked(
    tools: &Tools<'_>,
    work: &Path,
    name: &str,
    version: &str,
) -> Result<PathBuf, DebianError> {
    // A version may hold characters that mean something in a path or to make.
    let plain = |c: char| match c.is_ascii_alphanumeric() || ".-".contains(c) {
        true => c,
        false => '_',
    };
    let version_in_path: String = version.chars().map(plain).collect();
    // What a build of packages writes beside its source has a place there.
    let beside = work.join(format!("{name}-{version_in_path}"));
    let directory = beside.join(SOURCE);
    if !directory.is_dir() {
        apt::fetch(tools, work, name, version, &directory)?;
    }
    // Its time is when it was used last.
    File::open(&beside)
        .and_then(|opened| opened.set_modified(SystemTime::now()))
        .map_err(Error::io(&beside))?;
    prune(work)?;
    Ok(directory)
}

/// Removes sources that nobody has used for long.
fn prune(work: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(work).map_err(Error::io(work))? {
        let beside = entry.map_err(Error::io(work))?.path();
        let used = fs::symlink_metadata(&beside).and_then(|metadata| metadata.modified());
        let unused = used.ok().and_then(|used| used.elapsed().ok());
        if unused > Some(LONGEST) && beside.join(SOURCE).join("debian/rules").exists() {
            remove(&beside)?;
        }
    }
    Ok(())
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    source: String,
    version: String,
    /// The installed ones of that source and version.
    packages: Vec<String>,
    /// The version that is installed, if that is one and another one.
    installed: Option<String>,
}

fn chosen(tools: &Tools, name: &str, version: Option<&str>) -> Result<Chosen, DebianError> {
    let format = "--showformat=${source:Package}\\t${source:Version}\\t${binary:Package}\\t${Package}\\t${db:Status-Status}\\n";
    let argv = ["dpkg-query", "--show", format].map(OsString::from);
    let listed = tools.run(&argv, Path::new("/"), &[])?;
    choose(&listed.text, name, version)
}

fn choose(listed: &str, name: &str, version: Option<&str>) -> Result<Chosen, DebianError> {
    let rows: Vec<Vec<&str>> = (listed.lines())
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|row| row.len() == 5 && row[4] == "installed")
        .collect();
    // The package's own name goes before a source's.
    let source =
        (rows.iter().find(|row| row[3] == name)).or_else(|| rows.iter().find(|row| row[0] == name));
    let Some(source) = source.map(|row| row[0]) else {
        return match version {
            Some(version) => Ok(Chosen {
                source: name.to_owned(),
                version: version.to_owned(),
                packages: Vec::new(),
                installed: None,
            }),
            None => Err(DebianError::Unknown(name.to_owned())),
        };
    };
    let own = rows.iter().filter(|row| row[0] == source);
    let mut versions: Vec<&str> = own.clone().map(|row| row[1]).collect();
    versions.sort_unstable();
    versions.dedup();
    let version = match (version, &versions[..]) {
        (Some(version), _) => version,
        (None, [version]) => version,
        (None, _) => {
            return Err(DebianError::Ambiguous {
                name: source.to_owned(),
                versions: versions.join(", "),
            });
        }
    };
    let packages: Vec<String> = own
        .filter(|row| row[1] == version)
        .map(|row| row[2].to_owned())
        .collect();
    let other = packages.is_empty().then(|| versions.join(", "));
    Ok(Chosen {
        source: source.to_owned(),
        version: version.to_owned(),
        packages,
        installed: other,
    })
}

/// A program or shared library for this machine.
fn is_program(path: &Path) -> bool {
    let mut start = [0; 20];
    let regular = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    let mut read = || File::open(path)?.read_exact(&mut start);
    // 64-bit, ET_EXEC or ET_DYN, EM_X86_64.
    regular
        && read().is_ok()
        && start.starts_with(b"\x7fELF\x02")
        && matches!(start[16], 2 | 3)
        && start[18] == 62
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "redis\t5:7.0\tredis-server\tredis-server\tinstalled\n\
        redis\t5:7.0\tredis-tools\tredis-tools\tinstalled\n\
        glibc\t2.36\tlibc6:amd64\tlibc6\tinstalled\n\
        glibc\t2.35\tlibc6:i386\tlibc6\tinstalled\n\
        old\t1\told\told\tconfig-files\n";

    fn found(name: &str, version: Option<&str>) -> (String, String, Vec<String>, Option<String>) {
        let found = choose(LISTED, name, version).expect("found");
        (found.source, found.version, found.packages, found.installed)
    }

    #[test]
    fn a_package_is_found_by_its_name_and_its_sources() {
        let both = ["redis-server".to_owned(), "redis-tools".to_owned()].to_vec();
        for name in ["redis-server", "redis"] {
            let whole = ("redis".into(), "5:7.0".into(), both.clone(), None);
            assert_eq!(found(name, None), whole);
        }
        let other = (
            "redis".into(),
            "6".into(),
            Vec::new(),
            Some("5:7.0".to_owned()),
        );
        assert_eq!(found("redis-server", Some("6")), other);
        assert_eq!(found("libc6", Some("2.36")).2, ["libc6:amd64"]);
        assert_eq!(
            found("other", Some("1")),
            ("other".into(), "1".into(), Vec::new(), None)
        );
        assert!(matches!(
            choose(LISTED, "old", None),
            Err(DebianError::Unknown(_))
        ));
        assert!(matches!(
            choose(LISTED, "libc6", None),
            Err(DebianError::Ambiguous { .. })
        ));
        assert!(matches!(choose("", "", None), Err(DebianError::Unknown(_))));
    }

    #[test]
    fn rules_are_debhelpers_or_not() {
        assert!(is_debhelpers(
            "#!/usr/bin/make -f\nCFLAGS := -O2\n%:\n\tdh $@ --with runit\noverride_dh_auto_test:\n"
        ));
        assert!(is_debhelpers(
            "%:\n\tif x; then \\\n\t\tdh $@; \\\n\tfi\n.PHONY: build\n"
        ));
        for rules in [
            "build: build-arch\nbuild-arch:\n\tmake\n",
            "%:\n\tdh $@\nbuild-arch: made\n",
            "%:\n\tdh $@\noverride_dh_auto_build: made-stamp\nmade-stamp:\n\ttouch $@\n",
            "include /usr/share/cdbs/1/rules/debhelper.mk\n",
            "",
        ] {
            assert!(!is_debhelpers(rules), "{rules}");
        }
    }
}
