//! The packets that we make ourselves: datagrams, ICMP errors, and TCP segments outside of any flow.
//!
//! All are addressed to the application, so `destination` of what was captured is the source of what is built.

use std::net::{IpAddr, SocketAddr};

use super::checksum::{self, Sum};
use super::{Flags, FlowKey, IPV4_LEN, IPV6_LEN, Packet, Tcp, UDP_LEN, number};

/// RFC 1122 3.3.2 and common practice.
const HOP_LIMIT: u8 = 64;
const TCP_LEN: usize = 20;
const ICMP_LEN: usize = 8;
/// RFC 1812 4.3.2.3: an ICMP error must not exceed 576 bytes.
const ICMPV4_MAX: usize = 576;
/// RFC 4443 2.4(c): nor the minimum MTU of IPv6.
const ICMPV6_MAX: usize = 1280;
/// Bytes of the largest packet.
const PACKET_MAX: usize = 65_535;

/// Who finishes the checksum of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// We do.
    Full,
    /// The device does: the field holds the sum of the pseudo-header.
    Partial,
}

/// Why a destination cannot be reached, as ICMP says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Type 3 code 1; IPv6: type 1 code 3.
    Host,
    /// Type 3 code 3; IPv6: type 1 code 4.
    Port,
    /// Type 3 code 13; IPv6: type 1 code 1.
    Prohibited,
}

/// The fields of a TCP segment without data or options.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
}

/// A UDP datagram. `None` when the families differ or the payload fits in no packet.
pub fn datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8], checksum: Checksum) -> Option<Vec<u8>> {
    let length = UDP_LEN + payload.len();
    let mut packet = ip(source.ip(), destination.ip(), number::UDP, length)?;
    let start = packet.len();
    packet.extend_from_slice(&source.port().to_be_bytes());
    packet.extend_from_slice(&destination.port().to_be_bytes());
    packet.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let sum = transport_sum(&packet, start, source.ip(), destination.ip(), number::UDP, checksum);
    // RFC 768: a computed zero is sent as all ones, zero says that there is none.
    let sum = if sum == 0 && checksum == Checksum::Full {
        0xffff
    } else {
        sum
    };
    packet[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}

/// A TCP segment without data.
pub fn segment(source: SocketAddr, destination: SocketAddr, control: Control) -> Option<Vec<u8>> {
    let mut packet = ip(source.ip(), destination.ip(), number::TCP, TCP_LEN)?;
    let start = packet.len();
    packet.extend_from_slice(&source.port().to_be_bytes());
    packet.extend_from_slice(&destination.port().to_be_bytes());
    packet.extend_from_slice(&control.sequence.to_be_bytes());
    packet.extend_from_slice(&control.acknowledgement.to_be_bytes());
    packet.extend_from_slice(&[5 << 4, control.flags]);
    packet.extend_from_slice(&control.window.to_be_bytes());
    packet.extend_from_slice(&[0; 4]);
    let sum = transport_sum(
        &packet,
        start,
        source.ip(),
        destination.ip(),
        number::TCP,
        Checksum::Full,
    );
    packet[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}

/// The RST that answers a segment of no flow (RFC 9293 3.10.7.1); `None` for a segment that is itself a RST.
pub fn reset(key: &FlowKey, tcp: &Tcp<'_>) -> Option<Vec<u8>> {
    let flags = tcp.flags();
    if flags.has(Flags::RST) {
        return None;
    }
    let control = if flags.has(Flags::ACK) {
        Control {
            flags: Flags::RST,
            sequence: tcp.acknowledgement(),
            acknowledgement: 0,
            window: 0,
        }
    } else {
        Control {
            flags: Flags::RST | Flags::ACK,
            sequence: 0,
            acknowledgement: tcp.sequence().wrapping_add(tcp.sequence_len()),
            window: 0,
        }
    };
    segment(key.destination, key.source, control)
}

/// The ICMP error that says why `original`, a captured packet, did not arrive. It comes from the original's
/// destination and quotes as much of it as is allowed.
pub fn unreachable(original: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let parsed = Packet::parse(original).ok()?;
    let (source, destination) = (parsed.destination(), parsed.source());
    let (number, max, kind, code) = match (source, why) {
        (IpAddr::V4(_), Unreachable::Host) => (number::ICMP, ICMPV4_MAX - IPV4_LEN, 3, 1),
        (IpAddr::V4(_), Unreachable::Port) => (number::ICMP, ICMPV4_MAX - IPV4_LEN, 3, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (number::ICMP, ICMPV4_MAX - IPV4_LEN, 3, 13),
        (IpAddr::V6(_), Unreachable::Host) => (number::ICMPV6, ICMPV6_MAX - IPV6_LEN, 1, 3),
        (IpAddr::V6(_), Unreachable::Port) => (number::ICMPV6, ICMPV6_MAX - IPV6_LEN, 1, 4),
        (IpAddr::V6(_), Unreachable::Prohibited) => (number::ICMPV6, ICMPV6_MAX - IPV6_LEN, 1, 1),
    };
    let quoted = parsed.bytes();
    let quoted = &quoted[..quoted.len().min(max - ICMP_LEN)];
    let mut packet = ip(source, destination, number, ICMP_LEN + quoted.len())?;
    let start = packet.len();
    packet.extend_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    packet.extend_from_slice(quoted);
    let mut sum = match source {
        // RFC 792: ICMP has no pseudo-header over IPv4; RFC 4443 2.3: it has one over IPv6.
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => checksum::pseudo_header(source, destination, number, packet.len() - start),
    };
    sum.add(&packet[start..]);
    packet[start + 2..start + 4].copy_from_slice(&sum.finish().to_be_bytes());
    Some(packet)
}

/// `packet` again, with at most `payload_max` bytes of data, without IPv6 extension headers, and without the control
/// bits of `clear`. Only for TCP; the checksum is not kept right, the IPv4 header's is.
pub(crate) fn trimmed(packet: &Packet<'_>, tcp: &Tcp<'_>, payload_max: usize, clear: u8, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(packet.ip_header());
    let start = out.len();
    out.extend_from_slice(tcp.header());
    out[start + 13] &= !clear;
    out.extend_from_slice(&tcp.payload()[..tcp.payload().len().min(payload_max)]);
    if packet.version() == 4 {
        let total = u16::try_from(out.len()).unwrap_or(u16::MAX);
        out[2..4].copy_from_slice(&total.to_be_bytes());
        fill_ipv4_checksum(&mut out[..start]);
    } else {
        let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
        out[4..6].copy_from_slice(&length.to_be_bytes());
        out[6] = number::TCP;
    }
}

/// Sets the window field of what [`trimmed`] wrote.
pub(crate) fn set_window(packet: &mut [u8], window: u16) {
    let start = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0x0f) * 4,
        _ => IPV6_LEN,
    };
    if let Some(field) = packet.get_mut(start + 14..start + 16) {
        field.copy_from_slice(&window.to_be_bytes());
    }
}

/// An IP header in a buffer with room for `length` bytes more.
fn ip(source: IpAddr, destination: IpAddr, number: u8, length: usize) -> Option<Vec<u8>> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(IPV4_LEN + length).ok()?;
            let mut packet = Vec::with_capacity(usize::from(total));
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&total.to_be_bytes());
            // RFC 6864: a packet that must not be fragmented needs no identification.
            packet.extend_from_slice(&[0, 0, 0x40, 0, HOP_LIMIT, number, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            fill_ipv4_checksum(&mut packet);
            Some(packet)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            if IPV6_LEN + length > PACKET_MAX {
                return None;
            }
            let mut packet = Vec::with_capacity(IPV6_LEN + length);
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
            packet.extend_from_slice(&[number, HOP_LIMIT]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            Some(packet)
        }
        _ => None,
    }
}

fn fill_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = Sum::of(header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn transport_sum(
    packet: &[u8],
    start: usize,
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    checksum: Checksum,
) -> u16 {
    let mut sum = checksum::pseudo_header(source, destination, number, packet.len() - start);
    if checksum == Checksum::Partial {
        return sum.partial();
    }
    sum.add(&packet[start..]);
    sum.finish()
}
