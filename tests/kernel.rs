//! Our part of the kernel's state, in namespaces of its own: what is installed, what it stops, and that nothing stays.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mesh_agent::config::Config;
use mesh_agent::kernel::{self, Kernel, KernelError};
use mesh_agent::tun::Tun;
use mesh_core::policy::PlaintextRule;
use mesh_lab::{Host, Lan, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Everything that we could have changed.
fn state(host: &Host) -> String {
    host.sh("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset; ip -o addr")
}

fn deny(ports: &[u16]) -> PlaintextRule {
    PlaintextRule {
        sources: None,
        ports: Some(ports.to_vec()),
        allow: false,
        policy: Some("shop/strict".into()),
    }
}

#[test]
fn everything_is_installed_once_and_removed() {
    let lan = Lan::new();
    let host = lan.host("host");
    host.nft("table inet theirs { chain c { type filter hook input priority 0; }; }");
    host.ip("rule add priority 8001 from 192.0.2.1 lookup main");
    let before = state(&host);
    host.enter(|| {
        let config = Config::default();
        let tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel
            .update_prefixes(&prefixes(&["240.240.0.0/16", "fd00:240::/64", "127.0.0.0/8"]))
            .unwrap();
        let installed = state(&host);
        for expected in [
            "from all fwmark 0x6d65 goto 8002",
            "from all iif lo ipproto tcp lookup 28005",
            "from all to 100.64.100.53 iif lo ipproto udp lookup 28005",
            "from all fwmark 0x16d65 iif lo lookup 28005",
            "32800:\tfrom all iif lo ipproto udp lookup 28005",
            "240.240.0.0/16 dev mesh0 table 28005 proto 109 scope link src 100.64.100.1 metric 100",
            "unreachable 240.240.0.0/16 table 28005 proto 109 metric 1000000",
            "fd00:240::/64 dev mesh0 table 28005 proto 109 src fd6d:6573:68::1 metric 100",
            "unreachable fd00:240::/64",
            "from all fwmark 0x6d66 lookup 28006",
            "default dev mesh0 table 28006",
            "unreachable default table 28006 proto 109 metric 1000000",
            "table inet mesh_agent",
        ] {
            assert!(installed.contains(expected), "{expected:?} is not in\n{installed}");
        }
        assert!(!installed.contains("127.0.0.0/8 dev mesh0"));
        assert!(!installed.contains("fe80::/64 dev mesh0"));
        // A second agent's part is the same, and makes nothing twice.
        let mut again = Kernel::install(&config, &[]).unwrap();
        again
            .update_prefixes(&prefixes(&["240.240.0.0/16", "fd00:240::/64"]))
            .unwrap();
        assert_eq!(state(&host), installed);
        again.remove().unwrap();
        drop(tun);
    });
    wait_until(SOON, "the device to vanish", || state(&host) == before);
}

#[test]
fn a_change_is_one_change() {
    let host = Host::new("host");
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        let table = || host.ip("route show table 28005");
        kernel
            .update_prefixes(&prefixes(&["240.240.0.1/32", "240.240.0.2/32"]))
            .unwrap();
        kernel
            .update_prefixes(&prefixes(&["240.240.0.2/32", "240.240.0.3/32"]))
            .unwrap();
        assert!(!table().contains("240.240.0.1"));
        assert_eq!(table().matches("240.240.0.2").count(), 2);
        assert_eq!(table().matches("240.240.0.3").count(), 2);
    });
}

#[test]
fn a_hundred_thousand_prefixes_within_five_seconds() {
    let host = Host::new("host");
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        let many: BTreeSet<IpNet> = (0..100_000_u32)
            .map(|number| IpNet::from(IpAddr::from(Ipv4Addr::from(0xf0f0_0000 + number))))
            .collect();
        let start = Instant::now();
        kernel.update_prefixes(&many).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let mut more = many.clone();
        more.insert("10.1.2.3/32".parse().unwrap());
        let start = Instant::now();
        kernel.update_prefixes(&more).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        kernel.remove().unwrap();
        assert_eq!(host.ip("route show table all").matches("28005").count(), 0);
    });
}

#[test]
fn what_a_killed_agent_leaves_fails_closed_and_is_taken_over() {
    let lan = Lan::new();
    let (host, server) = (lan.host("host"), lan.host("server"));
    let before = state(&host);
    let listener = server.enter(|| TcpListener::bind("10.77.0.2:80").unwrap());
    let config = Config::default();
    let captured = prefixes(&["10.77.0.2/32", "fd77::2/128"]);
    host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel.update_prefixes(&captured).unwrap();
        // As a kill does: the device goes, the rest stays.
        drop(kernel);
        drop(tun);
    });
    let connect = || host.enter(|| TcpStream::connect_timeout(&"10.77.0.2:80".parse().unwrap(), SOON));
    wait_until(SOON, "the device to vanish", || !host.ip("link").contains("mesh0"));
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::HostUnreachable);
    host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let kernel = Kernel::install(&config, &[]).unwrap();
        // Before the first world is known, what was captured still is.
        assert!(host.ip("route get 10.77.0.2 ipproto tcp").contains("mesh0"));
        drop(kernel);
        drop(tun);
    });
    wait_until(SOON, "the device to vanish", || !host.ip("link").contains("mesh0"));
    host.enter(|| kernel::cleanup(&config).unwrap());
    assert_eq!(state(&host), before);
    connect().unwrap();
    listener.enter_accept();
    host.enter(|| kernel::cleanup(&config).unwrap());
}

#[test]
fn a_successor_that_fails_opens_nothing() {
    let lan = Lan::new();
    let (host, server) = (lan.host("host"), lan.host("server"));
    let _listener = server.enter(|| TcpListener::bind("10.77.0.2:80").unwrap());
    let connect = || TcpStream::connect_timeout(&"10.77.0.2:80".parse().unwrap(), SOON);
    let config = Config::default();
    host.enter(|| {
        let fresh = state(&host);
        let start = || {
            let tun = Tun::open(&config.capture).unwrap();
            Kernel::install(&config, &[]).map(|kernel| (kernel, tun))
        };
        let before = state(&host);
        host.ip("addr add 100.64.100.1/32 dev eth0");
        start().unwrap_err();
        host.ip("addr del 100.64.100.1/32 dev eth0");
        assert_eq!(state(&host), before, "a first start that fails leaves nothing");

        let (mut kernel, tun) = start().unwrap();
        kernel.update_prefixes(&prefixes(&["10.77.0.2/32"])).unwrap();
        drop((kernel, tun));
        host.ip("addr add 100.64.100.1/32 dev eth0");
        start().unwrap_err();
        assert!(connect().is_err(), "captured by the killed one, and open");
        kernel::cleanup(&config).unwrap();
        connect().unwrap();
        host.ip("addr del 100.64.100.1/32 dev eth0");
        assert_eq!(state(&host), fresh);
    });
}

trait Accept {
    fn enter_accept(&self);
}

impl Accept for TcpListener {
    fn enter_accept(&self) {
        self.accept().unwrap();
    }
}

#[test]
fn a_connection_from_before_goes_on() {
    let lan = Lan::new();
    let (host, peer) = (lan.host("host"), lan.host("peer"));
    let listener = host.enter(|| TcpListener::bind("10.77.0.1:22").unwrap());
    let mut theirs = peer.enter(|| TcpStream::connect("10.77.0.1:22").unwrap());
    let (mut ours, _) = listener.accept().unwrap();
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel
            .update_prefixes(&prefixes(&["10.77.0.2/32", "fd77::2/128"]))
            .unwrap();
        theirs.set_read_timeout(Some(SOON)).unwrap();
        ours.set_read_timeout(Some(SOON)).unwrap();
        for _ in 0..3 {
            // Ours first: conntrack takes this packet for the first of a connection that we open.
            ours.write_all(b"x").unwrap();
            theirs.read_exact(&mut [0]).unwrap();
            theirs.write_all(b"y").unwrap();
            ours.read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn a_machine_without_ipv6_is_served_too() {
    let host = Host::new("host");
    host.sh("for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done");
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel
            .update_prefixes(&prefixes(&["240.240.0.0/16", "fd00:240::/64"]))
            .unwrap();
        assert!(host.ip("route get 240.240.0.1 ipproto tcp").contains("mesh0"));
        kernel.remove().unwrap();
    });
}

#[test]
fn open_failure_leaves_the_plain_way() {
    let lan = Lan::new();
    let (host, server) = (lan.host("host"), lan.host("server"));
    let _listener = server.enter(|| TcpListener::bind("10.77.0.2:80").unwrap());
    let mut config = Config::default();
    config.capture.on_failure = mesh_agent::config::OnFailure::Open;
    host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel.update_prefixes(&prefixes(&["10.77.0.2/32"])).unwrap();
        assert!(host.ip("route get 10.77.0.2 ipproto tcp").contains("mesh0"));
        drop(kernel);
        drop(tun);
        TcpStream::connect_timeout(&"10.77.0.2:80".parse().unwrap(), SOON).unwrap();
    });
}

#[test]
fn a_taken_address_is_told() {
    let lan = Lan::new();
    let host = lan.host("host");
    host.ip("addr add 100.64.100.1/24 dev eth0");
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let error = Kernel::install(&config, &[]).unwrap_err();
        assert!(matches!(error, KernelError::AddressTaken { .. }));
        assert_eq!(
            error.to_string(),
            "the address 100.64.100.1 is already on the device eth0: set capture.address4 to one that nobody uses"
        );
    });
}

#[test]
fn the_addresses_of_the_device_are_for_this_machine_only() {
    let lan = Lan::new();
    let (host, other) = (lan.host("host"), lan.host("other"));
    let config = Config::default();
    let heard = host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let kernel = Kernel::install(&config, &[]).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:9999").unwrap();
        (socket, tun, kernel)
    });
    other.ip("route add 100.64.100.1 via 10.77.0.1");
    other.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"spoofed", "100.64.100.1:9999").unwrap();
        socket.send_to(b"plain", "10.77.0.1:9999").unwrap();
    });
    let mut bytes = [0; 16];
    heard.0.set_read_timeout(Some(SOON)).unwrap();
    let (length, _) = heard.0.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"plain");
    assert!(
        host.sh("nft list chain inet mesh_agent arrivals")
            .contains("packets 1 ")
    );
}

#[test]
fn forwarded_traffic_is_captured_only_from_a_named_bridge() {
    let lan = Lan::new();
    let (host, inner) = (lan.host("host"), Host::new("container"));
    mesh_lab::cable((&host, "docker0", "172.30.0.1/24"), (&inner, "eth0", "172.30.0.2/24"));
    let mut config = Config::default();
    let route = || host.ip("route get 240.240.0.1 from 172.30.0.2 iif docker0 ipproto tcp");
    host.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    host.enter(|| {
        let _tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel.update_prefixes(&prefixes(&["240.240.0.0/16"])).unwrap();
        assert!(!route().contains("mesh0"), "{}", route());
        config.capture.forward_interfaces = vec!["docker0".into()];
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel.update_prefixes(&prefixes(&["240.240.0.0/16"])).unwrap();
        assert!(route().contains("mesh0"), "{}", route());
        kernel.remove().unwrap();
    });
}

#[test]
fn a_container_is_captured_and_its_servers_answer_whom_they_heard() {
    let lan = Lan::new();
    let (host, client, inner) = (lan.host("host"), lan.host("client"), Host::new("container"));
    mesh_lab::cable((&host, "docker0", "172.30.0.1/24"), (&inner, "eth0", "172.30.0.2/24"));
    inner.ip("route add default via 172.30.0.1");
    host.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    host.nft(
        "table ip nat { chain c { type nat hook prerouting priority dstnat; iifname eth0 meta l4proto { tcp, udp } th dport 5353 dnat to 172.30.0.2; }; }",
    );
    let mut config = Config::default();
    config.capture.forward_interfaces = vec!["docker0".into()];
    let (_tun, _kernel) = host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel.update_prefixes(&prefixes(&["10.77.0.2/32"])).unwrap();
        (tun, kernel)
    });
    for protocol in ["tcp", "udp"] {
        let route = host.ip(&format!(
            "route get 10.77.0.2 from 172.30.0.2 iif docker0 ipproto {protocol}"
        ));
        assert!(route.contains("mesh0"), "{protocol}: {route}");
    }
    let (udp, _tcp) = inner.enter(|| {
        let udp = UdpSocket::bind("0.0.0.0:5353").unwrap();
        (udp, TcpListener::bind("0.0.0.0:5353").unwrap())
    });
    client.enter(|| {
        let asked = UdpSocket::bind("0.0.0.0:0").unwrap();
        asked.connect("10.77.0.1:5353").unwrap();
        asked.send(b"question").unwrap();
        let (_, from) = hears(&udp, SOON).unwrap();
        udp.send_to(b"answer", from).unwrap();
        assert_eq!(hears(&asked, SOON).unwrap().0, b"answer");
        TcpStream::connect_timeout(&"10.77.0.1:5353".parse().unwrap(), SOON).unwrap();
    });
}

#[test]
fn what_is_forbidden_is_so_from_the_first_moment() {
    let lan = Lan::new();
    let (host, peer) = (lan.host("host"), lan.host("peer"));
    let _listener = host.enter(|| TcpListener::bind("10.77.0.1:80").unwrap());
    let connect = || peer.enter(|| TcpStream::connect_timeout(&"10.77.0.1:80".parse().unwrap(), SOON));
    connect().unwrap();
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let kernel = Kernel::install(&config, &[deny(&[80])]).unwrap();
        assert!(connect().is_err(), "before the first update");
        // A killed agent leaves its table. The next one knows less, and loosens nothing until it is told to.
        drop(kernel);
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        assert!(kernel.inherits_guard() && connect().is_err(), "after a crash");
        kernel.update_guard(&[]).unwrap();
        assert!(!kernel.inherits_guard());
        connect().unwrap();
        // Long lists, which are printed over several lines, survive as well.
        let ports: Vec<u16> = (500..700).map(|port| port * 2).collect();
        kernel.update_guard(&[deny(&ports), deny(&[80])]).unwrap();
        drop(kernel);
        let kernel = Kernel::install(&config, &[]).unwrap();
        assert!(connect().is_err(), "after a crash with long lists");
        assert_eq!(kernel.plaintext_counts().unwrap().len(), 2);
        kernel.remove().unwrap();
    });
    connect().unwrap();
}

#[test]
fn plaintext_that_a_policy_forbids_is_refused_and_live_connections_are_cut() {
    let lan = Lan::new();
    let (host, client) = (lan.host("host"), lan.host("client"));
    let config = Config::default();
    let (_tun, mut kernel, declared, other) = host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let kernel = Kernel::install(&config, &[]).unwrap();
        let declared = TcpListener::bind("10.77.0.1:8080").unwrap();
        (tun, kernel, declared, TcpListener::bind("10.77.0.1:22").unwrap())
    });
    let connect = |port| {
        let address = SocketAddr::from(([10, 77, 0, 1], port));
        client.enter(|| TcpStream::connect_timeout(&address, SOON))
    };
    let mut live = connect(8080).unwrap();
    let (mut accepted, _) = declared.accept().unwrap();
    live.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    host.enter(|| kernel.update_guard(&[deny(&[8080])]).unwrap());
    live.set_read_timeout(Some(SOON)).unwrap();
    live.write_all(b"y").unwrap();
    assert_eq!(live.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(connect(8080).unwrap_err().kind(), ErrorKind::HostUnreachable);
    connect(22).unwrap();
    other.accept().unwrap();
    let counts = host.enter(|| kernel.plaintext_counts().unwrap());
    assert_eq!(counts.len(), 1);
    assert_eq!(counts[0].policy, "shop/strict");
    assert!(counts[0].packets >= 2 && !counts[0].allowed);
    host.enter(|| kernel.update_guard(&[]).unwrap());
    connect(8080).unwrap();
}

/// What a socket hears, or nothing for a moment.
fn hears(socket: &UdpSocket, patience: Duration) -> Option<(Vec<u8>, SocketAddr)> {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes).ok()?;
    Some((bytes[..length].to_vec(), from))
}

#[test]
fn a_udp_server_answers_whom_it_heard_and_from_where_it_heard() {
    let lan = Lan::new();
    let (host, client) = (lan.host("host"), lan.host("client"));
    // A second address, which is not the one that the machine prefers.
    host.ip("addr add 10.77.0.100/24 dev eth0");
    let config = Config::default();
    let (_tun, _kernel, server) = host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel
            .update_prefixes(&prefixes(&["10.77.0.2/32", "fd77::2/128"]))
            .unwrap();
        (tun, kernel, UdpSocket::bind("[::]:5353").unwrap())
    });
    for address in ["10.77.0.1", "[fd77::1]"] {
        let socket = client.enter(|| {
            let any = if address.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(format!("{address}:5353")).unwrap();
            socket.send(b"question").unwrap();
            socket
        });
        let (heard, from) = hears(&server, SOON).unwrap();
        assert_eq!(heard, b"question");
        server.send_to(b"answer", from).unwrap();
        let (answer, _) = hears(&socket, SOON).unwrap_or_else(|| panic!("no answer from {address}"));
        assert_eq!(answer, b"answer", "from {address}");
    }
}

#[test]
fn nobody_else_answers_what_was_captured() {
    let lan = Lan::new();
    let (host, other) = (lan.host("host"), lan.host("other"));
    let config = Config::default();
    let (_tun, mut kernel, socket) = host.enter(|| {
        let tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        kernel.update_prefixes(&prefixes(&["10.77.0.2/32"])).unwrap();
        assert!(host.ip("route get 10.77.0.2 mark 0x16d65").contains("mesh0"));
        let socket = UdpSocket::bind("10.77.0.1:4000").unwrap();
        socket.connect("10.77.0.2:5353").unwrap();
        (tun, kernel, socket)
    });
    let others = other.enter(|| UdpSocket::bind("10.77.0.2:5353").unwrap());
    socket.send(b"for the mesh").unwrap();
    others.send_to(b"forged", "10.77.0.1:4000").unwrap();
    wait_until(SOON, "the forged answer to be dropped", || {
        host.sh("nft list chain inet mesh_agent plaintext")
            .contains("counter packets 1 bytes 34 drop")
    });
    // Once the address is nobody's any more the same flow goes its plain way, and is answered there.
    host.enter(|| kernel.update_prefixes(&prefixes(&[])).unwrap());
    socket.send(b"in plain").unwrap();
    let (heard, from) = hears(&others, SOON).unwrap();
    assert_eq!(heard, b"in plain", "what was captured did not come");
    others.send_to(b"answer", from).unwrap();
    assert_eq!(hears(&socket, SOON).unwrap().0, b"answer");
}

#[test]
fn a_guard_that_others_remove_is_put_back() {
    let host = Host::new("host");
    host.enter(|| {
        let config = Config::default();
        let _tun = Tun::open(&config.capture).unwrap();
        let mut kernel = Kernel::install(&config, &[deny(&[80])]).unwrap();
        let before = host.sh("nft -s list ruleset");
        assert!(!kernel.restore_guard().unwrap(), "it is there");
        host.sh("nft flush ruleset");
        assert!(kernel.restore_guard().unwrap());
        assert_eq!(host.sh("nft -s list ruleset"), before);
        assert!(!kernel.restore_guard().unwrap());
        kernel.remove().unwrap();
    });
}
