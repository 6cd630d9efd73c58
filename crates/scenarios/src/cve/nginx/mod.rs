//! nginx: a master and two workers, as web server, as proxy, and as mail proxy.

mod asked;
mod conf;
mod files;
mod mail;
mod media;
mod rewrite;
mod upstream;

use super::net::{Connection, free_port};
use super::process::Process;
use super::{Case, Clients, Expected, Package, Row, Seen, Service, http};
use crate::servers::certificate;
use asked::Asked;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// See the module.
pub struct Nginx;

/// A fix, and how what it changes is used.
struct Fix {
    patch: &'static str,
    program: &'static str,
    exercise: fn(&Running) -> Result<(), String>,
    hole: fn(&Running) -> Result<Seen, String>,
}

const SERVER: &str = "objs/nginx";
const MAIL: &str = "objs/ngx_mail_module.so";

const FIXES: &[Fix] = &[
    Fix {
        patch: "CVE-2024-7347-1",
        program: SERVER,
        exercise: media::exercise,
        hole: media::hole,
    },
    Fix {
        patch: "CVE-2025-53859",
        program: MAIL,
        exercise: mail::exercise,
        hole: mail::login_left_over,
    },
    Fix {
        patch: "CVE-2026-1642",
        program: SERVER,
        exercise: upstream::exercise,
        hole: upstream::answer_before_tls,
    },
    Fix {
        patch: "CVE-2026-27651",
        program: MAIL,
        exercise: mail::exercise,
        hole: mail::asked_again,
    },
    Fix {
        patch: "CVE-2026-27654",
        program: SERVER,
        exercise: files::exercise,
        hole: files::hole,
    },
    Fix {
        patch: "CVE-2026-28753",
        program: MAIL,
        exercise: mail::exercise,
        hole: mail::name_of_two_lines,
    },
    Fix {
        patch: "CVE-2026-42945",
        program: SERVER,
        exercise: rewrite::exercise,
        hole: rewrite::escaped,
    },
    Fix {
        patch: "CVE-2026-42946.2",
        program: SERVER,
        exercise: upstream::exercise,
        hole: upstream::split_line,
    },
    Fix {
        patch: "CVE-2026-42934",
        program: SERVER,
        exercise: upstream::recode,
        hole: upstream::recode_bytes,
    },
    Fix {
        patch: "CVE-2026-9256",
        program: SERVER,
        exercise: rewrite::exercise,
        hole: rewrite::overlapping,
    },
];

fn fix(row: &Row) -> Option<&'static Fix> {
    let patch = row.patch.trim_end_matches(".patch");
    FIXES.iter().find(|fix| fix.patch == patch)
}

impl Package for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    // As debian/rules has it, without the modules that no fix is in.
    fn configure(&self) -> &'static str {
        "export DEB_BUILD_MAINT_OPTIONS=hardening=+all\n\
         get() { dpkg-buildflags --get $1; }\n\
         ./configure --with-cc-opt=\"$(get CFLAGS) -fPIC $(get CPPFLAGS)\" --with-ld-opt=\"$(get LDFLAGS) -fPIC\" \
         --prefix=/usr/share/nginx --with-compat --with-debug --with-pcre-jit --with-http_ssl_module \
         --with-http_stub_status_module --with-http_realip_module --with-http_auth_request_module \
         --with-http_v2_module --with-http_dav_module --with-http_slice_module --with-threads \
         --with-http_addition_module --with-http_flv_module --with-http_gunzip_module \
         --with-http_gzip_static_module --with-http_mp4_module --with-http_random_index_module \
         --with-http_secure_link_module --with-http_sub_module --with-mail_ssl_module --with-mail=dynamic"
    }

    fn make(&self) -> &'static str {
        "make -j2"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        fix(row).map(|fix| Case {
            program: fix.program,
            expected: Expected::Loads,
            shows_hole: true,
        })
    }

    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        let fix = fix(row).ok_or("no such fix")?;
        Ok(Box::new(Running::start(fix, tree, dir)?))
    }
}

/// Where it listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    web: u16,
    /// HTTP/2 without TLS.
    web2: u16,
    /// Where it is its own upstream.
    tls: u16,
    mail: u16,
    /// Whose resolver gives the client a name of two lines.
    mail_two_lines: u16,
}

struct Running {
    fix: &'static Fix,
    process: Process,
    dir: PathBuf,
    ports: Ports,
    asked: Asked,
    clients: Option<Clients>,
}

impl Running {
    fn start(fix: &'static Fix, tree: &Path, dir: &Path) -> Result<Self, String> {
        let ports = Ports {
            web: free_port()?,
            web2: free_port()?,
            tls: free_port()?,
            mail: free_port()?,
            mail_two_lines: free_port()?,
        };
        let asked = Asked::start()?;
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        certificate(dir)?;
        for made in ["www", "files"] {
            std::fs::create_dir_all(dir.join(made)).map_err(io)?;
        }
        std::fs::write(dir.join("www/page"), PAGE).map_err(io)?;
        media::write(&dir.join("www")).map_err(io)?;
        let text = conf::text(tree, dir, ports, &asked);
        std::fs::write(dir.join("nginx.conf"), text).map_err(io)?;
        let log = std::fs::File::create(dir.join("output")).map_err(io)?;
        let child = Command::new(tree.join(SERVER))
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .arg("-e")
            .arg(dir.join("error.log"))
            .stdin(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|e| format!("{SERVER}: {e}"))?;
        let mut running = Self {
            fix,
            process: Process::new(child),
            dir: dir.to_owned(),
            ports,
            asked,
            clients: None,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = http::get(ports.web, "/page") {
            if Instant::now() > deadline {
                return Err(format!("nginx does not answer: {error}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        running.clients = Some(clients(ports));
        Ok(running)
    }

    /// The first line of its log with these words.
    fn logged(&self, words: &str) -> Result<Option<String>, String> {
        let path = self.dir.join("error.log");
        let log = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let log = String::from_utf8_lossy(&log).into_owned();
        Ok(log
            .lines()
            .find(|line| line.contains(words))
            .map(str::to_owned))
    }

    /// Whether a worker died, and of which signal.
    fn died(&self) -> Result<Option<String>, String> {
        let line = self.logged("exited on signal")?;
        Ok(line.and_then(|line| {
            let (_, signal) = line.split_once("exited on signal ")?;
            let signal = signal.split(' ').next()?;
            Some(format!("the worker dies of signal {signal}"))
        }))
    }

    /// Whether a worker dies in the next two seconds.
    fn dies(&self) -> Result<Option<String>, String> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let died = self.died()?;
            if died.is_some() || Instant::now() > deadline {
                return Ok(died);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is to be said of a request that no answer came to.
    fn unanswered(&self, error: &str) -> Result<Seen, String> {
        match self.dies()? {
            Some(died) => Ok(Seen::Misbehaves(died)),
            None => Err(error.to_owned()),
        }
    }
}

const PAGE: &str = "a page of the server's own\n";

/// One that stays, one that connects anew for an answer of the upstream, one that sends mail.
fn clients(ports: Ports) -> Clients {
    type Request = Box<dyn FnMut() -> Result<(), String> + Send>;
    let mut made = 0;
    Clients::start(3, move || -> Request {
        made += 1;
        match made {
            1 => {
                let mut staying = None;
                Box::new(move || page(&mut staying, ports.web))
            }
            2 => Box::new(move || http::get(ports.web, "/upstream")?.must_be(200, asked::CONTENT)),
            _ => Box::new(move || mail::login(ports.mail, "load")),
        }
    })
}

/// The page, on a connection that stays as long as nginx lets it.
fn page(staying: &mut Option<(Connection, u32)>, port: u16) -> Result<(), String> {
    /// Fewer than `keepalive_requests` allows.
    const TURNS: u32 = 500;
    let (mut connection, turn) = match staying.take() {
        Some((connection, turn)) if turn < TURNS => (connection, turn),
        _ => (Connection::open(port)?, 0),
    };
    connection.send(http::request("GET", "/page", "", ""))?;
    http::answer(&mut connection)?.must_be(200, PAGE)?;
    *staying = Some((connection, turn + 1));
    Ok(())
}

impl Service for Running {
    fn pids(&self) -> Vec<i32> {
        self.process.with_children()
    }

    fn exercise(&mut self) -> Result<(), String> {
        (self.fix.exercise)(self)
    }

    fn hole(&mut self) -> Result<Seen, String> {
        let seen = (self.fix.hole)(self)?;
        match (&seen, self.died()?) {
            (Seen::Behaves(what), Some(died)) => Err(format!("{what}, but {died}")),
            _ => Ok(seen),
        }
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.clients = None;
        self.process.end_with_children();
    }
}
