//! Fetching the source of a package.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::DebianError;
use super::tools::Tools;
use crate::capture::error::Error;
use crate::capture::store::remove;

/// Fetches a version of a source and unpacks it to `directory`, which is there as a whole or not at all.
pub(super) fn fetch(
    tools: &Tools,
    work: &Path,
    name: &str,
    version: &str,
    directory: &Path,
) -> Result<(), DebianError> {
    let download = work.join(format!("{name}.download"));
    remove(&download)?;
    fs::create_dir_all(&download).map_err(Error::io(&download))?;
    let done = unpacked(tools, work, name, version, &download);
    let done = done.and_then(|unpacked| {
        let beside = directory.parent().unwrap_or(directory);
        fs::create_dir_all(beside).map_err(Error::io(beside))?;
        fs::rename(&unpacked, directory).map_err(Error::io(directory))?;
        Ok(())
    });
    let removed = remove(&download);
    done?;
    Ok(removed?)
}

/// Where in `download` it is unpacked.
fn unpacked(
    tools: &Tools,
    work: &Path,
    name: &str,
    version: &str,
    download: &Path,
) -> Result<PathBuf, DebianError> {
    let setting = [("APT_CONFIG", configuration(work)?)];
    let (source, version) = (name.to_owned(), version.to_owned());
    let wanted: OsString = format!("{source}={version}").into();
    let get = |tools: &Tools| {
        let words = [
            "apt-get",
            "-q",
            "source",
            "--download-only",
            "--only-source",
        ];
        let mut argv = words.map(OsString::from).to_vec();
        argv.push(wanted.clone());
        tools.run(&argv, download, &setting)
    };
    // Lists that are here already may name it.
    let mut got = get(tools)?;
    if !got.success {
        let update = ["apt-get", "-q", "update"].map(OsString::from);
        let updated = tools.run(&update, work, &setting)?;
        got = get(tools)?;
        // apt goes on without the lists that it does not get.
        let unread = updated.error().filter(|_| !got.success);
        if let Some(message) = unread {
            return Err(DebianError::Fetch {
                name: source,
                version,
                message,
            });
        }
    }
    if !got.success {
        let message = got.reason();
        return Err(match is_missing(&message) {
            true => DebianError::Gone {
                name: source,
                version,
                message,
            },
            false => DebianError::Fetch {
                name: source,
                version,
                message,
            },
        });
    }
    let failed = |message: String| DebianError::Fetch {
        name: source.clone(),
        version: version.clone(),
        message,
    };
    let mut files = fs::read_dir(download)
        .map_err(Error::io(download))?
        .flatten();
    let description = files.find(|entry| entry.path().extension() == Some(OsStr::new("dsc")));
    let description = description.ok_or_else(|| failed("it has no .dsc file".to_owned()))?;
    let unpacked = download.join("unpacked");
    // apt has checked it against the signed index.
    let mut argv = ["dpkg-source", "--no-check", "-x"]
        .map(OsString::from)
        .to_vec();
    argv.extend([description.path().into(), unpacked.clone().into()]);
    let done = tools.run(&argv, download, &[])?;
    if !done.success {
        return Err(failed(done.reason()));
    }
    Ok(unpacked)
}

/// An archive keeps the newest versions only.
fn is_missing(message: &str) -> bool {
    let words = ["find version", "find a source package", " 404 "];
    words.iter().any(|words| message.contains(words))
}

/// Writes apt's configuration, which is ours but for the user's sources and keys. Its path.
fn configuration(work: &Path) -> Result<OsString, Error> {
    let apt = work.join("apt");
    let sources = apt.join("sources.list.d");
    remove(&sources)?;
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
    Ok(configuration.into_os_string())
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

#[cfg(test)]
mod tests {
    use super::*;

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
