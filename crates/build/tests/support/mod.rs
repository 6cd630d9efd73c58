//! Small programs, built, linked, stripped, and placed.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use livegraft_build::place::{self, Located, Object, Placement, Refusal, Symbols};
use tempfile::TempDir;

/// A program that was built.
pub struct Built {
    pub dir: TempDir,
    pub objects: Vec<(String, Vec<u8>)>,
    pub linked: Vec<u8>,
    pub stripped: Vec<u8>,
}

/// One way to build.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    pub compiler: &'a str,
    pub compile: &'a [&'a str],
    pub link: &'a [&'a str],
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

/// Compiles source files: (name, content).
pub fn compile(how: How<'_>, dir: &Path, sources: &[(&str, &str)]) -> Vec<String> {
    let mut objects = Vec::new();
    for (name, text) in sources {
        std::fs::write(dir.join(name), text).unwrap();
        let object = format!("{}.o", name.split('.').next().unwrap());
        run(Command::new(how.compiler)
            .current_dir(dir)
            .args(how.compile)
            .arg("-I")
            .arg(programs())
            .args(["-c", name, "-o", &object]));
        objects.push(object);
    }
    objects
}

/// Links compiled objects and strips the result.
pub fn link(how: How<'_>, dir: TempDir, objects: &[String]) -> Built {
    let path = dir.path();
    run(Command::new(how.compiler)
        .current_dir(path)
        .args(objects)
        .args(how.link)
        .args(["-Wl,--build-id", "-o", "linked"]));
    run(Command::new("strip")
        .current_dir(path)
        .args(["linked", "-o", "stripped"]));
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    Built {
        objects: objects.iter().map(|o| (o.clone(), read(o))).collect(),
        linked: read("linked"),
        stripped: read("stripped"),
        dir,
    }
}

pub fn build(how: How<'_>, sources: &[(&str, &str)]) -> Built {
    let dir = tempfile::tempdir().unwrap();
    let objects = compile(how, dir.path(), sources);
    link(how, dir, &objects)
}

pub fn source(name: &str) -> String {
    std::fs::read_to_string(programs().join(name)).unwrap()
}

impl Built {
    pub fn views(&self) -> Vec<Object<'_>> {
        self.objects
            .iter()
            .map(|(name, bytes)| Object { name, bytes })
            .collect()
    }

    pub fn place(&self) -> Result<Placement<'_>, Refusal> {
        place::objects(&self.stripped, &self.views())
    }

    pub fn symbols(&self) -> Symbols<'_> {
        match place::identical(&self.stripped, &self.linked) {
            Ok(symbols) => symbols,
            Err(difference) => panic!("{difference}"),
        }
    }

    /// The definition of a name that the linked file has for an object: of its source file, or a global one.
    pub fn known(&self, symbols: &Symbols<'_>, object: &str, name: &str) -> Vec<Located> {
        let stem = object.split('.').next().unwrap();
        // The linker makes these static, and counts them as of some file.
        let any = name.starts_with("DW.ref.");
        let fits = |file: &str| any || file.split('.').next() == Some(stem);
        let named = symbols
            .named(name)
            .filter(|s| s.file.is_none_or(fits))
            .map(|s| s.located);
        named.collect()
    }

    /// Every address that was found is that of the symbol table. Gives how many were found, and which functions were
    /// not, though they are there.
    pub fn compare(&self, placement: &Placement<'_>) -> (usize, Vec<String>) {
        let symbols = self.symbols();
        let (mut right, mut missed) = (0, Vec::new());
        for (number, (object, _)) in self.objects.iter().enumerate() {
            let mut found = Vec::new();
            for (name, located) in placement.located(number) {
                let name = std::str::from_utf8(name).unwrap();
                let known = self.known(&symbols, object, name);
                let same = known.iter().any(|k| k.svma == located.svma);
                assert!(same, "{object}: {name} at {located:x?}, not {known:x?}");
                if let Some(print) = placement.fingerprint(&located) {
                    assert_eq!(Some(print), symbols.fingerprint(&located));
                }
                right += 1;
                found.push(name);
            }
            let stem = object.split('.').next();
            for symbol in symbols.iter() {
                let ours = symbol.file.is_some_and(|f| f.split('.').next() == stem);
                // Only call frame information refers to these, which the linker makes anew.
                let ours = ours && !symbol.name.starts_with("DW.ref.");
                if ours && !found.contains(&symbol.name) && symbol.located.size != 0 {
                    // gold counts what comes after, from files without a name, as of the last file.
                    match placement.find(number, symbol.name) {
                        Ok(_) | Err(Refusal::NoSymbol { .. }) => {}
                        Err(why) => missed.push(format!("{object}: {}: {why}", symbol.name)),
                    }
                }
            }
        }
        (right, missed)
    }
}
