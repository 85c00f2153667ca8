//! The listening side: accepts tunnels of both kinds, bounds what comes before and after authentication, and hands each
//! CONNECT on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_core::connect::{ConnectHead, ResponseHead};
use tokio::sync::watch;

use super::limits::{Allowance, Peers};
use super::stream::{AbortCode, StreamSink, StreamSource};
use super::{Datagrams, Peer, Tunnels, http2, http3};
use crate::copy::End;
use crate::failure::Failure;

/// One request of an authenticated peer, not answered yet.
#[derive(Debug)]
pub struct Request {
    /// `None` when it is not a CONNECT.
    pub head: Option<ConnectHead>,
    pub peer: Peer,
    abort: AbortCode,
    exchange: Exchange,
}

#[derive(Debug)]
pub(super) enum Exchange {
    Http3(http3::Exchange),
    Http2(http2::Exchange),
}

impl From<http3::Exchange> for Exchange {
    fn from(exchange: http3::Exchange) -> Self {
        Self::Http3(exchange)
    }
}

impl From<http2::Exchange> for Exchange {
    fn from(exchange: http2::Exchange) -> Self {
        Self::Http2(exchange)
    }
}

impl Request {
    pub(super) fn new(head: Option<ConnectHead>, peer: Peer, abort: AbortCode, exchange: impl Into<Exchange>) -> Self {
        Self {
            head,
            peer,
            abort,
            exchange: exchange.into(),
        }
    }

    /// Why the stream is torn down; to be set before it is dropped.
    pub fn abort_code(&self) -> AbortCode {
        self.abort.clone()
    }

    /// Answers 200 and gives the two directions.
    pub async fn accept(self, head: ResponseHead) -> Result<End<StreamSource, StreamSink>, Failure> {
        match self.exchange {
            Exchange::Http3(exchange) => exchange.accept(&head).await,
            Exchange::Http2(exchange) => exchange.accept(&head),
        }
    }

    /// Whether it is a CONNECT-UDP, which is answered by [`Self::accept_udp`].
    pub fn is_udp(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.udp_by.is_some())
    }

    /// Answers 200 to a CONNECT-UDP, and gives the two directions.
    pub async fn accept_udp(self, head: ResponseHead) -> Result<Datagrams, Failure> {
        match self.exchange {
            Exchange::Http3(exchange) => exchange.accept_udp(&head).await,
            Exchange::Http2(_) => Err(Failure::Protocol("a CONNECT-UDP over HTTP/2".into())),
        }
    }

    /// Answers anything else, and ends the stream.
    pub async fn reject(self, head: ResponseHead) {
        match self.exchange {
            Exchange::Http3(exchange) => exchange.reject(&head).await,
            Exchange::Http2(exchange) => exchange.reject(&head),
        }
    }
}

/// What serves a request; called on the shard's thread.
#[allow(async_fn_in_trait)]
pub trait Handler: Clone + 'static {
    /// Serves one request to its end.
    async fn serve(&self, request: Request);
}

impl<F: Future<Output = ()>, T: Fn(Request) -> F + Clone + 'static> Handler for T {
    async fn serve(&self, request: Request) {
        self(request).await;
    }
}

/// Serves tunnels until they are closed.
pub async fn run(tunnels: Tunnels, serve: impl Handler) {
    let guard = Guard::new(&tunnels);
    tokio::task::spawn_local(tunnels.http3().clone().accept(guard.clone(), serve.clone()));
    if let Some(listener) = tunnels.take_listener() {
        tokio::task::spawn_local(http2::accept(tunnels.shared().clone(), listener, guard, serve));
    }
    let mut credentials = tunnels.shared().credentials.clone();
    credentials.mark_changed();
    while credentials.changed().await.is_ok() {
        tunnels.http3().configure();
    }
}

/// What is counted over all connections: before authentication everything is bounded, and after it each peer is.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    most: usize,
    handshakes: Rc<Cell<usize>>,
    peers: Rc<Peers>,
    draining: watch::Receiver<bool>,
}

impl Guard {
    fn new(tunnels: &Tunnels) -> Self {
        let config = &tunnels.shared().config.tunnel;
        Self {
            most: config.max_handshakes,
            handshakes: Rc::default(),
            peers: Rc::new(Peers::new(config.max_tunnels_per_peer, config.max_connects_per_second)),
            draining: tunnels.draining(),
        }
    }

    /// Handshakes under way.
    pub(super) fn under_way(&self) -> usize {
        self.handshakes.get()
    }

    /// A place for one more handshake; none while draining.
    pub(super) fn admit(&self) -> Option<UnderWay> {
        if self.handshakes.get() >= self.most || *self.draining.borrow() {
            return None;
        }
        self.handshakes.set(self.handshakes.get() + 1);
        Some(UnderWay(self.handshakes.clone()))
    }

    /// A place for one more tunnel of this peer; says so when it has too many.
    pub(super) fn enter(&self, peer: &Peer) -> Option<Allowance> {
        let allowance = self.peers.enter(peer.certificate.spki_sha256, Instant::now());
        if allowance.is_none() {
            tracing::info!(target: "mesh_agent::tunnel", peer = %peer.identity, address = %peer.address, "a peer has too many tunnels: one more was refused");
        }
        allowance
    }

    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.clone()
    }
}

/// Counts down when a handshake is over.
#[derive(Debug)]
pub(super) struct UnderWay(Rc<Cell<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Time for a handshake, and for the head of a request.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
pub(super) const HEAD: Duration = Duration::from_secs(10);
