//! The headers of a CONNECT as Istio has them (as ztunnel does it).

use std::net::{IpAddr, SocketAddr};

use mesh_core::trace::TraceParent;
use mesh_core::world::Workload;

/// Who the source workload is, for telemetry on the other side. Empty fields are left out.
pub fn baggage(workload: &Workload) -> String {
    let kind = match workload.workload_type {
        1 => "cronjob",
        2 => "pod",
        3 => "job",
        _ => "deployment",
    };
    let owner = format!("k8s.{kind}.name");
    let fields: [(&str, &str); 7] = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (&owner, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let present = fields.iter().filter(|(_, value)| !value.is_empty());
    present
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// As whom peers know an application that connects from the TUN's addresses: they know this machine by one of `own`.
pub fn known_as(client: SocketAddr, tun: [IpAddr; 2], own: &[IpAddr]) -> SocketAddr {
    let address = own.iter().find(|own| own.is_ipv4() == client.is_ipv4());
    match address {
        Some(address) if tun.contains(&client.ip()) => SocketAddr::new(*address, client.port()),
        _ => client,
    }
}

/// RFC 7239: for whom we connect, and to which service.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> String {
    let host = host.map(|host| format!(";host={host}")).unwrap_or_default();
    format!("for=\"{client}\"{host}")
}

/// The `traceparent` of a flow that starts here, or of which the caller's says nothing that can be carried on.
pub fn fresh_trace() -> TraceParent {
    let mut ids = [0; 24];
    // Ids need not be secret; without randomness all flows have the same.
    let _ = aws_lc_rs::rand::fill(&mut ids);
    TraceParent::fresh(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tuns_addresses_are_told_to_nobody() {
        let tun = ["100.64.100.1".parse().unwrap(), "fd6d::1".parse().unwrap()];
        let own = ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        for (client, own, known) in [
            ("100.64.100.1:4000", &own[..], "10.0.0.7:4000"),
            ("[fd6d::1]:4000", &own, "[fd00::7]:4000"),
            ("[fd6d::1]:4000", &own[..1], "[fd6d::1]:4000"),
            ("172.30.0.2:4000", &own, "172.30.0.2:4000"),
        ] {
            assert_eq!(known_as(client.parse().unwrap(), tun, own).to_string(), known);
        }
    }
}
