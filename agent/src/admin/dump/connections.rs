//! Live flows of our one workload, as ztunnel shows those of each of its Pods (`inpod::admin`, `connection_manager`).

use std::net::SocketAddr;

use mesh_core::packet::Protocol;
use mesh_core::world::Workload;
use serde::Serialize;

use crate::flows::{Direction, Facts, Transport};
use crate::shared::Shared;

#[derive(Serialize)]
pub(super) struct WorkloadState<'a> {
    state: &'static str,
    connections: Connections,
    info: Info<'a>,
}

#[derive(Default, Serialize)]
struct Connections {
    inbound: Vec<Connection>,
    outbound: Vec<Connection>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    src: SocketAddr,
    /// Outbound: where the application connected to; inbound: the service that was meant, if one was.
    original_dst: Option<String>,
    actual_dst: SocketAddr,
    /// ztunnel's word.
    protocol: &'static str,
    /// Ours, which knows more than one way.
    transport: Transport,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
}

/// The uid under which it is listed, and the state. `own` is our record; without one we are not `Up`.
pub(super) fn state<'a>(shared: &'a Shared, own: Option<&Workload>) -> (String, WorkloadState<'a>) {
    let mut connections = Connections::default();
    shared.flows.for_each(|live| match live.facts.direction {
        Direction::Inbound => connections.inbound.push(inbound(&live.facts)),
        Direction::Outbound => connections.outbound.push(outbound(&live.facts)),
    });
    let membership = &shared.membership;
    let uid = own.map_or_else(|| membership.agent_id.clone(), |own| own.uid.to_string());
    let state = WorkloadState {
        state: if own.is_some() { "Up" } else { "Pending" },
        connections,
        info: Info {
            name: &membership.workload_name,
            namespace: &membership.namespace,
            trust_domain: &membership.trust_domain,
            service_account: &membership.service_account,
        },
    };
    (uid, state)
}

fn inbound(facts: &Facts) -> Connection {
    Connection {
        src: facts.source,
        original_dst: facts.service.as_ref().map(|key| key.hostname.to_string()),
        actual_dst: facts.destination,
        protocol: protocol(facts),
        transport: facts.transport,
    }
}

fn outbound(facts: &Facts) -> Connection {
    Connection {
        src: facts.source,
        original_dst: Some(facts.original.unwrap_or(facts.destination).to_string()),
        actual_dst: facts.hbone.unwrap_or(facts.destination),
        protocol: protocol(facts),
        transport: facts.transport,
    }
}

fn protocol(facts: &Facts) -> &'static str {
    match (facts.transport, facts.protocol) {
        (Transport::Hbone3 | Transport::Hbone, _) => "HBONE",
        (Transport::DoubleHbone, _) => "DOUBLEHBONE",
        (Transport::Plain, Protocol::Tcp) => "TCP",
        (Transport::Plain, Protocol::Udp) => "UDP",
    }
}
