#![no_std]

static NUMBERS: [i32; 3] = [1, 2, 3];

#[unsafe(no_mangle)]
pub extern "C" fn lp_answer(x: i32) -> i32 {
    x + NUMBERS[x as usize]
}
