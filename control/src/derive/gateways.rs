//! Where Gateways are, and whether somebody is there.

use std::net::IpAddr;

use mesh_proto::istio::workload::gateway_address::Destination;
use mesh_proto::istio::workload::{GatewayAddress, NamespacedHostname, NetworkAddress, Workload};

use super::waypoints::{Unbound, full_name};
use super::{Input, Sorted, World, bytes_of, services};
use crate::resources::{Gateway, Meta, WAYPOINT_PORT};

/// Label of a Gateway: the network in which its IP addresses are.
const NETWORK: &str = "topology.istio.io/network";

/// Whether agents find somebody at a Gateway's address. Where they do not, they refuse what is to pass it.
pub(super) fn usable(address: Option<&GatewayAddress>, world: &World) -> Result<(), Unbound> {
    let unusable = |message: String| Unbound {
        reason: "AddressNotUsable",
        message,
    };
    let (found, what) = match address.and_then(|address| address.destination.as_ref()) {
        None => {
            return Err(Unbound {
                reason: "AddressNotAssigned",
                message: "nothing says where it is: give it spec.addresses, or a Service or ServiceEntry of its name in its namespace"
                    .to_owned(),
            });
        }
        Some(Destination::Hostname(at)) => {
            let named = |one: &Workload| one.namespace == at.namespace && one.hostname == at.hostname;
            let service = world.services.contains_key(&full_name(&at.namespace, &at.hostname));
            (
                service || world.workloads.values().any(named),
                format!("the host name {}", at.hostname),
            )
        }
        Some(Destination::Address(at)) => {
            let is =
                |one: &NetworkAddress| one.length.is_none() && one.address == at.address && one.network == at.network;
            let holds = |one: &Workload| one.network == at.network && one.addresses.contains(&at.address);
            let service = world.services.values().any(|one| one.addresses.iter().any(is));
            (service || world.workloads.values().any(holds), "its address".to_owned())
        }
    };
    match found {
        true => Ok(()),
        false => Err(unusable(format!(
            "no service or workload has {what}, so that flows which are to pass this waypoint are refused"
        ))),
    }
}

/// Where a Gateway is reached: by host name before address, as istiod prefers it; else the service of the Gateway's name.
pub(super) fn address_of(input: &Input<'_>, sorted: &Sorted<'_>, gateway: &Gateway) -> Option<GatewayAddress> {
    let meta = &gateway.metadata;
    let by_name = |hostname: String| {
        Destination::Hostname(NamespacedHostname {
            namespace: meta.namespace.clone(),
            hostname,
        })
    };
    let addresses = &gateway.spec.addresses;
    let hostname = addresses
        .iter()
        .find(|one| one.is_hostname())
        .map(|one| one.value.to_ascii_lowercase());
    let by_address = |address: IpAddr| {
        Destination::Address(NetworkAddress {
            network: meta.labels.get(NETWORK).cloned().unwrap_or_default(),
            address: bytes_of(address),
            length: None,
        })
    };
    let same = |other: &Meta| other.namespace == meta.namespace && other.name == meta.name;
    let destination = match (hostname, addresses.first()) {
        (Some(hostname), _) => by_name(hostname),
        (None, Some(first)) => by_address(first.value.parse().ok()?),
        (None, None) => {
            let service = sorted.services.iter().find(|one| same(&one.metadata));
            let entry = sorted.service_entries.iter().find(|one| same(&one.metadata));
            let hosts = service.map(|one| services::hosts_of_service(input, one));
            let hosts = hosts.or_else(|| entry.map(|one| services::hosts_of_entry(input, one)));
            by_name(hosts?.first()?.clone())
        }
    };
    Some(GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: WAYPOINT_PORT,
    })
}
