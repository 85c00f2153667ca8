//! Servers made of rustls and h2 alone: nothing of the agent's own tunnels is in them.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use mesh_agent::certs::Pem;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::server;

use crate::frames::{PREFACE, Wire};

pub type ServerTls = server::TlsStream<TcpStream>;

/// What a ClientHello said.
#[derive(Clone, Debug)]
pub struct Hello {
    pub server_name: Option<String>,
    pub alpn: Vec<Vec<u8>>,
    pub suites: Vec<rustls::CipherSuite>,
    pub groups: Vec<rustls::NamedGroup>,
}

#[derive(Debug)]
struct Noting(Arc<CertifiedKey>, Arc<Mutex<Vec<Hello>>>);

impl ResolvesServerCert for Noting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.1.lock().unwrap().push(Hello {
            server_name: hello.server_name().map(Into::into),
            alpn: hello.alpn().into_iter().flatten().map(Into::into).collect(),
            suites: hello.cipher_suites().to_vec(),
            groups: hello.named_groups().unwrap_or_default().to_vec(),
        });
        Some(self.0.clone())
    }
}

/// A TCP port with a certificate, at which a test accepts by hand. It demands a certificate of the same CA.
pub struct Door {
    listener: TcpListener,
    tls: tokio_rustls::TlsAcceptor,
    hellos: Arc<Mutex<Vec<Hello>>>,
}

impl Door {
    /// On loopback.
    pub async fn new(pem: &Pem) -> Self {
        Self::with_alpn(pem, &["h2"]).await
    }

    /// One that agrees on these protocols.
    pub async fn with_alpn(pem: &Pem, alpn: &[&str]) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), pem, alpn)
    }

    pub fn at(listener: TcpListener, pem: &Pem, alpn: &[&str]) -> Self {
        let hellos = Arc::<Mutex<Vec<Hello>>>::default();
        let credentials = pem.credentials().unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(credentials.roots.clone(), provider.clone());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_cert_resolver(Arc::new(Noting(credentials.key, hellos.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self {
            listener,
            tls: Arc::new(config).into(),
            hellos,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The ClientHellos so far.
    pub fn hellos(&self) -> Vec<Hello> {
        self.hellos.lock().unwrap().clone()
    }

    /// The next TCP connection.
    pub async fn tcp(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The next connection, after its handshake.
    pub async fn tls(&self) -> io::Result<ServerTls> {
        self.tls.accept(self.tcp().await).await
    }

    /// A handshake inside of anything.
    pub async fn inside<T: AsyncRead + AsyncWrite + Unpin>(&self, stream: T) -> io::Result<server::TlsStream<T>> {
        self.tls.accept(stream).await
    }

    /// The next connection, as frames. The client's preface is read, and the server's settings are sent.
    pub async fn wire(&self) -> Wire<ServerTls> {
        let mut wire = Wire(self.tls().await.unwrap());
        let mut preface = [0; PREFACE.len()];
        wire.0.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        wire.greet(&[]).await;
        wire
    }

    /// The next connection, served by h2 with these settings.
    pub async fn http2(&self, settings: &h2::server::Builder) -> Served {
        Served::over(self.tls().await.unwrap(), settings).await
    }
}

/// A connection whose requests a test answers by hand.
pub struct Served {
    requests: mpsc::UnboundedReceiver<Asked>,
    goodbye: Rc<Notify>,
    closed: Rc<Cell<bool>>,
}

impl Served {
    pub async fn over<T: AsyncRead + AsyncWrite + Unpin + 'static>(stream: T, settings: &h2::server::Builder) -> Self {
        let mut connection = settings.handshake(stream).await.unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let (goodbye, closed) = (Rc::<Notify>::default(), Rc::<Cell<bool>>::default());
        let (told, over) = (goodbye.clone(), closed.clone());
        tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    next = connection.accept() => match next {
                        Some(Ok((request, respond))) => {
                            let (parts, body) = request.into_parts();
                            let _ = sender.send(Asked { parts, body, respond });
                        }
                        Some(Err(_)) | None => break,
                    },
                    () = told.notified() => connection.graceful_shutdown(),
                }
            }
            over.set(true);
        });
        Self {
            requests,
            goodbye,
            closed,
        }
    }

    /// The next request; `None` when the connection ended first.
    pub async fn next(&mut self) -> Option<Asked> {
        self.requests.recv().await
    }

    /// A request that came, without waiting.
    pub fn came(&mut self) -> Option<Asked> {
        self.requests.try_recv().ok()
    }

    /// GOAWAY, without an end of what lives.
    pub fn go_away(&self) {
        self.goodbye.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

/// One request.
pub struct Asked {
    pub parts: Parts,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
}

impl Asked {
    /// Of a CONNECT, which has an authority and neither scheme nor path.
    pub fn authority(&self) -> &str {
        assert_eq!(self.parts.method, Method::CONNECT);
        assert_eq!(self.parts.uri.scheme(), None);
        assert_eq!(self.parts.uri.path_and_query(), None);
        self.parts.uri.authority().unwrap().as_str()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Answers 200 with these headers.
    pub fn accept(mut self, headers: &[(&'static str, &str)]) -> (RecvStream, SendStream<Bytes>) {
        let send = self.respond.send_response(response(200, headers), false).unwrap();
        (self.body, send)
    }

    /// Answers 200, and sends back what comes until its end.
    pub async fn echo(self) {
        let (mut read, mut write) = tokio::io::split(self.into_pipe());
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    }

    /// Answers 200, and gives the stream as one of bytes.
    pub fn into_pipe(self) -> DuplexStream {
        let (mut recv, mut send) = self.accept(&[]);
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut read, mut write) = tokio::io::split(far);
        tokio::task::spawn_local(async move {
            while let Some(Ok(bytes)) = recv.data().await {
                let _ = recv.flow_control().release_capacity(bytes.len());
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        });
        tokio::task::spawn_local(async move {
            let mut bytes = vec![0; 16 << 10];
            // h2 holds what the window does not take yet; tests send little.
            while let Ok(length @ 1..) = read.read(&mut bytes).await {
                if send.send_data(Bytes::copy_from_slice(&bytes[..length]), false).is_err() {
                    return;
                }
            }
            let _ = send.send_data(Bytes::new(), true);
        });
        near
    }

    /// Answers with another status, and ends the stream.
    pub fn refuse(mut self, status: u16, headers: &[(&'static str, &str)]) {
        self.respond.send_response(response(status, headers), true).unwrap();
    }
}

fn response(status: u16, headers: &[(&'static str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status).body(()).unwrap();
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).try_into().unwrap(), value.parse().unwrap()));
    *response.headers_mut() = HeaderMap::from_iter(headers.map(|(name, value): (http::HeaderName, _)| (name, value)));
    response
}
