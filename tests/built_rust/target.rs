// A program in Rust of two crates, built by cargo, stripped, and patched by `livegraft build` from a diff of its source:
// see crates/scenarios/tests/build_rust.rs.
//
//# target: rustc -O pie
//# mappings: own
use parts::Shape;
use std::hint::black_box;
use std::io::BufRead;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

/// What is looked at, and what it is before any patch.
const OLD: [(&str, u64); 6] = [
    ("public", 178),
    ("generic", 18),
    ("inlined", 71),
    ("closure", 33),
    ("area", 19),
    ("name", 16),
];

#[inline(never)]
fn inlined_here(x: u64) -> u64 {
    parts::inlined(x)
}

/// A closure that captures.
#[inline(never)]
fn with_closure(all: &[u64], by: u64) -> u64 {
    let scaled: Vec<u64> = all.iter().map(|x| x * by + 9).collect();
    scaled.iter().sum()
}

#[inline(never)]
fn look(shapes: &[Box<dyn Shape>]) -> [u64; 6] {
    [
        parts::public(black_box(10)),
        parts::generic(black_box(&[1_u32, 2, 3])),
        inlined_here(black_box(10)),
        with_closure(black_box(&[1, 2]), black_box(5)),
        shapes.iter().map(|shape| shape.area()).sum(),
        shapes.iter().map(|shape| shape.name().len() as u64).sum(),
    ]
}

/// A round of a worker: what differs from before, as bits.
fn round(shapes: &[Box<dyn Shape>]) -> u64 {
    let seen = look(shapes).into_iter().zip(OLD).enumerate();
    seen.fold(0, |bits, (number, (is, (_, was)))| {
        bits | u64::from(is != was) << number
    })
}

/// Where a panic says that it is: the line, counted from that of the function before it.
fn panics() -> bool {
    catch_unwind(|| parts::pick(black_box(&[1, 2]), black_box(7))).is_err()
}

fn main() {
    std::panic::set_hook(Box::new(|_| ()));
    let workers: Vec<_> = (0..3).map(|_| Arc::new([AtomicU64::new(0), AtomicU64::new(0)])).collect();
    for worker in &workers {
        let worker = Arc::clone(worker);
        thread::spawn(move || {
            let shapes = parts::shapes();
            for count in 1.. {
                worker[1].store(round(&shapes), Ordering::SeqCst);
                worker[0].store(count, Ordering::SeqCst);
                if count % 64 == 0 {
                    thread::sleep(std::time::Duration::from_micros(200));
                }
            }
        });
    }
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "check" => println!("{}", check(&workers)),
            "hush" => println!("ok"),
            "quit" => {
                println!("ok");
                std::process::exit(0);
            }
            _ => println!("unknown command"),
        }
    }
}

fn check(workers: &[Arc<[AtomicU64; 2]>]) -> String {
    if !panics() {
        return "no panic".to_owned();
    }
    let mut all = Vec::new();
    for worker in workers {
        let before = worker[0].load(Ordering::SeqCst);
        while worker[0].load(Ordering::SeqCst) < before + 2 {
            thread::yield_now();
        }
        all.push(worker[1].load(Ordering::SeqCst));
    }
    if all.iter().any(|bits| *bits != all[0]) {
        return "mixed".to_owned();
    }
    let names = OLD.iter().enumerate().filter(|(number, _)| all[0] >> number & 1 == 1);
    let names: Vec<&str> = names.map(|(_, (name, _))| *name).collect();
    if names.is_empty() {
        return "old".to_owned();
    }
    names.join("+")
}
