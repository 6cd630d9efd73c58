//! `make stock`: patches for Debian's stock servers from nothing but their packages and a diff, loaded into them under load.
//! Prints what docs/stock.md shows. `stock NAME..` does that for these only; `odd` is a name too.

use livegraft_scenarios::inspect::{self, Baseline};
use livegraft_scenarios::servers::load::Seen;
use livegraft_scenarios::servers::{Kind, Server};
use livegraft_scenarios::stock::{Builder, Fix, Made, Subject, fixes, odd};
use livegraft_scenarios::{Outcome, cli, raise_open_files};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the clients are at work.
const LOADED: u64 = 15;
/// How long a patch stays in.
const STAY: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    raise_open_files();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names = Kind::STOCK.map(Kind::name);
    let known = |name: &String| names.contains(&name.as_str()) || name == "odd";
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        eprintln!(
            "no server is called `{unknown}`; there are {}, and odd",
            names.join(", ")
        );
        return ExitCode::from(2);
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    let builder = match Builder::new() {
        Ok(builder) => builder,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    let mut rows = Vec::new();
    for kind in Kind::STOCK
        .into_iter()
        .filter(|kind| is_wanted(kind.name()))
    {
        println!("{}", kind.name());
        match story(kind, &builder) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                eprintln!("{}: {error}", kind.name());
                code = ExitCode::FAILURE;
            }
        }
    }
    if is_wanted("odd") {
        println!("What is odd:");
        if let Err(error) = odd::all(&builder) {
            eprintln!("{error}");
            code = ExitCode::FAILURE;
        }
    }
    println!(
        "\n| package | diff | replaces | proof | build: s, processor s | loads | transition, ms (median, longest) | longest stop, us | answers, errors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    code
}

/// What came of all loads and unloads of one patch.
#[derive(Default)]
struct Tally {
    loads: u64,
    transitions_us: Vec<u64>,
    longest_stop_us: u64,
}

impl Tally {
    fn done(&mut self, outcome: &Outcome) {
        let number = |field: &str| outcome.json[field].as_u64().unwrap_or(0);
        self.transitions_us.push(number("transition_us"));
        self.longest_stop_us = self.longest_stop_us.max(number("longest_stop_us"));
    }
}

fn said(made: &Made) -> String {
    match made.message() {
        "" => made.outcome.to_string(),
        message => message.to_owned(),
    }
}

fn story(kind: Kind, builder: &Builder) -> Result<Vec<String>, String> {
    let fixes = fixes(kind).ok_or("it has no diffs")?;
    let installed = Subject::installed(kind.package(), kind.program())?;
    let (subject, first) = builder.first(installed, &fixes[0].path())?;
    let second = builder.build(&subject, &fixes[1].path());
    let made = [first, second];
    for (number, made) in made.iter().enumerate() {
        if made.outcome.code != 0 {
            return Err(said(made));
        }
        if number == 1 && made.outcome.json["reused"] != true {
            return Err(format!("the original was built again: {}", made.outcome));
        }
        let functions = made.changed();
        let is_static = number == 1;
        if functions.len() != 1
            || functions
                .iter()
                .any(|(_, file)| file.is_some() != is_static)
        {
            return Err(format!("{}: replaces {functions:?}", fixes[number].name));
        }
        println!(
            "  {}: {:.0} s",
            fixes[number].name,
            made.outcome.elapsed.as_secs_f64()
        );
    }
    // By its own name: what redis does depends on that, and the file has another one.
    let program = match subject.installed {
        true => kind.program(),
        false => &subject.program,
    };
    let server = Server::start_program(kind, program)?;
    server.prepare()?;
    let baselines: Vec<(i32, Baseline)> = server
        .processes()
        .into_iter()
        .map(|(_, pid)| (pid, Baseline::take(pid)))
        .collect();
    let mut tallies = [Tally::default(), Tally::default()];
    let seen = std::thread::scope(|scope| -> Result<Seen, String> {
        let load = scope.spawn(|| server.load(LOADED));
        std::thread::sleep(Duration::from_secs(1));
        let until = Instant::now() + Duration::from_secs(LOADED - 4);
        let mut result = Ok(());
        while result.is_ok() && Instant::now() < until {
            for ((fix, made), tally) in fixes.iter().zip(&made).zip(&mut tallies) {
                result = result.and_then(|()| cycle(&server, fix, &made.klp, tally));
            }
        }
        let seen = load.join().map_err(|_| "the load panicked".to_owned())?;
        result.and(seen)
    })?;
    for (pid, baseline) in baselines {
        if let Some(difference) = baseline.text_difference() {
            return Err(format!("the text of {pid} is not as it was: {difference}"));
        }
        let bases = inspect::foreign_gs_bases(pid);
        if !bases.is_empty() {
            return Err(format!("{bases:?}"));
        }
    }
    if seen.errors > 0 {
        return Err(format!("its clients saw {} errors", seen.errors));
    }
    let parts = fixes.iter().zip(&made).zip(&mut tallies);
    Ok(parts
        .map(|((fix, made), tally)| row(&subject, fix, made, tally, &seen))
        .collect())
}

fn row(subject: &Subject, fix: &Fix, made: &Made, tally: &mut Tally, seen: &Seen) -> String {
    tally.transitions_us.sort_unstable();
    let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1000.0);
    let where_from = ["unpacked", "installed"][usize::from(subject.installed)];
    let functions = made.changed().into_iter().map(|(name, file)| match file {
        Some(file) => format!("`{name}`, static in {file}"),
        None => format!("`{name}`"),
    });
    let original = ["with the original", ""][usize::from(made.outcome.json["reused"] == true)];
    format!(
        "| {} {} ({where_from}) | {} | {} | {} | {:.0}, {:.0} {original} | {} | {:.1}, {:.1} | {} | {}, {} |",
        subject.package,
        subject.version,
        fix.name,
        functions.collect::<Vec<_>>().join("; "),
        made.proof(),
        made.outcome.elapsed.as_secs_f64(),
        made.processor,
        tally.loads,
        ms(tally.transitions_us.get(tally.transitions_us.len() / 2)),
        ms(tally.transitions_us.last()),
        tally.longest_stop_us,
        seen.answers,
        seen.errors,
    )
}

/// Loads a patch into all processes of a server, asks, and takes it away again.
fn cycle(server: &Server, fix: &Fix, klp: &Path, tally: &mut Tally) -> Result<(), String> {
    let klp = klp.to_str().ok_or("a path that is not UTF-8")?;
    let expect = |is_new: bool| {
        let answer = server.query(fix.question)?;
        let right = match is_new {
            true => answer.contains(fix.new),
            false => answer.contains(fix.old) && !answer.contains(fix.new),
        };
        let wanted = [fix.old, fix.new][usize::from(is_new)];
        right
            .then_some(())
            .ok_or_else(|| format!("{}: {answer} instead of {wanted}", fix.question))
    };
    let mut on_all = |words: &[&str]| {
        for (_, pid) in server.processes() {
            let outcome = cli::livegraft(&[words, &["--pid", &pid.to_string()]].concat());
            if outcome.code != 0 {
                return Err(outcome.to_string());
            }
            tally.done(&outcome);
        }
        Ok(())
    };
    expect(false)?;
    on_all(&["load", klp])?;
    expect(true)?;
    std::thread::sleep(STAY);
    expect(true)?;
    on_all(&["unload", fix.name])?;
    tally.loads += 1;
    expect(false)
}
