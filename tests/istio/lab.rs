//! One istiod and machines on one wire, and bundles as istioctl writes them.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_lab::{Host, Lan};
use mesh_proto::istio::workload::{Address, Workload, address};
use mesh_proto::type_url;
use prost::Message as _;

use crate::fixture::Machine;
use crate::istiod::{Ca, Istiod, NAME};
use crate::script::Script;

/// Whom the bundles are for.
pub const IDENTITY: &str = "spiffe://example.org/ns/shop/sa/orders";

/// See the module.
pub struct Lab {
    pub script: Script,
    lan: Lan,
    host: Host,
    address: String,
    ca: Arc<Ca>,
    istiod: Option<Istiod>,
    dir: tempfile::TempDir,
}

impl Lab {
    /// istiod runs, and gives certificates for a day.
    pub fn start() -> Self {
        let mut dir = tempfile::Builder::new().prefix("istio-test").tempdir().unwrap();
        dir.disable_cleanup(std::env::var_os("MESH_KEEP").is_some());
        let lan = Lan::new();
        let host = Host::new("istiod");
        let (address, _) = lan.attach(&host);
        let mut lab = Self {
            script: Script::default(),
            lan,
            host,
            address: address.to_string(),
            ca: Arc::new(Ca::new()),
            istiod: None,
            dir,
        };
        {
            let mut script = lab.script.lock();
            script.jwt = jwt("istio-ca", 3600);
            script.lifetime = 86_400;
        }
        lab.start_istiod();
        lab
    }

    pub fn start_istiod(&mut self) {
        let address = format!("{}:15012", self.address);
        let listener = self.host.enter(|| std::net::TcpListener::bind(address).unwrap());
        self.istiod = Some(Istiod::start(listener, self.ca.clone(), self.script.clone()));
    }

    pub fn stop_istiod(&mut self) {
        self.istiod = None;
    }

    pub fn machine(&self, name: &str) -> Machine {
        Machine::attached(&self.lan, self.dir.path(), name)
    }

    /// A machine that has joined, whose agent is ready.
    pub fn member(&self) -> Machine {
        self.member_named("vm")
    }

    /// One of several.
    pub fn member_named(&self, name: &str) -> Machine {
        let mut machine = self.machine(name);
        join(&machine, &self.bundle());
        machine.start();
        machine.wait_ready();
        machine
    }

    /// Certificate chain and key of a member that is no machine of ours.
    pub fn certificate(&self, identity: &str) -> (String, String) {
        self.ca.member(identity)
    }

    /// The anchor of the mesh.
    pub fn root(&self) -> String {
        self.ca.pem.clone()
    }

    /// The record that istiod made of a machine.
    pub fn recorded(&self, machine: &Machine) -> Workload {
        let name = self.record(machine);
        let script = self.script.lock();
        let values = script.resources[type_url::ADDRESS].values();
        let mut workloads = values.filter_map(|(_, value)| match Address::decode(&**value).unwrap().r#type {
            Some(address::Type::Workload(workload)) => Some(workload),
            _ => None,
        });
        workloads.find(|workload| workload.name == name).unwrap()
    }

    /// The name that istiod computes for the record of a machine.
    pub fn record(&self, machine: &Machine) -> String {
        format!("orders-{}-vms", machine.ip4)
    }

    /// A good bundle, in a directory of its own.
    pub fn bundle(&self) -> PathBuf {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let jwt = self.script.lock().jwt.clone();
        for (name, text) in [
            ("cluster.env", CLUSTER_ENV.to_owned()),
            ("mesh.yaml", MESH_YAML.to_owned()),
            ("root-cert.pem", self.ca.pem.clone()),
            ("istio-token", jwt),
            ("hosts", format!("{} {NAME}\n", self.address)),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        dir
    }
}

/// `mesh-agent join --istio-bundle`, with more arguments.
pub fn try_join(machine: &Machine, bundle: &std::path::Path, more: &[&str]) -> Output {
    let bundle = bundle.to_str().unwrap();
    machine.try_agent(&[&["join", "--istio-bundle", bundle], more].concat())
}

pub fn join(machine: &Machine, bundle: &std::path::Path) {
    let output = try_join(machine, bundle, &[]);
    assert!(output.status.success(), "join: {}", crate::fixture::text(&output));
}

/// A token of the account `shop/orders` that expires in so many seconds.
pub fn jwt(audience: &str, seconds: i64) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let expires = now.saturating_add_signed(seconds);
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let payload = format!(
        r#"{{"iss":"https://kubernetes.default.svc","aud":["{audience}"],"sub":"system:serviceaccount:shop:orders","exp":{expires}}}"#
    );
    [
        part(r#"{"alg":"RS256"}"#.into()),
        part(payload),
        part("signed by the script".into()),
    ]
    .join(".")
}

const CLUSTER_ENV: &str =
    "ISTIO_INBOUND_PORTS='*'\nISTIO_NAMESPACE='shop'\nISTIO_SERVICE='orders.shop'\nSERVICE_ACCOUNT='orders'\n";
const MESH_YAML: &str = r#"defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata:
    CANONICAL_REVISION: latest
    CANONICAL_SERVICE: orders
    ISTIO_META_AUTO_REGISTER_GROUP: orders
    ISTIO_META_CLUSTER_ID: c1
    ISTIO_META_DNS_CAPTURE: "true"
    ISTIO_META_MESH_ID: m1
    ISTIO_META_NETWORK: vms
    ISTIO_META_WORKLOAD_NAME: orders
    ISTIO_METAJSON_LABELS: '{"app":"orders","service.istio.io/canonical-name":"orders"}'
    POD_NAMESPACE: shop
    SERVICE_ACCOUNT: orders
    TRUST_DOMAIN: example.org
"#;
