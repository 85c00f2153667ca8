//! Services with their endpoints (ztunnel: `state::service::Service`).

use std::collections::BTreeMap;

use mesh_core::world::{self, BalanceMode, IpFamilies, Scope, World};
use serde::Serialize;

use super::workloads::{Gateway, gateway, health, named};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    /// `network/address`.
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<Range<'a>>,
    /// Service port to target port.
    ports: BTreeMap<u16, u16>,
    /// By the workload's uid.
    endpoints: BTreeMap<&'a str, Endpoint<'a>>,
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedWaypoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

#[derive(Serialize)]
struct WeightedWaypoint {
    destination: Gateway,
    weight: u32,
}

#[derive(Serialize)]
struct Range<'a> {
    network: &'a str,
    cidr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint<'a> {
    workload_uid: &'a str,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancer {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

pub(super) fn of<'a>(world: &'a World, one: &'a world::Service) -> Service<'a> {
    let (exact, ranges): (Vec<_>, Vec<_>) = one
        .vips
        .iter()
        .partition(|(_, vip)| vip.prefix_len() == vip.max_prefix_len());
    Service {
        name: &one.name,
        namespace: &one.key.namespace,
        hostname: &one.key.hostname,
        vips: exact
            .into_iter()
            .map(|(network, vip)| format!("{network}/{}", vip.addr()))
            .collect(),
        cidr_vips: ranges
            .into_iter()
            .map(|(network, vip)| Range {
                network,
                cidr: vip.to_string(),
            })
            .collect(),
        ports: ports(&one.ports),
        endpoints: world
            .endpoints(&one.key)
            .map(|workload| (&*workload.uid, endpoint(workload, &one.key)))
            .collect(),
        subject_alt_names: one.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: one.waypoint.as_deref().map(gateway),
        weighted_waypoints: one
            .weighted_waypoints
            .iter()
            .map(|(waypoint, weight)| WeightedWaypoint {
                destination: gateway(waypoint),
                weight: *weight,
            })
            .collect(),
        load_balancer: load_balancer(one),
        ip_families: match one.ip_families {
            IpFamilies::Automatic => None,
            IpFamilies::V4Only => Some("IPv4"),
            IpFamilies::V6Only => Some("IPv6"),
            IpFamilies::Dual => Some("Dual"),
        },
        canonical: one.canonical,
        visibility: if one.private { "Namespace" } else { "Public" },
    }
}

/// Endpoints of services that have not arrived.
pub(super) fn staged(world: &World) -> BTreeMap<String, BTreeMap<&str, Endpoint<'_>>> {
    let mut staged: BTreeMap<String, BTreeMap<&str, Endpoint<'_>>> = BTreeMap::new();
    for workload in world.workloads() {
        for (key, _) in workload.services.iter().filter(|(key, _)| world.service(key).is_none()) {
            let endpoints = staged.entry(named(key)).or_default();
            endpoints.insert(&workload.uid, endpoint(workload, key));
        }
    }
    staged
}

fn endpoint<'a>(workload: &'a world::Workload, key: &world::ServiceKey) -> Endpoint<'a> {
    Endpoint {
        workload_uid: &workload.uid,
        port: ports(workload.ports_of(key).unwrap_or_default()),
        status: health(workload),
    }
}

fn ports(ports: &[world::Port]) -> BTreeMap<u16, u16> {
    ports.iter().map(|port| (port.service_port, port.target_port)).collect()
}

/// None where nothing but the defaults is said.
fn load_balancer(one: &world::Service) -> Option<LoadBalancer> {
    if one.mode == BalanceMode::Any && one.preference.is_empty() && !one.allow_unhealthy {
        return None;
    }
    let scope = |scope: &Scope| match scope {
        Scope::Region => "Region",
        Scope::Zone => "Zone",
        Scope::Subzone => "Subzone",
        Scope::Node => "Node",
        Scope::Cluster => "Cluster",
        Scope::Network => "Network",
    };
    Some(LoadBalancer {
        routing_preferences: one.preference.iter().map(scope).collect(),
        mode: match one.mode {
            BalanceMode::Any => "Standard",
            BalanceMode::Strict => "Strict",
            BalanceMode::Failover => "Failover",
            BalanceMode::Passthrough => "Passthrough",
        },
        health_policy: if one.allow_unhealthy { "AllowAll" } else { "OnlyHealthy" },
    })
}
