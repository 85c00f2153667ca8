//! What the control plane told us, as one immutable value with its indexes.
//!
//! A [`World`] is never changed: [`World::apply`] gives the next one, sharing structure with the last (`imbl`), so that
//! one change among 100,000 workloads costs microseconds. Readers hold an `Arc<World>`.

pub mod convert;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, HashSet, OrdMap, OrdSet};
use ipnet::IpNet;

use crate::identity::Identity;
use crate::policy::{self, Policy};

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
    pub policies: Vec<Policy>,
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
pub struct World {
    workloads: OrdMap<Arc<str>, Arc<Workload>>,
    named: HashMap<(Arc<str>, Arc<str>), Arc<str>>,
    by_address: HashMap<NetworkAddress, Vec<Arc<str>>>,
    services: OrdMap<ServiceKey, Arc<Service>>,
    by_hostname: HashMap<Arc<str>, Vec<ServiceKey>>,
    vips: HashMap<NetworkAddress, Vec<ServiceKey>>,
    /// VIPs that are ranges: few.
    ranges: OrdMap<(Arc<str>, IpNet), Vec<ServiceKey>>,
    /// Uids of the workloads that name a service, whether or not the service is here yet.
    endpoints: HashMap<ServiceKey, OrdSet<Arc<str>>>,
    policies: OrdMap<Arc<str>, Arc<Policy>>,
    /// Keys of GLOBAL policies, and of NAMESPACE ones.
    global: OrdSet<Arc<str>>,
    by_namespace: HashMap<Arc<str>, OrdSet<Arc<str>>>,
    revocations: OrdMap<String, Arc<Revocation>>,
    revoked_serials: HashSet<Vec<u8>>,
    revoked_keys: HashSet<[u8; 32]>,
    trust_bundle: Option<Arc<(String, Vec<String>)>>,
    addresses_synced: bool,
    policies_synced: bool,
    version: u64,
}

impl World {
    /// The next world.
    #[must_use]
    pub fn apply(&self, delta: Delta) -> Self {
        let mut next = self.clone();
        next.version += 1;
        for name in delta.removed_addresses {
            next.remove_address(&name);
        }
        for workload in delta.workloads {
            next.insert_workload(workload);
        }
        for service in delta.services {
            next.insert_service(service);
        }
        next.apply_policies(delta.policies, &delta.removed_policies);
        next.apply_revocations(delta.revocations, &delta.removed_revocations);
        if let Some(bundle) = delta.trust_bundle {
            next.trust_bundle = Some(Arc::new(bundle));
        }
        next.addresses_synced |= delta.addresses_synced;
        next.policies_synced |= delta.policies_synced;
        next
    }

    fn apply_policies(&mut self, policies: Vec<Policy>, removed: &[String]) {
        for key in removed {
            self.remove_policy(key);
        }
        for policy in policies {
            self.remove_policy(&policy.key);
            let key = policy.key.clone();
            match policy.scope {
                policy::Scope::Global => drop(self.global.insert(key.clone())),
                policy::Scope::Namespace => {
                    self.by_namespace
                        .entry(policy.namespace.clone())
                        .or_default()
                        .insert(key.clone());
                }
                policy::Scope::WorkloadSelector => {}
            }
            self.policies.insert(key, Arc::new(policy));
        }
    }

    fn remove_policy(&mut self, key: &str) {
        let Some(old) = self.policies.remove(key) else { return };
        self.global.remove(key);
        if let Some(keys) = self.by_namespace.get_mut(&old.namespace) {
            keys.remove(key);
        }
    }

    fn apply_revocations(&mut self, revocations: Vec<(String, Revocation)>, removed: &[String]) {
        if revocations.is_empty() && removed.is_empty() {
            return;
        }
        for name in removed {
            self.revocations.remove(name);
        }
        for (name, revocation) in revocations {
            self.revocations.insert(name, Arc::new(revocation));
        }
        self.revoked_serials = self
            .revocations
            .values()
            .flat_map(|one| one.serials.iter().cloned())
            .collect();
        self.revoked_keys = self
            .revocations
            .values()
            .flat_map(|one| one.spki_sha256.iter().copied())
            .collect();
    }

    fn insert_workload(&mut self, workload: Workload) {
        self.remove_workload(&workload.uid.clone());
        let uid = workload.uid.clone();
        self.named
            .insert((workload.namespace.clone(), workload.name.clone()), uid.clone());
        if !workload.host_network {
            for address in &workload.addresses {
                let key = NetworkAddress {
                    network: workload.network.clone(),
                    address: *address,
                };
                self.by_address.entry(key).or_default().push(uid.clone());
            }
        }
        for (service, _) in &workload.services {
            self.endpoints.entry(service.clone()).or_default().insert(uid.clone());
        }
        self.workloads.insert(uid, Arc::new(workload));
    }

    fn remove_workload(&mut self, uid: &str) -> bool {
        let Some(old) = self.workloads.remove(uid) else {
            return false;
        };
        let name = (old.namespace.clone(), old.name.clone());
        if self.named.get(&name).is_some_and(|named| **named == *uid) {
            self.named.remove(&name);
        }
        for address in &old.addresses {
            let key = NetworkAddress {
                network: old.network.clone(),
                address: *address,
            };
            remove_from(&mut self.by_address, &key, |held| **held == *uid);
        }
        for (service, _) in &old.services {
            if let Some(endpoints) = self.endpoints.get_mut(service) {
                endpoints.remove(uid);
                if endpoints.is_empty() {
                    self.endpoints.remove(service);
                }
            }
        }
        true
    }

    fn insert_service(&mut self, service: Service) {
        self.remove_service(&service.key.clone());
        let key = service.key.clone();
        self.by_hostname
            .entry(key.hostname.clone())
            .or_default()
            .push(key.clone());
        for (network, vip) in &service.vips {
            if vip.prefix_len() == vip.max_prefix_len() {
                let address = NetworkAddress {
                    network: network.clone(),
                    address: vip.addr(),
                };
                self.vips.entry(address).or_default().push(key.clone());
            } else {
                self.ranges
                    .entry((network.clone(), *vip))
                    .or_default()
                    .push(key.clone());
            }
        }
        self.services.insert(key, Arc::new(service));
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        let Some(old) = self.services.remove(key) else { return };
        remove_from(&mut self.by_hostname, &key.hostname, |held| held == key);
        for (network, vip) in &old.vips {
            if vip.prefix_len() == vip.max_prefix_len() {
                let address = NetworkAddress {
                    network: network.clone(),
                    address: vip.addr(),
                };
                remove_from(&mut self.vips, &address, |held| held == key);
            } else if let Some(held) = self.ranges.get_mut(&(network.clone(), *vip)) {
                held.retain(|one| one != key);
                if held.is_empty() {
                    self.ranges.remove(&(network.clone(), *vip));
                }
            }
        }
    }

    /// A workload uid, or else `namespace/hostname`; a "hostname" that still has a `/` is ignored.
    fn remove_address(&mut self, name: &str) {
        if self.remove_workload(name) {
            return;
        }
        if let Some((namespace, hostname)) = name.split_once('/').filter(|(_, hostname)| !hostname.contains('/')) {
            self.remove_service(&ServiceKey {
                namespace: namespace.into(),
                hostname: hostname.into(),
            });
        }
    }

    /// A workload by its uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The best workload that holds an address (HBONE before others, then by uid; never a HOST_NETWORK one).
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        let key = NetworkAddress {
            network: network.into(),
            address,
        };
        let candidates = self
            .by_address
            .get(&key)?
            .iter()
            .filter_map(|uid| self.workloads.get(uid));
        candidates.min_by_key(|workload| {
            let pod = workload.workload_type == WORKLOAD_TYPE_POD;
            let hbone = workload.tunnel_protocol == TunnelProtocol::Hbone;
            (!pod, !hbone, workload.uid.clone())
        })
    }

    /// A workload by namespace and name (an agent finds itself so).
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(self.named.get(&(namespace.into(), name.into()))?)
    }

    /// The service that a VIP stands for, as seen from `namespace`: visible ones only, the own namespace first, then the
    /// longest prefix, then the canonical one.
    pub fn service_at(&self, network: &str, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let key = NetworkAddress {
            network: network.into(),
            address,
        };
        let exact = self
            .vips
            .get(&key)
            .into_iter()
            .flatten()
            .filter_map(|key| self.services.get(key));
        let best = self.preferred(exact.map(|service| (service, 0)), namespace);
        best.or_else(|| {
            let ranges = self
                .ranges
                .iter()
                .filter(|((of, range), _)| **of == *network && range.contains(&address));
            let services = ranges.flat_map(|((_, range), keys)| {
                let length = u16::from(u8::MAX - range.prefix_len());
                keys.iter()
                    .filter_map(move |key| self.services.get(key).map(|service| (service, length)))
            });
            self.preferred(services, namespace)
        })
    }

    fn preferred<'a>(
        &self,
        services: impl Iterator<Item = (&'a Arc<Service>, u16)>,
        namespace: &str,
    ) -> Option<&'a Arc<Service>> {
        let visible = services.filter(|(service, _)| !service.private || *service.key.namespace == *namespace);
        visible
            .min_by_key(|(service, rank)| (*service.key.namespace != *namespace, *rank, !service.canonical))
            .map(|(service, _)| service)
    }

    /// The service of a hostname, as seen from `namespace`. Hostnames are lower case.
    pub fn service_named(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.preferred(
            self.services_by_hostname(hostname).map(|service| (service, 0)),
            namespace,
        )
    }

    /// A service by its key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Services that have this hostname.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.by_hostname
            .get(hostname)
            .into_iter()
            .flatten()
            .filter_map(|key| self.services.get(key))
    }

    /// Endpoints of a service, in uid order (healthy or not; see [`crate::balance`]).
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints
            .get(key)
            .into_iter()
            .flat_map(|uids| uids.iter())
            .filter_map(|uid| self.workloads.get(uid))
    }

    /// A policy by its key `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Policies for all workloads of a namespace: GLOBAL ones, and its own NAMESPACE ones.
    pub fn unselected_policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        let own = self
            .by_namespace
            .get(namespace)
            .into_iter()
            .flat_map(|keys| keys.iter());
        self.global.iter().chain(own).filter_map(|key| self.policies.get(key))
    }

    /// Whether a certificate was revoked.
    pub fn is_revoked(&self, serial: &[u8], spki_sha256: &[u8; 32]) -> bool {
        self.revoked_serials.contains(serial) || self.revoked_keys.contains(spki_sha256)
    }

    /// Trust anchors that the control plane announced: (trust domain, PEM).
    pub fn trust_bundle(&self) -> Option<(&str, &[String])> {
        self.trust_bundle
            .as_ref()
            .map(|bundle| (bundle.0.as_str(), bundle.1.as_slice()))
    }

    /// Prefixes whose traffic is to be captured: service VIPs, and addresses of workloads that speak HBONE, are not
    /// HOST_NETWORK and are in `network`; never one of `own`.
    pub fn captured_prefixes(&self, network: &str, own: &[IpAddr]) -> BTreeSet<IpNet> {
        let vips = self.services.values().flat_map(|service| service.vips.iter());
        let vips = vips.filter(|(of, _)| **of == *network).map(|(_, vip)| vip.trunc());
        let workloads = self.workloads.values().filter(|workload| {
            workload.tunnel_protocol == TunnelProtocol::Hbone && !workload.host_network && *workload.network == *network
        });
        let addresses = workloads
            .flat_map(|workload| workload.addresses.iter())
            .map(|address| IpNet::from(*address));
        let own: BTreeSet<IpNet> = own.iter().map(|address| IpNet::from(*address)).collect();
        vips.chain(addresses)
            .filter(|prefix| !own.contains(prefix) && !is_never_captured(prefix.addr()))
            .collect()
    }

    /// All workloads in uid order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services in key order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies in key order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Whether the first response of the Address type was applied.
    pub fn addresses_synced(&self) -> bool {
        self.addresses_synced
    }

    /// Whether the first response of the Authorization type was applied; until then nothing inbound is served.
    pub fn policies_synced(&self) -> bool {
        self.policies_synced
    }

    /// Counts the changes since the start.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// Addresses that must stay the machine's own whatever a control plane says.
fn is_never_captured(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified()
}

fn remove_from<K, V>(index: &mut HashMap<K, Vec<V>>, key: &K, mut gone: impl FnMut(&V) -> bool)
where
    K: std::hash::Hash + Eq + Clone,
    V: Clone,
{
    if let Some(held) = index.get_mut(key) {
        held.retain(|value| !gone(value));
        if held.is_empty() {
            index.remove(key);
        }
    }
}

/// `WorkloadType::POD` of WDS, which istiod gives to WorkloadEntries, too.
const WORKLOAD_TYPE_POD: i32 = 2;
