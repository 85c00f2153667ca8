//! Which streams share a connection, and what becomes of those of one that ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use mesh_agent::failure::Failure;
use mesh_agent::tunnel::{ConnectHead, Target, Tunnels};
use mesh_core::outbound::Quic;

use crate::door::{Door, Served};
use crate::frames::{END_HEADERS, GOAWAY, HEADERS};
use crate::mesh::{Stream, dial, echo, id};
use crate::setting::dialling;

const AUTHORITY: &str = "10.9.9.9:8080";

/// Answers 200 to everybody, and echoes; how many requests each connection had.
fn answer_all(door: Rc<Door>, settings: h2::server::Builder) -> Rc<RefCell<Vec<usize>>> {
    let counts = Rc::<RefCell<Vec<usize>>>::default();
    let noted = counts.clone();
    tokio::task::spawn_local(async move {
        loop {
            let served = door.http2(&settings).await;
            noted.borrow_mut().push(0);
            let at = noted.borrow().len() - 1;
            tokio::task::spawn_local(answer(served, noted.clone(), at));
        }
    });
    counts
}

async fn answer(mut served: Served, counts: Rc<RefCell<Vec<usize>>>, at: usize) {
    while let Some(asked) = served.next().await {
        counts.borrow_mut()[at] += 1;
        tokio::task::spawn_local(asked.echo());
    }
}

fn limited(streams: u32) -> h2::server::Builder {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(streams);
    settings
}

async fn many(tunnels: &Tunnels, door: &Door, count: usize) -> Vec<Result<Stream, Failure>> {
    let dials = (0..count).map(|_| dial(tunnels, door.address(), &["orders"], AUTHORITY));
    futures_util::future::join_all(dials).await
}

#[test]
fn a_connection_has_a_hundred_streams_and_the_next_one_the_rest() {
    dialling(async |dialling| {
        let door = Rc::new(dialling.door);
        let counts = answer_all(door.clone(), limited(1000));
        let streams = many(&dialling.tunnels, &door, 101).await;
        assert!(streams.iter().all(Result::is_ok));
        assert_eq!(*counts.borrow(), [100, 1]);
        // The first takes no more, also once it could: it has left the pool.
        drop(streams);
        dial(&dialling.tunnels, door.address(), &["orders"], AUTHORITY)
            .await
            .unwrap();
        assert_eq!(counts.borrow().len(), 2);
    });
}

#[test]
fn a_server_that_offers_fewer_gets_no_more() {
    dialling(async |dialling| {
        let door = Rc::new(dialling.door);
        let counts = answer_all(door.clone(), limited(3));
        let mut streams = Vec::new();
        for _ in 0..7 {
            streams.push(
                dial(&dialling.tunnels, door.address(), &["orders"], AUTHORITY)
                    .await
                    .unwrap(),
            );
        }
        assert_eq!(*counts.borrow(), [3, 3, 1]);
    });
}

/// Before its SETTINGS came nobody knows how many it offers. What it then refuses was not served (RFC 9113 8.7).
#[test]
fn streams_that_a_full_server_refuses_are_opened_on_another_connection() {
    dialling(async |dialling| {
        let door = Rc::new(dialling.door);
        let counts = answer_all(door.clone(), limited(3));
        let streams = many(&dialling.tunnels, &door, 7).await;
        for stream in &streams {
            assert!(stream.is_ok(), "{:?}", stream.as_ref().err());
        }
        assert_eq!(counts.borrow().iter().sum::<usize>(), 7);
        assert!(counts.borrow().iter().all(|count| *count <= 3), "{counts:?}");
    });
}

#[test]
fn those_who_come_at_once_share_one_handshake() {
    dialling(async |dialling| {
        let door = Rc::new(dialling.door);
        answer_all(door.clone(), limited(100));
        assert!(many(&dialling.tunnels, &door, 20).await.iter().all(Result::is_ok));
        assert_eq!(door.hellos().len(), 1);
    });
}

#[test]
fn another_identity_or_address_on_either_side_is_another_connection() {
    dialling(async |dialling| {
        let ca = &dialling.ca;
        let door = Rc::new(dialling.door);
        answer_all(door.clone(), limited(100));
        let other = Rc::new(Door::new(&ca.member("orders")).await);
        answer_all(other.clone(), limited(100));
        let open = async |door: &Door, names: &[&str]| {
            dial(&dialling.tunnels, door.address(), names, AUTHORITY).await.unwrap();
            door.hellos().len()
        };
        assert_eq!(open(&door, &["orders"]).await, 1);
        assert_eq!(open(&door, &["orders"]).await, 1, "the same again");
        assert_eq!(open(&door, &["orders", "other"]).await, 2, "others expected");
        assert_eq!(open(&other, &["orders"]).await, 1, "elsewhere");
        assert_eq!(open(&door, &["orders"]).await, 2, "both are kept");
        let become_member = |name: &str| {
            let credentials = ca.member(name).credentials().unwrap();
            dialling.web.credentials.send_replace(Some(Arc::new(credentials)));
        };
        become_member("web");
        assert_eq!(open(&door, &["orders"]).await, 2, "a renewed certificate");
        become_member("guest");
        assert_eq!(open(&door, &["orders"]).await, 3, "as somebody else");
        become_member("web");
        assert_eq!(open(&door, &["orders"]).await, 3, "as before");
    });
}

#[test]
fn after_a_goaway_new_streams_go_elsewhere_and_old_ones_stay() {
    dialling(async |dialling| {
        let (door, tunnels) = (&dialling.door, &dialling.tunnels);
        let client = dial(tunnels, door.address(), &["orders"], AUTHORITY);
        let server = async {
            let mut served = door.http2(&limited(100)).await;
            let asked = served.next().await.unwrap();
            tokio::task::spawn_local(asked.echo());
            served
        };
        let (first, mut served) = tokio::join!(client, server);
        let mut first = first.unwrap();
        echo(&mut first, b"before").await.unwrap();
        served.go_away();
        echo(&mut first, b"after the goaway").await.unwrap();
        let client = dial(tunnels, door.address(), &["orders"], AUTHORITY);
        let server = async {
            let mut second = door.http2(&limited(100)).await;
            tokio::task::spawn_local(second.next().await.unwrap().echo());
            second
        };
        let (second, _served) = tokio::join!(client, server);
        echo(&mut second.unwrap(), b"elsewhere").await.unwrap();
        assert!(served.came().is_none());
        echo(&mut first, b"still").await.unwrap();
        drop(first);
        while !served.is_closed() {
            tokio::task::yield_now().await;
        }
    });
}

/// A stream beyond the last that a GOAWAY names was not served, so it is no failure of the flow.
#[test]
fn a_goaway_that_crosses_a_request_costs_a_connection_and_no_flow() {
    dialling(async |dialling| {
        let (door, tunnels) = (&dialling.door, &dialling.tunnels);
        let server = async {
            let mut first = door.wire().await;
            first.next(HEADERS).await;
            first.write(GOAWAY, 0, 0, &[0; 8]).await.unwrap();
            let mut second = door.wire().await;
            let request = second.next(HEADERS).await;
            second
                .write(HEADERS, END_HEADERS, request.stream, &[0x88])
                .await
                .unwrap();
            (first, second)
        };
        let (stream, _wires) = tokio::join!(dial(tunnels, door.address(), &["orders"], AUTHORITY), server);
        stream.unwrap();
        // The same when it just hangs up.
        let server = async {
            let mut third = door.wire().await;
            let request = third.next(HEADERS).await;
            third
                .write(HEADERS, END_HEADERS, request.stream, &[0x88])
                .await
                .unwrap();
            third
        };
        drop(_wires);
        let (stream, _wire) = tokio::join!(dial(tunnels, door.address(), &["orders"], AUTHORITY), server);
        stream.unwrap();
    });
}

/// What is opened inside a stream belongs to the flow that opened it: the gateway chose who is at its end.
#[test]
fn an_inner_tunnel_is_nobody_elses() {
    dialling(async |dialling| {
        let gateway = Rc::new(Door::new(&dialling.ca.member("gateway")).await);
        let inner = &dialling.door;
        let target = |name: &str| Target {
            peer: gateway.address(),
            identities: vec![id(name)],
            quic: Quic::No,
        };
        let head = |network: Option<&str>| ConnectHead {
            authority: "orders.shop:80".into(),
            forwarded_network: network.map(Into::into),
            ..ConnectHead::default()
        };
        let mut outer = None;
        for flow in 1..=2 {
            let client = async {
                let opened = dialling.tunnels.dial(&target("gateway"), &head(None)).await.unwrap();
                dialling
                    .tunnels
                    .dial_inside(opened, &target("orders"), &head(Some("west")))
                    .await
                    .unwrap()
            };
            let server = async {
                if outer.is_none() {
                    outer = Some(gateway.http2(&limited(100)).await);
                }
                let asked = outer.as_mut().unwrap().next().await.unwrap();
                assert_eq!(
                    (asked.authority(), asked.header("x-forwarded-network")),
                    ("orders.shop:80", None)
                );
                let tls = inner.inside(asked.into_pipe()).await.unwrap();
                let mut served = Served::over(tls, &limited(100)).await;
                let asked = served.next().await.unwrap();
                assert_eq!(asked.authority(), "orders.shop:80");
                assert_eq!(asked.header("x-forwarded-network"), Some("west"));
                tokio::task::spawn_local(asked.echo());
                served
            };
            let ((mut stream, peer), _served) = tokio::join!(client, server);
            assert_eq!(peer.identity, id("orders"), "who is at the end, not the gateway");
            echo(&mut stream, b"through the gateway").await.unwrap();
            assert_eq!((gateway.hellos().len(), inner.hellos().len()), (1, flow));
        }
    });
}
