//! As much of HTTP/2 as a client needs that knows its server speaks it (RFC 9113, RFC 7541).

use super::net::Connection;

/// Kinds of frames.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`]; RFC 9218.
pub const PRIORITY_UPDATE: u8 = 16;

/// A flag of [`DATA`] and [`HEADERS`].
pub const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// As [`DATA`].
    pub kind: u8,
    /// As [`END_STREAM`].
    pub flags: u8,
    /// Which stream; 0 is the connection.
    pub stream: u32,
    /// What it holds.
    pub payload: Vec<u8>,
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What a client begins with.
pub fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

/// A request without its body; `flags` may be [`END_STREAM`].
pub fn headers(stream: u32, flags: u8, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let own = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
    ];
    let mut block = Vec::new();
    for (name, value) in own.iter().chain(more) {
        // A literal that is not indexed, neither Huffman coded.
        block.push(0);
        for text in [name, value] {
            match text.len() {
                short @ 0..127 => block.push(short as u8),
                long => block.extend([127, (long - 127) as u8]),
            }
            block.extend(text.as_bytes());
        }
    }
    frame(HEADERS, flags | END_HEADERS, stream, &block)
}

/// The next frame; settings are acknowledged on the way, and room is made for as much data as came.
pub fn next(connection: &mut Connection) -> Result<Frame, String> {
    let head = connection.exactly(9)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let next = Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
        payload: connection.exactly(length)?,
    };
    if next.kind == SETTINGS && next.flags & ACK == 0 {
        connection.send(frame(SETTINGS, ACK, 0, &[]))?;
    }
    if next.kind == DATA && length > 0 {
        connection.send(frame(WINDOW_UPDATE, 0, 0, &(length as u32).to_be_bytes()))?;
    }
    Ok(next)
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Status 200, with this body.
    Ok(Vec<u8>),
    /// Another status.
    Refused,
    /// The stream or the connection was reset.
    Reset,
}

/// The answer on a stream.
pub fn answer(connection: &mut Connection, stream: u32) -> Result<Answer, String> {
    /// `:status: 200` in the static table.
    const STATUS_200: u8 = 0x88;
    let (mut good, mut body) = (false, Vec::new());
    loop {
        let next = next(connection)?;
        match next.kind {
            GOAWAY => return Ok(Answer::Reset),
            RST_STREAM if next.stream == stream => return Ok(Answer::Reset),
            HEADERS if next.stream == stream => good = next.payload.first() == Some(&STATUS_200),
            DATA if next.stream == stream => body.extend(&next.payload),
            _ => continue,
        }
        if next.stream == stream && next.flags & END_STREAM != 0 {
            return Ok(if good {
                Answer::Ok(body)
            } else {
                Answer::Refused
            });
        }
    }
}
