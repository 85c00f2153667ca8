//! The line, as what reads ztunnel's log finds it.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::policy::Denial;
use mesh_core::world::{ServiceKey, convert};

use super::*;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(facts: &Facts, failure: Option<&Failure>) -> String {
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let (forth, back) = (Count::default(), Count::default());
        forth.add(1);
        back.add(2);
        closed(7, facts, &forth, &back, Duration::from_millis(12), failure);
    });
    let bytes = buffer.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn workload(name: &str) -> Arc<Workload> {
    let workload = mesh_proto::istio::workload::Workload {
        uid: name.into(),
        name: format!("{name}-1"),
        namespace: "shop".into(),
        cluster_id: "c1".into(),
        ..Default::default()
    };
    Arc::new(convert::workload(workload, &mut convert::Names::default()).unwrap())
}

fn facts(direction: Direction) -> Facts {
    Facts {
        protocol: mesh_core::packet::Protocol::Tcp,
        direction,
        transport: Transport::Hbone3,
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:8080".parse().unwrap(),
        original: Some("240.0.0.1:80".parse().unwrap()),
        hbone: Some("10.0.0.2:15008".parse().unwrap()),
        service: Some(ServiceKey {
            namespace: "shop".into(),
            hostname: "orders.example.com".into(),
        }),
        service_name: None,
        source_workload: Some(workload("web")),
        destination_workload: Some(workload("orders")),
        source_identity: Some("spiffe://mesh.internal/ns/shop/sa/web".parse().unwrap()),
        destination_identity: Some("spiffe://mesh.internal/ns/shop/sa/orders".parse().unwrap()),
        endpoint: None,
        peer_certificate: None,
        trace: Some(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                .parse()
                .unwrap(),
        ),
    }
}

#[test]
fn fields_have_ztunnels_names_and_order_and_ours_follow() {
    let denied = Failure::Denied(Denial::Explicit("shop/no-web".into()));
    let line = logged(&facts(Direction::Outbound), Some(&denied));
    assert!(line.contains("ERROR access: connection complete "), "{line}");
    let mut rest = line.as_str();
    for field in [
        " src.addr=10.0.0.1:40000 ",
        " src.workload=\"web-1\" ",
        " src.namespace=\"shop\" ",
        " src.identity=\"spiffe://mesh.internal/ns/shop/sa/web\" ",
        " src.cluster=\"c1\" ",
        " dst.addr=10.0.0.2:15008 ",
        " dst.hbone_addr=10.0.0.2:8080 ",
        " dst.service=\"orders.example.com\" ",
        " dst.workload=\"orders-1\" ",
        " dst.namespace=\"shop\" ",
        " dst.identity=\"spiffe://mesh.internal/ns/shop/sa/orders\" ",
        " dst.cluster=\"c1\" ",
        " direction=\"outbound\" ",
        " bytes_sent=1 ",
        " bytes_recv=2 ",
        " duration=\"12ms\" ",
        " error=\"connection closed due to policy rejection: explicitly denied by: shop/no-web\" ",
        " policy=\"shop/no-web\" ",
        " transport=\"hbone3\" ",
        " dst.original=240.0.0.1:80 ",
        " flow=7 ",
        " trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"",
    ] {
        // The space after one is the space before the next.
        let at = rest
            .find(field)
            .unwrap_or_else(|| panic!("{field} in its place in {line}"));
        rest = &rest[at + field.len() - 1..];
    }
    let inbound = logged(&facts(Direction::Inbound), None);
    assert!(inbound.contains(" INFO access: connection complete "), "{inbound}");
    assert!(inbound.contains(" bytes_sent=2 bytes_recv=1 "), "{inbound}");
}

#[test]
fn what_is_not_known_is_left_out() {
    let plain = Facts {
        transport: Transport::Plain,
        hbone: None,
        service: None,
        original: None,
        trace: None,
        source_workload: None,
        destination_workload: None,
        ..facts(Direction::Outbound)
    };
    let line = logged(&plain, None);
    assert!(
        line.contains(" src.addr=10.0.0.1:40000 dst.addr=10.0.0.2:8080 direction="),
        "{line}"
    );
    assert!(
        !["identity", "error", "trace_id"]
            .iter()
            .any(|field| line.contains(field)),
        "{line}"
    );
    // Nobody was there to be asked.
    let line = logged(&plain, Some(&Failure::NoCertificate));
    assert!(line.contains("WARN access: connection failed "), "{line}");
}

#[test]
fn errors_begin_as_ztunnels_do() {
    for (failure, text) in [
        (
            Failure::PolicyChange(Denial::NotSynced),
            "connection closed due to policy change",
        ),
        (
            Failure::Denied(Denial::NotSynced),
            "connection closed due to policy rejection: ",
        ),
        (
            Failure::TunnelTimeout("x".into()),
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: x",
        ),
        (
            Failure::Status {
                status: 401,
                reason: Some("shop/no-web".into()),
            },
            "http status: 401 Unauthorized (shop/no-web)",
        ),
        (
            Failure::Target(mesh_core::inbound::TargetRefusal::NotOurAddress(
                "10.0.0.9:80".parse().unwrap(),
            )),
            "ip mismatch: 10.0.0.9:80",
        ),
        (
            Failure::Route(mesh_core::outbound::RouteFailure::NoHealthyUpstream("a:80".into())),
            "no healthy upstream: a:80",
        ),
        (
            Failure::Route(mesh_core::outbound::RouteFailure::UnknownWaypoint {
                destination: "a:80".into(),
                waypoint: "shop/w:15008".into(),
            }),
            "unknown waypoint: shop/w:15008",
        ),
        (Failure::Revoked, "connection closed: peer certificate revoked"),
    ] {
        assert!(failure.to_string().starts_with(text), "{failure}");
    }
}
