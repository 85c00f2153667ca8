//! HTTP/2 frames by hand (RFC 9113 section 4), for what no library would send or show.

use std::collections::BTreeMap;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The four bytes of a frame at this place: a window's increment, a code.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// SETTINGS by their numbers (RFC 9113 6.5.2).
    pub fn settings(&self) -> BTreeMap<u16, u32> {
        let entries = self.payload.chunks_exact(6).map(|entry| {
            let value = u32::from_be_bytes(entry[2..].try_into().unwrap());
            (u16::from_be_bytes([entry[0], entry[1]]), value)
        });
        entries.collect()
    }
}

/// A connection on which frames are read and written as they are.
#[derive(Debug)]
pub struct Wire<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    /// The next frame; an error when the connection ended. SETTINGS are acknowledged, before which they do not count.
    pub async fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        if head[3] == SETTINGS && head[4] != ACK {
            self.write(SETTINGS, ACK, 0, &[]).await?;
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()) & (u32::MAX >> 1),
            payload,
        })
    }

    /// The next frame of this kind; others are passed over.
    pub async fn next(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.read().await.expect("the connection ended");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The next frame of this kind, or the end of the connection.
    pub async fn next_or_end(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.read().await.ok()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    pub async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.0.write_all(&frame(kind, flags, stream, payload)).await?;
        self.0.flush().await
    }

    /// What a client or a server has to send first, all settings being those of the standard.
    pub async fn greet(&mut self, preface: &[u8]) {
        self.0.write_all(preface).await.unwrap();
        self.write(SETTINGS, 0, 0, &[]).await.unwrap();
    }

    /// The PING of the other side that is due now.
    pub async fn due_ping(&mut self) -> Frame {
        for _ in 0..3 {
            let came = self.round_trip().await;
            if let Some(ping) = came.into_iter().find(|frame| frame.kind == PING && frame.flags == 0) {
                return ping;
            }
        }
        panic!("no PING, though it was due");
    }

    /// Resolves when everything that was written so far was taken in: a PING comes back. What else came is given back.
    pub async fn round_trip(&mut self) -> Vec<Frame> {
        self.write(PING, 0, 0, b"roundtri").await.unwrap();
        let mut others = Vec::new();
        loop {
            let frame = self.read().await.expect("the connection ended");
            if frame.kind == PING && frame.flags == ACK && frame.payload == b"roundtri" {
                return others;
            }
            others.push(frame);
        }
    }
}

/// One frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A field section in which nothing is indexed or compressed (RFC 7541 6.2.2).
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = Vec::new();
    for (name, value) in fields {
        section.push(0);
        for text in [name, value] {
            length(&mut section, text.len());
            section.extend_from_slice(text.as_bytes());
        }
    }
    section
}

/// A CONNECT and nothing besides.
pub fn connect(authority: &str) -> Vec<u8> {
    fields(&[(":method", "CONNECT"), (":authority", authority)])
}

/// An integer with a prefix of seven bits (RFC 7541 5.1).
fn length(section: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return section.push(value as u8);
    }
    section.push(127);
    value -= 127;
    while value >= 128 {
        section.push((value % 128) as u8 | 128);
        value /= 128;
    }
    section.push(value as u8);
}
