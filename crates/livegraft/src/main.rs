//! livegraft: live patching with the consistency model of Linux livepatch. The command line is thin: it reads files,
//! asks the engine, and shows what came of it.
#![forbid(unsafe_code)]

mod built;
mod checked;
mod commands;
mod compared;
mod differing;
mod failure;
mod freed;
mod listed;
mod stack;
mod status;
mod transitioned;
mod view;

use clap::{Args, Parser, Subcommand, ValueEnum};
use livegraft_process::{Method, OnTimeout, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Live patching of running processes, one task at a time, without stopping the world.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 done; 1 refused or failed, target as before; 2 usage; \
    3 timed out and reversed; 4 timed out and left in transition."
)]
struct Cli {
    /// Print one JSON document on stdout instead of text, errors included
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a patch file from compiled, hand-written C, or from what `diff` has extracted
    Pack {
        /// Object files that hold the patch's code and its KLP_PATCH; or those that `diff -o` has written
        #[arg(required = true)]
        objects: Vec<PathBuf>,
        /// The executable or shared library that runs; once for each object that the patch changes
        #[arg(long, required = true)]
        target: Vec<PathBuf>,
        /// Where to write the patch; its name is the file's name without `.klp`
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Show what changed between two objects of one source file, function by function
    Diff {
        /// Compiled from the source of what runs, with -ffunction-sections -fdata-sections, and -g if it can be had
        original: PathBuf,
        /// Compiled in the same way from the source with the fix
        patched: PathBuf,
        /// Where to write an object with only what a patch needs
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// A symbol, or a kind of refusals (data, struct, never-returns, ...), that you take on
        #[arg(long, value_name = "SYMBOL|KIND")]
        allow: Vec<String>,
        /// Take the callers of this function along, although they did not change
        #[arg(long, value_name = "FUNCTION")]
        with_callers: Vec<String>,
    },
    /// Make a patch file from the source of what runs and a diff: the build is run with and without it
    Build {
        /// The source of what runs, without the fix; it is not changed
        #[arg(long, requires = "command", required_unless_present = "debian")]
        source: Option<PathBuf>,
        /// The source of an installed Debian package instead, fetched and built by its own rules; the target is what is
        /// installed
        #[arg(long, value_name = "PACKAGE[=VERSION]", conflicts_with_all = ["source", "command", "build_dir", "plain"])]
        debian: Option<String>,
        /// The fix, as `diff -u` or git has it, with one directory to strip (-p1) or none
        #[arg(long)]
        diff: PathBuf,
        /// What runs: an executable or a shared library, stripped or not; several builds of one make one patch for all
        #[arg(long)]
        target: Vec<PathBuf>,
        /// Where to write the patch; its name is the file's name without `.klp`
        #[arg(short, long)]
        output: PathBuf,
        /// A symbol, or a kind of refusals (data, struct, never-returns, ...), that you take on
        #[arg(long, value_name = "SYMBOL|KIND")]
        allow: Vec<String>,
        /// Take the callers of this function along, although they did not change
        #[arg(long, value_name = "FUNCTION")]
        with_callers: Vec<String>,
        /// Another directory that the build writes to; it is not changed either
        #[arg(long, value_name = "DIR")]
        build_dir: Vec<PathBuf>,
        /// Where builds are kept for the next run [default: livegraft/build in XDG_CACHE_HOME or ~/.cache]
        #[arg(long, value_name = "DIR")]
        work: Option<PathBuf>,
        /// Use no namespaces: the build sees another path than that of the source
        #[arg(long)]
        plain: bool,
        /// The build command, as it is given in the source directory
        #[arg(last = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Show what is inside a patch file
    Info {
        /// The patch file
        patch: PathBuf,
        /// Show the instructions that differ instead, of a patch that `build` or `diff` has made
        #[arg(long)]
        diff: bool,
        /// With --diff: of these functions alone
        #[arg(value_name = "FUNCTION", requires = "diff")]
        functions: Vec<String>,
    },
    /// Would a patch load, how, and which tasks are within what it replaces? Changes nothing
    Check {
        /// The patch file
        patch: PathBuf,
        #[command(flatten)]
        process: ProcessArg,
        /// How long tasks are watched, such as 2s; otherwise they are looked at once
        #[arg(long, default_value = "0s", value_parser = duration)]
        sample: Duration,
        #[command(flatten)]
        together: TogetherArg,
        /// Insist on one way of redirecting entries
        #[arg(long, value_enum)]
        entry: Option<EntryArg>,
    },
    /// Load a patch into a running process
    Load {
        /// The patch file
        patch: PathBuf,
        #[command(flatten)]
        process: ProcessArg,
        #[command(flatten)]
        transition: TransitionArgs,
        #[command(flatten)]
        together: TogetherArg,
        /// Insist on one way of redirecting entries
        #[arg(long, value_enum)]
        entry: Option<EntryArg>,
    },
    /// Take a patch's redirection away again; its memory stays for the next load, or until `free`
    Unload {
        /// The patch's name
        name: String,
        #[command(flatten)]
        process: ProcessArg,
        #[command(flatten)]
        transition: TransitionArgs,
        #[command(flatten)]
        together: TogetherArg,
    },
    /// Show patched processes, their patches, entries and the memory that livegraft holds in them
    List {
        /// Only this process
        #[arg(long)]
        pid: Option<i32>,
    },
    /// Show the transition of a process, task by task, with the stack word that blocks
    Status {
        #[command(flatten)]
        process: ProcessArg,
    },
    /// Write down where a loaded patch's functions lie, for perf or gdb
    Symbols {
        /// The patch file that was loaded
        patch: PathBuf,
        #[command(flatten)]
        process: ProcessArg,
        /// For which tool
        #[arg(long = "for", value_enum)]
        tool: ToolArg,
        /// The file; perf looks for /tmp/perf-PID.map, gdb is told with `add-symbol-file FILE`
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Take up a transition that an interrupted or timed out command left open
    Resume {
        #[command(flatten)]
        process: ProcessArg,
        #[command(flatten)]
        transition: TransitionArgs,
    },
    /// Move every task that the open transition waits for, whatever is on its stack. Dangerous: see docs/commands.md
    Force {
        #[command(flatten)]
        process: ProcessArg,
        #[command(flatten)]
        transition: TransitionArgs,
    },
    /// Give the memory of unloaded patches back, if nothing can refer to it any more
    Free {
        /// The patch's name; otherwise all that are unloaded
        name: Option<String>,
        #[command(flatten)]
        process: ProcessArg,
        /// Let all tasks stand still at once for at most so long, such as 50ms, which the proof needs; without it nothing
        /// is unmapped, but it is shown what still refers to it
        #[arg(long, value_parser = duration)]
        stop: Option<Duration>,
    },
    /// Turn the open transition round: every task goes back to where it came from
    Reverse {
        #[command(flatten)]
        process: ProcessArg,
        #[command(flatten)]
        transition: TransitionArgs,
    },
}

#[derive(Debug, Args)]
struct ProcessArg {
    /// The process
    #[arg(long)]
    pid: i32,
}

#[derive(Debug, Args)]
struct TransitionArgs {
    /// How long the transition may take, such as 15s, 200ms, 2m
    #[arg(long, default_value = "15s", value_parser = duration)]
    timeout: Duration,
    /// What happens then: bring every task back, or leave the transition open (`resume` and `reverse` take it up)
    #[arg(long, value_enum, default_value_t = OnTimeoutArg::Reverse)]
    on_timeout: OnTimeoutArg,
}

#[derive(Debug, Args)]
struct TogetherArg {
    /// Allow all tasks to be stopped at once, for milliseconds, where code may sleep on stacks that no task owns
    /// (coroutines, fibers)
    #[arg(long)]
    together: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnTimeoutArg {
    Reverse,
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ToolArg {
    Perf,
    Gdb,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EntryArg {
    Pun,
    Swap,
    /// The same while all tasks stand still, where the first instructions are shorter
    Rendezvous,
}

impl From<EntryArg> for Method {
    fn from(entry: EntryArg) -> Method {
        match entry {
            EntryArg::Pun => Method::Pun,
            EntryArg::Swap => Method::Swap,
            EntryArg::Rendezvous => Method::Rendezvous,
        }
    }
}

impl TransitionArgs {
    fn options(&self, entry: Option<EntryArg>, together: bool) -> Options {
        Options {
            timeout: self.timeout,
            on_timeout: match self.on_timeout {
                OnTimeoutArg::Reverse => OnTimeout::Reverse,
                OnTimeoutArg::Leave => OnTimeout::Leave,
            },
            entry: entry.map(Method::from),
            together,
        }
    }
}

/// `15s`, `200ms`, `2m`, `0.5s`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time; use ms, s, m or h")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no duration"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| format!("`{text}` is no duration"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Pack {
            objects,
            target,
            output,
        } => commands::pack(objects, target, output),
        Command::Diff {
            original,
            patched,
            output,
            allow,
            with_callers,
        } => {
            let options = livegraft_build::compare::Options {
                allow: allow.clone(),
                with_callers: with_callers.clone(),
            };
            commands::diff(original, patched, output.as_deref(), &options)
        }
        Command::Build {
            source,
            debian,
            diff,
            target,
            output,
            allow,
            with_callers,
            build_dir,
            work,
            plain,
            command,
        } => {
            let origin = match debian {
                Some(package) => built::Origin::Debian {
                    package,
                    diff,
                    work: work.as_deref(),
                },
                None => built::Origin::Tree(Box::new(livegraft_build::capture::Request {
                    source: source.clone().unwrap_or_default(),
                    build_dirs: build_dir.clone(),
                    diff: diff.clone(),
                    command: command.clone(),
                    work: work.clone(),
                    plain: *plain,
                    ..Default::default()
                })),
            };
            let options = livegraft_build::compare::Options {
                allow: allow.clone(),
                with_callers: with_callers.clone(),
            };
            built::build(origin, target, output, &options)
        }
        Command::Info {
            patch,
            diff: true,
            functions,
        } => commands::info_diff(patch, functions),
        Command::Info { patch, .. } => commands::info(patch),
        Command::Load {
            patch,
            process,
            transition,
            together,
            entry,
        } => {
            let options = transition.options(*entry, together.together);
            commands::load(patch, process.pid, &options)
        }
        Command::Unload {
            name,
            process,
            transition,
            together,
        } => {
            let options = transition.options(None, together.together);
            commands::unload(name, process.pid, &options)
        }
        Command::Check {
            patch,
            process,
            sample,
            together,
            entry,
        } => {
            let entry = entry.map(Method::from);
            commands::check(patch, process.pid, entry, together.together, *sample)
        }
        Command::Symbols {
            patch,
            process,
            tool,
            output,
        } => commands::symbols(patch, process.pid, *tool == ToolArg::Perf, output),
        Command::List { pid } => commands::list(*pid),
        Command::Status { process } => commands::status(process.pid),
        Command::Resume {
            process,
            transition,
        } => commands::resume(process.pid, &transition.options(None, true)),
        Command::Force {
            process,
            transition,
        } => commands::force(process.pid, &transition.options(None, true)),
        Command::Free {
            name,
            process,
            stop,
        } => commands::free(name.as_deref(), process.pid, *stop),
        Command::Reverse {
            process,
            transition,
        } => commands::reverse(process.pid, &transition.options(None, true)),
    };
    match outcome {
        Ok(shown) => shown.print(cli.json),
        Err(failure) => failure.print(cli.json),
    }
}
