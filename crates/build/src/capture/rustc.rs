//! rustc's command line, as far as one must understand it to know what a call makes of its crate.
//!
//! rustc gives each function a section by itself, and inlines across the functions of a crate as it has divided them into
//! codegen units. So its objects are compared as the build made them: compiled in another way, other functions would be
//! inlined than in what runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::arguments::{Language, Mode, Parsed};

/// Options whose value is the next argument where it does not follow `=`.
const TAKE_VALUE: &[&str] = &[
    "--crate-name",
    "--crate-type",
    "--edition",
    "--emit",
    "--out-dir",
    "--codegen",
    "--extern",
    "--cfg",
    "--check-cfg",
    "--cap-lints",
    "--target",
    "--sysroot",
    "--remap-path-prefix",
    "--remap-path-scope",
    "--print",
    "--explain",
    "--error-format",
    "--json",
    "--color",
    "--diagnostic-width",
    "--env-set",
    "--allow",
    "--warn",
    "--deny",
    "--forbid",
    "--force-warn",
];
/// The same with one letter; the value may follow at once.
const TAKE_VALUE_SHORT: &[u8] = b"oCLlZAWDF";

/// Is this the name of Rust's compiler: `rustc`, `rustc-1.85`?
pub(crate) fn is_rustc(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or(program);
    let rest = name.as_bytes().strip_prefix(b"rustc");
    let version = |rest: &[u8]| {
        rest.strip_prefix(b"-")
            .is_some_and(|v| v.iter().all(|b| b.is_ascii_digit() || *b == b'.'))
    };
    rest.is_some_and(|rest| rest.is_empty() || version(rest))
}

/// One option or the source file.
struct Word<'a> {
    /// `--emit`, `-C`; empty for an input.
    option: &'a [u8],
    value: &'a OsStr,
    /// How many arguments it takes.
    width: usize,
}

fn word(arguments: &[OsString], at: usize) -> Option<Word<'_>> {
    let argument = arguments.get(at)?.as_bytes();
    let next = || {
        arguments
            .get(at + 1)
            .map_or(OsStr::new(""), OsString::as_os_str)
    };
    let word = |option, value, width| Word {
        option,
        value,
        width,
    };
    if argument.starts_with(b"--") {
        let equals = argument.iter().position(|b| *b == b'=');
        return Some(match equals {
            Some(equals) => word(
                &argument[..equals],
                OsStr::from_bytes(&argument[equals + 1..]),
                1,
            ),
            None if TAKE_VALUE.iter().any(|o| o.as_bytes() == argument) => {
                word(argument, next(), 2)
            }
            None => word(argument, OsStr::new(""), 1),
        });
    }
    Some(match argument {
        [b'-', letter, rest @ ..] if TAKE_VALUE_SHORT.contains(letter) => match rest {
            [] => word(argument, next(), 2),
            rest => word(&argument[..2], OsStr::from_bytes(rest), 1),
        },
        [b'-', _, ..] => word(argument, OsStr::new(""), 1),
        _ => word(&[], OsStr::from_bytes(argument), 1),
    })
}

/// `-C NAME=VALUE` as a pair.
fn codegen<'a>(word: &Word<'a>) -> Option<(&'a [u8], &'a [u8])> {
    if word.option != b"-C" && word.option != b"--codegen" {
        return None;
    }
    let setting = word.value.as_bytes();
    let equals = setting.iter().position(|b| *b == b'=');
    Some(match equals {
        Some(equals) => (&setting[..equals], &setting[equals + 1..]),
        None => (setting, b""),
    })
}

/// Takes a command line apart. `arguments[0]` is the compiler. What is dropped is what another object for its debug
/// information does not need. A call that makes a program for the build itself (a
/// procedural macro, cargo's build scripts) counts as one that makes nothing.
pub(crate) fn parse(arguments: &[OsString]) -> Parsed {
    let mut parsed = Parsed::new(arguments.len());
    let (mut extra, mut directory) = (OsString::new(), PathBuf::new());
    let (mut types, mut emits): (Vec<&[u8]>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    let mut asks = false;
    let mut at = 1;
    while let Some(word) = word(arguments, at) {
        let value = word.value;
        let mut drop = false;
        match word.option {
            b"" => parsed.sources.push((at, Language::Rust)),
            b"--crate-type" => types.extend(value.as_bytes().split(|b| *b == b',')),
            b"--out-dir" => {
                directory = value.into();
                drop = true;
            }
            b"-o" => {
                parsed.output = Some(value.into());
                drop = true;
            }
            b"--emit" => {
                emits.extend(value.as_bytes().split(|b| *b == b','));
                drop = true;
            }
            b"--print" | b"--explain" | b"-V" | b"-vV" | b"--version" | b"--help" | b"-h" => {
                asks = true;
            }
            // How messages look.
            b"--error-format" | b"--json" | b"--color" | b"--diagnostic-width" => drop = true,
            _ => match codegen(&word) {
                Some((b"extra-filename", value)) => {
                    extra = OsStr::from_bytes(value).to_owned();
                    drop = true;
                }
                Some((b"lto", value)) => {
                    let off =
                        [b"off".as_slice(), b"n", b"no", b"false", b"thin-local"].contains(&value);
                    parsed.lto = Some(OsString::from("-C lto")).filter(|_| !off);
                    drop = true;
                }
                Some((b"incremental" | b"codegen-units" | b"linker-plugin-lto", _))
                | Some((b"strip" | b"save-temps" | b"debuginfo", _)) => drop = true,
                _ => {}
            },
        }
        for dropped in parsed.dropped.iter_mut().skip(at).take(word.width) {
            *dropped = drop;
        }
        at += word.width;
    }
    let &[(source, _)] = parsed.sources.as_slice() else {
        return nothing(parsed);
    };
    let name = crate_name(arguments, source);
    let kinds: Vec<(&[u8], Option<&[u8]>)> = (emits.iter())
        .map(|emit| match emit.iter().position(|b| *b == b'=') {
            Some(equals) => (&emit[..equals], Some(&emit[equals + 1..])),
            None => (*emit, None),
        })
        .collect();
    let emitted = |kind: &[u8]| {
        kinds
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, path)| *path)
    };
    let is = |kind: &[u8]| types.contains(&kind);
    let makes_code = kinds.is_empty() || emitted(b"link").is_some() || emitted(b"obj").is_some();
    if asks || !makes_code || is_for_the_build(arguments) || name == "___" {
        return nothing(parsed);
    }
    let file = |start: &str, end: &str| {
        let mut file = OsString::from(start);
        file.push(&name);
        file.push(&extra);
        file.push(end);
        directory.join(file)
    };
    let named = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
    parsed.dependencies =
        emitted(b"dep-info").map(|path| Some(path.map_or_else(|| file("", ".d"), named)));
    let made = |kind: &[u8], default: PathBuf| match (emitted(kind).flatten(), &parsed.output) {
        (Some(path), _) => named(path),
        (None, Some(output)) => output.clone(),
        (None, None) => default,
    };
    (parsed.mode, parsed.output) = if emitted(b"obj").is_some() {
        (Mode::Compile, Some(made(b"obj", file("", ".o"))))
    } else if is(b"lib") || is(b"rlib") {
        (Mode::Compile, Some(made(b"link", file("lib", ".rlib"))))
    } else if is(b"staticlib") {
        (Mode::Compile, Some(made(b"link", file("lib", ".a"))))
    } else if is(b"cdylib") || is(b"dylib") {
        (Mode::Link, Some(made(b"link", file("lib", ".so"))))
    } else {
        (Mode::Link, Some(made(b"link", file("", ""))))
    };
    parsed
}

fn nothing(mut parsed: Parsed) -> Parsed {
    parsed.mode = Mode::Other;
    parsed.sources.clear();
    parsed
}

/// Is this the object of one of a crate's codegen units, by its name in an archive: `STEM.CRATE.HASH-cgu.N.rcgu.o`?
pub(crate) fn is_unit_of(member: &[u8], crate_name: &[u8]) -> bool {
    let Some(rest) = member.strip_suffix(b".rcgu.o") else {
        return false;
    };
    let Some(end) = memchr::memmem::rfind(rest, b"-cgu.") else {
        return false;
    };
    let mut parts = rest[..end].rsplit(|b| *b == b'.');
    let hash = parts.next().unwrap_or_default();
    hash.iter().all(u8::is_ascii_hexdigit) && parts.next() == Some(crate_name)
}

/// Is this a call that makes a program for the build itself: a procedural macro, cargo's build scripts?
pub(crate) fn is_for_the_build(arguments: &[OsString]) -> bool {
    let mut at = 1;
    let rust = arguments.first().is_some_and(|first| is_rustc(first));
    while let Some(word) = word(arguments, at).filter(|_| rust) {
        let value = word.value.as_bytes();
        let is = match word.option {
            b"--crate-type" => value == b"proc-macro",
            b"--crate-name" => value.starts_with(b"build_script_"),
            _ => false,
        };
        if is {
            return true;
        }
        at += word.width;
    }
    false
}

/// Where the static libraries may lie that a crate's library takes in: `-l static=NAME`, `-L native=DIRECTORY`.
pub(crate) fn static_libraries(arguments: &[OsString]) -> Vec<PathBuf> {
    let (mut directories, mut names): (Vec<&[u8]>, Vec<&[u8]>) = (Vec::new(), Vec::new());
    let mut at = 1;
    while let Some(word) = word(arguments, at) {
        let value = word.value.as_bytes();
        let equals = value.iter().position(|b| *b == b'=');
        let (kind, name) = match equals {
            Some(equals) => (&value[..equals], &value[equals + 1..]),
            None => (&[][..], value),
        };
        match word.option {
            b"-L" if kind != b"dependency" && kind != b"crate" => directories.push(name),
            b"-l" if kind == b"static" || kind.starts_with(b"static:") => {
                // NAME:RENAMED
                names.push(name.split(|b| *b == b':').next_back().unwrap_or(name));
            }
            _ => {}
        }
        at += word.width;
    }
    let mut libraries = Vec::new();
    for directory in directories {
        for name in &names {
            let file = [b"lib", *name, b".a"].concat();
            libraries.push(Path::new(OsStr::from_bytes(directory)).join(OsStr::from_bytes(&file)));
        }
    }
    libraries
}

/// The name of the crate that a call compiles.
pub(crate) fn crate_name(arguments: &[OsString], source: usize) -> OsString {
    let mut at = 1;
    while let Some(word) = word(arguments, at) {
        if word.option == b"--crate-name" {
            return word.value.to_owned();
        }
        at += word.width;
    }
    let stem = arguments.get(source).and_then(|s| Path::new(s).file_stem());
    let stem = stem.unwrap_or_default().as_bytes();
    let stem: Vec<u8> = (stem.iter())
        .map(|b| if *b == b'-' { b'_' } else { *b })
        .collect();
    OsStr::from_bytes(&stem).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::arguments::{Again, again};
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    const LIB: &str = "rustc --crate-name parts --edition=2021 parts/src/lib.rs --error-format=json --crate-type lib \
        --emit=dep-info,metadata,link -C opt-level=3 -C metadata=7d35 -C extra-filename=-ee41 --out-dir /t/deps -Cstrip=none \
        -L dependency=/t/deps";

    #[test]
    fn calls_of_cargo_are_understood() {
        let lto = |setting: &str| parse(&line(&format!("{LIB} {setting}"))).lto;
        assert_eq!(lto("-C lto=fat"), Some("-C lto".into()));
        assert_eq!(lto("-Clto"), Some("-C lto".into()));
        assert_eq!(lto("-Clto=thin -Clto=off"), None);
        let call = line(LIB);
        let parsed = parse(&call);
        assert_eq!(parsed.mode, Mode::Compile);
        let library = Path::new("/t/deps/libparts-ee41.rlib");
        assert_eq!(parsed.output.as_deref(), Some(library));
        let list = Some(Some("/t/deps/parts-ee41.d".into()));
        assert_eq!(parsed.dependencies, list);
        let [(at, Language::Rust)] = parsed.sources[..] else {
            panic!("{parsed:?}");
        };
        assert_eq!(crate_name(&call, at), "parts");
        let described = again(&call, &parsed, at, Again::Described, Path::new("x.o"));
        assert_eq!(
            described.join(OsStr::new(" ")),
            "rustc --crate-name parts --edition=2021 parts/src/lib.rs --crate-type lib -C opt-level=3 -C metadata=7d35 \
             -L dependency=/t/deps --emit=obj -Ccodegen-units=1 -Cdebuginfo=2 -Clto=off -o x.o"
        );
        let program = parse(&line(&LIB.replace("--crate-type lib", "--crate-type bin")));
        assert_eq!(program.mode, Mode::Link);
        assert_eq!(
            program.output.as_deref(),
            Some(Path::new("/t/deps/parts-ee41"))
        );
    }

    #[test]
    fn what_is_no_part_of_the_program() {
        for call in [
            "rustc -vV",
            "rustc - --crate-name ___ --print=file-names --crate-type bin",
            "rustc --crate-name build_script_build build.rs --crate-type bin --emit=dep-info,link",
            "rustc --crate-name derive src/lib.rs --crate-type proc-macro --emit=dep-info,link",
            "rustc --crate-name parts src/lib.rs --crate-type lib --emit=dep-info,metadata",
        ] {
            assert_eq!(parse(&line(call)).mode, Mode::Other, "{call}");
        }
        assert!(is_for_the_build(&line(
            "rustc build.rs --crate-name build_script_main"
        )));
        assert!(!is_for_the_build(&line(
            "gcc --crate-name build_script_main"
        )));
    }

    #[test]
    fn plain_calls() {
        for (call, mode, output) in [
            ("rustc main-program.rs", Mode::Link, "main_program"),
            ("rustc -O -o prog main.rs", Mode::Link, "prog"),
            ("rustc --crate-type=rlib a.rs", Mode::Compile, "liba.rlib"),
            ("rustc --crate-type staticlib a.rs", Mode::Compile, "liba.a"),
            (
                "rustc --crate-type=cdylib a.rs -oliba.so.1",
                Mode::Link,
                "liba.so.1",
            ),
            ("rustc --emit obj=out/a.o a.rs", Mode::Compile, "out/a.o"),
            ("rustc-1.85 --emit=obj a.rs", Mode::Compile, "a.o"),
        ] {
            let parsed = parse(&line(call));
            assert_eq!(parsed.mode, mode, "{call}");
            assert_eq!(parsed.output.as_deref(), Some(Path::new(output)), "{call}");
        }
        for name in ["rustc", "/x/rustc", "rustc-1.85"] {
            assert!(is_rustc(OsStr::new(name)), "{name}");
        }
        for name in ["rustc-wrapper", "rustdoc", "rust-lld", "rustcc"] {
            assert!(!is_rustc(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn libraries_within_libraries() {
        let call = "rustc a.rs --crate-type lib -L dependency=/t -L native=/o -L/p -lstatic=foo -l static:+whole-archive=bar -l z";
        let found = static_libraries(&line(call));
        let expected = ["/o/libfoo.a", "/o/libbar.a", "/p/libfoo.a", "/p/libbar.a"];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn objects_are_told_by_their_crate() {
        let member = b"parts-ee41.parts.f742f680a32bfea5-cgu.0.rcgu.o";
        assert!(is_unit_of(member, b"parts"));
        assert!(!is_unit_of(member, b"part"));
        assert!(is_unit_of(
            b"parts.f742f680a32bfea5-cgu.12.rcgu.o",
            b"parts"
        ));
        for member in ["lib.rmeta", "parts.o", "-cgu.rcgu.o", ""] {
            assert!(!is_unit_of(member.as_bytes(), b"parts"), "{member}");
        }
    }
}
