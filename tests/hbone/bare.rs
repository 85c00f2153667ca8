//! Clients made of rustls and h2 alone: nothing of the agent's own tunnels is in them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use mesh_agent::certs::Pem;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::SingleCertAndKey;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::client;

use crate::frames::{PREFACE, Wire};

/// Takes any server, so that what a test sees is the other side's judgement.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client's TLS: with the certificate, if any, the suites of `provider`, and ALPN `h2`.
pub fn client_tls(pem: Option<&Pem>, provider: CryptoProvider) -> rustls::ClientConfig {
    let provider = Arc::new(provider);
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let mut config = match pem {
        Some(pem) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pem.credentials().unwrap().key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The TLS of an ordinary member.
pub fn member_tls(pem: &Pem) -> rustls::ClientConfig {
    client_tls(Some(pem), aws_lc_rs::default_provider())
}

pub type ClientTls = client::TlsStream<TcpStream>;

/// A handshake as a client. In TLS 1.3 a refusal of the client's certificate comes only with what is read afterwards.
pub async fn connect(peer: SocketAddr, tls: rustls::ClientConfig) -> io::Result<ClientTls> {
    let stream = TcpStream::connect(peer).await?;
    stream.set_nodelay(true)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    connector.connect(ServerName::try_from("peer").unwrap(), stream).await
}

/// A client of frames, which has sent its preface.
pub async fn wire(peer: SocketAddr, pem: &Pem) -> Wire<ClientTls> {
    let mut wire = Wire(connect(peer, member_tls(pem)).await.unwrap());
    wire.greet(PREFACE).await;
    wire
}

/// A client of h2. Its connection is driven until it ends.
pub async fn client(peer: SocketAddr, pem: &Pem) -> SendRequest<Bytes> {
    let stream = connect(peer, member_tls(pem)).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(connection);
    send
}

/// What came back on a CONNECT.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub recv: RecvStream,
    pub send: SendStream<Bytes>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Sends, and expects the same bytes back.
    pub async fn echo(&mut self, bytes: &'static [u8]) {
        self.send.send_data(Bytes::from_static(bytes), false).unwrap();
        assert_eq!(self.receive(bytes.len()).await, bytes);
    }

    /// So many bytes.
    pub async fn receive(&mut self, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            let chunk = self.recv.data().await.expect("the stream ended").unwrap();
            self.recv.flow_control().release_capacity(chunk.len()).unwrap();
            got.extend_from_slice(&chunk);
        }
        got
    }
}

/// A CONNECT with these headers.
pub fn request(authority: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(Method::CONNECT).uri(authority);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// Sends a request and waits for its answer.
pub async fn ask(send: &SendRequest<Bytes>, request: Request<()>) -> Result<Answer, h2::Error> {
    let mut send = send.clone().ready().await?;
    let (response, send) = send.send_request(request, false)?;
    let (parts, recv) = response.await?.into_parts();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        recv,
        send,
    })
}
