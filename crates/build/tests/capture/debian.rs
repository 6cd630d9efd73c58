use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicBool;

use livegraft_build::capture::{Capture, DebianSource, Error};

use super::builds::FILES;
use super::case::{Case, has};

const CONTROL: &str = "Source: prog\nMaintainer: A <a@b.c>\nBuild-Depends: debhelper-compat (= 13)\n\n\
    Package: prog\nArchitecture: any\nDescription: a program\n";
const CHANGELOG: &str = "prog (1.0) stable; urgency=low\n\n  * One.\n\n -- A <a@b.c>  Mon, 01 Jan 2024 00:00:00 +0000\n";
/// Notes what it compiles.
const MAKEFILE: &str = "PROG = prog
CFLAGS ?= -O2
CFLAGS += -Iinc
OBJECTS = main.o lib/one.o lib/two.o
all: $(PROG)
$(PROG): $(OBJECTS)
\t$(CC) $(LDFLAGS) -o $@ $(OBJECTS)
%.o: %.c
\techo $@ >>$(LOG)
\t$(CC) $(CFLAGS) -c $< -o $@
install: all
\tinstall -D $(PROG) $(DESTDIR)/usr/bin/prog
";

/// A package, unpacked.
struct Package {
    case: Case,
    source: DebianSource,
}

impl Package {
    fn new(rules: &str) -> Self {
        let case = Case::named("prog-1.0/source", FILES);
        let log = case.path("compiled");
        let makefile = format!("LOG = {}\n{MAKEFILE}", log.display());
        for (name, text) in [
            ("Makefile", &*makefile),
            ("debian/control", CONTROL),
            ("debian/changelog", CHANGELOG),
            ("debian/rules", rules),
        ] {
            let path = case.source(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(&path, text).expect("a file");
        }
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(case.source("debian/rules"), executable).expect("a mode");
        let source = DebianSource {
            name: "prog".into(),
            version: "1.0".into(),
            directory: case.request.source.clone(),
            installed: Vec::new(),
        };
        Self { case, source }
    }

    fn capture(&self) -> Result<Capture, Error> {
        let (diff, work) = (&self.case.request.diff, self.case.work());
        let nobody = AtomicBool::new(false);
        (self.source).capture(diff, Some(&work), &mut |_| (), &nobody)
    }

    /// Builds it with an edit of two.c; what of it was compiled by which build. Nothing is left beside the source.
    fn edited(&self, to: &str) -> (Capture, Vec<String>) {
        let log = self.case.path("compiled");
        let _ = fs::remove_file(&log);
        self.case.edit(&[("lib/two.c", "x * 3", to)]);
        let capture = self.capture().unwrap_or_else(|error| panic!("{error}"));
        let changed: Vec<_> = capture.pairs.iter().map(|pair| &pair.source).collect();
        assert_eq!(changed.len(), 1);
        assert!(changed[0].ends_with("two.c"), "{changed:?}");
        let compiled = fs::read_to_string(&log).unwrap_or_default();
        let beside = fs::read_dir(self.case.path("prog-1.0")).expect("a directory");
        let mut beside: Vec<_> = beside
            .map(|entry| entry.expect("one").file_name())
            .collect();
        beside.sort();
        assert_eq!(beside, ["compiles", "source"]);
        (capture, compiled.lines().map(str::to_owned).collect())
    }
}

const ALL: [&str; 3] = ["main.o", "lib/one.o", "lib/two.o"];

/// debhelper does all again that it has done, and make what has changed.
#[test]
fn a_second_build_by_debhelper_compiles_what_has_changed() {
    if !has(&["dpkg-buildpackage", "dh"]) {
        return;
    }
    let package = Package::new("#!/usr/bin/make -f\n%:\n\tdh $@\n");
    let (first, compiled) = package.edited("x * 5");
    assert!(!first.reused);
    assert_eq!(compiled, [&ALL[..], &["lib/two.o"]].concat());
    let flags = &first.pairs[0].call.arguments;
    assert!(flags.iter().any(|a| a == "-fstack-protector-strong"));
    let programs = &first.programs;
    assert!(
        programs
            .iter()
            .any(|program| program.path.ends_with("prog"))
    );
    drop(first);
    let (second, compiled) = package.edited("x * 7");
    assert!(second.reused);
    assert_eq!(compiled, ["lib/two.o"]);
}

/// What such rules skip they alone know.
#[test]
fn rules_with_stamps_begin_anew() {
    if !has(&["dpkg-buildpackage"]) {
        return;
    }
    let package = Package::new(
        "#!/usr/bin/make -f\nbuild build-arch: build-stamp\nbuild-stamp:\n\
         \tcase \"$$DEB_BUILD_OPTIONS\" in *nocheck*) ;; *) exit 1 ;; esac\n\
         \t$(MAKE)\n\ttouch $@\nclean:\n\trm -f build-stamp\nbinary binary-arch:\n\tfalse\n",
    );
    let (first, compiled) = package.edited("x * 5");
    assert_eq!(compiled, [ALL, ALL].concat());
    drop(first);
    let (second, compiled) = package.edited("x * 7");
    assert!(second.reused);
    assert_eq!(compiled, ALL);
}

/// A build that is part of the installation, by rules with debhelper and by such without, which put packages beside the source.
#[test]
fn what_is_compiled_when_it_is_installed() {
    if !has(&["dpkg-buildpackage", "dh"]) {
        return;
    }
    for (rules, again) in [
        ("%:\n\tdh $@\noverride_dh_auto_build:\n", &["lib/two.o"][..]),
        (
            "build build-arch:\nclean:\nbinary binary-arch:\n\t$(MAKE)\n\ttouch ../prog_1.0.deb\n",
            &ALL,
        ),
    ] {
        let package = Package::new(&format!("#!/usr/bin/make -f\n{rules}"));
        let (first, compiled) = package.edited("x * 5");
        assert_eq!(compiled, [&ALL, again].concat(), "{rules}");
        drop(first);
        let (second, compiled) = package.edited("x * 7");
        assert!(second.reused);
        assert_eq!(compiled, again, "{rules}");
    }
}

#[test]
fn rules_that_compile_nothing() {
    if !has(&["dpkg-buildpackage"]) {
        return;
    }
    let package = Package::new("#!/usr/bin/make -f\n%:\n\ttrue\n");
    package.case.edit(&[("lib/two.c", "x * 3", "x * 5")]);
    assert!(matches!(package.capture(), Err(Error::NoCalls)));
}
