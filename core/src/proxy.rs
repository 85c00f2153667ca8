//! The PROXY protocol, version 2, as an application tunnel wants it: who calls, whom for, and under which identity.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::identity::Identity;

/// The header to be sent before the first byte of a connection: `source` calls for `destination`, being `identity`
/// (TLV 0xD0, as ztunnel writes it).
pub fn header(source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            body.extend_from_slice(&source.octets());
            body.extend_from_slice(&destination.octets());
            TCP_OVER_IPV4
        }
        // One header has one family; an IPv4 address has a form in the other.
        (source, destination) => {
            body.extend_from_slice(&as_ipv6(source).octets());
            body.extend_from_slice(&as_ipv6(destination).octets());
            TCP_OVER_IPV6
        }
    };
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    let name = identity.map(ToString::to_string).unwrap_or_default();
    // A SPIFFE ID has 2048 bytes at the most, so this fits.
    if let Some(length) = u16::try_from(name.len())
        .ok()
        .filter(|length| *length > 0 && *length <= MAX_NAME)
    {
        body.push(IDENTITY);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(name.as_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[VERSION_2_PROXY, family]);
    header.extend_from_slice(&u16::try_from(body.len()).unwrap_or_default().to_be_bytes());
    header.extend(body);
    header
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const IDENTITY: u8 = 0xd0;
const MAX_NAME: u16 = 2048;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_header_says_who_calls_whom_and_as_whom() {
        let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let header = header(
            "10.0.0.1:4000".parse().unwrap(),
            "240.240.0.1:80".parse().unwrap(),
            Some(&identity),
        );
        assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(&header[12..16], &[0x21, 0x11, 0, 12 + 3 + 21]);
        assert_eq!(&header[16..28], &[10, 0, 0, 1, 240, 240, 0, 1, 0x0f, 0xa0, 0, 80]);
        assert_eq!(&header[28..31], &[0xd0, 0, 21]);
        assert_eq!(&header[31..], b"spiffe://td/ns/a/sa/b");
    }

    #[test]
    fn families_are_not_mixed() {
        let header = header("10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap(), None);
        assert_eq!(&header[12..16], &[0x21, 0x21, 0, 36]);
        assert_eq!(
            &header[16..32],
            &"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets()
        );
        assert_eq!(header.len(), 16 + 36);
    }
}
