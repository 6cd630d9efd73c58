//! The library of the scenario.

use std::sync::atomic::{AtomicU64, Ordering};

pub static CALLS: AtomicU64 = AtomicU64::new(5);

#[inline(never)]
fn private(x: u64) -> u64 {
    CALLS.fetch_add(1, Ordering::Relaxed);
    x.rotate_left(3) ^ 5
}

#[inline(never)]
pub fn public(x: u64) -> u64 {
    private(x).wrapping_add(private(x + 1))
}

/// Its instances are code of whoever uses it.
#[inline(never)]
pub fn generic<T: Copy + Into<u64>>(all: &[T]) -> u64 {
    all.iter().map(|x| (*x).into() * 3).sum()
}

#[inline]
pub fn inlined(x: u64) -> u64 {
    x * 7 + 1
}

/// What may panic, and says where.
#[inline(never)]
pub fn pick(all: &[u64], at: usize) -> u64 {
    all[at]
}

pub trait Shape: Send + Sync {
    fn area(&self) -> u64;
    fn name(&self) -> String;
}

pub struct Square {
    pub side: u64,
}

pub struct Rect {
    pub width: u64,
    pub height: u64,
}

impl Shape for Square {
    #[inline(never)]
    fn area(&self) -> u64 {
        self.side * self.side
    }
    fn name(&self) -> String {
        format!("square {}", self.side)
    }
}

impl Shape for Rect {
    #[inline(never)]
    fn area(&self) -> u64 {
        self.width * self.height
    }
    fn name(&self) -> String {
        format!("rect {} {}", self.width, self.height)
    }
}

pub fn shapes() -> Vec<Box<dyn Shape>> {
    vec![
        Box::new(Square { side: 3 }),
        Box::new(Rect { width: 2, height: 5 }),
    ]
}
