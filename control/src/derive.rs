//! From resources to what agents are told: workloads, services and policies, the way istiod derives them. Pure.

mod peers;
mod policies;
mod services;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::istio::security::Authorization;
use mesh_proto::istio::workload;
use mesh_proto::mesh::Probe;

use crate::resources::{AuthorizationPolicy, PeerAuthentication, Resource, Service, ServiceEntry, WorkloadEntry};

/// The namespace whose policies are for the whole mesh.
pub const ROOT_NAMESPACE: &str = mesh_core::identity::CONTROL_NAMESPACE;

/// What the derivation looks at.
pub struct Input<'a> {
    /// The trust domain of every workload.
    pub trust_domain: &'a str,
    /// Services answer to `NAME.NS.{this}`.
    pub dns_domain: &'a str,
    /// First part of workload uids.
    pub cluster_id: &'a str,
    /// Everything that was applied or registered.
    pub resources: &'a [Resource],
    /// Slots of the automatic address ranges by owner; see [`vip_owners`].
    pub vips: &'a BTreeMap<String, u16>,
}

/// What agents are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// By uid.
    pub workloads: BTreeMap<String, workload::Workload>,
    /// By `namespace/hostname`.
    pub services: BTreeMap<String, workload::Service>,
    /// By `namespace/name`.
    pub policies: BTreeMap<String, Authorization>,
    /// By `namespace/name` of the WorkloadGroup.
    pub probes: BTreeMap<String, Probe>,
}

/// Resources by kind.
struct Sorted<'a> {
    entries: Vec<&'a WorkloadEntry>,
    service_entries: Vec<&'a ServiceEntry>,
    services: Vec<&'a Service>,
    policies: Vec<&'a AuthorizationPolicy>,
    peers: Vec<&'a PeerAuthentication>,
}

impl<'a> Sorted<'a> {
    fn of(resources: &'a [Resource]) -> Self {
        let mut sorted = Self {
            entries: Vec::new(),
            service_entries: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            peers: Vec::new(),
        };
        for resource in resources {
            match resource {
                Resource::WorkloadEntry(r) => sorted.entries.push(r),
                Resource::ServiceEntry(r) => sorted.service_entries.push(r),
                Resource::Service(r) => sorted.services.push(r),
                Resource::AuthorizationPolicy(r) => sorted.policies.push(r),
                Resource::PeerAuthentication(r) => sorted.peers.push(r),
                Resource::WorkloadGroup(_) => {}
            }
        }
        sorted
    }
}

/// Derives the world.
pub fn world(input: &Input<'_>) -> World {
    let sorted = Sorted::of(input.resources);
    let services = services::all(input, &sorted);
    let policies = policies::all(&sorted);
    let attachments = policies::Attachments::of(&sorted);
    let workloads = workloads::all(input, &sorted, &services, &attachments);
    World {
        workloads: workloads.into_iter().map(|w| (w.uid.clone(), w)).collect(),
        services: services::records(services),
        policies: policies
            .into_iter()
            .map(|p| (format!("{}/{}", p.namespace, p.name), p))
            .collect(),
        probes: input.resources.iter().filter_map(probe).collect(),
    }
}

/// A group's probe, under the name by which its agents are told of it.
fn probe(resource: &Resource) -> Option<(String, Probe)> {
    let Resource::WorkloadGroup(group) = resource else {
        return None;
    };
    let name = probe_name(&group.metadata.namespace, &group.metadata.name);
    Some((name, group.spec.probe.as_ref()?.into()))
}

/// Name of the probe of a group.
pub fn probe_name(namespace: &str, group: &str) -> String {
    format!("{namespace}/{group}")
}

/// Who needs an automatic address: services without one of their own.
pub fn vip_owners(resources: &[Resource]) -> BTreeSet<String> {
    resources
        .iter()
        .filter(|resource| match resource {
            Resource::ServiceEntry(r) => services::wants_vip(r),
            Resource::Service(r) => r.spec.cluster_ip.as_deref().is_none_or(str::is_empty),
            _ => false,
        })
        .map(vip_owner)
        .collect()
}

fn vip_owner(resource: &Resource) -> String {
    owner(
        resource.kind().as_str(),
        &resource.meta().namespace,
        &resource.meta().name,
    )
}

fn owner(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

/// The automatic addresses of a slot: 240.240.0.0/16 and 2001:2::/48, as Istio has them.
pub fn vip_addresses(slot: u16) -> [IpAddr; 2] {
    let [high, low] = slot.to_be_bytes();
    [
        Ipv4Addr::new(240, 240, high, low).into(),
        Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, slot).into(),
    ]
}

/// Uid of the workload of a WorkloadEntry.
pub fn entry_uid(cluster_id: &str, namespace: &str, name: &str) -> String {
    format!("{cluster_id}/networking.istio.io/WorkloadEntry/{namespace}/{name}")
}

/// An address as the wire has it.
fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests;
