//! One line a flow, with both identities and the reason of its end, and its metrics. Fields, their order and the messages are
//! ztunnel's, so that what was written for its log reads ours; what is not known is left out. Ours follow after `error`.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_core::packet::Protocol;
use mesh_core::policy::Action;
use mesh_core::world::Workload;

use crate::copy::Count;
use crate::failure::Failure;
use crate::flows::{Direction, Facts, Transport};
use crate::metrics;

/// What a line says of the flow itself, whatever became of it.
struct Line {
    source: Side,
    destination: Side,
    /// Where the packets went: the tunnel peer, or the application itself.
    address: SocketAddr,
    /// Whom the CONNECT named.
    hbone: Option<SocketAddr>,
    service: Option<String>,
    /// The address of a service that the application connected to.
    original: Option<SocketAddr>,
}

struct Side {
    workload: Option<String>,
    namespace: Option<String>,
    identity: Option<String>,
    cluster: Option<String>,
}

impl Side {
    fn of(workload: Option<&Workload>, identity: Option<String>) -> Self {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            workload: workload.and_then(|one| text(&one.name).or_else(|| text(&one.canonical_name))),
            namespace: workload.and_then(|one| text(&one.namespace)),
            identity,
            cluster: workload.and_then(|one| text(&one.cluster_id)),
        }
    }
}

impl Line {
    fn of(facts: &Facts) -> Self {
        // What no certificate showed is no identity.
        let shown = |identity: Option<&Identity>| {
            identity
                .filter(|_| facts.transport != Transport::Plain)
                .map(ToString::to_string)
        };
        Self {
            source: Side::of(facts.source_workload.as_deref(), shown(facts.source_identity.as_ref())),
            destination: Side::of(
                facts.destination_workload.as_deref(),
                shown(facts.destination_identity.as_ref()),
            ),
            address: facts.hbone.unwrap_or(facts.destination),
            hbone: facts.hbone.map(|_| facts.destination),
            service: facts.service.as_ref().map(|key| key.hostname.to_string()),
            original: facts.original,
        }
    }
}

macro_rules! line {
    ($level:ident, $id:ident, $facts:ident, $line:ident, { $($end:tt)* }, $message:literal) => {
        tracing::event!(
            target: "access",
            tracing::Level::$level,
            src.addr = %$facts.source,
            src.workload = $line.source.workload,
            src.namespace = $line.source.namespace,
            src.identity = $line.source.identity,
            src.cluster = $line.source.cluster,
            dst.addr = %$line.address,
            dst.hbone_addr = $line.hbone.map(display),
            dst.service = $line.service,
            dst.workload = $line.destination.workload,
            dst.namespace = $line.destination.namespace,
            dst.identity = $line.destination.identity,
            dst.cluster = $line.destination.cluster,
            direction = $facts.direction.name(),
            $($end)*
            transport = $facts.transport.name(),
            protocol = udp($facts),
            dst.original = $line.original.map(display),
            flow = $id,
            trace_id = $facts.trace.map(|trace| trace.trace_id()),
            $message
        )
    };
}

/// Said of UDP alone, so that lines of TCP are ztunnel's.
fn udp(facts: &Facts) -> Option<&'static str> {
    (facts.protocol == Protocol::Udp).then(|| facts.protocol.name())
}

/// Counts a flow that was opened, and writes its line at DEBUG.
pub fn opened(id: u64, facts: &Facts) {
    metrics::opened(facts);
    if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
        let line = Line::of(facts);
        line!(DEBUG, id, facts, line, {}, "connection opened");
    }
}

/// Writes the access-log line of a flow that is over, and counts it (`istio_tcp_*`). `forth` and `back` are bytes from the
/// client to the server and from the server to the client.
pub fn closed(id: u64, facts: &Facts, forth: &Count, back: &Count, duration: Duration, failure: Option<&Failure>) {
    metrics::closed(facts, forth, back, failure);
    let (forth, back) = (forth.get(), back.get());
    // Bytes as the client sends and receives them at its side, and the server at its own.
    let (sent, received) = match facts.direction {
        Direction::Outbound => (forth, back),
        Direction::Inbound => (back, forth),
    };
    let line = Line::of(facts);
    let duration = format!("{}ms", duration.as_millis());
    let error = failure.map(ToString::to_string);
    let policy = failure.and_then(Failure::policy);
    macro_rules! end {
        ($level:ident, $message:literal) => {
            line!($level, id, facts, line, {
                bytes_sent = sent,
                bytes_recv = received,
                duration,
                error,
                policy,
            }, $message)
        };
    }
    match failure {
        None => end!(INFO, "connection complete"),
        Some(failure) if failure.is_early() => end!(WARN, "connection failed"),
        Some(_) => end!(ERROR, "connection complete"),
    }
}

/// Says what a dry-run policy would have done.
pub fn dry_run(policy: &str, action: Action, facts: &Facts) {
    tracing::info!(
        target: "access",
        policy,
        would = match action { Action::Allow => "allow", Action::Deny => "deny" },
        src.addr = %facts.source,
        src.identity = facts.source_identity.as_ref().map(ToString::to_string),
        dst.addr = %facts.destination,
        "dry-run policy"
    );
    metrics::dry_run(policy);
}

#[cfg(test)]
mod tests;
