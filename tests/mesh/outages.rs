//! The control plane goes away, and comes back.

use crate::fixture::{Mesh, SOON};
use crate::lab::wait_for;

#[test]
fn traffic_goes_on_without_the_control_plane_and_survives_a_restart() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "still here");
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    mesh.kill_control();
    wait_for(SOON, "the outage to be noticed", || web.status()["control"]["connected"] == false);
    assert_eq!(web.get("http://orders.shop.mesh.internal/"), "still here");
    // A machine that boots while the control plane is away serves from what it knew.
    web.stop();
    web.start();
    assert_eq!(web.wait_get("http://orders.shop.mesh.internal/"), "still here");
    assert!(web.status()["world"]["age_seconds"].is_number(), "{}", web.status());

    mesh.start_control();
    web.wait_ready();
    orders.wait_ready();
    assert_eq!(web.get("http://orders.shop.mesh.internal/"), "still here");
}

#[test]
fn a_killed_control_plane_loses_nothing_acknowledged() {
    let mut mesh = Mesh::start();
    let token = mesh.token("shop/orders");
    mesh.kill_control();
    mesh.start_control();
    assert!(mesh.ctl(&["get", "serviceentry", "-n", "shop"]).contains("orders"));
    let mut machine = mesh.machine("m");
    machine.join(&token);
    mesh.kill_control();
    mesh.start_control();
    machine.start();
    machine.wait_ready();
}
