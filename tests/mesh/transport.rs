//! QUIC or TCP: what carries new flows when UDP does not get through.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_lab::wait_until;

use crate::fixture::{Machine, Mesh, SOON};
use crate::tools::Tools as _;

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

/// Lets this much of the UDP that comes to a machine pass, and drops the rest.
fn throttle_udp(machine: &Machine) {
    machine.host.nft(
        "table inet throttle { chain c { type filter hook input priority -300; udp dport 15008 limit rate over 200 kbytes/second drop; }; }",
    );
}

/// One long flow from `web` to port 9999 of `orders` that carries as much as it can, `down` or up; it ends with the test.
fn long_flow(web: &Machine, orders: &Machine, down: bool) {
    let listener = orders.host.enter(|| TcpListener::bind("0.0.0.0:9999").unwrap());
    let client = web.host.connect(&format!("{}:9999", orders.ip4)).unwrap();
    let (server, _) = listener.accept().unwrap();
    let (mut from, mut to) = if down { (server, client) } else { (client, server) };
    let carried = Arc::new(AtomicUsize::new(0));
    let counted = carried.clone();
    std::thread::spawn(move || while from.write_all(&[7; 64 << 10]).is_ok() {});
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(length @ 1..) = to.read(&mut buffer) {
            counted.fetch_add(length, Ordering::Relaxed);
        }
    });
    wait_until(SOON, "the long flow to flow", || {
        carried.load(Ordering::Relaxed) > 4 << 20
    });
}

/// `down`: what is throttled goes to the machine that dials, so that only the other one learns of losses.
fn throttled_under_load(down: bool) {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "answered by orders");
    std::fs::write(orders.www(8080).join("big"), vec![7; 8 << 20]).unwrap();
    web.wait_get(URL);
    long_flow(&web, &orders, down);
    assert_eq!(peer(&web), ("quic".into(), "QUIC works".into()));
    let throttled = if down { &web } else { &orders };
    throttle_udp(throttled);
    let since = Instant::now();
    wait_until(Duration::from_secs(10), "new flows to go over TCP", || {
        assert!(gets(&web), "a new flow, {:?} after UDP was throttled", since.elapsed());
        peer(&web) == ("tcp".into(), "QUIC loses too many packets".into())
    });
    // At what UDP may carry this takes 40 s.
    let big = web.curl(&["-f", "-o", "/dev/null", "--max-time", "10", &format!("{URL}big")]);
    assert!(big.status.success(), "over TCP: {}", crate::fixture::text(&big));
    throttled.host.nft("delete table inet throttle");
    wait_until(SOON, "QUIC to be taken up again", || {
        assert!(gets(&web), "while QUIC is probed");
        peer(&web) == ("quic".into(), "QUIC works".into())
    });
}

#[test]
fn udp_that_is_throttled_towards_the_peer_costs_no_new_flow() {
    throttled_under_load(false);
}

#[test]
fn udp_that_is_throttled_on_the_way_back_costs_no_new_flow() {
    throttled_under_load(true);
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
