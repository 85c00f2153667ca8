#![allow(clippy::unwrap_used)]
use super::*;
use crate::derive::World;
use crate::xds::Node;
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

/// A node that is not ours, as ztunnel sends it.
fn ztunnel() -> Node {
    Node {
        instance: "ztunnel~10.0.0.9~me.ns~ns.svc.cluster.local".into(),
        ..Node::default()
    }
}

fn with_service(before: &Snapshot, members: &[&str]) -> Snapshot {
    use mesh_proto::istio::workload::{NetworkAddress, PortList, Service};
    let mut world = World::default();
    let service = Service {
        addresses: vec![NetworkAddress {
            address: vec![240, 240, 0, 1],
            ..NetworkAddress::default()
        }],
        ..Service::default()
    };
    world.services.insert("ns/s.example".into(), service);
    for uid in members {
        let workload = Workload {
            services: [("ns/s.example".to_owned(), PortList::default())].into(),
            ..Workload::default()
        };
        world.workloads.insert((*uid).to_owned(), workload);
    }
    world.workloads.insert("stranger".into(), Workload::default());
    Snapshot::new(before, &world, &[], "mesh.internal", &[("f".into(), "pem".into())])
}

#[test]
fn who_asks_for_a_service_gets_the_workloads_behind_it_now_and_later() {
    let one = with_service(&Snapshot::default(), &["a"]);
    for asked in ["ns/s.example", "/240.240.0.1"] {
        let mut session = Session::default();
        session.request(&request(&["*"], &["*"])).unwrap();
        assert!(session.poll(&one)[0].resources.is_empty());
        session.request(&request(&[asked], &[])).unwrap();
        assert_eq!(names(&session.poll(&one)[0]), ["a", "ns/s.example"]);
        assert_eq!(names(&session.poll(&with_service(&one, &["a", "b"]))[0]), ["b"]);
        assert_eq!(session.poll(&with_service(&one, &[]))[0].removed_resources, ["a", "b"]);
    }
}

#[test]
fn ztunnel_is_answered_under_the_alias_that_it_waits_for() {
    let world = snapshot(&Snapshot::default(), &[("a", 1), ("b", 2)]);
    let mut session = Session::of(&ztunnel(), Vec::new());
    session.request(&request(&["*"], &["*"])).unwrap();
    session.poll(&world);
    session.request(&request(&["/10.0.0.2"], &[])).unwrap();
    let answer = session.poll(&world);
    assert_eq!(names(&answer[0]), ["b"]);
    assert_eq!(answer[0].removed_resources, ["/10.0.0.2"]);
    // It reconnects while it waits: what is pending is listed without a version.
    let held = [
        ("/10.0.0.1".to_owned(), String::new()),
        ("b".to_owned(), answer[0].resources[0].version.clone()),
    ];
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: held.into(),
        ..request(&["*"], &["*"])
    };
    let mut session = Session::of(&ztunnel(), Vec::new());
    session.request(&again).unwrap();
    let answer = session.poll(&world);
    assert_eq!(names(&answer[0]), ["a"]);
    assert_eq!(answer[0].removed_resources, ["/10.0.0.1"]);
}

#[test]
fn on_demand_a_client_gets_its_own_workload_unasked() {
    let world = snapshot(&Snapshot::default(), &[("a", 1), ("b", 2)]);
    let mut session = Session::of(&ztunnel(), vec!["b".into(), "c".into()]);
    session.request(&request(&["*"], &["*"])).unwrap();
    let answer = session.poll(&world);
    assert_eq!((names(&answer[0]), answer[0].removed_resources.len()), (vec!["b"], 0));
    assert_eq!(names(&session.poll(&snapshot(&world, &[("b", 2), ("c", 3)]))[0]), ["c"]);
}

#[test]
fn the_types_of_our_own_agents_come_only_to_those_who_subscribe() {
    let world = snapshot(&Snapshot::default(), &[("a", 1)]);
    let mut session = Session::of(&ztunnel(), Vec::new());
    for url in [type_url::ADDRESS, type_url::AUTHORIZATION] {
        let mut first = request(&[], &[]);
        first.type_url = url.to_owned();
        session.request(&first).unwrap();
    }
    let order: Vec<_> = session.poll(&world).into_iter().map(|r| r.type_url).collect();
    assert_eq!(order, [type_url::ADDRESS, type_url::AUTHORIZATION]);
}
