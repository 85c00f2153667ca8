//! Istio's messages into our types: defaults filled in, everything that cannot be right refused, resource by resource.
//!
//! A refusal costs only the resource that it is about: the session reports it to the control plane and applies the rest.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use mesh_proto::istio::security as policy_proto;
use mesh_proto::istio::workload as proto;
use rustc_hash::FxHashSet;

use super::{BalanceMode, Gateway, IpFamilies, Locality, Port, Scope, Service, ServiceKey, TunnelProtocol, Workload};
use crate::identity::Identity;
use crate::policy::{self, Match, Policy, StringMatch};

mod gateways;

/// Why a resource was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field}: an IP address has 4 or 16 bytes, not {length}")]
    Address { field: &'static str, length: usize },
    #[error("{field}: a prefix of {length} bits does not fit {address}")]
    Prefix {
        field: &'static str,
        address: IpAddr,
        length: u32,
    },
    #[error("{field}: {value} is not a port")]
    Port { field: &'static str, value: u32 },
    #[error("{field}: the value {value} is not known or not supported")]
    Unsupported { field: &'static str, value: i32 },
    #[error("services: the key {0:?} is not NAMESPACE/HOSTNAME")]
    ServiceKey(String),
    #[error("{0}")]
    Identity(#[from] crate::identity::InvalidIdentity),
    #[error("{0:?} has no match type")]
    EmptyStringMatch(&'static str),
}

/// What thousands of workloads share (namespaces, networks, nodes, waypoints), held once.
#[derive(Debug, Default)]
pub struct Names {
    known: FxHashSet<Arc<str>>,
    gateways: FxHashSet<Arc<Gateway>>,
}

/// More different strings than this are not worth sharing; the set starts anew.
const MAX_NAMES: usize = 65_536;

static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

impl Names {
    fn share(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() {
            return Arc::clone(&EMPTY);
        }
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= MAX_NAMES {
            self.known.clear();
        }
        let new: Arc<str> = text.into();
        self.known.insert(Arc::clone(&new));
        new
    }

    fn share_gateway(&mut self, gateway: Gateway) -> Arc<Gateway> {
        if let Some(known) = self.gateways.get(&gateway) {
            return Arc::clone(known);
        }
        if self.gateways.len() >= MAX_NAMES {
            self.gateways.clear();
        }
        let new = Arc::new(gateway);
        self.gateways.insert(Arc::clone(&new));
        new
    }
}

/// A workload, with the defaults of WDS (as ztunnel does it).
pub fn workload(from: proto::Workload, names: &mut Names) -> Result<Workload, Invalid> {
    if from.uid.is_empty() {
        return Err(Invalid::Missing("uid"));
    }
    let trust_domain = or(&from.trust_domain, "cluster.local");
    let service_account = or(&from.service_account, "default");
    let locality = from.locality.unwrap_or_default();
    Ok(Workload {
        identity: Identity::shared(
            names.share(trust_domain),
            names.share(&from.namespace),
            names.share(service_account),
        )?,
        addresses: exact(from.addresses.iter().map(|bytes| address("addresses", bytes)))?,
        tunnel_protocol: tunnel_protocol(from.tunnel_protocol)?,
        services: exact(from.services.iter().map(|(key, list)| attachment(key, list, names)))?,
        uid: from.uid.into(),
        name: names.share(&from.name),
        namespace: names.share(&from.namespace),
        hostname: names.share(&from.hostname),
        network: names.share(&from.network),
        node: names.share(&from.node),
        canonical_name: names.share(&from.canonical_name),
        canonical_revision: names.share(&from.canonical_revision),
        workload_type: from.workload_type,
        workload_name: names.share(&from.workload_name),
        authorization_policies: from.authorization_policies.iter().map(|key| names.share(key)).collect(),
        healthy: from.status == proto::WorkloadStatus::Healthy as i32,
        cluster_id: names.share(or(&from.cluster_id, "Kubernetes")),
        host_network: from.network_mode == proto::NetworkMode::HostNetwork as i32,
        locality: Locality {
            region: names.share(&locality.region),
            zone: names.share(&locality.zone),
            subzone: names.share(&locality.subzone),
        },
        capacity: from.capacity.unwrap_or(1),
        waypoint: gateways::optional("waypoint", from.waypoint.as_ref(), names)?,
        network_gateway: gateways::optional("network_gateway", from.network_gateway.as_ref(), names)?,
        application_tunnel: gateways::application_tunnel(from.application_tunnel.as_ref())?,
        hbone3: from
            .extensions
            .iter()
            .any(|one| one.name == mesh_proto::extension::HBONE3),
    })
}

/// A service.
pub fn service(from: proto::Service, names: &mut Names) -> Result<Service, Invalid> {
    if from.hostname.is_empty() {
        return Err(Invalid::Missing("hostname"));
    }
    let balancing = from.load_balancing.unwrap_or_default();
    Ok(Service {
        name: names.share(&from.name),
        key: ServiceKey {
            namespace: names.share(&from.namespace),
            hostname: names.share(&from.hostname),
        },
        vips: exact(from.addresses.iter().map(|vip| network_range(vip, names)))?,
        ports: ports(&from.ports)?,
        // Other kinds of names are for gateways; a SPIFFE ID is all that a mesh certificate can show.
        subject_alt_names: from
            .subject_alt_names
            .iter()
            .filter_map(|san| san.parse().ok())
            .collect(),
        mode: balance_mode(balancing.mode)?,
        preference: balancing
            .routing_preference
            .iter()
            .map(|scope| balance_scope(*scope))
            .collect::<Result<_, _>>()?,
        allow_unhealthy: balancing.health_policy == proto::load_balancing::HealthPolicy::AllowAll as i32,
        ip_families: ip_families(from.ip_families)?,
        canonical: from.canonical,
        waypoint: gateways::optional("waypoint", from.waypoint.as_ref(), names)?,
        weighted_waypoints: gateways::weighted(&from.weighted_waypoints, names)?,
        private: from.visibility == proto::service::Visibility::Namespace as i32,
    })
}

/// A policy. An entry that cannot be read refuses the policy (and a refused policy denies): to drop an entry of a list, as
/// ztunnel does with addresses, can turn "only these" into "all".
pub fn authorization(from: policy_proto::Authorization) -> Result<Policy, Invalid> {
    if from.name.is_empty() {
        return Err(Invalid::Missing("name"));
    }
    let scope = match policy_proto::Scope::try_from(from.scope) {
        Ok(policy_proto::Scope::Global) => policy::Scope::Global,
        Ok(policy_proto::Scope::Namespace) => policy::Scope::Namespace,
        Ok(policy_proto::Scope::WorkloadSelector) => policy::Scope::WorkloadSelector,
        Err(_) => {
            return Err(Invalid::Unsupported {
                field: "scope",
                value: from.scope,
            });
        }
    };
    let action = match policy_proto::Action::try_from(from.action) {
        Ok(policy_proto::Action::Allow) => policy::Action::Allow,
        Ok(policy_proto::Action::Deny) => policy::Action::Deny,
        Err(_) => {
            return Err(Invalid::Unsupported {
                field: "action",
                value: from.action,
            });
        }
    };
    let clause = |clause: policy_proto::Clause| clause.matches.into_iter().map(one_match).collect();
    let rule = |rule: policy_proto::Rule| rule.clauses.into_iter().map(clause).collect();
    Ok(Policy {
        key: format!("{}/{}", from.namespace, from.name).into(),
        namespace: from.namespace.into(),
        name: from.name.into(),
        scope,
        action,
        dry_run: from.dry_run,
        rules: from.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
    })
}

fn one_match(from: policy_proto::Match) -> Result<Match, Invalid> {
    Ok(Match {
        namespaces: strings("namespaces", from.namespaces)?,
        not_namespaces: strings("not_namespaces", from.not_namespaces)?,
        principals: strings("principals", from.principals)?,
        not_principals: strings("not_principals", from.not_principals)?,
        source_ips: ranges("source_ips", &from.source_ips)?,
        not_source_ips: ranges("not_source_ips", &from.not_source_ips)?,
        destination_ips: ranges("destination_ips", &from.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", &from.not_destination_ips)?,
        destination_ports: policy_ports("destination_ports", &from.destination_ports)?,
        not_destination_ports: policy_ports("not_destination_ports", &from.not_destination_ports)?,
        service_accounts: accounts(from.service_accounts),
        not_service_accounts: accounts(from.not_service_accounts),
    })
}

fn strings(field: &'static str, from: Vec<policy_proto::StringMatch>) -> Result<Vec<StringMatch>, Invalid> {
    use policy_proto::string_match::MatchType;
    let one = |from: policy_proto::StringMatch| match from.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Invalid::EmptyStringMatch(field)),
    };
    from.into_iter().map(one).collect()
}

fn ranges(field: &'static str, from: &[policy_proto::Address]) -> Result<Vec<IpNet>, Invalid> {
    from.iter()
        .map(|entry| range(field, address_as_sent(field, &entry.address)?, entry.length))
        .collect()
}

fn policy_ports(field: &'static str, from: &[u32]) -> Result<Vec<u16>, Invalid> {
    from.iter()
        .map(|value| u16::try_from(*value).map_err(|_| Invalid::Port { field, value: *value }))
        .collect()
}

fn accounts(from: Vec<policy_proto::ServiceAccountMatch>) -> Vec<(Arc<str>, Arc<str>)> {
    from.into_iter()
        .map(|entry| (entry.namespace.into(), entry.service_account.into()))
        .collect()
}

fn attachment(key: &str, list: &proto::PortList, names: &mut Names) -> Result<(ServiceKey, Vec<Port>), Invalid> {
    let (namespace, hostname) = key
        .split_once('/')
        .filter(|(_, hostname)| !hostname.is_empty() && !hostname.contains('/'))
        .ok_or_else(|| Invalid::ServiceKey(key.chars().take(256).collect()))?;
    let key = ServiceKey {
        namespace: names.share(namespace),
        hostname: names.share(hostname),
    };
    Ok((key, ports(&list.ports)?))
}

fn ports(from: &[proto::Port]) -> Result<Vec<Port>, Invalid> {
    let number = |field, value: u32| u16::try_from(value).map_err(|_| Invalid::Port { field, value });
    let one = |from: &proto::Port| {
        if from.service_port == 0 {
            return Err(Invalid::Port {
                field: "service_port",
                value: 0,
            });
        }
        Ok(Port {
            service_port: number("service_port", from.service_port)?,
            target_port: number("target_port", from.target_port)?,
            app_protocol: from.app_protocol,
        })
    };
    exact(from.iter().map(one))
}

fn network_range(from: &proto::NetworkAddress, names: &mut Names) -> Result<(Arc<str>, IpNet), Invalid> {
    let address = address("addresses", &from.address)?;
    let range = match from.length {
        Some(length) => range("addresses", address, length)?,
        None => IpNet::from(address),
    };
    Ok((names.share(&from.network), range))
}

fn range(field: &'static str, address: IpAddr, length: u32) -> Result<IpNet, Invalid> {
    let refused = || Invalid::Prefix { field, address, length };
    let bits = u8::try_from(length).map_err(|_| refused())?;
    // "::ffff:10.0.0.0/104" is 10.0.0.0/8: packets are compared by their IPv4 form.
    let (address, bits) = match (address, address.to_canonical()) {
        (IpAddr::V6(_), short @ IpAddr::V4(_)) => (short, bits.checked_sub(96).ok_or_else(refused)?),
        (same, _) => (same, bits),
    };
    Ok(IpNet::new(address, bits).map_err(|_| refused())?.trunc())
}

/// An address in its shortest form.
fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    Ok(address_as_sent(field, bytes)?.to_canonical())
}

fn address_as_sent(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| Invalid::Address {
        field,
        length: bytes.len(),
    })?;
    Ok(v6.into())
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, Invalid> {
    match proto::TunnelProtocol::try_from(value) {
        Ok(proto::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(proto::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(proto::TunnelProtocol::LegacyIstioMtls) | Err(_) => Err(Invalid::Unsupported {
            field: "tunnel_protocol",
            value,
        }),
    }
}

fn balance_mode(value: i32) -> Result<BalanceMode, Invalid> {
    use proto::load_balancing::Mode;
    match Mode::try_from(value) {
        Ok(Mode::UnspecifiedMode) => Ok(BalanceMode::Any),
        Ok(Mode::Strict) => Ok(BalanceMode::Strict),
        Ok(Mode::Failover) => Ok(BalanceMode::Failover),
        Ok(Mode::Passthrough) => Ok(BalanceMode::Passthrough),
        Err(_) => Err(Invalid::Unsupported {
            field: "load_balancing.mode",
            value,
        }),
    }
}

fn balance_scope(value: i32) -> Result<Scope, Invalid> {
    use proto::load_balancing::Scope as From;
    match From::try_from(value) {
        Ok(From::Region) => Ok(Scope::Region),
        Ok(From::Zone) => Ok(Scope::Zone),
        Ok(From::Subzone) => Ok(Scope::Subzone),
        Ok(From::Node) => Ok(Scope::Node),
        Ok(From::Cluster) => Ok(Scope::Cluster),
        Ok(From::Network) => Ok(Scope::Network),
        Ok(From::UnspecifiedScope) | Err(_) => Err(Invalid::Unsupported {
            field: "load_balancing.routing_preference",
            value,
        }),
    }
}

fn ip_families(value: i32) -> Result<IpFamilies, Invalid> {
    match proto::IpFamilies::try_from(value) {
        Ok(proto::IpFamilies::Automatic) => Ok(IpFamilies::Automatic),
        Ok(proto::IpFamilies::Ipv4Only) => Ok(IpFamilies::V4Only),
        Ok(proto::IpFamilies::Ipv6Only) => Ok(IpFamilies::V6Only),
        Ok(proto::IpFamilies::Dual) => Ok(IpFamilies::Dual),
        Err(_) => Err(Invalid::Unsupported {
            field: "ip_families",
            value,
        }),
    }
}

fn or<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

/// Collects without room to spare, which at 100,000 workloads is a fifth of the world.
fn exact<T>(all: impl Iterator<Item = Result<T, Invalid>>) -> Result<Vec<T>, Invalid> {
    let mut all: Vec<T> = all.collect::<Result<_, _>>()?;
    all.shrink_to_fit();
    Ok(all)
}
