//! Workloads: from WorkloadEntries (applied or registered) and from endpoints written into ServiceEntries.

use std::net::IpAddr;

use mesh_proto::extension;
use mesh_proto::istio::workload::{
    Extension, Locality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};

use super::policies::Attachments;
use super::services::{Derived, DerivedPort, Target};
use super::waypoints::{Binding, Instance, Waypoints};
use super::{Input, Sorted, bytes_of, entry_uid};
use crate::resources::{EntryTemplate, HBONE3, Labels, Meta, Selector, ServiceEntry, WorkloadEntry};

/// Label that says: this machine takes HBONE.
const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

pub(super) fn all(
    input: &Input<'_>,
    sorted: &Sorted<'_>,
    services: &[Derived],
    attachments: &Attachments<'_>,
    waypoints: &Waypoints<'_>,
) -> Vec<Workload> {
    let mut workloads: Vec<_> = sorted
        .entries
        .iter()
        .map(|entry| of_entry(input, entry, services, attachments, waypoints))
        .collect();
    for entry in &sorted.service_entries {
        workloads.extend(inline(input, entry, services, attachments, waypoints));
    }
    workloads
}

/// The waypoint of a WorkloadEntry.
pub(super) fn waypoint_of(entry: &WorkloadEntry, services: &[Derived], waypoints: &Waypoints<'_>) -> Binding {
    let labels = entry.labels();
    let hosts = hosts(selecting(entry, &labels, services));
    waypoints.for_workload(&instance(&entry.metadata, &labels, &entry.spec, &hosts))
}

fn of_entry(
    input: &Input<'_>,
    entry: &WorkloadEntry,
    services: &[Derived],
    attachments: &Attachments<'_>,
    waypoints: &Waypoints<'_>,
) -> Workload {
    let meta = &entry.metadata;
    let labels = entry.labels();
    let uid = entry_uid(input.cluster_id, &meta.namespace, &meta.name);
    let mut workload = common(input, &entry.spec, meta, &labels, attachments);
    workload.uid = uid;
    workload.name.clone_from(&meta.name);
    if meta.annotations.get(HBONE3).map(String::as_str) == Some("true") {
        workload.extensions.push(Extension {
            name: extension::HBONE3.to_owned(),
            config: None,
        });
    }
    if entry.unhealthy().is_some() {
        workload.status = WorkloadStatus::Unhealthy.into();
    }
    for service in selecting(entry, &labels, services) {
        attach(&mut workload, service, &entry.spec, None);
    }
    let hosts = hosts(selecting(entry, &labels, services));
    pass(&mut workload, &instance(meta, &labels, &entry.spec, &hosts), waypoints);
    workload
}

/// Services of the entry's namespace that select it.
fn selecting<'a>(
    entry: &'a WorkloadEntry,
    labels: &'a Labels,
    services: &'a [Derived],
) -> impl Iterator<Item = &'a Derived> {
    services.iter().filter(move |service| {
        let here = service.records.first();
        here.is_some_and(|r| r.namespace == entry.metadata.namespace)
            && service.selector.as_ref().is_some_and(|wanted| {
                let selector = Selector {
                    match_labels: wanted.clone(),
                };
                selector.matches(labels)
            })
    })
}

fn hosts<'a>(services: impl Iterator<Item = &'a Derived>) -> Vec<String> {
    let records = services.flat_map(|service| &service.records);
    records.map(|record| record.hostname.clone()).collect()
}

fn instance<'a>(meta: &'a Meta, labels: &'a Labels, spec: &'a EntryTemplate, hosts: &'a [String]) -> Instance<'a> {
    Instance {
        namespace: &meta.namespace,
        labels,
        address: &spec.address,
        network: &spec.network,
        hosts,
    }
}

/// Notes through whom the workload is reached, or for whom it stands there itself.
fn pass(workload: &mut Workload, of: &Instance<'_>, waypoints: &Waypoints<'_>) {
    workload.waypoint = waypoints.for_workload(of).ok().flatten().map(|bound| bound.address);
    workload.application_tunnel = waypoints.application_tunnel(of);
}

/// Endpoints of a ServiceEntry. With resolution DNS and none written, each host is the endpoint of its own service. Labels of
/// the ServiceEntry are those of all its endpoints, which may have more of their own; what says which waypoint takes the
/// service does not say so of its endpoints.
fn inline(
    input: &Input<'_>,
    entry: &ServiceEntry,
    services: &[Derived],
    attachments: &Attachments<'_>,
    waypoints: &Waypoints<'_>,
) -> Vec<Workload> {
    let (meta, spec) = (&entry.metadata, &entry.spec);
    let by_dns = spec.resolution.as_deref().is_some_and(|r| r.starts_with("DNS"));
    let mut endpoints = spec.endpoints.clone();
    let implicit = endpoints.is_empty() && by_dns && spec.workload_selector.is_none();
    if implicit {
        let hosts = spec.hosts.iter().filter(|h| !h.starts_with('*'));
        endpoints = hosts
            .map(|host| EntryTemplate {
                address: host.clone(),
                ..EntryTemplate::default()
            })
            .collect();
    }
    let key = (meta.namespace.clone(), meta.name.clone());
    let service = services.iter().find(|s| s.entry.as_ref() == Some(&key));
    let of_endpoint = |endpoint: &EntryTemplate| {
        let mut labels = meta.labels.clone();
        labels.extend(endpoint.labels.clone());
        let mut workload = common(input, endpoint, meta, &labels, attachments);
        workload.uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{}",
            input.cluster_id, meta.namespace, meta.name, endpoint.address
        );
        workload.name.clone_from(&meta.name);
        if let Some(service) = service {
            let others = spec.hosts.iter().filter(|host| **host != endpoint.address);
            let others: Option<Vec<_>> = implicit.then(|| others.map(|h| h.to_ascii_lowercase()).collect());
            attach(&mut workload, service, endpoint, others.as_deref());
        }
        if !implicit {
            let hosts = hosts(service.into_iter());
            pass(
                &mut workload,
                &instance(meta, &endpoint.labels, endpoint, &hosts),
                waypoints,
            );
        }
        workload
    };
    endpoints.iter().map(of_endpoint).collect()
}

fn common(
    input: &Input<'_>,
    spec: &EntryTemplate,
    meta: &Meta,
    labels: &Labels,
    attachments: &Attachments<'_>,
) -> Workload {
    let native = labels.get(TUNNEL_LABEL).map(String::as_str) == Some("http");
    let tunnel = native || meta.annotations.get("ambient.istio.io/redirection").map(String::as_str) == Some("enabled");
    let address = spec.address.parse::<IpAddr>().ok();
    let label = |keys: &[&str]| keys.iter().find_map(|k| labels.get(*k)).cloned();
    let name_keys = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
    let revision_keys = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    // What telemetry names: machines of one group are one workload.
    let workload_name = meta
        .annotations
        .get("istio.io/autoRegistrationGroup")
        .cloned()
        .or_else(|| label(&["service.istio.io/workload-name"]))
        .unwrap_or_else(|| meta.name.clone());
    let mut locality = spec.locality.splitn(3, '/').map(str::to_owned);
    Workload {
        namespace: meta.namespace.clone(),
        addresses: address.map(bytes_of).into_iter().collect(),
        hostname: if address.is_none() {
            spec.address.clone()
        } else {
            String::new()
        },
        network: spec.network.clone(),
        tunnel_protocol: if tunnel {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        }
        .into(),
        native_tunnel: native,
        trust_domain: input.trust_domain.to_owned(),
        service_account: spec.account().to_owned(),
        canonical_name: label(&name_keys).unwrap_or_else(|| workload_name.clone()),
        canonical_revision: label(&revision_keys).unwrap_or_else(|| "latest".to_owned()),
        workload_type: WorkloadType::Pod.into(),
        workload_name,
        authorization_policies: attachments.for_workload(&meta.namespace, labels),
        status: WorkloadStatus::Healthy.into(),
        cluster_id: input.cluster_id.to_owned(),
        network_mode: NetworkMode::Standard.into(),
        locality: (!spec.locality.is_empty()).then(|| Locality {
            region: locality.next().unwrap_or_default(),
            zone: locality.next().unwrap_or_default(),
            subzone: locality.next().unwrap_or_default(),
        }),
        capacity: spec.weight.filter(|weight| *weight > 0),
        ..Workload::default()
    }
}

/// Makes the workload an endpoint of the service, under each of its hostnames but those of `others`.
fn attach(workload: &mut Workload, service: &Derived, endpoint: &EntryTemplate, others: Option<&[String]>) {
    let wire = |port: &DerivedPort| {
        let target = match &port.target {
            Target::Number(number) => *number,
            Target::NameElse(name, number) => endpoint.ports.get(name).copied().unwrap_or(*number),
            Target::Name(name) => *endpoint.ports.get(name)?,
        };
        Some(Port {
            service_port: port.number,
            target_port: target,
            app_protocol: port.protocol.into(),
        })
    };
    let ports: Vec<Port> = service.ports.iter().filter_map(wire).collect();
    let is_other = |hostname: &String| others.is_some_and(|others| others.contains(hostname));
    for record in service.records.iter().filter(|r| !is_other(&r.hostname)) {
        let key = format!("{}/{}", record.namespace, record.hostname);
        let list = PortList { ports: ports.clone() };
        workload.services.entry(key).or_insert(list);
    }
}
