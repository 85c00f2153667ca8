//! The Internet checksum (RFC 1071) and the pseudo-headers of IPv4 and IPv6.

use std::net::IpAddr;

/// A running one's complement sum. Every part but the last must have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes` alone.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(bytes);
        sum
    }

    /// Adds `bytes`; an odd last byte is padded with zero.
    pub fn add(&mut self, bytes: &[u8]) {
        // The sum does not depend on byte order (RFC 1071 2B), so words are read as the machine likes and the result
        // is swapped once. A u64 holds 2^32 words, far more than a packet has.
        let (words, tail) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let (pairs, last) = tail.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [byte] = last {
            sum += u64::from(u16::from_ne_bytes([*byte, 0]));
        }
        self.0 = fold(self.0) + fold(sum);
    }

    /// The folded sum, not complemented: what the checksum field holds when a device is to finish it.
    pub fn partial(self) -> u16 {
        let low = u16::try_from(fold(self.0)).unwrap_or(u16::MAX);
        u16::from_be_bytes(low.to_ne_bytes())
    }

    /// The checksum to write; 0 when the summed bytes contained a right one.
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

/// The sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1). Both addresses are of one family.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    let mut sum = Sum::default();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => sum.add(&address.octets()),
            IpAddr::V6(address) => sum.add(&address.octets()),
        }
    }
    sum.add(&[0, protocol]);
    sum.add(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    sum
}

/// Brings a sum down to 16 bits, with end-around carry.
fn fold(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
