//! The parts of functions as they are found in stripped binaries, against what symbol tables and disassemblies say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use livegraft_process::object::{ExitTo, LoadedObject, Objects, read_mappings};

fn require(what: &str, present: bool) -> bool {
    if !present {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "{what} is missing"
        );
        let _ = writeln!(std::io::stderr(), "skipped: {what} is missing");
    }
    present
}

fn has(command: &str) -> bool {
    let found = Command::new(command)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    require(command, found)
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "     {text}");
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program that waits on its standard input; it ends with the value.
struct Waiting(Child);

impl Waiting {
    fn start(command: &mut Command) -> Waiting {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null());
        Waiting(child.spawn().unwrap())
    }

    /// Its objects, once it has all of them.
    fn objects(&self) -> Objects {
        let pid = self.0.id();
        let task = PathBuf::from(format!("/proc/{pid}/task/{pid}"));
        for _ in 0..5000 {
            let maps = read_mappings(&task).unwrap();
            if let Ok(objects) = Objects::read(&task, &maps)
                && objects.by_name(Some("libc.so.6")).is_some()
            {
                return objects;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the program does not start");
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What objdump says of a file: every direct jump and every direct call, as (where, target).
#[derive(Default)]
struct Disassembly {
    jumps: Vec<(u64, u64)>,
    calls: Vec<(u64, u64)>,
}

impl Disassembly {
    fn read(path: &Path) -> Disassembly {
        let text = run(Command::new("objdump")
            .args(["-d", "--no-show-raw-insn", "-w"])
            .arg(path));
        let mut found = Disassembly::default();
        for line in text.lines() {
            let Some((at, instruction)) = line.split_once(":\t") else {
                continue;
            };
            let Ok(at) = u64::from_str_radix(at.trim(), 16) else {
                continue;
            };
            let mut words = instruction.split_whitespace().filter(|word| {
                !matches!(*word, "bnd" | "notrack")
                    && !word.ends_with(",pn")
                    && !word.ends_with(",pt")
            });
            let (Some(name), Some(target)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(target) = u64::from_str_radix(target, 16) else {
                continue;
            };
            match name {
                "call" => found.calls.push((at, target)),
                name if name.starts_with('j') => found.jumps.push((at, target)),
                _ => {}
            }
        }
        assert!(!found.calls.is_empty() && !found.jumps.is_empty());
        found
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Symbol {
    name: String,
    range: Range<u64>,
}

/// The functions of a file with a symbol table.
fn symbols(path: &Path) -> Vec<Symbol> {
    let text = run(Command::new("nm").args(["-S", "--defined-only"]).arg(path));
    let mut symbols: Vec<Symbol> = text
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[at, size, "t" | "T" | "W" | "w", name] = words.as_slice() else {
                return None;
            };
            let (at, size) = (
                u64::from_str_radix(at, 16).ok()?,
                u64::from_str_radix(size, 16).ok()?,
            );
            Some(Symbol {
                name: name.to_owned(),
                range: at..at + size,
            })
        })
        .collect();
    symbols.sort_by_key(|symbol| symbol.range.start);
    symbols
}

/// Whether a name is `NAME.cold`, `NAME.part.N`, `NAME.part.N.cold` ...
fn split_name(name: &str) -> Option<&str> {
    let at = name.rfind(".cold").or_else(|| name.rfind(".part."))?;
    Some(&name[..at])
}

/// The parts of a function by symbols and disassembly: each `.cold` of its name or of a part's name (where several
/// functions have the name: those that it jumps to); each `.part` that it jumps to and that nobody else calls.
fn expected(own: &Symbol, all: &[Symbol], code: &Disassembly) -> BTreeSet<u64> {
    let mut members = vec![own.clone()];
    loop {
        let within = |at: &u64| members.iter().any(|member| member.range.contains(at));
        let mut found = None;
        for symbol in all {
            let Some(base) = split_name(&symbol.name) else {
                continue;
            };
            if members.iter().any(|member| member.range == symbol.range) {
                continue;
            }
            let jumped_to = code
                .jumps
                .iter()
                .any(|(at, to)| symbol.range.contains(to) && within(at));
            let foreign = |(at, to): &(u64, u64)| {
                *to == symbol.range.start && !within(at) && !symbol.range.contains(at)
            };
            let is_part = if symbol.name.ends_with(&format!("{base}.cold")) {
                let unique = all.iter().filter(|other| other.name == base).count() == 1;
                // Functions with equal code become one, with all of the names.
                let named = all
                    .iter()
                    .filter(|other| members.iter().any(|m| m.range == other.range))
                    .any(|other| other.name == base);
                named && (unique || jumped_to)
            } else {
                jumped_to && !code.calls.iter().any(foreign)
            };
            if is_part {
                found = Some(symbol.clone());
                break;
            }
        }
        match found {
            Some(symbol) => members.push(symbol),
            None => break,
        }
    }
    members
        .iter()
        .skip(1)
        .map(|part| part.range.start)
        .collect()
}

/// Many functions of many shapes: unlikely calls, noreturn ends, switches with cold cases, loops, recursion behind an
/// early return, tail calls; all of them called from elsewhere, through a table or directly.
fn program(functions: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    let mut text = String::from(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n\
         #define unlikely(x) __builtin_expect(!!(x), 0)\n\
         volatile int v;\n\
         __attribute__((cold, noinline)) int report(int x) { v = x; return puts(\"report\") + x; }\n\
         __attribute__((cold, noinline, noreturn)) void die(int x) { v = x; exit(x); }\n\
         __attribute__((noinline)) int work(int x) { v = x; return v * 3; }\n",
    );
    for f in 0..functions {
        let fixed = if random(3) == 0 { "static " } else { "" };
        let extra = if random(4) == 0 {
            "__attribute__((noinline)) "
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{extra}{fixed}int f{f}(int x, int y)\n{{\n\tint s = y;"
        );
        if random(3) == 0 {
            text.push_str("\tif (x <= 0)\n\t\treturn y;\n");
        }
        for part in 0..1 + random(4) {
            match random(6) {
                0 => {
                    let _ = writeln!(
                        text,
                        "\tif (unlikely(v == {part})) {{ s += report(s); for (int i = 0; i < x; i++) s ^= work(i + s); }}"
                    );
                }
                1 => {
                    let _ = writeln!(text, "\tif (unlikely(v > x + {part})) die(s);");
                }
                2 => {
                    text.push_str("\tswitch (x + v) {\n");
                    for case in 0..8 + random(8) {
                        let body = match random(4) {
                            0 => format!("die({case} + s)"),
                            1 => format!("s += report({case}); if (v) s = work(s)"),
                            _ => format!("s = work(s + {case})"),
                        };
                        let _ = writeln!(text, "\tcase {case}: {body}; break;");
                    }
                    text.push_str("\tdefault: s++;\n\t}\n");
                }
                3 => {
                    let _ = writeln!(
                        text,
                        "\tfor (int i = 0; i < x; i++) {{ s += work(i); if (unlikely(s == v)) {{ report(i); break; }} }}"
                    );
                }
                4 => {
                    let _ = writeln!(text, "\ts += f{f}(x - 1, work(s)) + work(x) * work(y);");
                }
                _ => text.push_str("\ts += work(x) + work(s) * work(y);\n"),
            }
        }
        if f > 0 && random(2) == 0 {
            let other = random(f as u64);
            let _ = writeln!(text, "\treturn f{other}(s, x);\n}}");
        } else {
            text.push_str("\treturn s;\n}\n");
        }
    }
    text.push_str("int (*const volatile table[])(int, int) = {");
    for f in 0..functions {
        let _ = write!(text, "f{f},");
    }
    text.push_str("};\nint main(void)\n{\n\tchar byte;\n\tif (read(0, &byte, 1) > 0)\n\t\treturn v = table[byte](1, 2);\n\treturn 0;\n}\n");
    text
}

/// Compiles the source, and a stripped twin of it.
fn twins(dir: &Path, source: &str, compiler: &str, flags: &[&str]) -> (PathBuf, PathBuf) {
    let file = dir.join(if compiler == "g++" {
        "twin.cc"
    } else {
        "twin.c"
    });
    std::fs::write(&file, source).unwrap();
    let (full, stripped) = (dir.join("full"), dir.join("stripped"));
    run(Command::new(compiler)
        .args(["-O2", "-w", "-Wl,--build-id"])
        .args(flags)
        .arg("-o")
        .arg(&full)
        .arg(&file));
    run(Command::new("strip")
        .arg("-s")
        .arg("-o")
        .arg(&stripped)
        .arg(&full));
    (full, stripped)
}

/// The parts of a function, by its name where one is given.
fn starts(object: &LoadedObject, name: Option<&str>, range: &Range<u64>) -> BTreeSet<u64> {
    let own = object.avma(range.start)..object.avma(range.end);
    let parts = match name {
        Some(name) => object.split_bodies(name, own),
        None => object.parts_by_branches(own),
    };
    parts.iter().map(|part| object.svma(part.start)).collect()
}

#[test]
fn a_stripped_twin_has_the_same_parts() {
    if !has("gcc") || !has("objdump") {
        return;
    }
    let source = program(500);
    for flags in [
        &["-pie", "-fPIE", "-fno-inline-functions-called-once"][..],
        &["-no-pie", "-fno-pie", "-fno-inline-functions-called-once"],
        &[
            "-pie",
            "-fPIE",
            "-fcf-protection",
            "-Wl,-z,pack-relative-relocs",
        ],
        &["-pie", "-fPIE", "-O3", "-fno-plt"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (full, stripped) = twins(dir.path(), &source, "gcc", flags);
        let (all, mut code) = (symbols(&full), Disassembly::read(&full));
        // Only what leads to parts matters, and is much less.
        let parts: Vec<&Symbol> = all
            .iter()
            .filter(|s| split_name(&s.name).is_some())
            .collect();
        let to_part = |(_, to): &(u64, u64)| parts.iter().any(|part| part.range.contains(to));
        code.jumps.retain(to_part);
        code.calls.retain(to_part);
        let running = Waiting::start(&mut Command::new(&stripped));
        let with_symbols = Waiting::start(&mut Command::new(&full));
        let (objects, named) = (running.objects(), with_symbols.objects());
        let (bare, named) = (objects.executable(), named.executable());
        assert!(!bare.has_symtab() && named.has_symtab());
        let (mut parts, mut colds, mut functions) = (0, 0, 0);
        for symbol in all.iter().filter(|symbol| !symbol.name.contains(".cold")) {
            let wanted = expected(symbol, &all, &code);
            let found = starts(bare, None, &symbol.range);
            let names = |set: &BTreeSet<u64>| -> Vec<&str> {
                let named = |at: &u64| {
                    all.iter()
                        .find(|s| s.range.start == *at)
                        .map(|s| s.name.as_str())
                };
                set.iter().map(|at| named(at).unwrap_or("?")).collect()
            };
            assert_eq!(
                found,
                wanted,
                "{flags:?} {}: found {:?}, wanted {:?}",
                symbol.name,
                names(&found),
                names(&wanted)
            );
            // With symbols nothing less is found, but for what another function's name is on: its head was inlined.
            let wanted: BTreeSet<u64> = wanted
                .into_iter()
                .filter(|at| {
                    let at = BTreeSet::from([*at]);
                    let name = names(&at)[0];
                    name.ends_with(".cold") && !name.contains(".part.")
                        || name.starts_with(&format!("{}.", symbol.name))
                })
                .collect();
            let by_name = starts(named, Some(&symbol.name), &symbol.range);
            assert!(
                by_name.is_superset(&wanted),
                "{}: by name {:?}, wanted {:?}",
                symbol.name,
                names(&by_name),
                names(&wanted)
            );
            let cold = |at: &&u64| names(&BTreeSet::from([**at]))[0].ends_with(".cold");
            colds += found.iter().filter(cold).count();
            parts += found.len();
            functions += 1;
        }
        let all_parts = all.iter().filter(|s| s.name.contains(".part.")).count();
        let all_colds = all.iter().filter(|s| s.name.ends_with(".cold")).count();
        note(&format!(
            "{flags:?}: {functions} functions; {colds} times a .cold of {all_colds}, {} times a .part of {all_parts}",
            parts - colds
        ));
        assert!(
            colds > 100,
            "{colds} cold parts are too few to tell anything"
        );
    }
}

/// What a stretch of code is called by, as objdump has it.
fn callers(code: &Disassembly) -> BTreeMap<u64, Vec<u64>> {
    let mut callers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for &(at, target) in &code.calls {
        callers.entry(target).or_default().push(at);
    }
    callers
}

/// No function that others call counts as a part of another.
fn check_stock(object: &LoadedObject) {
    let path = object.path().to_path_buf();
    let begin = Instant::now();
    let functions = object.functions();
    let code = Disassembly::read(&path);
    let callers = callers(&code);
    let began = Instant::now();
    let (mut with, mut found, mut slowest) = (0, BTreeSet::new(), (0, 0));
    for own in &functions {
        let one = Instant::now();
        let parts = object.parts_by_branches(own.clone());
        slowest = slowest.max((one.elapsed().as_micros(), object.svma(own.start)));
        with += usize::from(!parts.is_empty());
        for part in &parts {
            let at = object.svma(part.start);
            let own = std::iter::once(own).chain(&parts);
            let bodies: Vec<Range<u64>> = own
                .map(|body| object.svma(body.start)..object.svma(body.end))
                .collect();
            let foreign = callers.get(&at).into_iter().flatten();
            let foreign: Vec<&u64> = foreign
                .filter(|caller| !bodies.iter().any(|body| body.contains(caller)))
                .collect();
            assert!(
                foreign.is_empty(),
                "{}: {at:#x} is called from {foreign:x?}",
                path.display()
            );
            found.insert(at);
        }
    }
    note(&format!(
        "{}: {} functions, {with} with parts, {} parts, all in {:?} (slowest {} us at {:#x}; objdump {:?})",
        path.display(),
        functions.len(),
        found.len(),
        began.elapsed(),
        slowest.0,
        slowest.1,
        began - begin
    ));
}

#[test]
fn no_called_function_of_stock_binaries_is_a_part() {
    if !has("objdump") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let redis = Path::new("/usr/bin/redis-server");
    let mut checked = BTreeSet::new();
    let mut started = vec![Waiting::start(Command::new("cat").arg("-"))];
    if require("redis-server", redis.is_file()) {
        let mut command = Command::new(redis);
        command.args(["--port", "0", "--save", "", "--unixsocket"]);
        started.push(Waiting::start(command.arg(dir.path().join("socket"))));
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    for running in &started {
        for object in running.objects().iter() {
            if checked.insert(object.path().to_path_buf()) {
                check_stock(object);
            }
        }
    }
    assert!(checked.iter().any(|path| path.ends_with("libc.so.6")));
}

#[test]
fn exceptions_handled_in_a_cold_part_are_found() {
    if !has("g++") || !has("objdump") {
        return;
    }
    let source = "#include <cstdio>\n#include <string>\n#include <unistd.h>\n\
        struct Guard { const char *what; ~Guard(); };\n\
        __attribute__((noinline)) Guard::~Guard() { std::puts(what); }\n\
        __attribute__((noinline)) int may_throw(int x) { if (x > 3) throw x; return x; }\n\
        __attribute__((noinline)) int guarded(int x) { Guard g{\"left\"}; return may_throw(x) + 1; }\n\
        int main() { char c; try { while (read(0, &c, 1) > 0) guarded(c); } catch (int) { return 1; } }\n";
    let dir = tempfile::tempdir().unwrap();
    let (full, stripped) = twins(dir.path(), source, "g++", &[]);
    let all = symbols(&full);
    let guarded = all.iter().find(|s| s.name == "_Z7guardedi").unwrap();
    let cold = all.iter().find(|s| s.name == "_Z7guardedi.cold").unwrap();
    let running = Waiting::start(&mut Command::new(&stripped));
    let objects = running.objects();
    let found = starts(objects.executable(), None, &guarded.range);
    assert_eq!(found, BTreeSet::from([cold.range.start]));
}

#[test]
fn parts_of_static_functions_with_one_name_are_told_apart() {
    if !has("gcc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let body = |n: u32| {
        format!(
            "extern volatile int v;\nextern __attribute__((cold)) int report(int);\n\
             static __attribute__((noinline)) int twin(int x) {{ if (__builtin_expect(v == {n}, 0)) {{ x += report(x); v = x; }} return x * {n}; }}\n\
             int use{n}(int x) {{ return twin(x) + twin(v); }}\n"
        )
    };
    for n in [5, 6] {
        std::fs::write(dir.path().join(format!("{n}.c")), body(n)).unwrap();
    }
    let main = "#include <unistd.h>\nvolatile int v;\n\
        __attribute__((cold, noinline)) int report(int x) { v = x; return x; }\n\
        extern int use5(int), use6(int);\n\
        int main(void) { char c; return read(0, &c, 1) > 0 ? use5(c) + use6(c) : 0; }\n";
    std::fs::write(dir.path().join("main.c"), main).unwrap();
    let full = dir.path().join("full");
    run(Command::new("gcc").current_dir(&dir).args([
        "-O2",
        "-Wl,--build-id",
        "-o",
        "full",
        "5.c",
        "6.c",
        "main.c",
    ]));
    let all = symbols(&full);
    let named = |name: &str| -> Vec<&Symbol> { all.iter().filter(|s| s.name == name).collect() };
    let (functions, colds) = (named("twin"), named("twin.cold"));
    assert_eq!((functions.len(), colds.len()), (2, 2));
    let code = Disassembly::read(&full);
    let running = Waiting::start(&mut Command::new(&full));
    let objects = running.objects();
    for function in functions {
        let wanted = expected(function, &all, &code);
        assert_eq!(wanted.len(), 1);
        assert_eq!(
            starts(objects.executable(), Some("twin"), &function.range),
            wanted
        );
    }
}

#[test]
fn tail_exits_have_names() {
    if !has("gcc") {
        return;
    }
    let source = "#include <unistd.h>\n#include <stdlib.h>\n\
        int (*hook)(int);\nvolatile int v;\n\
        __attribute__((noipa)) int other(int x) { return v + x; }\n\
        __attribute__((noipa)) int leaves(int x, int (*f)(int)) { if (x == 1) return other(x + 1); if (x == 2) return getpid(); if (x == 3) return f(x); if (x == 4) exit(v); return x; }\n\
        __attribute__((noipa)) int hooked(int x) { return hook(x + 1); }\n\
        __attribute__((noipa)) int stays(int x) { return getpid() + x; }\n\
        int main(void) { char c; return read(0, &c, 1) > 0 ? leaves(c, other) + hooked(c) + stays(c) : 0; }\n";
    for (flags, through_plt) in [(&["-Wl,-z,lazy"][..], true), (&["-fno-plt"], false)] {
        let dir = tempfile::tempdir().unwrap();
        let (full, _) = twins(dir.path(), source, "gcc", flags);
        let running = Waiting::start(&mut Command::new(&full));
        let objects = running.objects();
        let exe = objects.executable();
        let exits = |name: &str| {
            let found = exe.lookup(name, 0).unwrap();
            let start = exe.avma(found.svma);
            exe.tail_exits(std::slice::from_ref(&(start..start + found.size)))
        };
        let other = exe.avma(exe.lookup("other", 0).unwrap().svma);
        let leaves = exits("leaves");
        let names: Vec<Option<&str>> = leaves.iter().map(|exit| exit.name.as_deref()).collect();
        assert_eq!(names, [Some("other"), Some("getpid"), None], "{leaves:x?}");
        assert_eq!(leaves[0].to, ExitTo::Code(other));
        assert!(matches!(leaves[1].to, ExitTo::Linked(_)));
        assert_eq!(leaves[2].to, ExitTo::Computed);
        assert_eq!(exits("hooked")[0].to, ExitTo::Computed);
        assert_eq!(exits("stays"), []);
        // The stub, its second half, the head of the PLT, and the resolver in the dynamic loader.
        let pid = running.0.id();
        let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        let read = Memory(memory);
        let ways = exe.ways_out(&leaves, &objects, &read);
        assert_eq!(
            ways.stubs.len(),
            if through_plt { 3 } else { 0 },
            "{ways:x?}"
        );
        assert_eq!(ways.resolvers.len(), usize::from(through_plt), "{ways:x?}");
        for (first, last) in ways.resolvers {
            let loader = objects.containing(first).unwrap();
            assert!(loader.name().starts_with("ld-linux"), "{}", loader.name());
            assert!(
                (0x80..0x400).contains(&(last - first)),
                "{first:x} {last:x}"
            );
        }
        let getpid = objects.by_name(Some("libc.so.6")).unwrap();
        let getpid = getpid.avma(getpid.lookup("getpid", 0).unwrap().svma);
        assert!(
            ways.targets.contains(&getpid),
            "{:x?} {getpid:x}",
            ways.targets
        );
    }
}

struct Memory(std::fs::File);

impl livegraft_process::object::ReadMemory for Memory {
    fn read_memory(&self, avma: u64, buf: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, avma)
    }
}

/// How long it takes to find out who calls what, in programs with much code; `make bench` runs it.
#[test]
#[ignore = "for the figures only"]
fn scan_of_large_programs() {
    let cc1 = run(Command::new("gcc").arg("-print-prog-name=cc1"));
    let mut compiler = Command::new(cc1.trim());
    let mut clang = Command::new("clang");
    let commands = [
        compiler.args(["-quiet", "-o", "/dev/null", "-"]),
        clang.args(["-fintegrated-cc1", "-x", "c", "-o", "/dev/null", "-"]),
        &mut Command::new("redis-server"),
    ];
    for command in commands {
        let running = Waiting::start(command);
        std::thread::sleep(std::time::Duration::from_millis(1000));
        for object in running.objects().iter() {
            let code: u64 = object.code_ranges().iter().map(|r| r.end - r.start).sum();
            if code < 1 << 20 {
                continue;
            }
            let begin = Instant::now();
            let functions = object.functions();
            let read = begin.elapsed();
            let mut times = Vec::new();
            for own in functions.iter().take(20_000) {
                let begin = Instant::now();
                let parts = object.parts_by_branches(own.clone());
                times.push((begin.elapsed(), parts.len()));
            }
            let (slowest, _) = times.iter().max().copied().unwrap_or_default();
            let sum: std::time::Duration = times.iter().map(|(time, _)| *time).sum();
            note(&format!(
                "{}: {} MB of code, {} functions read in {read:?}; the first that needs to know who calls it {slowest:?}, \
                 each other {:?} in the mean",
                object.name(),
                code >> 20,
                functions.len(),
                (sum - slowest) / times.len() as u32,
            ));
        }
    }
}
