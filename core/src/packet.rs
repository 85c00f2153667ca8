//! One checked view of a captured IP packet, and the packets that we build ourselves.
//!
//! [`Packet::parse`] checks every length once; after it all accessors are infallible. Fragments are refused (flows end
//! at a large-MTU device, so the local stack makes none), and IPv6 extension headers are walked up to a fixed count.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub mod build;
pub mod checksum;
pub mod icmp;
mod tcp;
#[cfg(test)]
mod tests;

pub use tcp::{Flags, Tcp};

/// Transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As logs and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a packet belongs to, as seen from the TUN side: `source` is the local application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// An IP packet whose lengths were checked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    /// Length of the fixed IP header (IPv4: with options; IPv6: without extension headers).
    ip_len: usize,
    /// Where the transport header starts.
    transport_at: usize,
    source: IpAddr,
    destination: IpAddr,
    transport: Transport<'a>,
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug)]
pub enum Transport<'a> {
    Tcp(Tcp<'a>),
    Udp(Udp<'a>),
    /// ICMP or ICMPv6; recognised only.
    Icmp,
    /// Any other IP protocol, by number.
    Other(u8),
}

/// A UDP datagram whose lengths were checked.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    bytes: &'a [u8],
}

/// Why a packet is not one that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("neither IPv4 nor IPv6")]
    Version,
    #[error("shorter than its headers say")]
    Truncated,
    #[error("a header names an impossible length")]
    Length,
    #[error("a fragment; fragments are not reassembled")]
    Fragment,
    #[error("too many or unusable IPv6 extension headers")]
    Extension,
    #[error("an address is not unicast, or a port is zero")]
    Address,
}

pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;
pub(crate) const UDP_LEN: usize = 8;

/// IP protocol numbers (IANA).
pub(crate) mod number {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
}

/// RFC 8200 recommends that each extension header occurs once; these are all that may precede TCP or UDP unencrypted.
const MAX_EXTENSIONS: usize = 4;

impl<'a> Packet<'a> {
    /// Checks `bytes` as one IP packet. Bytes after the packet's own length are ignored.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.first().ok_or(Malformed::Truncated)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed::Version),
        }
    }

    /// The whole packet, trimmed to its own length.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// 4 or 6.
    pub fn version(&self) -> u8 {
        if self.source.is_ipv4() { 4 } else { 6 }
    }

    /// Source address.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Destination address.
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// What the packet carries.
    pub fn transport(&self) -> Transport<'a> {
        self.transport
    }

    /// The IP header: IPv4 with options, IPv6 without extension headers.
    pub fn ip_header(&self) -> &'a [u8] {
        &self.bytes[..self.ip_len]
    }

    /// Everything behind the IP header and its extensions.
    pub fn transport_bytes(&self) -> &'a [u8] {
        &self.bytes[self.transport_at..]
    }

    /// Whether IPv6 extension headers stand between the IP header and the transport.
    pub fn has_extensions(&self) -> bool {
        self.transport_at != self.ip_len
    }

    /// The flow of a TCP or UDP packet.
    pub fn key(&self) -> Option<FlowKey> {
        let (protocol, source, destination) = match self.transport {
            Transport::Tcp(tcp) => (Protocol::Tcp, tcp.source_port(), tcp.destination_port()),
            Transport::Udp(udp) => (Protocol::Udp, udp.source_port(), udp.destination_port()),
            Transport::Icmp | Transport::Other(_) => return None,
        };
        Some(FlowKey {
            protocol,
            source: SocketAddr::new(self.source, source),
            destination: SocketAddr::new(self.destination, destination),
        })
    }

    /// Verifies the IPv4 header's checksum and that of TCP or UDP. Packets from a device with checksum offload carry
    /// unfinished ones, and must not be asked.
    pub fn checksums_valid(&self) -> bool {
        if self.source.is_ipv4() && checksum::Sum::of(self.ip_header()).finish() != 0 {
            return false;
        }
        let number = match self.transport {
            Transport::Tcp(_) => number::TCP,
            // RFC 768: zero means that no checksum was made; RFC 8200 8.1 forbids that over IPv6.
            Transport::Udp(udp) if udp.checksum() == 0 => return self.source.is_ipv4(),
            Transport::Udp(_) => number::UDP,
            Transport::Icmp | Transport::Other(_) => return true,
        };
        let transport = &self.bytes[self.transport_at..];
        let mut sum = checksum::pseudo_header(self.source, self.destination, number, transport.len());
        sum.add(transport);
        sum.finish() == 0
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<IPV4_LEN>().ok_or(Malformed::Truncated)?;
        let ip_len = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(be16(header, 2));
        if ip_len < IPV4_LEN || total < ip_len {
            return Err(Malformed::Length);
        }
        let bytes = bytes.get(..total).ok_or(Malformed::Truncated)?;
        // More-fragments bit, or an offset.
        if be16(header, 6) & 0x3fff != 0 {
            return Err(Malformed::Fragment);
        }
        let source = Ipv4Addr::from([header[12], header[13], header[14], header[15]]);
        let destination = Ipv4Addr::from([header[16], header[17], header[18], header[19]]);
        for address in [source, destination] {
            if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
                return Err(Malformed::Address);
            }
        }
        let transport = Transport::parse(header[9], &bytes[ip_len..])?;
        let (source, destination) = (source.into(), destination.into());
        let transport_at = ip_len;
        Ok(Self {
            bytes,
            ip_len,
            transport_at,
            source,
            destination,
            transport,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<IPV6_LEN>().ok_or(Malformed::Truncated)?;
        let total = IPV6_LEN + usize::from(be16(header, 4));
        let bytes = bytes.get(..total).ok_or(Malformed::Truncated)?;
        let source = v6_at(header, 8);
        let destination = v6_at(header, 24);
        for address in [source, destination] {
            if address.is_unspecified() || address.is_multicast() {
                return Err(Malformed::Address);
            }
        }
        let (number, transport_at) = skip_extensions(bytes, header[6])?;
        let transport = Transport::parse(number, &bytes[transport_at..])?;
        let (source, destination) = (source.into(), destination.into());
        Ok(Self {
            bytes,
            ip_len: IPV6_LEN,
            transport_at,
            source,
            destination,
            transport,
        })
    }
}

impl<'a> Transport<'a> {
    fn parse(number: u8, bytes: &'a [u8]) -> Result<Self, Malformed> {
        match number {
            number::TCP => Tcp::parse(bytes).map(Self::Tcp),
            number::UDP => Udp::parse(bytes).map(Self::Udp),
            number::ICMP | number::ICMPV6 => Ok(Self::Icmp),
            other => Ok(Self::Other(other)),
        }
    }
}

impl<'a> Udp<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<UDP_LEN>().ok_or(Malformed::Truncated)?;
        // RFC 768: the length covers header and data. It must be the whole of the IP payload: a shorter one would
        // leave bytes that the checksum of the sender did not cover.
        if usize::from(be16(header, 4)) != bytes.len() {
            return Err(Malformed::Length);
        }
        let udp = Self { bytes };
        if udp.source_port() == 0 || udp.destination_port() == 0 {
            return Err(Malformed::Address);
        }
        Ok(udp)
    }

    /// Source port, never 0.
    pub fn source_port(&self) -> u16 {
        be16(self.bytes, 0)
    }

    /// Destination port, never 0.
    pub fn destination_port(&self) -> u16 {
        be16(self.bytes, 2)
    }

    /// What was sent.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[UDP_LEN..]
    }

    fn checksum(&self) -> u16 {
        be16(self.bytes, 6)
    }
}

/// Walks extension headers; gives the transport's number and where it starts.
fn skip_extensions(bytes: &[u8], mut number: u8) -> Result<(u8, usize), Malformed> {
    let mut at = IPV6_LEN;
    for _ in 0..=MAX_EXTENSIONS {
        match number {
            number::HOP_BY_HOP | number::DESTINATION_OPTIONS => {}
            number::ROUTING => {
                // A packet that still has segments to visit is not for its present destination.
                if *bytes.get(at + 3).ok_or(Malformed::Truncated)? != 0 {
                    return Err(Malformed::Extension);
                }
            }
            number::FRAGMENT => return Err(Malformed::Fragment),
            transport => return Ok((transport, at)),
        }
        let &[next, length] = bytes
            .get(at..at + 2)
            .and_then(<[u8]>::first_chunk)
            .ok_or(Malformed::Truncated)?;
        // RFC 8200 4.3: in units of 8 bytes, not counting the first.
        at += (usize::from(length) + 1) * 8;
        if at > bytes.len() {
            return Err(Malformed::Truncated);
        }
        number = next;
    }
    Err(Malformed::Extension)
}

/// A big-endian number; `at + 2` is inside `bytes` wherever this is called.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A big-endian number; `at + 4` is inside `bytes` wherever this is called.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn v6_at(header: &[u8; IPV6_LEN], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[at..at + 16]);
    octets.into()
}
