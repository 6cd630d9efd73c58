//! What patch code is made of: C++, Rust, and all that it may refer to.

use livegraft_scenarios::cycle::matrix;

#[test]
fn cpp() {
    matrix("cpp", &[]);
}
