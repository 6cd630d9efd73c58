//! Applies a diff to the copy: patch(1), strictly.
//!
//! It is what distributions apply their patches with, and takes what git and diff write. No fuzz: text around a change
//! that differs from what the diff's author saw is another source.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::error::Error;

/// Finds out whether it would apply to `tree`, which the user calls `source`, and which files it would change there.
pub(crate) fn check(diff: &Path, tree: &Path, source: &Path) -> Result<Vec<PathBuf>, Error> {
    options(diff, tree, source).map(|(_, files)| files)
}

/// Applies it within `tree`.
pub(crate) fn apply(diff: &Path, tree: &Path, source: &Path) -> Result<(), Error> {
    let (options, _) = options(diff, tree, source)?;
    let done = patch(diff, tree, &options, false)?;
    if !done.status.success() {
        return Err(explain(diff, source, &done));
    }
    Ok(())
}

/// The options with which it applies, and the files that it changes.
fn options(
    diff: &Path,
    tree: &Path,
    source: &Path,
) -> Result<(Vec<&'static str>, Vec<PathBuf>), Error> {
    let text = fs::read(diff).map_err(Error::io(diff))?;
    if !text
        .split(|b| *b == b'\n')
        .any(|line| line.starts_with(b"@@") || line.starts_with(b"rename "))
    {
        return Err(Error::NoDiff(diff.to_owned()));
    }
    // git's names begin with a/ and b/, quilt's with the name of the tree, others with neither. Line ends are taken as
    // they are if that fits, so that a CRLF file is no special case.
    let mut first = None;
    for (strip, binary) in [("-p1", false), ("-p1", true), ("-p0", false), ("-p0", true)] {
        let mut options = vec![strip];
        options.extend(binary.then_some("--binary"));
        let tried = patch(diff, tree, &options, true)?;
        if tried.status.success() {
            return Ok((options, files(&String::from_utf8_lossy(&tried.stdout))));
        }
        // What -p1 says counts, unless only -p0 finds the file.
        let error = explain(diff, source, &tried);
        if first.is_none() || matches!(first, Some(Error::NoSuchFile { .. })) {
            first = Some(error);
        }
    }
    Err(first.unwrap_or_else(|| Error::NoDiff(diff.to_owned())))
}

fn patch(diff: &Path, tree: &Path, options: &[&str], dry: bool) -> Result<Output, Error> {
    let input = File::open(diff).map_err(Error::io(diff))?;
    let mut arguments: Vec<OsString> = options.iter().map(OsString::from).collect();
    if dry {
        arguments.push("--dry-run".into());
    }
    Command::new("patch")
        .args(arguments)
        .args([
            "--fuzz=0",
            "--forward",
            "--batch",
            "--no-backup-if-mismatch",
            "--reject-file=-",
            "--quoting-style=literal",
        ])
        .current_dir(tree)
        .env("LC_ALL", "C")
        .env_remove("POSIXLY_CORRECT")
        .env_remove("VERSION_CONTROL")
        .stdin(Stdio::from(input))
        .output()
        .map_err(|_| Error::NoTool("patch"))
}

/// The files that patch says it changes.
fn files(said: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in said.lines() {
        let Some(rest) = line
            .strip_prefix("patching file ")
            .or_else(|| line.strip_prefix("checking file "))
        else {
            continue;
        };
        let (old, new) = match rest.split_once(" (renamed from ") {
            Some((new, old)) => (old.strip_suffix(')'), new),
            None => (None, rest.split_once(" (").map_or(rest, |(file, _)| file)),
        };
        files.extend(old.map(PathBuf::from));
        files.push(PathBuf::from(new));
    }
    files
}

fn explain(diff: &Path, source: &Path, output: &Output) -> Error {
    let said = String::from_utf8_lossy(&output.stdout);
    let diff = diff.to_owned();
    let mut file = String::new();
    let mut applied = None;
    let mut failed = None;
    for line in said.lines() {
        if let Some(name) = line
            .strip_prefix("checking file ")
            .or_else(|| line.strip_prefix("patching file "))
        {
            file = name.to_owned();
        } else if line.starts_with("can't find file to patch") {
            return Error::NoSuchFile {
                diff,
                file: named(&said).unwrap_or_else(|| "that it names".to_owned()),
                tree: source.to_owned(),
            };
        } else if line.starts_with("Reversed (or previously applied) patch detected") {
            applied.get_or_insert_with(|| file.clone());
        } else if line.starts_with("Hunk #") && line.contains(" FAILED at ") {
            let hunk = line
                .trim_end_matches('.')
                .replacen("Hunk #", "hunk ", 1)
                .replacen(" FAILED at ", " at line ", 1);
            failed.get_or_insert_with(|| (file.clone(), hunk));
        }
    }
    match (applied, failed) {
        (Some(file), _) => Error::AlreadyApplied { diff, file },
        (None, Some((file, hunk))) => Error::Hunk { diff, file, hunk },
        (None, None) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let message = stderr
                .lines()
                .chain(said.lines())
                .find(|line| !line.trim().is_empty());
            let message = message.unwrap_or("patch does not say why").to_owned();
            Error::Apply { diff, message }
        }
    }
}

/// The name of the file in the header that patch quotes, which is indented by a bar.
fn named(said: &str) -> Option<String> {
    let headers = said.lines().filter_map(|line| line.strip_prefix('|'));
    let mut names = headers.filter_map(|line| {
        line.strip_prefix("+++ ")
            .or_else(|| line.strip_prefix("--- "))
    });
    let name = names.rfind(|name| !name.starts_with("/dev/null"))?;
    Some(name.split(['\t', '\r']).next().unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n";
    const DIFF: &str = "--- a/d/f.c\n+++ b/d/f.c\n@@ -2,7 +2,7 @@\n two\n three\n four\n-five\n+FIVE\n six\n seven\n eight\n";

    struct Case(tempfile::TempDir);

    impl Case {
        fn new(text: &str) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            fs::create_dir(directory.path().join("d")).expect("a directory");
            fs::write(directory.path().join("d/f.c"), text).expect("a file");
            Self(directory)
        }

        fn apply(&self, diff: &str) -> Result<Vec<PathBuf>, String> {
            let file = self.0.path().join("x.diff");
            fs::write(&file, diff).expect("a file");
            let source = Path::new("SRC");
            check(&file, self.0.path(), source)
                .and_then(|files| apply(&file, self.0.path(), source).map(|()| files))
                .map_err(|e| e.to_string().replace(&file.display().to_string(), "DIFF"))
        }

        fn text(&self) -> String {
            fs::read_to_string(self.0.path().join("d/f.c")).expect("a file")
        }
    }

    #[test]
    fn names_with_and_without_a_first_directory() {
        for diff in [
            DIFF.to_owned(),
            DIFF.replace("a/d", "d").replace("b/d", "d"),
        ] {
            let case = Case::new(OLD);
            assert_eq!(case.apply(&diff), Ok(vec![PathBuf::from("d/f.c")]));
            assert_eq!(case.text(), OLD.replace("five", "FIVE"));
        }
    }

    #[test]
    fn line_ends() {
        let crlf = |text: &str| text.replace('\n', "\r\n");
        for (old, diff) in [(OLD.to_owned(), crlf(DIFF)), (crlf(OLD), crlf(DIFF))] {
            let case = Case::new(&old);
            assert_eq!(case.apply(&diff), Ok(vec![PathBuf::from("d/f.c")]));
            assert_eq!(case.text(), old.replace("five", "FIVE"));
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let case = Case::new(OLD);
        assert_eq!(case.apply(&DIFF.replace("-five", "-cinq")), Err("DIFF: d/f.c: hunk 1 at line 2 does not apply; the source must be the one that the diff was made for".into()));
        // Fuzz would take this.
        assert!(
            case.apply(&DIFF.replace(" eight", " acht"))
                .is_err_and(|e| e.contains("hunk 1 at line 2"))
        );
        assert_eq!(case.apply(&DIFF.replace("f.c", "g.c")), Err("DIFF: there is no file b/d/g.c in SRC to apply it to, with or without the first directory of its name".into()));
        assert_eq!(case.apply("hello\n"), Err("DIFF holds no diff".into()));
        assert_eq!(case.text(), OLD);
        case.apply(DIFF).expect("applies");
        assert_eq!(case.apply(DIFF), Err("DIFF is applied already: d/f.c has its changes; the source must be what runs, without the fix".into()));
    }

    #[test]
    fn nothing_outside_of_the_tree_is_written() {
        let case = Case::new(OLD);
        let outside = case.0.path().join("outside");
        fs::create_dir_all(case.0.path().join("tree/e")).expect("a directory");
        fs::write(&outside, OLD).expect("a file");
        std::os::unix::fs::symlink("..", case.0.path().join("tree/up")).expect("a link");
        let file = case.0.path().join("x.diff");
        for name in [
            "x/../outside".to_owned(),
            format!("x{}", outside.display()),
            "x/up/outside".to_owned(),
        ] {
            fs::write(
                &file,
                DIFF.replace("a/d/f.c", &name).replace("b/d/f.c", &name),
            )
            .expect("a file");
            assert!(
                apply(&file, &case.0.path().join("tree"), Path::new("SRC")).is_err(),
                "{name}"
            );
            assert_eq!(fs::read_to_string(&outside).expect("a file"), OLD);
        }
    }

    #[test]
    fn new_and_renamed_files() {
        let case = Case::new(OLD);
        let new = "diff --git a/n.c b/n.c\nnew file mode 100644\n--- /dev/null\n+++ b/n.c\n@@ -0,0 +1 @@\n+int n;\n";
        assert_eq!(case.apply(new), Ok(vec![PathBuf::from("n.c")]));
        let moved = "diff --git a/d/f.c b/d/g.c\nsimilarity index 100%\nrename from d/f.c\nrename to d/g.c\n";
        assert_eq!(
            case.apply(moved),
            Ok(vec![PathBuf::from("d/f.c"), PathBuf::from("d/g.c")])
        );
    }
}
