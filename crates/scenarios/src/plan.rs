//! What a scenario says about itself: the `//# key: value` lines at the top of its `target.c`, or its `target.rs`.

use std::path::{Path, PathBuf};

/// One way to build a C file: compiler, optimisation, shape (`pie`, `no-pie`, `pic`, `no-pic`) and more flags.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Build {
    /// `gcc` or `clang`; `rustc` for a `target.rs`.
    pub compiler: String,
    /// `-O0` and so on.
    pub optimisation: String,
    /// `pie`, `no-pie` for programs, `pic`, `no-pic` for patches.
    pub shape: String,
    /// Added at the end of the command.
    pub flags: Vec<String>,
}

impl Build {
    /// From three words, such as `gcc -O2 pie`.
    pub fn new(words: &str) -> Self {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        let [compiler, optimisation, shape] =
            <[String; 3]>::try_from(words).expect("compiler, optimisation, shape");
        Self {
            compiler,
            optimisation,
            shape,
            flags: Vec::new(),
        }
    }

    /// The same with one more flag.
    pub fn flag(&self, flag: &str) -> Self {
        let mut build = self.clone();
        build.flags.push(flag.to_owned());
        build
    }
}

impl std::fmt::Display for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.compiler, self.optimisation, self.shape)?;
        self.flags.iter().try_for_each(|flag| write!(f, " {flag}"))
    }
}

/// A scenario's directory and its directives.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory.
    pub dir: PathBuf,
    directives: Vec<(String, String)>,
}

impl Plan {
    /// Reads `tests/<name>/target.c`, or `target.rs` where there is one.
    pub fn read(name: &str) -> Self {
        let dir = root().join("tests").join(name);
        let rust = Some(dir.join("target.rs")).filter(|path| path.is_file());
        let main = rust.unwrap_or_else(|| dir.join("target.c"));
        let text =
            std::fs::read_to_string(main).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let directives = text
            .lines()
            .filter_map(|line| line.strip_prefix("//# "))
            .map(|line| {
                line.split_once(':')
                    .unwrap_or_else(|| panic!("{name}: `{line}` is no directive"))
            })
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect();
        Self { dir, directives }
    }

    /// The directory's name.
    pub fn name(&self) -> &str {
        self.dir
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a directory with a name")
    }

    /// The value of the first directive with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.directives
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// The values of all directives with this key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.directives
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// Every way to build the target that `//# target:` names; `gcc -O2 pie` if it names none.
    pub fn targets(&self) -> Vec<Build> {
        matrix(self.get("target").unwrap_or("gcc -O2 pie"))
    }

    /// Every way to build the patch that `//# patch:` names; `gcc -O2 pic` if it names none.
    pub fn patches(&self) -> Vec<Build> {
        matrix(self.get("patch").unwrap_or("gcc -O2 pic"))
    }

    /// Whether the target maps memory on its own while it runs (thread stacks, for one), so that new mappings which
    /// livegraft does not list are no leak of ours.
    pub fn maps_memory(&self) -> bool {
        self.get("mappings") == Some("own")
    }
}

/// `gcc,clang -O0,-O2 pie` are four builds.
fn matrix(text: &str) -> Vec<Build> {
    let columns: Vec<Vec<&str>> = text
        .split_whitespace()
        .map(|column| column.split(',').collect())
        .collect();
    let [compilers, optimisations, shapes] = columns.as_slice() else {
        panic!("`{text}` is not three columns")
    };
    let mut builds = Vec::new();
    for compiler in compilers {
        for optimisation in optimisations {
            for shape in shapes {
                builds.push(Build::new(&format!("{compiler} {optimisation} {shape}")));
            }
        }
    }
    builds
}

/// The top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the repository is there")
}
