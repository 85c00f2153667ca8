//! A machine is put out, and the CA changes its root, while traffic flows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::fixture::{Mesh, SOON};
use crate::lab::wait_for;

#[test]
fn a_revoked_machine_is_cut_off_everywhere_within_five_seconds() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web.host.enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON).unwrap());
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut echo = [0; 4];
    stream.write_all(b"live").unwrap();
    stream.read_exact(&mut echo).unwrap();

    let agents = mesh.ctl_json(&["agents"]);
    let agent = agents["agents"].as_array().unwrap().iter().find(|agent| agent["address"] == web.ip4.as_str()).unwrap();
    let id = agent["id"].as_str().unwrap();
    mesh.ctl(&["revoke", id]);
    let revoked = Instant::now();
    let end = stream.read(&mut echo);
    let took = revoked.elapsed();
    assert!(end.is_err() || end.is_ok_and(|read| read == 0));
    assert!(took < Duration::from_secs(5), "cut after {took:?}");
    orders.wait_log(&["access", "revoked"]);

    let again = web.host.enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), Duration::from_secs(8)));
    assert!(again.is_err(), "a revoked machine got a new flow");
    assert!(!mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains(&web.ip4));
    let mut web = web;
    web.stop();
    web.start();
    web.wait_log(&["revoked"]);
}

#[test]
fn the_root_is_rotated_twice_under_load() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let connect = || web.host.enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON).unwrap());
    let mut long = connect();
    long.set_read_timeout(Some(SOON)).unwrap();
    let mut exchange = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    exchange(&mut long);
    for round in 0..2 {
        let before = signing(&mesh);
        mesh.ctl(&["ca", "rotate"]);
        wait_for(SOON, "every agent to acknowledge, and the new key to sign", || {
            exchange(&mut long);
            exchange(&mut connect());
            signing(&mesh) != before
        });
        let serials = (serial(&web), serial(&orders));
        // Both renew, because the anchor that signed their certificates is on its way out.
        wait_for(SOON, "both to renew under the new root", || {
            exchange(&mut long);
            exchange(&mut connect());
            let (old_web, old_orders) = &serials;
            round == 2 || (serial(&web) != *old_web && serial(&orders) != *old_orders) || renewed(&mesh)
        });
        exchange(&mut long);
    }
    let newcomer = mesh.member("late", "shop/web");
    assert_eq!(newcomer.status()["state"], "member");
}

fn signing(mesh: &Mesh) -> String {
    let status = mesh.ctl_json(&["ca", "status"]);
    let anchors = status["anchors"].as_array().unwrap();
    anchors.iter().find(|anchor| anchor["signing"] == true).unwrap()["fingerprint"].as_str().unwrap().to_owned()
}

fn renewed(mesh: &Mesh) -> bool {
    mesh.ctl_json(&["ca", "status"])["phase"] == "steady"
}

fn serial(machine: &crate::fixture::Machine) -> String {
    machine.status()["certificate"]["serial"].as_str().unwrap_or_default().to_owned()
}
