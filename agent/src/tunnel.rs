//! Tunnels between mesh members: who is dialled and how; one CONNECT is one stream is one flow.

mod connection;
pub mod header;
mod limits;
pub mod listen;
mod pool;
pub mod quic;
mod stream;

use std::net::SocketAddr;

use mesh_core::identity::Identity;

use crate::copy::{End, Sink, Source};
use crate::failure::Failure;
pub use mesh_core::h3::head::ConnectHead;
pub use stream::{AbortCode, StreamSink, StreamSource};

/// Whom to dial: the peer's HBONE address, and the identities of which its certificate must show one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub peer: SocketAddr,
    pub identities: Vec<Identity>,
}

/// Who is at the other end, from its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    pub address: SocketAddr,
    pub serial: Vec<u8>,
    pub spki_sha256: [u8; 32],
}

/// Opens one stream to a peer. HTTP/3 over QUIC is [`quic::Quic`]; HBONE over TCP has its place beside it.
#[allow(async_fn_in_trait)]
pub trait Dial {
    /// The stream's two directions.
    type Source: Source;
    type Sink: Sink;
    /// Opens a tunnel if there is none, sends the CONNECT and waits for its 200.
    async fn dial(&self, target: &Target, head: &ConnectHead)
    -> Result<(End<Self::Source, Self::Sink>, Peer), Failure>;
}
