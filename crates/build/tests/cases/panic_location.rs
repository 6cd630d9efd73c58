//#Flags: -O
+|// one more line
#[no_mangle] pub extern "C" fn f(x: usize) -> u8 { b"some words"[x] }
#[no_mangle] pub extern "C" fn g(x: Option<u32>) -> u32 { x.map_or(1, |y| y / (y - 3)) }
