//! Every metric, declared once: ztunnel's, by their names and labels, and our own health.

pub mod dns;
mod process;
pub mod xds;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_core::packet::Protocol;
use mesh_core::world::Workload;
use metrics::{Label, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use crate::capture::Stats;
use crate::certs::unix;
use crate::copy::Count;
use crate::failure::Failure;
use crate::flows::{Direction, Facts, Flows};
use crate::health::{HEALTHY, PROBES};

/// Installs the recorder; the handle renders what `/metrics` shows.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = builder()?
        .install_recorder()
        .context("installing the metrics recorder")?;
    describe();
    Ok(handle)
}

fn builder() -> anyhow::Result<PrometheusBuilder> {
    // Peers come and go: a series that nobody added to for a day is forgotten, so that their number stays bounded.
    let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::COUNTER, Some(FORGET));
    let duration = Matcher::Full(dns::DURATION.into());
    Ok(builder.set_buckets_for_metric(duration, &dns::BUCKETS)?)
}

fn describe() {
    dns::describe();
    xds::describe();
    process::describe();
    for (names, what) in [(&TCP, "TCP connections"), (&UDP, "UDP flows")] {
        describe_counter!(names.opened, format!("{what} opened"));
        describe_counter!(names.closed, format!("{what} closed"));
        describe_counter!(names.failed, format!("{what} that failed"));
        describe_counter!(names.sent, "Bytes sent in response (from the server to the client)");
        describe_counter!(
            names.received,
            "Bytes received in request (from the client to the server)"
        );
    }
    describe_counter!(DROPPED, "UDP datagrams that were dropped because too many waited");
    describe_counter!(
        UNENCRYPTED,
        "UDP flows to members that went in plain, because those take none in a tunnel"
    );
    describe_counter!(DENIALS, "Connections that a policy denied or cut, by policy");
    describe_counter!(
        DRY_RUN,
        "Connections that a dry-run policy would have denied, by policy"
    );
    describe_counter!(
        CRL,
        "Connections that were refused or cut because a CRL names the peer's certificate"
    );
    describe_gauge!(SOCKETS, "Live flows, by the side that we are on");
    describe_gauge!("mesh_agent_flows", "Live flows");
    describe_gauge!(HEALTHY, "1 while others shall open connections to this machine");
    describe_counter!(PROBES, "Probes of the application, by result");
    describe_gauge!("mesh_agent_xds_connected", "1 while the control plane's stream is up");
    describe_gauge!(
        "mesh_agent_certificate_expiry_seconds",
        "Seconds until the certificate expires"
    );
    gauge!("istio_build", "component" => "mesh-agent", "tag" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// A flow was opened.
pub fn opened(facts: &Facts) {
    counter!(names(facts).opened, labels(facts, None)).increment(1);
}

/// A flow is over.
pub fn closed(facts: &Facts, forth: &Count, back: &Count, failure: Option<&Failure>) {
    let (names, labels) = (names(facts), labels(facts, failure));
    counter!(names.closed, labels.clone()).increment(1);
    bytes(names, &labels, forth.fresh(), back.fresh());
    if failure.is_some_and(|failure| failure.response_flags() != "-") {
        counter!(names.failed, labels).increment(1);
    }
    if let Some(policy) = failure.and_then(Failure::policy) {
        let direction = facts.direction.name();
        counter!(DENIALS, "direction" => direction, "policy" => bounded(policy)).increment(1);
    }
}

/// A UDP flow to a member goes in plain, because that one takes none in a tunnel.
pub fn udp_unencrypted() {
    counter!(UNENCRYPTED).increment(1);
}

/// So many datagrams were dropped because too many waited for their flow, or for the application's side of one.
pub fn udp_dropped(datagrams: u64) {
    if datagrams > 0 {
        counter!(DROPPED).increment(datagrams);
    }
}

/// A CRL names the certificate of a peer, at whose handshake or under whose flow.
pub fn crl_rejected(direction: Direction) {
    counter!(CRL, "reporter" => reporter(direction)).increment(1);
}

/// Names of policies come from peers, too (in a refusal): above so many different ones all are `other`.
fn bounded(policy: String) -> String {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if policy.len() > MAX_NAME || (seen.len() >= MAX_POLICIES && !seen.contains(&policy)) {
        return "other".into();
    }
    seen.insert(policy.clone());
    policy
}

/// Istio's name of the side that we are on.
fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

/// A dry-run policy would have denied.
pub fn dry_run(policy: &str) {
    counter!(DRY_RUN, "policy" => policy.to_owned()).increment(1);
}

fn bytes(names: &Names, labels: &[Label], forth: u64, back: u64) {
    // Istio's names are the server's view.
    counter!(names.received, labels.to_vec()).increment(forth);
    counter!(names.sent, labels.to_vec()).increment(back);
}

/// What is counted of flows.
struct Names {
    opened: &'static str,
    closed: &'static str,
    failed: &'static str,
    sent: &'static str,
    received: &'static str,
}

fn names(facts: &Facts) -> &'static Names {
    match facts.protocol {
        Protocol::Tcp => &TCP,
        Protocol::Udp => &UDP,
    }
}

/// Istio's traffic labels. What is not known is `unknown`.
fn labels(facts: &Facts, failure: Option<&Failure>) -> Vec<Label> {
    let mut labels = vec![Label::from_static_parts("reporter", reporter(facts.direction))];
    let mut add = |name: &'static str, value: Option<String>| {
        let value = value
            .filter(|value| !value.is_empty())
            .unwrap_or_else(|| "unknown".into());
        labels.push(Label::new(name, value));
    };
    let mut side = |names: [&'static str; 9], workload: Option<&Arc<Workload>>, principal: Option<String>| {
        let of = |field: fn(&Workload) -> &Arc<str>| workload.map(|one| field(one).to_string());
        let values = [
            of(|one| &one.workload_name),
            of(|one| &one.canonical_name),
            of(|one| &one.canonical_revision),
            of(|one| &one.namespace),
            of(|one| &one.canonical_name),
            of(|one| &one.canonical_revision),
            of(|one| &one.cluster_id),
            of(|one| &one.locality.region),
            of(|one| &one.locality.zone),
        ];
        for (name, value) in names.into_iter().zip(values) {
            add(name, value);
        }
        add(
            if names[0].starts_with('s') {
                "source_principal"
            } else {
                "destination_principal"
            },
            principal,
        );
    };
    side(
        SOURCE,
        facts.source_workload.as_ref(),
        facts.source_identity.as_ref().map(ToString::to_string),
    );
    side(
        DESTINATION,
        facts.destination_workload.as_ref(),
        facts.destination_identity.as_ref().map(ToString::to_string),
    );
    let service = facts.service.as_ref();
    add("destination_service", service.map(|key| key.hostname.to_string()));
    add(
        "destination_service_namespace",
        service.map(|key| key.namespace.to_string()),
    );
    add(
        "destination_service_name",
        facts.service_name.as_ref().map(ToString::to_string),
    );
    labels.push(Label::from_static_parts("request_protocol", facts.protocol.name()));
    labels.push(Label::from_static_parts(
        "response_flags",
        failure.map_or("-", Failure::response_flags),
    ));
    labels.push(Label::from_static_parts(
        "connection_security_policy",
        facts.transport.security_policy(),
    ));
    labels
}

/// What health is read from.
#[derive(Debug)]
pub struct Health {
    pub flows: Arc<Flows>,
    pub stats: Arc<Stats>,
    pub not_after: Option<SystemTime>,
    pub xds_connected: bool,
}

/// Samples health, and counts what living flows carried since the last time.
pub fn sample(health: &Health) {
    health.flows.for_each(|live| {
        let (forth, back) = (live.forth.fresh(), live.back.fresh());
        if forth > 0 || back > 0 {
            bytes(names(&live.facts), &labels(&live.facts, None), forth, back);
        }
    });
    let snapshot = health.stats.snapshot();
    let counters = snapshot.counters;
    let mut sides = [(Direction::Outbound, 0), (Direction::Inbound, 0)];
    health.flows.for_each(|live| {
        sides
            .iter_mut()
            .filter(|side| side.0 == live.facts.direction)
            .for_each(|side| side.1 += 1);
    });
    for (direction, open) in sides {
        gauge!(SOCKETS, "reporter" => reporter(direction)).set(count(open));
    }
    process::sample();
    gauge!("mesh_agent_flows").set(count(health.flows.len() as u64));
    gauge!("mesh_agent_engine_flows").set(count(snapshot.flows));
    counter!("mesh_agent_engine_packets_total", "direction" => "in").absolute(counters.packets_in);
    counter!("mesh_agent_engine_packets_total", "direction" => "out").absolute(counters.packets_out);
    for (reason, dropped) in [
        ("malformed", counters.malformed),
        ("not_captured", counters.not_ours),
        ("flow_limit", counters.dropped_flow_limit),
        ("half_open", counters.dropped_half_open),
        ("no_memory", counters.dropped_no_memory),
        ("queue_full", counters.dropped_events_full),
    ] {
        counter!("mesh_agent_engine_drops_total", "reason" => reason).absolute(dropped);
    }
    gauge!("mesh_agent_xds_connected").set(if health.xds_connected { 1.0 } else { 0.0 });
    let left = health
        .not_after
        .map_or(0, |at| unix(at).saturating_sub(unix(SystemTime::now())));
    gauge!("mesh_agent_certificate_expiry_seconds").set(count(left));
}

#[allow(clippy::cast_precision_loss)]
fn count(number: u64) -> f64 {
    number as f64
}

const FORGET: Duration = Duration::from_secs(86_400);
/// Different policies, and the longest name, that get a series of their own.
const MAX_POLICIES: usize = 1024;
const MAX_NAME: usize = 512;
/// How often health is sampled.
pub const SAMPLE: Duration = Duration::from_secs(5);
/// Istio's names.
const TCP: Names = Names {
    opened: "istio_tcp_connections_opened_total",
    closed: "istio_tcp_connections_closed_total",
    failed: "istio_tcp_connections_failed_total",
    sent: "istio_tcp_sent_bytes_total",
    received: "istio_tcp_received_bytes_total",
};
/// Istio has none for UDP.
const UDP: Names = Names {
    opened: "mesh_agent_udp_flows_opened_total",
    closed: "mesh_agent_udp_flows_closed_total",
    failed: "mesh_agent_udp_flows_failed_total",
    sent: "mesh_agent_udp_sent_bytes_total",
    received: "mesh_agent_udp_received_bytes_total",
};
const DROPPED: &str = "mesh_agent_udp_dropped_datagrams_total";
const UNENCRYPTED: &str = "mesh_agent_udp_unencrypted_flows_total";
const SOCKETS: &str = "istio_tcp_sockets_open";
const CRL: &str = "istio_crl_policy_rejections_total";
const DENIALS: &str = "mesh_agent_denials_total";
const DRY_RUN: &str = "mesh_agent_dry_run_denials_total";
const SOURCE: [&str; 9] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
];
const DESTINATION: [&str; 9] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
];

#[cfg(test)]
mod tests;
