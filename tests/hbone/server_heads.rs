//! What the headers of a CONNECT move: where it is delivered, what is logged, what the application hears.

use std::net::{Ipv4Addr, Ipv6Addr};

use mesh_core::world::{ApplicationTunnel, Delta, Workload};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::mesh::{ADDRESS, echo_server, id, over_each, run, workload};
use crate::setting::{Log, Setting, service};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Ours over HTTP/3 is told to whoever asks over HTTP/2, where we would speak it.
#[test]
fn http3_is_offered_unless_only_tcp_is_wanted() {
    over_each(async || {
        let setting = Setting::with(|tunnel| tunnel.listen = "127.0.15.8:15008".parse().unwrap());
        let application = echo_server().await;
        let expected = match setting.orders.shared.config.tunnel.transport {
            mesh_core::transport::Preference::Tcp => None,
            _ => Some("h3=\":15008\""),
        };
        assert_eq!(setting.ask(&application, &[]).await.header("alt-svc"), expected);
        // A refusal is an answer, too.
        assert_eq!(setting.ask("10.9.9.8:80", &[]).await.header("alt-svc"), expected);
    });
}

#[test]
fn every_form_of_authority_is_delivered() {
    run(async || {
        let setting = Setting::new();
        let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = six.local_addr().unwrap().port();
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let orders = service("orders.shop", [240, 0, 0, 1], (80, port));
        let key = orders.key.clone();
        setting.orders.change(Delta {
            services: vec![orders],
            ..Delta::default()
        });
        setting.record(|record| {
            record.services = vec![(key, Vec::new())];
            record.addresses = vec![ADDRESS.into(), "fd00::9".parse().unwrap()];
        });
        for (authority, listener) in [
            (format!("10.9.9.9:{port}"), &four),
            (format!("[::ffff:10.9.9.9]:{port}"), &four),
            (format!("[fd00::9]:{port}"), &six),
            (format!("[fd00:0:0::0009]:{port}"), &six),
            ("orders.shop:80".into(), &four),
            ("Orders.Shop.:80".into(), &four),
        ] {
            let mut answer = setting.ask(&authority, &[]).await;
            assert_eq!(answer.status, 200, "{authority}");
            let (mut accepted, _) = listener.accept().await.unwrap();
            accepted.write_all(b"here").await.unwrap();
            assert_eq!(answer.receive(4).await, b"here", "{authority}");
        }
    });
}

#[test]
fn a_valid_traceparent_is_taken_over_and_any_other_replaced() {
    run(async || {
        let (log, _guard) = Log::start();
        let setting = Setting::new();
        let application = echo_server().await;
        setting.ask(&application, &[("traceparent", TRACE)]).await;
        log.line(&["connection opened", "trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\""])
            .await;
        // It is in the line of a refusal as well.
        let refused = TRACE.replace("4bf9", "0bad");
        setting.ask("10.9.9.8:80", &[("traceparent", &refused)]).await;
        log.line(&["connection failed", "trace_id=\"0bad2f3577b34da6a3ce929d0e0e4736\""])
            .await;

        let (dashes, letters) = ("-".repeat(55), "x".repeat(55));
        let upper = TRACE.to_uppercase();
        let no_dash = TRACE.replace('-', "0");
        for (at, malformed) in ["", "0", &dashes, &letters, &upper, &no_dash, &TRACE[1..]]
            .into_iter()
            .enumerate()
        {
            // Told apart in the log by what else they say.
            let host = format!("for=x;host=case-{at}.shop");
            let named = service(&format!("case-{at}.shop"), [240, 0, 1, at as u8], (80, 8080));
            let key = named.key.clone();
            setting.orders.change(Delta {
                services: vec![named],
                ..Delta::default()
            });
            setting.record(|record| record.services = vec![(key, Vec::new())]);
            let mut answer = setting
                .ask(&application, &[("traceparent", malformed), ("forwarded", &host)])
                .await;
            assert_eq!(answer.status, 200, "{malformed}");
            answer.echo(b"alive").await;
            let line = log.line(&["connection opened", &format!("case-{at}.shop")]).await;
            let (_, id) = line.split_once("trace_id=\"").unwrap();
            let id = id.split('"').next().unwrap();
            assert!(id.len() == 32 && !TRACE.contains(id), "{malformed}: {id}");
        }
    });
}

#[test]
fn forwarded_names_a_service_in_the_log_and_moves_nothing_else() {
    run(async || {
        let (log, _guard) = Log::start();
        let setting = Setting::new();
        let application = echo_server().await;
        let orders = service("orders.shop", [240, 0, 0, 1], (80, 1));
        let key = orders.key.clone();
        setting.orders.change(Delta {
            services: vec![orders],
            ..Delta::default()
        });
        setting.record(|record| record.services = vec![(key, Vec::new())]);
        let header = "for=\"10.1.2.3:4\";host=orders.shop";
        setting.ask(&application, &[("forwarded", header)]).await;
        let line = log.line(&["connection opened", "dst.service=\"orders.shop\""]).await;
        assert!(line.contains("src.addr=127.0.0.1:"), "{line}");
        assert!(!line.contains("10.1.2.3"), "{line}");
    });
}

fn named(name: &str, address: &str) -> Workload {
    Workload {
        uid: format!("mesh//{name}").into(),
        name: name.into(),
        identity: id(name),
        addresses: vec![address.parse().unwrap()],
        ..workload(name)
    }
}

/// A caller of another network is what it says of itself, and any other is who has its address.
#[test]
fn x_forwarded_network_says_by_what_the_caller_is_known() {
    run(async || {
        let (log, _guard) = Log::start();
        let setting = Setting::new();
        setting.orders.change(Delta {
            workloads: vec![named("neighbour", "127.0.0.1")],
            ..Delta::default()
        });
        let application = echo_server().await;
        // A header may come in several lines (RFC 9110 5.3).
        let said = [
            ("baggage", "k8s.cluster.name=far"),
            ("baggage", "k8s.pod.name=remote,service.name=remote"),
        ];
        setting.ask(&application, &said).await;
        log.line(&["connection opened", "src.workload=\"neighbour\""]).await;
        let from = |network: &'static str| [said[0], said[1], ("x-forwarded-network", network)];
        setting.ask(&application, &from("west")).await;
        log.line(&["connection opened", "src.workload=\"remote\"", "src.cluster=\"far\""])
            .await;
    });
}

#[test]
fn an_application_tunnel_begins_with_a_proxy_header() {
    run(async || {
        let setting = Setting::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        setting.record(|record| record.application_tunnel = Some(ApplicationTunnel { proxy: true, port }));
        // Whatever it is called: the application of a tunnel knows what is behind.
        let mut answer = setting.ask("240.0.0.9:80", &[]).await;
        assert_eq!(answer.status, 200);
        let (mut accepted, _) = listener.accept().await.unwrap();
        let identity = b"spiffe://mesh.internal/ns/shop/sa/web";
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        // Version 2, PROXY; TCP over IPv4; what follows.
        expected.extend_from_slice(&[0x21, 0x11, 0, 12 + 3 + identity.len() as u8]);
        expected.extend_from_slice(&[127, 0, 0, 1, 240, 0, 0, 9]);
        let source_port_at = expected.len();
        expected.extend_from_slice(&[0, 0, 0, 80]);
        // The TLV of ztunnel for who calls.
        expected.extend_from_slice(&[0xd0, 0, identity.len() as u8]);
        expected.extend_from_slice(identity);
        let mut got = vec![0; expected.len()];
        accepted.read_exact(&mut got).await.unwrap();
        // The port of the caller's connection, whichever it was.
        assert_ne!(got[source_port_at..source_port_at + 2], [0, 0]);
        got[source_port_at..source_port_at + 2].fill(0);
        assert_eq!(got, expected);
        answer.send.send_data("then the payload".into(), true).unwrap();
        let mut payload = Vec::new();
        accepted.read_to_end(&mut payload).await.unwrap();
        assert_eq!(payload, b"then the payload");
        accepted.write_all(b"answer").await.unwrap();
        assert_eq!(answer.receive(6).await, b"answer");
    });
}
