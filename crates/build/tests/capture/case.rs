//! A source tree, an edit of it, and a build.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use livegraft_build::capture::{Capture, Error, Request, capture};
use object::{Object, ObjectSection};

pub struct Case {
    directory: tempfile::TempDir,
    pub request: Request,
}

impl Case {
    /// A tree with these files.
    pub fn new(files: &[(&str, &str)]) -> Self {
        Self::named("src", files)
    }

    pub fn named(name: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // Other users have to reach it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let at = |name: &str| directory.path().join(name);
        let request = Request {
            source: at(name),
            diff: at("fix.diff"),
            work: Some(at("work")),
            ..Request::default()
        };
        fs::create_dir_all(&request.source).expect("a directory");
        fs::create_dir_all(at("work")).expect("a directory");
        for (name, text) in files {
            let path = request.source.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        Self { directory, request }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn source(&self, name: &str) -> PathBuf {
        self.request.source.join(name)
    }

    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// The build, as a shell's command line.
    pub fn command(mut self, line: &str) -> Self {
        self.request.command = ["/bin/sh", "-ec", line].map(OsString::from).to_vec();
        self
    }

    /// Makes the diff: in each of these files this text is replaced by that.
    pub fn edit(&self, edits: &[(&str, &str, &str)]) -> &Self {
        let mut diff = String::new();
        for (name, from, to) in edits {
            let old = fs::read_to_string(self.source(name)).unwrap_or_default();
            assert!(old.contains(from), "{from} in {name}");
            let new = self.path("new");
            fs::write(&new, old.replace(from, to)).expect("a file");
            let output = Command::new("diff")
                .args([
                    "-u",
                    "--label",
                    &format!("a/{name}"),
                    "--label",
                    &format!("b/{name}"),
                ])
                .args([&self.source(name), &new])
                .output()
                .expect("diff");
            diff.push_str(&String::from_utf8(output.stdout).expect("text"));
        }
        fs::write(&self.request.diff, diff).expect("a file");
        self
    }

    /// Makes the diff: what this shell command does to the source.
    pub fn edit_by(&self, line: &str) {
        shell(&self.path("."), "rm -rf a b; cp -a src a; cp -a src b");
        shell(&self.path("b"), line);
        shell(&self.path("."), "diff -ruN a b >fix.diff || [ $? = 1 ]");
    }

    pub fn capture(&self) -> Result<Capture, Error> {
        let before = listing(&self.request.source);
        let result = capture(&self.request, &mut |_| (), &AtomicBool::new(false));
        assert_eq!(
            before,
            listing(&self.request.source),
            "the source is as it was"
        );
        result
    }

    /// It works; the pairs are of these sources, in this order; each has code that differs.
    pub fn pairs(&self, sources: &[&str]) -> Capture {
        let capture = self.capture().unwrap_or_else(|error| panic!("{error}"));
        let mut found: Vec<_> = capture
            .pairs
            .iter()
            .map(|pair| pair.source.to_string_lossy())
            .collect();
        found.sort();
        assert_eq!(found, sources);
        for pair in &capture.pairs {
            let texts = [&pair.original, &pair.patched].map(|file| {
                let functions = functions(file.as_ref().expect("an object"));
                assert!(!functions.is_empty(), "a section per function in {file:?}");
                functions
            });
            assert_ne!(texts[0], texts[1], "{}", pair.source.display());
            assert!(
                pair.built.as_ref().is_some_and(|built| built.is_file()),
                "{:?}",
                pair.built
            );
        }
        capture
    }

    pub fn refused(&self) -> String {
        match self.capture() {
            Ok(capture) => panic!("{:?}", capture.pairs),
            Err(error) => error
                .to_string()
                .replace(&format!("{}/", self.directory.path().display()), ""),
        }
    }
}

/// The code of an object by section: functions have sections of their own.
pub fn functions(object: &Path) -> BTreeMap<String, Vec<u8>> {
    let data = fs::read(object).expect("an object");
    let file = object::File::parse(&*data).expect("an object");
    file.sections()
        .filter_map(|section| {
            let name = section.name().ok()?.strip_prefix(".text.")?.to_owned();
            Some((name, section.data().ok()?.to_vec()))
        })
        .collect()
}

/// All that is in a tree, with contents and times.
pub fn listing(tree: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![tree.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        let mut data = Vec::new();
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("a directory")
                    .map(|entry| entry.expect("an entry").path()),
            );
        } else if metadata.is_file() {
            data = fs::read(&path).expect("a file");
        }
        found.insert(path, (metadata.mode(), metadata.mtime_nsec(), data));
    }
    found
}

/// Runs a shell's command line in a directory.
pub fn shell(directory: &Path, line: &str) {
    let output = Command::new("sh")
        .args(["-ec", line])
        .current_dir(directory)
        .output()
        .expect("sh");
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What the machine lacks is a visible skip, or a failure where LIVEGRAFT_NO_SKIP is set.
pub fn has(tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool}")])
            .output();
        !found.is_ok_and(|output| output.status.success())
    });
    if let Some(tool) = missing {
        assert!(
            std::env::var_os("LIVEGRAFT_NO_SKIP").is_none(),
            "{tool} is missing"
        );
        eprintln!("SKIPPED: {tool} is missing (scripts/setup)");
    }
    missing.is_none()
}
