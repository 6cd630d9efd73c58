//! Every reader on the fuzzers' seeds, what crashed it once among them, and on what is made of them by a fixed sequence
//! of damage.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use livegraft_hostile::{READERS, Reader, mutate, read};

/// For the damage of all readers together.
const TIME: Duration = Duration::from_secs(8);
/// A few thousand bytes take a few milliseconds, on a busy machine some more.
const LONGEST: Duration = Duration::from_secs(5);

fn seeds(reader: &Reader) -> Vec<(PathBuf, Vec<u8>)> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let directories = [Some(reader.name), reader.also];
    let files = directories
        .into_iter()
        .flatten()
        .filter_map(|name| std::fs::read_dir(seeds.join(name)).ok())
        .flatten();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let content = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
    files.into_iter().map(content).collect()
}

fn read_in_time(reader: &Reader, what: &dyn Fn() -> String, input: &[u8]) {
    let start = Instant::now();
    if std::panic::catch_unwind(|| read(reader, input)).is_err() {
        panic!("{} panicked on {}", reader.name, what());
    }
    let took = start.elapsed();
    assert!(took < LONGEST, "{}: {took:?} for {}", reader.name, what());
}

#[test]
fn seeds_and_what_is_made_of_them() {
    let readers = READERS.len() as u32;
    let all: Vec<_> = std::thread::scope(|scope| {
        let run = |reader: &'static Reader| {
            move || {
                let seeds = seeds(reader);
                assert!(seeds.len() > 1 || reader.name == "patch" || reader.name == "pack");
                for (path, seed) in &seeds {
                    read_in_time(reader, &|| path.display().to_string(), seed);
                }
                // Two at a time.
                let until = Instant::now() + 2 * TIME / readers;
                let mut number = 0u64;
                while Instant::now() < until {
                    for (path, seed) in &seeds {
                        let damaged = mutate(seed, number);
                        let what = || format!("{} damaged with {number}", path.display());
                        read_in_time(reader, &what, &damaged);
                    }
                    number += 1;
                }
                (reader.name, seeds.len(), number)
            }
        };
        let halves = READERS.split_at(READERS.len() / 2);
        let threads: Vec<_> = [halves.0, halves.1]
            .into_iter()
            .map(|half| scope.spawn(move || half.iter().map(|r| run(r)()).collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    for (name, seeds, rounds) in all {
        println!("{name}: {seeds} seeds, {rounds} rounds of damage");
        assert!(rounds > 0, "{name}");
    }
}
