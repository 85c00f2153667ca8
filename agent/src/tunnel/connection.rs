//! What both sides of an HTTP/3 connection have in common: the control streams, the verified peer, and when to close.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::h3::frame::{Decoder, Frame, Stream, control_preface, goaway};
use mesh_core::h3::{H3Error, code, read_varint, stream_type};
use quinn::{ConnectionError, RecvStream, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::Peer;
use crate::failure::Failure;
use crate::tls::{PeerCertificate, WorldWatch};

/// A live connection with a peer whose certificate was verified.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) quic: quinn::Connection,
    pub(super) peer: Peer,
    /// When the first of the two certificates expires.
    expires: SystemTime,
    /// The peer said that it takes no new streams, or we did.
    going_away: Cell<bool>,
    /// The lowest request that has not come yet.
    next_request: Cell<u64>,
    /// For as long as a stream lives, it holds one of these.
    in_use: Rc<Use>,
    last_used: Cell<Instant>,
}

/// Held by each stream of a tunnel.
#[derive(Debug)]
pub(super) struct Use;

impl Tunnel {
    /// Reads who the peer is; rustls has verified the chain.
    pub(super) fn new(quic: quinn::Connection, own_expiry: SystemTime) -> Result<Rc<Self>, Failure> {
        let unnamed = || Failure::Tls("the peer showed no certificate with an identity".into());
        let chain = quic
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let leaf = chain.as_ref().and_then(|chain| chain.first()).ok_or_else(unnamed)?;
        let certificate = PeerCertificate::parse(leaf).ok_or_else(unnamed)?;
        let identity = certificate.identity().cloned().ok_or_else(unnamed)?;
        let peer = Peer {
            identity,
            address: canonical(quic.remote_address()),
            serial: certificate.serial,
            spki_sha256: certificate.spki_sha256,
        };
        let expires = certificate.not_after.min(own_expiry);
        Ok(Rc::new(Self {
            quic,
            peer,
            expires,
            going_away: Cell::new(false),
            next_request: Cell::new(0),
            in_use: Rc::new(Use),
            last_used: Cell::new(Instant::now()),
        }))
    }

    /// Whether a new stream may be opened or taken.
    pub(super) fn takes_streams(&self) -> bool {
        !self.going_away.get() && SystemTime::now() < self.expires && self.quic.close_reason().is_none()
    }

    /// A request came. They come in the order of their ids, which are four apart (RFC 9000 2.1).
    pub(super) fn note_request(&self, id: quinn::StreamId) {
        self.next_request.set(VarInt::from(id).into_inner() + 4);
    }

    /// To be held by a new stream.
    pub(super) fn in_use(&self) -> Rc<Use> {
        self.last_used.set(Instant::now());
        self.in_use.clone()
    }

    fn streams(&self) -> usize {
        // Each stream has two halves.
        (Rc::strong_count(&self.in_use) - 1) / 2
    }

    /// Serves what is not a request, until the connection ends: control streams, revocation, idleness; and, for a tunnel
    /// that we accepted, GOAWAY once `draining` turns true.
    pub(super) async fn attend(self: Rc<Self>, mut world: WorldWatch, mut draining: Option<watch::Receiver<bool>>) {
        // Closing a control stream is a connection error, so it is held to the end.
        let mut control = tokio::select! {
            opened = self.open_control() => opened,
            _ = self.quic.closed() => return,
        };
        let mut check = tokio::time::interval(CHECK);
        self.close_if_revoked(&world);
        loop {
            tokio::select! {
                _ = self.quic.closed() => return,
                stream = self.quic.accept_uni() => match stream {
                    Ok(stream) => drop(tokio::task::spawn_local(self.clone().unidirectional(stream))),
                    Err(_) => return,
                },
                changed = world.changed() => match changed {
                    Ok(()) => self.close_if_revoked(&world),
                    Err(_) => return self.close(code::NO_ERROR, b"stopping"),
                },
                _ = check.tick() => self.close_if_idle(),
                () = drained(draining.as_mut()) => {
                    draining = None;
                    if let Ok(control) = &mut control {
                        self.go_away(control).await;
                    }
                }
            }
        }
    }

    async fn open_control(&self) -> Result<quinn::SendStream, Failure> {
        let mut stream = self.quic.open_uni().await.map_err(|error| lost(&error))?;
        stream
            .write_all(&control_preface())
            .await
            .map_err(super::stream::write_failure)?;
        Ok(stream)
    }

    /// What is served goes on; what comes from now on is rejected, and may be tried elsewhere (RFC 9114 5.2).
    async fn go_away(&self, control: &mut quinn::SendStream) {
        self.going_away.set(true);
        if let Err(error) = control.write_all(&goaway(self.next_request.get())).await {
            tracing::debug!(target: "mesh_agent::tunnel", peer = %self.peer.identity, %error, "GOAWAY was not sent");
        }
    }

    fn close_if_revoked(&self, world: &WorldWatch) {
        if world.borrow().is_revoked(&self.peer.serial, &self.peer.spki_sha256) {
            tracing::warn!(target: "mesh_agent::tunnel", peer = %self.peer.identity, "certificate revoked: tunnel closed");
            self.close(code::REQUEST_REJECTED, REVOKED);
        }
    }

    fn close_if_idle(&self) {
        if self.streams() > 0 {
            self.last_used.set(Instant::now());
        } else if self.last_used.get().elapsed() > IDLE {
            self.close(code::NO_ERROR, b"idle");
        }
    }

    pub(super) fn close(&self, code: u64, reason: &[u8]) {
        self.quic.close(VarInt::from_u64(code).unwrap_or_default(), reason);
    }

    pub(super) fn fail(&self, error: H3Error) {
        tracing::debug!(target: "mesh_agent::tunnel", peer = %self.peer.identity, %error, "the peer broke the protocol");
        self.close(error.code(), error.to_string().as_bytes());
    }

    /// A stream of the peer's: its control stream, QPACK's (which stay empty), or one that is not known.
    async fn unidirectional(self: Rc<Self>, mut stream: RecvStream) {
        let mut kind = Vec::new();
        let kind = loop {
            if let Some((kind, _)) = read_varint(&kind) {
                break kind;
            }
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(Some(_)) => kind.push(byte[0]),
                Ok(None) | Err(_) => return,
            }
        };
        let ended = match kind {
            stream_type::CONTROL => self.control(stream).await,
            stream_type::QPACK_ENCODER | stream_type::QPACK_DECODER => swallow(stream).await,
            // We never allow pushes.
            stream_type::PUSH => Err(H3Error::Id),
            _ => {
                let _ = stream.stop(VarInt::from_u32(0x103));
                return;
            }
        };
        if self.quic.close_reason().is_none() {
            self.fail(ended.err().unwrap_or(H3Error::ClosedCriticalStream));
        }
    }

    async fn control(&self, mut stream: RecvStream) -> Result<(), H3Error> {
        let mut decoder = Decoder::new(Stream::Control);
        while let Ok(Some(chunk)) = stream.read_chunk(CONTROL_CHUNK, true).await {
            let mut bytes = chunk.bytes;
            while let Some(frame) = decoder.next(&mut bytes)? {
                if let Frame::GoAway(_) = frame {
                    self.going_away.set(true);
                }
            }
        }
        Ok(())
    }
}

/// Resolves once the agent drains; never without such a watch.
async fn drained(draining: Option<&mut watch::Receiver<bool>>) {
    let told = match draining {
        Some(draining) => draining.wait_for(|draining| *draining).await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

/// With the dynamic table off nothing but settings-neutral instructions may come; they are few.
async fn swallow(mut stream: RecvStream) -> Result<(), H3Error> {
    let mut seen = 0;
    while let Ok(Some(chunk)) = stream.read_chunk(CONTROL_CHUNK, true).await {
        seen += chunk.bytes.len();
        if seen > MAX_QPACK {
            return Err(H3Error::ExcessiveLoad);
        }
    }
    Ok(())
}

/// Why a connection ended, in our terms.
pub(super) fn lost(error: &ConnectionError) -> Failure {
    match error {
        ConnectionError::ApplicationClosed(closed) if closed.reason.as_ref() == REVOKED => Failure::Revoked,
        ConnectionError::TimedOut => Failure::TunnelLost("the peer does not answer any more".into()),
        ConnectionError::TransportError(error) if is_tls(error.code) => Failure::Tls(error.to_string()),
        ConnectionError::ConnectionClosed(closed) if is_tls(closed.error_code) => Failure::Tls(closed.to_string()),
        ConnectionError::LocallyClosed => Failure::TunnelLost("the tunnel was closed here".into()),
        other => Failure::TunnelLost(other.to_string()),
    }
}

/// CRYPTO_ERROR codes are 0x100 to 0x1ff (RFC 9001 4.8).
fn is_tls(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// An IPv4 peer on a dual-stack socket as what it is.
pub(super) fn canonical(address: std::net::SocketAddr) -> std::net::SocketAddr {
    std::net::SocketAddr::new(address.ip().to_canonical(), address.port())
}

const REVOKED: &[u8] = b"certificate revoked";
const CONTROL_CHUNK: usize = 1024;
const MAX_QPACK: usize = 1024;
/// How often idleness is looked at.
const CHECK: Duration = Duration::from_secs(30);
/// A tunnel without a stream is closed after this long, as ztunnel does.
const IDLE: Duration = Duration::from_secs(300);
