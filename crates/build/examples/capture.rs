//! What a diff makes of a build: `capture SOURCE DIFF TARGET|- COMMAND...`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use livegraft_build::capture::{Request, capture};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut next = || {
        arguments
            .next()
            .map(PathBuf::from)
            .ok_or("SOURCE DIFF TARGET COMMAND...")
    };
    let (source, diff, target) = (next()?, next()?, next()?);
    let request = Request {
        source,
        diff,
        command: arguments.collect(),
        ..Request::default()
    };
    // Ctrl-C ends it, and leaves nothing behind.
    let interrupt = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupt))?;
    }
    let begin = Instant::now();
    let mut progress =
        |phase| eprint!("\r\x1b[K{:6.1} s  {phase:?}", begin.elapsed().as_secs_f64());
    let capture = capture(&request, &mut progress, &interrupt);
    eprintln!();
    let capture = capture?;
    for pair in &capture.pairs {
        println!(
            "{} {:?} {:?} {:?}",
            pair.source.display(),
            pair.original,
            pair.patched,
            pair.built
        );
    }
    println!(
        "{} objects, {} programs",
        capture.objects.len(),
        capture.programs.len()
    );
    for program in &capture.programs {
        println!(
            "  {} of {} objects",
            program.path.display(),
            program.objects.len()
        );
    }
    if let Some((program, likeness)) = capture.program(&target) {
        println!(
            "{} is {} ({likeness:?})",
            target.display(),
            program.path.display()
        );
    }
    Ok(())
}
