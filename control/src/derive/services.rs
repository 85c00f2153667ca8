//! Services: from ServiceEntry (each host, and `NAME.NS.domain`) and from `v1 Service`.

use std::collections::BTreeMap;

use mesh_proto::istio::workload::load_balancing::{HealthPolicy, Mode, Scope};
use mesh_proto::istio::workload::service::Visibility;
use mesh_proto::istio::workload::{self, AppProtocol, LoadBalancing, NetworkAddress, Port};

use super::waypoints::{Binding, Waypoints};
use super::{Input, Sorted, bytes_of, owner, vip_addresses};
use crate::resources::check::parse_range;
use crate::resources::{Labels, Meta, Service, ServiceEntry, TargetPort};

/// A service with what endpoints need to know of it.
pub(super) struct Derived {
    /// One record per hostname; they differ in nothing else.
    pub(super) records: Vec<workload::Service>,
    /// Ports as endpoints resolve them.
    pub(super) ports: Vec<DerivedPort>,
    /// Which WorkloadEntries of its namespace are its endpoints; none when it selects none.
    pub(super) selector: Option<Labels>,
    /// The ServiceEntry that it is of, for its inline endpoints.
    pub(super) entry: Option<(String, String)>,
    pub(super) waypoint: Binding,
}

/// A port of a service.
pub(super) struct DerivedPort {
    pub(super) number: u32,
    pub(super) protocol: AppProtocol,
    pub(super) target: Target,
}

/// How an endpoint finds its port.
pub(super) enum Target {
    /// An endpoint's port of this name, else this number.
    NameElse(String, u32),
    /// This number (a Service's port without a name).
    Number(u32),
    /// An endpoint's port of this name; an endpoint without it does not serve the port (Service).
    Name(String),
}

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

pub(super) fn all(input: &Input<'_>, sorted: &Sorted<'_>, waypoints: &Waypoints<'_>) -> Vec<Derived> {
    let from_services = sorted.services.iter().map(|s| of_service(input, s, waypoints));
    let from_entries = sorted.service_entries.iter().map(|s| of_entry(input, s, waypoints));
    from_services.chain(from_entries).collect()
}

/// The records by key. A hostname that several objects of one namespace claim stays with the first, in the order of kinds and names.
pub(super) fn records(services: Vec<Derived>) -> BTreeMap<String, workload::Service> {
    let mut records = BTreeMap::new();
    for record in services.into_iter().flat_map(|s| s.records) {
        records
            .entry(format!("{}/{}", record.namespace, record.hostname))
            .or_insert(record);
    }
    records
}

/// Whether a ServiceEntry gets an automatic address: it has none, and one could be honoured.
pub(super) fn wants_vip(entry: &ServiceEntry) -> bool {
    let wildcards_only = entry.spec.hosts.iter().all(|h| h.starts_with('*'));
    let resolution = entry.spec.resolution.as_deref().unwrap_or("NONE");
    entry.spec.addresses.is_empty() && resolution != "NONE" && !wildcards_only
}

/// Host names of a ServiceEntry's records.
pub(super) fn hosts_of_entry(input: &Input<'_>, entry: &ServiceEntry) -> Vec<String> {
    let (meta, spec) = (&entry.metadata, &entry.spec);
    let mut hosts: Vec<String> = spec.hosts.iter().map(|h| h.to_ascii_lowercase()).collect();
    if spec.resolution.as_deref().unwrap_or("NONE") != "NONE" {
        hosts.push(format!("{}.{}.{}", meta.name, meta.namespace, input.dns_domain));
    }
    hosts.dedup();
    hosts
}

/// Host names of a Service's records.
pub(super) fn hosts_of_service(input: &Input<'_>, service: &Service) -> Vec<String> {
    let base = format!("{}.{}", service.metadata.name, service.metadata.namespace);
    vec![
        format!("{base}.svc.cluster.local"),
        format!("{base}.{}", input.dns_domain),
    ]
}

fn of_entry(input: &Input<'_>, entry: &ServiceEntry, waypoints: &Waypoints<'_>) -> Derived {
    let (meta, spec) = (&entry.metadata, &entry.spec);
    let resolution = spec.resolution.as_deref().unwrap_or("NONE");
    let ports: Vec<_> = spec
        .ports
        .iter()
        .map(|p| DerivedPort {
            number: p.number,
            protocol: protocol_of(p.protocol.as_deref().unwrap_or_default()),
            target: Target::NameElse(p.name.clone(), p.target_port.unwrap_or(p.number)),
        })
        .collect();
    let mut addresses = explicit(&spec.addresses);
    if wants_vip(entry) {
        addresses = automatic(input, "ServiceEntry", meta);
    }
    let mut balancing = distribution(meta.annotations.get(TRAFFIC_DISTRIBUTION).map(String::as_str));
    if resolution == "NONE" {
        balancing = Some(LoadBalancing {
            routing_preference: Vec::new(),
            mode: Mode::Passthrough.into(),
            health_policy: HealthPolicy::AllowAll.into(),
        });
    }
    let hosts = hosts_of_entry(input, entry);
    let private = spec.export_to.iter().any(|e| e == ".");
    let waypoint = waypoints.for_service(meta, &hosts, private);
    let record = |hostname: &String| workload::Service {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        hostname: hostname.clone(),
        addresses: addresses.clone(),
        ports: wire_ports(&ports),
        subject_alt_names: spec.subject_alt_names.clone(),
        waypoint: address(&waypoint),
        load_balancing: balancing.clone(),
        visibility: if private {
            Visibility::Namespace
        } else {
            Visibility::Public
        }
        .into(),
        ..workload::Service::default()
    };
    Derived {
        records: hosts.iter().map(record).collect(),
        selector: spec.workload_selector.as_ref().map(|s| s.labels.clone()),
        entry: Some((meta.namespace.clone(), meta.name.clone())),
        ports,
        waypoint,
    }
}

fn of_service(input: &Input<'_>, service: &Service, waypoints: &Waypoints<'_>) -> Derived {
    let (meta, spec) = (&service.metadata, &service.spec);
    let ports: Vec<_> = spec
        .ports
        .iter()
        .map(|p| DerivedPort {
            number: p.port,
            protocol: protocol_of(p.app_protocol.as_deref().or(p.name.as_deref()).unwrap_or_default()),
            target: match (&p.target_port, &p.name) {
                (Some(TargetPort::Name(name)), _) => Target::Name(name.clone()),
                (Some(TargetPort::Number(n)), Some(name)) => Target::NameElse(name.clone(), *n),
                (None, Some(name)) => Target::NameElse(name.clone(), p.port),
                (Some(TargetPort::Number(n)), None) => Target::Number(*n),
                (None, None) => Target::Number(p.port),
            },
        })
        .collect();
    let addresses = match spec.cluster_ip.as_deref() {
        Some("None") => Vec::new(),
        None | Some("") => automatic(input, "Service", meta),
        Some(ip) => explicit(std::slice::from_ref(&ip.to_owned())),
    };
    let annotated = meta
        .annotations
        .get(TRAFFIC_DISTRIBUTION)
        .or(spec.traffic_distribution.as_ref());
    let mut balancing = distribution(annotated.map(String::as_str));
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        balancing = Some(LoadBalancing {
            routing_preference: vec![Scope::Node.into()],
            mode: Mode::Strict.into(),
            health_policy: HealthPolicy::OnlyHealthy.into(),
        });
    }
    if spec.publish_not_ready_addresses {
        balancing.get_or_insert_with(LoadBalancing::default).health_policy = HealthPolicy::AllowAll.into();
    }
    let hosts = hosts_of_service(input, service);
    let waypoint = waypoints.for_service(meta, &hosts, false);
    let record = |hostname: &String| workload::Service {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        hostname: hostname.clone(),
        addresses: addresses.clone(),
        ports: wire_ports(&ports),
        waypoint: address(&waypoint),
        load_balancing: balancing.clone(),
        canonical: true,
        ..workload::Service::default()
    };
    Derived {
        records: hosts.iter().map(record).collect(),
        selector: Some(spec.selector.clone()).filter(|s| !s.is_empty()),
        entry: None,
        ports,
        waypoint,
    }
}

fn address(waypoint: &Binding) -> Option<workload::GatewayAddress> {
    let bound = waypoint.as_ref().ok()?.as_ref()?;
    Some(bound.address.clone())
}

fn wire_ports(ports: &[DerivedPort]) -> Vec<Port> {
    let wire = |p: &DerivedPort| Port {
        service_port: p.number,
        target_port: match &p.target {
            Target::NameElse(_, number) | Target::Number(number) => *number,
            Target::Name(_) => 0,
        },
        app_protocol: p.protocol.into(),
    };
    ports.iter().map(wire).collect()
}

fn explicit(addresses: &[String]) -> Vec<NetworkAddress> {
    let ranges = addresses.iter().filter_map(|a| parse_range(a));
    ranges
        .map(|range| NetworkAddress {
            network: String::new(),
            address: bytes_of(range.network()),
            length: (range.prefix_len() < range.max_prefix_len()).then(|| u32::from(range.prefix_len())),
        })
        .collect()
}

fn automatic(input: &Input<'_>, kind: &str, meta: &Meta) -> Vec<NetworkAddress> {
    let slot = input.vips.get(&owner(kind, &meta.namespace, &meta.name));
    let addresses = slot.into_iter().flat_map(|slot| vip_addresses(*slot));
    addresses
        .map(|address| NetworkAddress {
            network: String::new(),
            address: bytes_of(address),
            length: None,
        })
        .collect()
}

fn distribution(preference: Option<&str>) -> Option<LoadBalancing> {
    let scopes: &[Scope] = match preference? {
        "PreferClose" | "PreferSameZone" => &[Scope::Network, Scope::Region, Scope::Zone],
        "PreferSameNode" => &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node],
        _ => return None,
    };
    Some(LoadBalancing {
        routing_preference: scopes.iter().map(|s| (*s).into()).collect(),
        mode: Mode::Failover.into(),
        health_policy: HealthPolicy::OnlyHealthy.into(),
    })
}

/// A protocol by Istio's names for it, or by a port's name such as `http-web`.
fn protocol_of(text: &str) -> AppProtocol {
    let text = text.to_ascii_lowercase();
    match text.split('-').next().unwrap_or_default() {
        "http" | "http1" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "mongo" | "redis" | "mysql" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        _ if text == "kubernetes.io/h2c" => AppProtocol::Http2,
        _ => AppProtocol::Unknown,
    }
}
