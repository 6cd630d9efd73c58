//! Patches that cannot be linked: each is refused by name, and nothing of it panics.

mod link_support;

use std::path::Path;
use std::sync::OnceLock;

use link_support::{Running, compile, programs, unpacked};
use livegraft_patchfile::{Object, Patch, Place, Relocation, Section, Symbol};
use livegraft_process::link::{Layout, LinkError, Linked, ResolveError, Resolver, link};
use livegraft_process::object::ObjectError;

/// A program at an address of its own choosing, one for all tests of this file.
fn program() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (library, host) = (programs().join("library.c"), programs().join("host.c"));
        let shared = ["-O2", "-fPIC", "-shared", "-Wl,-soname,liblinktest.so.1"];
        let library = ["-o", "liblinktest.so.1", library.to_str().unwrap()];
        assert!(compile(
            dir.path(),
            "gcc",
            &[&shared[..], &library].concat()
        ));
        let args = [
            "-O2",
            "-pthread",
            "-pie",
            "-o",
            "host",
            host.to_str().unwrap(),
        ];
        let link = ["./liblinktest.so.1", "-Wl,-rpath,$ORIGIN", "-lm"];
        assert!(compile(dir.path(), "gcc", &[&args[..], &link].concat()));
        dir
    })
    .path()
}

/// Links a patch made of one C source.
fn link_source(
    source: &str,
    flags: &[&str],
    patched: &[Option<&str>],
) -> Result<Linked, LinkError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("patch.c"), source).unwrap();
    assert!(compile(
        dir.path(),
        "gcc",
        &[&["-c", "patch.c", "-o", "patch.o"], flags].concat()
    ));
    let patch = unpacked(&dir.path().join("patch.o"), patched);
    let running = Running::start(program(), "host", &[]);
    running.link(&patch, 0x2000_0000_0000)
}

fn refused(source: &str, flags: &[&str], words: &[&str]) {
    let error = link_source(source, flags, &[None]).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{source}: {error}");
    }
}

/// `.text` with 64 bytes of `fill`, and one relocation against one symbol.
fn patch(fill: u8, symbol: Symbol, offset: u64, r_type: u32, addend: i64) -> Patch {
    Patch {
        format_version: 1,
        digest: [7; 32],
        replace: false,
        immediate: false,
        states: Vec::new(),
        objects: vec![Object {
            name: None,
            builds: vec![],
            funcs: vec![],
            callbacks: vec![],
        }],
        sections: vec![Section {
            name: ".text".into(),
            write: false,
            exec: true,
            align: 16,
            size: 64,
            data: vec![fill; 64].into(),
        }],
        symbols: vec![symbol],
        relocations: vec![Relocation {
            section: 0,
            offset,
            r_type,
            symbol: 0,
            addend,
        }],
    }
}

fn absolute(value: u64) -> Symbol {
    Symbol {
        name: "constant".into(),
        place: Place::Absolute(value),
        size: 0,
        weak: false,
        shared: false,
        func: false,
        tls: false,
    }
}

fn link_plain(patch: &Patch) -> Result<Linked, LinkError> {
    let running = Running::start(program(), "host", &[]);
    running.link(patch, 0x2000_0000_0000)
}

#[test]
fn code_that_is_not_position_independent() {
    let data = "extern int global_counter; int f(void) { return global_counter; }";
    refused(
        data,
        &["-O2", "-fno-pic"],
        &["`global_counter`", "R_X86_64_PC32", "function `f`", "-fPIC"],
    );
    let pointer = "extern int global_counter; int *f(void) { return &global_counter; }";
    refused(
        pointer,
        &["-O2", "-fno-pic"],
        &["`global_counter`", "R_X86_64_32", "-fPIC"],
    );
    let inside = "extern void puts(void); void f(void) { puts(); } void g(void) { f(); }";
    assert!(link_source(inside, &["-O2", "-fno-pic"], &[None]).is_ok());
}

#[test]
fn thread_local_variables_of_the_patch() {
    refused(
        "static __thread int mine; int f(void) { return mine++; }",
        &["-O0", "-fPIC"],
        &["`mine`", "shadow"],
    );
}

#[test]
fn thread_local_here_and_not_there() {
    let is_not = "extern __thread int global_counter; int f(void) { return global_counter; }";
    refused(is_not, &["-fPIC"], &["`global_counter`", "thread-local"]);
    let is = "extern int tls_global; int f(void) { return tls_global; }";
    refused(is, &["-fPIC"], &["`tls_global`", "thread-local"]);
}

#[test]
fn constructors_and_writable_code() {
    let constructor = "__attribute__((constructor)) void f(void) {}";
    refused(constructor, &["-fPIC"], &[".init_array", "callbacks"]);
    let writable =
        "__asm__(\".section .wx,\\\"awx\\\"\\n nop\\n .text\"); int f(void) { return 0; }";
    refused(writable, &["-fPIC"], &[".wx", "writable and executable"]);
}

#[test]
fn more_than_a_page_of_alignment() {
    let source =
        "static char buffer[8192] __attribute__((aligned(8192))); char *f(void) { return buffer; }";
    refused(source, &["-O0", "-fPIC"], &["8192", "alignment"]);
}

#[test]
fn more_memory_than_any_patch_needs() {
    let source = "static char buffer[1L << 30]; char *f(void) { return buffer; }";
    refused(
        source,
        &["-O0", "-fPIC", "-mcmodel=large"],
        &["bytes of memory"],
    );
    let mut huge = patch(0, absolute(0), 0, 0, 0);
    huge.sections[0].size = u64::MAX;
    huge.sections[0].data = Vec::new().into();
    assert!(matches!(Layout::of(&huge), Err(LinkError::TooLarge { .. })));
}

#[test]
fn symbols_that_nobody_defines() {
    refused(
        "extern int nobody(void); int f(void) { return nobody(); }",
        &["-fPIC"],
        &["`nobody`", "function `f`"],
    );
    let error = link_source(
        "int f(void) { return 1; }",
        &["-fPIC"],
        &[Some("libabsent.so")],
    );
    assert!(error.is_ok(), "nothing refers to it");
    let source = "extern int g(void); int f(void) { return g(); }";
    let error = link_source(source, &["-fPIC"], &[Some("libabsent.so")]).unwrap_err();
    assert!(matches!(
        error,
        LinkError::Resolve {
            source: ResolveError::ObjectNotLoaded { .. },
            ..
        }
    ));
}

#[test]
fn positions_that_do_not_exist() {
    let place = Place::Livepatch {
        object: None,
        name: "probe".into(),
        sympos: 2,
    };
    let symbol = Symbol {
        place,
        ..absolute(0)
    };
    let error = link_plain(&patch(0xe8, symbol, 1, 4, -4)).unwrap_err();
    let LinkError::Resolve {
        source: ResolveError::Object(error),
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(matches!(
        error,
        ObjectError::NoOccurrence {
            sympos: 2,
            count: 1,
            ..
        }
    ));
}

#[test]
fn values_that_do_not_fit() {
    for (r_type, value) in [(10, 1u64 << 32), (11, 1 << 31), (12, 1 << 16), (14, 1 << 8)] {
        let error = link_plain(&patch(0, absolute(value), 0, r_type, 0)).unwrap_err();
        assert!(matches!(error, LinkError::OutOfReach { .. }), "{error}");
        assert!(error.to_string().contains("`constant`"));
        assert!(link_plain(&patch(0, absolute(1), 0, r_type, 0)).is_ok());
    }
    for r_type in [13, 15] {
        let error = link_plain(&patch(0, absolute(1), 0, r_type, 0)).unwrap_err();
        assert!(matches!(error, LinkError::OutOfReach { .. }), "{error}");
    }
}

#[test]
fn a_call_out_of_reach_gets_a_veneer_and_others_do_not() {
    let target = absolute(0x1234_5678_9abc);
    let linked = link_plain(&patch(0xe8, target.clone(), 1, 4, -4)).unwrap();
    let text = &linked.segments[0];
    let distance = i32::from_le_bytes(text.bytes[1..5].try_into().unwrap());
    let veneer = (5 + i64::from(distance)) as usize;
    assert_eq!(text.bytes[veneer..veneer + 2], [0xff, 0x25]);
    let to_slot = i32::from_le_bytes(text.bytes[veneer + 2..veneer + 6].try_into().unwrap());
    let slot = veneer + 6 + to_slot as usize - text.mem_size as usize;
    let got = &linked.segments[1];
    assert_eq!(got.bytes[slot..slot + 8], 0x1234_5678_9abcu64.to_le_bytes());
    // Into the middle of a function, and an operand.
    for not_a_call in [
        patch(0xe8, target.clone(), 1, 4, 4),
        patch(0x05, target, 1, 2, -4),
    ] {
        let error = link_plain(&not_a_call).unwrap_err();
        assert!(matches!(error, LinkError::OutOfReach { .. }), "{error}");
    }
}

#[test]
fn relocations_that_no_object_file_has() {
    for r_type in [
        5,
        6,
        7,
        8,
        16,
        36,
        37,
        38,
        39,
        40,
        43,
        51,
        52,
        1000,
        u32::MAX,
    ] {
        let error = link_plain(&patch(0, absolute(0), 0, r_type, 0)).unwrap_err();
        assert!(
            matches!(error, LinkError::Unsupported { .. }),
            "{r_type}: {error}"
        );
    }
    let error = link_plain(&patch(0, absolute(0), 0, 6, 0))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("R_X86_64_GLOB_DAT") && error.contains(".text+0x0"),
        "{error}"
    );
}

#[test]
fn patches_that_contradict_themselves() {
    for offset in [61, 64, 1 << 40, u64::MAX] {
        let error = link_plain(&patch(0, absolute(0), offset, 10, 0)).unwrap_err();
        assert!(
            matches!(error, LinkError::OutsideSection { .. }),
            "{offset}: {error}"
        );
    }
    let mut other = patch(0, absolute(0), 0, 10, 0);
    other.relocations[0].symbol = 5;
    assert!(matches!(
        link_plain(&other),
        Err(LinkError::Inconsistent { .. })
    ));
    other.relocations[0].section = 5;
    assert!(matches!(
        link_plain(&other),
        Err(LinkError::Inconsistent { .. })
    ));
    let mut other = patch(0, absolute(0), 0, 10, 0);
    other.sections[0].size = 65;
    assert!(matches!(
        link_plain(&other),
        Err(LinkError::Inconsistent { .. })
    ));
    other.sections[0].align = 3;
    assert!(matches!(
        link_plain(&other),
        Err(LinkError::BadAlignment { align: 3, .. })
    ));
    for place in [Place::Section(9, 0), Place::Section(usize::MAX, u64::MAX)] {
        let error = link_plain(&patch(
            0,
            Symbol {
                place,
                ..absolute(0)
            },
            0,
            1,
            0,
        ))
        .unwrap_err();
        assert!(matches!(error, LinkError::Inconsistent { .. }), "{error}");
    }
    let symbol = Symbol {
        place: Place::NotLoaded,
        ..absolute(0)
    };
    assert!(matches!(
        link_plain(&patch(0, symbol, 0, 1, 0)),
        Err(LinkError::NotLoaded { .. })
    ));
}

#[test]
fn thread_local_relocations_without_their_code() {
    let place = Place::Livepatch {
        object: None,
        name: "tls_global".into(),
        sympos: 0,
    };
    let symbol = Symbol {
        place,
        ..absolute(0)
    };
    for r_type in [34, 35] {
        let error = link_plain(&patch(0x90, symbol.clone(), 4, r_type, 0)).unwrap_err();
        assert!(matches!(error, LinkError::Unsupported { .. }), "{error}");
    }
    // No sequence to replace: the call of __tls_get_addr stays and finds module 1 in a slot.
    let linked = link_plain(&patch(0x90, symbol, 4, 19, -4)).unwrap();
    assert_eq!(linked.segments[1].bytes[..8], 1u64.to_le_bytes());
}

#[test]
fn places_that_do_not_suit() {
    let running = Running::start(program(), "host", &[]);
    let (objects, memory) = (running.objects(), running.memory());
    let resolver = Resolver::new(&objects, &memory);
    let at =
        |patch: &Patch, layout: &Layout, base| link(patch, layout, base, &resolver).unwrap_err();
    let plain = patch(0, absolute(0), 0, 1, 0);
    let layout = Layout::of(&plain).unwrap();
    for base in [0x1001, !0xfff, 1 << 47] {
        assert!(
            matches!(at(&plain, &layout, base), LinkError::BadBase { .. }),
            "{base:#x}"
        );
    }
    let symbol = Symbol {
        place: Place::Section(0, 0),
        ..absolute(0)
    };
    let low = patch(0, symbol, 0, 11, 0);
    let layout = Layout::of(&low).unwrap();
    assert!(layout.needs_low);
    let error = at(&low, &layout, 1 << 32).to_string();
    assert!(error.contains("below 2 GiB"), "{error}");
    assert!(link(&low, &layout, 0x1000_0000, &resolver).is_ok());
    let mut other = plain.clone();
    other.digest = [8; 32];
    assert!(matches!(
        at(&other, &layout, 0x1000_0000),
        LinkError::WrongLayout
    ));
}

#[test]
fn bodies_cover_what_was_split_off() {
    let source = "extern void abort(void); extern int global_counter;\n\
        __attribute__((cold, noinline)) static void bad(void) { global_counter = 1; abort(); }\n\
        int f(int x) { if (__builtin_expect(x, 0)) { bad(); } return 1; } int g(void) { return 2; }\n\
        __asm__(\".text\\nbare: nop\\nnop\\n.Lend:\\n\");";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("patch.c"), source).unwrap();
    assert!(compile(
        dir.path(),
        "gcc",
        &["-c", "-O2", "-fPIC", "patch.c", "-o", "patch.o"]
    ));
    let patch = unpacked(&dir.path().join("patch.o"), &[None]);
    let linked = link_plain(&patch).unwrap();
    let index = |name: &str| patch.symbols.iter().position(|s| s.name == name).unwrap();
    let body = linked.body_of(index("f"));
    assert_eq!(body.len(), 2, "{:?}", linked.functions);
    assert_eq!(body[0].start, linked.symbol_avma(index("f")).unwrap());
    assert_eq!(linked.symbolize(body[1].start), Some(("f.cold", 0)));
    assert_eq!(linked.body_of(index("g")).len(), 1);
    assert_eq!(linked.body_of(index("abort")), []);
    let bare = linked.body_of(index("bare"));
    assert!(
        bare[0].end > bare[0].start,
        "a symbol without a size reaches to the next one"
    );
    let writable = linked
        .segments
        .iter()
        .filter(|s| s.protection.prot() & 6 == 6);
    assert_eq!(writable.count(), 0);
}
