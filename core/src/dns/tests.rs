use proptest::prelude::*;

use super::*;
use crate::world::Delta;
use crate::world::tests::{endpoint, service, workload};

fn world() -> World {
    let headless = Service {
        vips: Vec::new(),
        ..service("headless.ns.svc.cluster.local", "240.240.0.9")
    };
    let mut dual = service("orders.shop.mesh.internal", "240.240.0.1");
    dual.vips.push(("".into(), "2001:2::1/128".parse().unwrap()));
    World::default().apply(Delta {
        services: vec![
            dual,
            service("web.ns.mesh.internal", "240.240.0.2"),
            service("www.example.com", "240.240.0.3"),
            service("*.wild.example.com", "240.240.0.4"),
            headless.clone(),
            Service {
                private: true,
                key: crate::world::ServiceKey {
                    namespace: "other".into(),
                    hostname: "hidden.example.com".into(),
                },
                ..service("hidden", "240.240.0.5")
            },
        ],
        workloads: vec![
            endpoint(workload("a", "10.0.0.1"), &headless),
            endpoint(workload("b", "10.0.0.2"), &headless),
        ],
        addresses_synced: true,
        ..Delta::default()
    })
}

fn ask(name: &str, kind: RecordType, world: &World) -> Action {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let search = ["shop.mesh.internal".to_owned(), "corp.example".to_owned()];
    let view = View {
        network: "",
        namespace: "ns",
        cluster_domain: "cluster.local",
        mesh_domain: "mesh.internal",
        search: &search,
    };
    decide(&query.to_vec().unwrap(), world, &view, 3, Carrier::Udp)
}

/// The answer in short: code, then each record.
fn said(name: &str, kind: RecordType) -> String {
    match ask(name, kind, &world()) {
        Action::Forward => "forward".into(),
        Action::Drop => "drop".into(),
        Action::Answer(bytes) => {
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.metadata.id, 7);
            let mut data: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
            data.sort();
            format!("{} {}", message.metadata.response_code, data.join(" "))
                .trim()
                .to_owned()
        }
    }
}

#[test]
fn names_of_the_mesh() {
    let a = RecordType::A;
    assert_eq!(said("orders.shop.mesh.internal.", a), "No Error 240.240.0.1");
    assert_eq!(said("ORDERS.shop.Mesh.internal.", a), "No Error 240.240.0.1");
    assert_eq!(
        said("orders.shop.mesh.internal.", RecordType::AAAA),
        "No Error 2001:2::1"
    );
    assert_eq!(said("orders.shop.", a), "No Error 240.240.0.1");
    assert_eq!(said("web.", a), "No Error 240.240.0.2");
    assert_eq!(said("www.example.com.", a), "No Error 240.240.0.3");
    assert_eq!(said("www.example.com.", RecordType::AAAA), "No Error");
    assert_eq!(said("www.example.com.", RecordType::TXT), "No Error");
    assert_eq!(said("x.y.wild.example.com.", a), "No Error 240.240.0.4");
    assert_eq!(said("headless.ns.", a), "No Error 10.0.0.1 10.0.0.2");
    assert_eq!(
        said("www.example.com.corp.example.", a),
        "No Error 240.240.0.3 www.example.com."
    );
}

#[test]
fn other_names() {
    assert_eq!(said("hidden.example.com.", RecordType::A), "forward");
    assert_eq!(said("www.debian.example.", RecordType::A), "forward");
    assert_eq!(said("www.debian.example.", RecordType::MX), "forward");
    assert_eq!(said("nobody.shop.mesh.internal.", RecordType::A), "Non-Existent Domain");
}

#[test]
fn before_the_world_is_here_public_names_are_forwarded() {
    let empty = World::default();
    assert_eq!(ask("www.debian.example.", RecordType::A, &empty), Action::Forward);
    let Action::Answer(bytes) = ask("orders.shop.mesh.internal.", RecordType::A, &empty) else {
        panic!()
    };
    assert_eq!(
        Message::from_vec(&bytes).unwrap().metadata.response_code,
        ResponseCode::ServFail
    );
}

#[test]
fn long_answers_are_cut() {
    let headless = Service {
        vips: Vec::new(),
        ..service("many.example.com", "240.240.0.9")
    };
    let workloads = (0..60)
        .map(|n| endpoint(workload(&n.to_string(), &format!("10.0.1.{n}")), &headless))
        .collect();
    let world = World::default().apply(Delta {
        services: vec![headless],
        workloads,
        ..Delta::default()
    });
    let Action::Answer(bytes) = ask("many.example.com.", RecordType::A, &world) else {
        panic!()
    };
    assert!(bytes.len() <= 512 && Message::from_vec(&bytes).unwrap().metadata.truncation);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let view = View { network: "", namespace: "ns", cluster_domain: "cluster.local", mesh_domain: "mesh.internal", search: &[] };
        if let Action::Answer(answer) = decide(&bytes, &world(), &view, 1, Carrier::Udp) {
            prop_assert_eq!(&answer[..2], &bytes[..2]);
            prop_assert!(answer[2] & 0x80 != 0);
        }
        let _ = servfail(&bytes);
    }
}
