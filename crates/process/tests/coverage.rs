//! How many functions of stock servers and libraries each entry method could redirect, in processes of few and of many
//! threads. The engine's own plans are counted; nothing is changed.

use livegraft_process::Engine;
use livegraft_process::engine::Covered;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const REDIS: &str = "/usr/bin/redis-server";
const NGINX: &str = "/usr/sbin/nginx";

/// A server with more threads than it has by itself; ended by its pid.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn start(mut command: Command, library: &Path, threads: usize) -> Result<Server, String> {
        let child = command
            .env("LD_PRELOAD", library)
            .env("THREADS", threads.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let mut server = Server(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        // Once it sleeps in its main loop everything is mapped.
        while server.tasks() <= threads || !server.waits() {
            let ended = server.0.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(format!("{command:?} does not get ready: {ended:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn tasks(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        tasks.map_or(0, |tasks| tasks.count())
    }

    fn waits(&self) -> bool {
        const EPOLL_WAIT: &str = "232 ";
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", self.pid()));
        call.is_ok_and(|call| call.starts_with(EPOLL_WAIT))
    }
}

fn preloaded(dir: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/coverage/threads.c");
    let library = dir.join("threads.so");
    let status = Command::new("gcc")
        .args(["-O2", "-shared", "-fPIC", "-pthread", "-o"])
        .arg(&library)
        .arg(source)
        .status()
        .map_err(|error| format!("gcc: {error}"))?;
    status
        .success()
        .then_some(library)
        .ok_or("gcc failed".into())
}

fn redis(dir: &Path) -> Command {
    let mut command = Command::new(REDIS);
    let socket = dir.join("redis.sock");
    command
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(socket);
    command
}

fn nginx(dir: &Path) -> Result<Command, String> {
    let configuration = dir.join("nginx.conf");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free
        .map_err(|error| format!("no free port: {error}"))?
        .port();
    let text = format!(
        "daemon off; master_process off; error_log stderr; pid nginx.pid; events {{ }}\n\
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; }} }}\n"
    );
    std::fs::write(&configuration, text).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut command = Command::new(NGINX);
    command.arg("-p").arg(dir).arg("-c").arg(&configuration);
    Ok(command)
}

/// Prints the table, and why functions of five bytes and more are refused that are.
#[test]
#[ignore = "a measurement"]
fn coverage() -> Result<(), String> {
    if let Some(missing) = [REDIS, NGINX]
        .into_iter()
        .find(|file| !Path::new(file).is_file())
    {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "LIVEGRAFT_REQUIRE is set, and {missing} is missing"
        );
        eprintln!("SKIP coverage: needs {missing}");
        return Ok(());
    }
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let dir = dir.path();
    let library = preloaded(dir)?;
    println!(
        "| object | threads added | functions | pun | then swap | then rendezvous | refused | of five bytes or more | swap alone | rendezvous alone |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut reasons = BTreeMap::new();
    for threads in [3, 1000] {
        let server = Server::start(redis(dir), &library, threads)?;
        row("redis-server", None, &server, threads, &mut reasons)?;
        let server = Server::start(nginx(dir)?, &library, threads)?;
        row("nginx", None, &server, threads, &mut reasons)?;
        for name in ["libcrypto.so.3", "libc.so.6"] {
            row(name, Some(name), &server, threads, &mut reasons)?;
        }
    }
    println!();
    for ((object, reason), count) in reasons {
        println!("- {object}: {count} refused: {reason}");
    }
    Ok(())
}

fn row(
    shown: &str,
    object: Option<&str>,
    server: &Server,
    threads: usize,
    reasons: &mut BTreeMap<(String, String), usize>,
) -> Result<(), String> {
    let mut engine = Engine::inspect(server.pid()).map_err(|error| error.to_string())?;
    let all = engine.coverage(object).map_err(|error| error.to_string())?;
    let share = |wanted: &dyn Fn(&Covered) -> bool| {
        let count = all.iter().filter(|covered| wanted(covered)).count();
        format!("{count} ({:.2}%)", 100.0 * count as f64 / all.len() as f64)
    };
    let refused = |c: &Covered| c.pun.is_err() && c.swap.is_err() && c.rendezvous.is_err();
    let short = |c: &Covered| c.function.end - c.function.start < 5;
    println!(
        "| {shown} | {threads} | {} | {} | {} | {} | {} | {} | {} | {} |",
        all.len(),
        share(&|c| c.pun.is_ok()),
        share(&|c| c.pun.is_err() && c.swap.is_ok()),
        share(&|c| c.pun.is_err() && c.swap.is_err() && c.rendezvous.is_ok()),
        share(&refused),
        all.iter().filter(|c| refused(c) && !short(c)).count(),
        share(&|c| c.swap.is_ok()),
        share(&|c| c.rendezvous.is_ok()),
    );
    for covered in all.iter().filter(|c| refused(c) && !short(c)) {
        let said = [&covered.pun, &covered.swap, &covered.rendezvous];
        let mut said: Vec<String> = said
            .into_iter()
            .filter_map(|method| Some(method.as_ref().err()?.to_string()))
            .collect();
        said.dedup();
        let key = (format!("{shown}, {threads} threads"), said.join("; "));
        *reasons.entry(key).or_default() += 1;
    }
    Ok(())
}
