//! From resources to what agents are told: workloads, services and policies, the way istiod derives them. Pure.

mod gateways;
mod peers;
mod policies;
mod services;
mod waypoints;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::istio::security::Authorization;
use mesh_proto::istio::workload;
use mesh_proto::mesh::Probe;

use crate::resources::{
    AuthorizationPolicy, Gateway, Kind, Meta, Namespace, PeerAuthentication, Resource, Service, ServiceEntry,
    WorkloadEntry,
};
use crate::store::ResourceKey;
use waypoints::Waypoints;
pub use waypoints::{USE_WAYPOINT, Unbound};

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
    gateways: Vec<&'a Gateway>,
    namespaces: Vec<&'a Namespace>,
}

impl<'a> Sorted<'a> {
    fn of(resources: &'a [Resource]) -> Self {
        let mut sorted = Self {
            entries: Vec::new(),
            service_entries: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            peers: Vec::new(),
            gateways: Vec::new(),
            namespaces: Vec::new(),
        };
        for resource in resources {
            match resource {
                Resource::WorkloadEntry(r) => sorted.entries.push(r),
                Resource::ServiceEntry(r) => sorted.service_entries.push(r),
                Resource::Service(r) => sorted.services.push(r),
                Resource::AuthorizationPolicy(r) => sorted.policies.push(r),
                Resource::PeerAuthentication(r) => sorted.peers.push(r),
                Resource::Gateway(r) => sorted.gateways.push(r),
                Resource::Namespace(r) => sorted.namespaces.push(r),
                Resource::WorkloadGroup(_) => {}
            }
        }
        sorted
    }
}

/// Derives the world.
pub fn world(input: &Input<'_>) -> World {
    let sorted = Sorted::of(input.resources);
    let waypoints = Waypoints::of(input, &sorted);
    let services = services::all(input, &sorted, &waypoints);
    let policies = policies::all(&sorted);
    let attachments = policies::Attachments::of(&sorted);
    let workloads = workloads::all(input, &sorted, &services, &attachments, &waypoints);
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

/// For each object that asks for a waypoint, which it has (`namespace/name`), or why none; for each Gateway, whether it can be
/// one. Automatic addresses do not matter here.
pub fn waypoint_bindings(input: &Input<'_>) -> BTreeMap<ResourceKey, Result<String, Unbound>> {
    let sorted = Sorted::of(input.resources);
    let waypoints = Waypoints::of(input, &sorted);
    let services = services::all(input, &sorted, &waypoints);
    let key = |kind: Kind, meta: &Meta| ResourceKey {
        kind: kind.as_str().to_owned(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
    };
    // In the order in which services::all takes them.
    let of_services = sorted.services.iter().map(|one| key(Kind::Service, &one.metadata));
    let of_entries = sorted
        .service_entries
        .iter()
        .map(|one| key(Kind::ServiceEntry, &one.metadata));
    let bound = of_services
        .chain(of_entries)
        .zip(services.iter().map(|one| one.waypoint.clone()));
    let workloads = sorted.entries.iter().map(|one| {
        let binding = workloads::waypoint_of(one, &services, &waypoints);
        (key(Kind::WorkloadEntry, &one.metadata), binding)
    });
    let asked = bound.chain(workloads).filter_map(|(key, binding)| {
        let binding = binding.map(|bound| bound.map(|bound| bound.name)).transpose()?;
        Some((key, binding))
    });
    let world = world(input);
    let gateways = sorted.gateways.iter().map(|one| {
        let meta = &one.metadata;
        let usable = gateways::usable(waypoints.address(one), &world);
        (
            key(Kind::Gateway, meta),
            usable.map(|()| format!("{}/{}", meta.namespace, meta.name)),
        )
    });
    asked.chain(gateways).collect()
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
#[cfg(test)]
mod waypoint_tests;
