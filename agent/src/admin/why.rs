//! `/why`: which rule decides about a connection, on both sides, by the world that this agent holds.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::dns::{View as Names, resolve};
use mesh_core::identity::Identity;
use mesh_core::outbound::{Own, Quic, Way};
use mesh_core::policy::{Action, Decision};
use mesh_core::why::{Judged, Source, Why, why};
use mesh_core::world::{Workload, World};
use serde_json::{Value, json};

use super::status::Member;
use crate::certs::random;
use crate::failure::denial_text;

/// Answers `source=SRC&destination=DST:PORT`; an error says what is wrong with the question.
pub(super) fn render(member: &Member, query: &str) -> Result<Value, String> {
    let world = member.shared.world();
    let asker = Asker::find(member, &world, parameter(query, "source")?)?;
    let destination = find_destination(member, &world, &asker, parameter(query, "destination")?)?;
    let membership = &member.shared.membership;
    let own_ports = member.shared.own_ports();
    let source = Source {
        own: Own {
            network: asker.workload.as_ref().map_or(&membership.network, |one| &*one.network),
            workload: asker.workload.as_deref(),
            namespace: asker.namespace(&membership.namespace),
            settled: member.shared.is_settled(),
            ports: &own_ports,
        },
        address: asker.address,
        identity: asker.identity.clone(),
    };
    let attempts = member.shared.config.outbound.attempts;
    let answer = why(&world, &source, destination, random(), attempts);
    Ok(shown(&asker, destination, &answer))
}

/// Who asks: one of the mesh, or an address that is nobody's.
struct Asker {
    workload: Option<Arc<Workload>>,
    address: IpAddr,
    identity: Option<Identity>,
}

impl Asker {
    fn find(member: &Member, world: &World, text: &str) -> Result<Self, String> {
        let membership = &member.shared.membership;
        if text == "self" {
            let own = member.shared.own_workload(world);
            return own
                .map(Self::of)
                .ok_or_else(|| "our own record is not in the world yet; see mesh-agent status".into());
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            let workload = world.workload_at(&membership.network, address.to_canonical()).cloned();
            return Ok(workload.map_or(
                Self {
                    workload: None,
                    address,
                    identity: None,
                },
                |workload| Self {
                    address,
                    ..Self::of(workload)
                },
            ));
        }
        let found = if let Ok(identity) = text.parse::<Identity>() {
            world.workloads().find(|one| one.identity == identity).cloned()
        } else {
            text.split_once('/')
                .and_then(|(namespace, name)| world.workload_named(namespace, name).cloned())
        };
        found.map(Self::of).ok_or_else(|| {
            format!("no workload {text:?} is known; say self, an IP address, NAMESPACE/WORKLOAD or a SPIFFE ID")
        })
    }

    fn of(workload: Arc<Workload>) -> Self {
        let address = workload.addresses.first().copied();
        Self {
            address: address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            // Who does not speak HBONE comes in plain, and shows nothing.
            identity: (workload.tunnel_protocol == mesh_core::world::TunnelProtocol::Hbone)
                .then(|| workload.identity.clone()),
            workload: Some(workload),
        }
    }

    fn namespace<'a>(&'a self, otherwise: &'a str) -> &'a str {
        self.workload.as_ref().map_or(otherwise, |one| &*one.namespace)
    }
}

fn find_destination(member: &Member, world: &World, asker: &Asker, text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong = || format!("{text:?} is not ADDRESS:PORT or NAME:PORT, such as orders.shop.mesh.internal:80");
    let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let membership = &member.shared.membership;
    let view = Names {
        network: &membership.network,
        namespace: asker.namespace(&membership.namespace),
        cluster_domain: &member.shared.config.dns.cluster_domain,
        mesh_domain: &membership.dns_domain,
        search: &[],
    };
    let addresses = resolve(name, world, &view);
    let of_family = |address: &&IpAddr| address.is_ipv4() == asker.address.is_ipv4();
    let address = addresses.iter().find(of_family).or_else(|| addresses.first());
    address
        .map(|address| SocketAddr::new(*address, port))
        .ok_or_else(|| format!("{name:?} is no name of the mesh; give its address to ask about a destination outside"))
}

fn shown(asker: &Asker, destination: SocketAddr, answer: &Why) -> Value {
    json!({
        "allowed": answer.is_allowed(),
        "source": {
            "address": asker.address,
            "workload": asker.workload.as_deref().map(named),
            "identity": asker.identity.as_ref().map(ToString::to_string),
        },
        "destination": destination,
        "service": answer.service.as_ref().map(|service| &*service.key.hostname),
        "reason": answer.failure.as_ref().map(ToString::to_string),
        "endpoints": answer.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

fn endpoint(judged: &Judged) -> Value {
    let candidate = &judged.candidate;
    let (way, identities) = match &candidate.way {
        Way::Tunnel { hop, .. } if hop.quic == Quic::No => ("hbone", hop.identities.as_slice()),
        Way::Tunnel { hop, .. } => ("hbone3", hop.identities.as_slice()),
        Way::Double { identities, .. } => ("double-hbone", identities.as_slice()),
        Way::Plain => ("plain", &[][..]),
    };
    let would = |action: &Action| match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    let dry_run = judged.verdict.iter().flat_map(|verdict| &verdict.dry_run);
    json!({
        "target": candidate.target.to_string(),
        "via": via(&candidate.way, candidate.via_waypoint),
        "workload": candidate.workload.as_deref().map(named),
        "way": way,
        "identities": identities.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "allowed": judged.is_allowed(),
        "policies": judged.policies(),
        "reason": reason(judged),
        "dry_run": dry_run
            .map(|(policy, action)| json!({ "policy": policy, "would": would(action) }))
            .collect::<Vec<_>>(),
    })
}

/// Who stands between, and where it is dialled.
fn via(way: &Way, waypoint: bool) -> Option<String> {
    match way {
        Way::Tunnel { hop, .. } if waypoint => Some(format!("waypoint {}", hop.address)),
        Way::Double { gateway, .. } => Some(format!("gateway {}", gateway.address)),
        Way::Tunnel { .. } | Way::Plain => None,
    }
}

fn reason(judged: &Judged) -> String {
    match judged.verdict.as_ref().map(|verdict| &verdict.decision) {
        None if judged.candidate.via_waypoint => "the waypoint decides, by policies that are not sent to us".into(),
        None if matches!(judged.candidate.way, Way::Double { .. }) => {
            "whoever the gateway picks in its network decides".into()
        }
        None => "nobody of the mesh judges it".into(),
        Some(Decision::Allowed { policy: Some(policy) }) => format!("allowed by {policy}"),
        Some(Decision::Allowed { policy: None }) => "no policy denies it, and none that allows applies".into(),
        Some(Decision::Denied(denial)) => denial_text(denial),
    }
}

fn named(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn parameter<'a>(query: &'a str, name: &str) -> Result<&'a str, String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(key, _)| *key == name).map(|(_, value)| value);
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("the question lacks {name}="))
}
