//! The control plane goes away, and comes back; disks fill up, and are freed.

use crate::fixture::{Machine, Mesh, SOON, text};
use mesh_lab::{Host, wait_until};

#[test]
fn traffic_goes_on_without_the_control_plane_and_survives_a_restart() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "still here");
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    mesh.kill_control();
    wait_until(SOON, "the outage to be noticed", || {
        web.status()["control"]["connected"] == false
    });
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

#[test]
fn a_full_disk_keeps_no_member_from_going_on() {
    let mut mesh = Mesh::start_with("certificate_lifetime_seconds = 12");
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.machine("web");
    let (token, state) = (mesh.token("shop/web"), web.dir.join("state"));
    small_disk(&web.host, &state.display().to_string());
    fill(&web.host, &state.display().to_string());
    let refused = web.try_join(&token);
    assert!(!refused.status.success(), "joined on a full disk");
    assert!(text(&refused).contains("No space left"), "{}", text(&refused));
    assert_eq!(files(&web), "fill\n", "something half-made was left");
    free(&web.host, &state.display().to_string());
    web.join(&token);
    web.start();
    web.wait_ready();

    let _nginx = orders.nginx(8080, "written nowhere");
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    fill(&web.host, &state.display().to_string());
    let serial = web.status()["certificate"]["serial"].clone();
    wait_until(SOON, "the certificate to be renewed all the same", || {
        web.status()["certificate"]["serial"] != serial
    });
    web.wait_log(&["certificate was not saved", "No space left"]);
    assert_eq!(web.get("http://orders.shop.mesh.internal/"), "written nowhere");

    free(&web.host, &state.display().to_string());
    web.kill();
    web.start();
    web.wait_ready();
    assert_eq!(web.wait_get("http://orders.shop.mesh.internal/"), "written nowhere");
}

#[test]
fn a_full_disk_of_the_control_plane_is_told_and_loses_nothing() {
    let mut mesh = Mesh::start();
    let machine = mesh.member("m", "shop/orders");
    mesh.kill_control();
    let data = mesh.data_dir();
    mesh.control.sh(&format!("cp -a {data} {data}.kept"));
    small_disk(&mesh.control, &data);
    mesh.control.sh(&format!("cp -a {data}.kept/. {data}/"));
    mesh.start_control();
    fill(&mesh.control, &data);
    let mut said = String::new();
    wait_until(SOON, "the store to be full", || {
        let output = mesh.try_ctl(&["token", "create", "--group", "shop/orders"]);
        said = text(&output);
        !output.status.success()
    });
    assert!(said.contains("disk"), "{said}");
    // What needs no writing goes on.
    assert!(mesh.ctl(&["get", "workloadgroup", "-n", "shop"]).contains("orders"));
    free(&mesh.control, &data);
    let token = mesh.token("shop/orders");
    mesh.kill_control();
    mesh.start_control();
    machine.wait_ready();
    mesh.machine("late").join(&token);
}

/// A disk of its own for this directory, on this machine.
fn small_disk(host: &Host, directory: &str) {
    host.sh(&format!(
        "mkdir -p {directory} && mount -t tmpfs -o size=2m,mode=0700 tmpfs {directory}"
    ));
}

fn fill(host: &Host, directory: &str) {
    host.sh(&format!(
        "dd if=/dev/zero of={directory}/fill bs=4k 2>/dev/null || true"
    ));
}

fn free(host: &Host, directory: &str) {
    host.sh(&format!("rm {directory}/fill"));
}

fn files(machine: &Machine) -> String {
    machine.host.sh(&format!("ls {}/state", machine.dir.display()))
}
