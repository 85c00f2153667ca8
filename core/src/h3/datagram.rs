//! UDP inside a request (RFC 9298): HTTP datagrams (RFC 9297 2.1) in QUIC datagrams, and capsules (RFC 9297 3.2) in the DATA of
//! the request for what fits in no QUIC datagram.
//!
//! Only context 0 is spoken, whose payload is a UDP payload. What is of another context, or a capsule of another type, is
//! skipped, as both RFCs demand.

use bytes::{Buf, Bytes, BytesMut};

use super::{H3Error, read_varint, write_varint};

/// Bytes of the largest UDP payload (RFC 9298 5); more in a datagram or capsule ends the request.
pub const MAX_PAYLOAD: usize = 65_527;
/// Capsules of this type hold an HTTP datagram (RFC 9297 3.5).
const DATAGRAM: u64 = 0x00;
/// A UDP payload follows (RFC 9298 4).
const CONTEXT: u64 = 0;
/// A context id is at most so long.
const MAX_CONTEXT: usize = 8;

/// A QUIC datagram with `payload`, for the request on this stream. `stream` is a stream id of QUIC that a client opened in both
/// directions: those are multiples of 4, so that the quarter of it stands for it.
pub fn encode(stream: u64, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(overhead(stream) + payload.len());
    write_varint(stream / 4, &mut out);
    write_varint(CONTEXT, &mut out);
    out.extend_from_slice(payload);
    out.into()
}

/// Bytes that [`encode`] adds to a payload.
pub fn overhead(stream: u64) -> usize {
    let quarter = match stream / 4 {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    };
    quarter + 1
}

/// The stream id of a QUIC datagram, and what of it is a UDP payload; `None` of another context. An error closes the connection
/// (RFC 9297 2.1): a number that is not whole, or of no stream that can be.
pub fn decode(mut datagram: Bytes) -> Result<(u64, Option<Bytes>), H3Error> {
    let (quarter, used) = read_varint(&datagram).ok_or(H3Error::Datagram)?;
    if quarter > MAX_QUARTER {
        return Err(H3Error::Datagram);
    }
    datagram.advance(used);
    Ok((quarter * 4, payload(datagram)?))
}

/// RFC 9297 2.1: a stream id is below 2^62.
const MAX_QUARTER: u64 = (1 << 60) - 1;

/// What of an HTTP datagram is a UDP payload.
fn payload(mut datagram: Bytes) -> Result<Option<Bytes>, H3Error> {
    let Some((context, used)) = read_varint(&datagram) else {
        return Err(H3Error::Datagram);
    };
    if context != CONTEXT {
        return Ok(None);
    }
    datagram.advance(used);
    if datagram.len() > MAX_PAYLOAD {
        return Err(H3Error::Datagram);
    }
    Ok(Some(datagram))
}

/// The head of a capsule around a UDP payload of `length` bytes.
pub fn capsule_head(length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(6);
    write_varint(DATAGRAM, &mut out);
    write_varint(length as u64 + 1, &mut out);
    write_varint(CONTEXT, &mut out);
    out
}

/// Takes capsules from the DATA of a request, in chunks as they come: bounded by the largest datagram, whatever is announced.
#[derive(Debug, Default)]
pub struct Capsules {
    state: State,
    gathered: BytesMut,
}

#[derive(Debug, Default)]
enum State {
    /// Type and length are being gathered.
    #[default]
    Header,
    Skip(u64),
    Gather(usize),
}

impl Capsules {
    /// Takes the next UDP payload off the front of `chunk`; `None` once the chunk is used up.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Bytes>, H3Error> {
        loop {
            match &mut self.state {
                State::Header => {
                    if !self.header(chunk)? {
                        return Ok(None);
                    }
                }
                State::Skip(0) => self.state = State::Header,
                State::Skip(_) if chunk.is_empty() => return Ok(None),
                State::Skip(left) => {
                    let take = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
                    *left -= take as u64;
                    chunk.advance(take);
                }
                State::Gather(left) => {
                    let take = chunk.len().min(*left);
                    self.gathered.extend_from_slice(&chunk.split_to(take));
                    *left -= take;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    if let Some(payload) = payload(self.gathered.split().freeze())? {
                        return Ok(Some(payload));
                    }
                }
            }
        }
    }

    /// Whether the stream may end here: not within a capsule (RFC 9297 3.3).
    pub fn at_boundary(&self) -> bool {
        match self.state {
            State::Header => self.gathered.is_empty(),
            State::Skip(left) => left == 0,
            State::Gather(_) => false,
        }
    }

    /// Gathers type and length, byte by byte: at most 16. True when the state moved on.
    fn header(&mut self, chunk: &mut Bytes) -> Result<bool, H3Error> {
        loop {
            if let Some((kind, used)) = read_varint(&self.gathered)
                && let Some((length, _)) = read_varint(&self.gathered[used..])
            {
                self.gathered.clear();
                self.state = match (kind, usize::try_from(length)) {
                    (DATAGRAM, Ok(length)) if length <= MAX_PAYLOAD + MAX_CONTEXT => State::Gather(length),
                    (DATAGRAM, _) => return Err(H3Error::Datagram),
                    _ => State::Skip(length),
                };
                return Ok(true);
            }
            if !chunk.has_remaining() {
                return Ok(false);
            }
            self.gathered.extend_from_slice(&[chunk.get_u8()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capsule(payload: &[u8]) -> Vec<u8> {
        [&capsule_head(payload.len())[..], payload].concat()
    }

    /// All payloads of a stream that comes in pieces of `size` bytes.
    fn read(bytes: &[u8], size: usize) -> Result<(Vec<Bytes>, bool), H3Error> {
        let mut capsules = Capsules::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(size) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(payload) = capsules.next(&mut piece)? {
                found.push(payload);
            }
        }
        Ok((found, capsules.at_boundary()))
    }

    #[test]
    fn the_bytes_are_those_of_the_rfcs() {
        // RFC 9298 6.2: quarter stream id 11 is stream 44, then context 0.
        assert_eq!(encode(44, b"ab").as_ref(), b"\x0b\x00ab");
        assert_eq!(capsule(b"ab"), b"\x00\x03\x00ab");
        assert_eq!(
            decode(Bytes::from_static(b"\x0b\x02ab")),
            Ok((44, None)),
            "another context"
        );
        for malformed in [&b""[..], b"\x0b", b"\x40", b"\xff\xff\xff\xff\xff\xff\xff\xff\x00"] {
            assert_eq!(
                decode(Bytes::from_static(malformed)),
                Err(H3Error::Datagram),
                "{malformed:?}"
            );
        }
    }

    #[test]
    fn other_capsules_are_skipped_and_long_datagrams_refused() {
        let unknown = b"\x29\x03abc";
        let other_context = b"\x00\x03\x04xy";
        let stream = [unknown, &capsule(b"one")[..], other_context, &capsule(b"")].concat();
        let expected = vec![Bytes::from_static(b"one"), Bytes::new()];
        for size in 1..stream.len() {
            assert_eq!(read(&stream, size), Ok((expected.clone(), true)), "pieces of {size}");
        }
        let largest = vec![7; MAX_PAYLOAD];
        assert_eq!(read(&capsule(&largest), 1000).map(|(found, _)| found.len()), Ok(1));
        let larger = vec![7; MAX_PAYLOAD + 1];
        assert_eq!(read(&capsule(&larger), 1000), Err(H3Error::Datagram));
        assert_eq!(decode(encode(0, &larger)), Err(H3Error::Datagram));
        // Nothing is gathered of what is too long already by its head.
        assert_eq!(read(b"\x00\xc0\x00\x00\x00\xff\xff\xff\xff", 1), Err(H3Error::Datagram));
        assert_eq!(
            read(b"\x00\x00", 9),
            Err(H3Error::Datagram),
            "a datagram without a context"
        );
        assert_eq!(
            read(b"\x00\x05\x00", 9).map(|(_, whole)| whole),
            Ok(false),
            "the end within one"
        );
    }

    proptest! {
        #[test]
        fn datagrams_read_back(quarter in 0..=MAX_QUARTER, payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let bytes = encode(quarter * 4, &payload);
            prop_assert_eq!(bytes.len(), payload.len() + overhead(quarter * 4));
            prop_assert_eq!(decode(bytes), Ok((quarter * 4, Some(payload.into()))));
        }

        #[test]
        fn capsules_read_back_in_order(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            size in 1_usize..64,
        ) {
            let stream: Vec<u8> = payloads.iter().flat_map(|payload| capsule(payload)).collect();
            let payloads: Vec<Bytes> = payloads.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(read(&stream, size), Ok((payloads, true)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1_usize..20) {
            if let Ok((found, _)) = read(&bytes, size) {
                prop_assert!(found.iter().map(Bytes::len).sum::<usize>() <= bytes.len());
            }
            let _ = decode(bytes.into());
        }
    }
}
