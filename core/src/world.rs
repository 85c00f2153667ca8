//! What the control plane told us, as one immutable value with its indexes.
//!
//! A [`World`] is never changed: [`World::apply`] gives the next one, sharing structure with the last (`imbl`), so that
//! one change among 100,000 workloads costs microseconds. Readers hold an `Arc<World>`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::Identity;

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    None,
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
    pub has_waypoint: bool,
    pub has_network_gateway: bool,
}

/// How endpoints of a service are preferred (istio-wire: `LoadBalancing`).
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
    pub has_waypoint: bool,
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
    /// The first Address response was applied (also: an empty one).
    pub addresses_synced: bool,
    /// The first Authorization response was applied.
    pub policies_synced: bool,
}

/// Everything the control plane told us.
#[derive(Clone, Debug, Default)]
pub struct World {}

#[allow(unused_variables)]
impl World {
    /// The next world.
    pub fn apply(&self, delta: Delta) -> Self {
        todo!()
    }
    /// A workload by its uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        todo!()
    }
    /// The best workload that holds an address (Pod+HBONE > Pod > HBONE > other; never a HOST_NETWORK one).
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        todo!()
    }
    /// A workload by namespace and name (an agent finds itself so).
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        todo!()
    }
    /// The service that a VIP stands for, as seen from `namespace` (istio-wire section 3.1, lookup order).
    pub fn service_at(&self, network: &str, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        todo!()
    }
    /// A service by its key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        todo!()
    }
    /// Services that have this hostname.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        std::iter::empty()
    }
    /// Endpoints of a service, in uid order (healthy or not; see [`crate::balance`]).
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }
    /// A policy by its key `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<crate::policy::Policy>> {
        todo!()
    }
    /// Whether a certificate was revoked.
    pub fn is_revoked(&self, serial: &[u8], spki_sha256: &[u8; 32]) -> bool {
        todo!()
    }
    /// Trust anchors that the control plane announced: (trust domain, PEM).
    pub fn trust_bundle(&self) -> Option<(&str, &[String])> {
        todo!()
    }
    /// Prefixes whose traffic is to be captured: service VIPs, and addresses of workloads that speak HBONE, are not
    /// HOST_NETWORK, are in `network`, and are not in `own`.
    pub fn captured_prefixes(&self, network: &str, own: &[IpAddr]) -> std::collections::BTreeSet<IpNet> {
        todo!()
    }
    /// All workloads, services and policies in key order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }
    /// All services in key order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        std::iter::empty()
    }
    /// All policies in key order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<crate::policy::Policy>> {
        std::iter::empty()
    }
    /// Whether the first response of the Address type was applied.
    pub fn addresses_synced(&self) -> bool {
        todo!()
    }
    /// Whether the first response of the Authorization type was applied; until then nothing inbound is served.
    pub fn policies_synced(&self) -> bool {
        todo!()
    }
}
