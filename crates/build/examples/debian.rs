//! What a diff makes of an installed Debian package: `debian PACKAGE[=VERSION] DIFF`. Without a diff its source is fetched,
//! and where it is printed.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use livegraft_build::capture::debian;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (package, diff) = match &arguments[..] {
        [package] => (package, None),
        [package, diff] => (package, Some(diff)),
        _ => return Err("PACKAGE[=VERSION] [DIFF]".into()),
    };
    let (name, version) = package
        .split_once('=')
        .map_or((&**package, None), |(name, version)| (name, Some(version)));
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupt))?;
    }
    let source = debian(name, version, true, None, &interrupt)?;
    let Some(diff) = diff else {
        println!("{}", source.directory.display());
        return Ok(());
    };
    println!(
        "{} {} in {}",
        source.name,
        source.version,
        source.directory.display()
    );
    let begin = Instant::now();
    let mut progress =
        |phase| eprint!("\r\x1b[K{:6.1} s  {phase:?}", begin.elapsed().as_secs_f64());
    let capture = source.capture(diff.as_ref(), None, &mut progress, &interrupt);
    eprintln!();
    let capture = capture?;
    for pair in &capture.pairs {
        println!("{} {:?}", pair.source.display(), pair.built);
    }
    for target in &source.installed {
        match capture.program(target) {
            Some((program, likeness)) => println!(
                "{} is {} ({likeness:?})",
                target.display(),
                program.path.display()
            ),
            None => println!("{} is like none that was built", target.display()),
        }
    }
    Ok(())
}
