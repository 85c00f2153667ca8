//! What the control plane told us, as one immutable value with its indexes.
//!
//! A [`World`] is never changed: [`World::apply`] gives the next one, sharing structure with the last (`imbl`), so that
//! one change among 100,000 workloads costs microseconds. Readers hold an `Arc<World>`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::baggage::Baggage;
use crate::identity::Identity;

mod bucket;
pub mod convert;
#[cfg(test)]
pub(crate) mod fixture;
mod gateway;
mod store;
#[cfg(test)]
mod tests;

pub use gateway::{ApplicationTunnel, Gateway, GatewayDestination, Named};
pub use store::World;

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Plain TCP.
    None,
    /// CONNECT over mutual TLS to port 15008.
    Hbone,
}

/// Region, zone, subzone; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// Service port to target port. Target 0 means "named: look at the endpoint's own list".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub service_port: u16,
    pub target_port: u16,
    pub app_protocol: i32,
}

/// Key of a service: (namespace, hostname).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

/// An address in a network: the same IP may exist in two networks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    pub network: Arc<str>,
    pub address: IpAddr,
}

/// One workload. Defaults of WDS (trust domain, service account, cluster) are filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub addresses: Vec<IpAddr>,
    pub hostname: Arc<str>,
    pub network: Arc<str>,
    pub tunnel_protocol: TunnelProtocol,
    pub identity: Identity,
    pub node: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub workload_type: i32,
    pub workload_name: Arc<str>,
    /// Keys `namespace/name` of the policies that select this workload.
    pub authorization_policies: Vec<Arc<str>>,
    pub healthy: bool,
    pub cluster_id: Arc<str>,
    pub host_network: bool,
    pub locality: Locality,
    pub capacity: u32,
    pub services: Vec<(ServiceKey, Vec<Port>)>,
    /// Who is passed by connections to its own addresses. Shared: whole namespaces name the same one.
    pub waypoint: Option<Arc<Gateway>>,
    /// Through whom other networks reach it.
    pub network_gateway: Option<Arc<Gateway>>,
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The control plane says that it speaks HBONE/3.
    pub hbone3: bool,
}

/// How endpoints of a service are preferred (WDS: `LoadBalancing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BalanceMode {
    #[default]
    Any,
    Strict,
    Failover,
    Passthrough,
}

/// What endpoints are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// Which address families a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IpFamilies {
    #[default]
    Automatic,
    V4Only,
    V6Only,
    Dual,
}

impl IpFamilies {
    /// Whether endpoints are reached at this address.
    pub fn allow(self, address: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4Only => address.is_ipv4(),
            Self::V6Only => address.is_ipv6(),
        }
    }
}

/// One service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: Arc<str>,
    pub key: ServiceKey,
    /// VIPs; a range when the prefix is shorter than the address.
    pub vips: Vec<(Arc<str>, IpNet)>,
    pub ports: Vec<Port>,
    pub subject_alt_names: Vec<Identity>,
    pub mode: BalanceMode,
    pub preference: Vec<Scope>,
    pub allow_unhealthy: bool,
    pub ip_families: IpFamilies,
    pub canonical: bool,
    /// Who is passed by connections to its VIPs.
    pub waypoint: Option<Arc<Gateway>>,
    /// Several with their weights, which then stand for [`Service::waypoint`].
    pub weighted_waypoints: Vec<(Arc<Gateway>, u32)>,
    /// Seen only from its own namespace.
    pub private: bool,
}

/// A revocation: what must no longer be believed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Revocation {
    pub serials: Vec<Vec<u8>>,
    pub spki_sha256: Vec<[u8; 32]>,
}

/// What is to be changed, from one xDS response.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    pub policies: Vec<crate::policy::Policy>,
    /// Names in the Address type: a workload uid, or `namespace/hostname`.
    pub removed_addresses: Vec<String>,
    /// `namespace/name`.
    pub removed_policies: Vec<String>,
    pub revocations: Vec<(String, Revocation)>,
    pub removed_revocations: Vec<String>,
    /// (trust domain, PEM anchors).
    pub trust_bundle: Option<(String, Vec<String>)>,
    /// How the application is probed from now on.
    pub probe: Option<crate::health::Probe>,
    /// It is probed no more.
    pub removed_probe: bool,
    /// The first Probe response was applied (also: an empty one).
    pub probe_synced: bool,
    /// The first Address response was applied (also: an empty one).
    pub addresses_synced: bool,
    /// The first Authorization response was applied.
    pub policies_synced: bool,
}

impl Workload {
    /// A workload of which nothing is known but what it says of itself: for telemetry, and for nothing else.
    pub fn described(said: &Baggage<'_>, identity: Identity) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            uid: Arc::clone(&empty),
            name: said.workload.into(),
            namespace: identity.namespace().into(),
            addresses: Vec::new(),
            hostname: Arc::clone(&empty),
            network: Arc::clone(&empty),
            tunnel_protocol: TunnelProtocol::Hbone,
            identity,
            node: empty,
            canonical_name: said.canonical_service.into(),
            canonical_revision: said.canonical_revision.into(),
            workload_type: 0,
            workload_name: said.workload.into(),
            authorization_policies: Vec::new(),
            healthy: true,
            cluster_id: said.cluster.into(),
            host_network: false,
            locality: Locality {
                region: said.region.into(),
                zone: said.zone.into(),
                subzone: "".into(),
            },
            capacity: 1,
            services: Vec::new(),
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            hbone3: false,
        }
    }

    /// Whether this is a Pod, which wins over others that hold the same address.
    fn is_pod(&self) -> bool {
        self.workload_type == mesh_proto::istio::workload::WorkloadType::Pod as i32
    }

    /// How well it holds an address that others hold too; lower is better (as ztunnel does it).
    fn address_rank(&self) -> u8 {
        match (self.is_pod(), self.tunnel_protocol) {
            (true, TunnelProtocol::Hbone) => 0,
            (true, TunnelProtocol::None) => 1,
            (false, TunnelProtocol::Hbone) => 2,
            (false, TunnelProtocol::None) => 3,
        }
    }

    /// Whether it comes from a WorkloadEntry: a machine outside Kubernetes, as istiod and mesh-control write its uid.
    pub fn is_machine(&self) -> bool {
        self.uid
            .split('/')
            .skip(1)
            .take(2)
            .eq(["networking.istio.io", "WorkloadEntry"])
    }

    /// Its ports of one service.
    pub fn ports_of(&self, service: &ServiceKey) -> Option<&[Port]> {
        self.services
            .iter()
            .find(|(key, _)| key == service)
            .map(|(_, ports)| ports.as_slice())
    }
}

impl Service {
    /// Whether a client in `namespace` may see it.
    pub fn visible_from(&self, namespace: &str) -> bool {
        !self.private || &*self.key.namespace == namespace
    }
}

/// Of several services that claim one name or address: the client's own namespace, then the canonical one, then the first
/// in key order; invisible ones do not count.
pub fn preferred<'a>(candidates: impl Iterator<Item = &'a Arc<Service>>, namespace: &str) -> Option<&'a Arc<Service>> {
    candidates
        .filter(|service| service.visible_from(namespace))
        .min_by_key(|service| (&*service.key.namespace != namespace, !service.canonical))
}
