//! Compilers for the tests.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;
use std::process::Command;

/// The compilers of a language, by the extension of its files.
pub fn tools_for(extension: &str) -> Vec<String> {
    let tools: &[&str] = match extension {
        "c" => &["gcc", "clang"],
        "cc" => &["g++", "clang++"],
        "rs" => &["rustc"],
        _ => &["gcc"],
    };
    tools.iter().map(|t| (*t).to_owned()).collect()
}

/// Compiles a source in a directory of its own.
pub fn compile(tool: &str, flags: &str, extension: &str, source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    compile_in(dir.path(), tool, flags, extension, source)
}

/// Compiles a source as `x.EXTENSION` in a directory.
pub fn compile_in(dir: &Path, tool: &str, flags: &str, extension: &str, source: &str) -> Vec<u8> {
    let file = format!("x.{extension}");
    std::fs::write(dir.join(&file), source).unwrap();
    let mut command = Command::new(tool);
    command.current_dir(dir);
    if tool == "rustc" {
        command.args([
            "--crate-type",
            "lib",
            "--emit=obj",
            "-C",
            "codegen-units=1",
            "--edition=2021",
        ]);
        command.args(flags.split_whitespace());
    } else {
        command.arg("-c").args(flags.split_whitespace());
        if !flags.contains("-fno-function-sections") {
            command.args(["-ffunction-sections", "-fdata-sections"]);
        }
    }
    command.args(["-o", "x.o"]).arg(&file);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{source}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read(dir.join("x.o")).unwrap()
}
