//! What each fix of redis is about: how the server is set up, what uses the changed functions, and the hole.

use super::{Connection, Running, Seen, Server, expect, expect_words};
use crate::cve::Row;
use crate::servers::run;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// By what it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fix {
    /// SCRIPT FLUSH.
    LuaRelease,
    /// ACL SETUSER.
    AclSelector,
    /// Clients that do not read their answers.
    OutputBuffer,
    /// redis-check-aof, which is this program by another name: a function that ends by exit().
    CheckAof,
    /// PFCOUNT and its kin.
    HyperLogLog,
    /// The compiler of scripts.
    LuaParser,
    /// Its reader of words.
    LuaLexer,
    /// Answers of one line with text of the client in them.
    Replies,
    /// RESTORE.
    StreamLoad,
    /// TLS connections that have read more than the server has taken.
    TlsPending,
    /// Messages between the nodes of a cluster.
    ClusterPacket,
}

impl Fix {
    pub fn of(row: &Row) -> Option<Self> {
        Some(match row.patch.trim_end_matches(".patch") {
            "0001-Fix-LUA-garbage-collector-CVE-2024-46981-1513" => Self::LuaRelease,
            "0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1" => Self::AclSelector,
            "0001-Limiting-output-buffer-for-unauthenticated-client-CV" => Self::OutputBuffer,
            "0005-CVE-2025-27151" => Self::CheckAof,
            "0006-CVE-2025-32023" => Self::HyperLogLog,
            "CVE-2025-49844" => Self::LuaParser,
            "CVE-2025-46819" => Self::LuaLexer,
            "CVE-2025-67733" => Self::Replies,
            "CVE-2026-66373" => Self::StreamLoad,
            "CVE-2026-81934" => Self::TlsPending,
            "CVE-2026-92925" => Self::ClusterPacket,
            _ => return None,
        })
    }

    pub fn shows_hole(self) -> bool {
        matches!(
            self,
            Self::AclSelector
                | Self::OutputBuffer
                | Self::HyperLogLog
                | Self::Replies
                | Self::StreamLoad
                | Self::ClusterPacket
        )
    }

    /// Arguments of the server; `TLS` stands for a free port.
    pub fn settings(self, tree: &Path, dir: &Path) -> Result<Vec<String>, String> {
        let words: &[&str] = match self {
            Self::OutputBuffer => &["--requirepass", "secret"],
            Self::ClusterPacket => &["--cluster-enabled", "yes"],
            Self::TlsPending => {
                certificate(dir)?;
                &[
                    "--tls-port",
                    "TLS",
                    "--tls-cert-file",
                    "cert.pem",
                    "--tls-key-file",
                    "key.pem",
                    "--tls-auth-clients",
                    "no",
                ]
            }
            Self::Replies => {
                let module = dir.join("simple.so");
                let mut compiler = Command::new("gcc");
                compiler.args(["-O2", "-shared", "-fPIC", "-I"]);
                compiler.arg(tree.join("src")).arg("-o").arg(&module);
                run(compiler.arg(crate::plan::root().join("tests/cve/redis_module.c")))?;
                let module = module.to_string_lossy().into_owned();
                return Ok(vec!["--loadmodule".to_owned(), module]);
            }
            _ => &[],
        };
        Ok(words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// What has to be there before clients come.
    pub fn prepare(self, running: &Running) -> Result<(), String> {
        let Some(peer) = &running.peer else {
            return Ok(());
        };
        let mut node = running.server.connect()?;
        expect(&mut node, "CLUSTER ADDSLOTSRANGE 0 16383", "+OK")?;
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", peer.port, peer.bus);
        expect(&mut node, &meet, "+OK")?;
        until("the cluster is not ready", || {
            let info = node.ask(&[b"CLUSTER", b"INFO"])?;
            Ok(info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2"))
        })
    }

    /// Uses what the fix changes.
    pub fn exercise(self, running: &mut Running) -> Result<(), String> {
        let mut client = running.server.connect()?;
        let client = &mut client;
        match self {
            Self::LuaRelease => {
                for way in ["SYNC", "ASYNC"] {
                    let loaded = client.ask(&[b"SCRIPT", b"LOAD", b"return 'here'"])?;
                    expect(client, &format!("SCRIPT FLUSH {way}"), "+OK")?;
                    expect(client, &format!("EVALSHA {loaded} 0"), "-NOSCRIPT")?;
                    expect_words(client, &[b"EVAL", b"return 'here'", b"0"], "here")?;
                }
                Ok(())
            }
            Self::AclSelector => {
                expect(
                    client,
                    "ACL SETUSER a reset on nopass ~a* %R~r* +@all",
                    "+OK",
                )?;
                expect(client, "ACL SETUSER a %X~x", "-ERR Error in ACL SETUSER")?;
                expect(client, "ACL SETUSER a %~", "-ERR Error in ACL SETUSER")?;
                expect(client, "AUTH a any", "+OK")?;
                expect(client, "SET a1 1", "+OK")?;
                expect(client, "GET r1", "(nil)")?;
                expect(client, "SET r1 1", "-NOPERM")
            }
            Self::OutputBuffer => too_slow_a_reader(running),
            Self::CheckAof => expect(client, "PING", "+PONG"),
            Self::HyperLogLog => hyperloglog(client),
            Self::LuaParser => {
                for n in 0..50 {
                    let nested = format!("local f = function() return {n} end return f()");
                    expect_words(
                        client,
                        &[b"EVAL", nested.as_bytes(), b"0"],
                        &format!(":{n}"),
                    )?;
                    let loaded = format!("return loadstring('return {n}', 'name{n}')()");
                    expect_words(
                        client,
                        &[b"EVAL", loaded.as_bytes(), b"0"],
                        &format!(":{n}"),
                    )?;
                }
                expect_words(
                    client,
                    &[b"EVAL", b"return (", b"0"],
                    "-ERR Error compiling",
                )
            }
            Self::LuaLexer => {
                for (script, answer) in [
                    ("return [[a]]", "a"),
                    ("return [==[b]]b]==]", "b]]b"),
                    ("--[[ c\n c ]] return 'c'", "c"),
                    ("--[=[ d ]] ]=] return 'd'", "d"),
                    ("--[ e\nreturn 'e'", "e"),
                    ("local t = {'f'} return t[1]", "f"),
                    ("return [=g", "-ERR Error compiling"),
                    ("return [==[h]=]", "-ERR Error compiling"),
                ] {
                    expect_words(client, &[b"EVAL", script.as_bytes(), b"0"], answer)?;
                }
                Ok(())
            }
            Self::Replies => {
                expect(client, "FUNCTION LIST WRONG", "-ERR Unknown argument WRONG")?;
                expect(client, "SIMPLE fine", "+fine")?;
                expect(client, "SET x 1", "+OK")?;
                expect(client, "DEBUG OBJECT x", "+Value at:")?;
                let status = b"return redis.status_reply('well')";
                expect_words(client, &[b"EVAL", status, b"0"], "+well")?;
                let error = b"error(redis.error_reply('not well'))";
                expect_words(client, &[b"EVAL", error, b"0"], "-not well")
            }
            Self::StreamLoad => restored(client),
            Self::TlsPending => pipelined(&running.server),
            Self::ClusterPacket => renamed(running, client),
        }
    }

    /// Sends what the fix is against.
    pub fn hole(self, running: &mut Running) -> Result<Seen, String> {
        let mut client = running.server.connect()?;
        match self {
            Self::AclSelector => {
                let answer = client.ask(&[b"ACL", b"SETUSER", b"w", b"%", b"+@all"])?;
                if answer.starts_with("-ERR Error in ACL SETUSER modifier '%'") {
                    return Ok(Seen::Behaves("a selector `%` is refused".to_owned()));
                }
                let shown = client.ask(&[b"ACL", b"GETUSER", b"w"]);
                crash(shown, running, "a selector `%` is taken, ACL GETUSER")
            }
            Self::HyperLogLog => {
                let mut crafted = b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
                // Runs of 16384 registers that are zero, until their sum is negative; then a value.
                crafted.extend([0x7f, 0xff].repeat((1 << 17) + 1000));
                crafted.push(0xff);
                expect_words(&mut client, &[b"SET", b"crafted", &crafted], "+OK")?;
                match client.ask(&[b"PFCOUNT", b"crafted", b"crafted"]) {
                    Ok(answer) if answer.starts_with("-INVALIDOBJ") => {
                        Ok(Seen::Behaves("PFCOUNT says INVALIDOBJ".to_owned()))
                    }
                    answer => crash(answer, running, "PFCOUNT"),
                }
            }
            Self::Replies => {
                let answer = client.ask(&[b"FUNCTION", b"LIST", b"X\r\n+FORGED"])?;
                // What comes next must be the answer to the next question.
                let next = client.ask(&[b"PING"])?;
                match next.as_str() {
                    "+PONG" if answer.ends_with("X  +FORGED") => {
                        Ok(Seen::Behaves("one answer to one question".to_owned()))
                    }
                    "+FORGED" => Ok(Seen::Misbehaves(
                        "the argument becomes an answer of its own, +FORGED".to_owned(),
                    )),
                    _ => Err(format!("{answer}, then {next}")),
                }
            }
            Self::StreamLoad => {
                expect(&mut client, "DEBUG set-skip-checksum-validation 1", "+OK")?;
                let answer = client.ask(&[b"RESTORE", b"shared", b"0", SHARED_NACK])?;
                expect(&mut client, "DEBUG set-skip-checksum-validation 0", "+OK")?;
                match answer.as_str() {
                    "+OK" => Ok(Seen::Misbehaves(
                        "RESTORE takes a stream with an entry that two consumers own".to_owned(),
                    )),
                    _ if answer.contains("Bad data format") => {
                        Ok(Seen::Behaves("RESTORE says `Bad data format`".to_owned()))
                    }
                    _ => Err(answer),
                }
            }
            Self::OutputBuffer => hoarder(&running.server, &mut client),
            Self::ClusterPacket => unterminated(&running.server),
            _ => Err("not shown".to_owned()),
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done()? {
        if Instant::now() > deadline {
            return Err(what.to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// No answer came, because the server has ended.
fn crash(
    answer: Result<String, String>,
    running: &mut Running,
    what: &str,
) -> Result<Seen, String> {
    match answer {
        Err(_) if running.server.has_crashed()? => {
            Ok(Seen::Misbehaves(format!("{what} ends the server")))
        }
        answer => Err(format!("{what}: {answer:?}, and the server lives")),
    }
}

fn certificate(dir: &Path) -> Result<(), String> {
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3",
        ])
        .args(["-subj", "/CN=localhost", "-keyout", "key.pem"])
        .args(["-out", "cert.pem"])
        .current_dir(dir);
    run(&mut openssl).map(drop)
}

fn hyperloglog(client: &mut Connection) -> Result<(), String> {
    expect(client, "DEL h1 h2 h3", ":")?;
    expect(client, "PFADD h1 a b c", ":1")?;
    expect(client, "PFADD h2 c d", ":1")?;
    expect(client, "PFCOUNT h1", ":3")?;
    expect(client, "PFCOUNT h1 h2", ":4")?;
    expect(client, "PFMERGE h3 h1 h2", "+OK")?;
    expect(client, "PFCOUNT h3", ":4")?;
    expect(client, "PFDEBUG ENCODING h1", "+sparse")?;
    expect(client, "PFDEBUG TODENSE h1", ":1")?;
    expect(client, "PFCOUNT h1", ":3")?;
    // A representation that ends too early.
    let short = b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\x80\x7f\xf0";
    expect_words(client, &[b"SET", b"h1", short], "+OK")?;
    expect(client, "PFCOUNT h1", "-INVALIDOBJ")?;
    expect(client, "PFCOUNT h1 h2", "-INVALIDOBJ")?;
    expect(client, "PFDEBUG GETREG h1", "-INVALIDOBJ")
}

/// A subscriber that reads nothing is parted from at its limit.
fn too_slow_a_reader(running: &Running) -> Result<(), String> {
    let mut client = running.server.connect()?;
    let limit: [&[u8]; 4] = [
        b"CONFIG",
        b"SET",
        b"client-output-buffer-limit",
        b"pubsub 1mb 0 0",
    ];
    expect_words(&mut client, &limit, "+OK")?;
    let mut reader = running.server.connect()?;
    reader.send(b"SUBSCRIBE news\r\n")?;
    let message = vec![b'n'; 1 << 19];
    let mut heard = false;
    for _ in 0..200 {
        let answer = client.ask(&[b"PUBLISH", b"news", &message])?;
        heard |= answer == ":1";
        if heard && answer == ":0" {
            return Ok(());
        }
    }
    Err("a subscriber that reads nothing is kept".to_owned())
}

/// Asks, without a password, and reads no answer.
fn hoarder(server: &Server, client: &mut Connection) -> Result<Seen, String> {
    const ENOUGH: u64 = 8 << 20;
    let mut stranger = Connection::open(server.port)?;
    let requests = b"PING\r\n".repeat(10_000);
    for _ in 0..200 {
        let kept = held_for_strangers(client)?;
        if kept > ENOUGH {
            return Ok(Seen::Misbehaves(
                "more than 8 MB of answers are kept for a client that has no password".to_owned(),
            ));
        }
        if stranger.send(&requests).is_err() {
            return Ok(Seen::Behaves(
                "a client that has no password and reads nothing is parted from".to_owned(),
            ));
        }
    }
    Err("nothing was kept, and nobody parted from".to_owned())
}

/// Bytes of answers that wait for the client with the most.
fn held_for_strangers(client: &mut Connection) -> Result<u64, String> {
    let list = client.ask(&[b"CLIENT", b"LIST"])?;
    let held = list
        .split_whitespace()
        .filter_map(|w| w.strip_prefix("omem="));
    Ok(held.filter_map(|held| held.parse().ok()).max().unwrap_or(0))
}

/// A stream with a group goes through RESTORE as it was, and so do other kinds of values.
fn restored(client: &mut Connection) -> Result<(), String> {
    expect(client, "DEL s l z h", ":")?;
    expect(client, "XADD s 1-0 field value", "1-0")?;
    expect(client, "XADD s 2-0 field value", "2-0")?;
    expect(client, "XGROUP CREATE s group 0", "+OK")?;
    for (consumer, entry) in [("one", "1-0"), ("two", "2-0")] {
        let read = format!("XREADGROUP GROUP group {consumer} COUNT 1 STREAMS s >");
        expect(client, &read, &format!("s\n{entry}"))?;
    }
    expect(client, "RPUSH l a b c", ":3")?;
    expect(client, "ZADD z 1 a 2 b", ":2")?;
    expect(client, "HSET h a 1 b 2", ":2")?;
    for key in ["s", "l", "z", "h"] {
        // The dump is bytes: a script copies it.
        let copy = b"local d = redis.call('DUMP', KEYS[1]) redis.call('DEL', KEYS[1]) \
                     return redis.call('RESTORE', KEYS[1], 0, d)";
        let eval: [&[u8]; 4] = [b"EVAL", copy, b"1", key.as_bytes()];
        expect_words(client, &eval, "+OK")?;
    }
    expect(client, "XPENDING s group", ":2\n1-0\n2-0\none\n1\ntwo\n1")?;
    expect(client, "XACK s group 1-0", ":1")?;
    expect(client, "LRANGE l 0 -1", "a\nb\nc")?;
    expect(client, "ZRANGE z 0 -1", "a\nb")?;
    expect(client, "HGET h b", "2")?;
    let wrong: [&[u8]; 4] = [b"RESTORE", b"no", b"0", b"no dump at all"];
    expect_words(client, &wrong, "-ERR DUMP payload version or checksum")
}

/// Values larger than what the server reads at once, many in one TLS record's stead: some of each record waits in the
/// library when the server has read what it wanted.
fn pipelined(server: &Server) -> Result<(), String> {
    const COUNT: usize = 300;
    let mut input = Vec::new();
    for n in 0..COUNT {
        let value = "v".repeat(30_000 + 777 * (n % 20));
        input.extend(b"*3\r\n$3\r\nSET\r\n$3\r\ntls\r\n");
        input.extend(format!("${}\r\n{value}\r\n", value.len()).bytes());
    }
    let mut child = Command::new("redis-cli")
        .args(["--tls", "--insecure", "--pipe", "-h", "127.0.0.1", "-p"])
        .arg(server.tls.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("redis-cli: {e}"))?;
    let mut stdin = child.stdin.take().ok_or("no pipe")?;
    let sent = stdin.write_all(&input);
    drop(stdin);
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    sent.map_err(|e| format!("redis-cli: {e}"))?;
    match text.contains(&format!("errors: 0, replies: {COUNT}")) {
        true => Ok(()),
        false => Err(format!("redis-cli --tls: {output:?}")),
    }
}

/// What the other node calls itself comes here in a message.
fn renamed(running: &Running, client: &mut Connection) -> Result<(), String> {
    let peer = running.peer.as_ref().ok_or("no other node")?;
    let name = format!("n{}.example", crate::cve::unique());
    let set = format!("CONFIG SET cluster-announce-hostname {name}");
    expect(&mut peer.connect()?, &set, "+OK")?;
    until("the other node's name does not arrive", || {
        Ok(client.ask(&[b"CLUSTER", b"NODES"])?.contains(&name))
    })
}

/// A ping of the cluster with a host name that no zero ends.
fn unterminated(server: &Server) -> Result<Seen, String> {
    // struct clusterMsg: its header, and a struct clusterMsgPingExt with eight bytes.
    let mut message = vec![0; 2256];
    message[..4].copy_from_slice(b"RCmb");
    message[4..8].copy_from_slice(&(2256_u32 + 16).to_be_bytes());
    message[9] = 1; // ver
    message[40..80].fill(b'0'); // sender
    message[2215] = 1; // extensions
    message[2253] = 4; // mflags[0]: CLUSTERMSG_FLAG0_EXT_DATA
    message.extend([0, 0, 0, 16, 0, 0, 0, 0]);
    message.extend(b"AAAAAAAA");
    let mut link = TcpStream::connect(("127.0.0.1", server.bus)).map_err(|e| e.to_string())?;
    link.write_all(&message).map_err(|e| e.to_string())?;
    let wait = Some(Duration::from_secs(2));
    link.set_read_timeout(wait).map_err(|e| e.to_string())?;
    let mut answer = [0; 4];
    match std::io::Read::read_exact(&mut link, &mut answer) {
        Ok(()) if &answer == b"RCmb" => Ok(Seen::Misbehaves(
            "a ping with a host name without an end is taken and answered".to_owned(),
        )),
        Ok(()) => Err(format!("an answer {answer:?}")),
        Err(_) => Ok(Seen::Behaves("it is dropped".to_owned())),
    }
}

/// A dump of a stream whose one entry waits for two consumers; from the test of the fix.
const SHARED_NACK: &[u8] = b"\
\x0f\x01\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00%%\x00\x00\x00\x0a\x00\x01\
\x01\x00\x01\x01\x01\x85field\x06\x00\x01\x02\x01\x00\x01\x00\x01\x85value\x06\x04\x01\xff\x01\x01\x00\
\x01\x07mygroup\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00Jy\x89\x8f\x9f\
\x01\x00\x00\x01\x02\x09consumerAJy\x89\x8f\x9f\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\
\x00\x00\x00\x00\x00\x00\x09consumerBTy\x89\x8f\x9f\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\
\x00\x00\x00\x00\x00\x00\x00\x09\x00\xf6\xea{l\xb8\xb8\xd8\xb4";
