//! One checked view of a captured IP packet, and the packets that we build ourselves.

pub mod build;
pub mod checksum;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

/// Transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// What a packet belongs to, as seen from the TUN side: `source` is the local application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// Why a packet was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Lengths or versions that do not fit together.
    #[error("malformed packet")]
    Malformed,
    /// A fragment. Flows end here and the MTU is large, so none is needed.
    #[error("fragment")]
    Fragment,
    /// Well-formed, but neither TCP nor UDP right behind the IP header.
    #[error("a protocol that is not captured")]
    NotCaptured,
}

/// What is behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    Tcp { syn: bool, ack: bool, rst: bool, fin: bool },
    Udp { payload: &'a [u8] },
}

/// A checked packet. Checksums are not looked at: the TUN hands over packets of this machine's own kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The packet without trailing bytes.
    pub bytes: &'a [u8],
    pub key: FlowKey,
    pub segment: Segment<'a>,
}

impl<'a> Packet<'a> {
    /// Checks every length before anything is believed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(PacketError::Malformed),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let ip = Ipv4Packet::new_checked(bytes).map_err(|_| PacketError::Malformed)?;
        if usize::from(ip.header_len()) < 20 {
            return Err(PacketError::Malformed);
        }
        if ip.more_frags() || ip.frag_offset() != 0 {
            return Err(PacketError::Fragment);
        }
        let addresses = (ip.src_addr().into(), ip.dst_addr().into());
        let header = usize::from(ip.header_len());
        let whole = bytes.get(..usize::from(ip.total_len())).ok_or(PacketError::Malformed)?;
        let payload = whole.get(header..).ok_or(PacketError::Malformed)?;
        Self::parse_segment(whole, payload, ip.next_header(), addresses)
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let ip = Ipv6Packet::new_checked(bytes).map_err(|_| PacketError::Malformed)?;
        let addresses = (ip.src_addr().into(), ip.dst_addr().into());
        let whole = bytes.get(..ip.total_len()).ok_or(PacketError::Malformed)?;
        let payload = whole.get(40..).ok_or(PacketError::Malformed)?;
        if ip.next_header() == IpProtocol::Ipv6Frag {
            return Err(PacketError::Fragment);
        }
        Self::parse_segment(whole, payload, ip.next_header(), addresses)
    }

    fn parse_segment(
        bytes: &'a [u8],
        payload: &'a [u8],
        protocol: IpProtocol,
        (source, destination): (IpAddr, IpAddr),
    ) -> Result<Self, PacketError> {
        if source.is_unspecified()
            || destination.is_unspecified()
            || source.is_multicast()
            || destination.is_multicast()
        {
            return Err(PacketError::NotCaptured);
        }
        let key = |protocol, from, to| FlowKey {
            protocol,
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
        };
        match protocol {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(payload).map_err(|_| PacketError::Malformed)?;
                if tcp.src_port() == 0 || tcp.dst_port() == 0 {
                    return Err(PacketError::Malformed);
                }
                let segment = Segment::Tcp {
                    syn: tcp.syn(),
                    ack: tcp.ack(),
                    rst: tcp.rst(),
                    fin: tcp.fin(),
                };
                Ok(Self {
                    bytes,
                    key: key(Protocol::Tcp, tcp.src_port(), tcp.dst_port()),
                    segment,
                })
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(payload).map_err(|_| PacketError::Malformed)?;
                if udp.dst_port() == 0 {
                    return Err(PacketError::Malformed);
                }
                let data = payload.get(8..usize::from(udp.len())).ok_or(PacketError::Malformed)?;
                let key = key(Protocol::Udp, udp.src_port(), udp.dst_port());
                Ok(Self {
                    bytes,
                    key,
                    segment: Segment::Udp { payload: data },
                })
            }
            _ => Err(PacketError::NotCaptured),
        }
    }

    /// Opens a connection.
    pub fn is_syn(&self) -> bool {
        matches!(
            self.segment,
            Segment::Tcp {
                syn: true,
                ack: false,
                rst: false,
                ..
            }
        )
    }
}
