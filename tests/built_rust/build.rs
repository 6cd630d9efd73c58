// A program of the build, which is no part of what runs.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
