//! Frames of request and control streams, taken from chunks as they come: payload of DATA is passed on as slices, small
//! frames are gathered within bounds, unknown ones are skipped by count.

use bytes::{Buf, Bytes, BytesMut};

use super::{H3Error, MAX_FIELD_SECTION, read_varint, write_varint};

/// What stream the frames are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Request,
    Control,
}

/// One frame, or a part of DATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Data(Bytes),
    Headers(Bytes),
    Settings(Settings),
    GoAway(u64),
    /// Ours, on control streams: what the sender sends on this connection is lost too often. See [`LOSSY`].
    Lossy,
}

/// What a peer's SETTINGS say that matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Unlimited when absent.
    pub max_field_section_size: Option<u64>,
    pub enable_connect_protocol: bool,
    pub h3_datagram: bool,
}

impl Settings {
    /// Whether who says so takes a CONNECT-UDP (RFC 9298).
    pub fn takes_udp(&self) -> bool {
        self.enable_connect_protocol && self.h3_datagram
    }
}

/// Takes frames from a stream. See the module.
#[derive(Debug)]
pub struct Decoder {
    stream: Stream,
    state: State,
    gathered: BytesMut,
    seen_settings: bool,
}

#[derive(Debug)]
enum State {
    /// Type and length are being gathered.
    Header,
    Data {
        left: u64,
    },
    Skip {
        left: u64,
    },
    Gather {
        kind: u64,
        left: usize,
    },
}

impl Decoder {
    /// Nothing was received yet.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            state: State::Header,
            gathered: BytesMut::new(),
            seen_settings: false,
        }
    }

    /// Takes the next frame off the front of `chunk`; `None` once the chunk is used up.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Frame>, H3Error> {
        loop {
            match &mut self.state {
                State::Header => {
                    if !self.header(chunk)? {
                        return Ok(None);
                    }
                }
                State::Data { left: 0 } | State::Skip { left: 0 } => self.state = State::Header,
                State::Data { left } | State::Skip { left } if chunk.is_empty() => {
                    let _ = left;
                    return Ok(None);
                }
                State::Data { left } => return Ok(Some(Frame::Data(split(chunk, left)))),
                State::Skip { left } => drop(split(chunk, left)),
                State::Gather { kind, left } => {
                    let take = chunk.len().min(*left);
                    self.gathered.extend_from_slice(&chunk.split_to(take));
                    *left -= take;
                    if *left > 0 {
                        return Ok(None);
                    }
                    let kind = *kind;
                    let payload = self.gathered.split().freeze();
                    self.state = State::Header;
                    return self.whole(kind, payload).map(Some);
                }
            }
        }
    }

    /// Whether the stream may end here: not within a frame.
    pub fn at_boundary(&self) -> bool {
        match self.state {
            State::Header => self.gathered.is_empty(),
            State::Data { left } | State::Skip { left } => left == 0,
            State::Gather { .. } => false,
        }
    }

    /// Gathers type and length, byte by byte: at most 16. True when the state moved on.
    fn header(&mut self, chunk: &mut Bytes) -> Result<bool, H3Error> {
        loop {
            if let Some((kind, used)) = read_varint(&self.gathered)
                && let Some((length, _)) = read_varint(&self.gathered[used..])
            {
                self.gathered.clear();
                self.state = self.begin(kind, length)?;
                return Ok(true);
            }
            if !chunk.has_remaining() {
                return Ok(false);
            }
            self.gathered.extend_from_slice(&[chunk.get_u8()]);
        }
    }

    fn begin(&mut self, kind: u64, length: u64) -> Result<State, H3Error> {
        if self.stream == Stream::Control && !self.seen_settings && kind != SETTINGS {
            return Err(H3Error::MissingSettings);
        }
        let gather = |most: usize, error| match usize::try_from(length) {
            Ok(left) if left <= most => Ok(State::Gather { kind, left }),
            _ => Err(error),
        };
        match (kind, self.stream) {
            (DATA, Stream::Request) => Ok(State::Data { left: length }),
            (HEADERS, Stream::Request) => gather(MAX_FIELD_SECTION, H3Error::ExcessiveLoad),
            (SETTINGS, Stream::Control) if self.seen_settings => Err(H3Error::FrameUnexpected),
            (SETTINGS, Stream::Control) => {
                self.seen_settings = true;
                gather(MAX_SETTINGS, H3Error::ExcessiveLoad)
            }
            (GOAWAY, Stream::Control) => gather(8, H3Error::Frame),
            (CANCEL_PUSH | MAX_PUSH_ID, Stream::Control) => gather(8, H3Error::Frame),
            (LOSSY, Stream::Control) if length == 0 => gather(0, H3Error::Frame),
            (DATA | HEADERS | PUSH_PROMISE, Stream::Control) => Err(H3Error::FrameUnexpected),
            (SETTINGS | GOAWAY | CANCEL_PUSH | MAX_PUSH_ID | PUSH_PROMISE, Stream::Request) => {
                Err(H3Error::FrameUnexpected)
            }
            // Frames of HTTP/2 that HTTP/3 has not (RFC 9114 7.2.8).
            (0x02 | 0x06 | 0x08 | 0x09, _) => Err(H3Error::FrameUnexpected),
            _ => Ok(State::Skip { left: length }),
        }
    }

    fn whole(&mut self, kind: u64, payload: Bytes) -> Result<Frame, H3Error> {
        let id = || match read_varint(&payload) {
            Some((id, used)) if used == payload.len() => Ok(id),
            _ => Err(H3Error::Frame),
        };
        match kind {
            HEADERS => Ok(Frame::Headers(payload)),
            SETTINGS => settings(&payload).map(Frame::Settings),
            GOAWAY => id().map(Frame::GoAway),
            LOSSY => Ok(Frame::Lossy),
            // We never promise a push, so that no push id is valid.
            CANCEL_PUSH => Err(id().err().unwrap_or(H3Error::Id)),
            _ => id().map(|_| Frame::Data(Bytes::new())),
        }
    }
}

fn split(chunk: &mut Bytes, left: &mut u64) -> Bytes {
    let take = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
    *left -= take as u64;
    chunk.split_to(take)
}

fn settings(mut payload: &[u8]) -> Result<Settings, H3Error> {
    let mut settings = Settings::default();
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let (id, used) = read_varint(payload).ok_or(H3Error::Frame)?;
        let (value, more) = read_varint(&payload[used..]).ok_or(H3Error::Frame)?;
        payload = &payload[used + more..];
        if seen.contains(&id) {
            return Err(H3Error::Settings);
        }
        seen.push(id);
        match (id, value) {
            (0x06, value) => settings.max_field_section_size = Some(value),
            (0x08, 0 | 1) => settings.enable_connect_protocol = value == 1,
            (0x33, 0 | 1) => settings.h3_datagram = value == 1,
            (0x08 | 0x33, _) => return Err(H3Error::Settings),
            // Settings of HTTP/2 that HTTP/3 has not (RFC 9114 7.2.4.1).
            (0x00 | 0x02..=0x05, _) => return Err(H3Error::Settings),
            _ => {}
        }
    }
    Ok(settings)
}

/// What a control stream begins with: its type, and our SETTINGS (no dynamic QPACK table, bounded field sections, extended
/// CONNECT by RFC 9220, HTTP datagrams by RFC 9297).
pub fn control_preface() -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in [(0x06, MAX_FIELD_SECTION as u64), (0x08, 1), (0x33, 1)] {
        write_varint(id, &mut payload);
        write_varint(value, &mut payload);
    }
    let mut out = vec![0];
    write_varint(SETTINGS, &mut out);
    write_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(&payload);
    out
}

/// A GOAWAY frame.
pub fn goaway(id: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    write_varint(id, &mut payload);
    let mut out = Vec::new();
    write_varint(GOAWAY, &mut out);
    write_varint(payload.len() as u64, &mut out);
    out.extend_from_slice(&payload);
    out
}

/// A frame of type [`LOSSY`].
pub fn lossy() -> Vec<u8> {
    let mut out = Vec::new();
    write_varint(LOSSY, &mut out);
    write_varint(0, &mut out);
    out
}

/// A HEADERS frame around an encoded field section.
pub fn headers(section: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(section.len() + 4);
    write_varint(HEADERS, &mut out);
    write_varint(section.len() as u64, &mut out);
    out.extend_from_slice(section);
    out
}

/// The head of a DATA frame of `length` bytes.
pub fn data_head(length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(9);
    write_varint(DATA, &mut out);
    write_varint(length as u64, &mut out);
    out
}

/// Type of the frame, without payload, by which an accepting member tells the one that dialled that too much of what it sends is
/// lost: only the sender of a packet learns of its loss (RFC 9002 6), and only who dials chooses the transport. The letters
/// `mesh`; who does not know it skips it (RFC 9114 9).
pub const LOSSY: u64 = 0x6d65_7368;
const DATA: u64 = 0x00;
const HEADERS: u64 = 0x01;
const CANCEL_PUSH: u64 = 0x03;
const SETTINGS: u64 = 0x04;
const PUSH_PROMISE: u64 = 0x05;
const GOAWAY: u64 = 0x07;
const MAX_PUSH_ID: u64 = 0x0d;
const MAX_SETTINGS: usize = 1024;
