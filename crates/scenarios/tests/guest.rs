//! The same scenarios under other kernels than this machine's, with FSGSBASE and without it.

use livegraft_scenarios::guest::{self, Guest, Processor, System};
use livegraft_scenarios::{Build, Plan, Target, compile_target, note, require};
use serde_json::Value;
use std::sync::OnceLock;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

/// The scenarios that `LIVEGRAFT_GUEST` names, for whoever looks into one; else all.
fn chosen() -> Vec<String> {
    let names = std::env::var("LIVEGRAFT_GUEST").unwrap_or_default();
    let named: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let all = guest::names().into_iter().map(str::to_owned).collect();
    if named.is_empty() { all } else { named }
}

/// The files, the same for all guests.
fn system() -> &'static System {
    static SYSTEM: OnceLock<System> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let runner = env!("CARGO_BIN_EXE_guest");
        let mut system = System::new("system");
        guest::prepare(&mut system);
        system.add_stripped(runner.as_ref());
        system.pack(&format!("{runner} {}", chosen().join(" ")));
        system
    })
}

fn under(series: &str, processor: Processor) {
    let (what, there) = System::requirements();
    if !require(what, there) {
        return;
    }
    let kernel = guest::kernel(series);
    if !require(&format!("Debian's Linux {series}"), kernel.is_some()) {
        return;
    }
    let name = format!("{series}-{processor:?}");
    let guest = Guest {
        name: &name,
        kernel: &kernel.expect("it is there"),
        processor,
        limit: LIMIT,
    };
    let ran = guest.run(system());
    for result in &ran.results {
        note(&format!("{name}: {result}"));
    }
    note(&format!("{name}: {:.1?}", ran.elapsed));
    let ended = |name: &String| {
        let mut results = ran.results.iter();
        results.any(|result| result["scenario"] == *name && result["failed"].is_null())
    };
    let mut missing = chosen();
    missing.retain(|name| !ended(name));
    assert_eq!(missing, Vec::<String>::new(), "{}", ran.console);
    assert_eq!(
        ran.results.last().map(|last| &last["exit"]),
        Some(&Value::from(0))
    );
    let machine = &ran.results[0];
    let machine = machine["said"].as_str().unwrap_or_default();
    let fsgsbase = format!("fsgsbase={}", processor == Processor::Fsgsbase);
    assert!(
        machine.starts_with(&format!("{series}.")) && machine.ends_with(&fsgsbase),
        "{machine}"
    );
}

#[test]
fn linux_6_1() {
    under("6.1", Processor::Fsgsbase);
}

#[test]
fn linux_6_1_on_an_old_processor() {
    under("6.1", Processor::Old);
}

#[test]
fn linux_6_12() {
    under("6.12", Processor::Fsgsbase);
}

#[test]
fn linux_6_12_told_not_to_use_fsgsbase() {
    under("6.12", Processor::SwitchedOff);
}

/// The kernel of Debian 11, for which another release's lists of packages are fetched.
#[test]
#[ignore = "make old-kernels"]
fn linux_5_10() {
    under("5.10", Processor::Fsgsbase);
}

/// See above.
#[test]
#[ignore = "make old-kernels"]
fn linux_5_10_on_an_old_processor() {
    under("5.10", Processor::Old);
}

/// What guests rely on holds under this kernel too.
#[test]
fn gs_base_stays_here() {
    let plan = Plan::read("gsbase");
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    guest::check_gs_base(Target::start(&plan, &exe, &[]));
}
