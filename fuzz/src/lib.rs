//! What the targets have in common: a reader of `livegraft-hostile`, and half of the time its way to damage files
//! instead of libFuzzer's own.

pub use libfuzzer_sys;
pub use livegraft_hostile as hostile;

/// A fuzz target for the reader of a name.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        use $crate::libfuzzer_sys;

        libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            $crate::hostile::read($crate::hostile::reader($name), input);
        });

        libfuzzer_sys::fuzz_mutator!(
            |data: &mut [u8], size: usize, max_size: usize, seed: u32| {
                $crate::mutated(data, size, max_size, seed)
            }
        );
    };
}

/// Damages the first `size` bytes in place and says how many there are then.
pub fn mutated(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if seed % 2 == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let made = hostile::mutate(&data[..size], u64::from(seed));
    let len = made.len().min(max_size);
    data[..len].copy_from_slice(&made[..len]);
    len
}
