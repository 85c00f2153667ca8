//! HBONE/3: CONNECT over HTTP/3 over QUIC. One connection: its streams, its liveness, and when it is closed.

mod control;
mod datagrams;
mod endpoint;
mod stream;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::connect::{ConnectHead, ResponseHead};
use mesh_core::h3::frame::{Frame, Settings};
use mesh_core::h3::head::{decode_response, encode_request};
use mesh_core::h3::{H3Error, code};
use mesh_core::transport::{Losses, Why};
use quinn::{ConnectionError, VarInt};
use rustc_hash::FxHashMap;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::link::{CHECK, Link, drained};
use super::stream::{AbortCode, StreamSink, StreamSource};
use crate::copy::End;
use crate::failure::Failure;
use crate::flows::Transport;
use crate::shared::Shared;
use crate::tls::Revoked;
use datagrams::Inbox;
pub use datagrams::{DatagramSink, DatagramSource};
pub(super) use endpoint::{Endpoint, Exchange};
pub(super) use stream::{Sink, Source};

/// A live connection with a peer whose certificate was verified.
#[derive(Debug)]
pub(super) struct Connection {
    quic: quinn::Connection,
    pub(super) link: Link,
    /// The lowest request that has not come yet.
    next_request: Cell<u64>,
    /// Set when the peer stopped answering, or too much is lost: nothing new is to wait for it.
    doubtful: watch::Sender<bool>,
    /// The peer says that too much is lost of what it sends.
    peer_loses: Cell<bool>,
    /// What the peer said of itself, once it did.
    settings: watch::Sender<Option<Settings>>,
    /// Where the datagrams of each request go, by the number of its stream.
    inboxes: RefCell<FxHashMap<u64, Rc<Inbox>>>,
}

/// The two directions of a CONNECT-UDP.
pub type Datagrams = End<DatagramSource, DatagramSink>;

impl Connection {
    fn new(quic: quinn::Connection, shared: &Shared) -> Result<Rc<Self>, Failure> {
        let chain = quic
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let chain = chain.as_deref().map(Vec::as_slice);
        let expiry = shared.credentials().map(|credentials| credentials.not_after);
        Ok(Rc::new(Self {
            link: Link::new(chain, quic.remote_address(), Transport::Hbone3, expiry)?.reached_at(quic.local_ip()),
            quic,
            next_request: Cell::new(0),
            doubtful: watch::Sender::new(false),
            peer_loses: Cell::new(false),
            settings: watch::Sender::new(None),
            inboxes: RefCell::default(),
        }))
    }

    /// Whether a new stream may be opened or taken.
    pub(super) fn takes_streams(&self) -> bool {
        self.link.takes_streams() && self.quic.close_reason().is_none()
    }

    /// Opens a stream, sends the CONNECT and waits for its 200. Gives up when the connection is in doubt.
    pub(super) async fn open(
        &self,
        head: &ConnectHead,
    ) -> Result<(End<StreamSource, StreamSink>, ResponseHead), Failure> {
        self.unless_doubtful(self.exchange(head)).await
    }

    /// Opens a CONNECT-UDP likewise; `None` when the peer takes none.
    pub(super) async fn open_udp(self: &Rc<Self>, head: &ConnectHead) -> Result<Option<Datagrams>, Failure> {
        self.unless_doubtful(self.exchange_udp(head)).await
    }

    async fn unless_doubtful<T>(&self, opening: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut doubtful = self.doubtful.subscribe();
        tokio::select! {
            biased;
            opened = opening => opened,
            _ = doubtful.wait_for(|doubtful| *doubtful) => Err(Failure::TunnelLost("QUIC stopped answering".into())),
        }
    }

    async fn exchange_udp(self: &Rc<Self>, head: &ConnectHead) -> Result<Option<Datagrams>, Failure> {
        let mut settings = self.settings.subscribe();
        // Not before the peer's SETTINGS (RFC 9220 3): it may not know what is asked.
        let takes_udp = tokio::select! {
            said = settings.wait_for(Option::is_some) => said.is_ok_and(|said| said.is_some_and(|said| said.takes_udp())),
            error = self.quic.closed() => return Err(lost(&error)),
        };
        if !takes_udp || self.quic.max_datagram_size().is_none() {
            return Ok(None);
        }
        let (send, recv) = self.quic.open_bi().await.map_err(|error| lost(&error))?;
        let abort = AbortCode::new();
        let sink = Sink::new(send, abort.clone(), self.link.in_use());
        let source = Source::new(recv, abort, self.link.in_use());
        // Listened for before it is asked for: datagrams may overtake the answer.
        let (mut source, mut sink) = self.datagrams(source, sink);
        sink.stream().headers(&encode_request(head)).await?;
        response(source.stream()).await?;
        Ok(Some(End { source, sink }))
    }

    async fn exchange(&self, head: &ConnectHead) -> Result<(End<StreamSource, StreamSink>, ResponseHead), Failure> {
        let (send, recv) = self.quic.open_bi().await.map_err(|error| lost(&error))?;
        let abort = AbortCode::new();
        let mut sink = Sink::new(send, abort.clone(), self.link.in_use());
        let mut source = Source::new(recv, abort, self.link.in_use());
        sink.headers(&encode_request(head)).await?;
        let head = response(&mut source).await?;
        let end = End {
            source: source.into(),
            sink: sink.into(),
        };
        Ok((end, head))
    }

    /// A request came. They come in the order of their ids, which are four apart (RFC 9000 2.1).
    fn note_request(&self, id: quinn::StreamId) {
        self.next_request.set(VarInt::from(id).into_inner() + 4);
    }

    /// Serves what is not a request, until the connection ends: control streams, revocation, idleness; and, for a tunnel
    /// that we accepted, GOAWAY once `draining` turns true, and a word to the peer when what we send is lost too often.
    async fn attend(self: Rc<Self>, mut revoked: Revoked, mut draining: Option<watch::Receiver<bool>>) {
        let mut control = tokio::select! {
            opened = self.open_control() => opened,
            _ = self.quic.closed() => return,
        };
        tokio::task::spawn_local(self.clone().receive_datagrams());
        let mut check = tokio::time::interval(CHECK);
        let loses = self.loses(draining.is_some());
        tokio::pin!(loses);
        let mut told = false;
        self.close_if_revoked(&revoked);
        loop {
            tokio::select! {
                _ = self.quic.closed() => return,
                stream = self.quic.accept_uni() => match stream {
                    Ok(stream) => drop(tokio::task::spawn_local(self.clone().unidirectional(stream))),
                    Err(_) => return,
                },
                changed = revoked.changed() => match changed {
                    Ok(()) => self.close_if_revoked(&revoked),
                    Err(_) => return self.close(code::NO_ERROR, b"stopping"),
                },
                _ = check.tick() => if self.link.is_idle() {
                    self.close(code::NO_ERROR, b"idle");
                },
                () = &mut loses, if !told => {
                    told = true;
                    if let Ok(control) = &mut control {
                        self.tell_of_losses(control).await;
                    }
                }
                () = drained(draining.as_mut()) => {
                    draining = None;
                    if let Ok(control) = &mut control {
                        self.go_away(control).await;
                    }
                }
            }
        }
    }

    /// Looks at what is sent, lost and acknowledged, and says once when new streams to `peer` had better go another way.
    async fn doubt_when_bad(self: Rc<Self>, shared: Arc<Shared>, peer: SocketAddr) {
        let mut look = tokio::time::interval(LOOK);
        let (mut heard, mut losses, mut looks) = (Heard::new(&self.quic), Losses::default(), 0_u32);
        loop {
            tokio::select! {
                _ = self.quic.closed() => return,
                _ = look.tick() => {}
            }
            looks = looks.wrapping_add(1);
            let path = self.quic.stats().path;
            let lossy = looks.is_multiple_of(LOOKS_PER_SECOND) && losses.sample(path.sent_packets, path.lost_packets);
            let why = match heard.is_silent(&self.quic) {
                true => Why::Stopped,
                false if lossy || self.peer_loses.get() => Why::Lossy,
                false => continue,
            };
            self.link.go_away();
            shared.transports.failed(peer, why);
            self.doubtful.send_replace(true);
            return;
        }
    }

    /// Resolves when too much is lost of what we send on a tunnel that we accepted.
    async fn loses(&self, accepted: bool) {
        if !accepted {
            return std::future::pending().await;
        }
        let (mut second, mut losses) = (tokio::time::interval(LOOK * LOOKS_PER_SECOND), Losses::default());
        loop {
            second.tick().await;
            let path = self.quic.stats().path;
            if losses.sample(path.sent_packets, path.lost_packets) {
                return;
            }
        }
    }

    fn close_if_revoked(&self, revoked: &Revoked) {
        if self.link.is_revoked(revoked) {
            self.close(code::REQUEST_REJECTED, REVOKED);
        }
    }

    fn close(&self, code: u64, reason: &[u8]) {
        self.quic.close(VarInt::from_u64(code).unwrap_or_default(), reason);
    }

    fn fail(&self, error: H3Error) {
        tracing::debug!(target: "mesh_agent::tunnel", peer = %self.link.peer.identity, %error, "the peer broke the protocol");
        self.close(error.code(), error.to_string().as_bytes());
    }
}

/// Whether the peer acknowledges what is sent. That something comes from it proves nothing: the way there may be blocked while
/// the way back is open.
struct Heard {
    /// Moves with each acknowledgement, and with nothing else.
    rtt: Duration,
    /// Frames that the peer must acknowledge, up to the last time that it did.
    sent: u64,
    /// Since when one of them waits.
    waiting: Option<Instant>,
}

impl Heard {
    fn new(quic: &quinn::Connection) -> Self {
        Self {
            rtt: quic.rtt(),
            sent: must_be_acknowledged(quic),
            waiting: None,
        }
    }

    /// Silent: what was sent, and sent again by probes (RFC 9002 6.2), was not acknowledged for long.
    fn is_silent(&mut self, quic: &quinn::Connection) -> bool {
        let sent = must_be_acknowledged(quic);
        if quic.rtt() != self.rtt {
            *self = Self::new(quic);
            return false;
        }
        if sent == self.sent {
            return false;
        }
        let waiting = *self.waiting.get_or_insert_with(Instant::now);
        waiting.elapsed() >= SILENCE.max(self.rtt * 8)
    }
}

/// Frames sent that make the peer acknowledge (RFC 9002 2), of the kinds that we send again and again.
fn must_be_acknowledged(quic: &quinn::Connection) -> u64 {
    let sent = quic.stats().frame_tx;
    sent.stream + sent.ping + sent.reset_stream + sent.stop_sending + sent.max_data + sent.max_stream_data
}

/// Waits for the final response; interim ones are passed over.
async fn response(source: &mut Source) -> Result<ResponseHead, Failure> {
    let broken = |what: &str| Failure::Protocol(what.into());
    for _ in 0..MAX_INTERIM {
        let Some(Frame::Headers(section)) = source.frame().await? else {
            return Err(broken("no response"));
        };
        let head = decode_response(&section).map_err(|error| broken(&error.to_string()))?;
        match head.status {
            100..200 => {}
            200..300 => return Ok(head),
            _ => return Err(Failure::from_status(head)),
        }
    }
    Err(broken("too many interim responses"))
}

/// Why a connection ended, in our terms.
fn lost(error: &ConnectionError) -> Failure {
    match error {
        ConnectionError::ApplicationClosed(closed) if closed.reason.as_ref() == REVOKED => Failure::RevokedHere,
        ConnectionError::TransportError(error) if u64::from(error.code) == REVOKED_ALERT => Failure::Revoked,
        ConnectionError::ConnectionClosed(closed) if u64::from(closed.error_code) == REVOKED_ALERT => {
            Failure::RevokedHere
        }
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

/// The TLS alert certificate_revoked (RFC 8446 6.2) as QUIC carries it (RFC 9001 4.8).
const REVOKED_ALERT: u64 = 0x100 + 44;
const REVOKED: &[u8] = b"certificate revoked";
const MAX_INTERIM: usize = 8;
/// How often a connection that we dialled is looked at.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS_PER_SECOND: u32 = 10;
/// So long without an answer is silence, whatever the round-trip time.
const SILENCE: Duration = Duration::from_millis(600);
