//! A compiler driver's command line, as far as one must understand it to repeat it for one source file.
//!
//! gcc's and clang's, which agree in all that matters here; for rustc's see [`rustc`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::rustc;

/// What a call was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `-c`.
    Compile,
    /// To a program or library.
    Link,
    /// `-E`, `-S`, `-M`, `-fsyntax-only`, `--version`: makes no object.
    Other,
}

/// What a source file is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Language {
    /// C.
    C,
    /// C++.
    Cxx,
    /// Objective C or C++.
    Objective,
    /// Assembly, preprocessed or not.
    Assembly,
    /// Rust: the source is the root of a crate.
    Rust,
}

/// A command line, taken apart.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) mode: Mode,
    /// Index of each source file among the arguments, with its language.
    pub(crate) sources: Vec<(usize, Language)>,
    /// `-o`.
    pub(crate) output: Option<PathBuf>,
    /// The flag that asks for link-time optimisation, if it is in force.
    pub(crate) lto: Option<OsString>,
    /// The build system asks for a list of dependencies, in this file where it is named.
    pub(crate) dependencies: Option<Option<PathBuf>>,
    /// `-s`, or `-Wl,-s`: the linker leaves out the symbol table.
    pub(crate) stripped: bool,
    /// What is not to be repeated for one source file: outputs, other inputs, the mode, dependency lists.
    pub(crate) dropped: Vec<bool>,
}

impl Parsed {
    pub(crate) fn new(arguments: usize) -> Self {
        Self {
            mode: Mode::Link,
            sources: Vec::new(),
            output: None,
            lto: None,
            dependencies: None,
            stripped: false,
            dropped: vec![false; arguments],
        }
    }
}

/// Options whose value is the next argument.
const TAKE_VALUE: &[&str] = &[
    "-o",
    "-I",
    "-D",
    "-U",
    "-L",
    "-l",
    "-x",
    "-T",
    "-u",
    "-z",
    "-e",
    "-A",
    "-B",
    "-G",
    "-b",
    "-V",
    "-F",
    "-h",
    "-include",
    "-imacros",
    "-isystem",
    "-iquote",
    "-idirafter",
    "-isysroot",
    "-iprefix",
    "-iwithprefix",
    "-iwithprefixbefore",
    "-imultilib",
    "-imultiarch",
    "-iwithsysroot",
    "-cxx-isystem",
    "-include-pch",
    "-Xlinker",
    "-Xassembler",
    "-Xpreprocessor",
    "-Xclang",
    "-Xarch_host",
    "-mllvm",
    "-MF",
    "-MT",
    "-MQ",
    "-aux-info",
    "-arch",
    "-dumpbase",
    "-dumpbase-ext",
    "-dumpdir",
    "-target",
    "-gcc-toolchain",
    "-specs",
    "-wrapper",
    "-framework",
    "-rpath",
    "-soname",
    "--param",
    "--sysroot",
    "--specs",
    "--target",
    "--include",
    "--output",
    "--define-macro",
    "--include-directory",
];

/// Programs that run the compiler which their arguments name.
const LAUNCHERS: &[&str] = &["ccache", "distcc", "icecc", "sccache", "colorgcc"];

/// Is this the name of a compiler driver: `gcc`, `x86_64-linux-gnu-g++-12`, `clang-14`, `cc`, `rustc`?
pub(crate) fn is_compiler(program: &OsStr) -> bool {
    if rustc::is_rustc(program) {
        return true;
    }
    let name = base(program);
    let Ok(name) = std::str::from_utf8(name.as_bytes()) else {
        return false;
    };
    let numbered = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let name = match numbered.strip_suffix('-') {
        Some(rest) if numbered.len() < name.len() => rest,
        _ => name,
    };
    let tool = name.rsplit_once('-').map_or(name, |(_, tool)| tool);
    matches!(tool, "gcc" | "g++" | "cc" | "c++" | "clang" | "clang++")
}

/// Is this a program that runs compilers?
pub(crate) fn is_launcher(program: &OsStr) -> bool {
    let name = base(program);
    LAUNCHERS
        .iter()
        .any(|launcher| name == OsStr::new(launcher))
}

/// Is this a launcher, and of which position in the arguments is the compiler that it runs?
pub(crate) fn launched(arguments: &[OsString]) -> Option<usize> {
    if !is_launcher(arguments.first()?) {
        return None;
    }
    let place = arguments.iter().skip(1).position(|a| is_compiler(a))? + 1;
    // What stands between are the launcher's own settings.
    let own = |a: &OsString| a.as_bytes().contains(&b'=') || a.as_bytes().starts_with(b"-");
    arguments[1..place].iter().all(own).then_some(place)
}

fn base(path: &OsStr) -> &OsStr {
    Path::new(path).file_name().unwrap_or(path)
}

fn language(path: &Path) -> Option<Language> {
    Some(match path.extension()?.to_str()? {
        "c" | "i" => Language::C,
        "cc" | "cp" | "cpp" | "cxx" | "c++" | "C" | "CPP" | "ii" => Language::Cxx,
        "m" | "mi" | "mm" | "M" | "mii" => Language::Objective,
        "s" | "S" | "sx" => Language::Assembly,
        _ => return None,
    })
}

fn named_language(name: &[u8]) -> Option<Language> {
    Some(match name {
        b"c" | b"cpp-output" => Language::C,
        b"c++" | b"c++-cpp-output" => Language::Cxx,
        name if name.starts_with(b"objective") => Language::Objective,
        name if name.starts_with(b"assembler") => Language::Assembly,
        _ => return None,
    })
}

/// Takes a command line apart. `arguments[0]` is the compiler.
pub(crate) fn parse(arguments: &[OsString]) -> Parsed {
    if (arguments.first()).is_some_and(|compiler| rustc::is_rustc(compiler)) {
        return rustc::parse(arguments);
    }
    let mut parsed = Parsed::new(arguments.len());
    // -x: `Some(None)` is a language that we do not compile (a header, Fortran).
    let mut forced: Option<Option<Language>> = None;
    let mut at = 1;
    while let Some(argument) = arguments.get(at) {
        let bytes = argument.as_bytes();
        let value = arguments.get(at + 1);
        let takes = TAKE_VALUE.iter().any(|o| o.as_bytes() == bytes);
        let width = if takes { 2 } else { 1 };
        let mut drop = false;
        match bytes {
            b"-o" | b"--output" => {
                parsed.output = value.map(PathBuf::from);
                drop = true;
            }
            b"-c" => {
                if parsed.mode == Mode::Link {
                    parsed.mode = Mode::Compile;
                }
                drop = true;
            }
            b"-E" | b"-S" | b"-M" | b"-MM" | b"-fsyntax-only" | b"--version" | b"-###"
            | b"-dumpversion" => {
                parsed.mode = Mode::Other;
            }
            b"-MD" | b"-MMD" => {
                parsed.dependencies.get_or_insert(None);
                drop = true;
            }
            b"-MF" => {
                parsed.dependencies = Some(value.map(PathBuf::from));
                drop = true;
            }
            b"-MT" | b"-MQ" | b"-MP" | b"-MG" | b"-l" => drop = true,
            b"-x" => {
                forced = value
                    .map(|v| named_language(v.as_bytes()))
                    .filter(|_| value.is_none_or(|v| v != "none"))
            }
            b"-s" => parsed.stripped = true,
            b"-flto" => parsed.lto = Some(argument.clone()),
            b"-fno-lto" => parsed.lto = None,
            _ if takes => {}
            _ if bytes.starts_with(b"-o") && !bytes.starts_with(b"-obj") => {
                parsed.output = Some(PathBuf::from(OsStr::from_bytes(&bytes[2..])));
                drop = true;
            }
            _ if bytes.starts_with(b"-x") => forced = Some(named_language(&bytes[2..])),
            _ if bytes.starts_with(b"-flto=") => parsed.lto = Some(argument.clone()),
            _ if bytes.starts_with(b"-Wp,-M") => {
                let file = bytes.split(|b| *b == b',').nth(2);
                parsed.dependencies = Some(file.map(|f| PathBuf::from(OsStr::from_bytes(f))));
                drop = true;
            }
            _ if bytes.starts_with(b"-MF") => {
                parsed.dependencies = Some(Some(PathBuf::from(OsStr::from_bytes(&bytes[3..]))));
                drop = true;
            }
            _ if [
                b"-MT".as_slice(),
                b"-MQ",
                b"-save-temps",
                b"--save-temps",
                b"-l",
            ]
            .iter()
            .any(|start| bytes.starts_with(start)) =>
            {
                drop = true;
            }
            _ if bytes.starts_with(b"-Wl,") => {
                parsed.stripped |= (bytes.split(|b| *b == b','))
                    .any(|part| part == b"-s" || part == b"--strip-all");
            }
            _ if bytes.starts_with(b"-") => {}
            _ => {
                let found = forced.unwrap_or_else(|| language(Path::new(argument)));
                if let Some(language) = found {
                    parsed.sources.push((at, language));
                }
                drop = true;
            }
        }
        if drop {
            for dropped in parsed.dropped.iter_mut().skip(at).take(width) {
                *dropped = true;
            }
        }
        at += width;
    }
    parsed
}

/// What a call is to be repeated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// One object per function and datum, for a comparison.
    Sections,
    /// The very object that the build makes.
    Exact,
    /// What the compiler sees once the preprocessor is done, which leaves `__LINE__` as it is.
    Preprocess,
    /// The files that the source includes, as a make rule.
    Dependencies,
    /// One object with debug information (Rust).
    Described,
}

/// The command line that makes again, for the source file at `source` alone, what `again` says.
pub(crate) fn again(
    arguments: &[OsString],
    parsed: &Parsed,
    source: usize,
    again: Again,
    output: &Path,
) -> Vec<OsString> {
    let mut command = vec![arguments[0].clone()];
    let mut seeded = false;
    for (at, argument) in arguments.iter().enumerate().skip(1) {
        if at == source || !parsed.dropped.get(at).copied().unwrap_or(true) {
            let bytes = argument.as_bytes();
            if again == Again::Sections && moves_debug_information(bytes) {
                continue;
            }
            seeded |= bytes.starts_with(b"-frandom-seed");
            command.push(argument.clone());
        }
    }
    let rust = rustc::is_rustc(&arguments[0]);
    let more: &[&str] = match again {
        Again::Dependencies if rust => &["--emit=dep-info"],
        Again::Described => &[
            "--emit=obj",
            "-Ccodegen-units=1",
            "-Cdebuginfo=2",
            "-Clto=off",
        ],
        // Debug information shows structs that changed. It changes no code.
        Again::Sections => &[
            "-ffunction-sections",
            "-fdata-sections",
            "-g",
            "-gz=none",
            "-w",
            "-c",
        ],
        Again::Exact => &["-c"],
        Again::Preprocess => &["-U__LINE__", "-w", "-E"],
        Again::Dependencies => &["-M"],
    };
    command.extend(more.iter().map(OsString::from));
    if again == Again::Sections && !seeded {
        // Names that are made of a random number must be the same in both objects.
        command.push("-frandom-seed=livegraft".into());
    }
    command.push("-o".into());
    command.push(output.into());
    command
}

/// Puts debug information somewhere else than into one section of the object, or compresses it.
fn moves_debug_information(argument: &[u8]) -> bool {
    argument.starts_with(b"-gsplit-dwarf")
        || argument == b"-fdebug-types-section"
        || argument.starts_with(b"-Wa,--compress-debug-sections")
}

/// Replaces each `@FILE` by what the file holds, as gcc, clang and binutils do: words divided by white space, with
/// quotes and backslashes; or as rustc does, a word on each line. A file that can't be read is left as it stands, which is
/// what the compilers do.
pub(crate) fn expand(
    arguments: Vec<OsString>,
    read: &dyn Fn(&Path) -> Option<Vec<u8>>,
) -> Vec<OsString> {
    /// More files than this within files are a file that names itself.
    const DEPTH: usize = 16;
    fn into(
        out: &mut Vec<OsString>,
        arguments: Vec<OsString>,
        read: &dyn Fn(&Path) -> Option<Vec<u8>>,
        split: fn(&[u8]) -> Vec<OsString>,
        depth: usize,
    ) {
        for argument in arguments {
            let file = (argument.as_bytes().strip_prefix(b"@")).filter(|_| depth < DEPTH);
            match file.and_then(|file| read(Path::new(OsStr::from_bytes(file)))) {
                Some(text) => into(out, split(&text), read, split, depth + 1),
                None => out.push(argument),
            }
        }
    }
    let mut out = Vec::with_capacity(arguments.len());
    let lines = arguments
        .first()
        .is_some_and(|first| rustc::is_rustc(first));
    let split = if lines { self::lines } else { words };
    into(&mut out, arguments, read, split, 0);
    out
}

fn lines(text: &[u8]) -> Vec<OsString> {
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| OsStr::from_bytes(line).to_owned())
        .collect()
}

fn words(text: &[u8]) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, quote) {
            (b'\\', _) => word.get_or_insert_default().extend(bytes.next()),
            (b'"' | b'\'', None) => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (_, Some(open)) if open == byte => quote = None,
            (_, None) if byte.is_ascii_whitespace() => {
                words.extend(word.take().map(|w| OsStr::from_bytes(&w).to_owned()));
            }
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word.map(|w| OsStr::from_bytes(&w).to_owned()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        words(text.as_bytes())
    }

    fn text(arguments: &[OsString]) -> String {
        let parts: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
        parts.join(" ")
    }

    #[test]
    fn compilers_are_known_by_name() {
        for name in [
            "gcc",
            "/usr/bin/cc",
            "g++-12",
            "x86_64-linux-gnu-gcc-12",
            "clang++-14",
            "musl-gcc",
            "gcc-4.9",
            "x86_64-pc-linux-gnu-c++",
        ] {
            assert!(is_compiler(OsStr::new(name)), "{name}");
        }
        for name in [
            "gcc-ar",
            "gcc-ar-12",
            "cc1",
            "ccache",
            "clang-format-14",
            "gccgo",
            "distcc",
            "-c",
            "lcc.c",
            "12",
        ] {
            assert!(!is_compiler(OsStr::new(name)), "{name}");
        }
        assert_eq!(launched(&line("/usr/bin/ccache gcc -c a.c")), Some(1));
        assert_eq!(launched(&line("ccache debug=true clang -c a.c")), Some(2));
        assert_eq!(launched(&line("ccache -s")), None);
        assert_eq!(launched(&line("gcc ccache gcc")), None);
    }

    #[test]
    fn a_call_is_repeated_for_one_source() {
        let call = line("gcc -O2 -DX=1 -I inc -MMD -MF a.d -c -o out/a.o a.c -g");
        let parsed = parse(&call);
        assert_eq!(parsed.mode, Mode::Compile);
        assert_eq!(parsed.output.as_deref(), Some(Path::new("out/a.o")));
        assert_eq!(parsed.dependencies, Some(Some("a.d".into())));
        let [(at, Language::C)] = parsed.sources[..] else {
            panic!("{parsed:?}");
        };
        assert_eq!(
            text(&again(
                &call,
                &parsed,
                at,
                Again::Sections,
                Path::new("x.o")
            )),
            "gcc -O2 -DX=1 -I inc a.c -g -ffunction-sections -fdata-sections -g -gz=none -w -c -frandom-seed=livegraft -o x.o"
        );
        assert_eq!(
            text(&again(
                &call,
                &parsed,
                at,
                Again::Preprocess,
                Path::new("x.i")
            )),
            "gcc -O2 -DX=1 -I inc a.c -g -U__LINE__ -w -E -o x.i"
        );
    }

    #[test]
    fn debug_information_is_where_the_comparison_reads_it() {
        let call = line("cc -g0 -gsplit-dwarf -gz -fdebug-types-section -c a.c");
        let again = again(&call, &parse(&call), 6, Again::Sections, Path::new("x.o"));
        assert_eq!(
            text(&again),
            "cc -g0 -gz a.c -ffunction-sections -fdata-sections -g -gz=none -w -c -frandom-seed=livegraft -o x.o"
        );
    }

    #[test]
    fn several_sources_and_a_link() {
        let call =
            line("g++ -flto=auto -fno-lto -Wl,-z,now,-s one.cc two.S lib.a -lm -l dl -oprog");
        let parsed = parse(&call);
        assert_eq!(parsed.mode, Mode::Link);
        assert!(parsed.stripped);
        assert_eq!(parsed.lto, None);
        assert_eq!(parsed.output.as_deref(), Some(Path::new("prog")));
        let languages: Vec<_> = parsed
            .sources
            .iter()
            .map(|(_, language)| *language)
            .collect();
        assert_eq!(languages, [Language::Cxx, Language::Assembly]);
        assert_eq!(
            text(&again(
                &call,
                &parsed,
                parsed.sources[0].0,
                Again::Exact,
                Path::new("1.o")
            )),
            "g++ -flto=auto -fno-lto -Wl,-z,now,-s one.cc -c -o 1.o"
        );
    }

    #[test]
    fn languages_can_be_forced() {
        let parsed = parse(&line("gcc -x c++ -c a.c -x none b.c -xassembler c.txt"));
        let languages: Vec<_> = parsed
            .sources
            .iter()
            .map(|(_, language)| *language)
            .collect();
        assert_eq!(languages, [Language::Cxx, Language::C, Language::Assembly]);
        assert!(parse(&line("gcc -x c-header -c a.h")).sources.is_empty());
        assert_eq!(parse(&line("gcc -E -c a.c")).mode, Mode::Other);
        assert_eq!(parse(&line("gcc -c a.c -flto")).lto, Some("-flto".into()));
        // A value that is missing, a lone dash, nothing at all.
        assert_eq!(parse(&line("gcc -c -o")).output, None);
        assert!(parse(&line("gcc -")).sources.is_empty());
        assert!(parse(&[]).sources.is_empty());
    }

    #[test]
    fn response_files_are_read_where_they_stand() {
        let read = |path: &Path| match path.to_str()? {
            "a" => Some(b"-DX='a b' -I\"c d\"\n@b \\\"q".to_vec()),
            "b" => Some(b"one.c @loop".to_vec()),
            "loop" => Some(b"@loop".to_vec()),
            _ => None,
        };
        let expanded = expand(line("gcc @a @none -c"), &read);
        assert_eq!(
            expanded,
            [
                "gcc", "-DX=a b", "-Ic d", "one.c", "@loop", "\"q", "@none", "-c"
            ]
        );
    }
}
