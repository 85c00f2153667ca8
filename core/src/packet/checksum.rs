//! One's-complement sums (RFC 1071) and the pseudo headers that TCP, UDP and ICMPv6 put in front.

use std::net::IpAddr;

/// A running one's-complement sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes, as if padded with a zero to an even number.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(2);
        for word in &mut words {
            self.0 += u64::from(u16::from_be_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    /// Adds an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, number: u32) -> Self {
        self.0 += u64::from(number >> 16) + u64::from(number & 0xffff);
        self
    }

    /// The folded sum, not complemented: what a partial checksum (virtio NEEDS_CSUM) holds.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// The checksum.
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The sum of the pseudo header of a transport segment of `length` bytes.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    Sum::default()
        .address(source)
        .address(destination)
        .number(u32::from(protocol))
        .number(length)
}
