#![no_std]
use core::sync::atomic::{AtomicI32, Ordering};

unsafe extern "C" {
    safe fn helper(x: i32) -> i32;
    safe fn getpid() -> i32;
}

static CALLS: AtomicI32 = AtomicI32::new(0);
static WORDS: [&str; 3] = ["one", "seven", "three"];

#[unsafe(no_mangle)]
pub extern "C" fn lp_answer(x: i32) -> i32 {
    CALLS.fetch_add(1, Ordering::SeqCst);
    let longest = WORDS.iter().map(|word| word.len()).max();
    let two = longest.map_or(0, |length| helper(length as i32) - 8);
    if getpid() > 0 { x.wrapping_add(two) } else { 0 }
}
