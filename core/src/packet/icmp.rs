//! The one thing that we want to know of ICMP: which SYN it says cannot be delivered.

use std::net::SocketAddr;

use super::{FlowKey, IPV4_LEN, IPV6_LEN, Packet, Protocol, be16, be32, number, v6_at};

const ICMP_LEN: usize = 8;
/// RFC 792: an error quotes at least so much of the TCP header: ports and sequence number.
const QUOTED: usize = 8;

/// A TCP segment that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As seen from the TUN side, so that the quoted segment went from `destination` to `source`.
    pub key: FlowKey,
    /// Its sequence number.
    pub sequence: u32,
}

impl Refused {
    /// Reads "destination unreachable" (type 3; ICMPv6: type 1, RFC 4443 3.1), whatever its code; but not "fragmentation
    /// needed". `None` for all else.
    pub fn parse(packet: &Packet<'_>) -> Option<Self> {
        let icmp = packet.transport_bytes();
        let kind = [*icmp.first()?, *icmp.get(1)?];
        let quoted = icmp.get(ICMP_LEN..)?;
        let (from, to, tcp) = match (packet.version(), kind) {
            (4, [3, code]) if code != 4 => {
                let header = quoted.first_chunk::<IPV4_LEN>()?;
                let length = usize::from(header[0] & 0x0f) * 4;
                if header[0] >> 4 != 4 || length < IPV4_LEN || header[9] != number::TCP {
                    return None;
                }
                let address = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
                (address(12).into(), address(16).into(), quoted.get(length..)?)
            }
            (6, [1, _]) => {
                let header = quoted.first_chunk::<IPV6_LEN>()?;
                if header[0] >> 4 != 6 || header[6] != number::TCP {
                    return None;
                }
                (
                    v6_at(header, 8).into(),
                    v6_at(header, 24).into(),
                    quoted.get(IPV6_LEN..)?,
                )
            }
            _ => return None,
        };
        let tcp = tcp.first_chunk::<QUOTED>()?;
        Some(Self {
            key: FlowKey {
                protocol: Protocol::Tcp,
                source: SocketAddr::new(to, be16(tcp, 2)),
                destination: SocketAddr::new(from, be16(tcp, 0)),
            },
            sequence: be32(tcp, 4),
        })
    }
}
