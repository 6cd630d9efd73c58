//! What `status` shows of a task that is held: every frame by name, in order, inlined functions and source lines
//! included, for programs of every language, and for one that has no symbols.

use livegraft_scenarios::cli::start;
use livegraft_scenarios::compile::strip;
use livegraft_scenarios::cycle::has_compilers;
use livegraft_scenarios::{Build, Plan, Target, compile_patch, compile_target, inspect, require};
use serde_json::Value;
use std::path::{Path, PathBuf};

const LEAVE: &[&str] = &["--timeout", "300ms", "--on-timeout", "leave"];

/// The frames of a held task; the unwind must have reached the outermost one.
fn frames(target: &Target, task: Option<&str>) -> Vec<Value> {
    let status = target.livegraft(&["status"], &[]).done().json;
    let tasks = status["tasks"].as_array().expect("tasks");
    let mut held = tasks
        .iter()
        .filter(|entry| !entry["blocked"].is_null())
        .filter(|entry| task.is_none_or(|name| entry["name"] == name));
    let blocked = &held.next().expect("a held task")["blocked"];
    assert_eq!(blocked["complete"], true, "{status}");
    // What was there before stays.
    for field in ["tid", "name", "seconds", "function", "address", "armed"] {
        assert!(!blocked[field].is_null(), "{field}: {status}");
    }
    let frames = blocked["frames"].as_array().expect("frames").clone();
    // Whatever holds it is one of them.
    let holds = |frame: &&Value| frame["address"] == blocked["address"];
    assert!(frames.iter().any(|frame| holds(&frame)), "{status}");
    frames
}

/// The functions of the frames in the program itself: `name`, or `name (inlined)`.
fn own(frames: &[Value], target: &Target) -> Vec<String> {
    let program = target.exe().file_name().and_then(|name| name.to_str());
    let mine = frames
        .iter()
        .filter(|frame| frame["object"].as_str() == program || frame["object"].is_null());
    mine.map(|frame| {
        let name = frame["function"].as_str().unwrap_or("?");
        let inlined = frame["inlined"] == true;
        assert_eq!(frame["offset"].is_null(), inlined, "{frame}");
        format!("{name}{}", if inlined { " (inlined)" } else { "" })
    })
    .collect()
}

/// The number of the line that contains a text.
fn line_of(source: &Path, text: &str) -> u64 {
    let source = std::fs::read_to_string(source).expect("the source is there");
    let at = source.lines().position(|line| line.contains(text));
    at.unwrap_or_else(|| panic!("no line with {text}")) as u64 + 1
}

fn prepare(name: &str, build: &Build) -> (Plan, PathBuf, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, build);
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    (plan, exe, klp)
}

fn builds(name: &str) -> Vec<Build> {
    let builds = Plan::read(name).targets().into_iter();
    builds
        .map(|build| build.flag("-g"))
        .filter(|build| has_compilers([build]))
        .collect()
}

/// Of both tasks that are held the frame of the replaced function is marked.
#[track_caller]
fn marks_answer_twice(shown: &str) {
    let marked: Vec<&str> = shown.lines().filter(|line| line.contains("=>")).collect();
    assert_eq!(marked.len(), 2, "{shown}");
    let is_answer = |line: &&str| line.contains("  answer+0x");
    assert!(marked.iter().all(is_answer), "{shown}");
}

/// Ends an open transition: the tasks leave what holds them.
fn leave(target: &mut Target) {
    target.ask("wake");
    target.livegraft(&["resume"], &[]).done();
    target.ask("wake");
}

/// Ends an open load.
fn release(target: &mut Target) {
    leave(target);
    target.expect("new");
}

/// Unloads the patch, whose function tasks are asleep in.
fn take_back(mut target: Target) {
    target.unload(LEAVE).result(4, "timed-out");
    leave(&mut target);
    target.expect("old");
    target.finish();
}

#[test]
fn inlined_functions_and_lines() {
    for build in builds("stacks") {
        let (plan, exe, klp) = prepare("stacks", &build);
        let mut target = Target::start(&plan, &exe, &[]);
        target.load(&klp, LEAVE).result(4, "timed-out");
        let all = frames(&target, Some("flat"));
        let expected = [
            ("wait_here", "the innermost line"),
            ("inner (inlined)", "in inner()"),
            ("outer (inlined)", "in outer()"),
            ("answer", "in answer()"),
            ("flat", "in flat()"),
        ];
        let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        assert_eq!(own(&all, &target), names, "{build}");
        let source = plan.dir.join("target.c");
        let mine = all.iter().filter(|frame| frame["object"] == "stacks");
        for (frame, (name, text)) in mine.zip(expected) {
            assert_eq!(frame["file"], source.to_str().expect("UTF-8"), "{frame}");
            assert_eq!(frame["line"], line_of(&source, text), "{name} {build}");
        }
        // From the system call to the thread's start.
        assert_eq!(all[0]["object"], "libc.so.6", "{all:?}");
        assert!(
            all.iter().any(|frame| frame["function"] == "read"),
            "{all:?}"
        );
        assert_eq!(all.last().expect("frames")["object"], "libc.so.6");

        // The frames of the patch's own code, on the way back.
        release(&mut target);
        target.unload(LEAVE).result(4, "timed-out");
        let back = own(&frames(&target, Some("flat")), &target);
        assert_eq!(
            back,
            [
                "wait_here",
                "code of patch fix",
                "answer of patch fix",
                "flat"
            ],
            "{build}"
        );
        leave(&mut target);
        target.finish();
    }
}

/// Before a load `check` shows of those who would hold it what `status` shows afterwards.
#[test]
fn check_shows_what_status_shows() {
    let build = Build::new("gcc -O2 pie").flag("-g");
    let (plan, exe, klp) = prepare("stacks", &build);
    let mut target = Target::start(&plan, &exe, &[]);
    let path = klp.to_str().expect("UTF-8");
    let once = target.livegraft(&["check", path], &[]).done().json;
    let watched = target.livegraft(&["check", path], &["--sample", "200ms"]);
    let watched = watched.done().json;
    assert!(watched["looks"].as_u64() > Some(1), "{watched}");
    let shown = start(&["check", path, "--pid", &target.pid_text()], None);
    let shown = shown.finish().done().stdout;
    target.expect("old");
    target.assert_untouched();
    target.load(&klp, LEAVE).result(4, "timed-out");
    for task in ["flat", "deep"] {
        let held = frames(&target, Some(task));
        for checked in [&once, &watched] {
            let busy = checked["busy"].as_array().expect("a list");
            let busy = busy.iter().find(|busy| busy["name"] == task);
            let busy = busy.unwrap_or_else(|| panic!("no {task}: {checked}"));
            assert_eq!(busy["complete"], true, "{busy}");
            assert_eq!(busy["frames"], Value::from(held.clone()), "{task}");
        }
    }
    marks_answer_twice(&shown);
    release(&mut target);
    take_back(target);
}

#[test]
fn text_is_cut_after_32_frames() {
    let build = Build::new("gcc -O2 pie").flag("-g");
    let (plan, exe, klp) = prepare("stacks", &build);
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, LEAVE).result(4, "timed-out");
    let deep = frames(&target, Some("deep"));
    let descents = deep
        .iter()
        .filter(|frame| frame["function"] == "descend")
        .count();
    assert_eq!(descents, 41, "{deep:?}");
    let shown = start(&["status", "--pid", &target.pid_text()], None);
    let shown = shown.finish().done().stdout;
    let left_out = format!("{} more frames are left out", deep.len() - 32);
    assert!(shown.contains(&left_out), "{shown}");
    marks_answer_twice(&shown);
    release(&mut target);
    take_back(target);
}

#[test]
fn cpp_names() {
    for build in builds("stacks_cpp") {
        let (plan, exe, klp) = prepare("stacks_cpp", &build);
        let mut target = Target::start(&plan, &exe, &[]);
        target.load(&klp, LEAVE).result(4, "timed-out");
        assert_eq!(
            own(&frames(&target, None), &target),
            [
                "wait_here",
                "app::Queue<int>::hold(long)",
                "app::Queue<int>::turn() (inlined)",
                "app::(anonymous namespace)::drain(app::Queue<int>&)",
                "work",
                "run",
            ],
            "{build}"
        );
        release(&mut target);
        take_back(target);
    }
}

#[test]
fn rust_names() {
    let v0 = |build: &Build| build.flag("-Csymbol-mangling-version=v0");
    let of_v0 = [
        "wait_here",
        "answer",
        "<target::queue::Queue<i16>>::turn (inlined)",
        "<target::queue::Queue<i16>>::drain",
    ];
    // Which one is the compiler's own choice depends on its version.
    let of_legacy = [
        "wait_here",
        "answer",
        "target::queue::Queue<T>::turn (inlined)",
        "target::queue::Queue<T>::drain",
    ];
    for build in builds("stacks_rust") {
        for (build, allowed) in [(v0(&build), &[of_v0][..]), (build, &[of_legacy, of_v0][..])] {
            let (plan, exe, klp) = prepare("stacks_rust", &build);
            let mut target = Target::start(&plan, &exe, &[]);
            target.load(&klp, LEAVE).result(4, "timed-out");
            let all = frames(&target, None);
            let names = own(&all, &target);
            let at = names.iter().position(|name| name == "wait_here");
            let shown = at.and_then(|at| names.get(at..at + 4));
            assert!(
                allowed
                    .iter()
                    .any(|allowed| Some(&allowed[..]) == shown.map(texts).as_deref()),
                "{build}: {names:#?}"
            );
            let source = plan.dir.join("target.rs");
            let held = all.iter().find(|frame| frame["function"] == "answer");
            let held = held.expect("it is there");
            assert_eq!(held["file"], source.to_str().expect("UTF-8"), "{held}");
            // What called the thread's closure is the standard library, which the program contains.
            let library = "std::sys::backtrace::__rust_begin_short_backtrace";
            assert!(
                names.iter().any(|name| name.contains(library)),
                "{build}: {names:#?}"
            );
            release(&mut target);
            take_back(target);
        }
    }
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Exported functions keep their names; the others are told by the address in the object.
#[test]
fn stripped_program() {
    if !require("strip", livegraft_scenarios::compile::has_command("strip")) {
        return;
    }
    let build = Build::new("gcc -O2 pie").flag("-g").flag("-rdynamic");
    let plan = Plan::read("stacks");
    let whole = compile_target(&plan, &build);
    let exe = strip(&whole);
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, LEAVE).result(4, "timed-out");
    let all = frames(&target, Some("flat"));
    assert_eq!(own(&all, &target), ["wait_here", "answer", "?"]);
    let nameless = all.iter().find(|frame| frame["function"].is_null());
    let nameless = nameless.expect("flat() has no name");
    let offset = nameless["offset"].as_u64().expect("an address in the file");
    let (size, svma) = inspect::symbol(&whole, "flat");
    assert!((svma..svma + size).contains(&offset), "{nameless}");
    let shown = start(&["status", "--pid", &target.pid_text()], None);
    let shown = shown.finish().done().stdout;
    assert!(
        shown.contains(&format!("  stacks+{offset:#x}\n")),
        "{shown}"
    );
    release(&mut target);
    take_back(target);
}

/// Debug information in a file of its own, found by the build-id: that of Debian's C library.
#[test]
fn separate_debug_file() {
    let installed = Path::new("/usr/share/doc/libc6-dbg").is_dir();
    if !require("libc6-dbg", installed) {
        return;
    }
    let (plan, exe, klp) = prepare("stacks", &Build::new("gcc -O2 pie"));
    let mut target = Target::start(&plan, &exe, &[]);
    target.load(&klp, LEAVE).result(4, "timed-out");
    let all = frames(&target, Some("flat"));
    let named = |name: &str, file: &str| {
        let frame = all.iter().find(|frame| frame["function"] == name);
        let frame = frame.unwrap_or_else(|| panic!("no {name}: {all:?}"));
        let path = frame["file"].as_str().unwrap_or_default();
        assert!(
            path.ends_with(file) && frame["line"].as_u64() > Some(0),
            "{frame}"
        );
    };
    named("read", "sysdeps/unix/sysv/linux/read.c");
    named("start_thread", "nptl/pthread_create.c");
    release(&mut target);
    take_back(target);
}

/// Where call frame information ends the stack ends, and says so.
#[test]
fn generated_code() {
    for build in builds("stacks_generated") {
        let (plan, exe, klp) = prepare("stacks_generated", &build);
        let mut target = Target::start(&plan, &exe, &[]);
        target.load(&klp, LEAVE).result(4, "timed-out");
        let status = target.livegraft(&["status"], &[]).done().json;
        let tasks = status["tasks"].as_array().expect("tasks");
        let held = tasks.iter().find(|task| !task["blocked"].is_null());
        let blocked = &held.expect("a held task")["blocked"];
        assert_eq!(blocked["function"], "answer", "{status}");
        assert_eq!(blocked["complete"], false, "{status}");
        let frames = blocked["frames"].as_array().expect("frames");
        assert_eq!(frames.len(), 1, "{status}");
        for unknown in ["function", "offset", "object", "file", "line"] {
            assert!(frames[0][unknown].is_null(), "{unknown}: {status}");
        }
        let shown = start(&["status", "--pid", &target.pid_text()], None);
        let shown = shown.finish().done().stdout;
        assert!(shown.contains("who called that is not known"), "{shown}");
        release(&mut target);
        take_back(target);
    }
}
