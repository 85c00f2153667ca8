//! When an outbound flow's peer is not the right one any more.
#![allow(clippy::unwrap_used)]

use mesh_core::world::{Delta, convert};
use mesh_proto::istio::workload as proto;

use super::*;
use crate::flows::Transport;

fn holder(uid: &str, account: &str) -> proto::Workload {
    proto::Workload {
        uid: uid.into(),
        namespace: "shop".into(),
        service_account: account.into(),
        trust_domain: "mesh.internal".into(),
        addresses: vec![vec![10, 0, 0, 2]],
        services: [("shop/orders".to_owned(), proto::PortList::default())].into(),
        ..proto::Workload::default()
    }
}

fn world(holders: &[proto::Workload], also: &[&str]) -> World {
    let mut names = convert::Names::default();
    let service = proto::Service {
        namespace: "shop".into(),
        hostname: "orders".into(),
        subject_alt_names: also
            .iter()
            .map(|account| format!("spiffe://mesh.internal/ns/shop/sa/{account}"))
            .collect(),
        ..proto::Service::default()
    };
    World::default().apply(Delta {
        workloads: holders
            .iter()
            .map(|one| convert::workload(one.clone(), &mut names).unwrap())
            .collect(),
        services: vec![convert::service(service, &mut names).unwrap()],
        ..Delta::default()
    })
}

#[test]
fn a_peer_stays_while_the_world_names_its_identity_for_its_address() {
    let then = world(&[holder("a", "orders")], &[]);
    let facts = Facts {
        protocol: mesh_core::packet::Protocol::Tcp,
        direction: Direction::Outbound,
        transport: Transport::Hbone3,
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:8080".parse().unwrap(),
        original: None,
        hbone: Some("10.0.0.2:15008".parse().unwrap()),
        service: None,
        service_name: None,
        source_workload: None,
        destination_workload: None,
        source_identity: None,
        destination_identity: Some("spiffe://mesh.internal/ns/shop/sa/orders".parse().unwrap()),
        endpoint: then.workload("a").cloned(),
        peer_certificate: None,
        trace: None,
    };
    let other = holder("b", "other");
    for (what, now, cut) in [
        ("nothing changed", then, false),
        (
            "another record of the same",
            world(&[holder("b", "orders")], &[]),
            false,
        ),
        ("another identity", world(std::slice::from_ref(&other), &[]), true),
        (
            "another, but the service allows ours",
            world(std::slice::from_ref(&other), &["orders"]),
            false,
        ),
        (
            "one of two that hold the address",
            world(&[holder("z", "orders"), other], &[]),
            false,
        ),
        ("nobody for a moment", world(&[], &[]), false),
    ] {
        let failure = replaced(&now, &facts);
        assert_eq!(failure.is_some(), cut, "{what}: {failure:?}");
    }
    // What the world never named for that address, such as who a gateway picked, it cannot take back.
    let unnamed = Facts {
        endpoint: None,
        ..facts
    };
    assert!(replaced(&world(&[holder("b", "other")], &[]), &unnamed).is_none());
}
