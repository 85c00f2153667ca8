//! Names, answers and refusals; and that no bytes whatever make it panic.
#![allow(clippy::unwrap_used)]

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RData};
use proptest::prelude::*;

use super::*;
use crate::world::{Delta, Service, fixture};

fn view(search: &[String]) -> View<'_> {
    View {
        network: "",
        namespace: "shop",
        cluster_domain: "cluster.local",
        mesh_domain: "mesh.internal",
        search,
    }
}

fn world() -> World {
    let mut dual = fixture::service("orders.shop.mesh.internal", "240.240.0.1");
    dual.vips.push(("".into(), "2001:2::1/128".parse().unwrap()));
    dual.vips.push(("elsewhere".into(), "240.240.9.9/32".parse().unwrap()));
    let mut headless = fixture::service("db.shop.mesh.internal", "240.240.0.2");
    headless.vips.clear();
    let mut private = fixture::service("secret.other.mesh.internal", "240.240.0.3");
    private.key.namespace = "other".into();
    private.private = true;
    let mut note = fixture::service("noted.example", "240.240.0.9");
    note.vips.clear();
    let endpoint = |uid: &str, address: &str, healthy| {
        let mut workload = fixture::workload(uid, address);
        workload.services = vec![(fixture::key("db.shop.mesh.internal"), vec![])];
        workload.healthy = healthy;
        workload
    };
    let delta = Delta {
        services: vec![
            dual,
            headless,
            private,
            note,
            fixture::service("Api.Example.com", "240.240.0.4"),
            fixture::service("*.wild.example", "240.240.0.5"),
            fixture::service("web.shop.svc.cluster.local", "10.96.0.1"),
        ],
        workloads: vec![
            endpoint("db1", "10.0.0.1", true),
            endpoint("db2", "10.0.0.2", true),
            endpoint("ill", "10.0.0.3", false),
        ],
        addresses_synced: true,
        ..Delta::default()
    };
    World::default().apply(delta)
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message.to_vec().unwrap()
}

fn asked(world: &World, search: &[String], name: &str, kind: RecordType) -> Option<Message> {
    match decide(&query(name, kind), world, &view(search), 1, 1232) {
        Action::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        Action::Forward => None,
        Action::Drop => panic!("dropped"),
    }
}

fn texts(message: &Message) -> Vec<String> {
    let mut texts: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    texts.sort();
    texts
}

fn answers(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
    let message = asked(&world(), &[], name, kind)?;
    assert!(message.metadata.authoritative);
    assert_eq!(message.metadata.id, 0x1234);
    Some((message.metadata.response_code, texts(&message)))
}

fn found(addresses: &[&str]) -> Option<(ResponseCode, Vec<String>)> {
    Some((
        ResponseCode::NoError,
        addresses.iter().map(ToString::to_string).collect(),
    ))
}

#[test]
fn mesh_names_are_answered_in_all_their_forms() {
    for name in [
        "orders.shop.mesh.internal",
        "ORDERS.shop.Mesh.internal",
        "orders.shop",
        "orders",
    ] {
        assert_eq!(answers(name, RecordType::A), found(&["240.240.0.1"]), "{name}");
        assert_eq!(answers(name, RecordType::AAAA), found(&["2001:2::1"]), "{name}");
    }
    for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        assert_eq!(answers(name, RecordType::A), found(&["10.96.0.1"]), "{name}");
    }
    assert_eq!(answers("api.example.com", RecordType::A), found(&["240.240.0.4"]));
    assert_eq!(answers("a.b.wild.example", RecordType::A), found(&["240.240.0.5"]));
    assert_eq!(
        answers("db", RecordType::A),
        found(&["10.0.0.1", "10.0.0.2"]),
        "healthy endpoints of a headless service"
    );
}

#[test]
fn a_headless_service_answers_with_its_eligible_endpoints() {
    use crate::world::IpFamilies;
    let answered = |families, kind| {
        let mut service = fixture::service("db.shop.mesh.internal", "240.240.0.2");
        service.vips.clear();
        service.ip_families = families;
        let endpoint = |uid: &str, last: u8| {
            let mut workload = fixture::workload(uid, &format!("10.0.0.{last}"));
            workload.addresses.push(format!("fd00::{last}").parse().unwrap());
            workload.services = vec![(service.key.clone(), vec![])];
            workload
        };
        let (mut never, mut away) = (endpoint("never", 2), endpoint("away", 3));
        never.capacity = 0;
        away.network = "elsewhere".into();
        let mut named = endpoint("named", 4);
        named.addresses.clear();
        named.hostname = "db.example.com".into();
        let delta = Delta {
            workloads: vec![endpoint("db", 1), never, away, named],
            services: vec![service.clone()],
            addresses_synced: true,
            ..Delta::default()
        };
        let message = asked(&World::default().apply(delta), &[], "db", kind).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        texts(&message)
    };
    assert_eq!(answered(IpFamilies::Dual, RecordType::A), ["10.0.0.1"]);
    assert_eq!(answered(IpFamilies::Dual, RecordType::AAAA), ["fd00::1"]);
    assert_eq!(answered(IpFamilies::V4Only, RecordType::A), ["10.0.0.1"]);
    assert!(answered(IpFamilies::V4Only, RecordType::AAAA).is_empty());
    assert!(answered(IpFamilies::V6Only, RecordType::A).is_empty());
}

#[test]
fn what_a_known_name_lacks_is_an_empty_answer() {
    for (name, kind) in [
        ("web", RecordType::AAAA),
        ("api.example.com", RecordType::AAAA),
        ("orders", RecordType::MX),
        ("orders", RecordType::HTTPS),
    ] {
        assert_eq!(answers(name, kind), found(&[]), "{name} {kind}");
    }
}

#[test]
fn public_names_are_forwarded() {
    for (name, kind) in [
        ("example.com", RecordType::A),
        ("www.api.example.com", RecordType::A),
        ("wild.example", RecordType::A),
        ("noted.example", RecordType::A),
        ("nobody.shop.svc.cluster.local", RecordType::A),
        ("example.com", RecordType::MX),
        ("1.2.0.192.in-addr.arpa", RecordType::PTR),
    ] {
        assert_eq!(answers(name, kind), None, "{name} {kind}");
        assert!(
            asked(&World::default(), &[], name, kind).is_none(),
            "before the world: {name} {kind}"
        );
    }
}

#[test]
fn of_our_domain_nothing_leaks() {
    let unknown = |name| answers(name, RecordType::A).unwrap().0;
    assert_eq!(unknown("nobody.shop.mesh.internal"), ResponseCode::NXDomain);
    assert_eq!(
        unknown("secret.other.mesh.internal"),
        ResponseCode::NXDomain,
        "private to its namespace"
    );
    assert_eq!(unknown("shop.mesh.internal"), ResponseCode::NoError);
    let early = asked(&World::default(), &[], "orders.shop.mesh.internal", RecordType::A).unwrap();
    assert_eq!(early.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn a_search_domain_is_stripped_with_a_cname() {
    let search = ["corp.example".to_owned()];
    let message = asked(
        &world(),
        &search,
        "orders.shop.mesh.internal.corp.example",
        RecordType::A,
    )
    .unwrap();
    assert_eq!(texts(&message), ["240.240.0.1", "orders.shop.mesh.internal."]);
    assert_eq!(message.answers[1].name.to_ascii(), "orders.shop.mesh.internal.");
    assert!(asked(&world(), &search, "example.com.corp.example", RecordType::A).is_none());
}

#[test]
fn vips_have_names() {
    assert_eq!(
        answers("1.0.240.240.in-addr.arpa", RecordType::PTR),
        found(&["orders.shop.mesh.internal."])
    );
}

fn headless_with(endpoints: u8) -> World {
    let mut service: Service = fixture::service("many.shop.mesh.internal", "240.240.0.1");
    service.vips.clear();
    let workloads = (0..endpoints).map(|at| {
        let mut workload = fixture::workload(&format!("w{at}"), &format!("10.0.1.{at}"));
        workload.services = vec![(fixture::key("many.shop.mesh.internal"), vec![])];
        workload
    });
    World::default().apply(Delta {
        services: vec![service],
        workloads: workloads.collect(),
        ..Delta::default()
    })
}

#[test]
fn long_answers_are_cut_to_size() {
    let world = headless_with(200);
    let sized = |edns: Option<u16>, max: usize| {
        let mut message = Message::from_vec(&query("many.shop.mesh.internal", RecordType::A)).unwrap();
        if let Some(size) = edns {
            let mut option = Edns::new();
            option.set_max_payload(size);
            message.set_edns(option);
        }
        let Action::Answer(bytes) = decide(&message.to_vec().unwrap(), &world, &view(&[]), 3, max) else {
            panic!()
        };
        (bytes.len(), Message::from_vec(&bytes).unwrap())
    };
    for (edns, max, limit) in [(None, 1232, 512), (Some(1400), 1232, 1232), (Some(100), 1232, 512)] {
        let (length, message) = sized(edns, max);
        assert!(
            length <= limit && length > limit - 48,
            "{length} of {limit} with {} answers",
            message.answers.len()
        );
        assert!(message.metadata.truncation);
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
    let (_, message) = sized(None, 65_535);
    assert!(!message.metadata.truncation);
    assert_eq!(message.answers.len(), 200);
}

#[test]
fn seeds_shuffle() {
    let world = headless_with(20);
    let first = |seed| {
        let bytes = query("many", RecordType::A);
        let Action::Answer(bytes) = decide(&bytes, &world, &view(&[]), seed, 1232) else {
            panic!()
        };
        Message::from_vec(&bytes).unwrap().answers[0].data.clone()
    };
    let firsts: std::collections::BTreeSet<String> = (0..40).map(|seed| first(seed).to_string()).collect();
    assert!(firsts.len() > 5);
    assert!(matches!(first(0), RData::A(_)));
}

#[test]
fn what_is_no_query_is_not_answered() {
    let mut response = query("orders", RecordType::A);
    response[2] |= 0x80;
    assert_eq!(decide(&response, &world(), &view(&[]), 0, 1232), Action::Drop);
    assert_eq!(servfail(&response), None);
    assert_eq!(decide(&[1, 2, 3], &world(), &view(&[]), 0, 1232), Action::Drop);
    let mut cut = query("orders", RecordType::A);
    cut.truncate(14);
    let Action::Answer(bytes) = decide(&cut, &world(), &view(&[]), 0, 1232) else {
        panic!()
    };
    assert_eq!(
        Message::from_vec(&bytes).unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
    let failed = Message::from_vec(&servfail(&query("example.com", RecordType::A)).unwrap()).unwrap();
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(failed.queries.len(), 1);
}

fn check(bytes: &[u8]) {
    let search = ["corp.example".to_owned(), String::new(), ".".to_owned()];
    if let Action::Answer(answer) = decide(bytes, &world(), &view(&search), 9, 1232) {
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.id.to_be_bytes(), bytes[..2]);
    }
    if let Some(answer) = servfail(bytes) {
        Message::from_vec(&answer).unwrap();
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes);
    }

    #[test]
    fn damaged_queries_do_no_harm(
        name in "[a-z]{1,20}(\\.[a-z]{1,10}){0,5}(\\.mesh\\.internal)?",
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = query(&name, RecordType::A);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        check(&bytes);
    }
}
