//! What a captured connection becomes at a bare server: whom the CONNECT names, what it says of us, and what the application
//! hears of the answer.

use std::io::ErrorKind;

use mesh_core::world::{Delta, Workload};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::door::{Asked, Door, Served};
use crate::machine::{CLIENT, Call, NETWORK, SERVER, SERVER6, VIP, at, call, capturing, gateway};
use crate::setting::{Log, service};

/// `00-`, a trace, a parent, and not sampled.
fn trace_id(asked: &Asked) -> String {
    let header = asked.header("traceparent").unwrap();
    let parts: Vec<_> = header.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else {
        panic!("{header}");
    };
    assert_eq!((version, trace.len(), parent.len(), flags), ("00", 32, 16, "00"));
    trace.to_owned()
}

#[test]
fn a_workload_is_asked_for_by_its_address() {
    capturing(async |machine| {
        let (log, _guard) = Log::start();
        let mut own = at("web", CLIENT);
        own.canonical_revision = "v3".into();
        own.locality.region = "north".into();
        machine.know(vec![own, at("orders", SERVER)], vec![]);
        machine.capture(&[SERVER.into()]);
        let mut said = None;
        let mut first = call(&machine.door("orders"), SERVER.into(), 8080, |asked| {
            assert_eq!(asked.authority(), "10.77.0.2:8080");
            let baggage = "k8s.cluster.name=mesh,k8s.namespace.name=shop,k8s.pod.name=web,service.name=web,\
                           service.version=v3,cloud.region=north";
            assert_eq!(asked.header("baggage"), Some(baggage));
            let names: Vec<_> = asked.parts.headers.keys().map(http::HeaderName::as_str).collect();
            assert_eq!(names, ["baggage", "forwarded", "traceparent"], "and nothing else");
            said = Some((asked.header("forwarded").unwrap().to_owned(), trace_id(asked)));
        })
        .await;
        first.works().await;
        let (forwarded, trace) = said.unwrap();
        let port = first.application.local_addr().unwrap().port();
        assert_eq!(forwarded, format!("for=\"{CLIENT}:{port}\""));
        log.line(&["connection opened", "direction=\"outbound\"", &trace]).await;
    });
}

#[test]
fn an_address_of_version_6_is_asked_for_in_brackets() {
    capturing(async |machine| {
        let mut orders = at("orders", SERVER);
        orders.addresses = vec![SERVER6.into()];
        machine.know(vec![orders], vec![]);
        machine.capture(&[SERVER6.into()]);
        let mut forwarded = None;
        let mut six = call(&machine.door("orders"), SERVER6.into(), 8080, |asked| {
            assert_eq!(asked.authority(), "[fd77::2]:8080");
            forwarded = asked.header("forwarded").map(str::to_owned);
        })
        .await;
        six.works().await;
        let local = six.application.local_addr().unwrap();
        assert!(local.is_ipv6());
        assert_eq!(forwarded, Some(format!("for=\"{local}\"")));
    });
}

#[test]
fn nothing_is_said_of_us_where_we_are_not_known() {
    capturing(async |machine| {
        machine.know(vec![at("orders", SERVER)], vec![]);
        machine.web.change(Delta {
            removed_addresses: vec!["mesh//web".into()],
            ..Delta::default()
        });
        machine.capture(&[SERVER.into()]);
        let look = |asked: &Asked| assert_eq!(asked.header("baggage"), None);
        call(&machine.door("orders"), SERVER.into(), 8080, look)
            .await
            .works()
            .await;
    });
}

#[test]
fn a_service_is_asked_for_by_its_endpoint_and_behind_a_waypoint_by_its_own_address() {
    capturing(async |machine| {
        let mut orders = service("orders.shop", VIP.octets(), (80, 8080));
        orders.vips[0].0 = NETWORK.into();
        let mut endpoint = at("orders", SERVER);
        endpoint.services = vec![(orders.key.clone(), Vec::new())];
        machine.know(vec![endpoint], vec![orders.clone()]);
        machine.capture(&[VIP.into()]);
        let mut traces = Vec::new();
        let mut direct = call(&machine.door("orders"), VIP.into(), 80, |asked| {
            assert_eq!(asked.authority(), "10.77.0.2:8080");
            assert!(asked.header("forwarded").unwrap().ends_with(";host=orders.shop"));
            traces.push(trace_id(asked));
        })
        .await;
        direct.works().await;

        orders.waypoint = Some(gateway());
        let removed = Delta {
            removed_addresses: vec!["mesh//orders".into()],
            ..Delta::default()
        };
        machine.web.change(removed);
        machine.know(vec![at("waypoint", SERVER)], vec![orders]);
        let mut through = call(&machine.door("waypoint"), VIP.into(), 80, |asked| {
            assert_eq!(asked.authority(), "240.0.0.1:80");
            assert!(asked.header("forwarded").unwrap().ends_with(";host=orders.shop"));
            traces.push(trace_id(asked));
        })
        .await;
        through.works().await;
        direct.works().await;
        assert_ne!(traces[0], traces[1], "each flow has its own");
    });
}

#[test]
fn another_network_is_asked_for_by_name_twice() {
    capturing(async |machine| {
        let mut orders = service("orders.shop", VIP.octets(), (80, 8080));
        orders.vips[0].0 = NETWORK.into();
        let remote = Workload {
            addresses: Vec::new(),
            network: "west".into(),
            network_gateway: Some(gateway()),
            services: vec![(orders.key.clone(), Vec::new())],
            ..at("orders", SERVER)
        };
        machine.know(vec![remote, at("gateway", SERVER)], vec![orders]);
        machine.capture(&[VIP.into()]);
        let (gateway, behind) = (machine.door("gateway"), Door::new(&machine.ca.member("orders")).await);
        let server = async {
            let mut outer = gateway.http2(&h2::server::Builder::new()).await;
            let asked = outer.next().await.unwrap();
            assert_eq!(
                (asked.authority(), asked.header("x-forwarded-network")),
                ("orders.shop:80", None)
            );
            let trace = trace_id(&asked);
            let tls = behind.inside(asked.into_pipe()).await.unwrap();
            let mut inner = Served::over(tls, &h2::server::Builder::new()).await;
            let asked = inner.next().await.unwrap();
            assert_eq!(
                (asked.authority(), asked.header("x-forwarded-network")),
                ("orders.shop:80", Some(NETWORK))
            );
            assert_eq!(trace_id(&asked), trace, "one flow");
            assert!(asked.header("forwarded").unwrap().ends_with(";host=orders.shop"));
            (asked.into_pipe(), inner, outer)
        };
        let (application, (pipe, inner, _outer)) = tokio::join!(TcpStream::connect((VIP, 80)), server);
        let mut call = Call::new(application.unwrap(), pipe, inner);
        call.works().await;
    });
}

/// What an application hears of each answer, and the log.
#[test]
fn the_application_and_the_log_hear_why() {
    capturing(async |machine| {
        let (log, _guard) = Log::start();
        machine.know(vec![at("orders", SERVER)], vec![]);
        machine.capture(&[SERVER.into()]);
        let door = machine.door("orders");
        let mut served = None;
        for (status, headers, kind, text) in [
            (
                401,
                ("x-mesh-policy", "shop/a"),
                ErrorKind::HostUnreachable,
                "http status: 401 Unauthorized (shop/a)",
            ),
            (
                503,
                ("x-mesh-reason", "refused"),
                ErrorKind::ConnectionRefused,
                "http status: 503 Service Unavailable (refused)",
            ),
            (
                503,
                ("x", "y"),
                ErrorKind::HostUnreachable,
                "http status: 503 Service Unavailable\"",
            ),
            (
                400,
                ("x", "y"),
                ErrorKind::HostUnreachable,
                "http status: 400 Bad Request\"",
            ),
        ] {
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
                    .refuse(status, &[headers]);
            };
            let (application, ()) = tokio::join!(TcpStream::connect((SERVER, 8080)), server);
            assert_eq!(application.unwrap_err().kind(), kind, "{text}");
            log.line(&["direction=\"outbound\"", text]).await;
        }
        // A reset of the stream is one of the application's connection, whatever its code.
        for code in [
            h2::Reason::CANCEL,
            h2::Reason::CONNECT_ERROR,
            h2::Reason::REFUSED_STREAM,
        ] {
            let server = async {
                let mut asked = served.as_mut().unwrap().next().await.unwrap();
                let response = http::Response::builder().body(()).unwrap();
                (asked.respond.send_response(response, false).unwrap(), asked.body)
            };
            let (application, (mut send, _body)) = tokio::join!(TcpStream::connect((SERVER, 8080)), server);
            send.send_reset(code);
            let read = application.unwrap().read(&mut [0]).await;
            assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "{code}");
        }
    });
}

#[test]
fn a_port_that_never_answers_is_named_as_ztunnel_names_it() {
    capturing(async |mut machine| {
        machine.give_up_after(300);
        let (log, _guard) = Log::start();
        machine.know(vec![at("orders", SERVER)], vec![]);
        machine.capture(&[SERVER.into()]);
        // The kernel accepts, and nobody speaks.
        let application = TcpStream::connect((SERVER, 8080)).await;
        assert_eq!(application.unwrap_err().kind(), ErrorKind::HostUnreachable);
        let text = "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: 10.77.0.2:15008";
        log.line(&["direction=\"outbound\"", text]).await;
    });
}
