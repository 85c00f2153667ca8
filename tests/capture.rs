//! The capture side end to end: a real TUN device, kernel routes and the engine, with a proxy that dials the real server in
//! plain for what is addressed to a virtual address.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use mesh_agent::capture::{Capture, Captured, Flow};
use mesh_agent::config::Config;
use mesh_agent::copy::{Count, End, Sink, Source, both_ways};
use mesh_agent::failure::Failure;
use mesh_agent::kernel::Kernel;
use mesh_agent::socket;
use mesh_agent::tun::Tun;
use mesh_core::engine::Refusal;
use mesh_lab::{Host, Lan, Proc, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

const SOON: Duration = Duration::from_secs(20);
/// What a destination port means to the proxy; others are dialled.
const DENIED: u16 = 1;
const UNREACHABLE: u16 = 2;
/// How the proxy exits when the device is lost.
const LOST: i32 = 3;
const VIRTUAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 240, 0, 2));
const VIRTUAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x240, 0, 0, 0, 0, 0, 2));

struct TcpSource(OwnedReadHalf);
struct TcpSink(Option<OwnedWriteHalf>);

impl Source for TcpSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut bytes = vec![0; 64 << 10];
        let length = self.0.read(&mut bytes).await?;
        bytes.truncate(length);
        Ok((length > 0).then(|| bytes.into()))
    }
    fn stop(&mut self) {}
}

impl Sink for TcpSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        Ok(self.0.as_mut().unwrap().write_all(&bytes).await?)
    }
    async fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.0.as_mut().unwrap().shutdown().await?)
    }
    fn reset(&mut self) {
        if let Some(half) = self.0.take() {
            let _ = half.as_ref().set_zero_linger();
            // Else dropping it would send an end before the reset.
            half.forget();
        }
    }
}

/// The real address behind a virtual one.
fn real(destination: SocketAddr) -> SocketAddr {
    let (four, six) = Lan::addresses(2);
    let address = match destination.ip() {
        VIRTUAL4 => four.into(),
        VIRTUAL6 => six.into(),
        other => other,
    };
    SocketAddr::new(address, destination.port())
}

async fn carry(flow: Flow, mark: u32) {
    let destination = flow.key().destination;
    match destination.port() {
        DENIED => return flow.refuse(Refusal::Denied),
        UNREACHABLE => return flow.refuse(Refusal::Unreachable),
        _ => {}
    }
    match socket::connect(real(destination), mark, SOON).await {
        Err(error) => flow.refuse(Failure::from(error).refusal()),
        Ok(stream) => {
            let Ok(ours) = flow.accept() else { return };
            let (read, write) = stream.into_split();
            let theirs = End {
                source: TcpSource(read),
                sink: TcpSink(Some(write)),
            };
            let _ = both_ways(ours, theirs, &Count::default(), &Count::default()).await;
        }
    }
}

/// The proxy's process. Run by the tests below with `CAPTURE_READY`, a file that it makes when it is ready.
#[test]
fn proxy_process() {
    let Some(ready) = std::env::var_os("CAPTURE_READY") else {
        return;
    };
    let mut config = Config::default();
    config.capture.offload = std::env::var_os("CAPTURE_PLAIN").is_none();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let tun = Tun::open(&config.capture).unwrap();
        assert_eq!(tun.offload().segmentation, config.capture.offload);
        let mut kernel = Kernel::install(&config, &[]).unwrap();
        let (four, six) = Lan::addresses(2);
        let captured: BTreeSet<_> = [VIRTUAL4, VIRTUAL6, four.into(), six.into()]
            .map(ipnet::IpNet::from)
            .into();
        kernel.update_prefixes(&captured).unwrap();
        let (capture, _) = Capture::new(tun, &config.capture, [9; 32]).unwrap();
        let mark = config.capture.mark;
        let run = capture.run(move |captured| {
            if let Captured::Tcp(flow) = captured {
                tokio::task::spawn_local(carry(flow, mark));
            }
        });
        std::fs::write(ready, "").unwrap();
        tokio::select! {
            _ = run => std::process::exit(LOST),
            _ = stop.recv() => kernel.remove().unwrap(),
        }
    });
}

struct Setting {
    client: Host,
    server: Host,
    proxy: Proc,
    _lan: Lan,
}

/// A client with the proxy, and a server.
fn setting(variables: &[(&str, &str)], prepare: impl FnOnce(&Host)) -> Setting {
    let lan = Lan::new();
    let (client, server) = (lan.host("client"), lan.host("server"));
    prepare(&client);
    let ready = client.directory().join("ready");
    let mut command = client.command(std::env::current_exe().unwrap());
    command
        .args(["proxy_process", "--exact", "--nocapture"])
        .env("CAPTURE_READY", &ready)
        .envs(variables.iter().copied());
    let proxy = client.spawn(&mut command);
    wait_until(SOON, "the proxy", || ready.exists());
    Setting {
        client,
        server,
        proxy,
        _lan: lan,
    }
}

impl Setting {
    fn listen(&self, port: u16) -> TcpListener {
        self.server
            .enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
    }

    fn connect(&self, address: IpAddr, port: u16) -> std::io::Result<TcpStream> {
        let stream = self
            .client
            .enter(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), SOON))?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }
}

/// Bytes that are different everywhere.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(next).collect()
}

/// Sends much both ways at once, ends one side, then the other; every byte must arrive.
fn exchange(setting: &Setting, address: IpAddr, port: u16, length: usize) {
    let listener = setting.listen(port);
    let (up, down) = (&pattern(length, 3), &pattern(length, 5));
    let mut client = setting.connect(address, port).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    let send = |mut stream: &TcpStream, bytes: &[u8]| {
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    };
    std::thread::scope(|scope| {
        let (sender, writer) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        scope.spawn(move || send(&sender, up));
        scope.spawn(move || send(&writer, down));
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert!(received == *up, "{} of {length} bytes up", received.len());
        received.clear();
        client.read_to_end(&mut received).unwrap();
        assert!(received == *down, "{} of {length} bytes down", received.len());
    });
}

#[test]
fn bytes_arrive_both_ways_by_both_families() {
    let setting = setting(&[], |_| {});
    for (index, address) in [VIRTUAL4, VIRTUAL6].into_iter().enumerate() {
        exchange(&setting, address, 7000 + index as u16, 32 << 20);
    }
    // The server's own address is captured, too: the proxy's marked socket must not come back to it.
    exchange(&setting, Lan::addresses(2).0.into(), 7002, 1 << 20);
}

#[test]
fn bytes_arrive_without_offloads() {
    let setting = setting(&[("CAPTURE_PLAIN", "1")], |_| {});
    for (index, address) in [VIRTUAL4, VIRTUAL6].into_iter().enumerate() {
        exchange(&setting, address, 7000 + index as u16, 4 << 20);
    }
}

#[test]
fn any_reverse_path_filter_lets_answers_through() {
    for filter in ["0", "1", "2"] {
        let setting = setting(&[], |client| {
            client.sh(&format!(
                "for f in all default eth0; do echo {filter} > /proc/sys/net/ipv4/conf/$f/rp_filter; done"
            ));
        });
        exchange(&setting, VIRTUAL4, 7000, 64 << 10);
        // An application that binds an address of the machine: the answer goes to that.
        let listener = setting.listen(7001);
        let bound = setting.client.enter(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((Lan::addresses(1).0, 0)).into()).unwrap();
            socket.connect_timeout(&SocketAddr::new(VIRTUAL4, 7001).into(), SOON)
        });
        assert!(bound.is_ok(), "rp_filter {filter}: {bound:?}");
        listener.accept().unwrap();
        // And what others open towards the machine stays out of the TUN, although their address is captured.
        let inbound = setting.client.enter(|| TcpListener::bind("10.77.0.1:8000").unwrap());
        let from_server = |port: u16| {
            setting
                .server
                .enter(|| TcpStream::connect_timeout(&SocketAddr::from((Lan::addresses(1).0, port)), SOON))
        };
        from_server(8000).unwrap();
        inbound.accept().unwrap();
        assert_eq!(from_server(8001).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn refusals_are_told_as_what_they_are() {
    let setting = setting(&[], |_| {});
    for address in [VIRTUAL4, VIRTUAL6] {
        let error = |port| setting.connect(address, port).unwrap_err();
        assert_eq!(error(9).kind(), ErrorKind::ConnectionRefused);
        assert_eq!(error(UNREACHABLE).kind(), ErrorKind::HostUnreachable);
        let denied = error(DENIED).raw_os_error().unwrap();
        let expected = if address.is_ipv4() {
            libc::EHOSTUNREACH
        } else {
            libc::EACCES
        };
        assert_eq!(denied, expected);
    }
}

#[test]
fn resets_travel_both_ways() {
    let setting = setting(&[], |_| {});
    let listener = setting.listen(7000);
    let pair = || {
        let client = setting.connect(VIRTUAL4, 7000).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        (client, server)
    };
    let reset = |stream: TcpStream| {
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap()
    };
    let (client, mut server) = pair();
    reset(client);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (mut client, server) = pair();
    reset(server);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn two_thousand_flows_at_once() {
    let setting = setting(&[], |_| {});
    let listener = setting.listen(7000);
    socket2::SockRef::from(&listener).listen(4096).unwrap();
    let mut pairs = Vec::new();
    for number in 0..2000_u32 {
        let client = setting.connect(VIRTUAL4, 7000);
        let client = client.unwrap_or_else(|error| panic!("flow {number}: {error}"));
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        pairs.push((client, server));
    }
    for (number, (client, _)) in pairs.iter_mut().enumerate() {
        client.write_all(&(number as u32).to_be_bytes()).unwrap();
    }
    for (number, (client, server)) in pairs.iter_mut().enumerate() {
        let mut bytes = [0; 4];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_be_bytes(bytes), number as u32);
        server.write_all(&bytes).unwrap();
        client.read_exact(&mut bytes).unwrap();
    }
}

#[test]
fn a_device_that_is_taken_away_ends_the_loop() {
    let mut setting = setting(&[], |_| {});
    setting.client.ip("link del mesh0");
    assert_eq!(setting.proxy.wait(SOON).code(), Some(LOST));
}

#[test]
fn stopped_it_leaves_nothing() {
    let look = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset";
    let before = std::cell::RefCell::new(String::new());
    let mut setting = setting(&[], |client| *before.borrow_mut() = client.sh(look));
    assert!(setting.proxy.stop(SOON).success());
    assert_eq!(setting.client.sh(look), *before.borrow());
}

#[test]
fn killed_it_fails_closed_until_cleanup() {
    let mut setting = setting(&[], |_| {});
    let _listener = setting.listen(7000);
    setting.connect(Lan::addresses(2).0.into(), 7000).unwrap();
    setting.proxy.kill();
    let error = setting.connect(Lan::addresses(2).0.into(), 7000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable);
    setting
        .client
        .enter(|| mesh_agent::kernel::cleanup(&Config::default()).unwrap());
    setting.connect(Lan::addresses(2).0.into(), 7000).unwrap();
    let left = setting
        .client
        .sh("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset");
    assert!(!left.contains("28005") && !left.contains("mesh"), "{left}");
}
