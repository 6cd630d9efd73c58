//! The harness itself: it must see what it is there to see, and every program must be well when it is left alone.

use livegraft_scenarios::compile::has_command;
use livegraft_scenarios::inspect::{self, Baseline};
use livegraft_scenarios::redis::{Checker, Redis};
use livegraft_scenarios::{Build, Plan, Target, Tracer, bare_visit, compile_target, require};
use std::time::Duration;

fn start(name: &str, arguments: &[&str]) -> Target {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &plan.targets()[0]);
    Target::start(&plan, &exe, arguments)
}

#[test]
fn programs_are_well_when_left_alone() {
    let names = [
        "many",
        "contract",
        "rtsig",
        "parent",
        "redzone",
        "args",
        "wide",
        "objects",
        "entries",
        "deadword",
        "pinned",
        "sleeper",
        "eintr",
        "rendezvous",
        "pairs",
        "versions",
        "pages",
        "padding",
        "selfloop",
        "libs",
        "seccomp",
        "altstack",
        "family",
        "leavers",
        "tailpad",
        "stacks",
        "stacks_cpp",
        "stacks_rust",
        "stacks_generated",
        "fibers",
        "lua",
        "gsbase",
        "libc_static",
        "hardened",
        "rust",
        "cxx",
        "tails",
        "free",
        "exceptions",
        "unwinder",
        "cancel",
        "cpp",
        "burner",
        "symbols",
        "diff",
        "rust_in_rust",
        "rust_in_c",
        "backtrace",
        "unwinder_held",
        "unwinder_fiber",
        "musl_unwinder",
        "scarce",
        "recovered",
        "built",
        "late_switch",
        "ifunc",
        "ifunc_own",
    ];
    for name in names {
        let plan = Plan::read(name);
        for build in plan.targets() {
            if !has_command(&build.compiler) {
                continue;
            }
            let exe = compile_target(&plan, &build);
            let mut target = Target::start(&plan, &exe, &[]);
            target.expect("old");
            std::thread::sleep(Duration::from_millis(100));
            target.expect("old");
            target.assert_undisturbed();
            assert_eq!(target.baseline().text_difference(), None, "{name} {build}");
            target.end();
        }
    }
}

#[test]
fn changed_text_is_seen() {
    let target = start("many", &[]);
    let (_, address) = inspect::function(target.pid(), target.exe(), "scn_serve");
    let before = inspect::poke(target.pid(), address, 0xcc);
    assert!(target.baseline().text_difference().is_some());
    inspect::poke(target.pid(), address, before);
    assert_eq!(target.baseline().text_difference(), None);
    target.end();
}

#[test]
fn stray_mapping_is_seen() {
    let plan = Plan::read("redzone");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    let target = Target::start(&plan, &exe, &[]);
    let now = Baseline::take(target.pid());
    assert_eq!(now.unaccounted(&serde_json::Value::Null, false), []);
    assert_eq!(now.maps_difference(), None);
    // Another process of the same program has other addresses: all of them are new.
    let other = Target::start(&plan, &exe, &[]);
    assert_ne!(inspect::maps(other.pid()), inspect::maps(target.pid()));
    target.end();
    other.end();
}

#[test]
fn tracer_is_seen() {
    let target = start("many", &[]);
    assert_eq!(inspect::disturbed_tasks(target.pid()), Vec::<String>::new());
    let tracer = Tracer::attach(target.pid()).expect("tracing a child works");
    assert_eq!(inspect::disturbed_tasks(target.pid()).len(), 1);
    drop(tracer);
    assert_eq!(inspect::disturbed_tasks(target.pid()), Vec::<String>::new());
    target.end();
}

#[test]
fn foreign_gs_base_is_seen() {
    let target = start("refuse/gs", &[]);
    assert_eq!(inspect::foreign_gs_bases(target.pid()).len(), 1);
    target.end();
    let target = start("many", &["50", "2"]);
    assert_eq!(
        inspect::foreign_gs_bases(target.pid()),
        Vec::<String>::new()
    );
    target.end();
}

/// Interruptions without any repair do reach the program: the EINTR scenario can fail.
#[test]
fn eintr_is_seen() {
    let plan = Plan::read("eintr");
    let exe = compile_target(&plan, &plan.targets()[0]);
    let mut target = Target::start(&plan, &exe, &[]);
    target.expect("old");
    for tid in inspect::tasks(target.pid()) {
        let _ = bare_visit(tid);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        inspect::status(&format!("/proc/{}/status", target.pid()))["State"].starts_with('Z'),
        "it did not notice"
    );
}

#[test]
fn redis_and_its_benchmark_are_understood() {
    if !require(
        "redis-server, redis-benchmark and redis-cli",
        Redis::installed(),
    ) {
        return;
    }
    let redis = Redis::start().expect("redis starts");
    let checker = Checker::start(redis.port, &["+PONG"]).expect("it listens");
    let window = redis
        .benchmark(2000)
        .and_then(|benchmark| benchmark.finish())
        .expect("the benchmark runs");
    assert!(
        window.errors == 0 && window.p999_ms > 0.0 && window.p999_ms < 1000.0,
        "{window:?}"
    );
    assert_eq!(redis.cli(&["PING"]).as_deref(), Ok("PONG"));
    assert!(redis.processed().expect("INFO works") > 4000);
    assert!(checker.finish().expect("the answers are right") > 0);
    let checker = Checker::start(redis.port, &["+something else"]).expect("it listens");
    std::thread::sleep(Duration::from_millis(50));
    assert!(checker.finish().is_err());
}
