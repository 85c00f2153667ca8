#![allow(clippy::unwrap_used)]
use super::*;
use crate::derive::World;
use mesh_proto::istio::workload::Workload;
use mesh_proto::type_url;

fn snapshot(before: &Snapshot, workloads: &[(&str, u8)]) -> Snapshot {
    let mut world = World::default();
    for (uid, last) in workloads {
        let workload = Workload {
            uid: (*uid).to_owned(),
            addresses: vec![vec![10, 0, 0, *last]],
            ..Workload::default()
        };
        world.workloads.insert((*uid).to_owned(), workload);
    }
    Snapshot::new(before, &world, &[], "mesh.internal", &[("f".into(), "pem".into())])
}

fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url::ADDRESS.to_owned(),
        resource_names_subscribe: subscribe.iter().map(|s| (*s).to_owned()).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(|s| (*s).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn wildcard_gets_everything_then_only_changes() {
    let first = snapshot(&Snapshot::default(), &[("a", 1), ("b", 2)]);
    let mut session = Session::default();
    session.request(&request(&[], &[])).unwrap();
    let responses = session.poll(&first);
    assert_eq!(names(&responses[0]), ["a", "b"]);
    assert_eq!(responses[0].resources[0].aliases, ["/10.0.0.1"]);
    assert!(session.poll(&first).is_empty());
    let second = snapshot(&first, &[("a", 1), ("c", 3)]);
    let responses = session.poll(&second);
    assert_eq!(names(&responses[0]), ["c"]);
    assert_eq!(responses[0].removed_resources, ["b"]);
}

#[test]
fn a_reconnect_with_versions_gets_changes_and_removals_and_always_an_answer() {
    let world = snapshot(&Snapshot::default(), &[("a", 1), ("b", 2)]);
    let mut first = Session::default();
    first.request(&request(&[], &[])).unwrap();
    let held: std::collections::BTreeMap<_, _> = first.poll(&world)[0]
        .resources
        .iter()
        .map(|r| (r.name.clone(), r.version.clone()))
        .collect();
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: held,
        ..request(&[], &[])
    };
    let mut same = Session::default();
    same.request(&again).unwrap();
    let responses = same.poll(&world);
    assert_eq!((responses.len(), responses[0].resources.len()), (1, 0));
    let mut changed = Session::default();
    changed.request(&again).unwrap();
    let responses = changed.poll(&snapshot(&world, &[("a", 9)]));
    assert_eq!(names(&responses[0]), ["a"]);
    assert_eq!(responses[0].removed_resources, ["b"]);
}

#[test]
fn on_demand_answers_names_and_aliases_and_what_is_not_there() {
    let world = snapshot(&Snapshot::default(), &[("a", 1), ("b", 2)]);
    let mut session = Session::default();
    session.request(&request(&["*"], &["*"])).unwrap();
    let responses = session.poll(&world);
    assert!(responses[0].resources.is_empty());
    session.request(&request(&["/10.0.0.2", "ns/gone"], &[])).unwrap();
    let responses = session.poll(&world);
    assert_eq!(names(&responses[0]), ["b"]);
    assert_eq!(responses[0].removed_resources, ["ns/gone"]);
    assert!(session.poll(&world).is_empty());
    session.request(&request(&["b"], &[])).unwrap();
    assert_eq!(names(&session.poll(&world)[0]), ["b"]);
    let responses = session.poll(&snapshot(&world, &[("a", 7)]));
    assert_eq!(responses[0].removed_resources, ["b"]);
    assert!(responses[0].resources.is_empty());
}

#[test]
fn acknowledgements_and_rejections() {
    let world = snapshot(&Snapshot::default(), &[("a", 1)]);
    let mut session = Session::default();
    let mut bundle = request(&[], &[]);
    bundle.type_url = type_url::TRUST_BUNDLE.to_owned();
    session.request(&bundle).unwrap();
    let nonce = session.poll(&world)[0].nonce.clone();
    bundle.response_nonce = nonce;
    let ack = session.request(&bundle).unwrap().unwrap();
    assert_eq!(ack, Acknowledged::Yes(XdsType::TrustBundle, ["f".to_owned()].into()));
    assert_eq!(session.request(&bundle).unwrap(), None, "a nonce counts once");

    session.request(&request(&[], &[])).unwrap();
    let mut reject = request(&[], &[]);
    reject.response_nonce = session.poll(&world)[0].nonce.clone();
    reject.error_detail = Some(mesh_proto::rpc::Status {
        message: "a: bad".into(),
        ..Default::default()
    });
    let nack = session.request(&reject).unwrap().unwrap();
    assert_eq!(nack, Acknowledged::No(XdsType::Address, "a: bad".into()));
}

#[test]
fn types_are_pushed_in_order() {
    let world = snapshot(&Snapshot::default(), &[("a", 1)]);
    let mut session = Session::default();
    for url in XdsType::ALL.iter().rev().map(|t| t.url()) {
        let mut first = request(&[], &[]);
        first.type_url = url.to_owned();
        session.request(&first).unwrap();
    }
    let order: Vec<_> = session.poll(&world).into_iter().map(|r| r.type_url).collect();
    assert_eq!(order, XdsType::ALL.map(|t| t.url().to_owned()));
}
