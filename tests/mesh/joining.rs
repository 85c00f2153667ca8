//! The join, and all that can be wrong with it.

use std::time::Duration;

use crate::fixture::{Machine, Mesh, SOON, text};
use mesh_lab::wait_until;

use crate::tools::Tools as _;

#[test]
fn each_bad_token_has_its_own_error_and_leaves_nothing() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    let refuse = |token: &str, words: &str| {
        let output = machine.try_join(token);
        let said = text(&output);
        assert!(!output.status.success(), "{words}: {said}");
        assert!(said.to_lowercase().contains(words), "expected {words:?} in: {said}");
        assert!(
            no_identity(&machine),
            "{words}: something was left in the state directory"
        );
    };

    let good = mesh.token("shop/orders");
    let mut mistyped = good.clone().into_bytes();
    let middle = mistyped.len() / 2;
    mistyped[middle] = if mistyped[middle] == b'A' { b'B' } else { b'A' };
    refuse(&String::from_utf8(mistyped).unwrap(), "checksum");
    refuse("eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "not a mesh-agent token");
    refuse("", "token");

    let ids = || {
        let tokens = mesh.ctl_json(&["token", "list"]);
        let id = |token: &serde_json::Value| token["id"].as_str().unwrap().to_owned();
        tokens.as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    let before = ids();
    let revoked = mesh.token("shop/orders");
    let id = ids().into_iter().find(|id| !before.contains(id)).unwrap();
    mesh.ctl(&["token", "revoke", &id]);
    refuse(&revoked, "revoked");

    let brief = mesh.ctl(&["token", "create", "--group", "shop/orders", "--lifetime", "1s"]);
    wait_until(SOON, "the token to expire", || {
        let tokens = mesh.ctl_json(&["token", "list"]);
        tokens
            .as_array()
            .unwrap()
            .iter()
            .any(|token| token["state"] == "expired")
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
    assert!(
        !mesh.control_log().contains("token-unknown"),
        "the secret was sent to a stranger"
    );
}

#[test]
fn the_daemon_may_run_before_the_join() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("m");
    let before = machine.host.kernel_state();
    machine.start();
    wait_until(SOON, "the agent to wait", || machine.status()["state"] == "waiting");
    assert_eq!(
        machine.host.kernel_state(),
        before,
        "an agent that has not joined touches nothing"
    );
    machine.join(&mesh.token("shop/web"));
    machine.wait_ready();
}

#[test]
fn a_clone_is_refused_and_shown() {
    let mut mesh = Mesh::start();
    let original = mesh.member("original", "shop/orders");
    let mut copy = mesh.machine("copy");
    copy.host.sh(&format!(
        "cp -a {}/state {}/state",
        original.dir.display(),
        copy.dir.display()
    ));
    copy.start();
    wait_until(SOON, "the clone to be shown", || {
        let agents = mesh.ctl_json(&["agents"]);
        agents
            .as_array()
            .unwrap()
            .iter()
            .any(|agent| !agent["clones"].as_array().unwrap().is_empty())
    });
    copy.wait_log(&["clone"]);
    assert_eq!(original.status()["control"]["connected"], true);
}

#[test]
fn joined_as_root_the_daemon_runs_as_its_user() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    for (file, line) in [
        ("passwd", "mesh-agent:x:64999:64999::/nonexistent:/usr/sbin/nologin"),
        ("group", "mesh-agent:x:64999:"),
    ] {
        let copy = machine.dir.join(file);
        machine.host.sh(&format!(
            "cp /etc/{file} {0}; echo '{line}' >> {0}; mount --bind {0} /etc/{file}",
            copy.display()
        ));
    }
    machine.host.sh(&format!(
        "mkdir -p {0}/state {0}/run && chown 64999:64999 {0}/state {0}/run && chmod o+x {0} {0}/.. ",
        machine.dir.display()
    ));
    // As udev makes it; a machine without udev may have it for root alone.
    let tun = machine.dir.join("tun");
    machine.host.sh(&format!(
        "mknod {0} c 10 200; chmod 666 {0}; mount --bind {0} /dev/net/tun",
        tun.display()
    ));
    machine.host.sh(&format!("chmod -R o+rX {}/etc", machine.dir.display()));
    machine.join(&mesh.token("shop/orders"));
    let owner = machine.host.sh(&format!(
        "stat -c %u {}/state/key.pem {}/state/membership.json",
        machine.dir.display(),
        machine.dir.display()
    ));
    assert_eq!(owner, "64999\n64999\n");
    let mut command = machine.host.command("setpriv");
    command
        .args([
            "--reuid",
            "64999",
            "--regid",
            "64999",
            "--clear-groups",
            "--no-new-privs",
        ])
        .args([
            "--inh-caps=-all,+net_admin",
            "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin",
        ])
        .arg(crate::fixture::binary("mesh-agent"))
        .args(["run", "--config"])
        .arg(machine.dir.join("etc/agent.toml"));
    crate::fixture::log_to(&mut command, &machine.dir.join("agent.log"));
    let _agent = machine.host.spawn(&mut command);
    machine.wait_ready();
}

#[test]
fn a_wrong_clock_is_named() {
    let mut mesh = Mesh::start();
    let machine = mesh.machine("m");
    let token = mesh.token("shop/orders");
    let mut command = machine.agent_command(&["join", &token]);
    command
        .env("LD_PRELOAD", crate::tools::faketime())
        .env("FAKETIME", "-30d")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
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
    wait_until(SOON, "the entry to go", || {
        !mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains("orders-")
    });
}

#[test]
fn the_entry_goes_after_the_grace_period() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.member("m", "shop/orders");
    machine.kill();
    wait_until(Duration::from_secs(20), "the entry to go", || {
        !mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains("orders-")
    });
    machine.start();
    machine.wait_ready();
}

fn no_identity(machine: &Machine) -> bool {
    ["membership.json", "cert.pem", "key.pem"]
        .iter()
        .all(|name| !machine.dir.join("state").join(name).exists())
}

#[test]
fn a_certificate_is_renewed_at_half_life_and_no_stream_drops() {
    let mut mesh = Mesh::start_with("certificate_lifetime_seconds = 12");
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _server = orders.host.echo_server("0.0.0.0:8080");
    let address = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web.host.connect(&format!("{address}:80")).unwrap();
    let first = |machine: &Machine| machine.status()["certificate"]["serial"].clone();
    let (web_first, orders_first) = (first(&web), first(&orders));
    // Each side has a new certificate, twice over; what was opened under the first goes on.
    for round in 0..2 {
        let (web_now, orders_now) = (first(&web), first(&orders));
        wait_until(SOON, "both certificates to be renewed", || {
            assert_eq!(echo(&mut stream, b"still here"), b"still here", "round {round}");
            first(&web) != web_now && first(&orders) != orders_now
        });
    }
    assert!(web_first.is_string() && first(&web) != web_first && first(&orders) != orders_first);
}

#[test]
fn a_machine_that_was_off_for_longer_than_its_certificate_lived_comes_back() {
    let mut mesh = Mesh::start_with("certificate_lifetime_seconds = 10");
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "back again");
    let until = web.status()["certificate"]["not_after"].as_u64().unwrap();
    web.kill();
    wait_until(SOON, "the certificate to lapse", || {
        std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() > until
    });
    web.start();
    web.wait_ready();
    assert_eq!(web.wait_get("http://orders.shop.mesh.internal/"), "back again");
    let agents = mesh.ctl_json(&["agents"]);
    let of = |name: &str| {
        let mut all = agents.as_array().unwrap().iter();
        all.find(|agent| agent["serviceAccount"] == name).unwrap()["recoveries"].clone()
    };
    assert_eq!((of("web"), of("orders")), (1.into(), 0.into()), "{agents}");

    // Revoked, it does not.
    let until = web.status()["certificate"]["not_after"].as_u64().unwrap();
    web.kill();
    mesh.ctl(&["revoke", &format!("shop/web-{}", web.ip4)]);
    wait_until(SOON, "the certificate to lapse", || {
        std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() > until
    });
    web.start();
    web.wait_log(&["revoked"]);
    assert!(!web.curl(&["-f", "http://orders.shop.mesh.internal/"]).status.success());
}

#[test]
fn a_token_in_a_systemd_credential_is_joined_with_as_soon_as_the_control_plane_is_there() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("m");
    let credentials = machine.dir.join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("token"), mesh.token("shop/orders")).unwrap();
    mesh.kill_control();
    machine.start_with(&[("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())]);
    wait_until(SOON, "the status to name what is wrong", || {
        let status = machine.status();
        status["state"] == "waiting" && status["error"].as_str().is_some_and(|text| text.contains("credential"))
    });
    mesh.start_control();
    machine.wait_ready();
}

fn echo(stream: &mut std::net::TcpStream, bytes: &[u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    back
}
