// A Rust program: a function that is found by its mangled name is replaced by one that uses the program's own standard
// library, and panics for the program to catch.
//
//# target: rustc -O pie
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

static mut DROPPED: i32 = 0;

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        unsafe { DROPPED += 1 };
    }
}

mod work {
    /// Its replacement panics where this one only might.
    #[inline(never)]
    pub fn job(x: i32) -> String {
        let x = std::hint::black_box(x);
        assert!(x < 1000, "too much");
        format!("old {x}")
    }
}

fn guarded(x: i32) -> String {
    let _guard = Guard;
    work::job(black_box(x))
}

fn check() -> String {
    let before = unsafe { DROPPED };
    let said = guarded(7);
    let panicked = catch_unwind(AssertUnwindSafe(|| guarded(100)));
    if unsafe { DROPPED } != before + 2 {
        return "not dropped".into();
    }
    match (said.as_str(), panicked) {
        ("old 7", Ok(said)) if said == "old 100" => "old".into(),
        ("new 7, 49", Err(payload)) => match payload.downcast_ref::<String>() {
            Some(words) if words == "the patch does not like 100" => "new".into(),
            other => format!("another panic: {other:?}"),
        },
        (said, _) => said.to_owned(),
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| ()));
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let answer = match line.as_str() {
            "check" => check(),
            _ => "ok".to_owned(),
        };
        println!("{answer}");
        std::io::stdout().flush().expect("stdout is there");
        if line == "quit" {
            break;
        }
    }
}
