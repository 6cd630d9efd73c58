//#Flags: -O
//#Flags: -C opt-level=0
//#Changed: f
#[no_mangle] #[inline(never)] pub extern "C" fn f(x: u32) -> u32 {
-|    x.wrapping_mul(3)
+|    x.wrapping_mul(5)
}
#[no_mangle] #[inline(never)] pub extern "C" fn g(x: u32) -> u32 { x.wrapping_add(9) }
