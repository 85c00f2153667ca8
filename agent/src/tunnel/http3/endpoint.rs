//! The QUIC endpoint of one shard: it dials peers, and accepts theirs, with bounds before and after authentication.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::connect::{Request as Head, ResponseHead};
use mesh_core::h3::frame::Frame;
use mesh_core::h3::head::{decode_request, encode_response};
use mesh_core::h3::{H3Error, code};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::stream::{Sink, Source};
use super::{Connection, Datagrams, lost};
use crate::certs::Credentials;
use crate::config;
use crate::copy::{End, Sink as _, Source as _};
use crate::failure::Failure;
use crate::shared::Shared;
use crate::tls::{self, Alpn};
use crate::tunnel::Target;
use crate::tunnel::listen::{Guard, HANDSHAKE, HEAD, Handler, Request, UnderWay};
use crate::tunnel::stream::{Abort, AbortCode, StreamSink, StreamSource};

/// Cheap to clone; lives on one shard's thread.
#[derive(Clone, Debug)]
pub(in crate::tunnel) struct Endpoint {
    shared: Arc<Shared>,
    endpoint: quinn::Endpoint,
    transport: Arc<TransportConfig>,
}

impl Endpoint {
    /// Over a bound socket; must be called within a tokio runtime.
    pub(in crate::tunnel) fn new(shared: Arc<Shared>, socket: std::net::UdpSocket) -> std::io::Result<Self> {
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
        let transport = Arc::new(transport(&shared.config.tunnel));
        Ok(Self {
            shared,
            endpoint,
            transport,
        })
    }

    /// Closes every connection, and says so to the peers.
    pub(in crate::tunnel) fn close(&self) {
        let code = VarInt::from_u64(code::NO_ERROR).unwrap_or_default();
        self.endpoint.close(code, b"the agent is stopping");
    }

    /// Resolves when all connections are closed.
    pub(in crate::tunnel) async fn idle(&self) {
        self.endpoint.wait_idle().await;
    }

    /// A new connection to a peer.
    pub(in crate::tunnel) async fn connect(
        &self,
        credentials: &Credentials,
        target: &Target,
    ) -> Result<Rc<Connection>, Failure> {
        let tls = tls::client(
            credentials,
            target.identities.clone(),
            self.shared.revoked.clone(),
            Alpn::H3,
        );
        let tls = tls.map_err(|error| Failure::Tls(error.to_string()))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| Failure::Tls(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        // A dual-stack socket wants an IPv4 peer in its mapped form, which quinn makes itself.
        let connecting = self.endpoint.connect_with(config, target.peer, SERVER_NAME);
        let connecting = connecting.map_err(|error| Failure::Unreachable(error.to_string()))?;
        let quic = connecting.await.map_err(|error| match lost(&error) {
            Failure::TunnelLost(why) => Failure::Unreachable(format!("{}: {why}", target.peer)),
            failure => failure,
        })?;
        let connection = Connection::new(quic, &self.shared)?;
        tokio::task::spawn_local(connection.clone().attend(self.shared.revoked.clone(), None));
        tokio::task::spawn_local(connection.clone().doubt_when_bad(self.shared.clone(), target.peer));
        tokio::task::spawn_local(refuse_requests(connection.clone()));
        Ok(connection)
    }

    /// New handshakes are made with the current certificate; connections that are open are not touched.
    pub(in crate::tunnel) fn configure(&self) {
        let config = self
            .shared
            .credentials()
            .map(|credentials| self.server_config(&credentials))
            .transpose();
        match config {
            Ok(config) => self.endpoint.set_server_config(config),
            Err(error) => {
                tracing::error!(target: "mesh_agent::tunnel", %error, "the certificate cannot be served with")
            }
        }
    }

    /// What peers that dial us are served with, for these credentials.
    fn server_config(&self, credentials: &Credentials) -> anyhow::Result<quinn::ServerConfig> {
        let tls = tls::server(
            credentials,
            self.shared.trust_domains(),
            self.shared.revoked.clone(),
            Alpn::H3,
        )?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        config.transport_config(self.transport.clone());
        config.max_incoming(self.shared.config.tunnel.max_handshakes);
        Ok(config)
    }

    /// Accepts until the endpoint is closed.
    pub(in crate::tunnel) async fn accept(self, guard: Guard, serve: impl Handler) {
        while let Some(incoming) = self.endpoint.accept().await {
            self.admit(incoming, &guard, &serve);
        }
    }

    /// Above a quarter of the handshakes that may be under way, who does not answer at its address costs nothing (Retry,
    /// RFC 9000 8.1.2).
    fn admit(&self, incoming: Incoming, guard: &Guard, serve: &impl Handler) {
        if guard.under_way() >= self.shared.config.tunnel.max_handshakes / 4 && !incoming.remote_address_validated() {
            // It may be retried already; then it is refused.
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return;
        }
        match guard.admit() {
            Some(under_way) => {
                let handshake = self
                    .clone()
                    .handshake(incoming, under_way, guard.clone(), serve.clone());
                tokio::task::spawn_local(handshake);
            }
            None => incoming.refuse(),
        }
    }

    async fn handshake(self, incoming: Incoming, under_way: UnderWay, guard: Guard, serve: impl Handler) {
        let address = incoming.remote_address();
        let connected = async { incoming.await.map_err(|error| lost(&error)) };
        let connection = match tokio::time::timeout(HANDSHAKE, connected).await {
            Ok(Ok(quic)) => Connection::new(quic, &self.shared),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Timeout("the handshake took too long".into())),
        };
        drop(under_way);
        match connection {
            Ok(connection) => self.requests(connection, &guard, serve).await,
            Err(failure) => tracing::info!(target: "mesh_agent::tunnel", %address, %failure, "a peer was turned away"),
        }
    }

    /// One connection's requests, as many a second as the peer may make.
    async fn requests(self, connection: Rc<Connection>, guard: &Guard, serve: impl Handler) {
        let Some(allowance) = guard.enter(&connection.link.peer) else {
            return connection.close(H3Error::ExcessiveLoad.code(), b"too many tunnels of one peer");
        };
        let attend = connection
            .clone()
            .attend(self.shared.revoked.clone(), Some(guard.draining()));
        tokio::task::spawn_local(attend);
        while let Ok((send, recv)) = connection.quic.accept_bi().await {
            let id = recv.id();
            let abort = AbortCode::new();
            let sink = Sink::new(send, abort.clone(), connection.link.in_use());
            let source = Source::new(recv, abort.clone(), connection.link.in_use());
            connection.note_request(id);
            if !connection.takes_streams() || !allowance.takes(Instant::now()) {
                // Dropping resets; the peer may try again elsewhere.
                abort.set(Abort::Rejected);
                continue;
            }
            tokio::task::spawn_local(one_request(connection.clone(), source, sink, serve.clone()));
        }
    }
}

async fn one_request(connection: Rc<Connection>, source: Source, sink: Sink, serve: impl Handler) {
    match tokio::time::timeout(HEAD, read_head(&connection, source, sink)).await {
        Ok(Ok(request)) => serve.serve(request).await,
        Ok(Err(failure)) => {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %connection.link.peer.identity, %failure, "bad request")
        }
        Err(_) => {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %connection.link.peer.identity, "a request without a head")
        }
    }
}

async fn read_head(connection: &Rc<Connection>, mut source: Source, sink: Sink) -> Result<Request, Failure> {
    let broken = |error: H3Error| {
        if error.is_stream_error() {
            sink.abort_code().set(Abort::Protocol(error));
        } else {
            connection.fail(error);
        }
        Failure::Protocol(error.to_string())
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
    let peer = connection.link.peer.clone();
    let abort = sink.abort_code();
    let connection = connection.clone();
    let exchange = Exchange {
        connection,
        source,
        sink,
    };
    Ok(Request::new(head, peer, abort, exchange))
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(in crate::tunnel) struct Exchange {
    connection: Rc<Connection>,
    source: Source,
    sink: Sink,
}

impl Exchange {
    /// Answers 200.
    pub(in crate::tunnel) async fn accept(
        mut self,
        head: &ResponseHead,
    ) -> Result<End<StreamSource, StreamSink>, Failure> {
        self.sink.headers(&encode_response(head)).await?;
        Ok(End {
            source: self.source.into(),
            sink: self.sink.into(),
        })
    }

    /// Answers 200 to a CONNECT-UDP.
    pub(in crate::tunnel) async fn accept_udp(self, head: &ResponseHead) -> Result<Datagrams, Failure> {
        let head = ResponseHead {
            capsule_protocol: Some("?1".into()),
            ..head.clone()
        };
        let (source, mut sink) = self.connection.datagrams(self.source, self.sink);
        sink.stream().headers(&encode_response(&head)).await?;
        Ok(End { source, sink })
    }

    /// Answers anything else, and ends the stream.
    pub(in crate::tunnel) async fn reject(mut self, head: &ResponseHead) {
        if self.sink.headers(&encode_response(head)).await.is_ok() {
            let _ = self.sink.finish().await;
        }
        // The body of a refused request is not wanted (RFC 9114 4.1.1).
        self.sink.abort_code().set(Abort::Unwanted);
        self.source.stop();
    }
}

/// Only the client opens requests (RFC 9114 6.1).
async fn refuse_requests(connection: Rc<Connection>) {
    if connection.quic.accept_bi().await.is_ok() {
        connection.fail(H3Error::StreamCreation);
    }
}

fn transport(config: &config::Tunnel) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_PATH_PAYLOAD);
    let idle = IdleTimeout::from(VarInt::from_u32(config.idle_timeout_ms));
    transport
        .initial_mtu(1200)
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(config.stream_window.into())
        .receive_window(config.connection_window.into())
        .send_window(u64::from(config.connection_window))
        .max_concurrent_bidi_streams(config.max_streams.into())
        .max_concurrent_uni_streams(MAX_UNIDIRECTIONAL.into())
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(Duration::from_millis(config.keep_alive_ms.into())));
    transport
}

/// Not sent (no SNI) and not checked: identities are.
const SERVER_NAME: &str = "mesh";
/// UDP payload on an Ethernet path; more only where the path is known to carry it.
const MAX_PATH_PAYLOAD: u16 = 1452;
/// Control, two for QPACK, and some that are not known.
const MAX_UNIDIRECTIONAL: u32 = 8;
