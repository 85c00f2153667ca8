//! The first connection to a peer of which HTTP/3 is not expected: no datagram, no wait; and what an offer of it changes.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use mesh_agent::failure::Failure;
use mesh_agent::tunnel::{ConnectHead, Opened, Target, Tunnels};
use mesh_core::outbound::Quic;
use mesh_core::transport::Preference;

use crate::bare;
use crate::door::Door;
use crate::mesh::{Ca, Member, id, over};

/// What a ztunnel is to the world: HBONE, and nothing said of HTTP/3.
async fn dial(tunnels: &Tunnels, door: &Door) -> Result<Opened, Failure> {
    let target = Target {
        peer: door.address(),
        identities: vec![id("orders")],
        quic: Quic::No,
    };
    let head = ConnectHead {
        authority: "10.9.9.9:8080".into(),
        ..ConnectHead::default()
    };
    tunnels.dial(&target, &head).await
}

/// The UDP port beside a door.
fn beside(door: &Door) -> UdpSocket {
    let socket = UdpSocket::bind(door.address()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn nothing_came(socket: &UdpSocket) -> bool {
    let read = socket.recv(&mut [0; 2048]);
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// One connection that answers one request.
async fn answer(door: &Door, headers: &[(&'static str, &str)]) -> impl Sized {
    let mut served = door.http2(&h2::server::Builder::new()).await;
    let asked = served.next().await.unwrap();
    (asked.accept(headers), served)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_first_connect_sends_no_datagram_and_waits_for_nothing() {
    over(Preference::Auto, async || {
        let ca = Ca::new();
        let door = Door::new(&ca.member("orders")).await;
        let udp = beside(&door);
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            // Who remembers nothing, each time.
            let web = Member::new("web", &ca.member("web"));
            let tunnels = web.dialer();
            let started = Instant::now();
            let (opened, _held) = tokio::join!(dial(&tunnels, &door), answer(&door, &[]));
            ours.push(started.elapsed());
            opened.unwrap();

            let pem = ca.member("web");
            let started = Instant::now();
            let client = async {
                let client = bare::client(door.address(), &pem).await;
                bare::ask(&client, bare::request("10.9.9.9:8080", &[])).await
            };
            let (opened, _held) = tokio::join!(client, answer(&door, &[]));
            bare.push(started.elapsed());
            opened.unwrap();
        }
        assert!(nothing_came(&udp), "a datagram was sent");
        let (ours, bare) = (median(ours), median(bare));
        say(&format!(
            "first connect: {ours:?}, of a client that does nothing else: {bare:?}"
        ));
        // QUIC's head start would be 200 ms.
        assert!(ours < bare + Duration::from_millis(50), "{ours:?} against {bare:?}");
    });
}

#[expect(
    clippy::print_stderr,
    reason = "what was measured is of interest when it passes, too"
)]
fn say(line: &str) {
    eprintln!("{line}");
}

#[test]
fn an_offer_is_tried_beside_the_next_stream() {
    over(Preference::Auto, async || {
        let ca = Ca::new();
        let door = Door::new(&ca.member("orders")).await;
        let udp = beside(&door);
        let web = Member::new("web", &ca.member("web"));
        let tunnels = web.dialer();
        let mut served = None;
        let port = door.address().port();
        // Offers of something else, or by somebody else's name, are none of this peer's.
        let others = [
            String::new(),
            "h3=\":1\"".into(),
            format!("h3=\"elsewhere:{port}\""),
            format!("h2=\":{port}\""),
            "clear".into(),
        ];
        let offer = format!("h2=\":1\", h3=\":{port}\"; ma=3600");
        for alt_svc in others.iter().chain([&offer, &offer]) {
            let client = dial(&tunnels, &door);
            let server = async {
                if served.is_none() {
                    served = Some(door.http2(&h2::server::Builder::new()).await);
                }
                let asked = served.as_mut().unwrap().next().await.unwrap();
                assert!(nothing_came(&udp) || alt_svc == &offer, "a datagram before the offer");
                asked.accept(&[("alt-svc", alt_svc)])
            };
            let (opened, _stream) = tokio::join!(client, server);
            // QUIC gets no answer here; nobody waits for one.
            assert_eq!(opened.unwrap().1.transport, mesh_agent::flows::Transport::Hbone);
        }
        let mut datagram = [0; 2048];
        let length = loop {
            match udp.recv(&mut datagram) {
                Ok(length) => break length,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            tokio::task::yield_now().await;
        };
        // An Initial of QUIC version 1: a long header, and padded (RFC 9000 14.1, 17.2.2).
        assert!(
            length >= 1200 && datagram[0] & 0xf0 == 0xc0,
            "{length}: {:?}",
            &datagram[..5]
        );
        assert_eq!(datagram[1..5], [0, 0, 0, 1]);
    });
}

#[test]
fn with_tcp_alone_no_offer_is_heard() {
    over(Preference::Tcp, async || {
        let ca = Ca::new();
        let door = Door::new(&ca.member("orders")).await;
        let udp = beside(&door);
        let web = Member::new("web", &ca.member("web"));
        let tunnels = web.dialer();
        let offer = format!("h3=\":{}\"", door.address().port());
        let mut served = None;
        for _ in 0..3 {
            let server = async {
                if served.is_none() {
                    served = Some(door.http2(&h2::server::Builder::new()).await);
                }
                served
                    .as_mut()
                    .unwrap()
                    .next()
                    .await
                    .unwrap()
                    .accept(&[("alt-svc", &offer)])
            };
            let (opened, _stream) = tokio::join!(dial(&tunnels, &door), server);
            opened.unwrap();
        }
        assert!(nothing_came(&udp));
    });
}
