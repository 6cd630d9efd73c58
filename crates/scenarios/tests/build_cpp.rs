//! Patches from source diffs, for a program in C++: built by cmake with g++ and clang++, stripped, started, and patched by
//! what `livegraft build` makes of its source and a diff.

use livegraft_scenarios::compile::has_command;
use livegraft_scenarios::plan::root;
use livegraft_scenarios::project::Project;
use livegraft_scenarios::require;

fn with(cc: &str, cxx: &str) {
    for tool in [cxx, "cmake"] {
        if !require(tool, has_command(tool)) {
            return;
        }
    }
    let common = root().join("tests/common");
    let command = format!(
        "cmake -S . -B out -DCMAKE_C_COMPILER={cc} -DCMAKE_CXX_COMPILER={cxx} -DCOMMON={} && cmake --build out",
        common.display()
    );
    let project = Project::new("built_cpp", &command, ("out", "built"), ("shared.h", ""));
    let area = ("one.cc", "return side * side;", "return side * side + 1;");
    let built = project.patched(&[area], &["area"], "area");
    assert_eq!(built.json["targets"][0]["proof"], "identical", "{built}");
    // Of two copies one runs.
    let scaled = ("shared.h", "return x * T(3);", "return x * T(4);");
    project.patched(&[scaled], &["scaled"], "one_scaled+two_scaled");
    let header = ("shared.h", "x * 7 + 1", "x * 7 + 2");
    project.patched(
        &[header],
        &["one_header", "two_header"],
        "one_header+two_header",
    );
    // Two functions of one name, of which one changes.
    let hidden = ("two.cc", "return x * 2;", "return x * 2 + 1;");
    project.patched(&[hidden], &["hidden"], "two_hidden");
    let hidden = ("one.cc", "x + job.cost", "x + 1 + job.cost");
    project.patched(&[hidden], &["hidden"], "one_hidden");
    // Its variable keeps what it holds.
    let counted = ("shared.h", "return sum - by;", "return sum - by + 1;");
    project.patched(&[counted], &["counted"], "counted");
    let thrown = ("one.cc", "\"refused \"", "\"strictly refused \"");
    project.patched(&[thrown], &["refuse"], "caught");
    let caught = ("one.cc", ".what()).size()", ".what()).size() + 1");
    project.patched(&[caught], &["caught"], "caught");
    project.unchanged(&[("one.cc", "#include", "// Nothing.\n#include")]);
    // What lives on has the old layout: a variable, and objects behind pointers.
    let grown = [
        ("shared.h", "\tint left;", "\tint more;\n\tint left;"),
        ("one.cc", "{ 4, 2 }", "{ 4, 1, 2 }"),
    ];
    project.refused(&grown, "Job|job bytes");
    let grown = [
        ("one.cc", "side(side) {}", "side(side), more(1) {}"),
        ("one.cc", "int side;\n};", "int side, more;\n};"),
        (
            "one.cc",
            "return side * side;",
            "return side * side * more;",
        ),
    ];
    // There is padding behind it, so its size is the same.
    project.refused(&grown, "(anonymous namespace)::Square new member more");
    let added = "\tvirtual int more() const { return 2; }\n\tvirtual int area() const = 0;";
    let added = ("shared.h", "\tvirtual int area() const = 0;", added);
    project.refused(&[added], "table of functions _ZTV Square");
}

#[test]
fn gcc() {
    with("gcc", "g++");
}

#[test]
fn clang() {
    with("clang", "clang++");
}
