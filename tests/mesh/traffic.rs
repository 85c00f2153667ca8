//! Bytes from application to application.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::fixture::{Mesh, SOON, saw, text};
use mesh_lab::wait_until;

use crate::tools::Tools as _;

#[test]
fn a_service_is_reached_by_name_encrypted() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "hello from orders, in plain words");

    let capture = mesh.sniff();
    assert_eq!(
        web.wait_get("http://orders.shop.mesh.internal/"),
        "hello from orders, in plain words"
    );
    assert_eq!(
        web.get("http://orders.example.com/"),
        "hello from orders, in plain words"
    );
    // The address itself, too.
    assert_eq!(
        web.get(&format!("http://{}:8080/", orders.ip4)),
        "hello from orders, in plain words"
    );
    let wire = capture.stop();
    assert!(!saw(&wire, b"plain words"), "the answer was seen on the wire");
    assert!(!saw(&wire, b"GET / HTTP"), "the request was seen on the wire");
    assert!(wire.len() > 1000, "the capture saw nothing at all");
}

#[test]
fn ipv6_end_to_end() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "six");
    // The service has an IPv6 VIP, too; the far side is reached by what it has.
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    assert_eq!(
        String::from_utf8(web.curl(&["-6", "-f", "http://orders.shop.mesh.internal/"]).stdout).unwrap(),
        "six"
    );
}

#[test]
fn a_machine_whose_address_is_ipv6_is_a_full_member() {
    let mut mesh = Mesh::start_with("");
    mesh.apply(&crate::fixture::GROUPS.replace(
        "metadata: {name: orders, namespace: shop}\nspec:\n  metadata",
        "metadata: {name: orders, namespace: shop, annotations: {mesh.internal/allowed-cidrs: 'fd77::/64'}}\nspec:\n  metadata",
    ));
    let mut orders = mesh.machine("orders");
    let output = orders
        .agent_command(&["join", "--address", &orders.ip6, &mesh.token("shop/orders")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    orders.start();
    orders.wait_ready();
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "six all the way");
    assert_eq!(web.wait_get("http://orders.shop.mesh.internal/"), "six all the way");
    assert_eq!(web.get(&format!("http://[{}]:8080/", orders.ip6)), "six all the way");
}

#[test]
fn a_large_file_arrives_whole() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _nginx = orders.nginx(8080, "x");
    let size = 64 << 20;
    orders.host.sh(&format!(
        "head -c {size} /dev/urandom > {}/large",
        orders.www(8080).display()
    ));
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    let sent = orders
        .host
        .sh(&format!("sha256sum < {}/large", orders.www(8080).display()));
    let received = web
        .host
        .sh("curl -sSf --max-time 60 http://orders.shop.mesh.internal/large | sha256sum");
    assert_eq!(sent, received);
}

#[test]
fn a_refused_port_is_refused_and_a_dead_machine_is_not() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let refused = web
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:9999").parse().unwrap(), SOON));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    web.wait_log(&["access", "refused"]);

    // A peer that swallows everything: no answer within the time limit, and the application is told.
    orders
        .host
        .nft("table inet hole { chain c { type filter hook input priority -300; udp dport 15008 drop; }; }");
    let mut orders = orders;
    orders.kill();
    let started = Instant::now();
    let lost = web
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON));
    assert!(lost.is_err());
    let line = web.wait_log(&[
        "access",
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008",
        "orders.example.com",
        "UDP port 15008",
    ]);
    assert!(!line.contains("duration=\"0ms\""), "{line}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn half_close_travels_both_ways() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let listener = orders.host.enter(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let server = std::thread::spawn(move || {
        // First connection: the client finishes first, and still gets an answer.
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        stream.write_all(&request).unwrap();
        drop(stream);
        // Second: the server finishes first, and still reads.
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"done").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest
    });
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let connect = || {
        let stream = TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    };
    web.host.enter(|| {
        let mut first = connect();
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        first.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"question");

        let mut second = connect();
        let mut answer = Vec::new();
        second.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"done");
        second.write_all(b"later").unwrap();
    });
    assert_eq!(server.join().unwrap(), b"later");
}

#[test]
fn two_thousand_flows_at_once() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let count = 2000;
    web.host.enter(|| {
        let mut streams = Vec::new();
        for number in 0..count {
            let stream = TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON);
            let mut stream = stream.unwrap_or_else(|error| panic!("flow {number}: {error}"));
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.write_all(format!("flow {number:06}").as_bytes()).unwrap();
            streams.push(stream);
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 11];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, format!("flow {number:06}").as_bytes());
        }
        assert!(
            web.status()["flows"]["live"].as_u64().unwrap() >= count,
            "{}",
            web.status()
        );
    });
    wait_until(SOON, "the flows to be forgotten", || web.status()["flows"]["live"] == 0);
    wait_until(SOON, "the flows to be forgotten on the other side", || {
        orders.status()["flows"]["live"] == 0
    });
    drop(echo);
}

#[test]
fn a_peer_killed_in_mid_transfer_ends_the_flow() {
    let mut mesh = Mesh::start();
    let mut orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let nginx = orders.nginx(8080, "x");
    orders
        .host
        .sh(&format!("truncate -s 20G {}/endless", orders.www(8080).display()));
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON).unwrap());
    stream.write_all(b"GET /endless HTTP/1.0\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    stream.read_exact(&mut buffer).unwrap();
    orders.kill();
    let started = Instant::now();
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "took {:?}",
        started.elapsed()
    );
    web.wait_log(&["access", "tunnel lost"]);

    orders.start();
    orders.wait_ready();
    assert_eq!(web.wait_get("http://orders.shop.mesh.internal/"), "x");
    drop(nginx);
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let mut mesh = Mesh::start();
    let (broken, working) = (
        mesh.member("broken", "shop/orders"),
        mesh.member("working", "shop/orders"),
    );
    let web = mesh.member("web", "shop/web");
    let _nginx = working.nginx(8080, "from the one that works");
    // Both are endpoints; the one without a server refuses, and nothing was sent yet, so that the other one is tried.
    wait_until(SOON, "both endpoints to be known", || {
        let status = web.status();
        status["world"]["workloads"].as_u64() >= Some(3)
    });
    let _ = web.wait_get("http://orders.shop.mesh.internal/");
    for _ in 0..20 {
        assert_eq!(web.get("http://orders.shop.mesh.internal/"), "from the one that works");
    }
    assert!(broken.log().contains("refused"), "the broken endpoint was never tried");
}

#[test]
fn a_machine_reaches_its_own_service() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let _nginx = orders.nginx(8080, "myself");
    assert_eq!(orders.wait_get("http://orders.shop.mesh.internal/"), "myself");
}
