//! The join, and all that can be wrong with it.

use std::time::Duration;

use crate::fixture::{Machine, Mesh, SOON, text};
use crate::lab::wait_for;

#[test]
fn each_bad_token_has_its_own_error_and_leaves_nothing() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    let refuse = |token: &str, words: &str| {
        let output = machine.try_join(token);
        let said = text(&output);
        assert!(!output.status.success(), "{words}: {said}");
        assert!(said.to_lowercase().contains(words), "expected {words:?} in: {said}");
        assert!(no_identity(&machine), "{words}: something was left in the state directory");
    };

    let good = mesh.token("shop/orders");
    let mut mistyped = good.clone().into_bytes();
    let middle = mistyped.len() / 2;
    mistyped[middle] = if mistyped[middle] == b'A' { b'B' } else { b'A' };
    refuse(&String::from_utf8(mistyped).unwrap(), "checksum");
    refuse("eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "not a mesh-agent token");
    refuse("", "token");

    let revoked = mesh.token("shop/orders");
    let id = mesh.ctl_json(&["token", "list"])["tokens"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    mesh.ctl(&["token", "revoke", &id]);
    refuse(&revoked, "revoked");

    let brief = mesh.ctl(&["token", "create", "--group", "shop/orders", "--lifetime", "1s"]);
    wait_for(SOON, "the token to expire", || {
        let tokens = mesh.ctl_json(&["token", "list"]);
        tokens["tokens"].as_array().unwrap().iter().any(|token| token["state"] == "expired")
    });
    refuse(brief.trim(), "expired");

    let elsewhere = mesh.ctl(&["token", "create", "--group", "shop/orders", "--cidr", "192.0.2.0/24"]);
    refuse(elsewhere.trim(), "192.0.2.0/24");

    machine.join(&good);
    let other = mesh.machine("other");
    let output = other.try_join(&good);
    assert!(!output.status.success());
    assert!(text(&output).contains("used"), "{}", text(&output));
    assert!(no_identity(&other));
}

#[test]
fn a_token_of_another_control_plane_is_refused_before_the_secret_is_sent() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    let stranger = Mesh::start();
    let foreign = stranger.token("shop/orders");
    let output = machine.try_join(&foreign);
    assert!(!output.status.success());
    assert!(text(&output).contains("pin"), "{}", text(&output));
    assert!(no_identity(&machine));
    assert!(!mesh.control_log().contains("token-unknown"), "the secret was sent to a stranger");
}

#[test]
fn the_daemon_may_run_before_the_join() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("m");
    let before = machine.host.kernel_state();
    machine.start();
    wait_for(SOON, "the agent to wait", || machine.status()["state"] == "waiting");
    assert_eq!(machine.host.kernel_state(), before, "an agent that has not joined touches nothing");
    machine.join(&mesh.token("shop/web"));
    machine.wait_ready();
}

#[test]
fn a_clone_is_refused_and_shown() {
    let mut mesh = Mesh::start();
    let original = mesh.member("original", "shop/orders");
    let mut copy = mesh.machine("copy");
    copy.host.sh(&format!("cp -a {}/state {}/state", original.dir.display(), copy.dir.display()));
    copy.start();
    wait_for(SOON, "the clone to be shown", || {
        let agents = mesh.ctl_json(&["agents"]);
        agents["agents"].as_array().unwrap().iter().any(|agent| !agent["clones"].as_array().unwrap().is_empty())
    });
    copy.wait_log(&["clone"]);
    assert_eq!(original.status()["control"]["connected"], true);
}

#[test]
fn joined_as_root_the_daemon_runs_as_its_user() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    machine.host.with_user("mesh-agent", 64_999);
    machine.host.sh(&format!("mkdir -p {0}/state {0}/run && chown 64999:64999 {0}/state {0}/run && chmod o+x {0} {0}/.. ", machine.dir.display()));
    machine.host.sh(&format!("chmod -R o+rX {}/etc", machine.dir.display()));
    machine.join(&mesh.token("shop/orders"));
    let owner = machine.host.sh(&format!("stat -c %u {}/state/key.pem {}/state/membership.json", machine.dir.display(), machine.dir.display()));
    assert_eq!(owner, "64999\n64999\n");
    let mut command = machine.host.cmd("setpriv");
    command
        .args(["--reuid", "64999", "--regid", "64999", "--clear-groups", "--no-new-privs"])
        .args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"])
        .arg(crate::fixture::binary("mesh-agent"))
        .args(["run", "--config"])
        .arg(machine.dir.join("etc/agent.toml"));
    let _agent = machine.host.spawn(&mut command);
    machine.wait_ready();
}

#[test]
fn a_wrong_clock_is_named() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    let token = mesh.token("shop/orders");
    let mut command = machine.agent_command(&["join", &token]);
    command.env("LD_PRELOAD", crate::lab::faketime()).env("FAKETIME", "-30d").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let output = command.output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("clock"), "{}", text(&output));
    assert!(no_identity(&machine));
    machine.join(&token);
}

#[test]
fn a_machine_leaves() {
    let mut mesh = Mesh::start();
    let machine = mesh.member("m", "shop/orders");
    assert!(mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains("orders-"));
    let output = machine.try_agent(&["leave"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(no_identity(&machine));
    wait_for(SOON, "the entry to go", || !mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains("orders-"));
}

#[test]
fn the_entry_goes_after_the_grace_period() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.member("m", "shop/orders");
    machine.kill();
    wait_for(Duration::from_secs(20), "the entry to go", || !mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains("orders-"));
    machine.start();
    machine.wait_ready();
}

fn no_identity(machine: &Machine) -> bool {
    ["membership.json", "cert.pem", "key.pem"].iter().all(|name| !machine.dir.join("state").join(name).exists())
}
