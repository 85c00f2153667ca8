//! A connection to the control plane: TLS 1.3, and at the other end, under a CA that we trust, the reserved identity
//! (mesh-control) or the name that the bundle gives (istiod).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use hyper_util::rt::TokioIo;
use mesh_core::identity::Identity;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::certs::Credentials;
use crate::dns::Lookup;
use crate::socket;
use crate::tls::judge::{Judge, Shown, Verifier};
use crate::tls::{PeerCertificate, provider};

/// What makes a CA ours.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Before and at the join: SHA-256 of its key.
    Pins(Vec<[u8; 32]>),
    /// Ever after.
    Roots(Arc<RootCertStore>),
}

/// Who must be at the other end.
#[derive(Clone, Debug)]
pub enum Server {
    /// mesh-control: the identity that is reserved for it in this trust domain.
    MeshControl { trust_domain: String, trust: Trust },
    /// istiod: a certificate for this DNS name. The name is sent in clear (SNI), by which gateways find istiod.
    Istiod { name: String, roots: Arc<RootCertStore> },
}

impl Server {
    fn name(&self) -> &str {
        match self {
            Self::MeshControl { .. } => "control.mesh",
            Self::Istiod { name, .. } => name,
        }
    }

    /// How often the connection is tried, and how long an answer may take. istiod ends connections that ask too often; this is
    /// as often as ztunnel does.
    fn keep_alive(&self) -> (Duration, Duration) {
        match self {
            Self::MeshControl { .. } => (Duration::from_secs(5), Duration::from_secs(5)),
            Self::Istiod { .. } => (Duration::from_secs(30), Duration::from_secs(10)),
        }
    }
}

/// One TLS connection, verified, and not used yet.
#[derive(Debug)]
pub struct Verified {
    stream: TlsStream<TcpStream>,
    server: Server,
    /// Our end of it.
    pub local: SocketAddr,
}

impl Verified {
    /// Keying material of this connection (RFC 8446 7.5), to which a proof is bound.
    pub fn exporter(&self) -> anyhow::Result<[u8; 32]> {
        let (_, connection) = self.stream.get_ref();
        Ok(connection.export_keying_material([0; 32], EXPORTER, None)?)
    }

    /// A gRPC channel over this one connection; it is not made anew when it breaks.
    pub async fn channel(self) -> anyhow::Result<Channel> {
        let stream = Arc::new(Mutex::new(Some(self.stream)));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            async move {
                stream
                    .map(TokioIo::new)
                    .ok_or_else(|| std::io::Error::other("the connection was used up"))
            }
        });
        let (interval, timeout) = self.server.keep_alive();
        let endpoint = Endpoint::from_shared(format!("http://{}", self.server.name()))?
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_with_connector(connector).await?)
    }
}

/// Connects to the first of `addresses` that answers and is `server`.
pub async fn connect(
    addresses: &[String],
    server: &Server,
    credentials: Option<&Credentials>,
    lookup: &Lookup,
) -> anyhow::Result<Verified> {
    let mut errors = Vec::new();
    for address in addresses {
        match connect_one(address, server, credentials, lookup).await {
            Ok(verified) => return Ok(verified),
            Err(error) => errors.push(format!("{address}: {error:#}")),
        }
    }
    if errors.is_empty() {
        bail!("no address of a control plane is known");
    }
    bail!("no control plane could be reached: {}", errors.join("; "))
}

async fn connect_one(
    address: &str,
    server: &Server,
    credentials: Option<&Credentials>,
    lookup: &Lookup,
) -> anyhow::Result<Verified> {
    let resolved = lookup.resolve(address).await?;
    let mut last = anyhow!("the name has no address");
    for peer in resolved {
        match socket::connect(peer, lookup.mark, CONNECT).await {
            Ok(stream) => {
                let local = stream.local_addr()?;
                let config = Arc::new(config(server, credentials)?);
                let name = ServerName::try_from(server.name().to_owned()).context("the server name")?;
                let handshake = tokio_rustls::TlsConnector::from(config).connect(name, stream);
                let stream = tokio::time::timeout(CONNECT, handshake)
                    .await
                    .context("the TLS handshake took too long")?;
                return Ok(Verified {
                    stream: stream.map_err(|error| explain(error, server))?,
                    server: server.clone(),
                    local,
                });
            }
            Err(error) => last = anyhow!("connecting to {peer}: {error}; is TCP port {} open to it?", peer.port()),
        }
    }
    Err(last)
}

fn explain(error: std::io::Error, server: &Server) -> anyhow::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => anyhow!("{error}; the clock of this machine is probably wrong: set it (timedatectl) and try again"),
        // The roots of all meshes have one name by default; then it is the signature that does not fit.
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature))
            if matches!(server, Server::Istiod { .. }) =>
        {
            anyhow!(
                "the certificate of {} is not signed by an anchor of root-cert.pem: the bundle is of another mesh, or older than \
                 the mesh's root; make a fresh one",
                server.name()
            )
        }
        Some(Error::General(why)) => anyhow!("{why}"),
        _ => anyhow!("the TLS handshake failed: {error}"),
    }
}

fn config(server: &Server, credentials: Option<&Credentials>) -> anyhow::Result<rustls::ClientConfig> {
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match server {
        Server::MeshControl { trust_domain, trust } => {
            let judge = Control {
                trust: trust.clone(),
                expected: Identity::control_plane(trust_domain)?,
            };
            Verifier::new(judge, provider.clone())
        }
        Server::Istiod { roots, .. } => {
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?
        }
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match credentials {
        Some(credentials) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = matches!(server, Server::Istiod { .. });
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A chain up to our CA is not enough: every member has one. The leaf must be the control plane's own.
#[derive(Debug)]
struct Control {
    trust: Trust,
    expected: Identity,
}

impl Control {
    fn roots(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let pins = match &self.trust {
            Trust::Roots(roots) => return Ok(roots.clone()),
            Trust::Pins(pins) => pins,
        };
        let mut roots = RootCertStore::empty();
        for certificate in chain {
            let spki = PeerCertificate::parse(certificate).map(|certificate| certificate.spki_sha256);
            if spki.is_some_and(|spki| pins.contains(&spki)) {
                roots.add(certificate.clone().into_owned())?;
            }
        }
        if roots.is_empty() {
            return Err(Error::General(
                "the CA of this server is not the one that the token pins: the token is of another control plane, or \
                 somebody is in the middle; nothing was sent"
                    .into(),
            ));
        }
        Ok(Arc::new(roots))
    }
}

impl Judge for Control {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), Error> {
        shown.chains_to(&*self.roots(shown.intermediates)?)?;
        let identities = PeerCertificate::parse(shown.leaf)
            .ok_or(CertificateError::BadEncoding)?
            .identities;
        if identities.contains(&self.expected) {
            return Ok(());
        }
        let identities: Vec<_> = identities.iter().map(ToString::to_string).collect();
        Err(Error::General(format!(
            "this server is not the control plane: it shows {identities:?} and not {}; nothing was sent",
            self.expected
        )))
    }
}

/// SHA-256 pins from their hex form.
pub fn parse_pins(pins: &[String]) -> Vec<[u8; 32]> {
    pins.iter()
        .filter_map(|pin| <[u8; 32]>::try_from(unhex(pin)?.as_slice()).ok())
        .collect()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    digits.collect()
}

const EXPORTER: &[u8] = b"EXPORTER-mesh-agent-join";
const CONNECT: Duration = Duration::from_secs(5);
