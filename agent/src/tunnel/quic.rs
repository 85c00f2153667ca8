//! HBONE/3: CONNECT over HTTP/3 over QUIC. The endpoint of one shard, for dialling and for listening.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::h3::frame::Frame;
use mesh_core::h3::head::{decode_response, encode_request};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use tokio::sync::watch;

use super::connection::{Tunnel, lost};
use super::pool::Pool;
use super::stream::{AbortCode, StreamSink, StreamSource};
use super::{ConnectHead, Dial, Peer, Target};
use crate::certs::Credentials;
use crate::config;
use crate::copy::End;
use crate::failure::Failure;
use crate::shared::Shared;
use crate::{socket, tls};

/// Dials HBONE/3. Cheap to clone; lives on one shard's thread.
#[derive(Clone, Debug)]
pub struct Quic {
    pub(super) shared: Arc<Shared>,
    pub(super) endpoint: quinn::Endpoint,
    transport: Arc<TransportConfig>,
    pool: Pool,
    draining: watch::Sender<bool>,
}

impl Quic {
    /// Binds the tunnel port; must be called within a tokio runtime.
    pub fn bind(shared: Arc<Shared>) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let config = &shared.config.tunnel;
        let socket = socket::udp(config.listen, shared.config.capture.mark)
            .with_context(|| format!("binding UDP {} for tunnels; is another agent running?", config.listen))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
        let transport = Arc::new(transport(config));
        Ok(Self {
            shared,
            endpoint,
            transport,
            pool: Pool::default(),
            draining: watch::Sender::new(false),
        })
    }

    /// What peers that dial us are served with, for these credentials.
    pub(super) fn server_config(&self, credentials: &Credentials) -> anyhow::Result<quinn::ServerConfig> {
        let own = self.shared.membership.trust_domain.clone();
        let domains = std::iter::once(own).chain(self.shared.config.tunnel.trust_domain_aliases.iter().cloned());
        let tls = tls::server(credentials, domains.collect(), self.shared.world.clone())?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        config.transport_config(self.transport.clone());
        config.max_incoming(self.shared.config.tunnel.max_handshakes);
        Ok(config)
    }

    /// Pooled connections that take streams.
    pub fn tunnels(&self) -> usize {
        self.pool.len()
    }

    /// Where tunnels are accepted.
    pub fn local_address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Peers are told to go elsewhere with new flows (GOAWAY), new tunnels of theirs are refused; what lives goes on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Closes every tunnel, and says so to the peers.
    pub fn close(&self) {
        let code = VarInt::from_u64(mesh_core::h3::code::NO_ERROR).unwrap_or_default();
        self.endpoint.close(code, b"the agent is stopping");
    }

    /// Resolves when all tunnels are closed.
    pub async fn idle(&self) {
        self.endpoint.wait_idle().await;
    }

    async fn connect(&self, credentials: &Credentials, target: &Target) -> Result<Rc<Tunnel>, Failure> {
        let tls = tls::client(credentials, target.identities.clone(), self.shared.world.clone());
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
        let tunnel = Tunnel::new(quic, credentials.not_after)?;
        tracing::debug!(target: "mesh_agent::tunnel", peer = %tunnel.peer.identity, address = %tunnel.peer.address, "tunnel open");
        tokio::task::spawn_local(tunnel.clone().attend(self.shared.world.clone(), None));
        tokio::task::spawn_local(refuse_requests(tunnel.clone()));
        Ok(tunnel)
    }

    async fn tunnel(&self, target: &Target) -> Result<Rc<Tunnel>, Failure> {
        let credentials = self.shared.credentials().ok_or(Failure::NoCertificate)?;
        self.pool
            .get(&credentials.identity, target, async || {
                self.connect(&credentials, target).await
            })
            .await
    }
}

/// Only the client opens requests (RFC 9114 6.1).
async fn refuse_requests(tunnel: Rc<Tunnel>) {
    if tunnel.quic.accept_bi().await.is_ok() {
        tunnel.fail(mesh_core::h3::H3Error::StreamCreation);
    }
}

impl Dial for Quic {
    type Source = StreamSource;
    type Sink = StreamSink;

    async fn dial(
        &self,
        target: &Target,
        head: &ConnectHead,
    ) -> Result<(End<StreamSource, StreamSink>, Peer), Failure> {
        let mut tunnel = self.tunnel(target).await?;
        // A pooled connection may turn out dead; nothing was sent on it for this flow, so one more is tried.
        let opened = match tunnel.quic.open_bi().await {
            Ok(opened) => Ok(opened),
            Err(_) => {
                tunnel = self.tunnel(target).await?;
                tunnel.quic.open_bi().await
            }
        };
        let (send, recv) = opened.map_err(|error| lost(&error))?;
        let code = AbortCode::new();
        let mut sink = StreamSink::new(send, code.clone(), tunnel.in_use());
        let mut source = StreamSource::new(recv, code, tunnel.in_use());
        sink.headers(&encode_request(head)).await?;
        response(&mut source).await?;
        Ok((End { source, sink }, tunnel.peer.clone()))
    }
}

/// Waits for the final response; interim ones are passed over.
async fn response(source: &mut StreamSource) -> Result<(), Failure> {
    let broken = |what: &str| Failure::TunnelLost(format!("the peer broke the protocol: {what}"));
    for _ in 0..MAX_INTERIM {
        let Some(Frame::Headers(section)) = source.frame().await? else {
            return Err(broken("no response"));
        };
        let head = decode_response(&section).map_err(|error| broken(&error.to_string()))?;
        match head.status {
            100..200 => {}
            200..300 => return Ok(()),
            status => {
                return Err(Failure::Status {
                    status,
                    reason: head.policy.or(head.reason),
                });
            }
        }
    }
    Err(broken("too many interim responses"))
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
const MAX_INTERIM: usize = 8;
