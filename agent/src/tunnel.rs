//! Tunnels between mesh members: who is dialled and how; one CONNECT is one stream is one flow.
//!
//! Two kinds carry the same CONNECT: HBONE/3 (`http3`: HTTP/3 over QUIC) and HBONE (`http2`: HTTP/2 over TLS over TCP, as
//! ztunnel speaks it). Everything else is one and the same: pool, limits, identities, the choice between them.

mod dial;
pub mod header;
mod http2;
mod http3;
mod limits;
mod link;
pub mod listen;
mod pool;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::identity::Identity;
use mesh_core::outbound::Quic;

use crate::flows::Transport;
use crate::tls::PeerCertificate;
pub use dial::{Opened, Tunnels};
pub use http3::{DatagramSink, DatagramSource, Datagrams};
pub use mesh_core::connect::{ConnectHead, ResponseHead};
pub use stream::{Abort, AbortCode, StreamSink, StreamSource};

/// Whom to dial: the peer's HBONE address, and the identities of which its certificate must show one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub peer: SocketAddr,
    pub identities: Vec<Identity>,
    /// What the world says of HBONE/3 there.
    pub quic: Quic,
}

/// Who is at the other end, from its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    pub address: SocketAddr,
    pub certificate: Arc<PeerCertificate>,
    pub transport: Transport,
    /// Our own address that it dialled, where it was the peer who dialled.
    pub reached: Option<IpAddr>,
}
