//! Waypoints, gateways of networks and application tunnels.

use std::sync::Arc;

use mesh_proto::istio::workload as proto;

use super::super::{ApplicationTunnel, Gateway, GatewayDestination, NetworkAddress, ServiceKey};
use super::{Invalid, Names, address};
use crate::outbound::HBONE_PORT;

/// A gateway that may be absent. One that is there and names nobody refuses the resource: without it, traffic would go past
/// the waypoint.
pub(super) fn optional(
    field: &'static str,
    from: Option<&proto::GatewayAddress>,
    names: &mut Names,
) -> Result<Option<Arc<Gateway>>, Invalid> {
    from.map(|from| gateway(field, from, names)).transpose()
}

/// Waypoints with their weights.
pub(super) fn weighted(
    from: &[proto::WeightedWaypoint],
    names: &mut Names,
) -> Result<Vec<(Arc<Gateway>, u32)>, Invalid> {
    let field = "weighted_waypoints";
    let mut one = |from: &proto::WeightedWaypoint| {
        let destination = from.destination.as_ref().ok_or(Invalid::Missing(field))?;
        Ok((gateway(field, destination, names)?, from.weight))
    };
    super::exact(from.iter().map(&mut one))
}

/// How the application takes connections.
pub(super) fn application_tunnel(
    from: Option<&proto::ApplicationTunnel>,
) -> Result<Option<ApplicationTunnel>, Invalid> {
    let Some(from) = from else { return Ok(None) };
    let proxy = match proto::application_tunnel::Protocol::try_from(from.protocol) {
        Ok(proto::application_tunnel::Protocol::None) => false,
        Ok(proto::application_tunnel::Protocol::Proxy) => true,
        Err(_) => {
            return Err(Invalid::Unsupported {
                field: "application_tunnel.protocol",
                value: from.protocol,
            });
        }
    };
    let port = port("application_tunnel.port", from.port)?;
    Ok(Some(ApplicationTunnel { proxy, port }))
}

fn gateway(field: &'static str, from: &proto::GatewayAddress, names: &mut Names) -> Result<Arc<Gateway>, Invalid> {
    use proto::gateway_address::Destination;
    let destination = match from.destination.as_ref().ok_or(Invalid::Missing(field))? {
        Destination::Hostname(named) if named.hostname.is_empty() => return Err(Invalid::Missing(field)),
        Destination::Hostname(named) => GatewayDestination::Hostname(ServiceKey {
            namespace: names.share(&named.namespace),
            hostname: names.share(&named.hostname),
        }),
        Destination::Address(at) => GatewayDestination::Address(NetworkAddress {
            network: names.share(&at.network),
            address: address(field, &at.address)?,
        }),
    };
    let port = match port(field, from.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(names.share_gateway(Gateway { destination, port }))
}

fn port(field: &'static str, value: u32) -> Result<u16, Invalid> {
    u16::try_from(value).map_err(|_| Invalid::Port { field, value })
}
