#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::build::{self, Checksum, Control, Unreachable};
use super::*;

fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = (1_u32..0xe000_0000).prop_map(|bits| IpAddr::V4(bits.into()));
    let v6 = any::<u128>().prop_map(|bits| IpAddr::V6((bits >> 8 | 0x20 << 120).into()));
    let port = || 1_u16..;
    prop_oneof![(v4.clone(), v4).boxed(), (v6.clone(), v6).boxed()].prop_flat_map(move |(source, destination)| {
        (port(), port()).prop_map(move |(from, to)| (SocketAddr::new(source, from), SocketAddr::new(destination, to)))
    })
}

/// Everything that can be asked of a packet.
fn ask_all(packet: &Packet<'_>) {
    let _ = (
        packet.key(),
        packet.checksums_valid(),
        packet.has_extensions(),
        packet.version(),
        packet.ip_header(),
        icmp::Refused::parse(packet),
    );
    if let Transport::Tcp(tcp) = packet.transport() {
        let _ = (
            tcp.max_segment_size(),
            tcp.window_scale(),
            tcp.options_valid(),
            tcp.sequence_len(),
            tcp.payload(),
        );
        let _ = packet.key().map(|key| build::reset(&key, &tcp));
        let mut out = Vec::new();
        build::trimmed(packet, &tcp, 3, Flags::FIN, &mut out);
        build::set_window(&mut out, 7);
        let again = Packet::parse(&out).unwrap();
        assert_eq!(again.key(), packet.key());
        assert!(!again.has_extensions());
    }
    for why in [Unreachable::Host, Unreachable::Port, Unreachable::Prohibited] {
        let icmp = build::unreachable(packet.bytes(), why).unwrap();
        let icmp = Packet::parse(&icmp).unwrap();
        assert!(matches!(icmp.transport(), Transport::Icmp));
        assert_eq!(
            (icmp.source(), icmp.destination()),
            (packet.destination(), packet.source())
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..200), version in any::<bool>(), number in 0_u8..64) {
        if bytes.len() > 40 {
            // Most random bytes are refused at once; these get further.
            let length = u16::try_from(bytes.len()).unwrap();
            if version {
                bytes[0] = 0x45 + (bytes[0] & 3);
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[6..8].fill(0);
                bytes[9] = [6, 17, number][usize::from(number % 3)];
            } else {
                bytes[0] = 0x60;
                bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                bytes[6] = [0, 6, 17, 43, 44, 60, number][usize::from(number % 7)];
            }
        }
        if let Ok(packet) = Packet::parse(&bytes) {
            ask_all(&packet);
        }
    }

    #[test]
    fn a_datagram_comes_back_as_it_was_built((source, destination) in addresses(), payload in vec(any::<u8>(), 0..2000)) {
        let built = build::datagram(source, destination, &payload, Checksum::Full).unwrap();
        let packet = Packet::parse(&built).unwrap();
        let Transport::Udp(udp) = packet.transport() else { panic!("not UDP") };
        prop_assert_eq!(udp.payload(), &payload[..]);
        prop_assert_eq!(packet.key().unwrap(), FlowKey { protocol: Protocol::Udp, source, destination });
        prop_assert!(packet.checksums_valid());
        ask_all(&packet);
    }

    #[test]
    fn a_changed_byte_is_found(
        (source, destination) in addresses(),
        payload in vec(any::<u8>(), 1..100),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
    ) {
        let mut built = build::datagram(source, destination, &payload, Checksum::Full).unwrap();
        let first = built.len() - payload.len();
        let at = first + at.index(payload.len());
        built[at] ^= flip;
        prop_assert!(!Packet::parse(&built).unwrap().checksums_valid());
    }

    #[test]
    fn a_segment_comes_back_as_it_was_built(
        (source, destination) in addresses(),
        (flags, sequence, acknowledgement, window) in (0_u8..64, any::<u32>(), any::<u32>(), any::<u16>()),
    ) {
        let control = Control { flags, sequence, acknowledgement, window };
        let built = build::segment(source, destination, control).unwrap();
        let packet = Packet::parse(&built).unwrap();
        prop_assert!(packet.checksums_valid());
        let Transport::Tcp(tcp) = packet.transport() else { panic!("not TCP") };
        prop_assert_eq!(tcp.flags().0, flags);
        prop_assert_eq!((tcp.sequence(), tcp.acknowledgement(), tcp.window()), (sequence, acknowledgement, window));
        ask_all(&packet);
    }

    #[test]
    fn the_sum_is_that_of_the_rfc(bytes in vec(any::<u8>(), 0..300)) {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        prop_assert_eq!(u32::from(checksum::Sum::of(&bytes).partial()), sum);
    }
}

fn datagram(v6: bool) -> Vec<u8> {
    let ip: IpAddr = if v6 {
        "fd00::1".parse().unwrap()
    } else {
        "10.0.0.1".parse().unwrap()
    };
    build::datagram(SocketAddr::new(ip, 1), SocketAddr::new(ip, 2), b"hello", Checksum::Full).unwrap()
}

/// A v6 datagram with extension headers of these numbers, eight bytes each, before it.
fn extended(numbers: &[u8]) -> Vec<u8> {
    let mut packet = datagram(true);
    let first = packet[6];
    let mut next = first;
    for number in numbers.iter().rev() {
        packet.splice(40..40, [next, 0, 0, 0, 0, 0, 0, 0]);
        next = *number;
    }
    packet[6] = next;
    let length = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

#[test]
fn fragments_are_refused() {
    for field in [[0x20, 0], [0, 1], [0x1f, 0xff]] {
        let mut packet = datagram(false);
        packet[6..8].copy_from_slice(&field);
        assert_eq!(Packet::parse(&packet).unwrap_err(), Malformed::Fragment);
    }
    assert_eq!(Packet::parse(&extended(&[44])).unwrap_err(), Malformed::Fragment);
    assert_eq!(Packet::parse(&extended(&[0, 44])).unwrap_err(), Malformed::Fragment);
}

#[test]
fn extension_headers_are_walked_and_bounded() {
    for numbers in [&[0][..], &[60], &[0, 60, 43, 60]] {
        let packet = extended(numbers);
        let packet = Packet::parse(&packet).unwrap();
        assert!(packet.has_extensions() && packet.checksums_valid());
        assert_eq!(packet.key().unwrap().destination.port(), 2);
    }
    assert_eq!(
        Packet::parse(&extended(&[60, 60, 60, 60, 60])).unwrap_err(),
        Malformed::Extension
    );
    let mut routed = extended(&[43]);
    routed[43] = 1;
    assert_eq!(Packet::parse(&routed).unwrap_err(), Malformed::Extension);
    let mut long = extended(&[0]);
    long[41] = 255;
    assert_eq!(Packet::parse(&long).unwrap_err(), Malformed::Truncated);
}

#[test]
fn lengths_are_checked() {
    for v6 in [false, true] {
        let whole = datagram(v6);
        for len in 0..whole.len() {
            assert!(Packet::parse(&whole[..len]).is_err(), "{len} bytes of {}", whole.len());
        }
        let mut longer = whole.clone();
        longer.extend_from_slice(&[9; 7]);
        assert_eq!(Packet::parse(&longer).unwrap().bytes(), &whole[..]);
    }
    let mut short_udp = datagram(false);
    short_udp[25] -= 1;
    assert_eq!(Packet::parse(&short_udp).unwrap_err(), Malformed::Length);
}

#[test]
fn only_unicast_addresses_and_real_ports_are_taken() {
    for (at, bytes) in [
        (12, [0; 4]),
        (12, [255; 4]),
        (16, [224, 0, 0, 1]),
        (16, [0; 4]),
        (20, [0, 0, 0, 2]),
    ] {
        let mut packet = datagram(false);
        packet[at..at + 4].copy_from_slice(&bytes);
        assert_eq!(Packet::parse(&packet).unwrap_err(), Malformed::Address);
    }
    let mut multicast = datagram(true);
    multicast[24] = 0xff;
    assert_eq!(Packet::parse(&multicast).unwrap_err(), Malformed::Address);
}

#[test]
fn a_datagram_without_checksum_is_right_over_ipv4_only() {
    for v6 in [false, true] {
        let mut packet = datagram(v6);
        let at = packet.len() - 5 - 2;
        packet[at..at + 2].fill(0);
        assert_eq!(Packet::parse(&packet).unwrap().checksums_valid(), !v6);
    }
}

#[test]
fn the_largest_datagrams_fit_and_larger_ones_are_refused() {
    for (ip, max) in [("10.0.0.1", 65_507), ("fd00::1", 65_487)] {
        let address = SocketAddr::new(ip.parse().unwrap(), 5);
        let payload = vec![1; max + 1];
        let built = build::datagram(address, address, &payload[..max], Checksum::Full).unwrap();
        assert_eq!(built.len(), 65_535);
        assert!(Packet::parse(&built).unwrap().checksums_valid());
        assert!(build::datagram(address, address, &payload, Checksum::Full).is_none());
    }
    let v4 = SocketAddr::new("10.0.0.1".parse().unwrap(), 1);
    let v6 = SocketAddr::new("fd00::1".parse().unwrap(), 1);
    assert!(build::datagram(v4, v6, b"", Checksum::Full).is_none());
}

#[test]
fn icmp_errors_have_the_types_that_linux_maps_to_errors() {
    let codes = [
        (false, Unreachable::Host, [3, 1]),
        (false, Unreachable::Port, [3, 3]),
        (false, Unreachable::Prohibited, [3, 13]),
        (true, Unreachable::Host, [1, 3]),
        (true, Unreachable::Port, [1, 4]),
        (true, Unreachable::Prohibited, [1, 1]),
    ];
    for (v6, why, code) in codes {
        let original = datagram(v6);
        let icmp = build::unreachable(&original, why).unwrap();
        let start = if v6 { 40 } else { 20 };
        assert_eq!(icmp[start..start + 2], code);
        assert_eq!(icmp[start + 8..], original[..], "the original is quoted");
    }
    let source = SocketAddr::new("10.0.0.1".parse().unwrap(), 1);
    let long = build::datagram(source, source, &[0; 3000], Checksum::Full).unwrap();
    assert_eq!(build::unreachable(&long, Unreachable::Port).unwrap().len(), 576);
}

#[test]
fn a_reset_answers_as_the_rfc_says() {
    let near = SocketAddr::new("10.0.0.1".parse().unwrap(), 1);
    let far = SocketAddr::new("10.0.0.2".parse().unwrap(), 2);
    let answer = |flags| {
        let built = build::segment(
            near,
            far,
            Control {
                flags,
                sequence: 100,
                acknowledgement: 700,
                window: 9,
            },
        )
        .unwrap();
        let packet = Packet::parse(&built).unwrap();
        let Transport::Tcp(tcp) = packet.transport() else {
            panic!("not TCP")
        };
        build::reset(&packet.key().unwrap(), &tcp).map(|reset| {
            let packet = Packet::parse(&reset).unwrap();
            let Transport::Tcp(tcp) = packet.transport() else {
                panic!("not TCP")
            };
            assert_eq!(packet.key().unwrap().source, far);
            (tcp.flags().0, tcp.sequence(), tcp.acknowledgement())
        })
    };
    assert_eq!(answer(Flags::ACK), Some((Flags::RST, 700, 0)));
    assert_eq!(answer(Flags::SYN), Some((Flags::RST | Flags::ACK, 0, 101)));
    assert_eq!(answer(Flags::RST | Flags::ACK), None);
}

#[test]
fn an_icmp_error_names_the_segment_that_it_quotes() {
    for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let control = Control {
            flags: Flags::SYN,
            sequence: 77,
            acknowledgement: 0,
            window: 0,
        };
        let syn = build::segment(from, to, control).unwrap();
        let error = build::unreachable(&syn, Unreachable::Port).unwrap();
        let expected = icmp::Refused {
            key: FlowKey {
                protocol: Protocol::Tcp,
                source: to,
                destination: from,
            },
            sequence: 77,
        };
        let parse = |bytes: &[u8]| icmp::Refused::parse(&Packet::parse(bytes).unwrap());
        assert_eq!(parse(&error), Some(expected));
        let datagram = build::datagram(from, to, b"x", Checksum::Full).unwrap();
        assert_eq!(parse(&build::unreachable(&datagram, Unreachable::Port).unwrap()), None);
        let mut other = error.clone();
        let kind = if from.is_ipv4() { 20 } else { 40 };
        other[kind] = 11;
        assert_eq!(parse(&other), None, "time exceeded");
    }
}
