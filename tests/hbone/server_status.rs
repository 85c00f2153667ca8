//! Each status code by its cause, and what the answer says besides.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use mesh_core::world::{ApplicationTunnel, Delta, World};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpListener;

use crate::bare::{ask, request};
use crate::frames::{END_HEADERS, END_STREAM, HEADERS, RST_STREAM, fields};
use crate::mesh::{OWN_PORTS, echo_server, run, target};
use crate::setting::{Setting, deny_web, service};

#[test]
fn status_200_comes_after_the_application_was_reached() {
    run(async || {
        let setting = Setting::new();
        // An application whose queue is full: the kernel answers no more SYNs until one was accepted.
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener
            .bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(address).unwrap();
        let mut wire = setting.wire().await;
        wire.write(HEADERS, END_HEADERS, 1, &crate::frames::connect(&target(address)))
            .await
            .unwrap();
        let before = wire.round_trip().await;
        assert!(!before.iter().any(|frame| frame.kind == HEADERS), "{before:?}");
        listener.accept().unwrap();
        let answer = wire.next(HEADERS).await;
        assert_eq!(answer.flags & END_STREAM, 0, "not the end of the stream");
        // `:status: 200` is an entry of the static table (RFC 7541 appendix A).
        assert_eq!(answer.payload[0], 0x88);
        listener.set_nonblocking(true).unwrap();
        listener.accept().expect("200, and nobody connected");
    });
}

#[test]
fn status_200_comes_with_our_baggage() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let answer = setting.ask(&application, &[]).await;
        assert_eq!(answer.status, 200);
        let expected = "k8s.cluster.name=mesh,k8s.namespace.name=shop,k8s.pod.name=orders,service.name=orders";
        assert_eq!(answer.header("baggage"), Some(expected));
        setting.record(|record| {
            record.workload_type = 0;
            record.canonical_revision = "v2".into();
            record.locality.region = "north".into();
            record.locality.zone = "north-1".into();
            record.canonical_name = "".into();
        });
        let answer = setting.ask(&application, &[]).await;
        let expected = "k8s.cluster.name=mesh,k8s.namespace.name=shop,k8s.deployment.name=orders,service.version=v2,\
                        cloud.region=north,cloud.availability_zone=north-1";
        assert_eq!(answer.header("baggage"), Some(expected));
    });
}

#[test]
fn status_400_for_what_is_no_connect() {
    run(async || {
        let setting = Setting::new();
        let client = setting.client().await;
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let request = Request::builder()
                .method(&method)
                .uri("https://10.9.9.9:80/")
                .body(())
                .unwrap();
            assert_eq!(ask(&client, request).await.unwrap().status, 400, "{method}");
        }
        // An extended CONNECT (RFC 8441) was not allowed by our settings, and is not understood as one.
        let mut wire = setting.wire().await;
        let extended = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/"),
            (":authority", "10.9.9.9:80"),
        ];
        wire.write(HEADERS, END_HEADERS, 1, &fields(&extended)).await.unwrap();
        let reset = wire.next(RST_STREAM).await;
        assert_eq!(reset.number(0), 1, "PROTOCOL_ERROR");
    });
}

#[test]
fn status_400_for_an_authority_that_names_nothing() {
    run(async || {
        let setting = Setting::new();
        for authority in [
            "10.9.9.9",
            "10.9.9.9:0",
            "10.9.9.9:65536",
            "10.9.9.9:080x",
            "10.9.9:80",
            "[fd00::1%25eth0]:80",
            "user@10.9.9.9:80",
            "a..b:80",
        ] {
            // Some of these no library sends.
            let mut wire = setting.wire().await;
            wire.write(HEADERS, END_HEADERS, 1, &crate::frames::connect(authority))
                .await
                .unwrap();
            let answer = wire.next_or_end(HEADERS).await.unwrap_or_else(|| panic!("{authority}"));
            // `:status: 400`, an entry of the static table too.
            assert_eq!(answer.payload[0], 0x8c, "{authority}");
        }
        // What is malformed by HTTP/2 itself is a reset (RFC 9113 8.1.1).
        for head in [
            fields(&[(":method", "CONNECT"), (":authority", "10.9.9.9 :80")]),
            fields(&[(":method", "CONNECT"), (":authority", "10.9.9.9:80"), (":path", "/")]),
            fields(&[
                (":method", "CONNECT"),
                (":authority", "10.9.9.9:80"),
                (":scheme", "https"),
            ]),
            fields(&[
                (":method", "CONNECT"),
                (":authority", "10.9.9.9:80"),
                ("connection", "close"),
            ]),
        ] {
            let mut wire = setting.wire().await;
            wire.write(HEADERS, END_HEADERS, 1, &head).await.unwrap();
            assert_eq!(wire.next(RST_STREAM).await.number(0), 1, "PROTOCOL_ERROR");
        }
    });
}

#[test]
fn status_400_for_an_address_that_is_not_ours() {
    run(async || {
        let setting = Setting::new();
        for authority in [
            "10.9.9.8:80",
            "127.0.0.1:80",
            "169.254.169.254:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            let answer = setting.ask(authority, &[]).await;
            assert_eq!(answer.status, 400, "{authority}");
            assert_eq!(answer.header("baggage"), None, "only 200 has it");
            assert!(answer.recv.is_end_stream());
        }
    });
}

#[test]
fn status_401_names_the_policies() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        setting.orders.change(Delta {
            policies: vec![deny_web()],
            ..Delta::default()
        });
        // What a caller says of itself moves nothing.
        let lies = [
            ("forwarded", "for=\"10.9.9.9:1\";host=orders"),
            ("x-forwarded-for", "10.9.9.9"),
            ("x-forwarded-network", "west"),
            ("baggage", "k8s.namespace.name=shop,service.name=orders"),
        ];
        for headers in [&[][..], &lies] {
            let answer = setting.ask(&application, headers).await;
            assert_eq!(
                (answer.status, answer.header("x-mesh-policy")),
                (401, Some("shop/no-web"))
            );
            assert!(answer.recv.is_end_stream());
        }
    });
}

#[test]
fn status_503_while_nothing_is_known_of_us_or_of_policies() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let known = setting.orders.world.borrow().clone();
        let records = || known.workloads().map(|one| (**one).clone()).collect();
        let unsynced = World::default().apply(Delta {
            workloads: records(),
            ..Delta::default()
        });
        for (world, reason) in [(World::default(), "unknown-workload"), (unsynced, "not-synced")] {
            setting.orders.world.send_replace(world.into());
            let answer = setting.ask(&application, &[]).await;
            assert_eq!((answer.status, answer.header("x-mesh-reason")), (503, Some(reason)));
        }
    });
}

#[test]
fn status_503_for_a_service_or_port_that_we_do_not_serve() {
    run(async || {
        let setting = Setting::new();
        let orders = service("orders.shop", [240, 0, 0, 1], (80, 8080));
        let key = orders.key.clone();
        setting.orders.change(Delta {
            services: vec![orders, service("other.shop", [240, 0, 0, 2], (80, 8080))],
            ..Delta::default()
        });
        setting.record(|record| record.services = vec![(key, Vec::new())]);
        for authority in ["orders.shop:81", "other.shop:80", "nowhere.shop:80"] {
            assert_eq!(setting.ask(authority, &[]).await.status, 503, "{authority}");
        }
    });
}

#[test]
fn status_503_for_our_own_ports_also_by_name() {
    run(async || {
        let setting = Setting::new();
        for port in OWN_PORTS.into_iter().chain([53]) {
            assert_eq!(
                setting.ask(&format!("10.9.9.9:{port}"), &[]).await.status,
                503,
                "{port}"
            );
        }
        let own = service("orders.shop", [240, 0, 0, 1], (80, OWN_PORTS[0]));
        let key = own.key.clone();
        setting.orders.change(Delta {
            services: vec![own],
            ..Delta::default()
        });
        setting.record(|record| record.services = vec![(key.clone(), Vec::new())]);
        assert_eq!(setting.ask("orders.shop:80", &[]).await.status, 503);
        // Nor by an application tunnel.
        setting.record(|record| {
            let port = OWN_PORTS[0];
            record.application_tunnel = Some(ApplicationTunnel { proxy: true, port });
        });
        assert_eq!(setting.ask("10.9.9.9:80", &[]).await.status, 503);
    });
}

#[test]
fn status_503_when_the_application_does_not_answer() {
    run(async || {
        let setting = Setting::new();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let answer = setting.ask(&target(closed), &[]).await;
        assert_eq!((answer.status, answer.header("x-mesh-reason")), (503, Some("refused")));
        // A queue that stays full.
        let full = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&full).listen(0).unwrap();
        let _first = std::net::TcpStream::connect(full.local_addr().unwrap()).unwrap();
        let client = setting.client().await;
        ask(&client, request("10.9.9.9", &[])).await.unwrap();
        let time = crate::virtual_time::Held::new();
        let pending = ask(&client, request(&target(full.local_addr().unwrap()), &[]));
        tokio::pin!(pending);
        // The other stream's answer shows that ours was looked at before.
        tokio::select! {
            biased;
            answer = &mut pending => panic!("answered at once: {}", answer.unwrap().status),
            other = ask(&client, request("10.9.9.9", &[])) => assert_eq!(other.unwrap().status, 400),
        }
        time.pass(Duration::from_millis(
            setting.orders.shared.config.outbound.connect_timeout_ms + 1,
        ))
        .await;
        let answer = pending.await.unwrap();
        assert_eq!((answer.status, answer.header("x-mesh-reason")), (503, Some("timeout")));
    });
}

/// What follows a refusal on the same connection is served.
#[test]
fn a_refusal_costs_its_stream_alone() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let client = setting.client().await;
        let mut live = ask(&client, request(&application, &[])).await.unwrap();
        for authority in ["10.9.9.8:80", "10.9.9.9:15008", "orders:1"] {
            assert_ne!(ask(&client, request(authority, &[])).await.unwrap().status, 200);
        }
        live.echo(b"undisturbed").await;
        let mut send = client.clone().ready().await.unwrap();
        let (response, mut body) = send.send_request(request("10.9.9.8:80", &[]), false).unwrap();
        // A payload that nobody waits for.
        body.send_data(Bytes::from_static(&[0; 1000]), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 400);
        live.echo(b"still").await;
    });
}
