//! `/config_dump`, in the shape of ztunnel's (as ztunnel does it), so that `istioctl ztunnel-config --file` reads it.
//! Never a private key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_core::policy::Policy;
use mesh_core::world::{Service, TunnelProtocol, Workload};
use serde_json::{Value, json};

use super::status::View;
use crate::certs::unix;
use crate::channel::hex;

/// The dump.
pub fn render(view: &View) -> Value {
    let View::Member(member) = view else {
        return json!({ "workloads": [], "services": [], "policies": [], "certificates": [] });
    };
    let world = member.shared.world();
    json!({
        "workloads": world.workloads().map(|one| workload(one)).collect::<Vec<_>>(),
        "services": world.services().map(|one| service(one)).collect::<Vec<_>>(),
        "policies": world.policies().map(|one| policy(one)).collect::<Vec<_>>(),
        "stagedServices": {},
        "staticConfig": {},
        "version": { "version": env!("CARGO_PKG_VERSION") },
        "config": serde_json::to_value(&*member.shared.config).unwrap_or_default(),
        "certificates": member.shared.credentials().iter().map(|one| certificate(one)).collect::<Vec<_>>(),
    })
}

fn workload(one: &Workload) -> Value {
    let kind = ["deployment", "cronjob", "pod", "job"][usize::try_from(one.workload_type).unwrap_or(0).min(3)];
    json!({
        "uid": one.uid,
        "name": one.name,
        "namespace": one.namespace,
        "workloadIps": one.addresses,
        "network": one.network,
        "protocol": match one.tunnel_protocol { TunnelProtocol::Hbone => "HBONE", TunnelProtocol::None => "TCP" },
        "trustDomain": one.identity.trust_domain(),
        "serviceAccount": one.identity.service_account(),
        "node": one.node,
        "canonicalName": one.canonical_name,
        "canonicalRevision": one.canonical_revision,
        "workloadName": one.workload_name,
        "workloadType": kind,
        "status": if one.healthy { "Healthy" } else { "Unhealthy" },
        "clusterId": one.cluster_id,
        "capacity": one.capacity,
        "authorizationPolicies": one.authorization_policies,
        "services": one.services.iter().map(|(key, _)| format!("{}/{}", key.namespace, key.hostname)).collect::<Vec<_>>(),
        "locality": { "region": one.locality.region, "zone": one.locality.zone, "subzone": one.locality.subzone },
    })
}

fn service(one: &Service) -> Value {
    let ports = one
        .ports
        .iter()
        .map(|port| (port.service_port.to_string(), json!(port.target_port)));
    json!({
        "name": one.name,
        "namespace": one.key.namespace,
        "hostname": one.key.hostname,
        "vips": one.vips.iter().map(|(network, vip)| format!("{network}/{}", vip.addr())).collect::<Vec<_>>(),
        "ports": ports.collect::<serde_json::Map<_, _>>(),
        "subjectAltNames": one.subject_alt_names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "canonical": one.canonical,
    })
}

fn policy(one: &Policy) -> Value {
    json!({
        "name": one.name,
        "namespace": one.namespace,
        "scope": format!("{:?}", one.scope),
        "action": format!("{:?}", one.action),
        "dryRun": one.dry_run,
        "rules": one.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>(),
    })
}

fn certificate(one: &crate::certs::Credentials) -> Value {
    let entry = |pem: &str| json!({ "pem": STANDARD.encode(pem) });
    json!({
        "identity": one.identity.to_string(),
        "state": "Available",
        "certChain": [{
            "pem": one.key.cert.first().map(|der| STANDARD.encode(der)),
            "serialNumber": hex(&one.serial),
            "validFrom": unix(one.not_before),
            "expirationTime": unix(one.not_after),
        }],
        "rootCerts": one.root_pems.iter().map(|pem| entry(pem)).collect::<Vec<_>>(),
    })
}
