//! The strict unwinder against the C library's: both must find the same callers, to the outermost one, from a thread,
//! from the main thread, and from a signal handler on an alternate stack.

use livegraft_process::object::{Objects, read_mappings};
use livegraft_process::process::Process;
use livegraft_process::symbolize::Symbolizer;
use livegraft_process::tracer::{Stopping, Tracer};
use livegraft_process::unwind::{Stack, Unwinder};
use livegraft_process::{arch, sys};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has(compiler: &str) -> bool {
    let found = Command::new(compiler).arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "{compiler} is missing"
        );
        eprintln!("skipped: {compiler} is missing");
    }
    found
}

/// What the program says of one of its tasks: name, number, the callers that backtrace() found.
fn parse(line: &str) -> (String, i32, Vec<u64>) {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap().to_owned();
    let tid = words.next().unwrap().parse().unwrap();
    let callers = words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap());
    (name, tid, callers.collect())
}

fn unwind(process: &Process, unwinder: &mut Unwinder, tid: i32) -> Stack {
    let listing = process.tasks().unwrap();
    let task = listing.tasks.into_iter().find(|task| task.tid == tid);
    let mut tracer = Tracer::default();
    let Stopping::Stopped(stopped) = tracer.stop(task.unwrap(), 0) else {
        panic!("task {tid} can't be stopped");
    };
    let regs = stopped.regs;
    let read = |at| process.memory.read_u64(at).ok();
    unwinder.unwind(regs.rip, arch::dwarf_registers(&regs), 1000, &read)
}

fn check(compiler: &str, flags: &[&str]) {
    if !has(compiler) {
        return;
    }
    sys::block_sigchld();
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unwind_programs/three.c");
    let exe = dir.path().join("three");
    let built = Command::new(compiler)
        .args(["-pthread", "-Wl,--build-id", "-Wno-unknown-attributes"])
        .args(flags)
        .arg(&source)
        .arg("-o")
        .arg(&exe)
        .status();
    assert!(built.unwrap().success());
    let mut child = Command::new(&exe)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let said = BufReader::new(child.0.stdout.take().unwrap())
        .lines()
        .take(3);
    let said: Vec<_> = said.map(|line| parse(&line.unwrap())).collect();
    let process = Process::open(child.0.id() as i32).unwrap();
    let maps = read_mappings(&process.live()).unwrap();
    let objects = Objects::read(&process.live(), &maps).unwrap();
    let modules = objects.iter().filter_map(|object| object.unwind_info());
    let mut unwinder = Unwinder::new(modules.collect());
    let mut symbolizer = Symbolizer::new(objects, maps, Vec::new());
    for (name, tid, callers) in said {
        // Between saying it and sleeping it is somewhere else in its innermost function.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let stack = unwind(&process, &mut unwinder, tid);
        assert!(stack.complete, "{name}: {stack:x?}");
        let pcs: Vec<u64> = stack.frames.iter().map(|frame| frame.pc).collect();
        let begin = pcs.iter().position(|&pc| pc == callers[1]);
        let begin = begin.unwrap_or_else(|| panic!("{name}: {pcs:x?}, {callers:x?}"));
        assert_eq!(pcs[begin..], callers[1..], "{name} of {compiler} {flags:?}");
        let signals = stack.frames.iter().filter(|frame| frame.signal).count();
        assert_eq!(signals, usize::from(name == "handler"), "{name}");

        let named = symbolizer.name(&stack);
        assert!(named.complete);
        let functions = named.frames.iter().filter(|frame| !frame.inlined);
        let functions: Vec<&str> = functions
            .map(|frame| frame.function.as_deref().unwrap_or("?"))
            .filter(|name| {
                let ours = [
                    "sleep_here",
                    "variable",
                    "large",
                    "handler",
                    "interrupted",
                    "thread",
                ];
                ours.contains(name) || *name == "main" || name.starts_with('<')
            })
            .collect();
        let expected: &[&str] = match name.as_str() {
            "main" => &["sleep_here", "variable", "large", "main"],
            "thread" => &["sleep_here", "variable", "large", "thread"],
            _ => &[
                "sleep_here",
                "variable",
                "large",
                "handler",
                "<signal handler called>",
                "interrupted",
                "thread",
            ],
        };
        assert_eq!(functions, expected, "{name} of {compiler} {flags:?}");
    }
}

#[test]
fn gcc_with_all_that_it_can_leave_out() {
    check("gcc", &["-O2", "-fomit-frame-pointer"]);
}

#[test]
fn gcc_with_frame_pointers_and_debug_information() {
    check("gcc", &["-O0", "-g", "-no-pie"]);
}

#[test]
fn clang() {
    check("clang", &["-O2", "-fomit-frame-pointer"]);
}
