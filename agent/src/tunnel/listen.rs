//! The listening side of HBONE/3: accepts connections, bounds what comes before and after authentication, and hands each
//! CONNECT on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_core::h3::frame::Frame;
use mesh_core::h3::head::{Request as Head, ResponseHead, decode_request, encode_response};
use mesh_core::h3::{H3Error, code};
use quinn::Incoming;

use super::connection::{Tunnel, lost};
use super::limits::Peers;
use super::quic::Quic;
use super::stream::{AbortCode, StreamSink, StreamSource};
use super::{ConnectHead, Peer};
use crate::copy::{End, Sink as _, Source as _};
use crate::failure::Failure;

/// One request of an authenticated peer, not answered yet.
#[derive(Debug)]
pub struct Request {
    /// `None` when it is not a CONNECT.
    pub head: Option<ConnectHead>,
    pub peer: Peer,
    source: StreamSource,
    sink: StreamSink,
}

impl Request {
    /// With which code the stream is torn down; to be set before it is dropped.
    pub fn abort_code(&self) -> AbortCode {
        self.sink.abort_code()
    }

    /// Answers 200 and gives the two directions.
    pub async fn accept(mut self, head: ResponseHead) -> Result<End<StreamSource, StreamSink>, Failure> {
        self.sink.headers(&encode_response(&head)).await?;
        Ok(End {
            source: self.source,
            sink: self.sink,
        })
    }

    /// Answers anything else, and ends the stream.
    pub async fn reject(mut self, head: ResponseHead) {
        if self.sink.headers(&encode_response(&head)).await.is_ok() {
            let _ = self.sink.finish().await;
        }
        // The body of a refused request is not wanted (RFC 9114 4.1.1).
        self.sink.abort_code().set(code::NO_ERROR);
        self.source.stop();
    }
}

/// Serves the endpoint until it is closed. `serve` is called for each request on this thread, and spawned.
pub async fn run<F: Future<Output = ()> + 'static>(quic: Quic, serve: impl Fn(Request) -> F + Clone + 'static) {
    let config = &quic.shared.config.tunnel;
    let guard = Guard {
        handshakes: Rc::default(),
        peers: Rc::new(Peers::new(config.max_tunnels_per_peer, config.max_connects_per_second)),
    };
    let mut credentials = quic.shared.credentials.clone();
    credentials.mark_changed();
    loop {
        tokio::select! {
            changed = credentials.changed() => match changed {
                Ok(()) => configure(&quic),
                Err(_) => return,
            },
            incoming = quic.endpoint.accept() => match incoming {
                Some(incoming) => admit(&quic, incoming, &guard, &serve),
                None => return,
            },
        }
    }
}

/// New handshakes are made with the current certificate; connections that are open are not touched.
fn configure(quic: &Quic) {
    let config = quic
        .shared
        .credentials()
        .map(|credentials| quic.server_config(&credentials))
        .transpose();
    match config {
        Ok(config) => quic.endpoint.set_server_config(config),
        Err(error) => tracing::error!(target: "mesh_agent::tunnel", %error, "the certificate cannot be served with"),
    }
}

/// What is counted over all connections.
#[derive(Clone)]
struct Guard {
    handshakes: Rc<Cell<usize>>,
    peers: Rc<Peers>,
}

/// Before authentication everything is bounded: handshakes under way, and above a quarter of that, who does not answer at
/// its address costs nothing (Retry, RFC 9000 8.1.2).
fn admit<F: Future<Output = ()> + 'static>(
    quic: &Quic,
    incoming: Incoming,
    guard: &Guard,
    serve: &(impl Fn(Request) -> F + Clone + 'static),
) {
    let most = quic.shared.config.tunnel.max_handshakes;
    let handshakes = &guard.handshakes;
    if handshakes.get() >= most || quic.is_draining() {
        return incoming.refuse();
    }
    if handshakes.get() >= most / 4 && !incoming.remote_address_validated() {
        // It may be retried already; then it is refused.
        if let Err(error) = incoming.retry() {
            error.into_incoming().refuse();
        }
        return;
    }
    handshakes.set(handshakes.get() + 1);
    let under_way = UnderWay(handshakes.clone());
    let peers = guard.peers.clone();
    tokio::task::spawn_local(handshake(quic.clone(), incoming, under_way, peers, serve.clone()));
}

/// Counts down when a handshake is over.
struct UnderWay(Rc<Cell<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn handshake<F: Future<Output = ()> + 'static>(
    quic: Quic,
    incoming: Incoming,
    under_way: UnderWay,
    peers: Rc<Peers>,
    serve: impl Fn(Request) -> F + Clone + 'static,
) {
    let address = incoming.remote_address();
    let connected = async { incoming.await.map_err(|error| lost(&error)) };
    let tunnel = match tokio::time::timeout(HANDSHAKE, connected).await {
        Ok(Ok(connection)) => {
            let expiry = quic.shared.credentials().map(|credentials| credentials.not_after);
            Tunnel::new(connection, expiry.unwrap_or(std::time::SystemTime::UNIX_EPOCH))
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::Timeout("the handshake took too long".into())),
    };
    drop(under_way);
    match tunnel {
        Ok(tunnel) => requests(quic, tunnel, &peers, serve).await,
        Err(failure) => tracing::info!(target: "mesh_agent::tunnel", %address, %failure, "a peer was turned away"),
    }
}

/// One connection's requests, as many a second as the peer may make.
async fn requests<F: Future<Output = ()> + 'static>(
    quic: Quic,
    tunnel: Rc<Tunnel>,
    peers: &Peers,
    serve: impl Fn(Request) -> F + Clone + 'static,
) {
    let Some(allowance) = peers.enter(tunnel.peer.spki_sha256, Instant::now()) else {
        tracing::info!(target: "mesh_agent::tunnel", peer = %tunnel.peer.identity, address = %tunnel.peer.address, "a peer has too many tunnels: one more was refused");
        return tunnel.close(H3Error::ExcessiveLoad.code(), b"too many tunnels of one peer");
    };
    tracing::debug!(target: "mesh_agent::tunnel", peer = %tunnel.peer.identity, address = %tunnel.peer.address, "tunnel accepted");
    let draining = Some(quic.draining());
    tokio::task::spawn_local(tunnel.clone().attend(quic.shared.world.clone(), draining));
    while let Ok((send, recv)) = tunnel.quic.accept_bi().await {
        let id = recv.id();
        let code = AbortCode::new();
        let sink = StreamSink::new(send, code.clone(), tunnel.in_use());
        let source = StreamSource::new(recv, code.clone(), tunnel.in_use());
        tunnel.note_request(id);
        if !tunnel.takes_streams() || !allowance.takes(Instant::now()) {
            // Dropping resets; the peer may try again elsewhere.
            code.set(code::REQUEST_REJECTED);
            continue;
        }
        tokio::task::spawn_local(one_request(tunnel.clone(), source, sink, serve.clone()));
    }
}

async fn one_request<F: Future<Output = ()>>(
    tunnel: Rc<Tunnel>,
    source: StreamSource,
    sink: StreamSink,
    serve: impl Fn(Request) -> F,
) {
    match tokio::time::timeout(HEAD, read_head(&tunnel, source, sink)).await {
        Ok(Ok(request)) => serve(request).await,
        Ok(Err(failure)) => {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %tunnel.peer.identity, %failure, "bad request")
        }
        Err(_) => {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %tunnel.peer.identity, "a request without a head")
        }
    }
}

async fn read_head(tunnel: &Tunnel, mut source: StreamSource, sink: StreamSink) -> Result<Request, Failure> {
    let broken = |error: H3Error| {
        if error.is_stream_error() {
            sink.abort_code().set(error.code());
        } else {
            tunnel.fail(error);
        }
        Failure::TunnelLost(format!("the peer broke the protocol: {error}"))
    };
    let section = match source.frame().await? {
        Some(Frame::Headers(section)) => section,
        Some(_) => return Err(broken(H3Error::FrameUnexpected)),
        None => return Err(broken(H3Error::Message)),
    };
    let head = match decode_request(&section).map_err(broken)? {
        Head::Connect(head) => Some(head),
        Head::Other => None,
    };
    Ok(Request {
        head,
        peer: tunnel.peer.clone(),
        source,
        sink,
    })
}

/// Time for a handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(10);
