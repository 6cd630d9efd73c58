//#Flags: -O
//#Changed: f
+|// one more line
#[no_mangle] pub extern "C" fn f(x: usize) -> u8 {
-|    b"some words"[x] }
+|    b"some wordy"[x] }
#[no_mangle] pub fn g(x: &[u8], y: usize) -> u8 { x[y] }
