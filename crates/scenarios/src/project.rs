//! A program that is built from a tree of sources, and patched by what `livegraft build` makes of an edit of them.

use crate::cli::{self, Outcome};
use crate::compile::strip;
use crate::cycle::twice_as;
use crate::plan::{Plan, root};
use crate::refusal::check;
use crate::target::Target;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The source of a scenario in a directory of its own, where builds of it are kept, and the program as its users have it.
pub struct Project {
    dir: TempDir,
    name: String,
    command: String,
    /// Where the build puts things, within the source.
    out: String,
    /// The program, built at the path of the source and stripped.
    pub shipped: PathBuf,
}

/// An edit: file, old text, new text.
pub type Edit<'e> = (&'e str, &'e str, &'e str);

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Project {
    /// Of `tests/NAME`: the shell's command that builds it, the directory that this makes, and in it the program. `more`
    /// is added to a file of it.
    pub fn new(
        name: &str,
        command: &str,
        (out, program): (&str, &str),
        more: (&str, &str),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("source");
        let tests = root().join("tests").join(name);
        run(Command::new("cp").arg("-r").arg(tests).arg(&source));
        let (file, end) = more;
        let mut full = std::fs::read_to_string(source.join(file)).expect("a file of the scenario");
        full.push_str(end);
        std::fs::write(source.join(file), full).expect("a copy of our own");
        run(Command::new("sh")
            .args(["-ec", command])
            .current_dir(&source));
        let built = dir.path().join("built");
        std::fs::copy(source.join(out).join(program), &built).expect("a program");
        std::fs::remove_dir_all(source.join(out)).expect("it was made here");
        Self {
            shipped: strip(&built),
            dir,
            name: name.to_owned(),
            command: command.to_owned(),
            out: out.to_owned(),
        }
    }

    /// `livegraft build` with a diff that makes these edits.
    pub fn build(&self, edits: &[Edit<'_>], more: &[&str]) -> (Outcome, PathBuf) {
        let at = |name: &str| self.dir.path().join(name);
        let (source, klp, diff, work) = (at("source"), at("fix.klp"), at("fix.diff"), at("work"));
        let changed = at("changed");
        let _ = std::fs::remove_file(&klp);
        let _ = std::fs::remove_dir_all(&changed);
        run(Command::new("cp").arg("-r").arg(&source).arg(&changed));
        for (file, from, to) in edits {
            let path = changed.join(file);
            let old = std::fs::read_to_string(&path).expect("a source file");
            assert!(old.contains(from), "{from} in {file}");
            std::fs::write(&path, old.replacen(from, to, 1)).expect("a copy of our own");
        }
        let mut command = Command::new("diff");
        command.args(["-ruN", "source", "changed"]);
        let output = command.current_dir(self.dir.path()).output();
        std::fs::write(&diff, output.expect("diff").stdout).expect("a file");
        let mut words = Vec::from(["build", "--source", text(&source), "--diff", text(&diff)]);
        words.extend(["--target", text(&self.shipped)]);
        words.extend(["--work", text(&work), "-o", text(&klp)]);
        words.extend(more);
        words.extend(["--", "sh", "-ec", &self.command]);
        let outcome = cli::livegraft(&words);
        assert_eq!(klp.exists(), outcome.code == 0, "{outcome}");
        assert!(!source.join(&self.out).exists(), "the source was changed");
        (outcome, klp)
    }

    /// Edits that make a patch, which is loaded and unloaded: the functions whose names have these parts change, and the
    /// program says so.
    #[track_caller]
    pub fn patched(&self, edits: &[Edit<'_>], changed: &[&str], verdict: &str) -> Outcome {
        let (built, klp) = self.build(edits, &[]);
        assert_eq!(built.code, 0, "{built}");
        let found = functions(&built, "changed");
        for name in &found {
            assert!(changed.iter().any(|part| name.contains(part)), "{found:?}");
        }
        for part in changed {
            assert!(found.iter().any(|name| name.contains(part)), "{found:?}");
        }
        let target = Target::start(&Plan::read(&self.name), &self.shipped, &[]);
        twice_as(target, &klp, None, verdict);
        built
    }

    /// Edits that make none.
    #[track_caller]
    pub fn refused(&self, edits: &[Edit<'_>], words: &str) {
        check(&self.build(edits, &[]).0, words);
    }

    /// Edits that change no code.
    #[track_caller]
    pub fn unchanged(&self, edits: &[Edit<'_>]) {
        let (outcome, _) = self.build(edits, &[]);
        assert_eq!(outcome.code, 1, "{outcome}");
        let kind = &outcome.json["error"]["kind"];
        assert_eq!(kind, "no-code-changed", "{outcome}");
    }
}

/// The names of the functions of a patch that are `changed`, `new` or `removed`.
pub fn functions(outcome: &Outcome, status: &str) -> Vec<String> {
    let sources = outcome.json["sources"].as_array().into_iter().flatten();
    let functions = sources.flat_map(|source| source["functions"].as_array().into_iter().flatten());
    let named = functions.filter(|function| function["status"] == status);
    let name = |function: &serde_json::Value| function["name"].as_str().map(str::to_owned);
    named.filter_map(name).collect()
}
