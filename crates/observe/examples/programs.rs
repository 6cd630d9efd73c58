//! Shows what a command executes: `programs COMMAND...`; with `-q` before it only how much.
use std::process::ExitStatus;
use std::sync::atomic::AtomicBool;

use livegraft_observe::{Pid, Process, Watcher, command, run};

struct Show {
    quiet: bool,
    count: usize,
}

impl Watcher for Show {
    fn executed(&mut self, process: &Process) {
        self.count += 1;
        if !self.quiet {
            println!("{} {:?}", process.pid, process.arguments());
        }
    }

    fn ended(&mut self, pid: Pid, status: ExitStatus) {
        if !self.quiet {
            println!("{pid} {status}");
        }
    }
}

fn main() -> Result<(), livegraft_observe::Error> {
    let mut argv: Vec<_> = std::env::args_os().skip(1).collect();
    let quiet = argv.first().is_some_and(|first| first == "-q");
    if quiet {
        argv.remove(0);
    }
    let mut show = Show { quiet, count: 0 };
    let status = run(command(&argv), &mut show, &AtomicBool::new(false))?;
    eprintln!("{status}, {} programs", show.count);
    Ok(())
}
