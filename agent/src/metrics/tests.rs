//! The exposition text, as Prometheus would read it.
#![allow(clippy::unwrap_used)]

use mesh_core::identity::Identity;
use mesh_core::world::{ServiceKey, convert};
use mesh_proto::istio::workload::Locality;

use super::*;
use crate::flows::Transport;

fn workload(name: &str, region: &str) -> Arc<Workload> {
    let workload = mesh_proto::istio::workload::Workload {
        uid: format!("mesh//{name}"),
        name: format!("{name}-1"),
        namespace: "shop".into(),
        workload_name: name.into(),
        canonical_name: format!("{name}-app"),
        canonical_revision: "v1".into(),
        cluster_id: "c1".into(),
        locality: Some(Locality {
            region: region.into(),
            ..Locality::default()
        }),
        ..Default::default()
    };
    Arc::new(convert::workload(workload, &mut convert::Names::default()).unwrap())
}

fn identity(name: &str) -> Identity {
    Identity::new("mesh.internal", "shop", name).unwrap()
}

fn facts(direction: Direction) -> Facts {
    Facts {
        protocol: mesh_core::packet::Protocol::Tcp,
        direction,
        transport: Transport::Hbone3,
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:8080".parse().unwrap(),
        original: None,
        hbone: Some("10.0.0.2:15008".parse().unwrap()),
        service: Some(ServiceKey {
            namespace: "shop".into(),
            hostname: "orders.example.com".into(),
        }),
        service_name: Some("orders-entry".into()),
        source_workload: Some(workload("web", "north")),
        destination_workload: Some(workload("orders", "")),
        source_identity: Some(identity("web")),
        destination_identity: Some(identity("orders")),
        endpoint: None,
        peer_certificate: None,
        trace: None,
    }
}

/// What `/metrics` shows after `record`.
fn shown(record: impl FnOnce()) -> String {
    let recorder = builder().unwrap().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        describe();
        record();
    });
    handle.render()
}

/// The one series of this name with all these labels.
fn series<'a>(text: &'a str, name: &str, labels: &[&str]) -> &'a str {
    let mut found = text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")))
        .filter(|line| labels.iter().all(|label| line.contains(label)));
    let line = found.next().unwrap_or_else(|| panic!("{name} {labels:?} in\n{text}"));
    assert_eq!(found.next(), None, "{name} is there twice");
    line
}

#[test]
fn a_flow_has_all_of_istios_labels() {
    let text = shown(|| {
        let facts = facts(Direction::Outbound);
        opened(&facts);
        let (forth, back) = (Count::default(), Count::default());
        forth.add(10);
        back.add(20);
        closed(&facts, &forth, &back, None);
    });
    let labels = [
        "reporter=\"source\"",
        "source_workload=\"web\"",
        "source_canonical_service=\"web-app\"",
        "source_canonical_revision=\"v1\"",
        "source_workload_namespace=\"shop\"",
        "source_principal=\"spiffe://mesh.internal/ns/shop/sa/web\"",
        "source_app=\"web-app\"",
        "source_version=\"v1\"",
        "source_cluster=\"c1\"",
        "source_region=\"north\"",
        "source_zone=\"unknown\"",
        "destination_service=\"orders.example.com\"",
        "destination_service_namespace=\"shop\"",
        "destination_service_name=\"orders-entry\"",
        "destination_workload=\"orders\"",
        "destination_canonical_service=\"orders-app\"",
        "destination_canonical_revision=\"v1\"",
        "destination_workload_namespace=\"shop\"",
        "destination_principal=\"spiffe://mesh.internal/ns/shop/sa/orders\"",
        "destination_app=\"orders-app\"",
        "destination_version=\"v1\"",
        "destination_cluster=\"c1\"",
        "destination_region=\"unknown\"",
        "destination_zone=\"unknown\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    for (name, value) in [
        ("istio_tcp_connections_opened_total", "1"),
        ("istio_tcp_connections_closed_total", "1"),
        // Istio's words are the server's, whichever side reports.
        ("istio_tcp_received_bytes_total", "10"),
        ("istio_tcp_sent_bytes_total", "20"),
    ] {
        let line = series(&text, name, &labels);
        assert!(line.ends_with(&format!("}} {value}")), "{line}");
        assert_eq!(line.matches("=\"").count(), labels.len(), "other labels in {line}");
    }
    assert!(!text.contains("connections_failed_total{"), "{text}");
    series(&text, "istio_build", &["component=\"mesh-agent\"", "tag="]);
}

#[test]
fn failures_have_ztunnels_flags() {
    for (failure, flag, failed) in [
        (Failure::Refused("x".into()), "CONNECT", true),
        (Failure::TunnelTimeout("x".into()), "NETWORK_POLICY", true),
        (Failure::Tls("x".into()), "TLS_FAILURE", true),
        (Failure::Protocol("x".into()), "H2_HANDSHAKE_FAILURE", true),
        (Failure::Denied(mesh_core::policy::Denial::NotSynced), "DENY", true),
        (Failure::NoCertificate, "IDENTITY_ERROR", true),
        (Failure::Revoked, "CERT_REVOKED", true),
        (Failure::Stopping, "-", false),
    ] {
        let nothing = Count::default();
        let text = shown(|| closed(&facts(Direction::Inbound), &nothing, &nothing, Some(&failure)));
        let labels = ["reporter=\"destination\"", &format!("response_flags=\"{flag}\"")];
        series(&text, "istio_tcp_connections_closed_total", &labels);
        assert_eq!(
            text.contains("istio_tcp_connections_failed_total{"),
            failed,
            "{failure}"
        );
    }
}

#[test]
fn the_rest_of_ztunnels_metrics() {
    let query = [&[0; 12][..], b"\x01a\x00\x00\x1c\x00\x01"].concat();
    let text = shown(|| {
        crl_rejected(Direction::Inbound);
        xds::ended(xds::Ended::Error);
        xds::message(mesh_proto::type_url::ADDRESS, 7);
        xds::message("type.googleapis.com/made.up", 1);
        let query = dns::Query::new(&query, "udp", Some(&workload("web", "")));
        query.received();
        query.forwarded(Duration::from_millis(2), true);
        query.forwarded(Duration::from_millis(2), false);
        process::sample();
    });
    for (name, labels, value) in [
        ("istio_crl_policy_rejections_total", "reporter=\"destination\"", "1"),
        ("istio_xds_connection_terminations_total", "reason=\"Error\"", "1"),
        (
            "istio_xds_message_total",
            "url=\"type.googleapis.com/istio.workload.Address\"",
            "1",
        ),
        (
            "istio_xds_message_bytes_total",
            "url=\"type.googleapis.com/istio.workload.Address\"",
            "7",
        ),
        ("istio_xds_message_bytes_total", "url=\"unknown\"", "1"),
        ("istio_dns_requests_total", "request_query_type=\"aaaa\"", "1"),
        ("istio_dns_requests_total", "request_protocol=\"udp\"", "1"),
        ("istio_dns_requests_total", "source_canonical_service=\"web-app\"", "1"),
        ("istio_dns_requests_total", "source_canonical_revision=\"v1\"", "1"),
        ("istio_dns_upstream_requests_total", "request_protocol", "2"),
        ("istio_dns_upstream_failures_total", "request_protocol", "1"),
        (
            "istio_dns_upstream_request_duration_seconds_bucket",
            "le=\"0.001\"",
            "0",
        ),
        ("istio_dns_upstream_request_duration_seconds_bucket", "le=\"0.01\"", "1"),
    ] {
        let line = series(&text, name, &[labels]);
        assert!(line.ends_with(&format!(" {value}")), "{line}");
    }
    for name in ["process_open_fds", "process_max_fds"] {
        let line = series(&text, name, &[]);
        assert!(!line.ends_with(" 0"), "{line}");
    }
}

#[test]
fn a_peer_cannot_name_policies_without_end() {
    let names = (0..2 * MAX_POLICIES).map(|number| bounded(format!("shop/{number}")));
    let different: BTreeSet<String> = names.collect();
    assert!(different.len() <= MAX_POLICIES + 1 && different.contains("other"));
    assert_eq!(bounded("x".repeat(MAX_NAME + 1)), "other");
}
