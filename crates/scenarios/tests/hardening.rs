//! Services as their managers confine them, and what can't be done to them then: it is refused before anything changes.

use livegraft_scenarios::compile::{compile_program, has_command};
use livegraft_scenarios::cycle::{check_listed, load, twice};
use livegraft_scenarios::refusal::{check, check_text};
use livegraft_scenarios::{
    Build, Outcome, Plan, Target, cli, compile_patch_as, compile_target, inspect, note, require,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn built(name: &str) -> (Plan, PathBuf) {
    let plan = Plan::read(name);
    let exe = compile_target(&plan, &Build::new("gcc -O2 pie"));
    (plan, exe)
}

fn patch(plan: &Plan, exe: &Path, flags: &[&str]) -> PathBuf {
    let build = Build::new("gcc -O2 pic");
    let build = flags.iter().fold(build, |build, flag| build.flag(flag));
    compile_patch_as(plan, &build, exe, "fix")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The program confined like that; the process to patch is its child.
fn confined(plan: &Plan, exe: &Path, how: &str) -> Target {
    let mut target = Target::start(plan, exe, &[how]);
    let pid = target.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("it is alive");
    let child = children.trim().parse().expect("it has one child");
    target.rebase(child);
    target
}

/// What a field of the child's status says.
fn status(target: &Target, field: &str) -> String {
    let status = inspect::status(&format!("/proc/{}/status", target.pid()));
    status[field].clone()
}

fn cycles(how: &str) {
    let (plan, exe) = built("hardened");
    let klp = patch(&plan, &exe, &[]);
    for entry in ["pun", "swap", "rendezvous"] {
        twice(confined(&plan, &exe, how), &klp, Some(entry));
    }
}

#[test]
fn service_under_everything_at_once() {
    let (plan, exe) = built("hardened");
    let target = confined(&plan, &exe, "all");
    assert_eq!(status(&target, "Seccomp"), "2");
    assert_eq!(status(&target, "NoNewPrivs"), "1");
    assert!(status(&target, "NSpid").ends_with("\t1"));
    target.end();
    cycles("all");
}

#[test]
fn first_process_of_a_namespace() {
    cycles("init");
}

#[test]
fn somebody_else_in_a_user_namespace() {
    cycles("user");
}

/// Runs livegraft through another command.
fn through(command: &[&str], arguments: &[&str]) -> Outcome {
    let mut all = Command::new(command[0]);
    all.args(&command[1..]).arg(cli::binary()).args(arguments);
    all.stdin(Stdio::null()).stdout(Stdio::piped());
    all.stderr(Stdio::piped());
    cli::run(all).finish()
}

/// Without the right to suspend filters.
const SETPRIV: &[&str] = &["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"];

fn has_setpriv() -> bool {
    require("setpriv", has_command("setpriv"))
}

/// Insists on a refusal, both ways.
fn refused(command: &[&str], arguments: &[&str], words: &str) {
    check_text(&through(command, arguments), words);
    check(&through(command, &[arguments, &["--json"]].concat()), words);
}

const FILTER: &str = "seccomp filter CAP_SYS_ADMIN container";

/// The filter would kill the process for what livegraft has it do, and livegraft may not suspend it.
#[test]
fn filter_that_livegraft_may_not_suspend() {
    let (plan, exe) = built("hardened");
    let klp = patch(&plan, &exe, &[]);
    // Livegraft under a filter of its own, as in a container.
    let filtered = compile_program(&plan, &Build::new("gcc -O2 pie"), "filtered.c");
    for how in ["filter", "all"] {
        let mut target = confined(&plan, &exe, how);
        let pid = target.pid_text();
        let load = ["load", text(&klp), "--pid", &pid];
        if has_setpriv() {
            refused(SETPRIV, &load, FILTER);
        }
        refused(&[text(&filtered)], &load, FILTER);
        target.expect("old");
        target.assert_untouched();
        twice(target, &klp, None);
    }
}

/// What is prepared already may be used without a call of the process'; pages can't be replaced.
#[test]
fn patched_process_whose_filter_livegraft_may_not_suspend() {
    let (plan, exe) = built("hardened");
    let klp = patch(&plan, &exe, &[]);
    if !has_setpriv() {
        return;
    }
    for entry in ["pun", "swap", "rendezvous"] {
        let mut target = confined(&plan, &exe, "filter");
        let loaded = load(&target, &klp, Some(entry));
        let pid = target.pid_text();
        let unload = ["unload", "fix", "--pid", &pid];
        let again = ["load", text(&klp), "--pid", &pid, "--entry", entry];
        if entry == "pun" {
            through(SETPRIV, &unload).done();
            target.expect("old");
            through(SETPRIV, &again).done();
            target.expect("new");
            target.unload(&[]).result(0, "unloaded");
        } else {
            refused(SETPRIV, &unload, FILTER);
            target.expect("new");
            check_listed(&target, &loaded);
            target.unload(&[]).result(0, "unloaded");
            target.expect("old");
            refused(SETPRIV, &again, FILTER);
        }
        target.expect("old");
        target.finish();
    }
}

/// Room for so many KiB more is left; each load goes well, or is refused and leaves nothing behind.
fn tight(limit: &str, entry: &str) {
    let (plan, exe) = built("circumstances");
    let klp = patch(&plan, &exe, &[]);
    let (mut loads, mut refusals) = (0, 0);
    for room in (0..=120).step_by(8).chain([512]) {
        let mut target = Target::start(&plan, &exe, &[limit, &room.to_string()]);
        let outcome = target.load(&klp, &["--entry", entry]);
        if outcome.code == 0 {
            loads += 1;
            target.expect("new");
            target.unload(&[]).result(0, "unloaded");
        } else {
            refusals += 1;
            check(&outcome, "allowed map|page RLIMIT_AS");
            target.assert_untouched();
        }
        target.expect("old");
        target.finish();
    }
    note(&format!(
        "{limit}, {entry}: {loads} loads, {refusals} refusals"
    ));
    assert!(loads > 0 && refusals > 0);
}

#[test]
fn address_space_that_is_nearly_full() {
    for entry in ["pun", "swap", "rendezvous"] {
        tight("limit", entry);
    }
}

/// So much more data than there is may the process have: too little for the patch's variables, or for what its unwinder
/// keeps, is a refusal, which leaves nothing behind; and nothing is wrong with the process when the limit is raised.
#[test]
fn data_that_is_nearly_at_its_limit() {
    let (plan, exe) = built("scarce");
    let klp = patch(&plan, &exe, &[]);
    for entry in ["pun", "swap", "rendezvous"] {
        let (mut loads, mut refusals) = (Vec::new(), Vec::new());
        let mut said = String::new();
        for room in (0..=32).step_by(4) {
            let mut target = Target::start(&plan, &exe, &[]);
            assert_eq!(target.ask(&format!("limit {room}")), "ok");
            target.rebase(target.pid());
            let outcome = target.load(&klp, &["--entry", entry]);
            if outcome.code == 0 {
                loads.push(room);
                target.expect("new");
                target.unload(&[]).result(0, "unloaded");
            } else {
                refusals.push(room);
                check(&outcome, "allowed map RLIMIT_DATA");
                said.push_str(&outcome.stderr);
                target.assert_untouched();
            }
            target.expect("old");
            assert_eq!(target.ask("unlimit"), "ok");
            twice(target, &klp, Some(entry));
        }
        note(&format!("{entry}: loads {loads:?}, refusals {refusals:?}"));
        assert!(loads.contains(&32) && refusals.contains(&0));
        // There is a step between: room for the variables alone.
        assert!(
            said.contains("(variables of a patch)") && said.contains("unwinders"),
            "{said}"
        );
    }
}
