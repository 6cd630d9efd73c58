//! Runs in a guest with another kernel, see `livegraft_scenarios::guest`.

use std::process::ExitCode;

fn main() -> ExitCode {
    livegraft_scenarios::guest::inside::main()
}
