//! Calls of Debian's programs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicBool;

use livegraft_observe::{command, run};

use crate::capture::error::{Error, full};
use crate::capture::site::Unwatched;

pub(super) struct Tools<'a> {
    /// Gets what the one that runs says.
    pub(super) log: PathBuf,
    pub(super) interrupt: &'a AtomicBool,
}

pub(super) struct Said {
    pub(super) success: bool,
    pub(super) text: String,
}

impl Said {
    /// apt's first error. What it could do without is a warning to it.
    pub(super) fn error(&self) -> Option<String> {
        let after = |prefix: &str| self.text.lines().find_map(|line| line.strip_prefix(prefix));
        let error = after("E: ").or_else(|| after("W: Failed to fetch "));
        error.map(|error| error.trim().to_owned())
    }

    /// That, or the last line.
    pub(super) fn reason(&self) -> String {
        let last = || self.text.lines().rfind(|line| !line.trim().is_empty());
        let reason = self.error().or_else(|| last().map(str::to_owned));
        reason.unwrap_or_else(|| "no reason is given".to_owned())
    }
}

impl Tools<'_> {
    pub(super) fn run(
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
        let text = String::from_utf8_lossy(&text).into_owned();
        if !status.success() {
            full(&self.log, &text)?;
        }
        Ok(Said {
            success: status.success(),
            text,
        })
    }
}
