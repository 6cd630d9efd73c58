//! Installed programs, and patches for them that `livegraft build --debian` makes of diffs in `tests/stock`; for `make stock`.

pub mod odd;

use crate::cli::{self, Outcome};
use crate::servers::{Kind, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A large package on a busy machine.
const LONGEST: Duration = Duration::from_secs(5400);

/// A diff of ours.
#[derive(Debug, Clone, Copy)]
pub struct Fix {
    /// `tests/stock/NAME.diff`.
    pub name: &'static str,
    /// What to ask the server.
    pub question: &'static str,
    /// What is in the answer without it.
    pub old: &'static str,
    /// What is only in the answer with it.
    pub new: &'static str,
}

impl Fix {
    /// Where it is.
    pub fn path(&self) -> PathBuf {
        diff(self.name)
    }
}

/// A diff in `tests/stock`.
pub fn diff(name: &str) -> PathBuf {
    crate::plan::root().join(format!("tests/stock/{name}.diff"))
}

/// For a server one of a static function and one of another.
pub fn fixes(kind: Kind) -> Option<[Fix; 2]> {
    let fix = |name, question, old, new| Fix {
        name,
        question,
        old,
        new,
    };
    Some(match kind {
        Kind::Redis => [
            fix("redis-global", "PING", "PONG", "PUN"),
            fix(
                "redis-static",
                "SET one 1 EX 1000|TTL one",
                ":1000",
                ":2000",
            ),
        ],
        Kind::Memcached => [
            fix(
                "memcached-global",
                "set five 0 0 1\r\n5|incr five 1",
                "6",
                "106",
            ),
            fix(
                "memcached-static",
                "incr none 1",
                "NOT_FOUND",
                "NOT_FOUND, says the patch",
            ),
        ],
        Kind::Dnsmasq => [
            fix("dnsmasq-global", "host.example", "0", "55"),
            fix("dnsmasq-static", "host.example", "0", "77"),
        ],
        Kind::Nginx => [
            fix("nginx-global", "ETag", "\"", "-p\""),
            fix("nginx-static", "Connection", "keep-alive", "Keep-Alive"),
        ],
        Kind::Postgres | Kind::Mariadb => return None,
    })
}

/// A program or library of a package.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The file that runs.
    pub program: PathBuf,
    /// It is what is installed.
    pub installed: bool,
    /// Headers of OpenSSL of the version that it was built with, whose name it holds, if others are installed.
    pub headers: Option<PathBuf>,
}

impl Subject {
    /// An installed one.
    pub fn installed(package: &str, program: &Path) -> Result<Self, String> {
        let mut query = Command::new("dpkg-query");
        let version = run(query.args(["-W", "-f", "${Version}", package]))?;
        let program = std::fs::canonicalize(program);
        Ok(Self {
            package: package.to_owned(),
            version,
            program: program.map_err(|e| format!("{package}: {e}"))?,
            installed: true,
            headers: None,
        })
    }

    /// The same of other versions that can be had, unpacked below a directory. An archive may have the source of these only.
    pub fn others(&self, below: &Path) -> Vec<Self> {
        let versions = versions(&self.package);
        let versions = versions.iter().filter(|version| **version != self.version);
        let unpacked = versions.map(|version| self.unpack(version, below));
        let told = |unpacked: Result<Self, String>| {
            unpacked.inspect_err(|error| eprintln!("{error}")).ok()
        };
        unpacked.filter_map(told).collect()
    }

    fn unpack(&self, version: &str, below: &Path) -> Result<Self, String> {
        let dir = unpack(&self.package, version, below)?;
        let name = self.program.file_name().ok_or("a program without a name")?;
        // /lib is /usr/lib by now, but not in all packages.
        let parts = self.program.parent().into_iter().flat_map(Path::components);
        let below_usr: PathBuf = parts
            .skip_while(|part| matches!(part.as_os_str().to_str(), Some("/" | "usr")))
            .collect();
        let places = [dir.join("usr").join(&below_usr), dir.join(&below_usr)];
        let stem = name.to_string_lossy();
        let stem = stem.split_once(".so.").map_or(&*stem, |(stem, _)| stem);
        let is_it = |file: &PathBuf| {
            let other = file.file_name().unwrap_or_default().to_string_lossy();
            let same = other.split_once(".so.").map_or(&*other, |(other, _)| other) == stem;
            same && file.symlink_metadata().is_ok_and(|m| m.is_file())
        };
        let program = places
            .iter()
            .flat_map(|place| names(place))
            .find(|file| is_it(file));
        let program = program.ok_or_else(|| format!("no {stem} in it"))?;
        Ok(Self {
            package: self.package.clone(),
            version: version.to_owned(),
            headers: headers_of(&program, below)?,
            program,
            installed: false,
        })
    }

    /// What `build` needs to know.
    fn words(&self) -> Vec<String> {
        if self.installed {
            return vec!["--debian".to_owned(), self.package.clone()];
        }
        let program = self.program.to_string_lossy().into_owned();
        let package = format!("{}={}", self.package, self.version);
        [
            "--debian".to_owned(),
            package,
            "--target".to_owned(),
            program,
        ]
        .to_vec()
    }
}

/// Downloads a package and unpacks it to a directory of its own.
fn unpack(package: &str, version: &str, below: &Path) -> Result<PathBuf, String> {
    let dir = below.join(format!("{package}-{version}"));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let mut download = Command::new("apt-get");
    download.current_dir(&dir).args(["-q", "download"]);
    run(download.arg(format!("{package}={version}")))?;
    let mut files = names(&dir).into_iter();
    let file = files.find(|file| file.extension().is_some_and(|e| e == "deb"));
    let file = file.ok_or("nothing was downloaded")?;
    run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&dir))?;
    Ok(dir)
}

/// The versions of a package that can be had.
fn versions(package: &str) -> Vec<String> {
    let said = run(Command::new("apt-cache").args(["madison", package]));
    let said = said.unwrap_or_default();
    let version = |line: &str| Some(line.split('|').nth(1)?.trim().to_owned());
    let mut versions: Vec<String> = said.lines().filter_map(version).collect();
    versions.dedup();
    versions
}

fn headers_of(program: &Path, below: &Path) -> Result<Option<PathBuf>, String> {
    const SAYS: &str = "built with OpenSSL ";
    let installed = std::fs::read_to_string("/usr/include/openssl/opensslv.h");
    let bytes = std::fs::read(program).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((_, rest)) = text.split_once(SAYS) else {
        return Ok(None);
    };
    let version = rest.split(' ').next().unwrap_or_default();
    if installed.is_ok_and(|text| text.contains(&format!("\"{version}\""))) {
        return Ok(None);
    }
    let all = versions("libssl-dev");
    let same = all
        .iter()
        .find(|other| other.starts_with(&format!("{version}-")));
    let same = same.ok_or_else(|| format!("no libssl-dev {version} is to be had"))?;
    let dir = unpack("libssl-dev", same, below)?;
    Ok(Some(dir.join("usr/include/openssl")))
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// What a build came to.
#[derive(Debug)]
pub struct Made {
    /// What `build` says.
    pub outcome: Outcome,
    /// The patch, if there is one.
    pub klp: PathBuf,
    /// Processor time of all that it has run, in seconds.
    pub processor: f64,
}

impl Made {
    /// The words of a refusal.
    pub fn message(&self) -> &str {
        self.outcome.json["error"]["message"]
            .as_str()
            .unwrap_or_default()
    }

    /// How the target was proven.
    pub fn proof(&self) -> String {
        let target = &self.outcome.json["targets"][0];
        match (target["placed"].as_u64(), target["code"].as_u64()) {
            (Some(placed), Some(code)) if code > 0 => {
                format!("by objects, {:.1}%", placed as f64 * 100.0 / code as f64)
            }
            _ => target["proof"].as_str().unwrap_or("?").to_owned(),
        }
    }

    /// Functions that are replaced: with a name of a file if they are static.
    pub fn changed(&self) -> Vec<(String, Option<String>)> {
        let sources = self.outcome.json["sources"].as_array();
        let functions = sources
            .into_iter()
            .flatten()
            .filter_map(|source| source["functions"].as_array())
            .flatten();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        functions
            .filter(|function| function["status"] == "changed")
            .filter_map(|function| Some((text(&function["name"])?, text(&function["file"]))))
            .collect()
    }
}

/// Has a command see headers as those of OpenSSL that are installed.
const OVER: &str = r#"mount --bind -- "$1" /usr/include/openssl && shift && exec "$@""#;

/// Where builds are kept, and how they are started.
#[derive(Debug)]
pub struct Builder {
    /// `--work`, and patches.
    pub work: PathBuf,
}

impl Builder {
    /// In a directory of its own, with the original builds of earlier runs.
    pub fn new() -> Result<Self, String> {
        let work = cli::target_dir().join("stock");
        std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
        Ok(Self { work })
    }

    /// `livegraft build --debian` with a diff of ours.
    pub fn build(&self, subject: &Subject, diff: &Path) -> Made {
        self.run(&subject.words(), subject.headers.as_deref(), diff)
    }

    /// The same with these words for what runs.
    pub fn build_as(&self, words: &[String], diff: &Path) -> Made {
        self.run(words, None, diff)
    }

    fn run(&self, words: &[String], headers: Option<&Path>, diff: &Path) -> Made {
        let name = diff.file_stem().unwrap_or_default();
        let klp = self.work.join(name).with_extension("klp");
        let _ = std::fs::remove_file(&klp);
        // Whoever else works here goes first.
        let mut command = Command::new("nice");
        command.args(["-n", "5"]);
        if let Some(headers) = headers {
            command
                .args(["unshare", "--mount", "sh", "-c", OVER, "sh"])
                .arg(headers);
        }
        command.arg(cli::binary());
        command.args(["--json", "build", "--diff"]).arg(diff);
        command.arg("--work").arg(self.work.join("builds"));
        command.arg("-o").arg(&klp).args(words);
        let before = crate::children_time();
        let outcome = piped(command);
        Made {
            outcome,
            klp,
            processor: (crate::children_time() - before).as_secs_f64(),
        }
    }

    /// The first build for an installed program: of what is installed, or where its source is not to be had of another version.
    pub fn first(&self, subject: Subject, diff: &Path) -> Result<(Subject, Made), String> {
        let others = || subject.others(&self.work.join("unpacked"));
        let made = self.build(&subject, diff);
        if !made.message().contains("is not to be had any more") {
            return Ok((subject, made));
        }
        println!("{}", made.message());
        for other in others() {
            let made = self.build(&other, diff);
            if !made.message().contains("is not to be had any more") {
                return Ok((other, made));
            }
        }
        Err(format!("no source of {} is to be had", subject.package))
    }
}

/// Runs a command that may take long, and reads what it says.
pub fn piped(mut command: Command) -> Outcome {
    use std::process::Stdio;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    cli::run(command).finish_within(LONGEST)
}
