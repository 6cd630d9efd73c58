//! The trees of a package: Debian's, configured, and without a fix.

use super::{Package, Row};
use crate::cli::target_dir;
use crate::servers::run;
use livegraft_build::capture::{DebianError, debian_source};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// Where everything of a package lies.
#[derive(Debug, Clone)]
pub struct Places {
    /// All of it.
    pub base: PathBuf,
    /// The tree that is built. Always here: paths find their way into programs.
    pub tree: PathBuf,
    /// Debian's tree, configured in `tree`, then moved.
    configured: PathBuf,
}

impl Places {
    /// In cargo's target directory.
    ///
    /// # Errors
    /// It can't be made.
    pub fn of(package: &str) -> Result<Self, String> {
        let base = target_dir().join("cve").join(package);
        std::fs::create_dir_all(&base).map_err(|e| format!("{}: {e}", base.display()))?;
        Ok(Self {
            tree: base.join("tree"),
            configured: base.join("configured"),
            base,
        })
    }

    /// What is kept of a row: its patch and its report.
    pub fn row(&self, row: &Row) -> PathBuf {
        self.base.join(row.name())
    }

    /// Debian's source of the package, fetched and unpacked if that was not done yet.
    ///
    /// # Errors
    /// What apt has said, if it has no source to give.
    pub fn source(&self, row: &Row) -> Result<PathBuf, DebianError> {
        let work = target_dir().join("cve");
        let goes_on = AtomicBool::new(false);
        debian_source(&row.package, &row.version, Some(&work), &goes_on)
    }

    /// Fetches, unpacks and configures the package if that was not done yet.
    ///
    /// # Errors
    /// The message of the command that failed.
    pub fn prepare(&self, package: &dyn Package, row: &Row) -> Result<(), String> {
        if self.configured.is_dir() {
            return Ok(());
        }
        let source = self.source(row).map_err(|error| error.to_string())?;
        copy(&source, &self.tree)?;
        self.sh(package.configure(), &self.tree)?;
        std::fs::rename(&self.tree, &self.configured)
            .map_err(|e| format!("{}: {e}", self.tree.display()))
    }

    /// Makes `tree` the configured tree without the row's fix, and nothing built in it.
    ///
    /// # Errors
    /// The message of the command that failed.
    pub fn original(&self, row: &Row) -> Result<(), String> {
        copy(&self.configured, &self.tree)?;
        let mut patch = Command::new("patch");
        patch.args(["-R", "-p1", "-s", "-F0", "-d"]).arg(&self.tree);
        patch.arg("-i").arg(self.fix(row));
        run(&mut patch).map(drop)
    }

    /// The row's fix.
    pub fn fix(&self, row: &Row) -> PathBuf {
        self.configured.join("debian/patches").join(&row.patch)
    }

    /// Shell commands in a directory, with compilers that remember what they have compiled.
    ///
    /// # Errors
    /// The last of what the commands have written.
    pub fn sh(&self, commands: &str, directory: &Path) -> Result<(), String> {
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", commands]).current_dir(directory);
        run(shell.envs(self.settings())).map(drop).map_err(|text| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        })
    }

    /// The environment of builds.
    pub fn settings(&self) -> Vec<(&'static str, OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut all = OsString::from("/usr/lib/ccache:");
        all.push(path);
        let cache = target_dir().join("cve/ccache");
        vec![
            // Whatever is around the trees is none of their repositories.
            ("GIT_CEILING_DIRECTORIES", self.base.clone().into()),
            ("PATH", all),
            ("CCACHE_DIR", cache.into()),
            ("LC_ALL", "C.UTF-8".into()),
        ]
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    if to.exists() {
        std::fs::remove_dir_all(to).map_err(|e| format!("{}: {e}", to.display()))?;
    }
    run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}
