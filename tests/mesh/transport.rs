//! QUIC or TCP: what carries new flows when UDP does not get through.

use mesh_lab::wait_until;

use crate::fixture::{Machine, Mesh, SOON};

const URL: &str = "http://orders.shop.mesh.internal/";

/// What the status says of the one peer: its transport, and why.
fn peer(machine: &Machine) -> (String, String) {
    let status = machine.status();
    let peer = &status["transport"]["peers"][0];
    let text = |name: &str| peer[name].as_str().unwrap_or_default().to_owned();
    (text("transport"), text("why"))
}

fn gets(machine: &Machine) -> bool {
    machine.curl(&["-f", "--max-time", "5", URL]).status.success()
}

fn block_udp(machine: &Machine) {
    machine
        .host
        .nft("table inet hole { chain c { type filter hook input priority -300; udp dport 15008 drop; udp sport 15008 drop; }; }");
}

#[test]
fn udp_that_dies_under_load_costs_no_new_flow() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "answered by orders");
    web.wait_get(URL);
    assert_eq!(peer(&web), ("quic".into(), "QUIC works".into()));
    for _ in 0..20 {
        assert!(gets(&web), "before");
    }
    block_udp(&orders);
    // Many at once: that they all wait in vain is one failure of QUIC and not twenty, or it would not be probed for long.
    let all = web.host.try_sh(&format!(
        "seq 20 | xargs -P 20 -I @ curl -s -f -o /dev/null --max-time 5 {URL}"
    ));
    assert!(all.is_ok(), "new flows after UDP died: {all:?}");
    let (transport, why) = peer(&web);
    assert_eq!(transport, "tcp", "{why}");
    orders.host.nft("delete table inet hole");
    // Probed beside what goes over TCP, after a pause.
    wait_until(SOON, "QUIC to be taken up again", || {
        assert!(gets(&web), "while QUIC is probed");
        peer(&web).0 == "quic"
    });
}

#[test]
fn where_udp_is_blocked_the_first_flow_goes_over_tcp() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    block_udp(&orders);
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "answered by orders");
    web.wait_get(URL);
    wait_until(SOON, "the attempt over QUIC to be given up", || {
        peer(&web) == ("tcp".into(), "UDP got no answer".into())
    });
    assert!(gets(&web));
    web.wait_log(&["access", "connection complete", "transport=\"hbone\""]);
}

#[test]
fn an_operator_may_decide() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let _nginx = orders.nginx(8080, "answered by orders");
    let mut web = mesh.machine("web");
    web.configure("[tunnel]\ntransport = \"tcp\"\n");
    web.join(&mesh.token("shop/web"));
    web.start();
    web.wait_ready();
    web.wait_get(URL);
    assert_eq!(web.status()["transport"]["preference"], "tcp");
    web.wait_log(&["access", "connection complete", "transport=\"hbone\""]);
    assert!(!web.log().contains("transport=\"hbone3\""));
}
