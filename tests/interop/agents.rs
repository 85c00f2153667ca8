//! An agent of ours and a ztunnel under one mesh-control, each way.

use std::io::{Read, Write};
use std::net::UdpSocket;

use mesh_lab::wait_until;

use crate::fixture::{Machine, Mesh, SOON};
use crate::issuer::Issuer;
use crate::tools::Tools as _;
use crate::traffic::{DENY_WEB, SERVICE, URL};
use crate::ztunnel::{Ztunnel, binary, entry};

/// A ztunnel for `account` of the shop.
pub fn ztunnel(mesh: &mut Mesh, issuer: &Issuer, account: &str) -> Ztunnel {
    let workload = format!("shop/{account}-1/{account}");
    let made = Ztunnel::new(mesh, &workload, &issuer.token(&format!("shop:{account}")));
    mesh.apply(&entry("shop", &format!("{account}-1"), account, &made.machine.ip4));
    made.start()
}

#[test]
fn a_ztunnel_calls_an_agent_until_policy_says_no() {
    if binary().is_none() {
        return;
    }
    let issuer = Issuer::new();
    let mut mesh = Mesh::start_with(&issuer.config());
    let orders = mesh.member("orders", "shop/orders");
    let _nginx = orders.nginx(8080, "answered by orders");
    let _echo = orders.host.echo_server("0.0.0.0:7000");
    mesh.apply(SERVICE);
    let web = ztunnel(&mut mesh, &issuer, "web");
    assert_eq!(web.machine.wait_get(URL), "answered by orders");
    orders.wait_log(&["access", "connection complete", "ns/shop/sa/web", "transport=\"hbone\""]);
    let mut open = web.machine.host.connect(&format!("{}:7000", orders.ip4)).unwrap();
    let mut ping = || {
        let mut byte = [0];
        open.write_all(b"x").and_then(|()| open.read_exact(&mut byte))
    };
    ping().unwrap();
    mesh.apply(DENY_WEB);
    wait_until(SOON, "the open connection to be cut", || ping().is_err());
    wait_until(SOON, "new connections to be refused", || {
        !web.machine.curl(&["-f", "--max-time", "3", URL]).status.success()
    });
    orders.wait_log(&["access", "shop/no-web"]);
    web.wait_log(&["http status: 401"]);
    mesh.ctl(&["delete", "authorizationpolicy", "no-web", "-n", "shop"]);
    assert_eq!(web.machine.wait_get(URL), "answered by orders");
}

#[test]
fn an_agent_calls_a_ztunnel_until_policy_says_no() {
    if binary().is_none() {
        return;
    }
    let issuer = Issuer::new();
    let mut mesh = Mesh::start_with(&issuer.config());
    let orders = ztunnel(&mut mesh, &issuer, "orders");
    let _nginx = orders.machine.nginx(8080, "answered by orders");
    mesh.apply(SERVICE);
    let web = mesh.member("web", "shop/web");
    let capture = mesh.sniff();
    assert_eq!(web.wait_get(URL), "answered by orders");
    assert!(
        !crate::fixture::saw(&capture.stop(), b"answered by orders"),
        "in plain on the wire"
    );
    orders.wait_log(&["connection complete", "ns/shop/sa/web", "direction=\"inbound\""]);
    wait_until(SOON, "the attempt over QUIC to be given up", || {
        web.status()["transport"]["peers"][0]["transport"] == "tcp"
    });
    mesh.apply(DENY_WEB);
    // One that was let in a moment before is cut; that fails, too, and is no 401.
    wait_until(SOON, "new connections to be refused", || {
        let failed = !web.curl(&["-f", "--max-time", "3", URL]).status.success();
        failed && web.log().contains("http status: 401")
    });
    mesh.ctl(&["delete", "authorizationpolicy", "no-web", "-n", "shop"]);
    assert_eq!(web.wait_get(URL), "answered by orders");
}

#[test]
fn udp_between_an_agent_and_a_ztunnel_is_plain_and_said_to_be() {
    if binary().is_none() {
        return;
    }
    let issuer = Issuer::new();
    let mut mesh = Mesh::start_with(&issuer.config());
    let orders = ztunnel(&mut mesh, &issuer, "orders");
    let web = mesh.member("web", "shop/web");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let (theirs, ours) = (
        orders.machine.host.udp_echo("0.0.0.0:8080"),
        web.host.udp_echo("0.0.0.0:5353"),
    );
    let ask = |from: &Machine, to: &str| {
        let socket = from.host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"question").unwrap();
        let mut answer = [0; 16];
        assert_eq!(socket.recv(&mut answer).unwrap(), 8, "{to}");
    };
    ask(&web, &format!("{vip}:80"));
    assert_eq!(web.status()["flows"]["udp_plain"], 1, "{}", web.status());
    ask(&orders.machine, &format!("{}:5353", web.ip4));
    drop((theirs, ours));
}
