//! A client of redis.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// Redis gives no longer string than this to a client that asks for none.
const LONGEST: usize = 1 << 20;

impl Connection {
    /// Connects to a port of this machine; an answer that takes longer than 10 s is an error.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn open(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
        let wait = Some(Duration::from_secs(10));
        stream.set_read_timeout(wait).map_err(|e| e.to_string())?;
        stream.set_write_timeout(wait).map_err(|e| e.to_string())?;
        let stream = BufReader::new(stream);
        Ok(Self { stream })
    }

    /// The answer to a command: `+OK`, `-ERR ...`, `:1`; strings as they are, what is in an array line by line.
    ///
    /// # Errors
    /// There is no answer.
    pub fn ask(&mut self, command: &[&[u8]]) -> Result<String, String> {
        let mut request = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(*word);
            request.extend(b"\r\n");
        }
        self.send(&request)?;
        self.answer()
    }

    /// Sends bytes, whatever they are.
    ///
    /// # Errors
    /// The server has closed the connection, or reads nothing.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = self.stream.get_mut().write_all(bytes);
        sent.map_err(|e| e.to_string())
    }

    /// The next answer, see [`Connection::ask`].
    ///
    /// # Errors
    /// There is none, or it is none of redis.
    pub fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let read = self.stream.by_ref().take(LONGEST as u64);
        let count = { read }.read_line(&mut line).map_err(|e| e.to_string())?;
        if count == 0 {
            return Err("the connection was closed".to_owned());
        }
        let line = line.trim_end_matches(['\r', '\n']);
        let length = |text: &str| text.parse::<i64>().map_err(|e| format!("{line}: {e}"));
        if let Some(count) = line.strip_prefix('*') {
            let parts = (0..length(count)?).map(|_| self.answer());
            return Ok(parts.collect::<Result<Vec<_>, _>>()?.join("\n"));
        }
        let Some(count) = line.strip_prefix('$') else {
            return Ok(line.to_owned());
        };
        let Ok(length) = usize::try_from(length(count)?) else {
            return Ok("(nil)".to_owned());
        };
        if length > LONGEST {
            return Err(format!("an answer of {length} bytes"));
        }
        let mut bytes = vec![0; length + 2];
        let read = self.stream.read_exact(&mut bytes);
        read.map_err(|e| e.to_string())?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Asks, in the words of a line, and insists on an answer that begins like this.
///
/// # Errors
/// It begins otherwise.
pub fn expect(connection: &mut Connection, line: &str, start: &str) -> Result<(), String> {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    expect_words(connection, &words, start)
}

/// The same for words that have blanks in them.
///
/// # Errors
/// See [`expect`].
pub fn expect_words(
    connection: &mut Connection,
    words: &[&[u8]],
    start: &str,
) -> Result<(), String> {
    let answer = connection.ask(words);
    let command = || {
        let mut command = String::from_utf8_lossy(&words.join(&b' ')).into_owned();
        command.truncate(100);
        command
    };
    let answer = answer.map_err(|e| format!("{}: {e}", command()))?;
    match answer.starts_with(start) {
        true => Ok(()),
        false => Err(format!("{}: {answer} instead of {start}", command())),
    }
}
