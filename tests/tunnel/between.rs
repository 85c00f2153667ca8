//! Who stands between: a gateway of another network, and an application that hears of its callers by a PROXY header.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use mesh_agent::copy::{Count, both_ways, tcp};
use mesh_agent::failure::Failure;
use mesh_agent::tunnel::listen::{self, Request};
use mesh_agent::tunnel::{ConnectHead, ResponseHead, Target, Tunnels};
use mesh_core::outbound::Quic;
use mesh_core::transport::Preference;
use mesh_core::world::{ApplicationTunnel, Delta};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::mesh::{Ca, Member, Stream, dial, echo, echo_server, id, over, over_each, workload};

/// How often a gateway was asked, and how many of these streams live.
struct Passed {
    asked: Cell<usize>,
    live: watch::Sender<usize>,
}

/// A gateway that takes whatever it is asked for to `inner`.
fn gateway(member: &Member, inner: SocketAddr) -> (SocketAddr, Rc<Passed>) {
    let tunnels = Tunnels::bind(member.shared.clone()).unwrap();
    let address = tunnels.local_address();
    let passed = Rc::new(Passed {
        asked: Cell::new(0),
        live: watch::Sender::new(0),
    });
    let noted = passed.clone();
    let forward = move |request: Request| {
        let noted = noted.clone();
        noted.asked.set(noted.asked.get() + 1);
        noted.live.send_modify(|live| *live += 1);
        async move {
            let far = tcp::split(TcpStream::connect(inner).await.unwrap());
            let ok = ResponseHead {
                status: 200,
                ..ResponseHead::default()
            };
            let near = request.accept(ok).await.unwrap();
            let _ = both_ways(near, far, &Count::default(), &Count::default()).await;
            noted.live.send_modify(|live| *live -= 1);
        }
    };
    tokio::task::spawn_local(listen::run(tunnels, forward));
    (address, passed)
}

async fn through(tunnels: &Tunnels, gateway: SocketAddr, inner: &[&str], authority: &str) -> Result<Stream, Failure> {
    let target = |names: &[&str]| Target {
        peer: gateway,
        identities: names.iter().map(|name| id(name)).collect(),
        quic: Quic::No,
    };
    let head = |network: Option<&str>| ConnectHead {
        authority: authority.into(),
        forwarded_network: network.map(Into::into),
        ..ConnectHead::default()
    };
    let outer = tunnels.dial(&target(&["gateway"]), &head(None)).await?;
    let opened = tunnels.dial_inside(outer, &target(inner), &head(Some("west"))).await;
    opened.map(|(stream, _)| stream)
}

#[test]
fn a_gateway_is_passed_to_one_of_those_who_may_be_behind_it() {
    over(Preference::Tcp, async || {
        let ca = Ca::new();
        let member = |name: &str| Member::new(name, &ca.member(name));
        let (web, orders, between) = (member("web"), member("orders"), member("gateway"));
        let application = echo_server().await;
        let (gateway, passed) = gateway(&between, orders.serve());
        let tunnels = web.dialer();
        // Whoever the gateway picks must be one of many; and its tunnel is not the next flow's.
        for _ in 0..2 {
            let mut stream = through(&tunnels, gateway, &["other", "orders"], &application)
                .await
                .unwrap();
            echo(&mut stream, b"through the gateway").await.unwrap();
        }
        let refused = through(&tunnels, gateway, &["other"], &application).await.unwrap_err();
        assert!(
            matches!(&refused, Failure::Tls(why) if why.contains("identity mismatch")),
            "{refused}"
        );
        // What is refused behind it is refused by who it is.
        let foreign = through(&tunnels, gateway, &["orders"], "10.9.9.8:80")
            .await
            .unwrap_err();
        assert!(matches!(foreign, Failure::Status { status: 400, .. }), "{foreign}");
        assert_eq!(passed.asked.get(), 4, "an outer stream for each");
        // The inner tunnel, and with it the outer stream, ends with the flow that it was for.
        let mut live = passed.live.subscribe();
        let none = tokio::time::timeout(Duration::from_secs(10), live.wait_for(|live| *live == 0)).await;
        assert!(none.is_ok(), "{} are left", *passed.live.borrow());
    });
}

#[test]
fn an_application_tunnel_hears_who_calls() {
    over_each(async || {
        let ca = Ca::new();
        let (web, orders) = (
            Member::new("web", &ca.member("web")),
            Member::new("orders", &ca.member("orders")),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut record = workload("orders");
        record.application_tunnel = Some(ApplicationTunnel {
            proxy: true,
            port: listener.local_addr().unwrap().port(),
        });
        orders.change(Delta {
            workloads: vec![record],
            ..Delta::default()
        });
        let peer = orders.serve();
        // Not an address of ours: with an application tunnel it is the application that knows what it is.
        let mut stream = dial(&web.dialer(), peer, &["orders"], "240.240.0.9:80").await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        let mut header = [0; 28];
        accepted.read_exact(&mut header).await.unwrap();
        assert_eq!(&header[..14], b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
        assert_eq!(&header[16..20], [127, 0, 0, 1], "who calls");
        assert_eq!(&header[20..24], [240, 240, 0, 9], "whom for");
        let mut identity = vec![0; usize::from(header[15]) - 12];
        accepted.read_exact(&mut identity).await.unwrap();
        assert_eq!(&identity[3..], b"spiffe://mesh.internal/ns/shop/sa/web");
        accepted.write_all(b"heard").await.unwrap();
        let got = mesh_agent::copy::Source::recv(&mut stream.source).await.unwrap();
        assert_eq!(got.as_deref(), Some(&b"heard"[..]));
    });
}
