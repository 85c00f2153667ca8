//! A stream's life: what is held is not sent again, what is bad is refused alone, and being away costs nothing.

use std::time::{Duration, Instant};

use mesh_lab::wait_until;
use mesh_proto::istio::workload::{NetworkAddress, Port, Service, Workload, address};
use mesh_proto::type_url;

use crate::fixture::{Machine, SOON};
use crate::lab::Lab;

fn service(name: &str, vip: [u8; 4]) -> (String, address::Type) {
    let hostname = format!("{name}.shop.svc.cluster.local");
    let service = Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: hostname.clone(),
        addresses: vec![NetworkAddress {
            network: "vms".into(),
            address: vip.to_vec(),
            ..NetworkAddress::default()
        }],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            ..Port::default()
        }],
        ..Service::default()
    };
    (format!("shop/{hostname}"), address::Type::Service(service))
}

fn services(machine: &Machine) -> u64 {
    machine.status()["world"]["services"].as_u64().unwrap_or(0)
}

#[test]
fn after_half_an_hour_only_what_changed_is_sent_again() {
    let lab = Lab::start();
    let machine = lab.member();
    let (kept, one) = service("kept", [10, 96, 0, 1]);
    let (gone, other) = service("gone", [10, 96, 0, 2]);
    lab.script.push_address(&kept, "v7", Some(one));
    lab.script.push_address(&gone, "v1", Some(other));
    wait_until(SOON, "both services", || services(&machine) == 2);

    // While the stream is away, one goes. The world stays as it was meanwhile.
    let before = Instant::now();
    lab.script.close_streams();
    lab.script.remove_address(&gone);
    wait_until(SOON, "the next stream", || lab.script.lock().worlds().len() == 2);
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "a stream that ended in peace comes back soon"
    );
    wait_until(SOON, "the service to go", || services(&machine) == 1);
    let script = lab.script.lock();
    let stream = script.worlds()[1];
    let held = &stream.held[type_url::ADDRESS];
    assert_eq!(held[&kept], "v7");
    let answer = stream
        .sent
        .iter()
        .find(|sent| sent.type_url == type_url::ADDRESS)
        .unwrap();
    assert!(answer.removed_resources.contains(&gone), "{answer:?}");
    assert!(
        answer.resources.iter().all(|resource| resource.name != kept),
        "{answer:?}"
    );
}

#[test]
fn what_is_bad_is_refused_alone() {
    let lab = Lab::start();
    let machine = lab.member();
    let bad = Workload {
        uid: "c1//Pod/shop/bad".into(),
        namespace: "shop".into(),
        addresses: vec![vec![1, 2, 3]],
        ..Workload::default()
    };
    let (good, service) = service("good", [10, 96, 0, 3]);
    lab.script
        .push_address(&bad.uid.clone(), "v1", Some(address::Type::Workload(bad)));
    lab.script.push_address(&good, "v1", Some(service));
    wait_until(SOON, "the good one", || services(&machine) == 1);
    wait_until(SOON, "the refusal", || {
        let script = lab.script.lock();
        let refusals = script.worlds()[0]
            .answers
            .iter()
            .filter_map(|answer| answer.error_detail.as_ref());
        refusals
            .into_iter()
            .any(|detail| detail.message.contains("c1//Pod/shop/bad"))
    });
    let rejected = machine.status()["policies"]["rejected"][0]["name"].clone();
    assert_eq!(rejected, "c1//Pod/shop/bad");
    // Refused, it is not named as held on the next stream.
    lab.script.close_streams();
    wait_until(SOON, "the next stream", || {
        let script = lab.script.lock();
        script
            .worlds()
            .get(1)
            .is_some_and(|stream| stream.held.contains_key(type_url::ADDRESS))
    });
    let script = lab.script.lock();
    let held = &script.worlds()[1].held[type_url::ADDRESS];
    assert!(
        held.contains_key(&good) && !held.contains_key("c1//Pod/shop/bad"),
        "{held:?}"
    );
}

#[test]
fn without_istiod_the_world_stays_also_after_a_reboot() {
    let mut lab = Lab::start();
    let mut machine = lab.member();
    let (name, one) = service("kept", [10, 96, 0, 4]);
    lab.script.push_address(&name, "v1", Some(one));
    wait_until(SOON, "the service", || services(&machine) == 1);
    wait_until(SOON, "the world to be saved", || {
        let world = std::fs::read(machine.dir.join("state/world.bin")).unwrap_or_default();
        world.windows(name.len()).any(|window| window == name.as_bytes())
    });
    lab.stop_istiod();
    wait_until(SOON, "the loss to be noticed", || {
        machine.status()["control"]["connected"] == false
    });
    assert_eq!(services(&machine), 1);
    machine.kill();
    machine.start();
    wait_until(SOON, "the saved world", || services(&machine) == 1);
    assert_eq!(machine.status()["world"]["from_snapshot"], true);
    lab.start_istiod();
    machine.wait_ready();
}
