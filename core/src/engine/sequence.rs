//! Initial sequence numbers and timestamp offsets, from the engine's seed and the flow's key.
//!
//! RFC 6528 and RFC 7323 5.4 want them unpredictable to others: a keyed hash (SipHash-2-4) of the key and a count.

use std::net::{IpAddr, SocketAddr};

use crate::packet::FlowKey;

/// Makes numbers that only the holder of the seed can foresee.
#[derive(Debug)]
pub(super) struct Sequences {
    key: [u64; 2],
    made: u64,
}

impl Sequences {
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        let (words, _) = seed.as_chunks::<8>();
        let word = |at: usize| words.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self {
            key: [word(0) ^ word(2), word(1) ^ word(3)],
            made: 0,
        }
    }

    /// A number for a new flow; two flows never share one, even with equal keys.
    pub(super) fn next(&mut self, flow: &FlowKey) -> u64 {
        self.made += 1;
        let mut hash = SipHash::new(self.key);
        hash.address(flow.source);
        hash.address(flow.destination);
        hash.word(self.made);
        hash.finish()
    }

    /// A number for all flows between the flow's two addresses, whatever their ports: so are the timestamps of one tuple's
    /// connections in order, by which the kernel knows a new one from what is left of the old (RFC 6191).
    pub(super) fn between(&self, flow: &FlowKey) -> u64 {
        let mut hash = SipHash::new(self.key);
        for address in [flow.source, flow.destination] {
            hash.address(SocketAddr::new(address.ip(), 0));
        }
        hash.finish()
    }
}

/// SipHash-2-4 over whole words (Aumasson and Bernstein, 2012).
struct SipHash {
    v: [u64; 4],
    words: u64,
}

impl SipHash {
    fn new(key: [u64; 2]) -> Self {
        let v = [
            key[0] ^ 0x736f_6d65_7073_6575,
            key[1] ^ 0x646f_7261_6e64_6f6d,
            key[0] ^ 0x6c79_6765_6e65_7261,
            key[1] ^ 0x7465_6462_7974_6573,
        ];
        Self { v, words: 0 }
    }

    fn address(&mut self, address: SocketAddr) {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let bits = ip.to_bits().to_le_bytes();
        for bytes in bits.as_chunks::<8>().0 {
            self.word(u64::from_le_bytes(*bytes));
        }
        self.word(u64::from(address.port()));
    }

    fn word(&mut self, word: u64) {
        self.words += 1;
        self.v[3] ^= word;
        self.rounds(2);
        self.v[0] ^= word;
    }

    fn finish(mut self) -> u64 {
        // The last word holds the length in bytes, modulo 256, in its top byte.
        let length = (self.words * 8) << 56;
        self.word(length);
        self.v[2] ^= 0xff;
        self.rounds(4);
        self.v.iter().fold(0, |sum, word| sum ^ word)
    }

    fn rounds(&mut self, count: usize) {
        let [mut a, mut b, mut c, mut d] = self.v;
        for _ in 0..count {
            a = a.wrapping_add(b);
            b = b.rotate_left(13) ^ a;
            a = a.rotate_left(32);
            c = c.wrapping_add(d);
            d = d.rotate_left(16) ^ c;
            a = a.wrapping_add(d);
            d = d.rotate_left(21) ^ a;
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            c = c.rotate_left(32);
        }
        self.v = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::SipHash;

    #[test]
    fn siphash_matches_the_published_vector() {
        // Key 00..0f, message 00..07: vector 8 of the reference implementation.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let mut hash = SipHash::new(key);
        hash.word(0x0706_0504_0302_0100);
        assert_eq!(hash.finish(), 0x93f5_f579_9a93_2462);
    }
}
