//! The TCP header of a captured segment (RFC 9293 3.1), lengths checked.

use super::{Malformed, be16, be32};

const HEADER_LEN: usize = 20;

/// Control bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;

    /// Whether every bit of `mask` is set.
    pub fn has(self, mask: u8) -> bool {
        self.0 & mask == mask
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> Tcp<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(Malformed::Length);
        }
        if header_len > bytes.len() {
            return Err(Malformed::Truncated);
        }
        let tcp = Self { bytes, header_len };
        if tcp.source_port() == 0 || tcp.destination_port() == 0 {
            return Err(Malformed::Address);
        }
        Ok(tcp)
    }

    /// Source port, never 0.
    pub fn source_port(&self) -> u16 {
        be16(self.bytes, 0)
    }

    /// Destination port, never 0.
    pub fn destination_port(&self) -> u16 {
        be16(self.bytes, 2)
    }

    /// Sequence number of the first byte (or of the SYN).
    pub fn sequence(&self) -> u32 {
        be32(self.bytes, 4)
    }

    /// Acknowledgement number; meaningful when [`Flags::ACK`] is set.
    pub fn acknowledgement(&self) -> u32 {
        be32(self.bytes, 8)
    }

    /// Control bits.
    pub fn flags(&self) -> Flags {
        Flags(self.bytes[13])
    }

    /// The window field, unscaled.
    pub fn window(&self) -> u16 {
        be16(self.bytes, 14)
    }

    /// Header with options.
    pub fn header(&self) -> &'a [u8] {
        &self.bytes[..self.header_len]
    }

    /// Data.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }

    /// Length in sequence space: data, SYN and FIN.
    pub fn sequence_len(&self) -> u32 {
        let flags = self.flags();
        let control = u32::from(flags.has(Flags::SYN)) + u32::from(flags.has(Flags::FIN));
        u32::try_from(self.payload().len())
            .unwrap_or(u32::MAX)
            .wrapping_add(control)
    }

    /// Whether this is the first segment of a connection: SYN alone.
    pub fn opens(&self) -> bool {
        self.flags().0 & (Flags::SYN | Flags::ACK | Flags::RST | Flags::FIN) == Flags::SYN
    }

    /// Whether the options parse to the end.
    pub fn options_valid(&self) -> bool {
        self.options().all(|option| option.is_some())
    }

    /// The data of the first option of this kind.
    pub fn option(&self, kind: u8) -> Option<&'a [u8]> {
        self.options()
            .map_while(|option| option)
            .find(|(found, _)| *found == kind)
            .map(|(_, data)| data)
    }

    /// Maximum segment size of a SYN (RFC 9293 3.7.1).
    pub fn max_segment_size(&self) -> Option<u16> {
        self.option(2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// Window scale of a SYN (RFC 7323 2.2).
    pub fn window_scale(&self) -> Option<u8> {
        self.option(3)?.first().copied()
    }

    /// Options in order; `None` once, when the rest is nonsense.
    fn options(&self) -> impl Iterator<Item = Option<(u8, &'a [u8])>> {
        let mut rest = &self.bytes[HEADER_LEN..self.header_len];
        std::iter::from_fn(move || {
            // No-operation.
            while let [1, tail @ ..] = rest {
                rest = tail;
            }
            let [kind, tail @ ..] = rest else { return None };
            let kind = *kind;
            if kind == 0 {
                return None;
            }
            let option = tail.first().and_then(|length| rest.get(2..usize::from(*length)));
            rest = option.map_or(&[][..], |data| &rest[2 + data.len()..]);
            Some(option.map(|data| (kind, data)))
        })
    }
}
