//! Workloads (ztunnel: `state::workload::Workload`).

use std::net::IpAddr;

use mesh_core::world::{self, GatewayDestination, TunnelProtocol};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Workload<'a> {
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<Gateway>,
    protocol: &'static str,
    network_mode: &'static str,
    uid: &'a str,
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    workload_type: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<ApplicationTunnel>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<&'a str>,
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "Locality::is_empty")]
    locality: Locality<'a>,
    /// `namespace/hostname`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    capacity: u32,
}

/// A waypoint, or the gateway of another network.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gateway {
    /// `namespace/hostname` or `network/address`.
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Serialize)]
struct ApplicationTunnel {
    protocol: &'static str,
    /// None: the port that the connection is for.
    port: Option<u16>,
}

#[derive(Serialize)]
struct Locality<'a> {
    region: &'a str,
    zone: &'a str,
    subzone: &'a str,
}

impl Locality<'_> {
    fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

pub(super) fn of(one: &world::Workload) -> Workload<'_> {
    Workload {
        workload_ips: &one.addresses,
        waypoint: one.waypoint.as_deref().map(gateway),
        network_gateway: one.network_gateway.as_deref().map(gateway),
        protocol: match one.tunnel_protocol {
            TunnelProtocol::Hbone => "HBONE",
            TunnelProtocol::None => "TCP",
        },
        network_mode: if one.host_network { "HostNetwork" } else { "Standard" },
        uid: &one.uid,
        name: &one.name,
        namespace: &one.namespace,
        trust_domain: one.identity.trust_domain(),
        service_account: one.identity.service_account(),
        network: &one.network,
        workload_name: &one.workload_name,
        workload_type: kind(one.workload_type),
        canonical_name: &one.canonical_name,
        canonical_revision: &one.canonical_revision,
        hostname: &one.hostname,
        node: &one.node,
        application_tunnel: one.application_tunnel.map(|tunnel| ApplicationTunnel {
            protocol: if tunnel.proxy { "PROXY" } else { "NONE" },
            port: (tunnel.port != 0).then_some(tunnel.port),
        }),
        authorization_policies: one.authorization_policies.iter().map(|key| &**key).collect(),
        status: health(one),
        cluster_id: &one.cluster_id,
        locality: Locality {
            region: &one.locality.region,
            zone: &one.locality.zone,
            subzone: &one.locality.subzone,
        },
        services: one.services.iter().map(|(key, _)| named(key)).collect(),
        capacity: one.capacity,
    }
}

pub(super) fn gateway(one: &world::Gateway) -> Gateway {
    Gateway {
        destination: match &one.destination {
            GatewayDestination::Hostname(key) => named(key),
            GatewayDestination::Address(at) => format!("{}/{}", at.network, at.address),
        },
        hbone_mtls_port: one.port,
    }
}

/// As a key of a service is written.
pub(super) fn named(key: &world::ServiceKey) -> String {
    format!("{}/{}", key.namespace, key.hostname)
}

pub(super) fn health(one: &world::Workload) -> &'static str {
    if one.healthy { "Healthy" } else { "Unhealthy" }
}

/// The names of WDS in lower case; what it does not know is its default.
fn kind(workload_type: i32) -> &'static str {
    match workload_type {
        1 => "cronjob",
        2 => "pod",
        3 => "job",
        _ => "deployment",
    }
}
