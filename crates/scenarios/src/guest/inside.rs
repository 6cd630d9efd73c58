//! The program that runs in the guest: one scenario after the other, and a line of JSON for each.

use super::scenarios::ALL;
use serde_json::{Value, json};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

/// Where the last panic was.
static PLACE: Mutex<String> = Mutex::new(String::new());

/// Runs the first, which tells the machine, and those that are named, and says on standard output how each ended.
pub fn main() -> ExitCode {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if let Some(livegraft) = super::manifest()["livegraft"].as_str() {
        // SAFETY: nothing else runs yet.
        unsafe { std::env::set_var("LIVEGRAFT", livegraft) };
    }
    set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        *PLACE.lock().unwrap_or_else(|e| e.into_inner()) = place.unwrap_or_default();
    }));
    let mut failed = 0_u8;
    for (name, scenario) in ALL {
        if *name != ALL[0].0 && !chosen.iter().any(|choice| choice == name) {
            continue;
        }
        let started = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(scenario));
        let seconds = started.elapsed().as_secs_f64();
        let mut result = json!({"scenario": name, "seconds": seconds});
        match ended {
            Ok(said) => result["said"] = Value::from(said),
            Err(panic) => {
                failed = failed.saturating_add(1);
                result["failed"] = Value::from(in_words(&*panic));
            }
        }
        println!("{result}");
    }
    ExitCode::from(failed)
}

fn in_words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let place = PLACE.lock().unwrap_or_else(|e| e.into_inner());
    format!("{place}: {}", text.unwrap_or_default())
}
