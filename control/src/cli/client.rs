//! The connection to mesh-control: the local socket, or TLS with an operator token. Over TLS the server must present a chain up
//! to a pinned CA key and the control plane's reserved identity, before the token's secret is sent.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use mesh_core::identity::Identity;
use mesh_proto::mesh::operator_client::OperatorClient;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tower::service_fn;

use super::Failure;
use crate::ca::PeerCertificate;
use crate::operator::OperatorCredential;

/// Puts the operator's secret on each call.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// The operator's calls.
pub(super) type Client = OperatorClient<InterceptedService<Channel, Bearer>>;

/// Largest answer that is taken, in bytes.
const LARGEST: usize = 256 << 20;

pub(super) async fn connect(server: &str, operator_token: Option<&str>) -> Result<Client, Failure> {
    let (channel, bearer) = match operator_token {
        Some(token) => {
            let credential = OperatorCredential::decode(token).ok_or_else(|| {
                Failure::new(
                    1,
                    "the operator token is mistyped; it begins with \"meshop1.\" and is one line",
                )
            })?;
            let addresses = if server.starts_with("unix:") {
                credential.addresses.clone()
            } else {
                vec![server.to_owned()]
            };
            let bearer = format!("Bearer {}", credential.secret).parse().ok();
            (over_tls(&addresses, &credential).await?, Bearer(bearer))
        }
        None => (over_socket(server).await?, Bearer(None)),
    };
    Ok(OperatorClient::with_interceptor(channel, bearer)
        .max_decoding_message_size(LARGEST)
        .max_encoding_message_size(LARGEST))
}

fn endpoint() -> Result<Endpoint, Failure> {
    Endpoint::try_from("http://mesh-control").map_err(|e| Failure::new(1, e.to_string()))
}

async fn over_socket(server: &str) -> Result<Channel, Failure> {
    let Some(path) = server.strip_prefix("unix://").or_else(|| server.strip_prefix("unix:")) else {
        let hint =
            "a server at HOST:PORT needs an operator token (MESHCTL_OPERATOR_TOKEN); local ones are unix:///PATH";
        return Err(Failure::new(2, hint));
    };
    let path = path.to_owned();
    let stream = UnixStream::connect(&path).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                "is mesh-control running here? (systemctl status mesh-control); --server names another place"
            }
            std::io::ErrorKind::PermissionDenied => "use sudo, or an operator token",
            _ => "see mesh-control's log",
        };
        Failure::new(4, format!("cannot reach mesh-control at {path}: {error}; {hint}"))
    })?;
    let mut first = Some(stream);
    let connector = service_fn(move |_| {
        let (ready, path) = (first.take(), path.clone());
        async move {
            let stream = match ready {
                Some(stream) => stream,
                None => UnixStream::connect(path).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    endpoint()?.connect_with_connector(connector).await.map_err(unreachable)
}

async fn over_tls(addresses: &[String], credential: &OperatorCredential) -> Result<Channel, Failure> {
    let mut last = Failure::new(
        4,
        "the operator token names no address; give one with --server HOST:PORT",
    );
    for address in addresses {
        match dial(address, credential).await {
            Ok(channel) => return Ok(channel),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

async fn dial(address: &str, credential: &OperatorCredential) -> Result<Channel, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(4, format!("cannot reach mesh-control at {address}: {e}"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = PinnedServer::new(credential, provider.clone())
        .ok_or_else(|| Failure::new(1, "the operator token is damaged"))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let stream = TcpStream::connect(address).await.map_err(|e| failed(&e))?;
    let name = ServerName::try_from("mesh-control").map_err(|e| failed(&e))?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|e| failed(&e))?;
    let mut first = Some(tls);
    let connector = service_fn(move |_| {
        let ready = first.take().map(TokioIo::new);
        async move { ready.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotConnected, "the connection broke")) }
    });
    endpoint()?.connect_with_connector(connector).await.map_err(unreachable)
}

fn unreachable(error: tonic::transport::Error) -> Failure {
    Failure::new(4, format!("cannot speak to mesh-control: {error}"))
}

/// Accepts only a chain up to a pinned key whose leaf has the control plane's identity.
#[derive(Debug)]
struct PinnedServer {
    pins: Vec<Vec<u8>>,
    identity: Identity,
    provider: Arc<CryptoProvider>,
}

impl PinnedServer {
    fn new(credential: &OperatorCredential, provider: Arc<CryptoProvider>) -> Option<Self> {
        let pins: Result<Vec<_>, _> = credential.pins.iter().map(|pin| URL_SAFE_NO_PAD.decode(pin)).collect();
        Some(Self {
            pins: pins.ok()?,
            identity: Identity::control_plane(&credential.trust_domain).ok()?,
            provider,
        })
    }

    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, c)| {
            self.pins
                .iter()
                .any(|pin| pin == digest(&SHA256, c.public_key().raw).as_ref())
        })
    }
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for certificate in intermediates.iter().filter(|c| self.is_pinned(c)) {
            roots.add(certificate.clone().into_owned())?;
        }
        if roots.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let identity = PeerCertificate::read(leaf).map(|peer| peer.identity);
        if identity.as_ref() != Some(&self.identity) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        // The chain is checked in full; a DNS name there is none, and the identity was checked above.
        match webpki.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
