//! HBONE, the accepting side: TCP connections of peers, their handshakes, and their requests.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Response};
use mesh_core::connect::{ConnectHead, ResponseHead};
use mesh_core::transport::Preference;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stream::{Sink, Source, number};
use super::{keep_alive, lost, server_settings, text, tls_failure};
use crate::certs::Credentials;
use crate::copy::End;
use crate::failure::Failure;
use crate::flows::Transport;
use crate::shared::Shared;
use crate::socket;
use crate::tls::{self, Alpn};
use crate::tunnel::limits::Allowance;
use crate::tunnel::link::{CHECK, Link, Use, drained};
use crate::tunnel::listen::{Guard, HANDSHAKE, Handler, Request, UnderWay};
use crate::tunnel::stream::{AbortCode, StreamSink, StreamSource};

/// Accepts until the task is dropped.
pub(in crate::tunnel) async fn accept(shared: Arc<Shared>, listener: TcpListener, guard: Guard, serve: impl Handler) {
    let acceptor = Rc::new(Acceptor {
        shared,
        current: RefCell::default(),
    });
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, say. What lives may free some.
                tracing::warn!(target: "mesh_agent::tunnel", %error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Dropping it is the refusal.
        if let Some(under_way) = guard.admit() {
            let _ = stream.set_nodelay(true);
            socket::keep_alive(&stream);
            let connection = connection(acceptor.clone(), stream, under_way, guard.clone(), serve.clone());
            tokio::task::spawn_local(connection);
        }
    }
}

async fn connection(acceptor: Rc<Acceptor>, stream: TcpStream, under_way: UnderWay, guard: Guard, serve: impl Handler) {
    let address = stream.peer_addr();
    let handshaken = tokio::time::timeout(HANDSHAKE, acceptor.handshake(stream)).await;
    drop(under_way);
    match handshaken.unwrap_or_else(|_| Err(Failure::Timeout("the handshake took too long".into()))) {
        Ok((connection, link)) => {
            if let Some(allowance) = guard.enter(&link.peer) {
                let server = Server {
                    shared: acceptor.shared.clone(),
                    link: Rc::new(link),
                    allowance,
                };
                server.requests(connection, &guard, serve).await;
            }
        }
        Err(failure) => {
            let address = address.map(|address| address.to_string()).unwrap_or_default();
            tracing::info!(target: "mesh_agent::tunnel", %address, %failure, "a peer was turned away");
        }
    }
}

type Wire = Connection<TlsStream<TcpStream>, Bytes>;

/// Makes handshakes with the current certificate. What they need is made once for each.
struct Acceptor {
    shared: Arc<Shared>,
    current: RefCell<Option<(Arc<Credentials>, TlsAcceptor)>>,
}

impl Acceptor {
    async fn handshake(&self, stream: TcpStream) -> Result<(Wire, Link), Failure> {
        let address = stream.peer_addr()?;
        let (credentials, acceptor) = self.current()?;
        let stream = acceptor.accept(stream).await;
        let stream = stream.map_err(|error| tls_failure(address, &error))?;
        let session = stream.get_ref().1;
        // rustls refuses a client that offers others, and takes one that offers none (RFC 9113 3.2 demands it).
        if session.alpn_protocol() != Some(Alpn::H2.name()) {
            return Err(Failure::Tls(format!("{address} did not offer HTTP/2 by ALPN")));
        }
        let chain = session.peer_certificates();
        let link = Link::new(chain, address, Transport::Hbone, Some(credentials.not_after))?;
        let link = link.reached_at(stream.get_ref().0.local_addr().ok().map(|local| local.ip()));
        let connection = server_settings(&self.shared.config.tunnel).handshake(stream).await;
        Ok((connection.map_err(|error| lost(&error))?, link))
    }

    fn current(&self) -> Result<(Arc<Credentials>, TlsAcceptor), Failure> {
        let credentials = self.shared.credentials().ok_or(Failure::NoCertificate)?;
        let mut current = self.current.borrow_mut();
        if let Some(made) = current.as_ref().filter(|(of, _)| Arc::ptr_eq(of, &credentials)) {
            return Ok(made.clone());
        }
        let (domains, revoked) = (self.shared.trust_domains(), self.shared.revoked.clone());
        let config = tls::server(&credentials, domains, revoked, Alpn::H2);
        let config = config.map_err(|error| Failure::Tls(error.to_string()))?;
        let made = (credentials, TlsAcceptor::from(Arc::new(config)));
        *current = Some(made.clone());
        Ok(made)
    }
}

/// One connection of a peer.
struct Server {
    shared: Arc<Shared>,
    link: Rc<Link>,
    allowance: Allowance,
}

impl Server {
    /// Its requests, as many a second as the peer may make, to its end: pings, revocation, idleness, GOAWAY once we drain.
    async fn requests(self, mut wire: Wire, guard: &Guard, serve: impl Handler) {
        let (mut revoked, mut draining) = (self.shared.revoked.clone(), Some(guard.draining()));
        let dead = keep_alive(wire.ping_pong());
        tokio::pin!(dead);
        let mut check = tokio::time::interval(CHECK);
        while !self.link.is_revoked(&revoked) {
            tokio::select! {
                request = wire.accept() => match request {
                    Some(Ok((request, respond))) => self.one(request, respond, &serve),
                    Some(Err(error)) => {
                        tracing::debug!(target: "mesh_agent::tunnel", peer = %self.link.peer.identity, %error, "tunnel lost");
                        return;
                    }
                    None => return,
                },
                () = &mut dead => return,
                changed = revoked.changed() => if changed.is_err() {
                    return;
                },
                () = drained(draining.as_mut()) => {
                    draining = None;
                    self.link.go_away();
                    wire.graceful_shutdown();
                }
                _ = check.tick() => if self.link.is_idle() {
                    wire.graceful_shutdown();
                },
            }
        }
        wire.abrupt_shutdown(Reason::CANCEL);
        let _ = tokio::time::timeout(PAUSE, std::future::poll_fn(|context| wire.poll_closed(context))).await;
    }

    fn one(&self, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>, serve: &impl Handler) {
        if !self.allowance.takes(Instant::now()) {
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        let (parts, body) = request.into_parts();
        let is_connect = parts.method == Method::CONNECT && parts.extensions.get::<h2::ext::Protocol>().is_none();
        let authority = parts.uri.authority().filter(|_| is_connect);
        let head = authority
            .map(|authority| ConnectHead::from_headers(authority.to_string(), |name| text(&parts.headers, name)));
        let http3 = self.shared.config.tunnel.transport != Preference::Tcp;
        let abort = AbortCode::new();
        let exchange = Exchange {
            respond: Respond(Some(respond), abort.clone()),
            source: Source::new(body, self.link.in_use()),
            sink_use: self.link.in_use(),
            alt_svc: http3.then(|| format!("h3=\":{}\"", self.shared.config.tunnel.listen.port())),
        };
        let request = Request::new(head, self.link.peer.clone(), abort, exchange);
        let serve = serve.clone();
        tokio::task::spawn_local(async move { serve.serve(request).await });
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(in crate::tunnel) struct Exchange {
    respond: Respond,
    source: Source,
    sink_use: Rc<Use>,
    /// Where we serve the same over HTTP/3.
    alt_svc: Option<String>,
}

impl Exchange {
    /// Answers 200.
    pub(in crate::tunnel) fn accept(mut self, head: &ResponseHead) -> Result<End<StreamSource, StreamSink>, Failure> {
        let send = self.respond.answer(head, self.alt_svc, false)?;
        Ok(End {
            source: self.source.into(),
            sink: Sink::new(send, self.respond.1.clone(), self.sink_use).into(),
        })
    }

    /// Answers anything else, and ends the stream.
    pub(in crate::tunnel) fn reject(mut self, head: &ResponseHead) {
        if let Err(failure) = self.respond.answer(head, self.alt_svc, true) {
            tracing::debug!(target: "mesh_agent::tunnel", %failure, "a refusal was not delivered");
        }
    }
}

/// The right to answer once. Dropped without an answer it resets the stream.
#[derive(Debug)]
struct Respond(Option<SendResponse<Bytes>>, AbortCode);

impl Respond {
    fn answer(
        &mut self,
        head: &ResponseHead,
        alt_svc: Option<String>,
        end: bool,
    ) -> Result<h2::SendStream<Bytes>, Failure> {
        let head = ResponseHead {
            alt_svc,
            ..head.clone()
        };
        let mut response = Response::builder().status(head.status);
        for (name, value) in head.headers() {
            response = response.header(name, value);
        }
        let response = response
            .body(())
            .map_err(|error| Failure::TunnelLost(format!("the answer cannot be written: {error}")))?;
        let gone = || Failure::TunnelLost("the stream is closed".into());
        let mut respond = self.0.take().ok_or_else(gone)?;
        respond.send_response(response, end).map_err(|error| lost(&error))
    }
}

impl Drop for Respond {
    fn drop(&mut self) {
        if let Some(mut respond) = self.0.take() {
            respond.send_reset(number(self.1.get()));
        }
    }
}

/// Before another try to accept, and for the last words of a connection.
const PAUSE: Duration = Duration::from_millis(100);
