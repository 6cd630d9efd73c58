use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use livegraft_build::capture::{Language, Likeness};

use super::case::{Case, functions, has, shell};

pub const MAIN: &str = "#include \"one.h\"\n#include \"two.h\"\nint main(int c, char **v) { (void)v; return one(c) + two(c); }\n";
pub const ONE: &str = "#include \"one.h\"\nint one(int x) { return x + ONE; }\n";
pub const TWO: &str = "#include \"two.h\"\nstatic const char *where = __FILE__;\nint two(int x) { return x * 3 + where[0]; }\n";
pub const FILES: &[(&str, &str)] = &[
    ("main.c", MAIN),
    ("lib/one.c", ONE),
    ("lib/two.c", TWO),
    ("inc/one.h", "#define ONE 1\nint one(int);\n"),
    ("inc/two.h", "int two(int);\n"),
    ("README", "read me\n"),
];

/// With all dependencies but main.c's.
const MAKEFILE: &str = "CFLAGS = -O2 -g -Iinc
prog: main.o lib/one.o lib/two.o
\t$(CC) -o $@ $^
\tcp $@ unstripped-$@
\tstrip $@
main.o: main.c
lib/one.o: lib/one.c inc/one.h
lib/two.o: lib/two.c inc/two.h
";

fn with(files: &[(&'static str, &'static str)]) -> Case {
    Case::new(&[FILES, files].concat())
}

fn made(files: &[(&'static str, &'static str)]) -> Case {
    with(&[&[("Makefile", MAKEFILE)], files].concat()).command("make")
}

#[test]
fn make_and_make_again() {
    let case = made(&[]);
    case.edit(&[("lib/two.c", "x * 3", "x * 5")]);
    let capture = case.pairs(&["lib/two.c"]);
    assert!(!capture.reused);
    let pair = &capture.pairs[0];
    assert_eq!(pair.language, Language::C);
    assert!(pair.call.arguments.iter().any(|a| a == "-O2"));
    assert!(functions(pair.original.as_ref().expect("an object")).contains_key("two"));

    // The objects are those that the user's own build makes, paths in debug information included.
    let user = case.path("user");
    shell(
        &case.path("."),
        "cp -a src saved && cd src && make && mv ../src ../user && mv ../saved ../src",
    );
    assert_eq!(capture.objects.len(), 3);
    for name in ["main.o", "lib/one.o", "lib/two.o"] {
        let own = capture
            .objects
            .iter()
            .find(|object| object.ends_with(name))
            .expect("an object");
        assert!(
            fs::read(own).expect("a file") == fs::read(user.join(name)).expect("a file"),
            "{name}"
        );
    }

    // What was linked is there with its symbols, though the build has stripped it.
    let (program, likeness) = capture.program(&user.join("prog")).expect("a program");
    assert_eq!(likeness, Likeness::BuildId);
    assert_eq!(program.path, case.source("prog"));
    assert!(
        fs::read(&program.file).expect("a file")
            == fs::read(user.join("unstripped-prog")).expect("a file")
    );
    assert!(
        capture
            .objects
            .iter()
            .all(|object| program.objects.contains(object))
    );
    drop(capture);

    // Another diff: nothing but its file is compiled. The tree says so: the build's own times are in it.
    case.edit(&[
        ("lib/one.c", "x + ONE", "x - ONE"),
        ("main.c", "+ two", "- two"),
    ]);
    let capture = case.pairs(&["lib/one.c", "main.c"]);
    assert!(capture.reused);
    drop(capture);

    // Another command is another build.
    let case = case.command("make CFLAGS='-O1 -Iinc'");
    assert!(!case.pairs(&["lib/one.c", "main.c"]).reused);
    // So is another source.
    fs::write(case.source("main.c"), MAIN.replace("(void)v", "(void)*v")).expect("a file");
    assert!(
        !case
            .edit(&[("lib/one.c", "x + ONE", "x - ONE")])
            .pairs(&["lib/one.c"])
            .reused
    );
}

#[test]
fn a_changed_header_reaches_who_includes_it() {
    // make does not know that main.c includes it, and goes by times for the other.
    let case = made(&[(
        "lib/three.c",
        "#include \"../inc/one.h\"\nint three(void) { return 3; }\n",
    )]);
    case.edit(&[("inc/one.h", "ONE 1", "ONE 7")]);
    case.pairs(&["lib/one.c"]);
    fs::write(
        case.source("main.c"),
        MAIN.replace("one(c)", "one(c) * ONE"),
    )
    .expect("a file");
    case.edit(&[("inc/one.h", "ONE 1", "ONE 7")])
        .pairs(&["lib/one.c", "main.c"]);
    // With lists of dependencies that nobody reads.
    let case = case.command("make CFLAGS='-O2 -Iinc -MMD'");
    case.pairs(&["lib/one.c", "main.c"]);
}

#[test]
fn all_in_one_call_and_everything_again() {
    let build = "gcc -O2 -Iinc main.c lib/one.c lib/two.c -o prog && strip prog";
    let case = with(&[]).command(build);
    case.edit(&[("lib/two.c", "x * 3", "x * 5")]);
    let capture = case.pairs(&["lib/two.c"]);
    assert_eq!(capture.objects.len(), 3);
    let (program, _) = capture
        .program(&capture.programs[0].file)
        .expect("a program");
    assert!(
        capture
            .objects
            .iter()
            .all(|object| program.objects.contains(object)),
        "{program:?}"
    );
    drop(capture);
    // A command that can't be given twice.
    let case = case.command("mkdir out && gcc -O2 -Iinc -c lib/one.c -o out/one.o && gcc -O2 -Iinc -c lib/two.c -o out/two.o");
    case.pairs(&["lib/two.c"]);
}

#[test]
fn flags_and_files_that_come_and_go() {
    let case = made(&[]);
    case.edit_by(
        "sed -i 's/-O2/-O2 -DONE=9/; s/two\\.\\([oc]\\)/new.\\1/g; s/one.h$/& Makefile/' Makefile; mv lib/two.c lib/new.c; sed -i 's/^#define/#undef ONE\\n&/' inc/one.h",
    );
    let capture = case.capture().unwrap_or_else(|error| panic!("{error}"));
    let mut found: Vec<_> = (capture.pairs.iter())
        .map(|p| {
            (
                p.source.to_str().expect("text"),
                p.original.is_some(),
                p.patched.is_some(),
            )
        })
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("lib/new.c", false, true),
            ("lib/one.c", true, true),
            ("lib/two.c", true, false),
            ("main.c", true, true),
        ]
    );
}

const CMAKE: &str = "cmake_minimum_required(VERSION 3.16)
project(prog C CXX)
include_directories(inc)
add_library(one STATIC lib/one.c)
add_library(two SHARED lib/two.c)
add_executable(prog main.c more.cc)
target_link_libraries(prog one two)
";
const MORE: &str = "#include \"one.h\"\nint more(int x) { return x + ONE; }\n";

#[test]
fn cmake_within_the_source_and_outside() {
    if !has(&["cmake", "ninja"]) {
        return;
    }
    let files = &[("CMakeLists.txt", CMAKE), ("more.cc", MORE)];
    let mut case = with(files)
        .command("mkdir -p b && cd b && cmake -DCMAKE_BUILD_TYPE=Release .. && make -j2");
    case.edit(&[("inc/one.h", "ONE 1", "ONE 7")]);
    let capture = case.pairs(&["lib/one.c", "more.cc"]);
    let program = capture
        .programs
        .iter()
        .find(|p| p.path.ends_with("b/prog"))
        .expect("a program");
    assert!(
        program
            .objects
            .iter()
            .any(|object| object.ends_with("one.c.o")),
        "{program:?}"
    );
    assert!(
        capture
            .programs
            .iter()
            .any(|p| p.path.ends_with("b/libtwo.so"))
    );
    drop(capture);

    let outside = case.path("outside");
    fs::create_dir(&outside).expect("a directory");
    case = case.command("cmake -G Ninja -S . -B ../outside && ninja -C ../outside");
    case.request.build_dirs = vec![outside.clone()];
    case.pairs(&["lib/one.c", "more.cc"]);
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 0);
    case.request.plain = true;
    case = case.command(&format!(
        "cmake -G Ninja -S . -B {0} && ninja -C {0}",
        outside.display()
    ));
    case.request.plain = true;
    case.pairs(&["lib/one.c", "more.cc"]);
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 0);
}

#[test]
fn autotools_and_libtool() {
    if !has(&["autoreconf", "libtoolize"]) {
        return;
    }
    let case = with(&[
        ("configure.ac", "AC_INIT([prog], [1])\nAM_INIT_AUTOMAKE([foreign subdir-objects])\nAM_PROG_AR\nLT_INIT\nAC_PROG_CC\nAC_CONFIG_FILES([Makefile])\nAC_OUTPUT\n"),
        ("Makefile.am", "AM_CPPFLAGS = -I$(srcdir)/inc\nlib_LTLIBRARIES = libboth.la\nlibboth_la_SOURCES = lib/one.c lib/two.c\nbin_PROGRAMS = prog\nprog_SOURCES = main.c\nprog_LDADD = libboth.la\n"),
    ])
    .command("[ -e configure ] || autoreconf -i; mkdir -p out; cd out; [ -e Makefile ] || ../configure -q; make");
    case.edit(&[("lib/two.c", "x * 3", "x * 5")]);
    // libtool compiles twice, for the shared library and for the archive.
    let capture = case.pairs(&["lib/two.c", "lib/two.c"]);
    let built: Vec<_> = capture
        .pairs
        .iter()
        .filter_map(|pair| pair.built.as_ref())
        .collect();
    assert!(
        built[0].ends_with("lib/.libs/two.o") || built[1].ends_with("lib/.libs/two.o"),
        "{built:?}"
    );
    let library = capture
        .programs
        .iter()
        .find(|p| p.path.to_string_lossy().contains("libboth.so"))
        .expect("a library");
    assert!(
        library
            .objects
            .iter()
            .any(|object| object.ends_with("lib/.libs/two.o")),
        "{library:?}"
    );
    assert!(
        !capture
            .programs
            .iter()
            .any(|p| p.path.to_string_lossy().contains("conftest"))
    );
}

#[test]
fn meson() {
    if !has(&["meson", "ninja"]) {
        return;
    }
    let case = with(&[("meson.build", "project('prog', 'c')\nexecutable('prog', 'main.c', 'lib/one.c', 'lib/two.c', include_directories: 'inc')\n")])
        .command("[ -e out ] || meson setup out; ninja -C out");
    case.edit(&[("inc/one.h", "ONE 1", "ONE 7")]);
    case.pairs(&["lib/one.c"]);
}

#[test]
fn ccache_hits_are_calls() {
    if !has(&["ccache"]) {
        return;
    }
    let case = made(&[]);
    let cache = case.path("cache");
    let build = format!(
        "export CCACHE_DIR={}; make CC='ccache gcc'; PATH=/usr/lib/ccache:$PATH make -B CC=gcc",
        cache.display()
    );
    let case = case.command(&build);
    case.edit(&[("lib/two.c", "x * 3", "x * 5")])
        .pairs(&["lib/two.c"]);
    // All hits now; the first build is forgotten.
    fs::write(case.source("README"), "again").expect("a file");
    assert!(!case.pairs(&["lib/two.c"]).reused);
}

#[test]
fn any_compiler_by_any_path() {
    let flags = "-O1 -Iinc -c lib/two.c";
    let mut compilers = vec![
        format!("/usr/bin/gcc {flags}"),
        format!("x86_64-linux-gnu-gcc {flags}"),
        format!("env -i /usr/bin/cc {flags}"),
    ];
    compilers.push(format!(
        "echo '{flags} -DX=\"a b\"' > 'r s p'; gcc '@r s p'; rm 'r s p'"
    ));
    for (tool, line) in [
        ("clang", "clang"),
        ("busybox", "busybox sh -c"),
        ("musl-gcc", "musl-gcc"),
    ] {
        if has(&[tool]) {
            let quoted = line
                .ends_with("-c")
                .then_some("gcc ")
                .map_or(flags.to_owned(), |gcc| format!("'{gcc}{flags}'"));
            compilers.push(format!("{line} {quoted}"));
        }
    }
    for line in compilers {
        let case = with(&[]).command(&line);
        case.edit(&[("lib/two.c", "x * 3", "x * 5")]);
        let capture = case.pairs(&["lib/two.c"]);
        assert!(
            capture.pairs[0]
                .built
                .as_ref()
                .is_some_and(|built| built.ends_with("two.o")),
            "{line}"
        );
    }
}

#[test]
fn a_path_with_spaces_and_a_link_to_it() {
    let mut case = Case::named("a tree ü", &[FILES, &[("Makefile", MAKEFILE)]].concat())
        .command("make CFLAGS=\"-O2 -I'$PWD/inc'\"");
    case.edit(&[("lib/one.c", "x + ONE", "x - ONE")])
        .pairs(&["lib/one.c"]);
    let link = case.path("link");
    std::os::unix::fs::symlink(&case.request.source, &link).expect("a link");
    case = case.command(&format!(
        "cd {0} && gcc -O2 -I{0}/inc -c {0}/lib/one.c -o {0}/one.o",
        link.display()
    ));
    case.request.source = link;
    let capture = case.pairs(&["lib/one.c"]);
    assert_eq!(capture.objects.len(), 1);
}

/// Where the build copies its sources once, what it has copied is not what the diff has changed.
#[test]
fn a_build_that_copies_its_sources() {
    let copying = "CFLAGS = -O2 -Iinc
prog: copied
\t$(CC) $(CFLAGS) -c copy/one.c -o one.o
\t$(CC) $(CFLAGS) -c copy/two.c -o two.o
copied:
\tcp -r lib copy
\ttouch copied
";
    let case = with(&[("Makefile", copying)]).command("make");
    case.edit(&[("lib/two.c", "x * 3", "x * 5")])
        .pairs(&["copy/two.c"]);
    // A header that is not copied, and its readers that are.
    case.edit(&[("inc/one.h", "ONE 1", "ONE 7")])
        .pairs(&["copy/one.c"]);
}

/// Runs `as_another` below as nobody, who has no mount namespaces of his own but those of a user namespace.
#[test]
fn without_privileges_and_a_read_only_source() {
    if !has(&["setpriv"]) || !rustix::process::geteuid().is_root() {
        return;
    }
    for plain in [false, true] {
        let case = made(&[]);
        case.edit(&[("lib/two.c", "x * 3", "x * 5")]);
        shell(&case.path("."), "chmod -R a-w,a+rX src; chown nobody work");
        let program = std::env::current_exe().expect("this program");
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program)
            .args(["--exact", "builds::as_another", "--ignored", "--nocapture"])
            .env("CASE", case.path("."))
            .env("CASE_PLAIN", if plain { "1" } else { "" })
            .env("TMPDIR", case.work())
            .output()
            .expect("setpriv");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        shell(&case.path("."), "chmod -R u+w src");
    }
}

#[test]
#[ignore = "started by another test"]
fn as_another() {
    let Some(directory) = std::env::var_os("CASE") else {
        return;
    };
    let directory = Path::new(&directory);
    let mut case = Case::new(&[]).command("make");
    case.request.source = directory.join("src");
    case.request.diff = directory.join("fix.diff");
    case.request.work = Some(directory.join("work"));
    case.request.plain = std::env::var_os("CASE_PLAIN").is_some_and(|plain| plain == "1");
    assert!(
        fs::write(case.source("x"), "").is_err(),
        "the source is read-only"
    );
    let capture = case.pairs(&["lib/two.c"]);
    assert!(!capture.reused);
    assert_eq!(
        capture.seen == fs::canonicalize(&case.request.source).expect("a path"),
        !case.request.plain
    );
    drop(capture);
    assert!(case.pairs(&["lib/two.c"]).reused);
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o755));
}

/// Lines that move are no change, whatever code makes of its line: an argument of a function that is inlined, a string, a
/// state, a name. Where the fix is they move within all that a compiler may read a line in.
#[test]
fn lines_that_move() {
    const CODE: &str = "#include \"one.h\"
#define TEXT(x) #x
#define AT(line) \"at \" TEXT(line)
#define HERE AT(__LINE__)
#define LONG(x) \\
\tdo { \\
\t\tnote(__FILE__, __LINE__); \\
\t} while (0)
#define NAMED_(line) name_##line
#define NAMED(line) NAMED_(line)
extern const char *volatile said;
void note(const char *, int);
static inline int inlined(int x, int line) { if (x > 3) note(__FILE__, line); return x * line; }
#if 0
zero 'one
#elif 1
int in_branch(int x) { return inlined(x, __LINE__); }
#else
#error \"two
#endif
/* a comment that
   takes lines */
int argument(int x) { return inlined(x + 1, __LINE__); }
int state(int x, unsigned short *s) { switch (*s) { case 0: *s = __LINE__; return x;
\tcase __LINE__ - 1: return x + 2; }
\treturn 0; }
void string(void) { said = HERE; }
int NAMED(__LINE__)(int x) { return x + 9; }
void several(int x) {
\tLONG(
\t\tx
\t);
}
int builtin(void) { return __builtin_LINE(); }
int fixed(int x) {
\treturn x * 3 + HEADER;
}
int below(int x) { return inlined(x + 2, __LINE__) + header(x); }
";
    const HEADER: &str = "#ifndef H\n#define H\n#define HEADER 1\nvoid note(const char *, int);\nstatic inline int header(int x) { if (x > 7) note(\"h\", __LINE__); return x; }\n#endif\n";
    for compiler in ["gcc", "clang", "g++"] {
        if !has(&[compiler]) {
            continue;
        }
        let language = if compiler == "g++" {
            ""
        } else {
            "-x c -std=gnu99"
        };
        let case = Case::new(&[("code.c", CODE), ("same.c", CODE), ("one.h", HEADER)]).command(
            &format!("{compiler} -O2 -Wall -Wextra -pedantic {language} -c code.c; {compiler} -O2 {language} -c same.c; {compiler} -shared -o lib.so code.o same.o || true"),
        );
        // After these lines others are put, of which one is in each thing that takes several lines.
        case.edit(&[(
            "one.h",
            "#define HEADER 1\n",
            "#define HEADER 1\n/* more */\n\n",
        )]);
        case.edit_by(
            "sed -i -e '1a /* \\n new */' -e 's/^zero .*/&\\nanother/' -e 's/^   takes lines/ more\\n lines\\n&/' \
             -e 's/^\\tdo { /&\\\\\\n\\t\\t; /' -e '/^extern const/d' -e 's/^void note/extern const char *volatile said;\\n&/' \
             -e 's/x \\* 3/x * 5/' code.c; \
             sed -i 's/^#define HEADER 1/&\\n\\n\\/\\/ more/' one.h",
        );
        let capture = case.capture().unwrap_or_else(|error| panic!("{error}"));
        let pairs: Vec<_> = capture.pairs.iter().map(|p| p.source.clone()).collect();
        assert_eq!(
            pairs,
            [Path::new("code.c")],
            "{compiler}: same.c has other lines only"
        );
        let [old, new] = [&capture.pairs[0].original, &capture.pairs[0].patched]
            .map(|object| functions(object.as_ref().expect("an object")));
        let differ: Vec<_> = old
            .keys()
            .filter(|name| old.get(*name) != new.get(*name))
            .collect();
        assert!(old.len() >= 9, "{old:?}");
        let known = if compiler == "g++" {
            "_Z5fixedi"
        } else {
            "fixed"
        };
        assert_eq!(differ, [known], "{compiler}");
    }
}
