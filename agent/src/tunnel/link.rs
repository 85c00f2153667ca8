//! What every tunnel has, whatever carries it: a verified peer, a time when its certificates end, and streams that use it.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::Peer;
use crate::failure::Failure;
use crate::flows::Transport;
use crate::tls::{PeerCertificate, Revoked};

/// See the module. Lives on one shard's thread.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: Peer,
    /// When the first of the two certificates expires.
    expires: SystemTime,
    /// The peer said that it takes no new streams, or we did.
    going_away: Cell<bool>,
    /// For as long as a stream lives, each of its halves holds one of these.
    in_use: Rc<Use>,
    last_used: Cell<Instant>,
}

/// Held by each half of a stream.
#[derive(Debug)]
pub(super) struct Use;

impl Link {
    /// Reads who the peer is; rustls has verified the chain.
    pub(super) fn new(
        chain: Option<&[CertificateDer<'_>]>,
        address: SocketAddr,
        transport: Transport,
        own_expiry: Option<SystemTime>,
    ) -> Result<Self, Failure> {
        let unnamed = || Failure::Tls("the peer showed no certificate with an identity".into());
        let (leaf, others) = chain.and_then(|chain| chain.split_first()).ok_or_else(unnamed)?;
        let certificate = PeerCertificate::parse_chain(leaf, others).ok_or_else(unnamed)?;
        let expires = certificate.not_after.min(own_expiry.unwrap_or(SystemTime::UNIX_EPOCH));
        let peer = Peer {
            identity: certificate.identity().cloned().ok_or_else(unnamed)?,
            // An IPv4 peer on a dual-stack socket as what it is.
            address: SocketAddr::new(address.ip().to_canonical(), address.port()),
            certificate: Arc::new(certificate),
            transport,
            reached: None,
        };
        tracing::debug!(target: "mesh_agent::tunnel", peer = %peer.identity, address = %peer.address, transport = transport.name(), "tunnel open");
        Ok(Self {
            peer,
            expires,
            going_away: Cell::new(false),
            in_use: Rc::new(Use),
            last_used: Cell::new(Instant::now()),
        })
    }

    /// With our own address that the peer dialled.
    pub(super) fn reached_at(mut self, address: Option<IpAddr>) -> Self {
        self.peer.reached = address.map(|address| address.to_canonical());
        self
    }

    /// Whether a new stream may be opened or taken.
    pub(super) fn takes_streams(&self) -> bool {
        !self.going_away.get() && SystemTime::now() < self.expires
    }

    /// From now on no new streams; those that live go on.
    pub(super) fn go_away(&self) {
        self.going_away.set(true);
    }

    /// To be held by one half of a new stream.
    pub(super) fn in_use(&self) -> Rc<Use> {
        self.last_used.set(Instant::now());
        self.in_use.clone()
    }

    pub(super) fn streams(&self) -> usize {
        // Each stream has two halves.
        (Rc::strong_count(&self.in_use) - 1) / 2
    }

    /// Whether the peer's certificate was revoked; says so once it is.
    pub(super) fn is_revoked(&self, revoked: &Revoked) -> bool {
        let by = revoked.by(&self.peer.certificate);
        if let Some(by) = by {
            tracing::warn!(target: "mesh_agent::tunnel", peer = %self.peer.identity, ?by, "certificate revoked: tunnel closed");
        }
        by.is_some()
    }

    /// Whether nothing used it for so long that it may be closed.
    pub(super) fn is_idle(&self) -> bool {
        if self.streams() > 0 {
            self.last_used.set(Instant::now());
        }
        self.last_used.get().elapsed() > IDLE
    }
}

/// Resolves once the agent drains; never without such a watch, or when it is gone.
pub(super) async fn drained(draining: Option<&mut watch::Receiver<bool>>) {
    let told = match draining {
        Some(draining) => draining.wait_for(|draining| *draining).await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

/// How often idleness is looked at.
pub(super) const CHECK: Duration = Duration::from_secs(30);
/// A tunnel without a stream is closed after this long, as ztunnel does.
const IDLE: Duration = Duration::from_secs(300);
