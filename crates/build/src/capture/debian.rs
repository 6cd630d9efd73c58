//! The source of an installed Debian package, and how to build it as Debian did.
//!
//! The source comes by apt, by a configuration of our own: the user's sources with `deb` made to `deb-src`, and the user's
//! keys, so that what is fetched is signed. Debian builds reproducibly: with the package's own rules, and the same
//! compiler, the program that comes out is the installed one with its symbols.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use livegraft_observe::{command, run};
use rustix::fs::{FlockOperation, flock};

use super::Request;
use super::error::Error;
use super::site::Unwatched;
use super::store::{LONGEST, remove};

/// What can go wrong with a package before its build.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// dpkg knows no such package.
    #[error(
        "{0} is neither an installed package nor the source of one; name what runs, or its version too: {0}=VERSION"
    )]
    Unknown(String),
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
    /// Where it is unpacked. It is kept.
    pub directory: PathBuf,
    /// Programs and libraries of the installed packages that were made of this version.
    pub installed: Vec<PathBuf>,
}

impl DebianSource {
    /// The build of all that depends on the architecture, without tests and without making packages: nothing is stripped.
    #[must_use]
    pub fn request(&self, diff: PathBuf, work: Option<PathBuf>) -> Request {
        self.request_of("build-arch", diff, work)
    }

    /// The same with the packages made: the rules of some compile nothing before that.
    #[must_use]
    pub fn request_with_packages(&self, diff: PathBuf, work: Option<PathBuf>) -> Request {
        self.request_of("binary-arch", diff, work)
    }

    fn request_of(&self, target: &str, diff: PathBuf, work: Option<PathBuf>) -> Request {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let options = format!("DEB_BUILD_OPTIONS=nocheck parallel={processors}");
        let mut command: Vec<OsString> = vec!["env".into(), options.into()];
        let build = ["dpkg-buildpackage", "-b", "-us", "-uc"];
        command.extend(build.map(OsString::from));
        command.push("--build-profiles=nocheck".into());
        command.push(format!("--rules-target={target}").into());
        Request {
            source: self.directory.clone(),
            diff,
            command,
            work,
            // debhelper does nothing twice.
            afresh: true,
            ..Request::default()
        }
    }
}

/// Fetches and unpacks the source of an installed package, which may be named by its own name or by its source's, and
/// makes sure that it can be built. `work` as in [`Request`].
///
/// # Errors
/// [`DebianError`].
pub fn debian(
    name: &str,
    version: Option<&str>,
    work: Option<&Path>,
    interrupt: &AtomicBool,
) -> Result<DebianSource, DebianError> {
    let work = super::store::work(work)?.join("debian");
    let (_lock, tools) = alone(&work, interrupt)?;
    let (name, version, packages) = installed(&tools, name, version)?;
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
/// [`DebianError::Fetch`], [`DebianError::Other`].
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
    let directory = work.join(format!("{name}-{version_in_path}"));
    if !directory.is_dir() {
        fetch(tools, work, name, version, &directory)?;
    }
    // Its time is when it was used last.
    File::open(&directory)
        .and_then(|opened| opened.set_modified(SystemTime::now()))
        .map_err(Error::io(&directory))?;
    prune(work)?;
    Ok(directory)
}

/// Removes sources that nobody has used for long.
fn prune(work: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(work).map_err(Error::io(work))? {
        let source = entry.map_err(Error::io(work))?.path();
        let used = fs::symlink_metadata(&source).and_then(|metadata| metadata.modified());
        let unused = used.ok().and_then(|used| used.elapsed().ok());
        if unused > Some(LONGEST) && source.join("debian/rules").exists() {
            remove(&source)?;
        }
    }
    Ok(())
}

/// Source, version and packages that a name stands for.
fn installed(
    tools: &Tools,
    name: &str,
    version: Option<&str>,
) -> Result<(String, String, Vec<String>), DebianError> {
    let format = "--showformat=${source:Package}\\t${source:Version}\\t${binary:Package}\\t${Package}\\t${db:Status-Status}\\n";
    let argv = ["dpkg-query", "--show", format].map(OsString::from);
    let listed = tools.run(&argv, Path::new("/"), &[])?;
    choose(&listed.text, name, version)
}

fn choose(
    listed: &str,
    name: &str,
    version: Option<&str>,
) -> Result<(String, String, Vec<String>), DebianError> {
    let rows: Vec<Vec<&str>> = (listed.lines())
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|row| row.len() == 5 && row[4] == "installed")
        .collect();
    // The package's own name goes before a source's.
    let source =
        (rows.iter().find(|row| row[3] == name)).or_else(|| rows.iter().find(|row| row[0] == name));
    let Some(source) = source.map(|row| row[0]) else {
        return match version {
            Some(version) => Ok((name.to_owned(), version.to_owned(), Vec::new())),
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
    let packages = own
        .filter(|row| row[1] == version)
        .map(|row| row[2].to_owned())
        .collect();
    Ok((source.to_owned(), version.to_owned(), packages))
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

fn fetch(
    tools: &Tools,
    work: &Path,
    name: &str,
    version: &str,
    directory: &Path,
) -> Result<(), DebianError> {
    let failed = |message: String| DebianError::Fetch {
        name: name.to_owned(),
        version: version.to_owned(),
        message,
    };
    let apt = work.join("apt");
    let sources = apt.join("sources.list.d");
    for part in [
        &sources,
        &apt.join("state/lists/partial"),
        &apt.join("cache/archives/partial"),
    ] {
        fs::create_dir_all(part).map_err(Error::io(part))?;
    }
    write_sources(Path::new("/etc/apt"), &sources)?;
    let configuration = apt.join("apt.conf");
    let quoted = apt.display();
    let text = format!(
        "Dir::State \"{quoted}/state\";\nDir::State::status \"/var/lib/dpkg/status\";\nDir::Cache \"{quoted}/cache\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \"{quoted}/sources.list.d\";\nAPT::Sandbox::User \"\";\n"
    );
    fs::write(&configuration, text).map_err(Error::io(&configuration))?;
    let setting = [("APT_CONFIG", configuration.clone().into_os_string())];
    let download = work.join(format!("{name}.download"));
    remove(&download)?;
    fs::create_dir_all(&download).map_err(Error::io(&download))?;
    let source: OsString = format!("{name}={version}").into();
    let get = |tools: &Tools| {
        let argv = [
            "apt-get".into(),
            "-q".into(),
            "source".into(),
            "--download-only".into(),
            "--only-source".into(),
            source.clone(),
        ];
        tools.run(&argv, &download, &setting)
    };
    // Lists that are here already may name it.
    let mut got = get(tools)?;
    if !got.success {
        let updated = tools.run(
            &["apt-get", "-q", "update"].map(OsString::from),
            work,
            &setting,
        )?;
        if !updated.success {
            return Err(failed(updated.error()));
        }
        got = get(tools)?;
    }
    if !got.success {
        return Err(failed(got.error()));
    }
    let description = (fs::read_dir(&download)
        .map_err(Error::io(&download))?
        .flatten())
    .map(|entry| entry.path())
    .find(|path| path.extension() == Some(OsStr::new("dsc")))
    .ok_or_else(|| failed("it has no .dsc file".to_owned()))?;
    let unpacked = download.join("unpacked");
    // apt has checked it against the signed index.
    let argv = [
        "dpkg-source".into(),
        "--no-check".into(),
        "-x".into(),
        description.into(),
        unpacked.clone().into(),
    ];
    let done = tools.run(&argv, &download, &[])?;
    if !done.success {
        return Err(failed(done.error()));
    }
    fs::rename(&unpacked, directory).map_err(Error::io(directory))?;
    remove(&download)?;
    Ok(())
}

/// The user's package sources, as sources of source packages.
fn write_sources(from: &Path, to: &Path) -> Result<(), Error> {
    let mut files = vec![from.join("sources.list")];
    let parts = from.join("sources.list.d");
    files.extend(
        fs::read_dir(&parts)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let text = match file.extension().and_then(OsStr::to_str) {
            Some("list") => list_entries(&text),
            Some("sources") => stanzas(&text),
            _ => continue,
        };
        let path = to.join(file.file_name().unwrap_or_default());
        fs::write(&path, text).map_err(Error::io(&path))?;
    }
    Ok(())
}

fn list_entries(text: &str) -> String {
    let entries = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("deb "));
    entries.map(|rest| format!("deb-src {rest}\n")).collect()
}

fn stanzas(text: &str) -> String {
    let line = |line: &str| match line.split_once(':') {
        Some((key, value))
            if key.trim().eq_ignore_ascii_case("types")
                && value.split_whitespace().any(|v| v == "deb") =>
        {
            "Types: deb-src\n".to_owned()
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

struct Tools<'a> {
    log: PathBuf,
    interrupt: &'a AtomicBool,
}

struct Said {
    success: bool,
    text: String,
}

impl Said {
    /// apt's first error, or the last line.
    fn error(&self) -> String {
        let error = self.text.lines().find_map(|line| line.strip_prefix("E: "));
        error
            .or_else(|| self.text.lines().last())
            .unwrap_or("no reason is given")
            .to_owned()
    }
}

impl Tools<'_> {
    fn run(
        &self,
        argv: &[OsString],
        directory: &Path,
        settings: &[(&str, OsString)],
    ) -> Result<Said, Error> {
        let log = File::create(&self.log).map_err(Error::io(&self.log))?;
        let second = log.try_clone().map_err(Error::io(&self.log))?;
        let mut command = command(argv);
        command
            .current_dir(directory)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(second);
        command.envs(settings.iter().map(|(name, value)| (*name, value)));
        let status = run(command, &mut Unwatched, self.interrupt)?;
        if status.code() == Some(127) {
            return Err(Error::NoTool("dpkg-dev"));
        }
        let text = fs::read(&self.log).map_err(Error::io(&self.log))?;
        Ok(Said {
            success: status.success(),
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "redis\t5:7.0\tredis-server\tredis-server\tinstalled\n\
        redis\t5:7.0\tredis-tools\tredis-tools\tinstalled\n\
        glibc\t2.36\tlibc6:amd64\tlibc6\tinstalled\n\
        glibc\t2.35\tlibc6:i386\tlibc6\tinstalled\n\
        old\t1\told\told\tconfig-files\n";

    #[test]
    fn a_package_is_found_by_its_name_and_its_sources() {
        for name in ["redis-server", "redis"] {
            let found = choose(LISTED, name, None).expect("found");
            assert_eq!(
                found,
                (
                    "redis".into(),
                    "5:7.0".into(),
                    vec!["redis-server".into(), "redis-tools".into()]
                )
            );
        }
        assert!(matches!(
            choose(LISTED, "old", None),
            Err(DebianError::Unknown(_))
        ));
        assert!(matches!(
            choose(LISTED, "libc6", None),
            Err(DebianError::Ambiguous { .. })
        ));
        assert_eq!(
            choose(LISTED, "libc6", Some("2.36")).expect("found").2,
            ["libc6:amd64"]
        );
        assert_eq!(
            choose(LISTED, "other", Some("1")).expect("taken"),
            ("other".into(), "1".into(), vec![])
        );
        assert!(matches!(choose("", "", None), Err(DebianError::Unknown(_))));
    }

    #[test]
    fn sources_become_sources_of_sources() {
        assert_eq!(
            list_entries("# deb x\ndeb [signed-by=/k] http://h s main\ndeb-src http://h s main\n"),
            "deb-src [signed-by=/k] http://h s main\n"
        );
        assert_eq!(
            stanzas("Types: deb deb-src\nURIs: http://h\n\nTypes: deb\nSuites: s"),
            "Types: deb-src\nURIs: http://h\n\nTypes: deb-src\nSuites: s\n"
        );
    }
}
