//! Machines whose application is ill, or that an operator drains, are sent nothing; and what a probe's command may do.

use crate::fixture::{Machine, Mesh, SOON, text};
use crate::tools::Tools as _;
use mesh_lab::wait_until;
use serde_json::json;
use std::io::{Read as _, Write as _};

const URL: &str = "http://orders.shop.mesh.internal/";

/// The group `shop/orders` with this probe, as JSON.
pub fn probe(mesh: &Mesh, probe: &serde_json::Value) {
    let group = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": {
            "metadata": { "labels": { "app": "orders" } },
            "template": { "serviceAccount": "orders", "ports": { "http": 8080 } },
            "probe": probe,
        },
    });
    mesh.apply(&group.to_string());
}

fn wait_health(machine: &Machine, state: &str) {
    wait_until(SOON, &format!("{} to be {state}", machine.name), || {
        machine.status()["health"]["state"] == state
    });
}

/// Until others know it, too.
fn wait_rotation(machine: &Machine, within: bool) {
    wait_until(SOON, &format!("{} to be in rotation: {within}", machine.name), || {
        machine.status()["health"]["in_rotation"] == within
    });
}

/// Every one of some requests is answered so.
fn answered_by(client: &Machine, answer: &str) {
    for _ in 0..8 {
        assert_eq!(client.get(URL), answer);
    }
}

#[test]
fn flows_go_where_the_application_is_healthy() {
    let mut mesh = Mesh::start();
    probe(
        &mesh,
        &json!({ "periodSeconds": 1, "httpGet": { "port": 8080, "path": "/" } }),
    );
    let first = mesh.member("first", "shop/orders");
    let second = mesh.member("second", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let first_nginx = first.nginx(8080, "first");
    let second_nginx = second.nginx(8080, "second");
    for machine in [&first, &second] {
        wait_health(machine, "healthy");
        wait_rotation(machine, true);
    }
    assert_eq!(web.status()["health"]["probe"], serde_json::Value::Null);
    assert_eq!(web.status()["health"]["state"], "healthy", "not probed is healthy");
    for answer in ["first", "second"] {
        wait_until(SOON, "an answer of each", || web.wait_get(URL) == answer);
    }

    drop(first_nginx);
    wait_health(&first, "unhealthy");
    wait_rotation(&first, false);
    let status = first.status();
    assert_eq!(status["healthy"], false);
    assert!(
        status["health"]["reason"].as_str().unwrap().contains("127.0.0.1:8080"),
        "{status}"
    );
    let agents = mesh.ctl(&["agents"]);
    assert!(agents.contains("connected, unhealthy"), "{agents}");
    wait_until(SOON, "the client to hear of it", || {
        (0..8).all(|_| web.get(URL) == "second")
    });

    drop(second_nginx);
    wait_health(&second, "unhealthy");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    wait_until(SOON, "nobody to be left", || {
        web.curl(&["--max-time", "3", &format!("http://{vip}/")]);
        web.log().contains("no healthy upstream")
    });

    let _first_nginx = first.nginx(8080, "first again");
    wait_health(&first, "healthy");
    assert_eq!(web.wait_get(URL), "first again");
    answered_by(&web, "first again");

    // Without a probe the other one is healthy again, for all that anybody knows.
    probe(&mesh, &serde_json::Value::Null);
    wait_health(&second, "healthy");
    wait_rotation(&second, true);
}

#[test]
fn drain_sends_others_elsewhere_keeps_what_lives_and_is_undone() {
    let mut mesh = Mesh::start();
    let mut first = mesh.member("first", "shop/orders");
    let second = mesh.member("second", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _first_echo = first.host.echo_server("0.0.0.0:9090");
    let (_first_nginx, _second_nginx) = (first.nginx(8080, "first"), second.nginx(8080, "second"));
    for answer in ["first", "second"] {
        wait_until(SOON, "an answer of each", || web.wait_get(URL) == answer);
    }
    let mut living = web.host.connect(&format!("{}:9090", first.ip4)).unwrap();
    let mut echo = move || {
        living.write_all(b"x").unwrap();
        living.read_exact(&mut [0]).unwrap();
    };
    echo();

    // One connection lives, so that waiting is in vain.
    let output = first.try_agent(&["drain", "--wait", "3"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert!(
        text(&output).contains("1 connections of others are left"),
        "{}",
        text(&output)
    );
    wait_rotation(&first, false);
    let status = first.status();
    assert_eq!(
        (&status["health"]["state"], &status["healthy"]),
        (&json!("draining"), &json!(true))
    );
    assert!(text(&first.try_agent(&["status"])).contains("draining since"));
    assert_eq!(
        mesh.ctl_json(&["agents"]).to_string().matches("\"draining\"").count(),
        1
    );
    wait_until(SOON, "the client to hear of it", || {
        (0..8).all(|_| web.get(URL) == "second")
    });
    echo();
    drop(echo);
    let output = first.try_agent(&["drain", "--wait", "30"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    // It lasts over a restart.
    first.stop();
    first.start();
    wait_health(&first, "draining");
    answered_by(&web, "second");
    let output = first.try_agent(&["drain", "--undo"]);
    assert!(output.status.success(), "{}", text(&output));
    wait_rotation(&first, true);
    wait_until(SOON, "an answer of the first", || web.wait_get(URL) == "first");
}

#[test]
fn a_command_probes_only_when_the_machine_lists_it() {
    let mut mesh = Mesh::start();
    let command = [
        "/bin/sh",
        "-c",
        "test -e /tmp/mesh-probe-ready || { echo not yet; exit 3; }",
    ];
    probe(&mesh, &json!({ "periodSeconds": 1, "exec": { "command": command } }));
    let mut machine = mesh.member("m", "shop/orders");
    wait_health(&machine, "unhealthy");
    let reason = machine.status()["health"]["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("may not be run") && reason.contains("health.exec"),
        "{reason}"
    );

    // The same program with another argument is another command.
    machine.stop();
    machine.host.sh("mount -t tmpfs -o mode=1777 tmpfs /mnt");
    let marker = "/mnt/ready";
    let command = ["/bin/sh", "-c", "test -e /mnt/ready || { echo not yet; exit 3; }"];
    machine.configure(&format!("[health]\nexec = [{}]\n", json!(command)));
    machine.start();
    wait_health(&machine, "unhealthy");
    assert!(
        machine.status()["health"]["reason"]
            .as_str()
            .unwrap()
            .contains("may not be run")
    );

    probe(&mesh, &json!({ "periodSeconds": 1, "exec": { "command": command } }));
    wait_until(SOON, "the listed command to be run", || {
        machine.status()["health"]["reason"] == "the command ended with 3: not yet"
            || machine.log().contains("the command ended with 3: not yet")
    });
    machine.host.sh(&format!("touch {marker}"));
    wait_health(&machine, "healthy");
}
