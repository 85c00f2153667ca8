//! HBONE: CONNECT over HTTP/2 over TLS over TCP, as ztunnel speaks it. The dialling side; settings of both sides.

mod server;
mod stream;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use mesh_core::connect::{ConnectHead, ResponseHead};
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

use super::Target;
use super::link::{CHECK, Link};
use super::stream::{AbortCode, StreamSink, StreamSource};
use crate::certs::Credentials;
use crate::config;
use crate::copy::End;
use crate::failure::Failure;
use crate::flows::Transport;
use crate::shared::Shared;
use crate::socket;
use crate::tls::{self, Alpn, Revoked};
pub(super) use server::{Exchange, accept};
pub(super) use stream::{Sink, Source};

/// A connection that we dialled.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) link: Link,
    /// Gone when the connection is to end.
    send: RefCell<Option<SendRequest<Bytes>>>,
    closed: Cell<bool>,
}

impl Client {
    /// Dials `target` over TCP. Until it says how many streams it takes, `offered` counts.
    pub(super) async fn connect(
        shared: &Arc<Shared>,
        credentials: &Credentials,
        target: &Target,
        offered: usize,
    ) -> Result<Rc<Self>, Failure> {
        let stream = socket::connect(target.peer, shared.config.capture.mark, CONNECT).await;
        let stream = stream.map_err(|error| unreachable(target.peer, &error))?;
        socket::keep_alive(&stream);
        Self::over(shared, credentials, target, stream, Transport::Hbone, offered).await
    }

    /// The same over any stream of bytes: the inner tunnel of a way through a gateway.
    pub(super) async fn over<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        shared: &Arc<Shared>,
        credentials: &Credentials,
        target: &Target,
        stream: T,
        transport: Transport,
        offered: usize,
    ) -> Result<Rc<Self>, Failure> {
        let tls = tls::client(credentials, target.identities.clone(), shared.revoked.clone(), Alpn::H2);
        let tls = tls.map_err(|error| Failure::Tls(error.to_string()))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| Failure::Tls(error.to_string()))?;
        let handshake = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream);
        let stream = handshake.await.map_err(|error| tls_failure(target.peer, &error))?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(Alpn::H2.name()) {
            return Err(Failure::Tls(format!("{} does not speak HTTP/2", target.peer)));
        }
        let chain = session.peer_certificates();
        let link = Link::new(chain, target.peer, transport, Some(credentials.not_after))?;
        let (send, connection) = client_settings(&shared.config.tunnel)
            .initial_max_send_streams(offered)
            .handshake(stream)
            .await
            .map_err(|error| lost(&error))?;
        let client = Rc::new(Self {
            link,
            send: RefCell::new(Some(send)),
            closed: Cell::new(false),
        });
        tokio::task::spawn_local(client.clone().attend(connection, shared.revoked.clone()));
        Ok(client)
    }

    /// Whether a new stream may be opened: up to ztunnel's number, or the peer's when that is less.
    pub(super) fn takes_streams(&self) -> bool {
        !self.closed.get() && self.link.takes_streams() && self.link.streams() < self.offered()
    }

    /// How many streams it takes, as far as is known.
    pub(super) fn offered(&self) -> usize {
        let send = self.send.borrow();
        send.as_ref()
            .map_or(0, |send| send.current_max_send_streams().min(MAX_STREAMS))
    }

    /// Sends the CONNECT and waits for its 200.
    pub(super) async fn open(
        &self,
        head: &ConnectHead,
    ) -> Result<(End<StreamSource, StreamSink>, ResponseHead), Failure> {
        let send = self.send.borrow().clone();
        let send = send.ok_or_else(|| Failure::TunnelLost("the tunnel was closed here".into()))?;
        let in_use = (self.link.in_use(), self.link.in_use());
        let mut send = send.ready().await.map_err(|error| self.ended(&error))?;
        let (response, body) = send
            .send_request(request(head)?, false)
            .map_err(|error| self.ended(&error))?;
        let sink = Sink::new(body, AbortCode::new(), in_use.0);
        let response = response.await.map_err(|error| match error.is_reset() {
            true => lost(&error),
            false => self.ended(&error),
        })?;
        let (parts, body) = response.into_parts();
        let head = ResponseHead::from_headers(parts.status.as_u16(), |name| text(&parts.headers, name));
        if !parts.status.is_success() {
            return Err(Failure::from_status(head));
        }
        let source = Source::new(body, in_use.1);
        let end = End {
            source: source.into(),
            sink: sink.into(),
        };
        Ok((end, head))
    }

    /// No stream after those that are open: with the last of them the connection ends.
    pub(super) fn finish(&self) {
        self.send.take();
    }

    /// The peer takes no new streams: GOAWAY, or it is gone.
    fn ended(&self, error: &h2::Error) -> Failure {
        self.link.go_away();
        lost(error)
    }

    /// Drives the connection to its end: pings, revocation, idleness.
    async fn attend<T: AsyncRead + AsyncWrite + Unpin>(
        self: Rc<Self>,
        mut connection: h2::client::Connection<TlsStream<T>, Bytes>,
        mut revoked: Revoked,
    ) {
        let dead = keep_alive(connection.ping_pong());
        tokio::pin!(dead);
        let mut check = tokio::time::interval(CHECK);
        while !self.link.is_revoked(&revoked) {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(target: "mesh_agent::tunnel", peer = %self.link.peer.identity, %error, "tunnel lost");
                    }
                    break;
                }
                () = &mut dead => break,
                changed = revoked.changed() => if changed.is_err() {
                    break;
                },
                // Without a handle the connection ends by itself, with GOAWAY.
                _ = check.tick() => if self.link.is_idle() {
                    self.send.take();
                },
            }
        }
        self.closed.set(true);
        self.send.take();
    }
}

/// A CONNECT has no scheme and no path (RFC 9113 8.5).
fn request(head: &ConnectHead) -> Result<Request<()>, Failure> {
    let invalid =
        |error: http::Error| Failure::Target(mesh_core::inbound::TargetRefusal::Unparsable(error.to_string()));
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(head.authority.as_str());
    for (name, value) in head.headers() {
        request = request.header(name, value);
    }
    request.body(()).map_err(invalid)
}

/// A header, where it is text. One that came in several lines is read as one list (RFC 9110 5.3).
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Result<Vec<_>, _> = headers.get_all(name).iter().map(HeaderValue::to_str).collect();
    lines
        .ok()
        .filter(|lines| !lines.is_empty())
        .map(|lines| lines.join(","))
}

/// Resolves when a ping is not answered in time.
async fn keep_alive(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let answered = tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}

fn client_settings(config: &config::Tunnel) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(16 << 10)
        .max_send_buffer_size(4 << 20)
        .enable_push(false);
    builder
}

fn server_settings(config: &config::Tunnel) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(64 << 10)
        .max_send_buffer_size(400 << 10)
        .max_concurrent_streams(config.max_streams.min(ADVERTISED_STREAMS));
    builder
}

/// Why a connection or a stream ended, in our terms.
fn lost(error: &h2::Error) -> Failure {
    if let Some(reason) = error.reason().filter(|_| error.is_reset()) {
        return stream::reset(reason);
    }
    let io = error.get_io().and_then(io::Error::get_ref);
    match io.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        // TLS 1.3 tells a refused client certificate only after the handshake.
        Some(tls) => refused(tls),
        // Of an error that ended the connection, h2 tells every stream only the text.
        None if error.is_io() && error.to_string().contains(REVOKED_ALERT) => Failure::RevokedHere,
        None if error.is_io() && error.to_string().contains(ALERT) => Failure::Tls(error.to_string()),
        // What the peer sent made no sense to us.
        None if error.is_library() && error.is_go_away() => Failure::Protocol(error.to_string()),
        None => Failure::TunnelLost(error.to_string()),
    }
}

fn unreachable(peer: SocketAddr, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => Failure::TunnelTimeout(format!("{peer} did not answer in time")),
        _ => Failure::Unreachable(format!("{peer}: {error}; is TCP port {} open to it?", peer.port())),
    }
}

fn tls_failure(peer: SocketAddr, error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => refused(tls),
        None => Failure::Unreachable(format!("{peer}: {error}")),
    }
}

fn refused(tls: &rustls::Error) -> Failure {
    match tls {
        rustls::Error::InvalidCertificate(CertificateError::Revoked) => Failure::Revoked,
        rustls::Error::AlertReceived(AlertDescription::CertificateRevoked) => Failure::RevokedHere,
        other => Failure::Tls(other.to_string()),
    }
}

/// As rustls says it.
const ALERT: &str = "received fatal alert: ";
const REVOKED_ALERT: &str = "received fatal alert: CertificateRevoked";
/// Not sent (no SNI) and not checked: identities are.
const SERVER_NAME: &str = "mesh";
/// As [`Failure::PeerReset`] has it (RFC 9113 7).
pub(super) const REFUSED_STREAM: u64 = 7;
/// All as ztunnel has them.
const CONNECT: Duration = Duration::from_secs(10);
const MAX_FRAME: u32 = 1 << 20;
/// Streams of a connection, also before its peer says how many it takes.
pub(super) const MAX_STREAMS: usize = 100;
const ADVERTISED_STREAMS: u32 = 200;
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
