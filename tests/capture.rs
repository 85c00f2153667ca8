//! Capture with a real kernel TUN: a transparent plain-TCP proxy made of the agent's own parts, on a machine of its own.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "lab/mod.rs"]
mod lab;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lab::{Host, Lan, SOON, wait_for};
use mesh_agent::capture::{Capture, Captured};
use mesh_agent::config::Config;
use mesh_agent::copy::{Count, both_ways, tcp};
use mesh_agent::failure::Failure;
use mesh_agent::kernel::{self, Kernel};
use mesh_agent::tun::Tun;
use mesh_core::engine::Refusal;

/// A proxy on a host; stopping it leaves the kernel as a crash would.
struct Proxy {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    stats: mesh_agent::capture::Stats,
}

impl Proxy {
    fn start(host: &Host, prefixes: &[&str], config: Config) -> Self {
        let network = std::fs::File::open(host.path()).unwrap();
        let prefixes: BTreeSet<ipnet::IpNet> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stats = mesh_agent::capture::Stats::default();
        let its_stats = stats.clone();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let tun = Tun::open(&config.capture).unwrap();
                let mut kernel = Kernel::install(&config).await.unwrap();
                kernel.update_prefixes(prefixes).await.unwrap();
                let (capture, _replies) = Capture::new(tun, &config.capture, [1; 32], its_stats);
                ready.send(()).unwrap();
                let config = Rc::new(config);
                let serve = |captured| {
                    let Captured::Tcp(flow) = captured else { return };
                    tokio::task::spawn_local(serve(flow, config.clone()));
                };
                tokio::select! {
                    ended = capture.run(serve) => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv_timeout(SOON).unwrap();
        Self { stop: Some(stop), thread: Some(thread), stats }
    }

    fn flows(&self) -> usize {
        self.stats.lock().unwrap().1
    }

    fn counters(&self) -> mesh_core::engine::Counters {
        self.stats.lock().unwrap().0
    }

    fn stop(&mut self) {
        if let (Some(stop), Some(thread)) = (self.stop.take(), self.thread.take()) {
            let _ = stop.send(());
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(flow: mesh_agent::capture::Flow, config: Rc<Config>) {
    let to = flow.key().destination;
    // Ports by which a test asks for a refusal.
    match to.port() {
        81 => return flow.refuse(Refusal::Denied),
        82 => return flow.refuse(Refusal::Unreachable),
        _ => {}
    }
    match mesh_agent::socket::connect(to, config.capture.mark, Duration::from_secs(5)).await.map_err(Failure::from) {
        Ok(stream) => {
            let far = tcp::split(stream);
            if let Ok(near) = flow.accept() {
                let _ = both_ways(near, far, &Count::default(), &Count::default()).await;
            }
        }
        Err(failure) => flow.refuse(failure.refusal()),
    }
}

fn connect(host: &Host, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    host.enter(|| {
        let stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    })
}

/// A machine whose traffic to the other one, and to addresses of nobody, is captured.
fn two() -> (Lan, Host, Host) {
    let lan = Lan::new();
    let (near, far) = (lan.host("near", 1), lan.host("far", 2));
    (lan, near, far)
}

const CAPTURED: [&str; 3] = ["10.77.0.2/32", "fd77::2/128", "240.240.0.0/16"];

#[test]
fn connections_are_carried_in_both_families() {
    let (_lan, near, far) = two();
    let proxy = Proxy::start(&near, &CAPTURED, Config::default());
    for (bind, to) in [("0.0.0.0:8080", "10.77.0.2:8080"), ("[fd77::2]:8080", "[fd77::2]:8080")] {
        let _echo = far.echo_server(bind);
        let mut stream = connect(&near, to).unwrap();
        wait_for(SOON, "the flow to be seen", || proxy.flows() == 1);
        stream.write_all(b"through the tun").unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"through the tun");
        drop(stream);
        wait_for(SOON, "the flow to be forgotten", || proxy.flows() == 0);
    }
}

#[test]
fn large_transfers_arrive_whole_with_and_without_offload() {
    for offload in [true, false] {
        let (_lan, near, far) = two();
        let mut config = Config::default();
        config.capture.offload = offload;
        let _proxy = Proxy::start(&near, &CAPTURED, config);
        let listener = far.enter(|| TcpListener::bind("0.0.0.0:8080").unwrap());
        let bytes: Vec<u8> = (0..20_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let expected = bytes.clone();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&got).unwrap();
            got == expected
        });
        let mut stream = connect(&near, "10.77.0.2:8080").unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert!(server.join().unwrap(), "up, offload {offload}");
        assert!(back == bytes, "down, offload {offload}: {} of {} bytes", back.len(), bytes.len());
    }
}

#[test]
fn the_application_sees_the_truth() {
    let (_lan, near, _far) = two();
    let _proxy = Proxy::start(&near, &CAPTURED, Config::default());
    for host in ["10.77.0.2", "[fd77::2]"] {
        let refused = connect(&near, &format!("{host}:9")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{host}: {refused}");
        let denied = connect(&near, &format!("{host}:81")).unwrap_err();
        assert!(matches!(denied.raw_os_error(), Some(libc::EHOSTUNREACH | libc::EACCES)), "{host}: {denied}");
        let unreachable = connect(&near, &format!("{host}:82")).unwrap_err();
        assert_eq!(unreachable.raw_os_error(), Some(libc::EHOSTUNREACH), "{host}: {unreachable}");
    }
}

#[test]
fn a_reset_travels_and_half_close_does() {
    let (_lan, near, far) = two();
    let _proxy = Proxy::start(&near, &CAPTURED, Config::default());
    let listener = far.enter(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut client = connect(&near, "10.77.0.2:8080").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"bye").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
    server.write_all(b"still").unwrap();
    drop(server);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"still");

    let client = connect(&near, "10.77.0.2:8080").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    server.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let mut client = connect(&near, "10.77.0.2:8080").unwrap();
    let (server, _) = listener.accept().unwrap();
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_slow_reader_holds_the_writer() {
    let (_lan, near, far) = two();
    let _proxy = Proxy::start(&near, &CAPTURED, Config::default());
    let listener = far.enter(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut client = connect(&near, "10.77.0.2:8080").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 1 << 20];
    let (mut written, mut idle_since) = (0usize, Instant::now());
    while idle_since.elapsed() < Duration::from_millis(500) {
        match client.write(&chunk) {
            Ok(count) => {
                written += count;
                idle_since = Instant::now();
            }
            Err(_) => std::thread::yield_now(),
        }
        assert!(written < 200 << 20, "nothing holds the writer");
    }
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), written);
}

#[test]
fn after_a_crash_nothing_leaves_in_plain_and_cleanup_leaves_nothing() {
    let (lan, near, far) = two();
    let before = near.kernel_state();
    let mut proxy = Proxy::start(&near, &CAPTURED, Config::default());
    let _echo = far.echo_server("0.0.0.0:8080");
    drop(connect(&near, "10.77.0.2:8080").unwrap());
    proxy.stop();
    let wire = lan.capture("tcp");
    for _ in 0..5 {
        let error = connect(&near, "10.77.0.2:8080").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
    }
    assert_eq!(wire.stop().len(), 24, "packets were seen on the wire");

    // The next agent takes over what stands, and works.
    let mut proxy = Proxy::start(&near, &CAPTURED, Config::default());
    drop(connect(&near, "10.77.0.2:8080").unwrap());
    proxy.stop();
    let removed = near.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(kernel::cleanup(&Config::default())).unwrap()
    });
    assert_eq!(removed.len(), 3, "{removed:?}");
    assert_eq!(near.kernel_state(), before);
}

#[test]
fn connections_opened_towards_us_stay_out() {
    let (_lan, near, far) = two();
    let proxy = Proxy::start(&near, &CAPTURED, Config::default());
    let _echo = near.echo_server("0.0.0.0:8080");
    let mut stream = connect(&far, "10.77.0.1:8080").unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let closed = connect(&far, "10.77.0.1:9").unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused);
    let seen = proxy.counters();
    assert_eq!(seen.packets_in, seen.not_ours);
}

#[test]
fn connections_older_than_the_agent_live_on() {
    let (_lan, near, far) = two();
    let _echo = near.echo_server("0.0.0.0:8080");
    let mut stream = connect(&far, "10.77.0.1:8080").unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    let _proxy = Proxy::start(&near, &CAPTURED, Config::default());
    stream.write_all(b"y").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn outsiders_do_not_reach_the_tuns_addresses() {
    let (_lan, near, far) = two();
    let _proxy = Proxy::start(&near, &CAPTURED, Config::default());
    let own: IpAddr = Config::default().capture.address4.into();
    let _service = near.echo_server("0.0.0.0:8080");
    far.ip(&format!("route add {own}/32 via 10.77.0.1"));
    let to = SocketAddr::new(own, 8080);
    let reached = far.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
    assert!(reached.is_err(), "a spoofed packet reached the TUN's address");
    // From the machine itself it is an address like any other.
    assert!(connect(&near, &to.to_string()).is_ok());
}

#[test]
fn forwarded_traffic_is_captured_only_where_a_bridge_is_named() {
    let (_lan, near, far) = two();
    let _echo = far.echo_server("0.0.0.0:8080");
    let container = Host::new("container");
    near.cable("br-c", "172.30.0.1/24", &container, "eth0", "172.30.0.2/24");
    container.ip("route add default via 172.30.0.1");
    far.ip("route add 172.30.0.0/24 via 10.77.0.1");
    near.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    let mut proxy = Proxy::start(&near, &CAPTURED, Config::default());
    let peer = |mut stream: TcpStream| {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    peer(connect(&container, "10.77.0.2:8080").unwrap());
    let seen = proxy.counters();
    assert_eq!(seen.packets_in, seen.not_ours, "forwarded traffic was captured");
    proxy.stop();
    let mut config = Config::default();
    config.capture.forward_interfaces = vec!["br-c".into()];
    let proxy = Proxy::start(&near, &CAPTURED, config);
    peer(connect(&container, "10.77.0.2:8080").unwrap());
    let seen = proxy.counters();
    assert!(seen.packets_in > seen.not_ours);
}

#[test]
fn many_prefixes_change_fast() {
    let (_lan, near, _far) = two();
    let prefixes: BTreeSet<ipnet::IpNet> =
        (0..100_000u32).map(|at| ipnet::IpNet::from(IpAddr::V4((0xf0f0_0000 + at).into()))).collect();
    let (all, one) = near.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config::default();
            let _tun = Tun::open(&config.capture).unwrap();
            let mut kernel = Kernel::install(&config).await.unwrap();
            let start = Instant::now();
            kernel.update_prefixes(prefixes.clone()).await.unwrap();
            let all = start.elapsed();
            let mut fewer = prefixes;
            fewer.pop_first();
            let start = Instant::now();
            kernel.update_prefixes(fewer).await.unwrap();
            (all, start.elapsed())
        })
    });
    eprintln!("100,000 prefixes in {all:?}, one change in {one:?}");
    assert!(all < Duration::from_secs(15), "100,000 prefixes took {all:?}");
    assert!(one < Duration::from_millis(500), "one change took {one:?}");
    assert_eq!(near.sh("ip route show table 28005 | grep -c unreachable").trim(), "100000");
}
