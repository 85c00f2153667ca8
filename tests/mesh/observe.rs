//! What an operator sees.

use crate::fixture::{Mesh, SOON};
use mesh_lab::wait_until;

use crate::tools::Tools as _;

#[test]
fn flows_are_counted_and_logged_with_both_identities() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "counted");
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    for machine in [&orders, &web] {
        let line = machine.wait_log(&["INFO access: connection complete"]);
        for part in [
            "spiffe://mesh.internal/ns/shop/sa/web",
            "spiffe://mesh.internal/ns/shop/sa/orders",
            "bytes_sent",
            "bytes_recv",
            "duration",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    // Two names share the address; both sides name the same of them.
    for machine in [&orders, &web] {
        machine.wait_log(&["INFO access: connection complete", "dst.service=\"orders.example.com\""]);
    }
    for (machine, reporter) in [(&web, "source"), (&orders, "destination")] {
        let metrics = machine.get("http://127.0.0.1:15020/stats/prometheus");
        for name in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_sent_bytes_total",
            "istio_tcp_received_bytes_total",
        ] {
            let series = metrics
                .lines()
                .find(|line| line.starts_with(name) && line.contains(&format!("reporter=\"{reporter}\"")));
            let series = series.unwrap_or_else(|| panic!("{name} in {metrics}"));
            for label in [
                "source_principal=\"spiffe://mesh.internal/ns/shop/sa/web\"",
                "destination_principal=\"spiffe://mesh.internal/ns/shop/sa/orders\"",
                "connection_security_policy=\"mutual_tls\"",
                "source_workload_namespace=\"shop\"",
                "request_protocol=\"tcp\"",
                "response_flags=\"-\"",
            ] {
                assert!(series.contains(label), "{label} in {series}");
            }
        }
    }
}

#[test]
fn bytes_are_counted_while_a_flow_lives() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _server = orders.host.echo_server("0.0.0.0:8080");
    let address = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web.host.connect(&format!("{address}:80")).unwrap();
    std::io::Write::write_all(&mut stream, &[7; 1000]).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 1000]).unwrap();
    for machine in [&web, &orders] {
        let sum = |name: &str| -> u64 {
            let metrics = machine.get("http://127.0.0.1:15020/metrics");
            let series = metrics.lines().filter(|line| line.starts_with(name));
            series
                .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
                .sum()
        };
        wait_until(SOON, "the bytes to be counted", || {
            sum("istio_tcp_sent_bytes_total") == 1000 && sum("istio_tcp_received_bytes_total") == 1000
        });
        assert_eq!(sum("istio_tcp_connections_closed_total"), 0, "it lives");
    }
    // Counted once: the end adds nothing.
    drop(stream);
    for machine in [&web, &orders] {
        machine.wait_log(&["INFO access: connection complete", "bytes_sent=1000"]);
        let metrics = machine.get("http://127.0.0.1:15020/metrics");
        let sent = metrics
            .lines()
            .find(|line| line.starts_with("istio_tcp_sent_bytes_total"))
            .unwrap();
        assert!(sent.ends_with(" 1000"), "{sent}");
    }
}

#[test]
fn readiness_and_config_dump() {
    let mut mesh = Mesh::start();
    let machine = mesh.member("m", "shop/orders");
    assert!(
        machine
            .curl(&["-f", "http://127.0.0.1:15021/healthz/ready"])
            .status
            .success()
    );
    let socket = machine.dir.join("run/admin.sock");
    let socket = socket.to_str().unwrap();
    let dump = machine.curl(&["-f", "--unix-socket", socket, "http://agent/config_dump"]);
    let dump: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
    assert!(
        dump["workloads"]
            .as_array()
            .unwrap()
            .iter()
            .any(|w| w["name"].as_str().unwrap().starts_with("orders-"))
    );
    assert!(
        dump["services"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["hostname"] == "orders.shop.mesh.internal")
    );
    assert_eq!(
        dump["certificates"][0]["identity"],
        "spiffe://mesh.internal/ns/shop/sa/orders"
    );
    assert!(!dump.to_string().contains("PRIVATE KEY"));
    let states = dump["workloadState"].as_object().unwrap();
    let (uid, state) = states.iter().next().unwrap();
    assert!(
        dump["workloads"]
            .as_array()
            .unwrap()
            .iter()
            .any(|w| w["uid"] == uid.as_str())
    );
    assert_eq!(
        (&state["state"], &state["info"]["serviceAccount"]),
        (&"Up".into(), &"orders".into())
    );
    // Neither group nor root: nothing.
    let mut stranger = machine.host.command("setpriv");
    stranger.args([
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "curl",
        "-sSf",
        "--unix-socket",
        socket,
        "http://agent/config_dump",
    ]);
    assert!(!stranger.output().unwrap().status.success());
}

#[test]
fn an_agent_that_waits_is_not_ready_for_traffic_but_runs() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("m");
    machine.start();
    wait_until(SOON, "the agent to wait", || machine.status()["state"] == "waiting");
    let output = machine.try_agent(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("waiting to be joined"));
}
