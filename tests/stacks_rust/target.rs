// A Rust program: a thread asleep below the replaced answer(), called by Rust code, some of it inlined.
//
//# target: rustc -O pie
//
// Commands: "wake" lets the thread leave answer() and enter it again.
use std::hint::black_box;
use std::io::{BufRead, PipeReader, Read, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

static PIPE: OnceLock<PipeReader> = OnceLock::new();
static ENTERED: AtomicI32 = AtomicI32::new(0);
static VERSION: AtomicI32 = AtomicI32::new(0);

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn wait_here() {
    let mut byte = [0];
    ENTERED.fetch_add(1, Ordering::SeqCst);
    let mut pipe: &PipeReader = PIPE.get().expect("main has set it");
    pipe.read_exact(&mut byte).expect("the pipe stays open");
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answer(x: i32) -> i32 {
    let x = black_box(x);
    wait_here();
    black_box(x) + 1
}

mod queue {
    pub struct Queue<T> {
        pub next: T,
    }

    impl<T: Copy + Into<i32>> Queue<T> {
        #[inline(always)]
        fn turn(&self) -> i32 {
            std::hint::black_box(super::answer(self.next.into()))
        }

        #[inline(never)]
        pub fn drain(&self) {
            loop {
                super::VERSION.store(self.turn(), std::sync::atomic::Ordering::SeqCst);
            }
        }
    }
}

fn check() -> &'static str {
    let before = ENTERED.load(Ordering::SeqCst);
    let mut pipe = WAKE.get().expect("main has set it");
    pipe.write_all(b"x").expect("the pipe stays open");
    while ENTERED.load(Ordering::SeqCst) == before {
        std::thread::yield_now();
    }
    if VERSION.load(Ordering::SeqCst) == 1 { "old" } else { "new" }
}

static WAKE: OnceLock<std::io::PipeWriter> = OnceLock::new();

fn main() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let _ = (PIPE.set(reader), WAKE.set(writer));
    std::thread::spawn(|| queue::Queue { next: 0i16 }.drain());
    while ENTERED.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "check" | "wake" => println!("{}", check()),
            "hush" => println!("ok"),
            "quit" => {
                println!("ok");
                std::process::exit(0);
            }
            _ => println!("unknown command"),
        }
    }
}
