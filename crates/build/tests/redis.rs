//! Debian's redis, built from its source package and found in the stock binaries, both ways.
//!
//! Needs a build of the source package in the version that is installed, and where it is (`make bench` does it all):
//!
//! ```text
//! LIVEGRAFT_REDIS=$(scripts/redis) cargo test --release -p livegraft-build --test redis -- --ignored --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use livegraft_build::place::{self, Object};

/// VmHWM, after it was set back to what is in use.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

fn measured<T>(what: &str, inputs: u64, run: impl Fn() -> T) -> T {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    let start = Instant::now();
    let result = run();
    let took = start.elapsed();
    let more = peak() - before;
    println!(
        "{what}: {:.1} ms, {:.1} MiB more at the peak ({:.2} times the inputs of {:.1} MiB)",
        took.as_secs_f64() * 1e3,
        more as f64 / 1048576.0,
        more as f64 / inputs as f64,
        inputs as f64 / 1048576.0,
    );
    assert!(took < Duration::from_secs(1));
    assert!(more < 4 * inputs, "with the inputs themselves 5 times");
    result
}

/// What the build linked into redis-server: the objects that its rules name.
fn linked_objects(source: &Path) -> Vec<PathBuf> {
    let log = std::process::Command::new("make")
        .current_dir(source.join("src"))
        .args(["-pn", "redis-server"])
        .output()
        .unwrap();
    let rules = String::from_utf8_lossy(&log.stdout).into_owned();
    let line = rules
        .lines()
        .find(|l| l.starts_with("REDIS_SERVER_OBJ ="))
        .unwrap();
    let names = line.split_whitespace().filter(|w| w.ends_with(".o"));
    names.map(|n| source.join("src").join(n)).collect()
}

#[test]
#[ignore = "needs a build of Debian's redis source package"]
fn redis() {
    let source = PathBuf::from(std::env::var_os("LIVEGRAFT_REDIS").expect("LIVEGRAFT_REDIS"));
    let target = std::fs::read("/usr/bin/redis-check-rdb").unwrap();
    let linked = std::fs::read(source.join("src/redis-server")).unwrap();
    let inputs = (target.len() + linked.len()) as u64;
    let symbols = measured("identical", inputs, || {
        place::identical(&target, &linked).map(|s| s.iter().count())
    });
    println!("  {} symbols", symbols.unwrap());
    let symbols = place::identical(&target, &linked).unwrap();

    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for path in linked_objects(&source) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        files.push((name, std::fs::read(&path).unwrap()));
    }
    for entry in std::fs::read_dir(source.join("deps")).unwrap() {
        let dir = entry.unwrap().path();
        for dir in [dir.join("src"), dir] {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "o") {
                    let name = path.to_string_lossy().into_owned();
                    files.push((name, std::fs::read(&path).unwrap()));
                }
            }
        }
    }
    let objects: Vec<Object<'_>> = files
        .iter()
        .map(|(name, bytes)| Object { name, bytes })
        .collect();
    let inputs = (target.len() + files.iter().map(|(_, b)| b.len()).sum::<usize>()) as u64;
    let placement = measured("objects", inputs, || {
        match place::objects(&target, &objects) {
            Ok(placement) => placement,
            Err(refusal) => panic!("{refusal}"),
        }
    });
    let share = placement.share();
    println!("  {} objects, {share:?}", objects.len());
    let (mut right, mut statics) = (0, 0);
    let mut found = HashSet::new();
    for (number, object) in objects.iter().enumerate() {
        let file = Path::new(object.name).file_stem().unwrap();
        let file = format!("{}.c", file.to_str().unwrap());
        for (name, located) in placement.located(number) {
            let name = std::str::from_utf8(name).unwrap();
            // A hidden one is static in the linked file, and belongs to no source file.
            let fits = |s: &&place::Symbol<'_>| s.file.is_none_or(|f| f == file);
            let known: Vec<_> = symbols.named(name).filter(fits).collect();
            let same = |s: &&place::Symbol<'_>| {
                s.located.svma == located.svma && s.located.size == located.size
            };
            let same = known.iter().copied().find(same);
            let object = object.name;
            let same =
                same.unwrap_or_else(|| panic!("{object}: {name} at {located:x?}, not {known:x?}"));
            right += 1;
            statics += usize::from(!same.global);
            found.insert((name.to_owned(), located.svma));
        }
    }
    let mut missing = 0;
    for symbol in symbols
        .iter()
        .filter(|s| s.file.is_some_and(|f| f.ends_with(".c")))
    {
        // The C runtime's own objects are not the build's.
        let runtime = symbol.file == Some("crtstuff.c");
        if !runtime && !found.contains(&(symbol.name.to_owned(), symbol.located.svma)) {
            missing += 1;
            println!("  not found: {} of {:?}", symbol.name, symbol.file);
        }
    }
    for (number, object) in objects.iter().enumerate() {
        for symbol in symbols.iter().filter(|s| s.global && s.located.size != 0) {
            match placement.find(number, symbol.name) {
                Ok(_) | Err(place::Refusal::NoSymbol { .. }) => {}
                Err(why) => println!("  {}: {why}", object.name),
            }
        }
    }
    println!("  {right} symbols right, {statics} of them static; {missing} static ones not found");
    assert!(right > 4000);

    // One changed bit in any function is seen.
    let functions: Vec<_> = (0..objects.len())
        .flat_map(|n| placement.located(n))
        .filter(|(_, located)| placement.fingerprint(located).is_some())
        .collect();
    let text = target.windows(64).position(|w| {
        let (_, first) = functions[0];
        symbols.fingerprint(&first).is_some() && w == code_of(&linked, first.svma)
    });
    let bias = functions[0].1.svma as usize - text.expect("the first function is in the file");
    let (mut seen, mut unseen) = (0, 0);
    for step in 0..400 {
        let (name, located) = functions[step * 7919 % functions.len()];
        let at = located.svma as usize + step * 31 % located.size as usize - bias;
        let mut changed = target.clone();
        changed[at] ^= 1 << (step % 8);
        match place::objects(&changed, &objects) {
            Err(_) => seen += 1,
            Ok(_) => {
                unseen += 1;
                println!(
                    "  a bit at {at:#x} in {} is not seen",
                    String::from_utf8_lossy(name)
                );
            }
        }
    }
    println!("  of 400 changed bits of code {seen} are seen");
    assert!(
        unseen < 4,
        "where only one reference says where a variable is"
    );
}

/// 64 bytes of an executable at an address.
fn code_of(file: &[u8], svma: u64) -> &[u8] {
    use object::{Object as _, ObjectSegment as _};
    let file = object::File::parse(file).unwrap();
    let found = file
        .segments()
        .find_map(|s| s.data_range(svma, 64).ok().flatten());
    found.unwrap()
}
