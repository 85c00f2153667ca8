//! Which address an agent may register: where its connection comes from, or one that its WorkloadGroup allows, and that
//! nobody else holds.

use std::net::IpAddr;

use rusqlite::{Error, Transaction};
use tonic::Code;

use crate::error::Refusal;
use crate::resources::check::parse_range;
use crate::resources::{Kind, Resource, WorkloadGroup};
use crate::store::ResourceRow;

/// The address to register for a joining agent; `asked` empty means where it comes from.
pub(crate) fn accept(
    tx: &Transaction<'_>,
    asked: &str,
    source: IpAddr,
    group: &WorkloadGroup,
    agent: &str,
) -> Result<IpAddr, Refusal> {
    let address = if asked.is_empty() {
        source
    } else {
        let unreadable = |_| {
            let message = format!("{asked:?} is not an IP address; give one with --address");
            Refusal::new(Code::InvalidArgument, "address-invalid", message)
        };
        asked.parse::<IpAddr>().map_err(unreadable)?.to_canonical()
    };
    if !is_routable(address) {
        let message =
            format!("{address} is not an address that others can reach; give this machine's own with --address");
        return Err(Refusal::new(Code::InvalidArgument, "address-invalid", message));
    }
    let allowed = group.allowed_cidrs();
    if address != source && !allowed.iter().any(|range| range.contains(&address)) {
        let message = format!(
            "this machine's connection comes from {source}, so it may not register {address}; allow it by the annotation mesh.internal/allowed-cidrs of WorkloadGroup {}/{}",
            group.metadata.namespace, group.metadata.name
        );
        return Err(Refusal::new(Code::PermissionDenied, "address-not-yours", message));
    }
    if let Some(holder) = held_by_another(tx, address, agent)? {
        let message = format!("address {address} is held by {holder}; remove that, or choose another with --address");
        return Err(Refusal::new(Code::FailedPrecondition, "address-taken", message));
    }
    Ok(address)
}

/// Neither loopback, link-local, multicast nor unspecified.
fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast() || v6.is_unspecified()),
    }
}

/// Who else holds an address: a workload that is not this agent's, or a service.
pub(crate) fn held_by_another(tx: &Transaction<'_>, address: IpAddr, agent: &str) -> Result<Option<String>, Error> {
    // An IPv4 address can be written in one way only, which spares reading every resource.
    let candidates = match address {
        IpAddr::V4(v4) => ResourceRow::mentioning(tx, &v4.to_string())?,
        IpAddr::V6(_) => ResourceRow::list(tx, "", "", "")?,
    };
    for row in candidates {
        if row.agent.as_deref() == Some(agent) {
            continue;
        }
        let Some(resource) = Kind::find(&row.key.kind).and_then(|kind| Resource::from_json(kind, &row.json).ok())
        else {
            continue;
        };
        if holds(&resource, address) {
            return Ok(Some(format!("{} {}/{}", row.key.kind, row.key.namespace, row.key.name)));
        }
    }
    let mut statement = tx.prepare_cached("SELECT owner, slot FROM vips")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if crate::derive::vip_addresses(row.get(1)?).contains(&address) {
            return row.get(0).map(Some);
        }
    }
    Ok(None)
}

fn holds(resource: &Resource, address: IpAddr) -> bool {
    let is = |text: &str| text.parse::<IpAddr>() == Ok(address);
    match resource {
        Resource::WorkloadEntry(r) => is(&r.spec.address),
        Resource::Service(r) => r.spec.cluster_ip.as_deref().is_some_and(is),
        Resource::ServiceEntry(r) => {
            // A range describes a network, not a holder of its addresses.
            let ranges = r.spec.addresses.iter().filter_map(|a| parse_range(a));
            let single = |range: &ipnet::IpNet| range.prefix_len() == range.max_prefix_len();
            ranges.filter(single).any(|range| range.contains(&address))
                || r.spec.endpoints.iter().any(|e| is(&e.address))
        }
        // A Gateway's address is where the machine of the waypoint is to be.
        Resource::Gateway(_)
        | Resource::WorkloadGroup(_)
        | Resource::AuthorizationPolicy(_)
        | Resource::PeerAuthentication(_)
        | Resource::Namespace(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn unreachable_addresses() {
        for text in [
            "127.0.0.1",
            "169.254.169.254",
            "::1",
            "fe80::1",
            "0.0.0.0",
            "224.0.0.1",
            "::",
        ] {
            assert!(!is_routable(text.parse().unwrap()), "{text}");
        }
        assert!(is_routable("10.0.0.1".parse().unwrap()));
    }
}
