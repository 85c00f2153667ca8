//! UDP from application to application.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use mesh_lab::wait_until;

use crate::fixture::{Machine, Mesh, SOON, saw};
use crate::tools::{Server, Tools as _};

const DENY_WEB: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-web, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  action: DENY
  rules:
  - from: [{source: {principals: [mesh.internal/ns/shop/sa/web]}}]
"#;

/// A socket of an application on this machine, connected.
fn socket(machine: &Machine, to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    machine.host.enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    })
}

/// Sends back what comes.
fn echo(machine: &Machine, address: &str) -> Server {
    machine.host.udp_echo(address)
}

fn ask(socket: &UdpSocket, payload: &[u8]) -> std::io::Result<Vec<u8>> {
    socket.send(payload)?;
    let mut answer = vec![0; 65_535];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// What the application hears in place of an answer.
fn refused(socket: &UdpSocket) -> std::io::ErrorKind {
    ask(socket, b"anybody?").expect_err("an answer").kind()
}

fn metric(machine: &Machine, name: &str) -> u64 {
    let metrics = machine.get("http://127.0.0.1:15020/metrics");
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .map(|value| value as u64)
        .sum()
}

#[test]
fn datagrams_of_every_size_are_carried_encrypted() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = echo(&orders, "[::]:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let six = web.host.resolve6("orders.shop.mesh.internal");
    let capture = mesh.sniff();
    for to in [
        format!("{vip}:80"),
        format!("{}:8080", orders.ip4),
        format!("[{six}]:80"),
    ] {
        let socket = socket(&web, &to);
        for length in [0, 1, 200, 1200, 1400, 9000, 64_000, 100] {
            let payload = b"in plain words ".iter().copied().cycle().take(length);
            let payload: Vec<u8> = payload.collect();
            assert!(
                ask(&socket, &payload).unwrap() == payload,
                "{length} bytes to {to}: another answer"
            );
        }
    }
    let wire = capture.stop();
    assert!(!saw(&wire, b"plain words"), "a datagram was seen on the wire");
    assert!(wire.len() > 60_000, "the capture saw nothing at all");
    assert_eq!(web.status()["flows"]["udp"], 3, "{}", web.status());
    assert_eq!(metric(&web, "mesh_agent_udp_flows_opened_total"), 3);
    assert_eq!(metric(&orders, "mesh_agent_udp_flows_opened_total"), 3);
    assert_eq!(metric(&web, "mesh_agent_udp_unencrypted_flows_total"), 0);
}

#[test]
fn order_is_kept() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = echo(&orders, "0.0.0.0:8080");
    // A small one behind a large one takes the large one's way.
    for lengths in [[16, 16], [20_000, 20_000], [20_000, 16]] {
        let socket = socket(&web, &format!("{}:8080", orders.ip4));
        ask(&socket, b"ready").unwrap();
        let mut next = 0_u32;
        for burst in 0..50_u32 {
            for number in burst * 4..burst * 4 + 4 {
                let mut payload = vec![7; lengths[number as usize % 2]];
                payload[..4].copy_from_slice(&number.to_be_bytes());
                socket.send(&payload).unwrap();
            }
            let mut answer = vec![0; 20_000];
            for _ in 0..4 {
                assert_eq!(socket.recv(&mut answer).unwrap(), lengths[next as usize % 2]);
                let number = u32::from_be_bytes(*answer.first_chunk().unwrap());
                assert_eq!(number, next, "of {lengths:?} bytes");
                next += 1;
            }
        }
    }
}

#[test]
fn a_closed_port_is_refused_and_a_server_that_comes_up_is_found() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let six = web.host.resolve6("orders.shop.mesh.internal");
    for to in [format!("{vip}:9999"), format!("[{six}]:9999")] {
        let socket = socket(&web, &to);
        assert_eq!(refused(&socket), std::io::ErrorKind::ConnectionRefused, "{to}");
        web.wait_log(&["access", "connection refused", "protocol=\"udp\""]);
        // A port that the service does not have.
        let unknown = socket_to_unknown_port(&web, &to);
        assert_eq!(refused(&unknown), std::io::ErrorKind::ConnectionRefused, "{to}");
        let echo = echo(&orders, "[::]:9999");
        wait_until(SOON, "the server to be reached", || ask(&socket, b"now?").is_ok());
        drop(echo);
        wait_until(SOON, "the port to be closed again", || ask(&socket, b"x").is_err());
    }
}

fn socket_to_unknown_port(web: &Machine, to: &str) -> UdpSocket {
    socket(web, &to.replace(":9999", ":7777"))
}

#[test]
fn policies_hold_for_udp_and_cut_what_lives() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let guest = mesh.member("guest", "other/guest");
    let _echo = echo(&orders, "0.0.0.0:8080");
    let to = format!("{}:80", web.host.resolve("orders.shop.mesh.internal"));
    let (socket, others) = (socket(&web, &to), socket(&guest, &to));
    ask(&socket, b"live").unwrap();
    mesh.apply(DENY_WEB);
    // The cut is told by ICMP, while nothing is sent.
    let mut buffer = [0; 16];
    let applied = Instant::now();
    let told = socket.recv(&mut buffer).unwrap_err().kind();
    assert_eq!(told, std::io::ErrorKind::HostUnreachable);
    assert!(applied.elapsed() < Duration::from_secs(2), "{:?}", applied.elapsed());
    orders.wait_log(&["access", "policy change", "shop/no-web", "protocol=\"udp\""]);
    web.wait_log(&["access", "policy change", "shop/no-web", "protocol=\"udp\""]);
    assert_eq!(refused(&socket), std::io::ErrorKind::HostUnreachable);
    wait_until(SOON, "a new flow to be judged", || {
        refused(&socket) == std::io::ErrorKind::HostUnreachable && web.log().contains("401")
    });
    ask(&others, b"others are not concerned").unwrap();
    mesh.ctl(&["delete", "authorizationpolicy", "no-web", "-n", "shop"]);
    wait_until(SOON, "the policy to be gone", || ask(&socket, b"again").is_ok());
}

#[test]
fn an_idle_flow_ends_on_both_sides() {
    let mut mesh = Mesh::start();
    let start = |mesh: &mut Mesh, name: &str| {
        let mut machine = mesh.machine(name);
        machine.configure("[udp]\nidle_timeout_ms = 1500\n");
        machine.join(&mesh.token(&format!("shop/{name}")));
        machine.start();
        machine.wait_ready();
        machine
    };
    let (orders, web) = (start(&mut mesh, "orders"), start(&mut mesh, "web"));
    let _echo = echo(&orders, "0.0.0.0:8080");
    let socket = socket(&web, &format!("{}:8080", orders.ip4));
    ask(&socket, b"live").unwrap();
    assert_eq!(web.status()["flows"]["udp"], 1);
    for machine in [&web, &orders] {
        wait_until(SOON, "the flow to be forgotten", || {
            machine.status()["flows"]["live"] == 0
        });
        machine.wait_log(&["access", "INFO", "connection complete", "protocol=\"udp\""]);
    }
    ask(&socket, b"a new flow").unwrap();
}

#[test]
fn who_is_no_member_is_reached_and_answered_in_plain() {
    let mut mesh = Mesh::start();
    let web = mesh.member("web", "shop/web");
    let stranger = mesh.machine("stranger");
    let _theirs = echo(&stranger, "[::]:5353");
    let _ours = echo(&web, "[::]:5353");
    for (ours, theirs) in [
        (web.ip4.clone(), stranger.ip4.clone()),
        (format!("[{}]", web.ip6), format!("[{}]", stranger.ip6)),
    ] {
        ask(&socket(&web, &format!("{theirs}:5353")), b"out").unwrap();
        ask(&socket(&stranger, &format!("{ours}:5353")), b"in").unwrap();
    }
    assert_eq!(web.status()["flows"]["udp"], 0, "nothing of it was captured");
}

/// A machine without an agent that the control plane takes for a member, as if a ztunnel were there: it takes no UDP in a tunnel.
fn hbone_only(mesh: &mut Mesh, web: &Machine) -> Machine {
    let machine = mesh.machine("other");
    mesh.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: other, namespace: other, labels: {{networking.istio.io/tunnel: http}}}}\nspec: {{address: {}, serviceAccount: guest}}\n",
        machine.ip4
    ));
    wait_until(SOON, "it to be captured", || {
        web.host.sh("ip route show table 28005").contains(&machine.ip4)
    });
    machine
}

#[test]
fn to_a_member_without_quic_it_goes_in_plain_and_is_counted() {
    let mut mesh = Mesh::start();
    let web = mesh.member("web", "shop/web");
    let other = hbone_only(&mut mesh, &web);
    let to = format!("{}:5353", other.ip4);
    let socket = socket(&web, &to);
    let echo = echo(&other, "0.0.0.0:5353");
    ask(&socket, b"in plain").unwrap();
    assert_eq!(web.status()["flows"]["udp_plain"], 1, "{}", web.status());
    let shown = web.try_agent(&["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("1 of UDP not encrypted"));
    assert_eq!(metric(&web, "mesh_agent_udp_unencrypted_flows_total"), 1);
    drop(echo);
    wait_until(SOON, "the port to be closed", || {
        ask(&socket, b"x").is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    // And what it opens itself towards us is answered there, though its address is captured.
    let _ours = web.host.udp_echo("0.0.0.0:5353");
    ask(&self::socket(&other, &format!("{}:5353", web.ip4)), b"in").unwrap();
}

#[test]
fn an_operator_may_refuse_to_send_it_in_plain() {
    let mut mesh = Mesh::start();
    let mut web = mesh.machine("web");
    web.configure("[udp]\nplain = \"refuse\"\n");
    web.join(&mesh.token("shop/web"));
    web.start();
    web.wait_ready();
    let other = hbone_only(&mut mesh, &web);
    let _echo = echo(&other, "0.0.0.0:5353");
    let capture = mesh.sniff();
    let socket = socket(&web, &format!("{}:5353", other.ip4));
    socket.send(b"not in plain words").unwrap();
    assert_eq!(
        socket.recv(&mut [0; 32]).unwrap_err().kind(),
        std::io::ErrorKind::HostUnreachable
    );
    web.wait_log(&["access", "udp.plain", "protocol=\"udp\""]);
    assert!(!saw(&capture.stop(), b"plain words"));
    assert_eq!(metric(&web, "mesh_agent_udp_unencrypted_flows_total"), 0);
}

#[test]
fn a_peer_that_has_quic_is_never_sent_plain_udp_for_want_of_it() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = echo(&orders, "0.0.0.0:8080");
    orders
        .host
        .nft("table inet hole { chain c { type filter hook input priority -300; udp dport 15008 drop; }; }");
    let capture = mesh.sniff();
    let socket = socket(&web, &format!("{}:8080", orders.ip4));
    socket.send(b"not in plain words").unwrap();
    web.wait_log(&["access", "did not answer over QUIC", "protocol=\"udp\""]);
    assert!(!saw(&capture.stop(), b"plain words"));
    orders.host.nft("delete table inet hole");
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    wait_until(SOON, "QUIC to be back", || ask(&socket, b"again").is_ok());
}

#[test]
fn after_a_crash_nothing_leaves_in_plain() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let mut web = mesh.member("web", "shop/web");
    let _echo = echo(&orders, "0.0.0.0:8080");
    // The strictest reverse path filter takes what comes out of the TUN.
    web.host
        .sh("for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $each; done");
    let live = socket(&web, &format!("{}:8080", orders.ip4));
    ask(&live, b"in plain words").unwrap();
    web.kill();
    let capture = mesh.sniff();
    let fresh = socket(&web, &format!("{}:8080", orders.ip4));
    for socket in [&live, &fresh] {
        assert_eq!(
            socket.send(b"in plain words").unwrap_err().kind(),
            std::io::ErrorKind::HostUnreachable
        );
    }
    assert!(!saw(&capture.stop(), b"plain words"));
    web.start();
    web.wait_ready();
    live.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    wait_until(SOON, "it to go on", || ask(&live, b"again").is_ok());
}

#[test]
fn who_empties_nftables_does_not_open_it() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = echo(&orders, "0.0.0.0:8080");
    web.host.sh("nft flush ruleset");
    web.wait_log(&["somebody removed our nftables table; it is back"]);
    let capture = mesh.sniff();
    ask(&socket(&web, &format!("{}:8080", orders.ip4)), b"in plain words").unwrap();
    assert!(!saw(&capture.stop(), b"plain words"));
}

#[test]
fn strict_refuses_plain_udp_to_what_is_declared() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let stranger = mesh.machine("stranger");
    let _echo = echo(&orders, "0.0.0.0:8080");
    let _undeclared = echo(&orders, "0.0.0.0:5353");
    let (declared, undeclared) = (
        socket(&stranger, &format!("{}:8080", orders.ip4)),
        socket(&stranger, &format!("{}:5353", orders.ip4)),
    );
    ask(&declared, b"permissive").unwrap();
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec:\n  mtls: {mode: STRICT}\n",
    );
    wait_until(SOON, "STRICT to be in force, for what lives too", || {
        ask(&declared, b"plain").is_err_and(|error| error.kind() == std::io::ErrorKind::HostUnreachable)
    });
    ask(&undeclared, b"not declared").unwrap();
    ask(&socket(&web, &format!("{}:8080", orders.ip4)), b"by the mesh").unwrap();
}

#[test]
fn a_dns_server_is_a_service_as_any_other() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: dns, namespace: shop}\nspec:\n  hosts: [dns.example.com]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports: [{number: 53, name: udp-dns, protocol: UDP, targetPort: 8053}]\n  workloadSelector: {labels: {app: orders}}\n",
    );
    let vip = web.host.resolve("dns.example.com");
    let _dns = orders
        .host
        .dns_server("0.0.0.0:8053", "answered.by.orders", "192.0.2.77");
    let capture = mesh.sniff();
    web.resolv_conf(&format!("nameserver {vip}\n"));
    assert_eq!(web.host.resolve("answered.by.orders"), "192.0.2.77");
    assert!(!saw(&capture.stop(), b"answered"), "the question was seen on the wire");
}

/// QUIC of applications, inside of ours.
#[test]
fn quic_runs_inside() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let certified = rcgen::generate_simple_self_signed(vec!["orders".into()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let server = orders.host.enter(|| UdpSocket::bind("0.0.0.0:8080").unwrap());
    let client = web.host.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let length = 8 << 20;
    let carried = runtime.block_on(async {
        let runtime = std::sync::Arc::new(quinn::TokioRuntime);
        let config = quinn::ServerConfig::with_single_cert(vec![certificate.clone()], key).unwrap();
        let server = quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(config), server, runtime.clone());
        let server = server.unwrap();
        tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            tokio::io::copy(&mut receive, &mut send).await.unwrap();
            send.finish().unwrap();
            connection.closed().await;
        });
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, client, runtime).unwrap();
        let config = quinn::ClientConfig::with_root_certificates(std::sync::Arc::new(roots)).unwrap();
        let to = format!("{vip}:80").parse().unwrap();
        let work = async {
            let connection = client.connect_with(config, to, "orders").unwrap().await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let sending = async {
                send.write_all(&vec![7; length]).await.unwrap();
                send.finish().unwrap();
            };
            let (_, received) = tokio::join!(sending, receive.read_to_end(length));
            received.unwrap().len()
        };
        tokio::time::timeout(2 * SOON, work).await.unwrap()
    });
    assert_eq!(carried, length);
}
