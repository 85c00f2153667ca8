//! One checked view of a captured IP packet, and the packets that we build ourselves.

use std::net::SocketAddr;

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
