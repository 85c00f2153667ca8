//! A control plane in this process on ephemeral ports, and a machine that speaks to it as an agent does.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hyper_util::rt::TokioIo;
use mesh_control::config::Settings;
use mesh_control::serve;
use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::istio::ca::IstioCertificateRequest;
use mesh_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::mesh::join_service_client::JoinServiceClient;
use mesh_proto::mesh::operator_client::OperatorClient;
use mesh_proto::mesh::*;
use mesh_proto::wkt::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

pub(crate) const GROUP: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata:\n  name: web\n  namespace: shop\n  annotations: {mesh.internal/allowed-cidrs: 10.0.0.0/8}\nspec: {template: {serviceAccount: web, labels: {app: web}}}\n";

/// Waits until `check` gives a value; panics after ten seconds.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    for _ in 0..500 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never came: {what}");
}

pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) settings: Settings,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            listen: "127.0.0.1:0".parse().unwrap(),
            operator_listen: "127.0.0.1:0".parse().unwrap(),
            grace_seconds: 1,
            ..Settings::default()
        };
        change(&mut settings);
        Self::launch(dir, settings).await
    }

    async fn launch(dir: tempfile::TempDir, settings: Settings) -> Self {
        let _ = std::fs::remove_file(settings.run_dir.join("addresses.json"));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve::serve(settings.clone(), stopped));
        let server = Self {
            dir,
            settings,
            stop,
            task,
        };
        eventually("the server's addresses", || async {
            assert!(!server.task.is_finished(), "the server ended");
            std::fs::metadata(server.settings.run_dir.join("addresses.json")).ok()
        })
        .await;
        server
    }

    pub(crate) async fn restart(self) -> Self {
        self.stop.send_replace(true);
        self.task.abort();
        let _ = self.task.await;
        Self::launch(self.dir, self.settings).await
    }

    pub(crate) fn addresses(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.settings.run_dir.join("addresses.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn agents(&self) -> SocketAddr {
        self.addresses()["agents"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn operators(&self) -> SocketAddr {
        self.addresses()["operators"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.settings.run_dir.join("control.sock")
    }

    pub(crate) async fn operator(&self) -> OperatorClient<Channel> {
        OperatorClient::new(over_socket(self.socket()).await)
    }

    pub(crate) async fn apply(&self, yaml: &str) -> ApplyResponse {
        let documents = yaml
            .split("---\n")
            .map(|yaml| SourceDocument {
                file: "test.yaml".into(),
                line: 1,
                yaml: yaml.into(),
            })
            .collect();
        let request = ApplyRequest {
            documents,
            dry_run: false,
        };
        let response = self.operator().await.apply(request).await.unwrap().into_inner();
        assert!(response.problems.is_empty(), "{:?}", response.problems);
        response
    }

    pub(crate) async fn token(&self, change: impl FnOnce(&mut CreateTokenRequest)) -> BootstrapToken {
        let mut request = CreateTokenRequest {
            workload_group: "shop/web".into(),
            ..CreateTokenRequest::default()
        };
        change(&mut request);
        let made = self.operator().await.create_token(request).await.unwrap().into_inner();
        mesh_core::token::decode(&made.token).unwrap()
    }

    pub(crate) async fn list_agents(&self) -> Vec<AgentInfo> {
        let listed = self.operator().await.list_agents(ListAgentsRequest {}).await;
        listed.unwrap().into_inner().agents
    }

    pub(crate) async fn get(&self, kind: &str) -> Vec<StoredResource> {
        let request = GetRequest {
            kind: kind.into(),
            ..GetRequest::default()
        };
        self.operator().await.get(request).await.unwrap().into_inner().resources
    }
}

pub(crate) async fn over_socket(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://x")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// Takes any server: tests look at what it presents themselves.
#[derive(Debug)]
struct Anyone;

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
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A TLS connection as a gRPC channel, what the server presented, and the join exporter.
pub(crate) struct Link {
    pub(crate) channel: Channel,
    pub(crate) presented: Vec<CertificateDer<'static>>,
    pub(crate) exporter: [u8; 32],
}

pub(crate) async fn link(address: SocketAddr, identity: Option<(&[String], &KeyPair)>) -> Result<Link, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = chain[..chain.len() - 1]
                .iter()
                .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(chain.collect(), key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("mesh-control").unwrap();
    let tls = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    let session = tls.get_ref().1;
    let presented = session
        .peer_certificates()
        .unwrap()
        .iter()
        .map(|c| c.clone().into_owned())
        .collect();
    let exporter = session
        .export_keying_material([0; 32], b"EXPORTER-mesh-agent-join", None)
        .unwrap();
    let mut first = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_| {
        let ready = first.take();
        async move { ready.ok_or_else(|| std::io::Error::other("one connection only")) }
    });
    let endpoint = Endpoint::from_static("http://x");
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| e.to_string())?;
    Ok(Link {
        channel,
        presented,
        exporter,
    })
}

/// A machine: its host key, and after joining its certificate.
pub(crate) struct Machine {
    pub(crate) host: KeyPair,
    pub(crate) key: KeyPair,
    pub(crate) chain: Vec<String>,
    pub(crate) joined: JoinResponse,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            host: KeyPair::generate().unwrap(),
            key: KeyPair::generate().unwrap(),
            chain: Vec::new(),
            joined: JoinResponse::default(),
        }
    }

    pub(crate) fn csr(&self) -> String {
        let params = CertificateParams::default();
        params.serialize_request(&self.key).unwrap().pem().unwrap()
    }

    pub(crate) fn proof(&self, exporter: &[u8]) -> HostProof {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.host.serialize_der()).unwrap();
        let message = [b"mesh-agent-join-v1".as_slice(), exporter].concat();
        HostProof {
            public_key: self.host.subject_public_key_info(),
            signature: pair.sign(&SystemRandom::new(), &message).unwrap().as_ref().to_vec(),
        }
    }

    pub(crate) async fn join(
        &mut self,
        server: &Server,
        token: &BootstrapToken,
        address: &str,
    ) -> Result<JoinResponse, Status> {
        let link = link(server.agents(), None).await.unwrap();
        let request = JoinRequest {
            token_id: token.token_id.clone(),
            secret: token.secret.clone(),
            host: Some(self.proof(&link.exporter)),
            csr: self.csr(),
            address: address.into(),
            hostname: "vm".into(),
            agent_version: "0".into(),
        };
        let joined = JoinServiceClient::new(link.channel).join(request).await?.into_inner();
        self.chain.clone_from(&joined.cert_chain);
        self.joined = joined.clone();
        Ok(joined)
    }

    pub(crate) async fn joined(server: &Server, address: &str) -> Self {
        let token = server.token(|_| {}).await;
        let mut machine = Self::new();
        machine.join(server, &token, address).await.unwrap();
        machine
    }

    pub(crate) async fn channel(&self, server: &Server) -> Result<Channel, String> {
        link(server.agents(), Some((&self.chain, &self.key)))
            .await
            .map(|l| l.channel)
    }

    pub(crate) async fn renew(&mut self, server: &Server) -> Result<(), Status> {
        let channel = self.channel(server).await.map_err(Status::unavailable)?;
        let request = IstioCertificateRequest {
            csr: self.csr(),
            ..IstioCertificateRequest::default()
        };
        let response = IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await?;
        self.chain = response.into_inner().cert_chain;
        Ok(())
    }

    pub(crate) async fn recover(&mut self, server: &Server) -> Result<(), Status> {
        let link = link(server.agents(), None).await.unwrap();
        let request = RecoverRequest {
            host: Some(self.proof(&link.exporter)),
            csr: self.csr(),
            agent_version: "0".into(),
        };
        self.chain = JoinServiceClient::new(link.channel)
            .recover(request)
            .await?
            .into_inner()
            .cert_chain;
        Ok(())
    }

    pub(crate) fn node(&self, instance: &str) -> Node {
        let j = &self.joined;
        let text = |t: &str| Value {
            kind: Some(Kind::StringValue(t.to_owned())),
        };
        let fields = [
            ("AUTO_REGISTER_GROUP", j.workload_group.as_str()),
            ("NAMESPACE", &j.namespace),
            ("SERVICE_ACCOUNT", &j.service_account),
            ("MESH_INSTANCE_ID", instance),
            ("MESH_AGENT_VERSION", "0"),
        ];
        Node {
            id: format!(
                "ztunnel~{}~{}.{}~{}.svc.cluster.local",
                j.address, j.workload_name, j.namespace, j.namespace
            ),
            metadata: Some(Struct {
                fields: fields.map(|(k, v)| (k.to_owned(), text(v))).into(),
            }),
            ..Node::default()
        }
    }

    pub(crate) async fn stream(&self, server: &Server, instance: &str, urls: &[&str]) -> Result<Stream, Status> {
        let channel = self.channel(server).await.map_err(Status::unavailable)?;
        let (sender, receiver) = mpsc::channel(64);
        for url in urls {
            let request = DeltaDiscoveryRequest {
                node: Some(self.node(instance)),
                type_url: (*url).to_owned(),
                ..DeltaDiscoveryRequest::default()
            };
            sender.send(request).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let responses = client.delta_aggregated_resources(requests).await?.into_inner();
        Ok(Stream { sender, responses })
    }
}

pub(crate) struct Stream {
    pub(crate) sender: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    /// The next response, acknowledged.
    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.responses.message());
        let response = message
            .await
            .expect("a response in time")?
            .ok_or_else(|| Status::aborted("ended"))?;
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        let _ = self.sender.send(ack).await;
        Ok(response)
    }

    /// Reads on until a response satisfies `wanted`.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&DeltaDiscoveryResponse) -> bool) -> DeltaDiscoveryResponse {
        loop {
            let response = self.next().await.unwrap();
            if wanted(&response) {
                return response;
            }
        }
    }
}

pub(crate) fn word(status: &Status) -> &str {
    status
        .metadata()
        .get("x-mesh-error")
        .map_or("", |w| w.to_str().unwrap())
}
