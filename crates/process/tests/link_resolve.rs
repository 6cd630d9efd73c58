//! Objects of running programs and the meaning of symbols in them, beside what the program and binutils say.

mod link_support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use link_support::{Running, compile, programs, symbol, unpacked};
use livegraft_process::link::{ResolveError, Resolver, Value};
use livegraft_process::object::{ObjectError, Objects, read_mappings};

fn library(dir: &Path, name: &str, source: &str) {
    let source = programs().join(source);
    let soname = format!("-Wl,-soname,{name}");
    let args = [
        "-O2",
        "-fPIC",
        "-shared",
        &soname,
        "-Wl,--build-id",
        "-o",
        name,
    ];
    assert!(compile(
        dir,
        "gcc",
        &[&args[..], &[source.to_str().unwrap()]].concat()
    ));
}

fn host(dir: &Path, flags: &[&str]) {
    library(dir, "liblinktest.so.1", "library.c");
    let (host, twin) = (programs().join("host.c"), programs().join("twin.c"));
    let mut args = vec!["-O2", "-pthread", "-Wl,--build-id", "-o", "host"];
    args.extend([host.to_str().unwrap(), twin.to_str().unwrap()]);
    args.extend(["./liblinktest.so.1", "-Wl,-rpath,$ORIGIN", "-lm"]);
    args.extend(flags);
    assert!(compile(dir, "gcc", &args));
}

fn address(value: Value) -> u64 {
    match value {
        Value::Address(avma) => avma,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_that_was_deleted_and_replaced_is_read_as_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    let running = Running::start(dir.path(), "host", &[]);
    let before = running.objects();
    std::fs::remove_file(dir.path().join("host")).unwrap();
    std::fs::remove_file(dir.path().join("liblinktest.so.1")).unwrap();
    std::fs::write(dir.path().join("host"), "something else").unwrap();
    let after = running.objects();
    for name in [None, Some("liblinktest.so.1")] {
        let (before, after) = (before.by_name(name).unwrap(), after.by_name(name).unwrap());
        assert_eq!(before.build_id(), after.build_id());
        assert_eq!(before.build_id().len(), 20);
        assert_eq!(before.span(), after.span());
    }
    assert!(after.executable().lookup("probe", 0).is_ok());
    assert!(after.skipped().is_empty(), "{:?}", after.skipped());
    let maps = read_mappings(&running.task_dir()).unwrap();
    assert!(
        maps.iter()
            .any(|m| m.deleted && m.path.as_deref() == Some(&dir.path().join("host")))
    );
}

#[test]
fn addresses_and_code_are_those_in_memory() {
    use livegraft_process::object::ReadMemory;
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    let running = Running::start(dir.path(), "host", &[]);
    let (objects, memory) = (running.objects(), running.memory());
    assert!(objects.iter().count() >= 4);
    for object in objects.iter() {
        for range in object.code_ranges() {
            let code = object.code(range.clone()).unwrap();
            let mut found = vec![0; code.len()];
            memory.read_memory(range.start, &mut found).unwrap();
            assert!(code == found, "{}", object.name());
            assert!(object.code(range.start..range.end + 4096).is_none());
            assert!(std::ptr::eq(
                objects.containing(range.start).unwrap(),
                object
            ));
        }
        assert!(
            object
                .code(object.span().end..object.span().end + 1)
                .is_none()
        );
        assert!(object.code(u64::MAX - 1..u64::MAX).is_none());
    }
    let exe = objects.executable();
    assert!(exe.is_pie() && !exe.is_static() && exe.is_executable());
    assert!(exe.interpreter().unwrap().ends_with("ld-linux-x86-64.so.2"));
    assert!(exe.needed().contains(&"liblinktest.so.1".to_owned()));
    assert!(objects.containing(0).is_none() && objects.containing(u64::MAX).is_none());
}

#[test]
fn functions_are_found_by_name_position_and_address() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    let running = Running::start(dir.path(), "host", &[]);
    let objects = running.objects();
    let exe = objects.executable();
    let first = exe.lookup("twin", 1).unwrap();
    let second = exe.lookup("twin", 2).unwrap();
    assert_ne!(first.svma, second.svma);
    assert!(matches!(
        exe.lookup("twin", 0),
        Err(ObjectError::Ambiguous { count: 2, .. })
    ));
    assert!(matches!(
        exe.lookup("twin", 3),
        Err(ObjectError::NoOccurrence { count: 2, .. })
    ));
    assert!(matches!(
        exe.lookup("nothing", 0),
        Err(ObjectError::NoSymbol { .. })
    ));
    assert!(matches!(
        exe.lookup("puts", 0),
        Err(ObjectError::NoSymbol { .. })
    ));
    let probe = exe.lookup("probe", 0).unwrap();
    let avma = exe.avma(probe.svma);
    assert_eq!(exe.symbolize(avma + 3), Some(("probe".into(), 3)));
    assert_eq!(exe.function_range(avma), Some(avma..avma + probe.size));
    let at_end = exe.symbolize(avma + probe.size);
    assert!(at_end.is_none_or(|(name, _)| name != "probe"));
    let own = |name: &str| {
        let found = exe.lookup(name, 0).unwrap();
        exe.avma(found.svma)..exe.avma(found.svma + found.size)
    };
    let cold = exe.split_bodies("splits", own("splits"));
    assert_eq!(cold.len(), 1, "{cold:?}");
    assert_eq!(exe.symbolize(cold[0].start).unwrap().0, "splits.cold");
    assert!(exe.split_bodies("split", own("probe")).is_empty());
}

#[test]
fn a_stripped_program_still_has_its_dynamic_symbols() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie", "-s", "-rdynamic"]);
    let running = Running::start(dir.path(), "host", &[]);
    let objects = running.objects();
    let exe = objects.executable();
    assert!(!exe.has_symtab());
    let probe = exe.lookup("probe", 0).unwrap();
    assert_eq!(
        exe.symbolize(exe.avma(probe.svma)).unwrap(),
        ("probe".into(), 0)
    );
    let refused = exe.lookup("static_function", 0).unwrap_err().to_string();
    assert!(refused.contains("stripped"), "{refused}");
    let splits = exe.lookup("splits", 0).unwrap();
    let own = exe.avma(splits.svma)..exe.avma(splits.svma + splits.size);
    assert_eq!(exe.split_bodies("splits", own).len(), 1);
}

#[test]
fn a_lazy_slot_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie", "-Wl,-z,lazy"]);
    let mut running = Running::start(dir.path(), "host", &[]);
    let (objects, memory) = (running.objects(), running.memory());
    let resolver = Resolver::new(&objects, &memory);
    let libc = objects.by_name(Some("libc.so.6")).unwrap();
    // Not called yet; then called, so that the slot is bound.
    let unbound = address(
        resolver
            .undefined(&[None], "pthread_create", false)
            .unwrap(),
    );
    assert!(libc.span().contains(&unbound));
    assert_eq!(libc.symbolize(unbound).unwrap().1, 0);
    running.ask("own-thread");
    let bound = address(
        resolver
            .undefined(&[None], "pthread_create", false)
            .unwrap(),
    );
    assert_eq!(bound, unbound);
    // Nobody's slot: the search finds it.
    let found = address(resolver.undefined(&[None], "getppid", false).unwrap());
    assert_eq!(found, libc.avma(libc.lookup("getppid", 0).unwrap().svma));
}

#[test]
fn a_preloaded_library_comes_before_libc() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    library(dir.path(), "preload.so", "preload.c");
    let preload = dir.path().join("preload.so");
    let running = Running::start(
        dir.path(),
        "host",
        &[("LD_PRELOAD", preload.to_str().unwrap())],
    );
    let (objects, memory) = (running.objects(), running.memory());
    let resolver = Resolver::new(&objects, &memory);
    let found = address(resolver.undefined(&[None], "getppid", false).unwrap());
    assert_eq!(objects.containing(found).unwrap().name(), "preload.so");
    let found = address(resolver.undefined(&[None], "getpgrp", false).unwrap());
    assert_eq!(objects.containing(found).unwrap().name(), "libc.so.6");
}

#[test]
fn a_library_opened_later_has_no_fixed_storage() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    library(dir.path(), "later.so", "library.c");
    let mut running = Running::start(dir.path(), "host", &[]);
    let later = dir.path().join("later.so");
    assert_eq!(
        running.ask(&format!("open {}", later.display())),
        "opened\n"
    );
    let objects = running.objects();
    let loaded = objects.by_name(Some("later.so")).unwrap();
    let own = loaded.avma(loaded.lookup("lib_probe", 0).unwrap().svma);
    let span = loaded.span();
    let own = running.ask(&format!("call {own:x}"));
    let source = programs().join("patch_library.c");
    for flags in [
        &["-O2", "-fPIC"][..],
        &["-O0", "-fPIC", "-fno-plt"],
        &["-O2", "-fPIC", "-mcmodel=large"],
    ] {
        let args = [&["-c", "-o", "patch.o", source.to_str().unwrap()], flags].concat();
        assert!(compile(dir.path(), "gcc", &args));
        let patch = unpacked(&dir.path().join("patch.o"), &[Some("later.so")]);
        let linked = running.link(&patch, span.end).unwrap();
        running.map(&linked);
        let function = linked.symbol_avma(symbol(&patch, "lp_probe")).unwrap();
        let theirs = running.ask(&format!("call {function:x}"));
        // lib_data and lib_tls mean the first library's: it comes first in the search, for the library's own code too.
        assert_eq!(theirs, own, "{flags:?}");
        running.unmap(&linked);
    }
    // Initial-exec wants an offset that the module has not got.
    let args = [
        "-c",
        "-O2",
        "-fPIC",
        "-ftls-model=initial-exec",
        "-o",
        "patch.o",
    ];
    assert!(compile(
        dir.path(),
        "gcc",
        &[&args[..], &[source.to_str().unwrap()]].concat()
    ));
    let patch = unpacked(&dir.path().join("patch.o"), &[Some("later.so")]);
    let error = running.link(&patch, span.end).unwrap_err().to_string();
    assert!(
        error.contains("lib_tls_static") && error.contains("global-dynamic"),
        "{error}"
    );
}

#[test]
fn indirect_functions_are_looked_up_and_never_run() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    library(dir.path(), "indirect.so", "indirect.c");
    let mut running = Running::start(dir.path(), "host", &[]);
    running.ask(&format!(
        "open {}",
        dir.path().join("indirect.so").display()
    ));
    let (objects, memory) = (running.objects(), running.memory());
    let resolver = Resolver::new(&objects, &memory);
    let library = objects.by_name(Some("indirect.so")).unwrap();
    let used = address(
        resolver
            .livepatch(Some("indirect.so"), "used_indirect", 0)
            .unwrap(),
    );
    assert_eq!(library.symbolize(used).unwrap(), ("two".into(), 0));
    let unused = resolver
        .livepatch(Some("indirect.so"), "unused_indirect", 0)
        .unwrap_err();
    assert!(matches!(unused, ResolveError::IndirectUnresolved { .. }));
    // Who can have resolvers called hears of it, and then has what they return.
    let at = library.avma(library.lookup("unused_indirect", 0).unwrap().svma);
    let ask = |returned: &BTreeMap<u64, u64>| {
        let resolver = Resolver::new(&objects, &memory).with_returned(returned);
        let found = |_| {
            let found = resolver.livepatch(Some("indirect.so"), "unused_indirect", 0);
            address(found.unwrap())
        };
        let twice = [1, 2].map(found);
        assert_eq!(twice[0], twice[1]);
        (twice[0], resolver.wanted())
    };
    let (found, wanted) = ask(&BTreeMap::new());
    assert_eq!((found, wanted.len()), (at, 1));
    assert_eq!(wanted[0].resolver, at);
    assert_eq!(
        (&*wanted[0].name, &*wanted[0].object),
        ("unused_indirect", "indirect.so")
    );
    assert_eq!(ask(&BTreeMap::from([(at, 4711)])), (4711, Vec::new()));
    // libc's own: the address is code, not the resolver.
    for name in ["memcpy", "strlen", "strchr", "memset"] {
        let found = address(resolver.undefined(&[None], name, false).unwrap());
        let libc = objects.containing(found).unwrap();
        assert_eq!(libc.name(), "libc.so.6");
        assert_ne!(
            libc.avma(libc.lookup(name, 0).unwrap().svma),
            found,
            "{name}"
        );
    }
}

#[test]
fn what_cannot_be_found_is_named() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    let running = Running::start(dir.path(), "host", &[]);
    let (objects, memory) = (running.objects(), running.memory());
    let resolver = Resolver::new(&objects, &memory);
    let both = [None, Some("liblinktest.so.1")];
    let undefined = resolver
        .undefined(&both, "no_such_function", false)
        .unwrap_err();
    assert!(
        undefined.to_string().contains("`no_such_function`"),
        "{undefined}"
    );
    assert_eq!(
        resolver.undefined(&both, "no_such_function", true).unwrap(),
        Value::Address(0)
    );
    let twice = resolver.undefined(&both, "lib_static", false).unwrap_err();
    assert!(
        matches!(twice, ResolveError::InTwoObjects { .. }),
        "{twice}"
    );
    let ambiguous = resolver.undefined(&both, "twin", false).unwrap_err();
    assert!(matches!(
        ambiguous,
        ResolveError::Object(ObjectError::Ambiguous { .. })
    ));
    let absent = resolver
        .undefined(&[Some("libabsent.so.9")], "puts", false)
        .unwrap_err();
    assert!(matches!(absent, ResolveError::ObjectNotLoaded { .. }));
    let absent = resolver
        .livepatch(Some("libabsent.so.9"), "puts", 0)
        .unwrap_err();
    assert!(absent.to_string().contains("libabsent.so.9"));
    let libc_tls = resolver.livepatch(Some("libc.so.6"), "errno", 0);
    assert!(
        matches!(
            libc_tls,
            Ok(Value::Tls {
                tp_offset: Some(_),
                ..
            })
        ),
        "{libc_tls:?}"
    );
}

#[test]
fn coroutines_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    let running = Running::start(dir.path(), "host", &[]);
    let hazards: Vec<String> = running
        .objects()
        .iter()
        .filter_map(|o| Some(o.stack_switching()?.how))
        .collect();
    assert!(hazards.is_empty(), "{hazards:?}");
    drop(running);
    host(dir.path(), &["-pie", "-DCOROUTINES"]);
    let running = Running::start(dir.path(), "host", &[]);
    let hazard = running
        .objects()
        .executable()
        .stack_switching()
        .unwrap()
        .how;
    assert!(hazard.contains("`swapcontext`"), "{hazard}");
}

#[test]
fn reading_objects_is_quick() {
    let dir = tempfile::tempdir().unwrap();
    host(dir.path(), &["-pie"]);
    let running = Running::start(dir.path(), "host", &[]);
    let started = Instant::now();
    let maps = read_mappings(&running.task_dir()).unwrap();
    let mapped = started.elapsed();
    let objects = Objects::read(&running.task_dir(), &maps).unwrap();
    let read = started.elapsed();
    let memory = running.memory();
    let resolver = Resolver::new(&objects, &memory);
    for name in ["memcpy", "puts", "getppid", "probe", "static_function"] {
        resolver.undefined(&[None], name, false).unwrap();
    }
    let resolved = started.elapsed();
    println!("maps {mapped:?}, objects {read:?}, five symbols {resolved:?}");
    assert!(resolved.as_millis() < 500);
}

#[test]
fn a_stock_stripped_server() {
    let path = Path::new("/usr/bin/redis-server");
    if !path.exists() {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "redis-server is missing"
        );
        eprintln!("skipped: redis-server is missing");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let args = [
        "--port",
        "0",
        "--save",
        "",
        "--unixsocket",
        socket.to_str().unwrap(),
    ];
    let server = Running::serve(path, &args);
    let (objects, memory) = (server.objects(), server.memory());
    let exe = objects.executable();
    assert_eq!(exe.name(), server.target_name());
    assert!(objects.skipped().is_empty(), "{:?}", objects.skipped());
    let hazards: Vec<String> = objects
        .iter()
        .filter_map(|o| Some(o.stack_switching()?.how))
        .collect();
    assert!(hazards.is_empty(), "{hazards:?}");
    let resolver = Resolver::new(&objects, &memory);
    for name in [
        "memcpy",
        "strlen",
        "snprintf",
        "getppid",
        "epoll_wait",
        "pthread_create",
    ] {
        let found = address(resolver.undefined(&[None], name, false).unwrap());
        assert_eq!(
            objects.containing(found).unwrap().name(),
            "libc.so.6",
            "{name}"
        );
    }
    // A COPY relocation or a GLOB_DAT: either way a FILE pointer that libc filled in.
    let stderr = address(resolver.undefined(&[None], "stderr", false).unwrap());
    let mut word = [0; 8];
    livegraft_process::object::ReadMemory::read_memory(&memory, stderr, &mut word).unwrap();
    let libc = objects.by_name(Some("libc.so.6")).unwrap();
    assert!(libc.span().contains(&u64::from_le_bytes(word)));
}
