//! One published state of everything: resources by type, each with a version that is a hash of its content.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use mesh_proto::istio::workload::{Address, address};
use mesh_proto::mesh::{Revocation, TrustBundle};
use mesh_proto::{type_url, wkt};
use prost::Message;

use crate::ca::hex;
use crate::derive::World;
use crate::store::{Revoked, timestamp};

/// The types that we serve, in the order in which they are pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdsType {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
    /// Revoked certificates.
    Revocation,
    /// Trust anchors.
    TrustBundle,
    /// How agents probe their applications.
    Probe,
}

impl XdsType {
    /// All, in the order in which they are pushed.
    pub const ALL: [Self; 5] = [
        Self::Address,
        Self::Authorization,
        Self::Revocation,
        Self::TrustBundle,
        Self::Probe,
    ];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Self::Address => type_url::ADDRESS,
            Self::Authorization => type_url::AUTHORIZATION,
            Self::Revocation => type_url::REVOCATION,
            Self::TrustBundle => type_url::TRUST_BUNDLE,
            Self::Probe => type_url::PROBE,
        }
    }

    /// The type of this URL.
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }
}

/// One resource.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// Hash of the content.
    pub version: String,
    /// Other names that find it: `network/ip`.
    pub aliases: Vec<String>,
    /// The resource.
    pub any: wkt::Any,
}

/// All resources of one type.
#[derive(Debug, Default, PartialEq)]
pub struct TypeSnapshot {
    /// By name.
    pub resources: BTreeMap<String, Arc<Entry>>,
    /// From alias to name.
    pub aliases: BTreeMap<String, String>,
    /// From a service to the workloads behind it: whoever asks for the one gets the others.
    pub members: BTreeMap<String, Vec<String>>,
}

impl TypeSnapshot {
    fn insert(&mut self, name: String, url: &str, value: Vec<u8>, aliases: Vec<String>) {
        for alias in &aliases {
            self.aliases.entry(alias.clone()).or_insert_with(|| name.clone());
        }
        let version = hex(&digest(&SHA256, &value).as_ref()[..8]);
        let any = wkt::Any {
            type_url: url.to_owned(),
            value,
        };
        self.resources.insert(name, Arc::new(Entry { version, aliases, any }));
    }

    /// Name and resource that `name` finds: a name, or an alias.
    pub fn find(&self, name: &str) -> Option<(&String, &Arc<Entry>)> {
        self.resources
            .get_key_value(name)
            .or_else(|| self.resources.get_key_value(self.aliases.get(name)?))
    }
}

/// Everything, as it is published at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    types: [Arc<TypeSnapshot>; XdsType::ALL.len()],
    /// Fingerprints of the anchors in the trust bundle.
    pub anchors: Arc<[String]>,
}

impl Snapshot {
    /// A snapshot of this world. Types that did not change share their value with `before`.
    pub fn new(
        before: &Self,
        world: &World,
        revoked: &[Revoked],
        trust_domain: &str,
        anchors: &[(String, String)],
    ) -> Self {
        let fresh = [
            addresses(world),
            authorizations(world),
            revocations(revoked),
            trust_bundle(trust_domain, anchors),
            probes(world),
        ];
        let mut types = before.types.clone();
        for (kept, new) in types.iter_mut().zip(fresh) {
            if **kept != new {
                *kept = Arc::new(new);
            }
        }
        Self {
            types,
            anchors: anchors.iter().map(|(fingerprint, _)| fingerprint.clone()).collect(),
        }
    }

    /// The resources of one type.
    pub fn of(&self, xds_type: XdsType) -> &Arc<TypeSnapshot> {
        &self.types[xds_type as usize]
    }

    /// Whether nothing differs.
    pub fn same(&self, other: &Self) -> bool {
        self.types.iter().zip(&other.types).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

fn addresses(world: &World) -> TypeSnapshot {
    let mut all = TypeSnapshot::default();
    for (key, service) in &world.services {
        let aliases = service.addresses.iter().filter(|a| a.length.is_none());
        let aliases = aliases.filter_map(|a| alias(&a.network, &a.address)).collect();
        let wrapped = Address {
            r#type: Some(address::Type::Service(service.clone())),
        };
        all.insert(key.clone(), type_url::ADDRESS, wrapped.encode_to_vec(), aliases);
    }
    for (uid, workload) in &world.workloads {
        let aliases = workload
            .addresses
            .iter()
            .filter_map(|a| alias(&workload.network, a))
            .collect();
        let wrapped = Address {
            r#type: Some(address::Type::Workload(workload.clone())),
        };
        all.insert(uid.clone(), type_url::ADDRESS, wrapped.encode_to_vec(), aliases);
        for service in workload.services.keys() {
            all.members.entry(service.clone()).or_default().push(uid.clone());
        }
    }
    all
}

fn alias(network: &str, bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(format!("{network}/{address}"))
}

fn authorizations(world: &World) -> TypeSnapshot {
    let mut all = TypeSnapshot::default();
    for (key, policy) in &world.policies {
        all.insert(key.clone(), type_url::AUTHORIZATION, policy.encode_to_vec(), Vec::new());
    }
    all
}

fn revocations(revoked: &[Revoked]) -> TypeSnapshot {
    let mut all = TypeSnapshot::default();
    for one in revoked {
        let resource = Revocation {
            name: one.agent.clone(),
            serials: one.serials.clone(),
            spki_sha256: one.spki_sha256.clone(),
            revoked_at: Some(timestamp(one.revoked_at)),
        };
        all.insert(
            one.agent.clone(),
            type_url::REVOCATION,
            resource.encode_to_vec(),
            Vec::new(),
        );
    }
    all
}

fn probes(world: &World) -> TypeSnapshot {
    let mut all = TypeSnapshot::default();
    for (name, probe) in &world.probes {
        all.insert(name.clone(), type_url::PROBE, probe.encode_to_vec(), Vec::new());
    }
    all
}

fn trust_bundle(trust_domain: &str, anchors: &[(String, String)]) -> TypeSnapshot {
    let mut all = TypeSnapshot::default();
    let bundle = TrustBundle {
        trust_domain: trust_domain.to_owned(),
        anchors: anchors.iter().map(|(_, pem)| pem.clone()).collect(),
    };
    all.insert(
        "default".to_owned(),
        type_url::TRUST_BUNDLE,
        bundle.encode_to_vec(),
        Vec::new(),
    );
    all
}
