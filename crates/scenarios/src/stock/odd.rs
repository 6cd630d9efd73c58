//! What is odd about packages: each ends in one sentence, or in the patch that was meant.

use super::{Builder, Made, Subject, diff, piped};
use crate::cli;
use crate::inspect::Baseline;
use crate::servers::{Kind, run};
use object::{Object, ObjectSegment};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

type Part = fn(&Builder) -> Result<(), String>;

/// All of it. What has failed is told at the end.
pub fn all(builder: &Builder) -> Result<(), String> {
    let parts: [(&str, Part); 6] = [
        ("names", names),
        ("diffs", diffs),
        ("circumstances", circumstances),
        ("another binary", another_binary),
        ("several programs", several_programs),
        ("a library", library),
    ];
    let mut failed = Vec::new();
    for (name, part) in parts {
        if let Err(error) = part(builder) {
            failed.push(format!("{name}: {error}"));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(failed.join("\n")),
    }
}

/// A refusal in one sentence that has these words, and nothing written.
fn refused(what: &str, made: &Made, words: &[&str]) -> Result<(), String> {
    let message = made.message();
    println!("- {what}: {message}");
    let missing = words.iter().find(|word| !message.contains(**word));
    if let Some(missing) = missing {
        return Err(format!("{what}: no `{missing}` in: {}", made.outcome));
    }
    if made.outcome.code != 1 || made.klp.exists() || message.contains('\n') {
        return Err(format!("{what}: {}", made.outcome));
    }
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn memcached() -> Result<Subject, String> {
    Subject::installed(Kind::Memcached.package(), Kind::Memcached.program())
}

fn names(builder: &Builder) -> Result<(), String> {
    let diff = diff("memcached-static");
    let made = builder.build_as(&words(&["--debian", "no-such-package"]), &diff);
    refused(
        "a package that is not installed",
        &made,
        &["no-such-package", "neither an installed package"],
    )?;
    let made = builder.build_as(&words(&["--debian", "memcached=0.1"]), &diff);
    refused(
        "a version that is not installed",
        &made,
        &["memcached 0.1 is not installed", "--target"],
    )?;
    let program = Kind::Memcached.program().to_string_lossy();
    let named = words(&["--debian", "memcached=0.1", "--target", &program]);
    refused(
        "a version that there is not",
        &builder.build_as(&named, &diff),
        &["memcached 0.1 is not to be had any more"],
    )
}

fn diffs(builder: &Builder) -> Result<(), String> {
    let subject = memcached()?;
    refused(
        "another package's diff",
        &builder.build(&subject, &diff("dnsmasq-static")),
        &["there is no file", "src/rfc1035.c"],
    )?;
    let text = std::fs::read_to_string(diff("memcached-static")).map_err(|e| e.to_string())?;
    let changed = |name: &str, text: String| {
        let path = builder.work.join(name).with_extension("diff");
        std::fs::write(&path, text).map(|()| path)
    };
    let other = changed("other", text.replace("\"NOT_FOUND\"", "\"NOT_HERE\""));
    refused(
        "a diff for another version",
        &builder.build(&subject, &other.map_err(|e| e.to_string())?),
        &["does not apply"],
    )?;
    let swapped = text.lines().skip(2).map(|line| match line.split_at(1) {
        ("-", rest) => format!("+{rest}\n"),
        ("+", rest) => format!("-{rest}\n"),
        _ => format!("{line}\n"),
    });
    let head: String = text
        .lines()
        .take(2)
        .map(|line| format!("{line}\n"))
        .collect();
    let there = changed("there", head + &swapped.collect::<String>());
    refused(
        "a diff that is in it already",
        &builder.build(&subject, &there.map_err(|e| e.to_string())?),
        &["is applied already"],
    )
}

/// No network, and disks of two sizes that are full.
fn circumstances(builder: &Builder) -> Result<(), String> {
    let shell = |name: &str, namespace: &str, before: &str, fix: &str| {
        let work = builder.work.join(name);
        let klp = builder.work.join("none.klp");
        let script = format!(
            "set -e; work=$1; sources=$2; mkdir -p \"$work\"; {before}; shift 2; exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args([namespace, "sh", "-c", &script, "sh"]);
        command.arg(&work).arg(builder.work.join("builds/debian"));
        command.arg(cli::binary());
        command.args(["--json", "build", "--debian", "memcached", "--diff"]);
        command.arg(diff(fix)).arg("--work").arg(&work);
        command.arg("-o").arg(&klp);
        Made {
            outcome: piped(command),
            klp,
            processor: 0.0,
        }
    };
    let made = shell("offline", "--net", "true", "memcached-static");
    refused("no network", &made, &["can't be fetched"])?;
    let mount = "mount -t tmpfs -o size=512k none \"$work\"";
    let made = shell("tiny", "--mount", mount, "memcached-static");
    refused("no space for the source", &made, &["no space is left"])?;
    // The source is there, and room for its copy.
    let mount = "mount -t tmpfs -o size=256m none \"$work\"; mkdir \"$work/debian\"; \
        cp -a \"$sources\"/memcached-* \"$work/debian\"; \
        need=$(du -s -B1 --apparent-size \"$work/debian\" | cut -f1); \
        left=$(df --output=avail -B1 \"$work\" | tail -n 1); \
        fallocate -l $((left - need - 4000000)) \"$work/filler\"";
    let made = shell("full", "--mount", mount, "memcached-static");
    refused("no space for the build", &made, &["no space is left"])
}

/// A program of which some byte is not what the build makes.
fn another_binary(builder: &Builder) -> Result<(), String> {
    let subject = memcached()?;
    let made = builder.build(&subject, &diff("memcached-static"));
    let function = &made.outcome.json["info"]["objects"][0]["funcs"][0];
    let number = |field: &str| {
        let text = function[field]
            .as_str()
            .map(|text| text.trim_start_matches("0x"));
        let hex = text.and_then(|text| u64::from_str_radix(text, 16).ok());
        hex.or_else(|| function[field].as_u64())
    };
    let (Some(address), Some(size)) = (number("address"), number("size")) else {
        return Err(made.outcome.to_string());
    };
    let bytes = std::fs::read(&subject.program).map_err(|e| e.to_string())?;
    let elf = object::File::parse(&*bytes).map_err(|e| e.to_string())?;
    let copy = builder.work.join("memcached");
    for (what, address) in [
        ("one byte of the function differs", address + size / 2),
        ("one byte of another function differs", elf.entry() + 0x2000),
    ] {
        let offset = elf.segments().find_map(|segment| {
            let within = address.checked_sub(segment.address())?;
            (within < segment.size()).then(|| segment.file_range().0 + within)
        });
        let offset = offset.ok_or("no segment has it")?;
        let mut changed = bytes.clone();
        changed[offset as usize] ^= 0x40;
        std::fs::write(&copy, changed).map_err(|e| e.to_string())?;
        let target = copy.to_string_lossy();
        let named = words(&["--debian", "memcached", "--target", &target]);
        let made = builder.build_as(&named, &diff("memcached-static"));
        refused(what, &made, &["is not what was built", "differs"])?;
    }
    Ok(())
}

/// Redis makes several, in two packages.
fn several_programs(builder: &Builder) -> Result<(), String> {
    let one = builder.build_as(&words(&["--debian", "redis-server"]), &diff("redis-cli"));
    let target = |made: &Made| made.outcome.json["targets"][0]["path"].clone();
    if one.outcome.code != 0 || target(&one) != "/usr/bin/redis-cli" {
        return Err(one.outcome.to_string());
    }
    println!("- a diff of redis that changes redis-cli alone: a patch for it");
    let both = builder.build_as(&words(&["--debian", "redis-server"]), &diff("redis-tools"));
    refused(
        "a diff of redis that changes two of its programs",
        &both,
        &["redis-cli", "redis-benchmark", "--target"],
    )?;
    let named = words(&["--debian", "redis-server", "--target", "/usr/bin/redis-cli"]);
    let named = builder.build_as(&named, &diff("redis-tools"));
    if named.outcome.code != 0 || target(&named) != "/usr/bin/redis-cli" {
        return Err(named.outcome.to_string());
    }
    println!("- the same with --target: a patch for that one");
    let both = [
        "--target",
        "/usr/bin/redis-cli",
        "--target",
        "/usr/bin/redis-benchmark",
    ];
    let both = [&["--debian", "redis-server"], &both[..]].concat();
    refused(
        "the same with both as targets",
        &builder.build_as(&words(&both), &diff("redis-tools")),
        &["redis-benchmark"],
    )
}

/// A program that asks a library.
struct Parser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Parser {
    fn start(builder: &Builder, library: &Path) -> Result<Self, String> {
        let program = builder.work.join("parser");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-Wall", "-Wextra", "-Werror"]);
        gcc.arg(crate::plan::root().join("tests/stock/parser.c"));
        run(gcc.arg("-o").arg(&program))?;
        let mut child = Command::new(&program)
            .arg(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            input: input.ok_or("no input")?,
            output: BufReader::new(output.ok_or("no output")?),
            child,
        })
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// expat's code for what is wrong with a document, which must be this.
    fn expect(&mut self, document: &str, code: &str) -> Result<(), String> {
        writeln!(self.input, "{document}").map_err(|e| e.to_string())?;
        let mut answer = String::new();
        self.output
            .read_line(&mut answer)
            .map_err(|e| e.to_string())?;
        match answer.trim() == code {
            true => Ok(()),
            false => Err(format!("{document}: {answer} instead of {code}")),
        }
    }
}

impl Drop for Parser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// libexpat, with a static function and a global one.
fn library(builder: &Builder) -> Result<(), String> {
    let mut query = Command::new("dpkg-query");
    let listed = run(query.args(["-L", "libexpat1"]))?;
    let mut files = listed.lines().map(PathBuf::from);
    let library = files.find(|file| file.to_string_lossy().contains("/libexpat.so.1."));
    let library = library.ok_or("libexpat1 has no library")?;
    let subject = Subject::installed("libexpat1", &library)?;
    let (subject, global) = builder.first(subject, &diff("expat-global"))?;
    let fixed = builder.build(&subject, &diff("expat-static"));
    let mut parser = Parser::start(builder, &subject.program)?;
    let pid = parser.pid();
    let baseline = Baseline::take(parser.child.id() as i32);
    // 9 is junk after the document, 2 a syntax error.
    for (made, name, new) in [
        (&global, "expat-global", "39"),
        (&fixed, "expat-static", "2"),
    ] {
        if made.outcome.code != 0 {
            return Err(made.outcome.to_string());
        }
        let klp = made.klp.to_string_lossy();
        for (words, code) in [(["load", &*klp], new), (["unload", name], "9")] {
            let done = cli::livegraft(&[&words[..], &["--pid", &pid]].concat());
            if done.code != 0 {
                return Err(done.to_string());
            }
            parser.expect("<a/>x", code)?;
            parser.expect("<a/>", "0")?;
        }
        println!(
            "- {} {} as a library in a running program, {:?}, {}: loaded, seen, unloaded ({:.0} s, {:.0} s of processors)",
            subject.package,
            subject.version,
            made.changed(),
            made.proof(),
            made.outcome.elapsed.as_secs_f64(),
            made.processor,
        );
    }
    match baseline.text_difference() {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}
