// A Rust program as they are: generic code behind a trait object, channels, locks, threads that come and go, panics that
// are caught. Three functions without C names change what they agree on, together.
//
//# target: rustc -O pie
//# mappings: own
use std::hint::black_box;
use std::io::BufRead;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

mod mill {
    use std::hint::black_box;

    /// What encode() and decode() agree on. Which version it was, or 0.
    pub trait Grind: Send + Sync {
        fn grind(&self, grain: u64) -> u64;
    }

    pub struct Mill<T>(pub T);

    impl<T: Copy + Into<u64> + Send + Sync> Grind for Mill<T> {
        #[inline(never)]
        fn grind(&self, grain: u64) -> u64 {
            let whole = grain ^ u64::from(self.0.into() == 0);
            u64::from(decode(encode(whole)) == whole)
        }
    }

    #[inline(never)]
    fn encode(grain: u64) -> u64 {
        black_box(grain).wrapping_add(1)
    }

    #[inline(never)]
    fn decode(flour: u64) -> u64 {
        black_box(flour).wrapping_sub(1)
    }
}

/// How often each worker has gone round, and with which version the last time.
struct Round {
    count: AtomicU64,
    version: AtomicU64,
}

fn hands(mill: Arc<dyn mill::Grind>, round: Arc<Round>, grain: Receiver<u64>, log: Arc<Mutex<Vec<u64>>>) {
    for grain in grain {
        let version = mill.grind(grain);
        if version != 1 && version != 2 {
            eprintln!("BROKEN: grind({grain}) is {version}");
            std::process::abort();
        }
        round.version.store(version, Ordering::SeqCst);
        round.count.fetch_add(1, Ordering::SeqCst);
        let mut log = log.lock().expect("nobody panics with it");
        log.push(grain);
        log.truncate(100);
    }
}

/// Feeds a worker; now and then it panics, which is caught, or lets a short-lived thread grind.
fn feed(mill: Arc<dyn mill::Grind>, sender: SyncSender<u64>) {
    for grain in 0_u64.. {
        if sender.send(grain).is_err() {
            return;
        }
        if grain % 1000 == 17 {
            let panicked = catch_unwind(|| {
                if black_box(grain) > 0 {
                    std::panic::resume_unwind(Box::new(grain));
                }
            });
            assert!(panicked.is_err());
            let mill = mill.clone();
            let ground = thread::spawn(move || mill.grind(grain)).join();
            assert!(matches!(ground, Ok(1 | 2)));
        }
    }
}

fn check(rounds: &[Arc<Round>]) -> &'static str {
    let mut seen = [false; 3];
    for round in rounds {
        let before = round.count.load(Ordering::SeqCst);
        while round.count.load(Ordering::SeqCst) < before + 2 {
            thread::yield_now();
        }
        seen[round.version.load(Ordering::SeqCst) as usize] = true;
    }
    match (seen[1], seen[2]) {
        (true, false) => "old",
        (false, true) => "new",
        _ => "mixed",
    }
}

fn main() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let mut rounds = Vec::new();
    for number in 0..3_u32 {
        let (sender, receiver) = sync_channel(4);
        let mill: Arc<dyn mill::Grind> = Arc::new(mill::Mill(number));
        let round = Arc::new(Round {
            count: AtomicU64::new(0),
            version: AtomicU64::new(1),
        });
        rounds.push(round.clone());
        let (feeding, log) = (mill.clone(), log.clone());
        thread::spawn(move || feed(feeding, sender));
        thread::spawn(move || hands(mill, round, receiver, log));
    }
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "check" => println!("{}", check(&rounds)),
            "hush" => println!("ok"),
            "quit" => {
                println!("ok");
                std::process::exit(0);
            }
            _ => println!("unknown command"),
        }
    }
}
