//! Tunnels between mesh members: who is dialled and how; one CONNECT is one stream is one flow.

use std::net::SocketAddr;

use bytes::Bytes;
use mesh_core::identity::Identity;

use crate::copy::{End, Sink, Source};
use crate::failure::Failure;

/// Whom to dial: the peer's HBONE address, and the identities of which its certificate must show one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub peer: SocketAddr,
    pub identities: Vec<Identity>,
}

/// What a CONNECT says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHead {
    /// `ip:port` of the application on the far side.
    pub authority: String,
    pub baggage: Option<String>,
    pub forwarded: Option<String>,
    pub traceparent: Option<String>,
}

/// Who is at the other end, from its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    pub address: SocketAddr,
    pub serial: Vec<u8>,
    pub spki_sha256: [u8; 32],
}

/// Opens one stream to a peer. Implementations: HTTP/3 over QUIC ([`quic`]); HBONE over TCP takes its place beside it.
#[allow(async_fn_in_trait)]
pub trait Dial {
    /// The stream's two directions.
    type Source: Source;
    type Sink: Sink;
    /// Opens a tunnel if there is none, sends the CONNECT and waits for its 200.
    async fn dial(&self, target: &Target, head: &ConnectHead)
    -> Result<(End<Self::Source, Self::Sink>, Peer), Failure>;
}

/// The receiving side of a stream of an HTTP/3 tunnel (of both clients and servers).
#[derive(Debug)]
pub struct StreamSource {}

/// The sending side. Dropping it unfinished resets the stream.
#[derive(Debug)]
pub struct StreamSink {}

impl Source for StreamSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        todo!()
    }
    fn stop(&mut self) {
        todo!()
    }
}

#[allow(unused_variables)]
impl Sink for StreamSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        todo!()
    }
    async fn finish(&mut self) -> Result<(), Failure> {
        todo!()
    }
    fn reset(&mut self) {
        todo!()
    }
}

/// Dials HBONE/3. Cheap to clone; lives on one shard's thread.
#[derive(Clone, Debug)]
pub struct Quic {}

#[allow(unused_variables)]
impl Dial for Quic {
    type Source = StreamSource;
    type Sink = StreamSink;
    async fn dial(
        &self,
        target: &Target,
        head: &ConnectHead,
    ) -> Result<(End<StreamSource, StreamSink>, Peer), Failure> {
        todo!()
    }
}
