//! `make bench`: everything that the issue asks to be measured, side by side in one run, as a markdown table. With arguments: only the
//! parts of these names.

use livegraft_patchfile::counted;
use livegraft_scenarios::redis::{Redis, demo_patch};
use livegraft_scenarios::{
    Build, Plan, Target, bare_visit, cli, compile_patch, compile_target, inspect, peak_memory,
    raise_open_files,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn main() {
    raise_open_files();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "{cpus} CPUs, Linux {}. Medians unless it says otherwise.\n",
        kernel.trim()
    );
    println!("| what | livegraft | beside it, in the same run | ratio | asked |");
    println!("|---|---|---|---|---|");
    let parts: [(&str, fn()); 9] = [
        ("stop", longest_stop),
        ("heartbeat", || {
            heartbeat("1000", "beats every millisecond");
            heartbeat("0", "spins");
        }),
        ("moving", moving),
        ("load", whole_load),
        ("call", call_cost),
        ("wide", wide),
        ("memory", memory),
        ("redis", redis),
        ("diff", compare_objects),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, measure) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            measure();
        }
    }
}

fn row(what: &str, ours: String, beside: String, ratio: Option<f64>, asked: &str) {
    let ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
    println!("| {what} | {ours} | {beside} | {ratio} | {asked} |");
}

fn built(name: &str) -> (Plan, PathBuf, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let klp = compile_patch(&plan, &Build::new("gcc -O2 pic"), &exe);
    (plan, exe, klp)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Visits all tasks as barely as can be: the time of each, in microseconds.
fn bare_visits(pid: i32) -> Vec<f64> {
    let visit = |tid| {
        let before = Instant::now();
        let _ = bare_visit(tid);
        before.elapsed().as_secs_f64() * 1e6
    };
    inspect::tasks(pid).into_iter().map(visit).collect()
}

fn longest_stop() {
    let (plan, exe, klp) = built("many");
    for tasks in [1_u32, 10, 100, 1000] {
        let target = Target::start(&plan, &exe, &[&(tasks - 1).to_string(), "0"]);
        let (mut ours, mut bare, mut at_once) = (Vec::new(), Vec::new(), 0);
        for _ in 0..20 {
            let loaded = target.load(&klp, &[]).result(0, "loaded");
            ours.push(loaded.number("longest_stop_us") as f64);
            at_once = at_once.max(loaded.number("most_stopped"));
            bare.push(most(&bare_visits(target.pid())));
            target.unload(&[]).result(0, "unloaded");
        }
        target.finish();
        row(
            &format!(
                "longest stop of a task, {}",
                counted(tasks, "task", "tasks")
            ),
            format!(
                "{:.0} us (worst of 20: {:.0}), {at_once} at once",
                median(ours.clone()),
                most(&ours)
            ),
            format!(
                "bare visit: {:.0} us (worst {:.0})",
                median(bare.clone()),
                most(&bare)
            ),
            Some(median(ours) / median(bare)),
            "1 at once; independent of the number",
        );
    }
}

fn heartbeat(sleep_us: &str, how: &str) {
    let (plan, exe, klp) = built("../benches/heartbeat");
    let mut target = Target::start(&plan, &exe, &["1000", sleep_us]);
    let (mut alone, mut loading) = (Vec::new(), Vec::new());
    let gap = |target: &mut Target| target.ask("gap").parse::<f64>().expect("a number");
    for _ in 0..15 {
        gap(&mut target);
        let before = Instant::now();
        target.load(&klp, &[]).result(0, "loaded");
        let took = before.elapsed();
        loading.push(gap(&mut target));
        target.unload(&[]).result(0, "unloaded");
        gap(&mut target);
        std::thread::sleep(took);
        alone.push(gap(&mut target));
    }
    target.finish();
    row(
        &format!("worst heartbeat gap while loading into 1000 tasks, the heart {how}"),
        format!(
            "{:.0} us (worst of 15: {:.0})",
            median(loading.clone()),
            most(&loading)
        ),
        format!(
            "left alone as long: {:.0} us (worst {:.0})",
            median(alone.clone()),
            most(&alone)
        ),
        Some(median(loading) / median(alone)),
        "at most 2",
    );
}

fn moving() {
    let (plan, exe, klp) = built("many");
    let target = Target::start(&plan, &exe, &["1000", "0"]);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        bare.push(bare_visits(target.pid()).iter().sum::<f64>() / 1000.0);
        ours.push(
            target
                .load(&klp, &[])
                .result(0, "loaded")
                .number("transition_us") as f64
                / 1000.0,
        );
        target.unload(&[]).result(0, "unloaded");
    }
    target.finish();
    row(
        "moving 1000 blocked tasks",
        format!("{:.1} ms", median(ours.clone())),
        format!(
            "SEIZE + INTERRUPT + GETREGS + DETACH of each: {:.1} ms",
            median(bare.clone())
        ),
        Some(median(ours) / median(bare)),
        "at most 3",
    );
}

fn whole_load() {
    let (plan, exe, klp) = built("many");
    let target = Target::start(&plan, &exe, &["3", "0"]);
    let pid = target.pid_text();
    let klp = klp.to_str().expect("a path in UTF-8");
    let time = |arguments: &[&str]| {
        let before = Instant::now();
        let output = std::process::Command::new(cli::binary())
            .args(arguments)
            .output()
            .expect("livegraft runs");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        before.elapsed().as_secs_f64() * 1e3
    };
    let (mut ours, mut start) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        start.push(time(&["--version"]));
        ours.push(time(&["load", klp, "--pid", &pid, "--json"]));
        time(&["unload", "fix", "--pid", &pid]);
    }
    target.finish();
    row(
        "`load` from start to exit, process of 4 tasks",
        format!(
            "{:.1} ms (worst of 50: {:.1})",
            median(ours.clone()),
            most(&ours)
        ),
        format!("`livegraft --version`: {:.1} ms", median(start)),
        None,
        "10 ms",
    );
}

fn call_cost() {
    let (plan, exe, klp) = built("../benches/call");
    let mut target = Target::start(&plan, &exe, &[]);
    let measure =
        |target: &mut Target| target.ask("measure").parse::<f64>().expect("a number") / 1000.0;
    let (mut before, mut patched, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        before.push(measure(&mut target));
        target.load(&klp, &[]).result(0, "loaded");
        patched.push(measure(&mut target));
        target.unload(&[]).result(0, "unloaded");
        after.push(measure(&mut target));
    }
    target.finish();
    let (before, patched, after) = (median(before), median(patched), median(after));
    let unpatched = format!("unpatched: {before:.2} ns");
    row(
        "call of a patched empty function",
        format!("{patched:.2} ns"),
        unpatched.clone(),
        Some(patched / before),
        "at most 2",
    );
    row(
        "the same call after unload",
        format!("{after:.2} ns"),
        unpatched,
        Some(after / before),
        "1",
    );
}

/// A call among many patched functions that are called in turn: by the method that a load chooses, and by pun and swap
/// alone.
fn wide() {
    let plan = Plan::read("../benches/wide");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    for count in ["16", "64", "256", "1024"] {
        let build = Build::new("gcc -O2 pic").flag(&format!("-DCOUNT={count}"));
        let klp = compile_patch(&plan, &build, &exe);
        for entry in [None, Some("pun"), Some("swap")] {
            many_calls(&plan, &exe, &klp, count, entry);
        }
    }
}

fn many_calls(plan: &Plan, exe: &Path, klp: &Path, count: &str, entry: Option<&str>) {
    // The best of some: what else the machine does is not what is measured.
    let measure = |target: &mut Target| {
        let time = |_| target.ask(&format!("measure {count}")).parse::<f64>();
        let times = (0..9)
            .map(time)
            .map(|time| time.expect("a number") / 1000.0);
        times.fold(f64::INFINITY, f64::min)
    };
    let more: Vec<&str> = entry.into_iter().flat_map(|e| ["--entry", e]).collect();
    let (mut before, mut patched, mut load) = (Vec::new(), Vec::new(), Vec::new());
    let mut methods = BTreeMap::<String, usize>::new();
    for _ in 0..5 {
        // Each time a process of its own: the second load of a patch has nothing to map.
        let mut target = Target::start(plan, exe, &[]);
        before.push(measure(&mut target));
        let loaded = target.load(klp, &more);
        if loaded.code == 1 {
            let why = loaded.json["error"]["message"].to_string();
            target.finish();
            let what = format!("{count} patched functions by {}", entry.unwrap_or("any"));
            return row(&what, why, String::new(), None, "");
        }
        let loaded = loaded.result(0, "loaded");
        load.push(loaded.elapsed.as_secs_f64() * 1e3);
        methods.clear();
        for function in loaded.json["functions"].as_array().into_iter().flatten() {
            let method = function["entry"].as_str().unwrap_or_default();
            *methods.entry(method.to_owned()).or_default() += 1;
        }
        patched.push(measure(&mut target));
        target.unload(&[]).result(0, "unloaded");
        target.finish();
    }
    let (before, patched) = (median(before), median(patched));
    let methods: Vec<String> = methods.iter().map(|(m, n)| format!("{n} {m}")).collect();
    row(
        &format!(
            "call among {count} patched functions in turn, {}: {}, loaded in {:.0} ms",
            entry.map_or("as chosen", |_| "forced"),
            methods.join(", "),
            median(load)
        ),
        format!("{patched:.2} ns"),
        format!("unpatched: {before:.2} ns"),
        Some(patched / before),
        "at most 2",
    );
}

fn memory() {
    let (plan, exe, klp) = built("many");
    let target = Target::start(&plan, &exe, &["3", "0"]);
    target.load(&klp, &[]).result(0, "loaded");
    let bytes = cli::list(target.pid())["memory"]["bytes"]
        .as_u64()
        .expect("a number") as f64;
    let grown = target.baseline().added_bytes() as f64;
    target.unload(&[]).result(0, "unloaded");
    target.finish();
    let patch = std::fs::metadata(&klp)
        .expect("it is there")
        .len()
        .next_multiple_of(4096) as f64;
    let allowed = 64.0 * 1024.0 + 2.0 * 4096.0 + patch;
    row(
        "memory for a patch of one function",
        format!(
            "{:.0} KiB (the maps have grown by {:.0} KiB)",
            bytes / 1024.0,
            grown / 1024.0
        ),
        format!("allowed: {:.0} KiB", allowed / 1024.0),
        Some(bytes / allowed),
        "at most 1",
    );
}

fn redis() {
    let windows = 8;
    let length = Duration::from_secs(5);
    let prepared =
        Redis::installed().then(|| Redis::start().and_then(|redis| Ok((demo_patch()?, redis))));
    let (klp, redis) = match prepared {
        Some(Ok(prepared)) => prepared,
        Some(Err(error)) => {
            return row(
                "redis-benchmark p99.9",
                error,
                String::new(),
                None,
                "at most 1.05",
            );
        }
        None => {
            return row(
                "redis-benchmark p99.9",
                "redis is not installed".into(),
                String::new(),
                None,
                "at most 1.05",
            );
        }
    };
    let requests = redis.requests_for(length).expect("the benchmark runs");
    let (mut alone, mut patching, mut loads, mut errors) = (Vec::new(), Vec::new(), 0, 0);
    let klp = klp.to_str().expect("a path in UTF-8");
    for _ in 0..windows {
        let window = redis
            .benchmark(requests)
            .and_then(|benchmark| benchmark.finish())
            .expect("the benchmark runs");
        alone.push(window.p999_ms);
        errors += window.errors;
        let mut benchmark = redis.benchmark(requests).expect("the benchmark runs");
        std::thread::sleep(Duration::from_millis(200));
        while !benchmark.ended() {
            let second = Instant::now() + Duration::from_secs(1);
            cli::livegraft(&["load", klp, "--pid", &redis.pid()]).result(0, "loaded");
            cli::livegraft(&["unload", "answers", "--pid", &redis.pid()]).result(0, "unloaded");
            loads += 1;
            while Instant::now() < second && !benchmark.ended() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let window = benchmark.finish().expect("the benchmark runs");
        patching.push(window.p999_ms);
        errors += window.errors;
    }
    row(
        &format!(
            "redis-benchmark p99.9, load + unload once a second ({windows} windows each, {loads} loads, {errors} errors)"
        ),
        format!("{:.3} ms", median(patching.clone())),
        format!("left alone: {:.3} ms", median(alone.clone())),
        Some(median(patching) / median(alone)),
        "at most 1.05",
    );
}

/// Two objects of a megabyte, with one line changed: the whole command, and with debug information for which it looks only
/// where something differs.
fn compare_objects() {
    for (debug, asked) in [("-g0", "under 50 ms"), ("-g", "")] {
        let dir = livegraft_scenarios::compile::out_dir();
        let functions = if debug == "-g" { 350 } else { 640 };
        let objects = [7, 8].map(|number| {
            let source = dir.join(format!("large{number}.c"));
            std::fs::write(&source, large_source(functions, number)).expect("it can be written");
            let object = source.with_extension("o");
            let status = std::process::Command::new("gcc")
                .args(["-O2", debug, "-ffunction-sections", "-fdata-sections", "-c"])
                .arg(&source)
                .arg("-o")
                .arg(&object)
                .status();
            assert!(status.is_ok_and(|status| status.success()));
            object
        });
        let size = std::fs::metadata(&objects[0]).map_or(0, |m| m.len());
        let words = objects
            .each_ref()
            .map(|o| o.to_str().expect("a path in UTF-8"));
        let extract = dir.join("large.extract.o");
        let extract = extract.to_str().expect("a path in UTF-8");
        let times = |words: &[&str], code: i32| {
            let run = |_| cli::livegraft(words).expect(code).elapsed.as_secs_f64() * 1e3;
            median((0..15).map(run).collect())
        };
        let changed = times(&["diff", words[0], words[1], "-o", extract], 0);
        let same = times(&["diff", words[0], words[0]], 1);
        let start = peak(&["--version"], 0);
        let more = peak(&["diff", words[0], words[1], "-o", extract], 0) - start;
        let inputs = 2.0 * size as f64 / 1e6;
        row(
            &format!(
                "`diff -o` of two objects of {:.2} MB ({debug}), one function changed",
                size as f64 / 1e6
            ),
            format!("{changed:.1} ms"),
            format!("the same object twice: {same:.1} ms"),
            None,
            asked,
        );
        row(
            &format!("most memory of the same, {debug}"),
            format!("{more:.1} MB"),
            format!(
                "the objects: {inputs:.1} MB; not counted: `livegraft --version`, {start:.1} MB"
            ),
            Some(more / inputs),
            "at most 5",
        );
    }
}

/// The most memory of a run of livegraft, in megabytes.
fn peak(words: &[&str], code: i32) -> f64 {
    let mut command = std::process::Command::new(cli::binary());
    command.args(words).stdout(std::process::Stdio::null());
    let ran = peak_memory(&mut command).expect("livegraft runs");
    let (bytes, ended) = ran.expect("it ends by itself");
    assert_eq!(ended, code, "{words:?}");
    bytes as f64 / 1e6
}

fn large_source(functions: usize, number: usize) -> String {
    let mut text =
        "#include <stdio.h>\nint other(int);\nstruct item { int a, b; struct item *next; };\n"
            .to_owned();
    for n in 0..functions {
        let constant = if n == functions / 2 { number } else { 3 };
        text += &format!(
            "static int state_{n};\n__attribute__((noinline)) int function_{n}(struct item *i, int x)\n{{\n\
             \tstatic int count;\n\tcount += x * {constant};\n\
             \tswitch (x) {{ case 0: return other(1); case 1: puts(\"text {n}\"); break; case 2: return i->b;\n\
             \tcase 3: return other(x + 2); case 4: state_{n}++; break; case 5: return other(9) ^ 5; }}\n\
             \tfor (; i; i = i->next) x += other(i->a) + count;\n\treturn x / 7 + state_{n};\n}}\n"
        );
    }
    text
}
