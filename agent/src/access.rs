//! One line a flow, with both identities and the reason of its end (as ztunnel does it), and its metrics.

use std::time::Duration;

use mesh_core::policy::Action;
use mesh_core::world::Workload;

use crate::copy::Count;
use crate::failure::Failure;
use crate::flows::{Direction, Facts};
use crate::metrics;

/// Counts a flow that was opened, and writes its line at DEBUG.
pub fn opened(id: u64, facts: &Facts) {
    metrics::opened(facts);
    tracing::debug!(
        target: "access",
        flow = id,
        src.addr = %facts.source,
        dst.addr = %facts.destination,
        direction = direction(facts),
        "connection opened"
    );
}

/// Writes the access-log line of a flow that is over, and counts it (`istio_tcp_*`). `forth` and `back` are bytes from the
/// client to the server and from the server to the client.
pub fn closed(id: u64, facts: &Facts, forth: &Count, back: &Count, duration: Duration, failure: Option<&Failure>) {
    metrics::closed(facts, forth, back, failure);
    let (forth, back) = (forth.get(), back.get());
    let (source, destination) = (facts.source_workload.as_deref(), facts.destination_workload.as_deref());
    let name = |workload: Option<&Workload>| workload.map(|one| one.workload_name.to_string()).unwrap_or_default();
    let namespace = |workload: Option<&Workload>| workload.map(|one| one.namespace.to_string()).unwrap_or_default();
    let text = |text: Option<String>| text.unwrap_or_default();
    // Bytes as the reporter's own side sends and receives them.
    let (sent, received) = match facts.direction {
        Direction::Outbound => (forth, back),
        Direction::Inbound => (back, forth),
    };
    macro_rules! line {
        ($level:ident, $message:literal) => {
            tracing::$level!(
                target: "access",
                flow = id,
                src.addr = %facts.source,
                src.workload = name(source),
                src.namespace = namespace(source),
                src.identity = text(facts.source_identity.as_ref().map(ToString::to_string)),
                dst.addr = %facts.original.unwrap_or(facts.destination),
                dst.hbone_addr = text(facts.hbone.map(|hbone| hbone.to_string())),
                dst.service = text(facts.service.as_ref().map(|key| key.hostname.to_string())),
                dst.workload = name(destination),
                dst.namespace = namespace(destination),
                dst.identity = text(facts.destination_identity.as_ref().map(ToString::to_string)),
                dst.target = %facts.destination,
                direction = direction(facts),
                transport = facts.transport.name(),
                bytes_sent = sent,
                bytes_recv = received,
                duration = format!("{}ms", duration.as_millis()),
                policy = text(failure.and_then(Failure::policy)),
                error = text(failure.map(ToString::to_string)),
                $message
            )
        };
    }
    match failure {
        None => line!(info, "connection complete"),
        Some(_) => line!(warn, "connection failed"),
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

fn direction(facts: &Facts) -> &'static str {
    match facts.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}
