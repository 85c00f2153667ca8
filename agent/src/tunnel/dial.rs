//! Dialling: which transport, a pooled connection or a new one, and another way when the first does not answer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_core::connect::{ConnectHead, ResponseHead};
use mesh_core::outbound::Quic;
use mesh_core::transport::{HEAD_START, Plan, Preference, Why};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::pool::{Pool, Slot};
use super::stream::{StreamSink, StreamSource};
use super::{Datagrams, Peer, Target, http2, http3};
use crate::certs::Credentials;
use crate::copy::End;
use crate::failure::Failure;
use crate::shared::Shared;
use crate::socket;

/// The tunnels of one shard. Cheap to clone; lives on the shard's thread.
#[derive(Clone, Debug)]
pub struct Tunnels(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    http3: http3::Endpoint,
    /// Until the listening side takes it.
    listener: RefCell<Option<TcpListener>>,
    address: std::net::SocketAddr,
    pool: Pool,
    draining: watch::Sender<bool>,
}

/// An open stream, and who is at its other end.
pub type Opened = (End<StreamSource, StreamSink>, Peer);

impl Tunnels {
    /// Binds the tunnel port, TCP and UDP; must be called within a tokio runtime.
    pub fn bind(shared: Arc<Shared>) -> anyhow::Result<Self> {
        let (listen, mark) = (shared.config.tunnel.listen, shared.config.capture.mark);
        let listener = socket::listen(listen, mark)
            .with_context(|| format!("binding TCP {listen} for tunnels; is another agent or proxy running?"))?;
        // The same port for both, also where any will do.
        let address = std::net::SocketAddr::new(listen.ip(), listener.local_addr()?.port());
        let socket = socket::udp(address, mark)
            .with_context(|| format!("binding UDP {address} for tunnels; is another agent running?"))?;
        Ok(Self(Rc::new(Inner {
            http3: http3::Endpoint::new(shared.clone(), socket)?,
            shared,
            listener: RefCell::new(Some(listener)),
            address,
            pool: Pool::default(),
            draining: watch::Sender::new(false),
        })))
    }

    /// Where tunnels are accepted.
    pub fn local_address(&self) -> std::net::SocketAddr {
        self.0.address
    }

    /// Peers are told to go elsewhere with new flows (GOAWAY), new tunnels of theirs are refused; what lives goes on.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Closes every tunnel, and says so to the peers.
    pub fn close(&self) {
        self.0.http3.close();
    }

    /// Resolves when all QUIC tunnels are closed.
    pub async fn idle(&self) {
        self.0.http3.idle().await;
    }

    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.0.draining.subscribe()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(super) fn http3(&self) -> &http3::Endpoint {
        &self.0.http3
    }

    pub(super) fn take_listener(&self) -> Option<TcpListener> {
        self.0.listener.take()
    }

    /// Opens a stream: a tunnel if there is none, the CONNECT, and its 200.
    pub async fn dial(&self, target: &Target, head: &ConnectHead) -> Result<Opened, Failure> {
        let attempt = self.attempt(target)?;
        let plan = self.shared().transports.plan(target.peer, target.quic);
        match plan {
            Plan::OnlyQuic => attempt.over_http3(head).await,
            Plan::Tcp { probe } => {
                if probe {
                    tokio::task::spawn_local(attempt.clone().http3());
                }
                attempt.over_http2(head).await
            }
            Plan::Quic => attempt.either(head).await,
        }
    }

    /// Opens a CONNECT-UDP; `None` when the peer takes none, as is true of Istio's own proxies. A peer that is known to have QUIC is
    /// never taken for one of those: who keeps QUIC from us must not make us send in plain.
    pub async fn dial_udp(&self, target: &Target, head: &ConnectHead) -> Result<Option<(Datagrams, Peer)>, Failure> {
        let transports = &self.shared().transports;
        let has_quic = target.quic == Quic::Marked || transports.has_quic(target.peer);
        if self.shared().config.tunnel.transport == Preference::Tcp {
            let why = "UDP goes over QUIC, which tunnel.transport = \"tcp\" forbids";
            return has_quic.then(|| Err(Failure::Unreachable(why.into()))).transpose();
        }
        let plan = transports.plan(target.peer, target.quic);
        if !has_quic && plan == (Plan::Tcp { probe: false }) {
            return Ok(None);
        }
        let attempt = Attempt {
            // UDP has no other way. That one flow tries it says nothing of those that have.
            reports: plan != (Plan::Tcp { probe: false }),
            ..self.attempt(target)?
        };
        match attempt.http3().await {
            Ok(connection) => {
                let opened = connection.open_udp(head).await?;
                Ok(opened.map(|end| (end, connection.link.peer.clone())))
            }
            Err(failure) if !has_quic && is_transport(&failure) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// A tunnel inside a stream, to whoever is at its far end: the inner half of a way through a gateway. Never pooled, or all
    /// streams would go to the one peer that the gateway chose for the first.
    pub async fn dial_inside(&self, outer: Opened, target: &Target, head: &ConnectHead) -> Result<Opened, Failure> {
        let credentials = self.shared().credentials().ok_or(Failure::NoCertificate)?;
        let (end, gateway) = outer;
        let stream = crate::copy::pipe(end);
        let transport = crate::flows::Transport::DoubleHbone;
        let client = http2::Client::over(
            self.shared(),
            &credentials,
            target,
            stream,
            transport,
            http2::MAX_STREAMS,
        )
        .await?;
        let opened = client.open(head).await;
        client.finish();
        let (end, _) = opened?;
        let peer = Peer {
            address: gateway.address,
            ..client.link.peer.clone()
        };
        Ok((end, peer))
    }

    fn attempt(&self, target: &Target) -> Result<Attempt, Failure> {
        let credentials = self.shared().credentials().ok_or(Failure::NoCertificate)?;
        Ok(Attempt {
            tunnels: self.clone(),
            slot: self.0.pool.slot(&credentials.identity, target),
            credentials,
            target: target.clone(),
            planned: self.shared().transports.now(),
            reports: true,
        })
    }
}

/// Whether another transport may do better: not when the peer was reached and said no.
fn is_transport(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Unreachable(_) | Failure::TunnelTimeout(_) | Failure::TunnelLost(_) | Failure::Protocol(_)
    )
}

/// Whether the peer did not look at the request: its connection ended before, or it had no room (RFC 9113 8.7).
fn was_not_served(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::TunnelLost(_) | Failure::PeerReset(http2::REFUSED_STREAM)
    )
}

/// Who was connected first.
enum First {
    Http3(Rc<http3::Connection>),
    Http2(Rc<http2::Client>),
}

/// One stream to be opened to one peer.
#[derive(Clone)]
struct Attempt {
    tunnels: Tunnels,
    slot: Rc<Slot>,
    credentials: Arc<Credentials>,
    target: Target,
    planned: Duration,
    /// Whether it is remembered how QUIC went.
    reports: bool,
}

impl Attempt {
    /// Over QUIC, and over TCP where that does not work.
    async fn either(&self, head: &ConnectHead) -> Result<Opened, Failure> {
        let opened = match self.slot.http3.live() {
            Some(connection) => self.open_http3(connection, head).await,
            None => match self.race().await? {
                First::Http3(connection) => self.open_http3(connection, head).await,
                First::Http2(client) => return self.open_http2(client, head).await,
            },
        };
        match opened {
            Err(failure) if is_transport(&failure) => self.over_http2(head).await,
            done => done,
        }
    }

    /// QUIC has a head start; after that the first to be connected gets the stream, and the other stays for the next.
    async fn race(&self) -> Result<First, Failure> {
        let mut quic: JoinHandle<_> = tokio::task::spawn_local(self.clone().http3());
        let tcp = async {
            tokio::time::sleep(HEAD_START).await;
            self.http2().await
        };
        tokio::pin!(tcp);
        tokio::select! {
            joined = &mut quic => match joined.unwrap_or(Err(Failure::Stopping)) {
                Ok(connection) => Ok(First::Http3(connection)),
                // No head start for who has given up.
                Err(failure) if is_transport(&failure) => self.http2().await.map(First::Http2),
                Err(failure) => Err(failure),
            },
            client = &mut tcp => match client {
                Ok(client) => Ok(First::Http2(client)),
                // Nobody serves TCP there: QUIC is all that is left.
                Err(failure) => match quic.await {
                    Ok(Ok(connection)) => Ok(First::Http3(connection)),
                    _ => Err(failure),
                },
            },
        }
    }

    async fn over_http3(&self, head: &ConnectHead) -> Result<Opened, Failure> {
        let connection = self.clone().http3().await?;
        self.open_http3(connection, head).await
    }

    async fn open_http3(&self, connection: Rc<http3::Connection>, head: &ConnectHead) -> Result<Opened, Failure> {
        let (end, _) = connection.open(head).await?;
        Ok((end, connection.link.peer.clone()))
    }

    async fn over_http2(&self, head: &ConnectHead) -> Result<Opened, Failure> {
        let client = self.http2().await?;
        self.open_http2(client, head).await
    }

    async fn open_http2(&self, mut client: Rc<http2::Client>, head: &ConnectHead) -> Result<Opened, Failure> {
        let mut opened = client.open(head).await;
        if opened.as_ref().is_err_and(was_not_served) && !client.takes_streams() {
            // A pooled connection turned out to end, or a new one to take less than was thought: one more is tried.
            if let Err(Failure::PeerReset(_)) = opened {
                self.slot.offered.set(Some(client.offered().max(1)));
            }
            client = self.http2().await?;
            opened = client.open(head).await;
        }
        let (end, response) = opened?;
        self.note_offer(&response);
        Ok((end, client.link.peer.clone()))
    }

    fn note_offer(&self, response: &ResponseHead) {
        let peer = self.target.peer;
        if response.offers_http3(peer.port()) {
            self.tunnels.shared().transports.offered(peer);
        }
    }

    async fn http2(&self) -> Result<Rc<http2::Client>, Failure> {
        let connect = async || {
            let offered = self.slot.offered.get().unwrap_or(http2::MAX_STREAMS);
            http2::Client::connect(self.tunnels.shared(), &self.credentials, &self.target, offered).await
        };
        self.slot.http2.get(connect).await
    }

    /// The QUIC connection to the peer. Whether it could be had is remembered.
    async fn http3(self) -> Result<Rc<http3::Connection>, Failure> {
        let peer = self.target.peer;
        let connect = async || {
            // Another attempt may have failed while this one waited its turn.
            if !self.tunnels.shared().transports.may_try_quic(peer, self.planned) {
                return Err(Failure::Unreachable(format!("{peer}: QUIC did not work a moment ago")));
            }
            let connecting = self.tunnels.0.http3.connect(&self.credentials, &self.target);
            let connected = tokio::time::timeout(QUIC_CONNECT, connecting).await;
            match connected.unwrap_or_else(|_| Err(Failure::TunnelTimeout(no_answer(peer)))) {
                Ok(connection) => {
                    if self.reports {
                        self.tunnels.shared().transports.worked(peer);
                    }
                    Ok(connection)
                }
                Err(failure) => {
                    let why = match failure {
                        Failure::TunnelTimeout(_) => Why::NoAnswer,
                        _ => Why::Refused,
                    };
                    if self.reports {
                        self.tunnels.shared().transports.failed(peer, why);
                    }
                    Err(failure)
                }
            }
        };
        self.slot.http3.get(connect).await
    }
}

fn no_answer(peer: std::net::SocketAddr) -> String {
    format!(
        "{peer} did not answer over QUIC; is UDP port {} open to it?",
        peer.port()
    )
}

/// How long QUIC may take to connect.
const QUIC_CONNECT: Duration = Duration::from_secs(3);
