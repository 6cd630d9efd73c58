//! The source files that a build compiles, and which of them a diff reaches.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::arguments::{Language, Mode, parse};
use super::record::Record;

/// One source file in one compiler call. Paths are as the build sees them.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    pub(crate) source: PathBuf,
    pub(crate) language: Language,
    /// Its object, unless that was a temporary file of a call that also links.
    pub(crate) object: Option<PathBuf>,
    /// Index of the call.
    pub(crate) call: usize,
    /// Index of the source among its arguments.
    pub(crate) at: usize,
    /// The flag that asks for link-time optimisation.
    pub(crate) lto: Option<OsString>,
    /// The file that lists its dependencies; `Some(None)`: the build system asks for that list, but we don't see where.
    pub(crate) dependencies: Option<Option<PathBuf>>,
}

/// What makes a unit of one build the counterpart of one of another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    source: PathBuf,
    object: PathBuf,
}

impl Unit {
    pub(crate) fn identity(&self, record: &Record) -> Identity {
        let object = self.object.clone().unwrap_or_else(|| {
            let call = &record.calls[self.call];
            call.directory.join(
                parse(&call.arguments)
                    .output
                    .unwrap_or_else(|| "a.out".into()),
            )
        });
        Identity {
            source: self.source.clone(),
            object,
        }
    }
}

/// All units of a build: the last good call for each object. `exists` says if a file was still there at the end, which
/// the trials of configure scripts are not.
pub(crate) fn units(record: &Record, exists: &dyn Fn(&Path) -> bool) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut known: HashMap<Identity, usize> = HashMap::new();
    for (index, call) in record.calls.iter().enumerate() {
        if call.exit != Some(0) {
            continue;
        }
        let parsed = parse(&call.arguments);
        if parsed.mode == Mode::Other {
            continue;
        }
        let alone = parsed.sources.len() == 1;
        for (at, language) in &parsed.sources {
            let source = absolute(&call.directory, Path::new(&call.arguments[*at]));
            if !exists(&source) {
                continue;
            }
            let object = (parsed.mode == Mode::Compile).then(|| {
                let name = Path::new(source.file_stem().unwrap_or_default()).with_extension("o");
                let name = parsed.output.clone().filter(|_| alone).unwrap_or(name);
                absolute(&call.directory, &name)
            });
            if object.as_deref() == Some(Path::new("/dev/null")) {
                continue;
            }
            let dependencies = parsed.dependencies.as_ref().map(|named| {
                // Where no file is named it is called like the object.
                let file = named
                    .clone()
                    .or_else(|| object.as_ref().map(|object| object.with_extension("d")));
                file.map(|file| absolute(&call.directory, &file))
            });
            let unit = Unit {
                source,
                language: *language,
                object,
                call: index,
                at: *at,
                lto: parsed.lto.clone(),
                dependencies,
            };
            match known.entry(unit.identity(record)) {
                std::collections::hash_map::Entry::Occupied(old) => units[*old.get()] = unit,
                std::collections::hash_map::Entry::Vacant(new) => {
                    new.insert(units.len());
                    units.push(unit);
                }
            }
        }
    }
    units
}

/// An absolute path without `.` and `..`, by its text: the build's files may be elsewhere for us.
pub(crate) fn absolute(directory: &Path, path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in directory.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// The prerequisites of the rules in a make file that a compiler has written.
pub(crate) fn prerequisites(text: &[u8]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut word = Vec::new();
    // A rule's targets end with a colon; with -MP there are rules without prerequisites.
    let mut targets = true;
    let mut bytes = text.iter().copied().peekable();
    loop {
        let byte = bytes.next();
        match byte {
            Some(b'\\') if bytes.peek().is_some_and(|next| b" #\t:".contains(next)) => {
                word.extend(bytes.next())
            }
            Some(b'\\') if bytes.peek() == Some(&b'\n') => {
                bytes.next();
                end(&mut word, targets, &mut files);
            }
            Some(b'$') if bytes.peek() == Some(&b'$') => word.extend(bytes.next()),
            Some(b':') if targets && bytes.peek().is_none_or(u8::is_ascii_whitespace) => {
                word.clear();
                targets = false;
            }
            Some(b'\n') | None => {
                end(&mut word, targets, &mut files);
                targets = true;
            }
            Some(byte) if byte.is_ascii_whitespace() => end(&mut word, targets, &mut files),
            Some(byte) => word.push(byte),
        }
        if byte.is_none() {
            return files;
        }
    }
}

fn end(word: &mut Vec<u8>, targets: bool, files: &mut Vec<PathBuf>) {
    let word = std::mem::take(word);
    if !targets && !word.is_empty() {
        files.push(OsString::from_vec(word).into());
    }
}

/// Could the compiler have read a file that the preprocessor does not show?
pub(crate) fn reads_more(preprocessed: &[u8]) -> bool {
    let has = |word: &str| memchr::memmem::find(preprocessed, word.as_bytes()).is_some();
    has(".incbin") || has("#embed")
}

/// A command line for people.
pub(crate) fn line(arguments: &[OsString]) -> String {
    const LONGEST: usize = 400;
    let joined = arguments.join(OsStr::new(" "));
    let bytes = joined.as_bytes();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]);
    if bytes.len() > LONGEST {
        format!("{text}...")
    } else {
        text.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Call;
    use super::*;

    #[test]
    fn make_rules_are_read() {
        let text = b"out/a.o: src/a.c inc/b.h \\\n  inc/with\\ space.h c$$.h\ninc/b.h:\n";
        let files = prerequisites(text);
        assert_eq!(
            files,
            ["src/a.c", "inc/b.h", "inc/with space.h", "c$.h"].map(PathBuf::from)
        );
        assert_eq!(prerequisites(b"a.o: b.c"), [PathBuf::from("b.c")]);
        assert!(prerequisites(b"").is_empty());
        assert!(prerequisites(b"\\").is_empty());
    }

    #[test]
    fn paths_are_made_absolute_by_their_text() {
        assert_eq!(
            absolute(Path::new("/a/b"), Path::new("../c/./d.c")),
            Path::new("/a/c/d.c")
        );
        assert_eq!(
            absolute(Path::new("/a"), Path::new("/../x")),
            Path::new("/x")
        );
    }

    fn record(calls: &[(&str, Option<i32>)]) -> Record {
        let call = |(line, exit): &(&str, Option<i32>)| Call {
            directory: "/s".into(),
            arguments: line.split(' ').map(OsString::from).collect(),
            environment: 0,
            exit: *exit,
        };
        Record {
            calls: calls.iter().map(call).collect(),
            ..Record::default()
        }
    }

    #[test]
    fn units_are_what_calls_have_left() {
        let record = record(&[
            ("gcc -c conftest.c", Some(0)),
            ("gcc -c a.c -O1", Some(0)),
            ("gcc -c a.c -O2", Some(0)),
            ("gcc -c -fPIC a.c -o .libs/a.o -MD", Some(0)),
            ("gcc -c b.c", Some(1)),
            ("gcc -c b.c", None),
            ("gcc -E c.c", Some(0)),
            ("gcc d.c sub/e.c -o prog", Some(0)),
            ("gcc -c f.c -o /dev/null", Some(0)),
        ]);
        let units = units(&record, &|path| !path.ends_with("conftest.c"));
        let found: Vec<_> = (units.iter())
            .map(|unit| {
                (
                    unit.source.to_str(),
                    unit.object.as_ref().and_then(|o| o.to_str()),
                    unit.call,
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                (Some("/s/a.c"), Some("/s/a.o"), 2),
                (Some("/s/a.c"), Some("/s/.libs/a.o"), 3),
                (Some("/s/d.c"), None, 7),
                (Some("/s/sub/e.c"), None, 7),
            ]
        );
        assert_eq!(units[1].dependencies, Some(Some("/s/.libs/a.d".into())));
    }
}
