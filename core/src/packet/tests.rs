use proptest::prelude::*;

use super::build::{self, Unreachable};
use super::checksum::{Sum, pseudo_header};
use super::*;

fn address() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = (1u32..0xdfff_ffff, 1u16.., 1u32..0xdfff_ffff, 1u16..).prop_map(|(a, p, b, q)| {
        (
            SocketAddr::new(IpAddr::V4(a.into()), p),
            SocketAddr::new(IpAddr::V4(b.into()), q),
        )
    });
    let v6 = (1u128..1 << 120, 1u16.., 1u128..1 << 120, 1u16..).prop_map(|(a, p, b, q)| {
        (
            SocketAddr::new(IpAddr::V6(a.into()), p),
            SocketAddr::new(IpAddr::V6(b.into()), q),
        )
    });
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn datagrams_read_back((source, destination) in address(), payload in prop::collection::vec(any::<u8>(), 0..2000), tail in 0usize..9) {
        let mut bytes = build::udp(source, destination, &payload).unwrap();
        let sum = pseudo_header(source.ip(), destination.ip(), 17, payload.len() + 8)
            .bytes(&bytes[if source.is_ipv4() { 20 } else { 40 }..]);
        prop_assert_eq!(sum.folded(), 0xffff);
        bytes.resize(bytes.len() + tail, 0xaa);
        let packet = Packet::parse(&bytes).unwrap();
        prop_assert_eq!(packet.key, FlowKey { protocol: Protocol::Udp, source, destination });
        prop_assert_eq!(packet.segment, Segment::Udp { payload: &payload });
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()]) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        if let Ok(packet) = Packet::parse(&bytes) {
            let _ = build::reset(&packet);
            let _ = build::unreachable(packet.bytes, packet.key.source.ip(), packet.key.destination.ip(), Unreachable::Host);
        }
    }
}

#[test]
fn fragments_are_refused() {
    let mut bytes = build::udp("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), b"x").unwrap();
    bytes[6] = 0x20;
    assert_eq!(Packet::parse(&bytes), Err(PacketError::Fragment));
}

#[test]
fn a_refusal_quotes_what_it_refuses() {
    for (source, destination, icmp) in [
        ("10.0.0.1:1", "10.0.0.2:2", &[3u8, 13][..]),
        ("[fd00::1]:1", "[fd00::2]:2", &[1, 1][..]),
    ] {
        let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let original = build::udp(source, destination, &[7; 3000]).unwrap();
        let packet = build::unreachable(&original, source.ip(), destination.ip(), Unreachable::Prohibited).unwrap();
        let header = if source.is_ipv4() { 20 } else { 40 };
        assert_eq!(&packet[header..header + 2], icmp);
        assert_eq!(&packet[header + 8..], &original[..packet.len() - header - 8]);
        assert!(packet.len() <= if source.is_ipv4() { 576 } else { 1280 });
    }
}

#[test]
fn sums_of_odd_lengths_are_padded() {
    assert_eq!(Sum::default().bytes(&[0x12, 0x34, 0x56]).folded(), 0x1234 + 0x5600);
}
