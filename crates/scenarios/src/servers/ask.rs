//! Questions to a server whose answers show whether a patch is in.

use super::{Kind, Server, run};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// A connection on which lines go to and fro.
#[derive(Debug)]
pub struct Lines {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Lines {
    /// To a port of this machine.
    pub fn connect(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        stream
            .set_read_timeout(PATIENCE)
            .map_err(|e| e.to_string())?;
        let writer = stream.try_clone().map_err(|e| e.to_string())?;
        let reader = BufReader::new(stream);
        Ok(Self { writer, reader })
    }

    /// Sends a request; so many lines of the answer.
    pub fn exchange(&mut self, request: &str, lines: usize) -> Result<String, String> {
        self.writer
            .write_all(request.as_bytes())
            .map_err(|e| e.to_string())?;
        let mut answer = String::new();
        for _ in 0..lines {
            let got = self
                .reader
                .read_line(&mut answer)
                .map_err(|e| e.to_string())?;
            if got == 0 {
                return Err("the connection was closed".to_owned());
            }
        }
        Ok(answer)
    }
}

impl Server {
    /// The answer to a query in SQL, the line of a header, how long a name is valid (seconds), or the answer to the last of
    /// several commands of the server's own protocol, which are parted by bars and get a line each.
    pub fn query(&self, text: &str) -> Result<String, String> {
        let said = match self.kind {
            Kind::Postgres => run(self.postgres("psql").args(["-Atc", text, "postgres"]))?,
            Kind::Mariadb => run(self.mariadb("mariadb").args(["-N", "-e", text]))?,
            Kind::Nginx => {
                let url = format!("https://127.0.0.1:{}/", self.port);
                let said = run(Command::new("curl").args(["-skI", &url]))?;
                let line = said.lines().find(|line| line.contains(text));
                line.unwrap_or_default().to_owned()
            }
            Kind::Memcached | Kind::Redis => {
                let mut lines = Lines::connect(self.port)?;
                let mut answer = String::new();
                for command in text.split('|') {
                    answer = lines.exchange(&format!("{command}\r\n"), 1)?;
                }
                answer
            }
            Kind::Dnsmasq => time_to_live(self.port, text)?.to_string(),
        };
        Ok(said.trim().to_owned())
    }
}

/// Of the first address that a name server has for a name, in seconds.
fn time_to_live(port: u16, name: &str) -> Result<u32, String> {
    let mut query = b"lg\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).map_err(|e| e.to_string())?);
        query.extend(label.as_bytes());
    }
    // The root; type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    let exchange = || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(PATIENCE)?;
        socket.send_to(&query, ("127.0.0.1", port))?;
        let mut answer = vec![0; 512];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    let answer = exchange().map_err(|e| format!("{name}: {e}"))?;
    // The question is repeated; then a pointer to the name, type, class and this.
    let at = query.len() + 6;
    let ttl = answer.get(at..at + 4).and_then(|ttl| ttl.try_into().ok());
    ttl.map(u32::from_be_bytes)
        .ok_or_else(|| format!("{name}: no answer in {answer:?}"))
}
