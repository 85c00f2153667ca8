//! WDS and authorization messages into types that cannot be wrong. An error rejects one resource, by name, and no other.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_proto::istio::{security, workload as wds};
use mesh_proto::mesh;

use super::{
    BalanceMode, IpFamilies, Locality, Port, Revocation, Scope, Service, ServiceKey, TunnelProtocol, Workload,
};
use crate::identity::Identity;
use crate::policy::{self, Match, Policy, StringMatch};

/// Why a resource was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(String);

/// A rejection with this reason.
pub fn rejected(why: &str) -> Rejected {
    Rejected(why.to_owned())
}

fn reject<T>(why: impl Into<String>) -> Result<T, Rejected> {
    Err(Rejected(why.into()))
}

/// A workload, with the defaults of WDS filled in.
pub fn workload(from: wds::Workload) -> Result<Workload, Rejected> {
    if from.uid.is_empty() {
        return reject("the workload has no uid");
    }
    let tunnel_protocol = match wds::TunnelProtocol::try_from(from.tunnel_protocol) {
        Ok(wds::TunnelProtocol::None) => TunnelProtocol::None,
        Ok(wds::TunnelProtocol::Hbone) => TunnelProtocol::Hbone,
        Ok(wds::TunnelProtocol::LegacyIstioMtls) | Err(_) => return reject("its tunnel protocol is not supported"),
    };
    let or = |value: &str, default: &'static str| -> Arc<str> { if value.is_empty() { default } else { value }.into() };
    let (trust_domain, account) = (
        or(&from.trust_domain, "cluster.local"),
        or(&from.service_account, "default"),
    );
    let identity = Identity::new(&trust_domain, &from.namespace, &account).map_err(|e| Rejected(e.to_string()))?;
    let locality = from.locality.unwrap_or_default();
    Ok(Workload {
        uid: from.uid.into(),
        name: from.name.into(),
        namespace: from.namespace.into(),
        addresses: from
            .addresses
            .iter()
            .map(|bytes| address(bytes))
            .collect::<Result<_, _>>()?,
        hostname: from.hostname.into(),
        network: from.network.into(),
        tunnel_protocol,
        identity,
        node: from.node.into(),
        canonical_name: from.canonical_name.into(),
        canonical_revision: from.canonical_revision.into(),
        workload_type: from.workload_type,
        workload_name: from.workload_name.into(),
        authorization_policies: from.authorization_policies.into_iter().map(Into::into).collect(),
        healthy: from.status == wds::WorkloadStatus::Healthy as i32,
        cluster_id: or(&from.cluster_id, "Kubernetes"),
        host_network: from.network_mode == wds::NetworkMode::HostNetwork as i32,
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        },
        capacity: from.capacity.unwrap_or(1),
        services: from
            .services
            .into_iter()
            .map(|(key, list)| Ok((service_key(&key)?, ports(list.ports)?)))
            .collect::<Result<_, Rejected>>()?,
        has_waypoint: from.waypoint.is_some(),
        has_network_gateway: from.network_gateway.is_some(),
    })
}

/// A service.
pub fn service(from: wds::Service) -> Result<Service, Rejected> {
    if from.hostname.is_empty() {
        return reject("the service has no hostname");
    }
    let balancing = from.load_balancing.unwrap_or_default();
    Ok(Service {
        name: from.name.into(),
        key: ServiceKey {
            namespace: from.namespace.into(),
            hostname: from.hostname.to_ascii_lowercase().into(),
        },
        vips: from
            .addresses
            .into_iter()
            .map(|vip| Ok((vip.network.into(), prefix(&vip.address, vip.length)?)))
            .collect::<Result<_, Rejected>>()?,
        ports: ports(from.ports)?,
        // What is not a SPIFFE identity can never be shown by a peer.
        subject_alt_names: from
            .subject_alt_names
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        mode: match wds::load_balancing::Mode::try_from(balancing.mode) {
            Ok(wds::load_balancing::Mode::Strict) => BalanceMode::Strict,
            Ok(wds::load_balancing::Mode::Failover) => BalanceMode::Failover,
            Ok(wds::load_balancing::Mode::Passthrough) => BalanceMode::Passthrough,
            Ok(wds::load_balancing::Mode::UnspecifiedMode) | Err(_) => BalanceMode::Any,
        },
        preference: balancing
            .routing_preference
            .iter()
            .filter_map(|scope| self::scope(*scope))
            .collect(),
        allow_unhealthy: balancing.health_policy == wds::load_balancing::HealthPolicy::AllowAll as i32,
        ip_families: match wds::IpFamilies::try_from(from.ip_families) {
            Ok(wds::IpFamilies::Ipv4Only) => IpFamilies::V4Only,
            Ok(wds::IpFamilies::Ipv6Only) => IpFamilies::V6Only,
            Ok(wds::IpFamilies::Dual) => IpFamilies::Dual,
            Ok(wds::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
        },
        canonical: from.canonical,
        has_waypoint: from.waypoint.is_some() || !from.weighted_waypoints.is_empty(),
        private: from.visibility == wds::service::Visibility::Namespace as i32,
    })
}

fn scope(scope: i32) -> Option<Scope> {
    use wds::load_balancing::Scope as Wire;
    Some(match Wire::try_from(scope).ok()? {
        Wire::Region => Scope::Region,
        Wire::Zone => Scope::Zone,
        Wire::Subzone => Scope::Subzone,
        Wire::Node => Scope::Node,
        Wire::Cluster => Scope::Cluster,
        Wire::Network => Scope::Network,
        Wire::UnspecifiedScope => return None,
    })
}

fn service_key(key: &str) -> Result<ServiceKey, Rejected> {
    match key.split_once('/') {
        Some((namespace, hostname)) if !hostname.is_empty() => Ok(ServiceKey {
            namespace: namespace.into(),
            hostname: hostname.to_ascii_lowercase().into(),
        }),
        _ => reject(format!("{key:?} is not namespace/hostname")),
    }
}

fn ports(ports: Vec<wds::Port>) -> Result<Vec<Port>, Rejected> {
    let port = |number: u32| u16::try_from(number).map_err(|_| Rejected(format!("{number} is not a port")));
    ports
        .into_iter()
        .map(|from| {
            Ok(Port {
                service_port: port(from.service_port)?,
                target_port: port(from.target_port)?,
                app_protocol: from.app_protocol,
            })
        })
        .collect()
}

fn address(bytes: &[u8]) -> Result<IpAddr, Rejected> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => reject(format!("an address of {} bytes", bytes.len())),
    }
}

fn prefix(bytes: &[u8], length: Option<u32>) -> Result<IpNet, Rejected> {
    let address = address(bytes)?;
    let whole = IpNet::from(address);
    let Some(length) = length else { return Ok(whole) };
    let length = u8::try_from(length).map_err(|_| Rejected(format!("a prefix of {length} bits")))?;
    IpNet::new(address, length).map_err(|_| Rejected(format!("a prefix of {length} bits")))
}

/// An authorization policy.
pub fn policy(from: security::Authorization) -> Result<Policy, Rejected> {
    let action = match security::Action::try_from(from.action) {
        Ok(security::Action::Allow) => policy::Action::Allow,
        Ok(security::Action::Deny) => policy::Action::Deny,
        Err(_) => return reject("its action is not known"),
    };
    let scope = match security::Scope::try_from(from.scope) {
        Ok(security::Scope::Global) => policy::Scope::Global,
        Ok(security::Scope::Namespace) => policy::Scope::Namespace,
        Ok(security::Scope::WorkloadSelector) => policy::Scope::WorkloadSelector,
        Err(_) => return reject("its scope is not known"),
    };
    let clause = |clause: security::Clause| clause.matches.into_iter().map(self::match_).collect();
    let rule = |rule: security::Rule| rule.clauses.into_iter().map(clause).collect();
    let rules = from.rules.into_iter().map(rule).collect::<Result<_, _>>()?;
    let key = format!("{}/{}", from.namespace, from.name).into();
    Ok(Policy {
        key,
        namespace: from.namespace.into(),
        name: from.name.into(),
        scope,
        action,
        dry_run: from.dry_run,
        rules,
    })
}

fn match_(from: security::Match) -> Result<Match, Rejected> {
    let strings = |list: Vec<security::StringMatch>| list.into_iter().map(string_match).collect::<Result<Vec<_>, _>>();
    let ports = |list: Vec<u32>| {
        list.into_iter()
            .map(|port| u16::try_from(port).map_err(|_| Rejected(format!("{port} is not a port"))))
            .collect::<Result<Vec<_>, _>>()
    };
    let prefixes = |list: Vec<security::Address>| {
        list.iter()
            .map(|from| prefix(&from.address, Some(from.length)).map(|net| net.trunc()))
            .collect::<Result<Vec<_>, _>>()
    };
    let accounts = |list: Vec<security::ServiceAccountMatch>| {
        list.into_iter()
            .map(|one| (one.namespace.into(), one.service_account.into()))
            .collect()
    };
    Ok(Match {
        namespaces: strings(from.namespaces)?,
        not_namespaces: strings(from.not_namespaces)?,
        principals: strings(from.principals)?,
        not_principals: strings(from.not_principals)?,
        source_ips: prefixes(from.source_ips)?,
        not_source_ips: prefixes(from.not_source_ips)?,
        destination_ips: prefixes(from.destination_ips)?,
        not_destination_ips: prefixes(from.not_destination_ips)?,
        destination_ports: ports(from.destination_ports)?,
        not_destination_ports: ports(from.not_destination_ports)?,
        service_accounts: accounts(from.service_accounts),
        not_service_accounts: accounts(from.not_service_accounts),
    })
}

fn string_match(from: security::StringMatch) -> Result<StringMatch, Rejected> {
    use security::string_match::MatchType;
    Ok(match from.match_type {
        Some(MatchType::Exact(text)) => StringMatch::Exact(text.into()),
        Some(MatchType::Prefix(text)) => StringMatch::Prefix(text.into()),
        Some(MatchType::Suffix(text)) => StringMatch::Suffix(text.into()),
        Some(MatchType::Presence(_)) => StringMatch::Presence,
        None => return reject("a string match without a kind"),
    })
}

/// A revocation.
pub fn revocation(from: mesh::Revocation) -> Result<Revocation, Rejected> {
    let key = |bytes: &Vec<u8>| {
        bytes
            .as_slice()
            .try_into()
            .map_err(|_| Rejected("a key hash that is not 32 bytes".into()))
    };
    let spki_sha256 = from.spki_sha256.iter().map(key).collect::<Result<_, _>>()?;
    Ok(Revocation {
        serials: from.serials,
        spki_sha256,
    })
}
