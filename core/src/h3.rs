//! HTTP/3 as a mesh tunnel needs it (RFC 9114, RFC 9204 with the dynamic table off): frames, QPACK, the CONNECT head,
//! and UDP inside of it (RFC 9298, RFC 9297).
//!
//! Pure: bytes in, values out. The IO around it is in the agent's `tunnel`.

pub mod datagram;
pub mod frame;
pub mod head;
pub mod qpack;
pub mod udp_path;

mod huffman;
mod statics;
#[cfg(test)]
mod tests;

/// What is wrong with what the peer sent, as the code that closes the stream or the connection (RFC 9114 8.1, RFC 9204 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum H3Error {
    #[error("H3_GENERAL_PROTOCOL_ERROR")]
    GeneralProtocol,
    #[error("H3_STREAM_CREATION_ERROR")]
    StreamCreation,
    #[error("H3_CLOSED_CRITICAL_STREAM")]
    ClosedCriticalStream,
    #[error("H3_FRAME_UNEXPECTED")]
    FrameUnexpected,
    #[error("H3_FRAME_ERROR")]
    Frame,
    #[error("H3_EXCESSIVE_LOAD")]
    ExcessiveLoad,
    #[error("H3_ID_ERROR")]
    Id,
    #[error("H3_SETTINGS_ERROR")]
    Settings,
    #[error("H3_MISSING_SETTINGS")]
    MissingSettings,
    #[error("H3_MESSAGE_ERROR")]
    Message,
    #[error("H3_DATAGRAM_ERROR")]
    Datagram,
    #[error("QPACK_DECOMPRESSION_FAILED")]
    QpackDecompression,
}

impl H3Error {
    /// The code on the wire.
    pub fn code(self) -> u64 {
        match self {
            Self::GeneralProtocol => 0x101,
            Self::StreamCreation => 0x103,
            Self::ClosedCriticalStream => 0x104,
            Self::FrameUnexpected => 0x105,
            Self::Frame => 0x106,
            Self::ExcessiveLoad => 0x107,
            Self::Id => 0x108,
            Self::Settings => 0x109,
            Self::MissingSettings => 0x10a,
            Self::Message => 0x10e,
            // RFC 9297 5.2.
            Self::Datagram => 0x33,
            Self::QpackDecompression => 0x200,
        }
    }

    /// Whether only the request is wrong, and the connection can go on.
    pub fn is_stream_error(self) -> bool {
        matches!(self, Self::Message | Self::ExcessiveLoad)
    }
}

/// Codes that are no error of the peer's.
pub mod code {
    /// Graceful end of a connection.
    pub const NO_ERROR: u64 = 0x100;
    /// The request was not served at all, and may be repeated.
    pub const REQUEST_REJECTED: u64 = 0x10b;
    /// The request is not needed any more.
    pub const REQUEST_CANCELLED: u64 = 0x10c;
    /// The TCP connection behind a CONNECT broke.
    pub const CONNECT_ERROR: u64 = 0x10f;
    /// Ours: a live flow was cut because policy changed; the letters `mesh`.
    pub const MESH_POLICY: u64 = 0x6d65_7368;
}

/// Reads a variable-length integer (RFC 9000 16) off the front; `None` while it is not whole.
pub fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1usize << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest
        .iter()
        .fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, length))
}

/// Writes a variable-length integer below 2^62.
pub fn write_varint(value: u64, out: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    match value {
        0..0x40 => out.push(bytes[7]),
        0x40..0x4000 => out.extend_from_slice(&[bytes[6] | 0x40, bytes[7]]),
        0x4000..0x4000_0000 => out.extend_from_slice(&[bytes[4] | 0x80, bytes[5], bytes[6], bytes[7]]),
        _ => {
            out.push(bytes[0] | 0xc0);
            out.extend_from_slice(&bytes[1..]);
        }
    }
}

/// Stream types of unidirectional streams (RFC 9114 6.2, RFC 9204 4.2).
pub mod stream_type {
    pub const CONTROL: u64 = 0;
    pub const PUSH: u64 = 1;
    pub const QPACK_ENCODER: u64 = 2;
    pub const QPACK_DECODER: u64 = 3;
}

/// Header bytes of one message at the most, compressed and not.
pub const MAX_FIELD_SECTION: usize = 16 << 10;
