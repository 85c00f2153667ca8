//! An issuer of JWTs, and a data plane that speaks as ztunnel does: TLS by root and address, a bearer token, no certificate.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mesh_control::ca::PeerCertificate;
use mesh_control::config::JwtIssuer;
use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::DeltaDiscoveryRequest;
use mesh_proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_proto::mesh::CaStatusRequest;
use mesh_proto::type_url::{ADDRESS, AUTHORIZATION};
use mesh_proto::wkt::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::common::{GROUP, Server, Stream};

pub(crate) const ISSUER: &str = "https://issuer.example";

/// An issuer whose keys a file holds.
pub(crate) struct Issuer {
    pub(crate) key: EncodingKey,
    pub(crate) file: tempfile::NamedTempFile,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_der(&key.serialize_der());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), Self::keys(&key)).unwrap();
        Self { key, file }
    }

    pub(crate) fn keys(key: &EncodingKey) -> String {
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
        serde_json::json!({ "keys": [jwk] }).to_string()
    }

    pub(crate) fn settings(&self) -> JwtIssuer {
        JwtIssuer {
            issuer: ISSUER.into(),
            audiences: vec!["istio-ca".into()],
            jwks_file: Some(self.file.path().to_owned()),
            ..JwtIssuer::default()
        }
    }

    /// A token for NAMESPACE:ACCOUNT.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.token_with(subject, |_| {})
    }

    pub(crate) fn token_with(&self, subject: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let now = mesh_control::store::now();
        let mut claims = serde_json::json!({
            "iss": ISSUER, "aud": ["istio-ca"], "sub": format!("system:serviceaccount:{subject}"),
            "iat": now - 5, "exp": now + 600,
        });
        change(&mut claims);
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key).unwrap()
    }

    pub(crate) async fn server(&self) -> Server {
        let settings = self.settings();
        let server = Server::with(|s| s.jwt = vec![settings]).await;
        server.apply(GROUP).await;
        server
    }
}

/// Connects as ztunnel does: by the root, and with the server's address as its name. Its own source address can be chosen.
pub(crate) async fn channel(server: &Server) -> Channel {
    channel_from(server, "127.0.0.1").await
}

pub(crate) async fn channel_from(server: &Server, source: &str) -> Channel {
    let status = server.operator().await.ca_status(CaStatusRequest {}).await.unwrap();
    let mut roots = RootCertStore::empty();
    for anchor in status.into_inner().anchors {
        roots
            .add(CertificateDer::from_pem_slice(anchor.certificate.as_bytes()).unwrap())
            .unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = server.agents();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    let stream: TcpStream = socket.connect(address).await.unwrap();
    let name = ServerName::from(address.ip());
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut first = Some(TokioIo::new(tls.await.unwrap()));
    let connector = tower::service_fn(move |_| {
        let ready = first.take();
        async move { ready.ok_or_else(|| std::io::Error::other("one connection only")) }
    });
    Endpoint::from_static("http://x")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

pub(crate) fn with_bearer<T>(message: T, bearer: &str) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    metadata.insert("clusterid", "Kubernetes".parse().unwrap());
    request
}

/// A certificate, each time for a new key, as ztunnel asks for it.
pub(crate) async fn certificate(channel: Channel, bearer: &str) -> Result<IstioCertificateResponse, Status> {
    certificate_with(channel, bearer, |_| {}).await
}

pub(crate) async fn certificate_with(
    channel: Channel,
    bearer: &str,
    change: impl FnOnce(&mut IstioCertificateRequest),
) -> Result<IstioCertificateResponse, Status> {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let mut request = IstioCertificateRequest {
        csr: csr.pem().unwrap(),
        validity_duration: 86_400,
        metadata: None,
    };
    change(&mut request);
    let mut client = IstioCertificateServiceClient::new(channel);
    let response = client.create_certificate(with_bearer(request, bearer)).await?;
    Ok(response.into_inner())
}

pub(crate) fn leaf(response: &IstioCertificateResponse) -> PeerCertificate {
    let der = CertificateDer::from_pem_slice(response.cert_chain[0].as_bytes()).unwrap();
    PeerCertificate::read(&der).unwrap()
}

pub(crate) fn node(name: &str, more: &[(&str, &str)]) -> Node {
    let text = |t: &str| Value {
        kind: Some(Kind::StringValue(t.to_owned())),
    };
    let fixed = [
        ("NAME", name),
        ("NAMESPACE", "shop"),
        ("INSTANCE_IPS", "10.0.0.9"),
        ("NODE_NAME", ""),
    ];
    let fields = fixed.iter().chain(more).map(|(k, v)| ((*k).to_owned(), text(v)));
    Node {
        id: format!("ztunnel~10.0.0.9~{name}.shop~shop.svc.cluster.local"),
        metadata: Some(Struct {
            fields: fields.collect(),
        }),
        ..Node::default()
    }
}

pub(crate) fn first(node: &Node, url: &str, on_demand: bool, held: BTreeMap<String, String>) -> DeltaDiscoveryRequest {
    let star = match on_demand {
        true => vec!["*".to_owned()],
        false => Vec::new(),
    };
    DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: url.to_owned(),
        resource_names_subscribe: star.clone(),
        resource_names_unsubscribe: star,
        initial_resource_versions: held,
        ..DeltaDiscoveryRequest::default()
    }
}

pub(crate) async fn stream(
    channel: Channel,
    bearer: &str,
    first: Vec<DeltaDiscoveryRequest>,
) -> Result<Stream, Status> {
    let (sender, receiver) = mpsc::channel(64);
    for request in first {
        sender.send(request).await.unwrap();
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client.delta_aggregated_resources(with_bearer(requests, bearer)).await?;
    Ok(Stream {
        sender,
        responses: responses.into_inner(),
    })
}

/// A stream for everything.
pub(crate) async fn wildcard(channel: Channel, bearer: &str, node: &Node) -> Result<Stream, Status> {
    let both = [ADDRESS, AUTHORIZATION].map(|url| first(node, url, false, BTreeMap::new()));
    stream(channel, bearer, both.to_vec()).await
}
