//! Compiling small C programs and packing patches for them, with the real compilers.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use livegraft_patchfile::{Error, Input, Patch, Target, pack};

/// A directory with what a test compiles.
pub struct Bench {
    dir: tempfile::TempDir,
}

/// The compilers of this machine. A missing clang is a visible skip; `LIVEGRAFT_REQUIRE` makes it a failure.
pub fn compilers() -> Vec<&'static str> {
    let mut found = Vec::new();
    for cc in ["gcc", "clang"] {
        if Command::new(cc)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
        {
            found.push(cc);
        } else if std::env::var_os("LIVEGRAFT_REQUIRE").is_some() {
            panic!("{cc} is missing; install it with: apt-get install {cc}");
        } else {
            eprintln!("SKIPPED with {cc}: it is not installed (apt-get install {cc})");
        }
    }
    found
}

impl Bench {
    pub fn new() -> Self {
        Bench {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `source` to `out` + `.c` (or `.cc` for a C++ compiler) and compiles it.
    pub fn compile(&self, cc: &str, flags: &str, source: &str, out: &str) -> Vec<u8> {
        let suffix = if cc.ends_with("++") { "cc" } else { "c" };
        let file = self.path(&format!("{out}.{suffix}"));
        std::fs::write(&file, source).unwrap();
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
        let run = Command::new(cc)
            .current_dir(self.dir.path())
            .args(flags.split_whitespace())
            .arg("-I")
            .arg(include)
            .arg("-o")
            .arg(self.path(out))
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{cc} {flags}: {text}");
        assert!(
            text.is_empty() || !flags.contains("-Werror"),
            "{cc} {flags}: {text}"
        );
        std::fs::read(self.path(out)).unwrap()
    }

    /// Compiles a target program.
    pub fn target(&self, cc: &str, flags: &str, source: &str) -> Vec<u8> {
        self.compile(cc, &format!("{flags} -Wl,--build-id"), source, "target")
    }

    /// Compiles a patch and packs it for one target.
    pub fn pack(
        &self,
        cc: &str,
        flags: &str,
        source: &str,
        target: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let source = format!("#include <livepatch.h>\n{source}");
        let object = self.compile(cc, &format!("{flags} -c"), &source, "fix.o");
        self.pack_object(&object, target)
    }

    pub fn pack_object(&self, object: &[u8], target: &[u8]) -> Result<Vec<u8>, Error> {
        pack(
            &[Input {
                path: Path::new("fix.o"),
                bytes: object,
            }],
            &[Target {
                path: Path::new("target"),
                bytes: target,
                debug: None,
                symbols: None,
            }],
        )
    }

    /// As [`Bench::pack`], with gcc at -O2 -fPIC: the sentence of its refusal.
    pub fn refusal(&self, source: &str, target: &[u8]) -> String {
        match self.pack("gcc", "-O2 -fPIC", source, target) {
            Ok(_) => panic!("it was packed"),
            Err(error) => error.to_string(),
        }
    }
}

/// A patch with one func: `old` of the executable becomes `lp_new`.
pub fn patch_of(code: &str, old: &str) -> String {
    format!(
        "{code}
static struct klp_func funcs[] = {{ {{ .old_name = \"{old}\", .new_func = (void *)lp_new }}, {{ }} }};
static struct klp_object objs[] = {{ {{ .name = 0, .funcs = funcs }}, {{ }} }};
static struct klp_patch patch = {{ .objs = objs }};
KLP_PATCH(patch);
"
    )
}

/// The symbol numbers of a patch by name.
pub fn symbol<'p>(patch: &'p Patch, name: &str) -> &'p livegraft_patchfile::Symbol {
    let found = patch.symbols.iter().find(|s| s.name == name);
    found.unwrap_or_else(|| panic!("no symbol {name} in {:#?}", patch.symbols))
}
