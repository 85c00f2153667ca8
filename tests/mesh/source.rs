//! Whose address the application sees: the caller's, where that can be had, and the machine's own where not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::fixture::{GROUPS, Machine, Mesh, SOON, saw, text};
use crate::tools::Tools as _;
use mesh_lab::{Host, cable, wait_until};

/// A service that tells each connection its peer's address in a line, then sends back what comes, and finishes last.
fn teller(host: &Host, address: &str) {
    let listener = host.enter(|| TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            std::thread::spawn(move || {
                let mut copy = stream.try_clone()?;
                writeln!(stream, "{peer}")?;
                std::io::copy(&mut copy, &mut stream)?;
                stream.shutdown(Shutdown::Write)
            });
        }
    });
}

/// The peer that the service at `to` sees.
fn told(from: &Host, to: &str) -> SocketAddr {
    let mut line = String::new();
    BufReader::new(from.connect(to).unwrap()).read_line(&mut line).unwrap();
    line.trim().parse().unwrap_or_else(|_| panic!("told {line:?}"))
}

fn wait_state(machine: &Machine, state: &str) {
    wait_until(SOON, &format!("callers to be {state} at {}", machine.name), || {
        machine.status()["inbound"]["preserve_source"] == state
    });
}

/// A caller, and a machine whose service tells, with more lines in its configuration; the service's address.
fn pair(mesh: &mut Mesh, config: &str) -> (Machine, Machine, String) {
    let mut orders = mesh.machine("orders");
    orders.configure(config);
    orders.join(&mesh.token("shop/orders"));
    orders.start();
    orders.wait_ready();
    let web = mesh.member("web", "shop/web");
    teller(&orders.host, "[::]:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    (orders, web, format!("{vip}:80"))
}

#[test]
fn the_application_sees_its_caller_through_every_filter_of_ours_and_the_kernels() {
    let mut mesh = Mesh::start();
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec:\n  mtls: {mode: STRICT}\n",
    );
    let mut orders = mesh.machine("orders");
    orders
        .host
        .sh("for f in all default; do echo 1 > /proc/sys/net/ipv4/conf/$f/rp_filter; done");
    orders.join(&mesh.token("shop/orders"));
    orders.start();
    orders.wait_ready();
    let web = mesh.member("web", "shop/web");
    teller(&orders.host, "0.0.0.0:8080");
    let _ssh = orders.host.echo_server("0.0.0.0:22");
    wait_state(&orders, "on");
    let to = format!("{}:80", web.host.resolve("orders.shop.mesh.internal"));
    let seen = told(&web.host, &to);
    assert_eq!(seen.ip().to_string(), web.ip4);
    assert!(seen.port() >= 1024);
    assert_ne!(told(&web.host, &to), seen, "a tuple is not used twice");
    // Who is no member comes in by the wire as ever: to ssh, and not to what is STRICT.
    let outsider = mesh.machine("outsider");
    let mut plain = outsider.host.connect(&format!("{}:22", orders.ip4)).unwrap();
    plain.write_all(b"plain").unwrap();
    plain.read_exact(&mut [0; 5]).unwrap();
    assert!(outsider.host.connect(&format!("{}:8080", orders.ip4)).is_err());
    // And the machine's own applications reach it by both ways.
    assert_eq!(
        told(&orders.host, &format!("{}:8080", orders.ip4)).ip().to_string(),
        orders.ip4
    );
    assert!(told(&orders.host, &to).ip().is_ipv4());
}

#[test]
fn ipv6_callers_are_seen_too() {
    let mut mesh = Mesh::start();
    let mut groups = GROUPS.to_owned();
    for name in ["web", "orders"] {
        groups = groups.replace(
            &format!("metadata: {{name: {name}, namespace: shop}}\nspec:\n  metadata"),
            &format!("metadata: {{name: {name}, namespace: shop, annotations: {{mesh.internal/allowed-cidrs: 'fd77::/64'}}}}\nspec:\n  metadata"),
        );
    }
    mesh.apply(&groups);
    let mut join = |name: &str, group: &str| {
        let token = mesh.token(group);
        let mut machine = mesh.machine(name);
        let output = machine
            .agent_command(&["join", "--address", &machine.ip6, &token])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        machine.start();
        machine.wait_ready();
        machine
    };
    let (orders, web) = (join("orders", "shop/orders"), join("web", "shop/web"));
    teller(&orders.host, "[::]:8080");
    wait_state(&orders, "on");
    let to = format!("[{}]:8080", orders.ip6);
    wait_until(SOON, "the address to be captured", || {
        web.host
            .ip(&format!("-6 route get {} ipproto tcp", orders.ip6))
            .contains("mesh0")
    });
    assert_eq!(told(&web.host, &to).ip().to_string(), web.ip6);
}

#[test]
fn without_it_the_application_sees_its_own_machine() {
    let mut mesh = Mesh::start();
    let (orders, web, to) = pair(&mut mesh, "[inbound]\npreserve_source = false");
    wait_state(&orders, "off");
    let seen = told(&web.host, &to).ip().to_canonical().to_string();
    assert_eq!(seen, orders.ip4);
}

#[test]
fn a_filter_that_keeps_the_device_out_is_told_and_costs_no_connection() {
    let mut mesh = Mesh::start();
    let mut orders = mesh.machine("orders");
    orders.host.nft("table inet theirs { chain c { type filter hook input priority 0; policy drop; ct state established accept; iifname lo accept; meta l4proto { tcp, udp } th dport 15008 accept; meta l4proto ipv6-icmp accept; }; }");
    orders.join(&mesh.token("shop/orders"));
    orders.start();
    orders.wait_ready();
    let web = mesh.member("web", "shop/web");
    teller(&orders.host, "0.0.0.0:8080");
    wait_until(SOON, "the trial to have failed", || {
        let status = orders.status();
        status["inbound"]["preserve_source"] == "unavailable" && status["inbound"]["unavailable"][0].is_object()
    });
    let shown = orders.try_agent(&["status"]);
    assert!(
        text(&shown).contains("must accept what comes by mesh0"),
        "{}",
        text(&shown)
    );
    let to = format!("{}:80", web.host.resolve("orders.shop.mesh.internal"));
    assert_eq!(told(&web.host, &to).ip().to_string(), orders.ip4);
}

#[test]
fn bytes_ends_and_refusals_travel_as_over_a_socket() {
    let mut mesh = Mesh::start();
    let (orders, web, to) = pair(&mut mesh, "");
    wait_state(&orders, "on");
    let bytes: Vec<u8> = (0..20_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let stream = web.host.connect(&to).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(peer(&line).to_string(), web.ip4);
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());

    let closed = to.replace(":80", ":9999");
    assert_eq!(
        web.host.connect(&closed).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    orders.wait_log(&["access", "connection refused"]);
    wait_until(SOON, "the flows to be forgotten", || {
        orders.status()["flows"]["live"] == 0
    });

    // The service resets, and the client sees that.
    let listener = orders.host.enter(|| TcpListener::bind("0.0.0.0:8081").unwrap());
    let mut client = web.host.connect(&format!("{}:8081", orders.ip4)).unwrap();
    let (served, seen) = listener.accept().unwrap();
    assert_eq!(seen.ip().to_string(), web.ip4);
    client.write_all(b"unread").unwrap();
    let mut peeked = [0; 6];
    wait_until(SOON, "the bytes to arrive", || {
        served.peek(&mut peeked).unwrap_or(0) == 6
    });
    drop(served);
    assert_eq!(
        client.read(&mut [0]).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

fn peer(line: &str) -> IpAddr {
    let address: SocketAddr = line.trim().parse().unwrap();
    address.ip().to_canonical()
}

#[test]
fn when_the_agent_dies_nothing_of_its_flows_leaves_in_plain_and_cleanup_removes_all() {
    let mut mesh = Mesh::start();
    let mut orders = mesh.machine("orders");
    let before = orders.host.kernel_state();
    orders.join(&mesh.token("shop/orders"));
    orders.start();
    orders.wait_ready();
    let web = mesh.member("web", "shop/web");
    wait_state(&orders, "on");
    let listener = orders.host.enter(|| TcpListener::bind("0.0.0.0:8081").unwrap());
    let accept = || -> (TcpStream, TcpStream) {
        let mut client = web.host.connect(&format!("{}:8081", orders.ip4)).unwrap();
        let (mut served, seen) = listener.accept().unwrap();
        assert_eq!(seen.ip().to_string(), web.ip4);
        client.write_all(b"x").unwrap();
        served.read_exact(&mut [0]).unwrap();
        (client, served)
    };
    let (_first, mut captured) = accept();
    let (_second, mut released) = accept();
    let wire = mesh.sniff();
    orders.kill();
    captured.write_all(b"never in plain words").unwrap();
    // Even where the caller's address is not captured any more.
    orders.host.ip("route flush table 28005");
    released.write_all(b"never in plain words").unwrap();
    let tried_again = || {
        let sockets = orders.host.sh("ss -tni state established sport = :8081");
        sockets.matches("backoff:").count() == 2
    };
    wait_until(SOON, "the kernel to have tried again, or to have leaked", || {
        saw(&wire.bytes(), b"plain words") || tried_again()
    });
    assert!(!saw(&wire.stop(), b"plain words"), "an answer left in plain");

    // The next agent does not know these connections, and says so.
    orders.start();
    orders.wait_ready();
    captured.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(
        captured.read(&mut [0]).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    orders.kill();
    let output = orders.try_agent(&["cleanup"]);
    assert!(output.status.success(), "{}", text(&output));
    wait_until(SOON, "the device to vanish", || {
        !orders.host.ip("link").contains("mesh0")
    });
    assert_eq!(orders.host.kernel_state(), before);
}

#[test]
fn a_user_with_one_capability_is_enough() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("orders");
    machine.join(&mesh.token("shop/orders"));
    let web = mesh.member("web", "shop/web");
    machine.start_as_user();
    machine.wait_ready();
    wait_state(&machine, "on");
    teller(&machine.host, "0.0.0.0:8080");
    let to = format!("{}:80", web.host.resolve("orders.shop.mesh.internal"));
    assert_eq!(told(&web.host, &to).ip().to_string(), web.ip4);
}

#[test]
fn a_connection_that_conntrack_forgot_is_not_taken_for_one_from_before() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    wait_state(&orders, "on");
    let known = || {
        let entries = orders.host.sh("cat /proc/net/nf_conntrack");
        entries.lines().filter(|line| line.contains("=8081 ")).count()
    };
    let listener = orders.host.enter(|| TcpListener::bind("0.0.0.0:8081").unwrap());
    let mut client = web.host.connect(&format!("{}:8081", orders.ip4)).unwrap();
    let (mut served, seen) = listener.accept().unwrap();
    assert_eq!((seen.ip().to_string(), known()), (web.ip4, 1));
    orders
        .host
        .sh("echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established");
    client.write_all(b"question").unwrap();
    served.read_exact(&mut [0; 8]).unwrap();
    wait_until(SOON, "conntrack to forget", || known() == 0);
    let wire = mesh.sniff();
    served.write_all(b"answer in plain words").unwrap();
    let mut answer = [0; 21];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer in plain words");
    assert!(!saw(&wire.stop(), b"plain words"), "the answer left in plain");
}

#[test]
fn a_container_behind_a_published_port_sees_its_caller() {
    let mut mesh = Mesh::start();
    let mut orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    wait_state(&orders, "on");
    // As a container engine does it.
    let inner = Host::new("container");
    cable(
        (&orders.host, "docker0", "172.30.0.1/24"),
        (&inner, "eth0", "172.30.0.2/24"),
    );
    inner.ip("route add default via 172.30.0.1");
    orders.host.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    orders.host.nft(
        "table ip docker {
            chain published { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 8080 dnat to 172.30.0.2:80; }
            chain outgoing { type nat hook postrouting priority srcnat; ip saddr 172.30.0.0/24 oifname != \"docker0\" masquerade; }
        }",
    );
    teller(&inner, "0.0.0.0:80");
    let to = format!("{}:80", web.host.resolve("orders.shop.mesh.internal"));
    assert_eq!(told(&web.host, &to).ip().to_string(), web.ip4);

    let listener = inner.enter(|| {
        let listener = TcpListener::bind("0.0.0.0:81").unwrap();
        orders
            .host
            .nft("add rule ip docker published fib daddr type local tcp dport 8081 dnat to 172.30.0.2:81");
        listener
    });
    let _client = web.host.connect(&format!("{}:8081", orders.ip4)).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    orders.kill();
    let wire = mesh.sniff();
    served.write_all(b"never in plain words").unwrap();
    let tried_again = || inner.sh("ss -tni state established sport = :81").contains("backoff:2");
    wait_until(SOON, "the kernel to have tried again, or to have leaked", || {
        saw(&wire.bytes(), b"plain words") || tried_again()
    });
    assert!(!saw(&wire.stop(), b"plain words"), "an answer left in plain");
}
