//! What the kernel does with a packet from the TUN: it checks it, finishes its checksum and splits it.

use mesh_core::engine::PacketOut;
use mesh_core::packet::checksum::{Sum, pseudo_header};
use mesh_core::packet::{Flags, Packet, Transport};

/// The packets that come of one that the engine wrote.
pub(crate) fn complete(bytes: &[u8], out: PacketOut, mtu: u16) -> Vec<Vec<u8>> {
    let packet = Packet::parse(bytes).expect("the engine wrote a malformed packet");
    assert_eq!(packet.bytes().len(), out.len, "lengths differ");
    assert_eq!(packet.version(), out.version);
    let Some((start, offset)) = out.partial_checksum else {
        assert!(
            packet.checksums_valid() && icmp_valid(&packet),
            "a wrong checksum: {bytes:02x?}"
        );
        assert!(out.gso_size.is_none());
        assert!(bytes.len() <= usize::from(mtu) || matches!(packet.transport(), Transport::Udp(_)));
        return vec![bytes.to_vec()];
    };
    assert_eq!(usize::from(start), packet.ip_header().len());
    let segments = match (out.gso_size, packet.transport()) {
        (Some(size), Transport::Tcp(_)) => split(&packet, usize::from(size)),
        (Some(_), _) => panic!("only TCP is split"),
        (None, _) => vec![bytes.to_vec()],
    };
    let at = usize::from(start + offset);
    segments
        .into_iter()
        .map(|segment| finish(segment, usize::from(start), at, mtu))
        .collect()
}

/// Makes the checksum whose field holds the sum of the pseudo-header.
fn finish(mut segment: Vec<u8>, start: usize, at: usize, mtu: u16) -> Vec<u8> {
    let sum = Sum::of(&segment[start..]).finish();
    let sum = if sum == 0 { 0xffff } else { sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let packet = Packet::parse(&segment).unwrap();
    assert!(packet.checksums_valid(), "the pseudo-header sum is wrong");
    assert!(segment.len() <= usize::from(mtu) || matches!(packet.transport(), Transport::Udp(_)));
    segment
}

/// TCP segmentation, as Linux does it.
fn split(packet: &Packet<'_>, size: usize) -> Vec<Vec<u8>> {
    let Transport::Tcp(tcp) = packet.transport() else {
        panic!("not TCP")
    };
    let ip_len = packet.ip_header().len();
    let count = tcp.payload().len().div_ceil(size);
    let mut segments = Vec::new();
    for (index, payload) in tcp.payload().chunks(size).enumerate() {
        let mut segment = packet.ip_header().to_vec();
        segment.extend_from_slice(tcp.header());
        segment.extend_from_slice(payload);
        let sequence = tcp.sequence().wrapping_add(u32::try_from(index * size).unwrap());
        segment[ip_len + 4..ip_len + 8].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < count {
            segment[ip_len + 13] &= !(Flags::FIN | Flags::PSH);
        }
        let transport = segment.len() - ip_len;
        let pseudo = pseudo_header(packet.source(), packet.destination(), 6, transport).partial();
        segment[ip_len + 16..ip_len + 18].copy_from_slice(&pseudo.to_be_bytes());
        if packet.version() == 4 {
            let total = u16::try_from(segment.len()).unwrap();
            segment[2..4].copy_from_slice(&total.to_be_bytes());
            segment[10..12].fill(0);
            let sum = Sum::of(&segment[..ip_len]).finish();
            segment[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            segment[4..6].copy_from_slice(&u16::try_from(transport).unwrap().to_be_bytes());
        }
        segments.push(segment);
    }
    segments
}

fn icmp_valid(packet: &Packet<'_>) -> bool {
    if !matches!(packet.transport(), Transport::Icmp) {
        return true;
    }
    let icmp = &packet.bytes()[packet.ip_header().len()..];
    let mut sum = match packet.version() {
        4 => Sum::default(),
        _ => pseudo_header(packet.source(), packet.destination(), 58, icmp.len()),
    };
    sum.add(icmp);
    sum.finish() == 0
}
