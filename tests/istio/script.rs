//! What the scripted istiod knows, does and remembers. Tests change it and look into it while it serves.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_proto::istio::workload::{Address, TunnelProtocol, Workload, address};
use mesh_proto::type_url;
use mesh_proto::wkt::{self, value::Kind};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// Shared by the test and the server.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<State>>);

/// See the module.
#[derive(Default)]
pub struct State {
    /// The JWT that is accepted.
    pub jwt: String,
    /// Seconds that a certificate lives from now on.
    pub lifetime: i64,
    /// What every request for a certificate is refused with.
    pub no_certificates: Option<Code>,
    /// What every stream is refused with; `FailedPrecondition`, every one that registers.
    pub no_streams: Option<(Code, &'static str)>,
    /// What becomes of a machine that registers.
    pub register: Register,
    pub certificates: Vec<Certificate>,
    pub streams: Vec<Stream>,
    /// By type URL: name to version and value.
    pub resources: BTreeMap<&'static str, BTreeMap<String, (String, Vec<u8>)>>,
    nonces: u64,
}

/// How auto-registration goes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Register {
    #[default]
    Properly,
    /// As where it is turned off.
    Not,
    /// As Istio before 1.31 without the label.
    WithoutTunnel,
    /// As where the template names no account.
    AsDefaultAccount,
}

/// A request for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whether the JWT stood for the caller; else its certificate did.
    pub by_jwt: bool,
    pub cluster: String,
    /// URI that the request asks for.
    pub asked: String,
}

/// A stream, live or ended.
pub struct Stream {
    /// The identity of the client certificate.
    pub client: String,
    pub node: Node,
    /// By type URL: the versions that the first request named.
    pub held: BTreeMap<String, BTreeMap<String, String>>,
    /// Answers to responses: ACK and NACK.
    pub answers: Vec<DeltaDiscoveryRequest>,
    pub sent: Vec<DeltaDiscoveryResponse>,
    /// What was reported of the machine's health: the reason why it is ill.
    pub health: Vec<Option<String>>,
    sender: Option<mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>>,
}

impl Script {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Adds or changes an address, for all streams.
    pub fn push_address(&self, name: &str, version: &str, address: Option<address::Type>) {
        let value = Address { r#type: address }.encode_to_vec();
        self.lock()
            .push(type_url::ADDRESS, vec![(name.into(), version.into(), value)], vec![]);
    }

    /// Takes an address away, for all streams.
    pub fn remove_address(&self, name: &str) {
        self.lock().push(type_url::ADDRESS, vec![], vec![name.into()]);
    }

    /// Sets or takes away a policy, for all streams; it has no version, as at istiod.
    pub fn policy(&self, name: &str, policy: Option<Vec<u8>>) {
        let (changed, gone) = match policy {
            Some(value) => (vec![(name.into(), String::new(), value)], vec![]),
            None => (vec![], vec![name.into()]),
        };
        self.lock().push(type_url::AUTHORIZATION, changed, gone);
    }

    /// Ends every stream in peace, as istiod does after half an hour.
    pub fn close_streams(&self) {
        self.lock().streams.iter_mut().for_each(|stream| stream.sender = None);
    }
}

impl State {
    /// The streams so far that bring the world.
    pub fn worlds(&self) -> Vec<&Stream> {
        let all = self.streams.iter();
        all.filter(|stream| group(&stream.node).is_none()).collect()
    }

    /// The streams so far that register a machine.
    pub fn registrations(&self) -> Vec<&Stream> {
        let all = self.streams.iter();
        all.filter(|stream| group(&stream.node).is_some()).collect()
    }

    /// Why a stream of this node is refused.
    pub fn refusal(&self, node: &Node) -> Option<Status> {
        let (code, message) = self.no_streams?;
        (code != Code::FailedPrecondition || group(node).is_some()).then(|| Status::new(code, message))
    }

    /// The client has ended this stream: with the one that registered a machine its record goes. (istiod waits ten seconds, also
    /// when it has ended the stream itself; who is back within these keeps the record.)
    pub fn ended(&mut self, stream: usize) {
        let by_client = self.streams[stream].sender.take().is_some();
        if let Some((uid, _)) = self.registration(&self.streams[stream].node)
            && by_client
        {
            self.push(type_url::ADDRESS, vec![], vec![uid]);
        }
    }
}

impl State {
    /// Takes a new stream by its first request; its number.
    pub fn open(
        &mut self,
        client: String,
        node: Node,
        sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> usize {
        if let Some((uid, workload)) = self.registration(&node) {
            let value = Address {
                r#type: Some(address::Type::Workload(workload)),
            }
            .encode_to_vec();
            self.push(type_url::ADDRESS, vec![(uid, "1".into(), value)], vec![]);
        }
        self.streams.push(Stream {
            client,
            node,
            held: BTreeMap::new(),
            answers: Vec::new(),
            sent: Vec::new(),
            health: Vec::new(),
            sender: Some(sender),
        });
        self.streams.len() - 1
    }

    /// One request on a stream: the first of its type, which is answered with all that is not held; or an answer.
    pub fn request(&mut self, stream: usize, request: DeltaDiscoveryRequest) {
        if !request.response_nonce.is_empty() {
            self.streams[stream].answers.push(request);
            return;
        }
        if request.type_url == type_url::HEALTH {
            let reason = request.error_detail.map(|status| status.message);
            self.streams[stream].health.push(reason);
            return;
        }
        if request.resource_names_unsubscribe == ["*"] {
            // Nothing is wanted, and nothing is said.
            return;
        }
        let held = request.initial_resource_versions;
        let all = self
            .resources
            .get(request.type_url.as_str())
            .cloned()
            .unwrap_or_default();
        let gone = held.keys().filter(|name| !all.contains_key(*name)).cloned().collect();
        // Versions of policies are not compared (istiod has none).
        let fresh = all
            .into_iter()
            .filter(|(name, (version, _))| version.is_empty() || held.get(name) != Some(version));
        let fresh = fresh.map(|(name, (version, value))| (name, version, value)).collect();
        self.streams[stream]
            .held
            .insert(request.type_url.clone(), held.into_iter().collect());
        let response = self.response(&request.type_url, fresh, gone);
        self.streams[stream].send(response);
    }

    fn push(&mut self, type_url: &'static str, changed: Vec<(String, String, Vec<u8>)>, gone: Vec<String>) {
        let all = self.resources.entry(type_url).or_default();
        for (name, version, value) in &changed {
            all.insert(name.clone(), (version.clone(), value.clone()));
        }
        for name in &gone {
            all.remove(name);
        }
        let response = self.response(type_url, changed, gone);
        let subscribed = self
            .streams
            .iter_mut()
            .filter(|stream| stream.held.contains_key(type_url));
        subscribed.for_each(|stream| stream.send(response.clone()));
    }

    fn response(
        &mut self,
        type_url: &str,
        changed: Vec<(String, String, Vec<u8>)>,
        gone: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        self.nonces += 1;
        let resource = |(name, version, value): (String, String, Vec<u8>)| Resource {
            name,
            version,
            resource: Some(wkt::Any {
                type_url: type_url.into(),
                value,
            }),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: self.nonces.to_string(),
            resources: changed.into_iter().map(resource).collect(),
            removed_resources: gone,
            ..DeltaDiscoveryResponse::default()
        }
    }

    /// The record that istiod makes from the metadata of a node.
    fn registration(&self, node: &Node) -> Option<(String, Workload)> {
        let of = |name| text(node, name);
        let group = group(node).filter(|_| self.register != Register::Not)?;
        let (namespace, network, ip) = (of("NAMESPACE")?, of("NETWORK")?, of("INSTANCE_IPS")?);
        let mut name = format!("{group}-{}", ip.replace(':', "-"));
        if !network.is_empty() {
            name = format!("{name}-{network}");
        }
        let address: IpAddr = ip.parse().unwrap();
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{namespace}/{name}",
            of("CLUSTER_ID")?
        );
        let hbone = self.register != Register::WithoutTunnel
            && label(node, "networking.istio.io/tunnel") == Some("http".into());
        let account = match self.register {
            Register::AsDefaultAccount => String::new(),
            _ => of("SERVICE_ACCOUNT")?,
        };
        let workload = Workload {
            uid: uid.clone(),
            name,
            namespace,
            network,
            addresses: vec![match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            }],
            tunnel_protocol: if hbone {
                TunnelProtocol::Hbone
            } else {
                TunnelProtocol::None
            } as i32,
            trust_domain: "example.org".into(),
            service_account: account,
            ..Workload::default()
        };
        Some((uid, workload))
    }
}

impl Stream {
    pub fn is_open(&self) -> bool {
        self.sender.is_some()
    }

    fn send(&mut self, response: DeltaDiscoveryResponse) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Ok(response.clone()));
            self.sent.push(response);
        }
    }
}

/// The WorkloadGroup that a node wants to be registered by.
fn group(node: &Node) -> Option<String> {
    text(node, "AUTO_REGISTER_GROUP")
}

/// A text of a node's metadata.
pub fn text(node: &Node, name: &str) -> Option<String> {
    match node.metadata.as_ref()?.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// A label of a node.
pub fn label(node: &Node, name: &str) -> Option<String> {
    match node.metadata.as_ref()?.fields.get("LABELS")?.kind.as_ref()? {
        Kind::StructValue(labels) => match labels.fields.get(name)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}
