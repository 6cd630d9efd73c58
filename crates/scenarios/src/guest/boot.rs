//! The guest from outside: its kernel, its files, its run.

use crate::cli::target_dir;
use crate::compile::{has_command, out_dir};
use crate::plan::root;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The serial port for the results; the console is the first one.
const RESULTS: &str = "/dev/ttyS1";

/// The first program: a system, the scenarios, the end.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin HOME=/
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
stty -F RESULTS raw
COMMAND >RESULTS </dev/null
echo \"{\\\"exit\\\": $?}\" >RESULTS
poweroff -f
";

/// Debian's kernel of a series (`6.1`), fetched when it is needed for the first time; `None` where apt has none.
pub fn kernel(series: &str) -> Option<PathBuf> {
    // One at a time: apt locks its lists.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let output = Command::new(root().join("scripts/guest-kernel"))
        .arg(series)
        .arg(target_dir().join("guest"))
        .output()
        .ok()?;
    if !output.status.success() {
        crate::note(String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(PathBuf::from(
        String::from_utf8(output.stdout).ok()?.trim_end(),
    ))
}

/// The files of a guest, in a directory that becomes its first file system.
#[derive(Debug)]
pub struct System {
    root: PathBuf,
    image: PathBuf,
}

impl System {
    /// The commands without which there is no guest, and a name for them.
    pub fn requirements() -> (&'static str, bool) {
        let commands = ["qemu-system-x86_64", "busybox", "cpio", "strip", "ldd"];
        let there = commands.iter().all(|command| has_command(command));
        ("qemu-system-x86, busybox-static, cpio, binutils", there)
    }

    /// An empty one with a shell.
    pub fn new(name: &str) -> Self {
        let root = out_dir().join(name);
        let mut system = Self {
            image: root.with_extension("cpio"),
            root,
        };
        system.add_program(Path::new("/bin/busybox"));
        system
    }

    fn at(&self, path: &Path) -> PathBuf {
        let inside = self
            .root
            .join(path.strip_prefix("/").expect("an absolute path"));
        let dir = inside.parent().expect("a file is in a directory");
        fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        inside
    }

    /// Adds a file, at the place that it has here.
    pub fn add(&mut self, path: &Path) {
        copy(path, &self.at(path));
    }

    /// Adds a program and the libraries that it needs.
    pub fn add_program(&mut self, path: &Path) {
        self.add(path);
        let output = Command::new("ldd").arg(path).output().expect("ldd runs");
        let text = String::from_utf8_lossy(&output.stdout);
        for word in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let library = Path::new(word);
            if !self.at(library).exists() {
                self.add(library);
            }
        }
    }

    /// The same, without its debug information.
    pub fn add_stripped(&mut self, path: &Path) {
        self.add_program(path);
        let inside = self.at(path);
        let status = Command::new("strip").arg(&inside).status();
        assert!(status.is_ok_and(|status| status.success()), "{inside:?}");
    }

    /// Writes a file.
    pub fn write(&mut self, path: &str, text: &str) {
        let inside = self.at(Path::new(path));
        fs::write(&inside, text).unwrap_or_else(|e| panic!("{}: {e}", inside.display()));
    }

    /// Makes the image. The guest runs this command and then ends.
    pub fn pack(&mut self, command: &str) {
        let text = INIT.replace("COMMAND", command).replace("RESULTS", RESULTS);
        self.write("/init", &text);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.root.join("init"), executable).expect("/init is ours");
        for link in ["sh", "true"] {
            let _ = symlink("busybox", self.root.join("bin").join(link));
        }
        let image = fs::File::create(&self.image).expect("the image can be made");
        let archive = "find . -print | cpio --quiet --create --format=newc --owner=+0:+0";
        let status = Command::new("sh")
            .args(["-c", archive])
            .current_dir(&self.root)
            .stdout(image)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "cpio");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
}

/// What the guest may use to set its gs base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// One that has `wrgsbase`.
    Fsgsbase,
    /// One that does not.
    Old,
    /// One that has it, and a kernel that is told not to.
    SwitchedOff,
}

impl Processor {
    fn model(self) -> &'static str {
        match self {
            Self::Fsgsbase | Self::SwitchedOff => "max",
            Self::Old => "qemu64",
        }
    }

    fn append(self) -> &'static str {
        match self {
            Self::SwitchedOff => "nofsgsbase",
            _ => "",
        }
    }
}

/// A machine to be started.
#[derive(Debug)]
pub struct Guest<'a> {
    /// Its name, among those of this test binary.
    pub name: &'a str,
    /// Its kernel.
    pub kernel: &'a Path,
    /// Its processor.
    pub processor: Processor,
    /// It is ended when it runs longer.
    pub limit: Duration,
}

/// What a guest said.
#[derive(Debug)]
pub struct Ran {
    /// What came from the scenarios, a document each.
    pub results: Vec<Value>,
    /// What else was said, the kernel's messages for example.
    pub console: String,
    /// From power on to power off.
    pub elapsed: Duration,
}

/// A machine that runs; ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command; `false` if it had to be ended.
fn wait(mut command: Command, limit: Duration) -> bool {
    let child = command.spawn();
    let mut machine = Machine(child.unwrap_or_else(|e| panic!("{command:?}: {e}")));
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = machine.0.try_wait().expect("waiting for a child works") {
            assert!(status.success(), "{command:?} ended with {status}");
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

impl Guest<'_> {
    /// Boots it and waits until it ends.
    pub fn run(&self, system: &System) -> Ran {
        let file = |what: &str| out_dir().join(format!("{}.{what}", self.name));
        let (console, results) = (file("console"), file("results"));
        let serial = |path: &Path| format!("file:{}", path.display());
        let started = Instant::now();
        let mut command = Command::new("qemu-system-x86_64");
        // One processor: with several, QEMU's own threads can trip over a kernel that changes its text.
        command
            .args(["-M", "q35", "-accel", "tcg", "-smp", "1", "-m", "512"])
            .args(["-display", "none", "-monitor", "none", "-no-reboot"])
            .args(["-nodefaults", "-cpu", self.processor.model()])
            .args(["-serial", &serial(&console), "-serial", &serial(&results)])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(&system.image)
            .arg("-append")
            // A machine that gets its ticks late fails the kernel's test of its timer.
            .arg(format!(
                "console=ttyS0 panic=-1 quiet no_timer_check {}",
                self.processor.append()
            ))
            .stdin(Stdio::null());
        crate::sys::end_with_us(&mut command);
        let ended = wait(command, self.limit);
        let read = |path: &Path| {
            let bytes = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let console = read(&console);
        let results = read(&results)
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                serde_json::from_str(line.trim())
                    .unwrap_or_else(|e| panic!("{}: {line:?}: {e}\n{console}", self.name))
            })
            .collect();
        assert!(
            ended,
            "{} was not done after {:?}: {results:?}\n{console}",
            self.name, self.limit
        );
        Ran {
            results,
            console,
            elapsed: started.elapsed(),
        }
    }
}
