//! Clients of memcached, of its text and of its binary protocol.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects to a port of this machine; an answer that takes longer than 10 s is an error.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        let wait = Some(Duration::from_secs(10));
        stream.set_read_timeout(wait).map_err(|e| e.to_string())?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = self.0.get_mut().write_all(bytes);
        sent.map_err(|e| e.to_string())
    }

    /// Sends lines, and reads the lines of the answer up to one that is `last`, without what ends them.
    ///
    /// # Errors
    /// The connection is closed, or so much else comes that `last` won't.
    pub fn ask(&mut self, lines: &str, last: &str) -> Result<Vec<String>, String> {
        self.send(lines.as_bytes())?;
        let mut answer = Vec::new();
        while answer.len() < 100 {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).map_err(|e| e.to_string())?;
            if read == 0 {
                return Err("the connection was closed".to_owned());
            }
            let line = line.trim_end().to_owned();
            if line == last {
                return Ok(answer);
            }
            answer.push(line);
        }
        Err(format!("no {last}: {answer:?}"))
    }

    /// A request of the binary protocol: status and value of its answer.
    ///
    /// # Errors
    /// There is no answer, or it is none of this protocol.
    pub fn binary(
        &mut self,
        operation: u8,
        extras: &[u8],
        key: &str,
        value: &[u8],
    ) -> Result<(u16, Vec<u8>), String> {
        let body = extras.len() + key.len() + value.len();
        let mut request = vec![0x80, operation, 0, key.len() as u8, extras.len() as u8];
        request.extend([0; 3]);
        request.extend((body as u32).to_be_bytes());
        request.extend([0; 12]);
        request.extend(extras);
        request.extend(key.as_bytes());
        request.extend(value);
        self.send(&request)?;
        let mut header = [0; 24];
        let mut read = |bytes: &mut [u8]| self.0.read_exact(bytes).map_err(|e| e.to_string());
        read(&mut header)?;
        let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        if header[0] != 0x81 || length > 1 << 20 {
            return Err(format!("no answer: {header:x?}"));
        }
        let mut body = vec![0; length as usize];
        read(&mut body)?;
        let before = usize::from(header[4]) + usize::from(header[3]);
        let value = body.get(before..).unwrap_or_default().to_vec();
        Ok((u16::from_be_bytes([header[6], header[7]]), value))
    }

    /// Names itself: whether the server believes it.
    ///
    /// # Errors
    /// See [`Connection::binary`]; an answer that is neither yes nor no.
    pub fn authenticate(&mut self, user: &str, password: &str) -> Result<bool, String> {
        const SASL_AUTH: u8 = 0x21;
        let words = format!("\0{user}\0{password}");
        match self.binary(SASL_AUTH, &[], "PLAIN", words.as_bytes())? {
            (0, _) => Ok(true),
            (0x20, _) => Ok(false),
            other => Err(format!("{user} is answered {other:x?}")),
        }
    }
}
