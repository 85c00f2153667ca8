//! Packets that we make by hand: UDP replies, ICMP refusals and RSTs for segments of no flow. All checksums are whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Packet;
use super::checksum::{Sum, pseudo_header};

/// What an ICMP "destination unreachable" says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Host,
    Port,
    /// Administratively prohibited.
    Prohibited,
}

impl Unreachable {
    fn code_v4(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Port => 3,
            Self::Prohibited => 13,
        }
    }

    fn code_v6(self) -> u8 {
        match self {
            Self::Host => 3,
            Self::Port => 4,
            Self::Prohibited => 1,
        }
    }
}

/// A UDP datagram. `None` when the families differ or the payload is too long for one packet.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut segment = Vec::with_capacity(usize::from(length));
    segment.extend_from_slice(&source.port().to_be_bytes());
    segment.extend_from_slice(&destination.port().to_be_bytes());
    segment.extend_from_slice(&length.to_be_bytes());
    segment.extend_from_slice(&[0, 0]);
    segment.extend_from_slice(payload);
    let sum = pseudo_header(source.ip(), destination.ip(), UDP, segment.len())
        .bytes(&segment)
        .finish();
    // Zero means "no checksum" (RFC 768), so a computed zero is sent as all ones.
    let sum = if sum == 0 { 0xffff } else { sum };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(source.ip(), destination.ip(), UDP, &segment)
}

/// "Destination unreachable", from the destination of `original` to its source, quoting its beginning.
pub fn unreachable(original: &[u8], source: IpAddr, destination: IpAddr, why: Unreachable) -> Option<Vec<u8>> {
    let v4 = source.is_ipv4();
    // RFC 1812 4.3.2.3: at most 576 bytes in all; RFC 4443 2.4: at most the minimum MTU of 1280.
    let room = if v4 {
        576 - 20 - ICMP_HEADER
    } else {
        1280 - 40 - ICMP_HEADER
    };
    let quoted = &original[..original.len().min(room)];
    let mut message = Vec::with_capacity(ICMP_HEADER + quoted.len());
    message.extend_from_slice(&if v4 { [3, why.code_v4()] } else { [1, why.code_v6()] });
    message.extend_from_slice(&[0; 6]);
    message.extend_from_slice(quoted);
    let sum = if v4 {
        Sum::default()
    } else {
        pseudo_header(destination, source, ICMPV6, message.len())
    };
    let sum = sum.bytes(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(destination, source, if v4 { ICMP } else { ICMPV6 }, &message)
}

/// RST for a segment that belongs to no flow (RFC 9293 3.10.7.1). `None` for a RST, or what is not TCP.
pub fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let super::Segment::Tcp {
        syn,
        ack,
        rst: false,
        fin,
    } = packet.segment
    else {
        return None;
    };
    let header = if packet.key.source.is_ipv4() {
        usize::from(packet.bytes[0] & 0xf) * 4
    } else {
        40
    };
    let tcp = packet.bytes.get(header..)?;
    let data = tcp.len().checked_sub(usize::from(*tcp.get(12)? >> 4) * 4)?;
    let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let (seq, their_ack) = (word(4)?, word(8)?);
    let occupied = u32::try_from(data)
        .ok()?
        .wrapping_add(u32::from(syn))
        .wrapping_add(u32::from(fin));
    let (our_seq, our_ack, flags) = if ack {
        (their_ack, 0, 0x04)
    } else {
        (0, seq.wrapping_add(occupied), 0x14)
    };

    let (from, to) = (packet.key.destination, packet.key.source);
    let mut segment = Vec::with_capacity(20);
    segment.extend_from_slice(&from.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&our_seq.to_be_bytes());
    segment.extend_from_slice(&our_ack.to_be_bytes());
    segment.extend_from_slice(&[0x50, flags, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_header(from.ip(), to.ip(), TCP, segment.len())
        .bytes(&segment)
        .finish();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(from.ip(), to.ip(), TCP, &segment)
}

/// An IP header in front of a payload.
fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, protocol, payload),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, protocol, payload),
        _ => None,
    }
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let total = u16::try_from(20 + payload.len()).ok()?;
    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&total.to_be_bytes());
    // No identification, don't fragment.
    packet.extend_from_slice(&[0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum = Sum::default().bytes(&packet).finish();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    Some(packet)
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let mut packet = Vec::with_capacity(40 + payload.len());
    packet.extend_from_slice(&[0x60, 0, 0, 0]);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[protocol, HOP_LIMIT]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(payload);
    Some(packet)
}

pub(crate) const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;
