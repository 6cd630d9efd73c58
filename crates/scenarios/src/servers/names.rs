//! Names for functions of stripped programs whose debug packages may not be there: a debug file that says just that.

use super::{Kind, run};
use std::path::PathBuf;
use std::process::Command;

/// A name, where the function lies in its file, and how long it is.
type Known = (&'static str, u64, u64);

/// What was found in Debian's builds by reading them, by build-id.
fn known(kind: Kind) -> Option<(&'static str, &'static [Known])> {
    match kind {
        Kind::Memcached => Some((
            "cb4951e778913a1598cb9fa92e8c377dfc545320",
            &[
                ("safe_strtoul", 0x1b2c0, 0xcb),
                ("safe_strtol", 0x1b390, 0x9b),
            ],
        )),
        Kind::Dnsmasq => Some((
            "ac2f7d6598055193f3fac1ebbe104afef8483ef3",
            &[("hostname_isequal", 0x16fd0, 0x63)],
        )),
        _ => None,
    }
}

/// A debug file; removed when dropped.
#[derive(Debug)]
pub struct Names(PathBuf);

impl Names {
    /// Puts one where debuggers look for it. `None` if none is needed, another one is there, or the build is another.
    pub fn install(kind: Kind) -> Result<Option<Self>, String> {
        let Some((id, functions)) = known(kind) else {
            return Ok(None);
        };
        let (first, rest) = id.split_at(2);
        let path = PathBuf::from(format!("/usr/lib/debug/.build-id/{first}/{rest}.debug"));
        if path.exists() || !has_build_id(kind, id)? {
            return Ok(None);
        }
        let io = |e: std::io::Error| format!("{}: {e}", path.display());
        let dir = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(dir).map_err(io)?;
        const TEXT: u64 = 0x4000;
        let mut code = ".text\n".to_owned();
        for (name, at, size) in functions {
            let at = at - TEXT;
            code += &format!(".org {at}\n.type {name},@function\n{name}: .size {name},{size}\n");
        }
        let source = crate::compile::out_dir().join("names.s");
        std::fs::write(&source, code + ".byte 0\n").map_err(io)?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-nostdlib", "-shared", &format!("-Wl,--build-id=0x{id}")]);
        gcc.arg(format!("-Wl,-Ttext={TEXT:#x}"));
        run(gcc.arg(&source).arg("-o").arg(&path))?;
        Ok(Some(Self(path)))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn has_build_id(kind: Kind, id: &str) -> Result<bool, String> {
    use object::Object;
    let path = kind.program();
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let file = object::File::parse(&*bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    let found = file.build_id().ok().flatten().unwrap_or_default();
    Ok(found.iter().map(|b| format!("{b:02x}")).collect::<String>() == id)
}
