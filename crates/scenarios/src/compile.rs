//! Builds targets and patches. Each different build is made once per test binary.

use crate::cli;
use crate::plan::{Build, Plan, root};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

type Cache = Mutex<HashMap<String, Arc<OnceLock<PathBuf>>>>;
static CACHE: LazyLock<Cache> = LazyLock::new(Cache::default);

/// Where this process builds things; under cargo's target directory.
pub fn out_dir() -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let exe = std::env::current_exe().expect("the test binary has a path");
        let binary = exe.file_stem().expect("the test binary has a name");
        let dir = cli::target_dir().join("scenarios").join(binary);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        dir
    })
    .clone()
}

/// Whether a command can be found.
pub fn has_command(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

fn once(key: String, make: impl FnOnce() -> PathBuf) -> PathBuf {
    let cell = CACHE
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .entry(key)
        .or_default()
        .clone();
    cell.get_or_init(make).clone()
}

/// A fresh directory for what is made from `key`.
fn fresh_dir(name: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let dir = out_dir().join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Builds the scenario's `target.c` with the sources and the library that it names, or its `target.rs`.
pub fn compile_target(plan: &Plan, build: &Build) -> PathBuf {
    if build.compiler == "rustc" {
        return compile_rust(plan, build);
    }
    compile_program(plan, build, "target.c")
}

/// Builds another program of the scenario's directory as `compile_target` builds `target.c`.
pub fn compile_program(plan: &Plan, build: &Build, main: &str) -> PathBuf {
    once(format!("{} {main} {build}", plan.dir.display()), || {
        let dir = fresh_dir(plan.name());
        let common = root().join("tests/common");
        let shape: &[&str] = match build.shape.as_str() {
            "pie" => &["-fPIE", "-pie"],
            "static" => &["-fno-pie", "-static"],
            "static-pie" => &["-fPIE", "-static-pie"],
            _ => &["-fno-pie", "-no-pie"],
        };
        let mut command = Command::new(&build.compiler);
        command.arg(&build.optimisation).args([
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wl,--build-id",
            "-pthread",
        ]);
        command
            .args(shape)
            .arg("-I")
            .arg(&common)
            .arg("-I")
            .arg(&plan.dir)
            .arg(plan.dir.join(main));
        if main == "target.c" {
            let sources = plan.get("source").unwrap_or_default();
            command.args(sources.split_whitespace().map(|file| plan.dir.join(file)));
            if let Some(library) = plan.get("library") {
                let so = compile_library(plan, build, library, &dir, &common);
                command.arg(so).arg(format!("-Wl,-rpath,{}", dir.display()));
            }
        }
        command.args(words(plan, "link")).args(words(plan, "flags"));
        let exe = dir.join(plan.name());
        run(command.args(&build.flags).arg("-o").arg(&exe));
        exe
    })
}

fn compile_rust(plan: &Plan, build: &Build) -> PathBuf {
    once(format!("{} {build}", plan.dir.display()), || {
        let exe = fresh_dir(plan.name()).join(plan.name());
        run(Command::new(&build.compiler)
            .args(["--edition", "2024", "-D", "warnings"])
            .args(["-C", "link-arg=-Wl,--build-id"])
            .arg(&build.optimisation)
            .args(&build.flags)
            .arg(plan.dir.join("target.rs"))
            .arg("-o")
            .arg(&exe));
        exe
    })
}

/// A copy of a program without its symbol table and its debug information.
pub fn strip(exe: &Path) -> PathBuf {
    once(format!("strip {}", exe.display()), || {
        let name = exe.file_name().expect("a program has a name");
        let stripped = fresh_dir("stripped").join(name);
        run(Command::new("strip").arg(exe).arg("-o").arg(&stripped));
        stripped
    })
}

fn words<'a>(plan: &'a Plan, key: &str) -> impl Iterator<Item = &'a str> {
    plan.get(key).unwrap_or_default().split_whitespace()
}

fn compile_library(plan: &Plan, build: &Build, source: &str, dir: &Path, common: &Path) -> PathBuf {
    let so = dir.join("libscenario.so");
    shared(plan, build, source, &so, common);
    so
}

fn shared(plan: &Plan, build: &Build, source: &str, so: &Path, common: &Path) {
    let name = so.file_name().and_then(|name| name.to_str());
    run(Command::new(&build.compiler)
        .args([&build.optimisation, "-shared", "-fPIC", "-Wl,--build-id"])
        .arg(format!("-Wl,-soname,{}", name.expect("a name in UTF-8")))
        .arg("-I")
        .arg(common)
        .args(&build.flags)
        .arg(plan.dir.join(source))
        .arg("-o")
        .arg(so));
}

/// Builds a file of the scenario's directory as a shared library of this name, for a target that opens it itself.
pub fn compile_shared(plan: &Plan, build: &Build, source: &str, name: &str) -> PathBuf {
    once(
        format!("{} {source} {name} {build}", plan.dir.display()),
        || {
            let so = fresh_dir(plan.name()).join(name);
            shared(plan, build, source, &so, &root().join("tests/common"));
            so
        },
    )
}

/// The library next to a target, if its scenario has one.
pub fn library_of(target: &Path) -> Option<PathBuf> {
    Some(target.with_file_name("libscenario.so")).filter(|so| so.is_file())
}

/// Compiles the sources of a scenario's patch: `patch.c` (or the common one), and `more.c` where there is one; or `.cc`; and
/// `more.rs`.
pub fn compile_patch_objects(plan: &Plan, build: &Build) -> Vec<PathBuf> {
    let file = |name: &str| Some(plan.dir.join(name)).filter(|path| path.is_file());
    let own = file("patch.c").or_else(|| file("patch.cc"));
    let first = own.unwrap_or_else(|| root().join("tests/common/answer.patch.c"));
    let more = file("more.c").or_else(|| file("more.cc"));
    let dir = fresh_dir(&format!("{}-patch", plan.name()));
    let shape = if build.shape == "pic" {
        "-fPIC"
    } else {
        "-fno-pic"
    };
    let mut objects = Vec::new();
    for source in [first].into_iter().chain(more) {
        let object = dir
            .join(source.file_name().expect("a file"))
            .with_extension("o");
        run(Command::new(&build.compiler)
            .args([
                &build.optimisation,
                shape,
                "-Wall",
                "-Wextra",
                "-Werror",
                "-I",
            ])
            .arg(root().join("include"))
            .arg("-I")
            .arg(&plan.dir)
            .args(&build.flags)
            .args(words(plan, "flags"))
            .arg("-c")
            .arg(&source)
            .arg("-o")
            .arg(&object));
        objects.push(object);
    }
    objects.extend(file("more.rs").map(|source| compile_rust_patch(&source, &dir)));
    objects
}

fn compile_rust_patch(source: &Path, dir: &Path) -> PathBuf {
    let object = dir.join("rust.o");
    run(Command::new("rustc")
        .args(["--edition", "2024", "-D", "warnings", "--crate-type", "lib"])
        .args(["-O", "-C", "codegen-units=1", "--emit=obj"])
        .arg(source)
        .arg("-o")
        .arg(&object));
    object
}

/// The arguments of `livegraft pack` for these objects and this target; the patch is called `name`.
pub fn pack_arguments(objects: &[PathBuf], target: &Path, name: &str) -> (Vec<String>, PathBuf) {
    let out = objects[0].with_file_name(format!("{name}.klp"));
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let mut arguments = vec!["pack".to_owned()];
    arguments.extend(objects.iter().map(|object| text(object)));
    for object in [Some(target.to_owned()), library_of(target)]
        .into_iter()
        .flatten()
    {
        arguments.extend(["--target".to_owned(), text(&object)]);
    }
    arguments.extend(["-o".to_owned(), text(&out)]);
    (arguments, out)
}

/// Compiles and packs a scenario's patch for a target; the patch is called `fix`.
pub fn compile_patch(plan: &Plan, build: &Build, target: &Path) -> PathBuf {
    compile_patch_as(plan, build, target, "fix")
}

/// Compiles and packs a scenario's patch under a name of its own. `target` is the object that it changes.
pub fn compile_patch_as(plan: &Plan, build: &Build, target: &Path, name: &str) -> PathBuf {
    compile_patch_of_both(plan, build, [target, target], name)
}

/// The same for a patch that changes two objects.
pub fn compile_patch_of_both(
    plan: &Plan,
    build: &Build,
    [target, other]: [&Path; 2],
    name: &str,
) -> PathBuf {
    let key = format!(
        "{} patch {name} {build} for {} {}",
        plan.dir.display(),
        target.display(),
        other.display()
    );
    once(key, || {
        let objects = compile_patch_objects(plan, build);
        let (arguments, klp) = pack_arguments(&objects, target, name);
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if other != target {
            arguments.extend(["--target", other.to_str().expect("a path in UTF-8")]);
        }
        cli::livegraft(&arguments).done();
        klp
    })
}
