//! What is asked, acknowledged, rejected, kept and restored.
#![allow(clippy::unwrap_used)]

use mesh_proto::istio::security::{Authorization, Clause, Match, Rule, StringMatch};
use mesh_proto::istio::workload::{Address, Workload, address};
use mesh_proto::mesh;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::world::World;

const TYPES: [&str; 5] = [
    type_url::ADDRESS,
    type_url::AUTHORIZATION,
    type_url::REVOCATION,
    type_url::TRUST_BUNDLE,
    type_url::PROBE,
];

fn session() -> Session {
    Session::new(
        Node {
            id: "ztunnel~1.2.3.4~a.b~b.svc.cluster.local".to_owned(),
            ..Default::default()
        },
        &TYPES,
    )
}

fn resource(type_url: &str, name: &str, message: &impl Message) -> Resource {
    Resource {
        version: "v1".to_owned(),
        resource: Some(wkt::Any {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec(),
        }),
        name: name.to_owned(),
        aliases: vec![],
    }
}

fn workload(uid: &str, protocol: i32) -> Resource {
    let workload = Workload {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        namespace: "shop".to_owned(),
        tunnel_protocol: protocol,
        ..Default::default()
    };
    resource(
        type_url::ADDRESS,
        uid,
        &Address {
            r#type: Some(address::Type::Workload(workload)),
        },
    )
}

fn policy(name: &str, valid: bool) -> Resource {
    let principals = vec![StringMatch { match_type: None }];
    let broken = Rule {
        clauses: vec![Clause {
            matches: vec![Match {
                principals,
                ..Default::default()
            }],
        }],
    };
    let rules = if valid { vec![] } else { vec![broken] };
    let scope = if name == "all" { 1 } else { 2 };
    let policy = Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope,
        rules,
        ..Default::default()
    };
    resource(type_url::AUTHORIZATION, &format!("shop/{name}"), &policy)
}

fn response(type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: "n1".to_owned(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

#[test]
fn a_new_stream_asks_for_everything_and_tells_what_is_held() {
    let mut session = session();
    let first = session.connected();
    assert_eq!(first.iter().map(|one| one.type_url.as_str()).collect::<Vec<_>>(), TYPES);
    assert!(first.iter().all(|one| one.node.is_some()
        && one.resource_names_subscribe.is_empty()
        && one.initial_resource_versions.is_empty()));
    session.handle(response(
        type_url::ADDRESS,
        vec![workload("a", 1), workload("b", 2)],
        &[],
    ));
    let again = session.connected();
    assert_eq!(
        again[0].initial_resource_versions,
        [("a".to_owned(), "v1".to_owned())].into()
    );
    assert!(again[1].initial_resource_versions.is_empty());
}

#[test]
fn good_ones_are_applied_and_bad_ones_named() {
    let mut session = session();
    let handled = session.handle(response(
        type_url::ADDRESS,
        vec![workload("a", 1), workload("b", 2)],
        &[],
    ));
    assert_eq!(handled.delta.workloads.len(), 1);
    assert!(handled.delta.addresses_synced && !handled.delta.policies_synced);
    assert_eq!(handled.reply.response_nonce, "n1");
    let detail = handled.reply.error_detail.unwrap();
    assert!(detail.message.starts_with("b: tunnel_protocol"), "{}", detail.message);
    assert_eq!(handled.rejected[0].0, "b");
    assert_eq!(session.rejected().count(), 1);
    let fixed = session.handle(response(type_url::ADDRESS, vec![workload("b", 1)], &[]));
    assert!(fixed.reply.error_detail.is_none() && fixed.reply.node.is_none());
    assert_eq!(session.rejected().count(), 0);
}

#[test]
fn a_rejected_address_stays_and_a_rejected_policy_goes() {
    let mut session = session();
    let mut world = World::default();
    for (type_url, good, bad) in [
        (type_url::ADDRESS, workload("a", 1), workload("a", 2)),
        (type_url::AUTHORIZATION, policy("p", true), policy("p", false)),
    ] {
        world = world.apply(session.handle(response(type_url, vec![good], &[])).delta);
        world = world.apply(session.handle(response(type_url, vec![bad], &[])).delta);
    }
    assert!(world.workload("a").is_some());
    assert!(world.policy("shop/p").is_none());
    assert!(session.connected()[1].initial_resource_versions.is_empty());
    // Within one response the last word counts, either way.
    let both = session.handle(response(
        type_url::AUTHORIZATION,
        vec![policy("p", true), policy("p", false)],
        &[],
    ));
    assert!(world.apply(both.delta).policy("shop/p").is_none());
    let both = session.handle(response(
        type_url::AUTHORIZATION,
        vec![policy("p", false), policy("p", true)],
        &[],
    ));
    assert!(world.apply(both.delta).policy("shop/p").is_some());
}

#[test]
fn a_policy_that_nobody_names_is_not_lost_by_a_rejection() {
    let mut session = session();
    let mut world = World::default();
    for valid in [true, false] {
        let sent = response(type_url::AUTHORIZATION, vec![policy("all", valid)], &[]);
        world = world.apply(session.handle(sent).delta);
    }
    assert!(world.policy("shop/all").is_some());
    assert_eq!(session.rejected().next().unwrap().1, "shop/all");
}

#[test]
fn removal_forgets() {
    let mut session = session();
    let mut world = World::default();
    world = world.apply(
        session
            .handle(response(type_url::ADDRESS, vec![workload("a", 1)], &[]))
            .delta,
    );
    world = world.apply(
        session
            .handle(response(type_url::ADDRESS, vec![], &["a", "never/known"]))
            .delta,
    );
    assert!(world.workload("a").is_none());
    assert!(session.snapshot()[0].1.is_empty());
}

#[test]
fn every_type_must_have_answered() {
    let mut session = session();
    // But probes: an older control plane does not know them.
    for type_url in TYPES.into_iter().filter(|type_url| *type_url != type_url::PROBE) {
        assert!(!session.synced());
        session.handle(response(type_url, vec![], &[]));
    }
    assert!(session.synced());
}

#[test]
fn strange_resources_are_refused() {
    let mut session = session();
    let unknown = session.handle(response("type.googleapis.com/x.Y", vec![], &[]));
    assert!(unknown.reply.error_detail.is_some());
    let mut wrong_type = workload("a", 1);
    wrong_type.resource.as_mut().unwrap().type_url = type_url::AUTHORIZATION.to_owned();
    let mut wrong_name = workload("a", 1);
    wrong_name.name = "b".to_owned();
    let mut long_name = workload("a", 1);
    long_name.name = "é".repeat(MAX_NAME);
    let mut empty = workload("a", 1);
    empty.resource = None;
    for one in [wrong_type, wrong_name, long_name, empty] {
        let handled = session.handle(response(type_url::ADDRESS, vec![one], &[]));
        assert_eq!((handled.rejected.len(), handled.delta.workloads.len()), (1, 0));
        assert!(handled.reply.error_detail.unwrap().message.len() <= 2 * MAX_MESSAGE);
    }
}

#[test]
fn revocations_and_trust_come_through() {
    let mut session = session();
    let revocation = mesh::Revocation {
        name: "agent".to_owned(),
        serials: vec![vec![0, 7]],
        spki_sha256: vec![vec![3; 32]],
        revoked_at: None,
    };
    let delta = session
        .handle(response(
            type_url::REVOCATION,
            vec![resource(type_url::REVOCATION, "agent", &revocation)],
            &[],
        ))
        .delta;
    let world = World::default().apply(delta);
    assert!(world.is_revoked(&[7], &[0; 32]) && world.is_revoked(&[9], &[3; 32]) && !world.is_revoked(&[9], &[0; 32]));
    let none = mesh::TrustBundle {
        trust_domain: "td".to_owned(),
        anchors: vec![],
    };
    let refused = session.handle(response(
        type_url::TRUST_BUNDLE,
        vec![resource(type_url::TRUST_BUNDLE, "default", &none)],
        &[],
    ));
    assert!(refused.reply.error_detail.is_some() && refused.delta.trust_bundle.is_none());
}

#[test]
fn a_probe_comes_is_replaced_and_goes() {
    let probe = |port| mesh::Probe {
        method: Some(mesh::probe::Method::Tcp(mesh::TcpProbe {
            port,
            ..Default::default()
        })),
        ..Default::default()
    };
    let sent = |port| {
        response(
            type_url::PROBE,
            vec![resource(type_url::PROBE, "shop/orders", &probe(port))],
            &[],
        )
    };
    let mut session = session();
    assert!(!World::default().probe_synced());
    let mut world = World::default().apply(session.handle(sent(80)).delta);
    assert!(world.probe_synced());
    let first = world.probe().unwrap().clone();
    assert_eq!(first.describe(), "tcp localhost:80");
    let refused = session.handle(sent(0));
    assert!(
        refused.rejected[0].1.contains("tcpSocket.port"),
        "{:?}",
        refused.rejected
    );
    world = world.apply(refused.delta);
    assert_eq!(
        world.probe(),
        Some(&first),
        "a rejected one leaves the old one in place"
    );
    world = world.apply(session.handle(sent(81)).delta);
    assert_ne!(world.probe(), Some(&first));
    world = world.apply(
        session
            .handle(response(type_url::PROBE, vec![], &["shop/orders"]))
            .delta,
    );
    assert_eq!(world.probe(), None);
}

#[test]
fn what_was_kept_starts_the_next_session() {
    let mut first = session();
    let mut world = World::default();
    world = world.apply(
        first
            .handle(response(type_url::ADDRESS, vec![workload("a", 1)], &[]))
            .delta,
    );
    world = world.apply(
        first
            .handle(response(type_url::AUTHORIZATION, vec![policy("p", true)], &[]))
            .delta,
    );
    let mut kept = first.snapshot();
    kept[0].1.push(Resource {
        name: "damaged".to_owned(),
        ..Default::default()
    });
    let mut second = session();
    let restored = World::default().apply(second.restore(kept));
    assert!(restored.addresses_synced() && restored.policies_synced());
    assert_eq!(format!("{restored:?}"), format!("{world:?}"));
    assert!(!second.synced(), "a snapshot is no response");
    assert_eq!(second.connected()[0].initial_resource_versions.len(), 1);
}

proptest! {
    #[test]
    fn arbitrary_content_does_no_harm(
        value in prop::collection::vec(any::<u8>(), 0..200),
        name in ".{0,20}",
        which in 0..5_usize,
        removed in prop::collection::vec(".{0,20}", 0..3),
    ) {
        let any = wkt::Any { type_url: TYPES[which].to_owned(), value };
        let one = Resource { version: String::new(), resource: Some(any), name, aliases: vec![] };
        let mut session = session();
        let mut sent = response(TYPES[which], vec![one], &[]);
        sent.removed_resources = removed;
        let world = World::default().apply(session.handle(sent).delta);
        prop_assert!(world.addresses_synced() == (which == 0));
    }
}
