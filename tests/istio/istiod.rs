//! The server: TLS with an optional client certificate, the certificate service, and delta ADS, all as the script says.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use mesh_agent::tls::PeerCertificate;
use mesh_proto::envoy::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::istio::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Response, Status, Streaming};
use tower::Service as _;

use crate::script::{Certificate, Script};

/// The name in its certificate.
pub const NAME: &str = "istiod.istio-system.svc";

/// The mesh's CA, which signs istiod's certificate too.
pub struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "example.org");
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate chain and key of a member that is no machine of ours.
    pub fn member(&self, identity: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let request = request.serialize_request(&key).unwrap().pem().unwrap();
        (self.sign(&request, identity, 86_400), key.serialize_pem())
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![NAME.into()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        let provider = mesh_agent::tls::provider();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.into()
    }

    /// A leaf for the key of a request, of this identity, whatever the request says.
    fn sign(&self, csr: &str, identity: &str, seconds: i64) -> String {
        let mut request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.subject_alt_names = vec![rcgen::SanType::URI(identity.try_into().unwrap())];
        request.params.not_before = OffsetDateTime::now_utc() - time::Duration::seconds(2);
        request.params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        request.params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

/// A running istiod; it ends when dropped.
pub struct Istiod {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Istiod {
    /// Serves on a listener that was bound on the machine where it should be.
    pub fn start(listener: std::net::TcpListener, ca: Arc<Ca>, script: Script) -> Self {
        let (stop, stopped) = oneshot::channel();
        let service = Service { ca, script };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(service.serve(listener, stopped));
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

#[derive(Clone)]
struct Service {
    ca: Arc<Ca>,
    script: Script,
}

impl Service {
    async fn serve(self, listener: std::net::TcpListener, stopped: oneshot::Receiver<()>) {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let acceptor = TlsAcceptor::from(self.ca.server());
        let (connections, incoming) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = connections.send(io::Result::Ok(Connection(stream))).await;
                }
            }
        });
        let routes = tower::service_fn(move |request: http::Request<Body>| {
            let certificates = request
                .uri()
                .path()
                .starts_with("/istio.v1.auth.IstioCertificateService/");
            let service = self.clone();
            async move {
                if certificates {
                    IstioCertificateServiceServer::new(service).call(request).await
                } else {
                    AggregatedDiscoveryServiceServer::new(service).call(request).await
                }
            }
        });
        let server = Server::builder().serve_with_incoming(routes, ReceiverStream::new(incoming));
        tokio::select! {
            served = server => served.unwrap(),
            _ = stopped => {}
        }
    }
}

/// The SPIFFE ID of a verified client certificate.
fn client<T>(request: &Request<T>) -> Option<String> {
    request.extensions().get::<Peer>().cloned().flatten()
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| Some(request.metadata().get(name)?.to_str().unwrap().to_owned());
        let (client, bearer, cluster) = (client(&request), header("authorization"), header("clusterid"));
        let csr = request.into_inner().csr;
        let mut script = self.script.lock();
        let asked = rcgen::CertificateSigningRequestParams::from_pem(&csr)
            .unwrap()
            .params
            .subject_alt_names;
        script.certificates.push(Certificate {
            by_jwt: bearer.is_some(),
            cluster: cluster.unwrap_or_default(),
            asked: match asked.as_slice() {
                [rcgen::SanType::URI(uri)] => uri.to_string(),
                other => format!("{other:?}"),
            },
        });
        if let Some(code) = script.no_certificates {
            return Err(Status::new(code, "as the script says"));
        }
        let identity = match (client, bearer) {
            (Some(identity), _) => identity,
            (None, Some(bearer)) if bearer == format!("Bearer {}", script.jwt) => crate::lab::IDENTITY.to_owned(),
            _ => return Err(Status::unauthenticated("request authenticate failure")),
        };
        let leaf = self.ca.sign(&csr, &identity, script.lifetime);
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf, self.ca.pem.clone()],
        }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let client = client(&request).ok_or_else(|| Status::unauthenticated("authentication failure"))?;
        let (sender, receiver) = mpsc::channel(256);
        let script = self.script.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            let mut next = requests.message().await.ok().flatten();
            let Some(node) = next
                .as_ref()
                .map(|first| first.node.clone().expect("a first request has a node"))
            else {
                return;
            };
            if let Some(refusal) = script.lock().refusal(&node) {
                let _ = sender.try_send(Err(refusal));
                return;
            }
            let number = script.lock().open(client, node, sender);
            while let Some(message) = next {
                script.lock().request(number, message);
                next = requests.message().await.ok().flatten();
            }
            script.lock().ended(number);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Peer = Option<String>;

/// A TLS connection that tells who the client is.
struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (_, tls) = self.0.get_ref();
        let leaf = tls.peer_certificates()?.first()?;
        Some(PeerCertificate::parse(leaf)?.identity()?.to_string())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
