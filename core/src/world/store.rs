//! The world as a value: what is held, its indexes, and how one change becomes the next value.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::bucket::{Bucket, Entry};
use super::{Delta, Revocation, Service, ServiceKey, TunnelProtocol, Workload, preferred};
use crate::health::Probe;
use crate::identity::Identity;
use crate::policy::{Policy, Scope};

/// An index of two steps, so that a look-up borrows its key.
type Index<K, T> = OrdMap<Arc<str>, OrdMap<K, Bucket<T>>>;

/// Everything the control plane told us.
#[derive(Clone, Debug, Default)]
pub struct World {
    workloads: OrdMap<Arc<str>, Arc<Workload>>,
    /// Namespace, then name.
    by_name: Index<Arc<str>, Workload>,
    /// Network, then address; without HOST_NETWORK workloads.
    by_address: Index<IpAddr, Workload>,
    /// Those that have a hostname, by namespace and that.
    by_own_hostname: OrdMap<ServiceKey, Bucket<Workload>>,
    /// By service key, whether the service has arrived or not.
    endpoints: OrdMap<ServiceKey, OrdMap<Arc<str>, Arc<Workload>>>,
    services: OrdMap<ServiceKey, Arc<Service>>,
    /// By hostname in lower case.
    by_hostname: OrdMap<Arc<str>, Bucket<Service>>,
    /// Network, then VIP.
    vips: Index<IpAddr, Service>,
    /// Network, then range of VIPs.
    ranges: Index<IpNet, Service>,
    policies: OrdMap<Arc<str>, Arc<Policy>>,
    /// Policies of scope NAMESPACE by namespace, then key.
    by_namespace: OrdMap<Arc<str>, OrdMap<Arc<str>, Arc<Policy>>>,
    global: OrdMap<Arc<str>, Arc<Policy>>,
    revocations: OrdMap<Arc<str>, Arc<Revocation>>,
    /// How many revocations name it.
    revoked_serials: OrdMap<Arc<[u8]>, u32>,
    revoked_keys: OrdMap<[u8; 32], u32>,
    trust_bundle: Option<Arc<(String, Vec<String>)>>,
    probe: Option<Arc<Probe>>,
    addresses_synced: bool,
    policies_synced: bool,
    probe_synced: bool,
}

impl World {
    /// The next world.
    pub fn apply(&self, delta: Delta) -> Self {
        let mut next = self.clone();
        for name in &delta.removed_addresses {
            next.remove_address(name);
        }
        for workload in delta.workloads {
            next.insert_workload(Arc::new(workload));
        }
        for service in delta.services {
            next.insert_service(Arc::new(service));
        }
        for key in &delta.removed_policies {
            next.remove_policy(key);
        }
        for policy in delta.policies {
            next.insert_policy(Arc::new(policy));
        }
        for name in &delta.removed_revocations {
            next.remove_revocation(name);
        }
        for (name, revocation) in delta.revocations {
            next.insert_revocation(&name, revocation);
        }
        if let Some(bundle) = delta.trust_bundle {
            next.trust_bundle = Some(Arc::new(bundle));
        }
        if delta.removed_probe {
            next.probe = None;
        }
        if let Some(probe) = delta.probe {
            next.probe = Some(Arc::new(probe));
        }
        next.addresses_synced |= delta.addresses_synced;
        next.policies_synced |= delta.policies_synced;
        next.probe_synced |= delta.probe_synced;
        next
    }

    /// A workload by its uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The best workload that holds an address (Pod+HBONE > Pod > HBONE > other; never a HOST_NETWORK one).
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_at(network, address).next()
    }

    /// All workloads that hold an address, the best first.
    pub fn workloads_at(&self, network: &str, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        let held = self.by_address.get(network);
        let bucket = held.and_then(|held| held.get(&address.to_canonical()));
        bucket.into_iter().flat_map(|bucket| bucket.as_slice())
    }

    /// A workload by namespace and name (an agent finds itself so).
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.by_name.get(namespace)?.get(name)?.as_slice().first()
    }

    /// A workload that has a hostname of its own.
    pub fn workload_with_hostname(&self, key: &ServiceKey) -> Option<&Arc<Workload>> {
        self.by_own_hostname.get(key)?.as_slice().first()
    }

    /// The service that a VIP stands for, as seen from `namespace` (as ztunnel does it, lookup order): an exact VIP, else
    /// the ranges that hold the address, ranked by own namespace, longest prefix, canonical.
    pub fn service_at(&self, network: &str, address: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        let exact = self.vips.get(network).and_then(|vips| vips.get(&address));
        if let Some(service) = exact.and_then(|bucket| preferred(bucket.as_slice().iter(), namespace)) {
            return Some(service);
        }
        let ranges = self.ranges.get(network)?;
        enclosing(address)
            .filter_map(|range| Some((range.prefix_len(), ranges.get(&range)?)))
            .flat_map(|(length, bucket)| bucket.as_slice().iter().map(move |service| (length, service)))
            .filter(|(_, service)| service.visible_from(namespace))
            .min_by_key(|(length, service)| {
                (
                    &*service.key.namespace != namespace,
                    u8::MAX - length,
                    !service.canonical,
                )
            })
            .map(|(_, service)| service)
    }

    /// A service by its key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Services that have this hostname (any case), in key order.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        let bucket = if hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.by_hostname.get(hostname.to_ascii_lowercase().as_str())
        } else {
            self.by_hostname.get(hostname)
        };
        bucket.into_iter().flat_map(|bucket| bucket.as_slice())
    }

    /// Endpoints of a service, in uid order (healthy or not; see [`crate::balance`]).
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(key).into_iter().flat_map(OrdMap::values)
    }

    /// A policy by its key `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Policies that hold for every workload of `namespace`: GLOBAL ones, then the namespace's own, each in key order.
    pub fn policies_of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.global
            .values()
            .chain(self.by_namespace.get(namespace).into_iter().flat_map(OrdMap::values))
    }

    /// Whether `identity` is one that `workload` may show: its own, or one of a service that it serves.
    pub fn names(&self, workload: &Workload, identity: &Identity) -> bool {
        let services = workload.services.iter().filter_map(|(key, _)| self.service(key));
        workload.identity == *identity
            || services
                .flat_map(|service| &service.subject_alt_names)
                .any(|also| also == identity)
    }

    /// Whether a certificate was revoked. Leading zeros of the serial do not count.
    pub fn is_revoked(&self, serial: &[u8], spki_sha256: &[u8; 32]) -> bool {
        self.revoked_serials.contains_key(trimmed(serial)) || self.revoked_keys.contains_key(spki_sha256)
    }

    /// Trust anchors that the control plane announced: (trust domain, PEM).
    pub fn trust_bundle(&self) -> Option<(&str, &[String])> {
        self.trust_bundle
            .as_deref()
            .map(|(domain, anchors)| (domain.as_str(), anchors.as_slice()))
    }

    /// How the control plane wants our application probed.
    pub fn probe(&self) -> Option<&Arc<Probe>> {
        self.probe.as_ref()
    }

    /// Whether the control plane has told of a probe, or that there is none.
    pub fn probe_synced(&self) -> bool {
        self.probe_synced
    }

    /// Prefixes whose traffic is to be captured: service VIPs, and addresses of workloads that speak HBONE, are not
    /// HOST_NETWORK, are in `network`, and are not in `own`.
    pub fn captured_prefixes(&self, network: &str, own: &[IpAddr]) -> BTreeSet<IpNet> {
        let capturable = |address: &IpAddr| routable(*address) && !own.iter().any(|own| own.to_canonical() == *address);
        let vips = self.vips.get(network).into_iter().flat_map(OrdMap::keys).copied();
        let ranges = self.ranges.get(network).into_iter().flat_map(OrdMap::keys).copied();
        let workloads = self
            .by_address
            .get(network)
            .into_iter()
            .flat_map(OrdMap::iter)
            .filter(|(_, bucket)| bucket.as_slice()[0].tunnel_protocol == TunnelProtocol::Hbone)
            .map(|(address, _)| *address);
        let exact = vips.chain(workloads).filter(capturable).map(IpNet::from);
        exact.chain(ranges).collect()
    }

    /// Whether [`Self::captured_prefixes`] names this address as that of a workload, the own ones left aside.
    pub fn captures(&self, network: &str, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let held = self.workload_at(network, address);
        routable(address) && held.is_some_and(|held| held.tunnel_protocol == TunnelProtocol::Hbone)
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

    fn insert_workload(&mut self, workload: Arc<Workload>) {
        if let Some(old) = self.workloads.get(&*workload.uid).cloned() {
            self.unindex_workload(&old);
        }
        add(
            &mut self.by_name,
            &workload.namespace,
            Arc::clone(&workload.name),
            &workload,
        );
        for address in indexed_addresses(&workload) {
            add(&mut self.by_address, &workload.network, address, &workload);
        }
        if let Some(key) = own_hostname(&workload) {
            let bucket = match self.by_own_hostname.get(&key) {
                Some(bucket) => bucket.with(Arc::clone(&workload)),
                None => Bucket::One(Arc::clone(&workload)),
            };
            self.by_own_hostname.insert(key, bucket);
        }
        for (key, _) in &workload.services {
            let held = self.endpoints.entry(key.clone()).or_default();
            held.insert(Arc::clone(&workload.uid), Arc::clone(&workload));
        }
        self.workloads.insert(Arc::clone(&workload.uid), workload);
    }

    fn unindex_workload(&mut self, old: &Workload) {
        drop_entry(&mut self.by_name, &old.namespace, &old.name, old);
        for address in indexed_addresses(old) {
            drop_entry(&mut self.by_address, &old.network, &address, old);
        }
        if let Some(key) = own_hostname(old) {
            match self.by_own_hostname.get(&key).and_then(|bucket| bucket.without(old)) {
                Some(left) => self.by_own_hostname.insert(key, left),
                None => self.by_own_hostname.remove(&key),
            };
        }
        for (key, _) in &old.services {
            let Some(held) = self.endpoints.get_mut(key) else {
                continue;
            };
            held.remove(&*old.uid);
            if held.is_empty() {
                self.endpoints.remove(key);
            }
        }
    }

    fn insert_service(&mut self, service: Arc<Service>) {
        if let Some(old) = self.services.get(&service.key).cloned() {
            self.unindex_service(&old);
        }
        let hostname = lower(&service.key.hostname);
        let bucket = match self.by_hostname.get(&hostname) {
            Some(bucket) => bucket.with(Arc::clone(&service)),
            None => Bucket::One(Arc::clone(&service)),
        };
        self.by_hostname.insert(hostname, bucket);
        for (network, vip) in &service.vips {
            if vip.prefix_len() == vip.max_prefix_len() {
                add(&mut self.vips, network, vip.addr(), &service);
            } else {
                add(&mut self.ranges, network, vip.trunc(), &service);
            }
        }
        self.services.insert(service.key.clone(), service);
    }

    fn unindex_service(&mut self, old: &Service) {
        let hostname = lower(&old.key.hostname);
        match self.by_hostname.get(&hostname).and_then(|bucket| bucket.without(old)) {
            Some(left) => self.by_hostname.insert(hostname, left),
            None => self.by_hostname.remove(&hostname),
        };
        for (network, vip) in &old.vips {
            if vip.prefix_len() == vip.max_prefix_len() {
                drop_entry(&mut self.vips, network, &vip.addr(), old);
            } else {
                drop_entry(&mut self.ranges, network, &vip.trunc(), old);
            }
        }
    }

    /// The name is a workload's uid, else a service's `namespace/hostname` (as ztunnel does it).
    fn remove_address(&mut self, name: &str) {
        if let Some(old) = self.workloads.remove(name) {
            return self.unindex_workload(&old);
        }
        let Some((namespace, hostname)) = name.split_once('/') else {
            return;
        };
        if hostname.contains('/') {
            return;
        }
        let key = ServiceKey {
            namespace: namespace.into(),
            hostname: hostname.into(),
        };
        if let Some(old) = self.services.remove(&key) {
            self.unindex_service(&old);
        }
    }

    fn insert_policy(&mut self, policy: Arc<Policy>) {
        self.remove_policy(&policy.key);
        match policy.scope {
            Scope::Global => {
                self.global.insert(Arc::clone(&policy.key), Arc::clone(&policy));
            }
            Scope::Namespace => {
                let held = self.by_namespace.entry(Arc::clone(&policy.namespace)).or_default();
                held.insert(Arc::clone(&policy.key), Arc::clone(&policy));
            }
            Scope::WorkloadSelector => {}
        }
        self.policies.insert(Arc::clone(&policy.key), policy);
    }

    fn remove_policy(&mut self, key: &str) {
        let Some(old) = self.policies.remove(key) else { return };
        self.global.remove(key);
        let Some(held) = self.by_namespace.get_mut(&old.namespace) else {
            return;
        };
        held.remove(key);
        if held.is_empty() {
            self.by_namespace.remove(&old.namespace);
        }
    }

    fn insert_revocation(&mut self, name: &str, revocation: Revocation) {
        self.remove_revocation(name);
        for serial in &revocation.serials {
            *self.revoked_serials.entry(trimmed(serial).into()).or_default() += 1;
        }
        for key in &revocation.spki_sha256 {
            *self.revoked_keys.entry(*key).or_default() += 1;
        }
        self.revocations.insert(name.into(), Arc::new(revocation));
    }

    fn remove_revocation(&mut self, name: &str) {
        let Some(old) = self.revocations.remove(name) else {
            return;
        };
        for serial in &old.serials {
            let serial = trimmed(serial);
            let left = self.revoked_serials.get(serial).map_or(0, |count| count - 1);
            match left {
                0 => self.revoked_serials.remove(serial),
                left => self.revoked_serials.insert(serial.into(), left),
            };
        }
        for key in &old.spki_sha256 {
            let left = self.revoked_keys.get(key).map_or(0, |count| count - 1);
            match left {
                0 => self.revoked_keys.remove(key),
                left => self.revoked_keys.insert(*key, left),
            };
        }
    }
}

fn add<K: Ord + Clone, T: Entry>(index: &mut Index<K, T>, first: &Arc<str>, second: K, entry: &Arc<T>) {
    let inner = index.entry(Arc::clone(first)).or_default();
    let bucket = match inner.get(&second) {
        Some(bucket) => bucket.with(Arc::clone(entry)),
        None => Bucket::One(Arc::clone(entry)),
    };
    inner.insert(second, bucket);
}

fn drop_entry<K: Ord + Clone, T: Entry>(index: &mut Index<K, T>, first: &Arc<str>, second: &K, entry: &T) {
    let Some(inner) = index.get_mut(first) else { return };
    match inner.get(second).map(|bucket| bucket.without(entry)) {
        Some(Some(left)) => inner.insert(second.clone(), left),
        Some(None) => inner.remove(second),
        None => None,
    };
    if inner.is_empty() {
        index.remove(first);
    }
}

fn indexed_addresses(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    let addresses: &[IpAddr] = if workload.host_network {
        &[]
    } else {
        &workload.addresses
    };
    addresses.iter().map(IpAddr::to_canonical)
}

fn own_hostname(workload: &Workload) -> Option<ServiceKey> {
    (!workload.hostname.is_empty()).then(|| ServiceKey {
        namespace: Arc::clone(&workload.namespace),
        hostname: Arc::clone(&workload.hostname),
    })
}

/// The ranges that hold `address`, the narrowest first.
fn enclosing(address: IpAddr) -> impl Iterator<Item = IpNet> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (0..=longest)
        .rev()
        .filter_map(move |length| Some(IpNet::new(address, length).ok()?.trunc()))
}

/// Whether a route for it makes sense: what the kernel treats specially is never ours.
fn routable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

fn lower(hostname: &Arc<str>) -> Arc<str> {
    if hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return hostname.to_ascii_lowercase().into();
    }
    Arc::clone(hostname)
}

fn trimmed(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
