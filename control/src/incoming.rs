//! Connections as the gRPC servers see them: TLS or the local socket, with what is known of the peer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::ca::PeerCertificate;

/// TLS exporter label that binds a host key's signature to its connection.
pub const JOIN_EXPORTER: &[u8] = b"EXPORTER-mesh-agent-join";
/// Handshakes at the same time; further connections wait in the kernel.
const HANDSHAKES: usize = 256;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Where a TCP connection comes from; IPv4-mapped addresses are IPv4 here.
    pub address: Option<SocketAddr>,
    /// The client certificate that was verified.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// 32 bytes of [`JOIN_EXPORTER`].
    pub exporter: Option<[u8; 32]>,
    /// User of a local connection.
    pub uid: Option<u32>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An accepted connection.
pub struct Connection {
    io: Box<dyn Io>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A stream of accepted connections.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Accepts TLS connections. `config` is asked anew for each, so that renewals and revocations take hold at once; `admit` sees the
/// verified client certificate and may refuse it.
pub fn tls(
    listener: TcpListener,
    config: impl Fn() -> Arc<ServerConfig> + Send + 'static,
    admit: impl Fn(&PeerCertificate) -> bool + Clone + Send + 'static,
) -> Incoming {
    let (sender, receiver) = mpsc::channel(16);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        while let Ok(permit) = handshakes.clone().acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (sender, config, admit) = (sender.clone(), config(), admit.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE_TIME, handshake(stream, address, config, admit)).await {
                    Ok(Ok(connection)) => {
                        drop(permit);
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "handshake failed"),
                    Err(_) => tracing::debug!(%address, "handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    admit: impl Fn(&PeerCertificate) -> bool,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let tls = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
    let session = tls.get_ref().1;
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = leaf.and_then(|leaf| PeerCertificate::read(leaf)).map(Arc::new);
    if leaf.is_some() && !certificate.as_deref().is_some_and(&admit) {
        let error = "the client certificate is revoked, or names no SPIFFE identity";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    let exporter = session.export_keying_material([0; 32], JOIN_EXPORTER, None).ok();
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Ok(Connection {
        peer: Peer {
            address: Some(address),
            certificate,
            exporter,
            uid: None,
        },
        io: Box::new(tls),
    })
}

/// Accepts connections on the local socket; the user at the other end is what the kernel says.
pub fn local(listener: UnixListener) -> Incoming {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let connection = accepted.and_then(|(stream, _)| {
                let uid = stream.peer_cred()?.uid();
                Ok(Connection {
                    peer: Peer {
                        uid: Some(uid),
                        ..Peer::default()
                    },
                    io: Box::new(stream),
                })
            });
            if let Err(error) = &connection {
                tracing::warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            } else if sender.send(connection).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
