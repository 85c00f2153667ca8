//! What the agent does to its machine: only what it must, and nothing is left.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::fixture::{Mesh, SOON, saw, text};
use mesh_lab::wait_until;

use crate::tools::Tools as _;

#[test]
fn nothing_is_left_after_stop_leave_or_cleanup() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("m");
    let before = machine.host.kernel_state();
    machine.join(&mesh.token("shop/web"));
    machine.start();
    machine.wait_ready();
    assert_ne!(machine.host.kernel_state(), before);
    machine.stop();
    assert_eq!(
        machine.host.kernel_state(),
        before,
        "after a clean stop\n{}",
        machine.log()
    );

    machine.start();
    machine.wait_ready();
    machine.kill();
    assert_ne!(machine.host.kernel_state(), before, "after a crash it stays closed");
    let output = machine.try_agent(&["cleanup"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(machine.host.kernel_state(), before, "after cleanup");

    machine.start();
    machine.wait_ready();
    assert!(machine.try_agent(&["leave"]).status.success());
    wait_until(SOON, "the kernel to be clean after leave", || {
        machine.host.kernel_state() == before
    });
}

#[test]
fn a_crash_under_load_leaks_nothing_and_a_restart_recovers() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "the marker of this test");
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    let capture = mesh.sniff();
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let load = web.host.spawn(web.host.command("sh").args(["-c", &format!(
        "while :; do curl -s -o /dev/null --max-time 1 http://{vip}/ ; curl -s -o /dev/null --max-time 1 http://{}:8080/; done", orders.ip4
    )]));
    let served = |machine: &crate::fixture::Machine| machine.log().matches("INFO access: connection complete").count();
    wait_until(SOON, "load", || served(&web) > 20);
    web.kill();
    for _ in 0..20 {
        let output = web.curl(&["--max-time", "1", &format!("http://{}:8080/", orders.ip4)]);
        assert!(!output.status.success(), "reached in plain after a crash");
    }
    let before = served(&web);
    web.start();
    web.wait_ready();
    wait_until(SOON, "load after the restart", || served(&web) > before + 20);
    drop(load);
    let wire = capture.stop();
    assert!(!saw(&wire, b"the marker of this test"));
    assert!(!saw(&wire, b"GET / HTTP"));
}

#[test]
fn what_was_captured_stays_so_after_a_crash_even_without_a_saved_world() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "the marker of this test");
    let direct = format!("http://{}:8080/", orders.ip4);
    assert_eq!(web.wait_get(&direct), "the marker of this test");
    let capture = mesh.sniff();
    web.kill();
    mesh.kill_control();
    // As if the crash had come before the world was saved.
    let _ = std::fs::remove_file(web.dir.join("state/world.bin"));
    web.start();
    wait_until(SOON, "the daemon to run", || web.status()["state"] == "member");
    assert!(!web.curl(&["--max-time", "2", &direct]).status.success());
    web.wait_log(&["connection failed", "was not heard since the start"]);
    mesh.start_control();
    assert_eq!(web.wait_get(&direct), "the marker of this test");
    let wire = capture.stop();
    assert!(!saw(&wire, b"the marker of this test"));
    assert!(!saw(&wire, b"GET / HTTP"));
}

#[test]
fn connections_opened_towards_us_stay_out() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    // Not a member, but its address is in the world as one that speaks HBONE: so it is captured.
    let outsider = mesh.machine("outsider");
    mesh.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: outsider, namespace: other, labels: {{networking.istio.io/tunnel: http}}}}\nspec: {{address: {}, serviceAccount: guest}}\n",
        outsider.ip4
    ));
    wait_until(SOON, "the outsider to be captured", || {
        orders.host.sh("ip route show table 28005").contains(&outsider.ip4)
    });
    let _nginx = orders.nginx(8080, "answered directly");
    assert_eq!(
        outsider.get(&format!("http://{}:8080/", orders.ip4)),
        "answered directly"
    );
    let closed = outsider
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{}:81", orders.ip4).parse().unwrap(), SOON));
    assert_eq!(closed.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn forwarded_traffic_does_not_borrow_our_identity() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let container = mesh_lab::Host::new("container");
    mesh_lab::cable(
        (&web.host, "br-c", "172.30.0.1/24"),
        (&container, "eth0", "172.30.0.2/24"),
    );
    container.ip("route add default via 172.30.0.1");
    web.host.sh("sysctl -qw net.ipv4.ip_forward=1");
    let inside = container
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), std::time::Duration::from_secs(3)));
    assert!(inside.is_err(), "a container's traffic was carried as ours");
    let outside = web
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON));
    let mut outside = outside.unwrap();
    outside.write_all(b"x").unwrap();
    outside.set_read_timeout(Some(SOON)).unwrap();
    outside.read_exact(&mut [0]).unwrap();
}
