//! Debian's stock servers on loopback, each in a directory of its own, and the load on them; for `make servers` and
//! `make stock`.

pub mod ask;
pub mod load;
pub mod names;

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A master and two workers, HTTPS.
    Nginx,
    /// Four workers, plain and TLS.
    Memcached,
    /// One task.
    Dnsmasq,
    /// A process per connection, TLS.
    Postgres,
    /// A thread per connection, TLS.
    Mariadb,
    /// One thread that serves, one for input and output, and those in the background.
    Redis,
}

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";

impl Kind {
    /// Those of `make stock`.
    pub const STOCK: [Kind; 4] = [Kind::Redis, Kind::Memcached, Kind::Dnsmasq, Kind::Nginx];

    /// Those of `make servers`, in the order of the report.
    pub const ALL: [Kind; 5] = [
        Kind::Nginx,
        Kind::Memcached,
        Kind::Dnsmasq,
        Kind::Postgres,
        Kind::Mariadb,
    ];

    /// As its patch is called.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::Memcached => "memcached",
            Kind::Dnsmasq => "dnsmasq",
            Kind::Postgres => "postgres",
            Kind::Mariadb => "mariadb",
            Kind::Redis => "redis",
        }
    }

    /// Debian's package.
    pub fn package(self) -> &'static str {
        match self {
            Kind::Dnsmasq => "dnsmasq-base",
            Kind::Postgres => "postgresql-15",
            Kind::Mariadb => "mariadb-server",
            Kind::Redis => "redis-server",
            _ => self.name(),
        }
    }

    /// The program.
    pub fn program(self) -> &'static Path {
        Path::new(match self {
            Kind::Nginx => "/usr/sbin/nginx",
            Kind::Memcached => "/usr/bin/memcached",
            Kind::Dnsmasq => "/usr/sbin/dnsmasq",
            Kind::Postgres => "/usr/lib/postgresql/15/bin/postgres",
            Kind::Mariadb => "/usr/sbin/mariadbd",
            Kind::Redis => crate::redis::SERVER,
        })
    }
}

/// A server that runs. Ended, and its directory removed, when dropped.
#[derive(Debug)]
pub struct Server {
    /// Which.
    pub kind: Kind,
    /// What it has on disk.
    pub dir: PathBuf,
    /// Where it listens.
    pub port: u16,
    /// Where it listens for TLS, if that is another port.
    pub tls_port: u16,
    child: Child,
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

/// Runs a command to its end; what it has written.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{command:?}: {e}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?}: {}\n{text}", output.status))
    }
}

/// PostgreSQL does not run as root: as the user that owns this directory.
fn as_postgres(command: &mut Command) -> Result<&mut Command, String> {
    use std::os::unix::fs::MetadataExt;
    let home = "/var/lib/postgresql";
    let owner = std::fs::metadata(home).map_err(|e| format!("{home}: {e}"))?;
    Ok(command.uid(owner.uid()).gid(owner.gid()))
}

impl Server {
    /// Starts it and waits until it answers.
    pub fn start(kind: Kind) -> Result<Self, String> {
        Self::start_program(kind, kind.program())
    }

    /// The same of a program that is not where it is installed.
    pub fn start_program(kind: Kind, program: &Path) -> Result<Self, String> {
        let name = format!("livegraft-{}-{}", kind.name(), std::process::id());
        let dir = std::env::temp_dir().join(name);
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        std::fs::create_dir_all(&dir).map_err(io)?;
        use std::os::unix::fs::PermissionsExt;
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&dir, open).map_err(io)?;
        certificate(&dir)?;
        let (port, tls_port) = (free_port()?, free_port()?);
        let mut command = prepared(kind, program, &dir, port, tls_port)?;
        let log = std::fs::File::create(dir.join("log")).map_err(io)?;
        let log_too = log.try_clone().map_err(io)?;
        let child = command
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(|e| format!("{command:?}: {e}"))?;
        let server = Self {
            kind,
            dir,
            port,
            tls_port,
            child,
        };
        server.wait()?;
        Ok(server)
    }

    fn wait(&self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        // dnsmasq answers queries by TCP too; PostgreSQL listens before it answers.
        let answers = || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && (self.kind != Kind::Postgres || self.query("select 1").is_ok())
        };
        while !answers() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                return Err(format!("{} does not answer:\n{log}", self.kind.name()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its processes: what each is, and its number. The first is the one that was started.
    pub fn processes(&self) -> Vec<(String, i32)> {
        let main = self.child.id();
        let mut all = vec![("main".to_owned(), main as i32)];
        let children = format!("/proc/{main}/task/{main}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        for pid in children.split_whitespace() {
            let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            let title = title.unwrap_or_default().replace('\0', " ");
            let role = match title.split_once(": ") {
                Some((_, role)) if role.contains("127.0.0.1") => "backend",
                Some((_, role)) if role.contains("worker process") => "worker",
                _ => "background",
            };
            if let Ok(pid) = pid.parse() {
                all.push((role.to_owned(), pid));
            }
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // PostgreSQL waits for its clients on SIGTERM.
        let signal = match self.kind {
            Kind::Postgres => libc::SIGINT,
            _ => libc::SIGTERM,
        };
        let children = self.processes();
        crate::kill(self.child.id() as i32, signal);
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                for (_, pid) in &children {
                    crate::kill(*pid, libc::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A key and a certificate of its own, for TLS.
pub(crate) fn certificate(dir: &Path) -> Result<(), String> {
    let mut command = Command::new("openssl");
    command
        .current_dir(dir)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"]);
    command.args(["-keyout", "key.pem", "-out", "cert.pem", "-days", "2"]);
    run(command.args(["-subj", "/CN=localhost"])).map(drop)
}

/// The command that starts a server, after what it needs was put into its directory.
fn prepared(
    kind: Kind,
    program: &Path,
    dir: &Path,
    port: u16,
    tls_port: u16,
) -> Result<Command, String> {
    let mut command = Command::new(program);
    let path = dir.display();
    match kind {
        Kind::Nginx => nginx(&mut command, dir, port)?,
        Kind::Memcached => {
            let listen = format!("notls:127.0.0.1:{port},127.0.0.1:{tls_port}");
            command.args([
                "-u", "root", "-t", "4", "-m", "64", "-U", "0", "-Z", "-l", &listen,
            ]);
            command.args(["-o", "ssl_chain_cert=cert.pem,ssl_key=key.pem"]);
        }
        Kind::Dnsmasq => {
            command.args(["-k", "-C", "/dev/null", "--user=root", "--pid-file="]);
            command.args(["--listen-address=127.0.0.1", "--bind-interfaces"]);
            command.args(["--no-resolv", "--no-hosts", "--address=/test/192.0.2.7"]);
            command.arg("--host-record=host.example,192.0.2.1");
            command.arg(format!("--port={port}"));
        }
        Kind::Redis => {
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
            command.args(["--save", "", "--appendonly", "no", "--io-threads", "2"]);
        }
        Kind::Postgres => {
            let mut init = Command::new(format!("{POSTGRES}/initdb"));
            init.args(["-A", "trust", "-U", "postgres", "-N", "-D"]);
            run(as_postgres(init.arg(dir.join("data")))?.current_dir(dir))?;
            let mut key = Command::new("install");
            key.args(["-m", "600", "-o", "postgres", "key.pem", "server.pem"]);
            run(key.current_dir(dir))?;
            command.arg("-D").arg(dir.join("data"));
            command.args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"]);
            command.arg(dir).args(["-c", "ssl=on", "-c", "fsync=off"]);
            command.args(["-c", &format!("ssl_cert_file={path}/cert.pem")]);
            command.args(["-c", &format!("ssl_key_file={path}/server.pem")]);
            as_postgres(&mut command)?;
        }
        Kind::Mariadb => {
            let data = format!("--datadir={path}/data");
            let mut init = Command::new("mariadb-install-db");
            init.args(["--no-defaults", "--user=root", &data]);
            init.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
            run(&mut init)?;
            command.args(["--no-defaults", "--user=root", &data]);
            command.args(["--bind-address=127.0.0.1", &format!("--port={port}")]);
            command.arg(format!("--socket={path}/socket"));
            command.arg(format!("--pid-file={path}/pid"));
            command.args([
                format!("--ssl-cert={path}/cert.pem"),
                format!("--ssl-key={path}/key.pem"),
                format!("--ssl-ca={path}/cert.pem"),
            ]);
            command.arg("--innodb-flush-log-at-trx-commit=0");
        }
    }
    Ok(command)
}

fn nginx(command: &mut Command, dir: &Path, port: u16) -> Result<(), String> {
    let text = format!(
        "daemon off; worker_processes 2; user root; pid pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate cert.pem; ssl_certificate_key key.pem;
        root www;
    }}
}}
"
    );
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir(dir.join("www")).map_err(io)?;
    std::fs::write(dir.join("www/index.html"), "hello\n").map_err(io)?;
    std::fs::write(dir.join("nginx.conf"), text).map_err(io)?;
    command.arg("-p").arg(dir);
    command.args(["-e", "stderr", "-c", "nginx.conf"]);
    Ok(())
}
