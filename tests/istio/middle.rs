//! What stands between two machines in an Istio mesh, by the real thing: a waypoint, and the gateway of another network.

use mesh_lab::wait_until;
use mesh_proto::istio::security::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match};
use mesh_proto::istio::workload::{
    GatewayAddress, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, address, gateway_address,
};
use prost::Message as _;

use crate::envoy::{Envoy, binary};
use crate::fixture::{Machine, SOON};
use crate::lab::Lab;

const HOST: &str = "orders.shop.svc.cluster.local";
const KEY: &str = "shop/orders.shop.svc.cluster.local";
const VIP: [u8; 4] = [10, 96, 0, 9];
const URL: &str = "http://10.96.0.9/";

fn bytes(ip: &str) -> Vec<u8> {
    ip.parse::<std::net::Ipv4Addr>().unwrap().octets().to_vec()
}

fn at(network: &str, address: Vec<u8>) -> NetworkAddress {
    NetworkAddress {
        network: network.into(),
        address,
        ..NetworkAddress::default()
    }
}

fn gateway(network: &str, ip: &str) -> Option<GatewayAddress> {
    Some(GatewayAddress {
        destination: Some(gateway_address::Destination::Address(at(network, bytes(ip)))),
        hbone_mtls_port: 15008,
    })
}

/// The record of an Envoy, whose account has its name.
fn record(machine: &Machine, network: &str) -> Workload {
    Workload {
        uid: format!("c1//Pod/shop/{}", machine.name),
        name: machine.name.clone(),
        namespace: "shop".into(),
        network: network.into(),
        addresses: vec![bytes(&machine.ip4)],
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        trust_domain: "example.org".into(),
        service_account: machine.name.clone(),
        ..Workload::default()
    }
}

fn service() -> Service {
    Service {
        name: "orders".into(),
        namespace: "shop".into(),
        hostname: HOST.into(),
        addresses: vec![at("vms", VIP.to_vec())],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            ..Port::default()
        }],
        ..Service::default()
    }
}

/// As one of the service.
fn endpoint(workload: Workload) -> Workload {
    let ports = PortList { ports: service().ports };
    Workload {
        services: [(KEY.to_owned(), ports)].into(),
        ..workload
    }
}

fn push_workload(lab: &Lab, workload: Workload) {
    let uid = workload.uid.clone();
    lab.script
        .push_address(&uid, "1", Some(address::Type::Workload(workload)));
}

fn push_service(lab: &Lab, version: &str, service: Service) {
    lab.script
        .push_address(KEY, version, Some(address::Type::Service(service)));
}

/// Denies this account.
fn deny(account: &str) -> Vec<u8> {
    let principal = StringMatch {
        match_type: Some(string_match::MatchType::Exact(format!(
            "example.org/ns/shop/sa/{account}"
        ))),
    };
    Authorization {
        name: "no".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace as i32,
        action: Action::Deny as i32,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![Match {
                    principals: vec![principal],
                    ..Match::default()
                }],
            }],
        }],
        ..Authorization::default()
    }
    .encode_to_vec()
}

#[test]
fn envoy_as_a_waypoint_is_dialled_and_believed() {
    if binary().is_none() {
        return;
    }
    let lab = Lab::start();
    let (web, orders) = (lab.member_named("web"), lab.member_named("orders"));
    let _nginx = orders.nginx(8080, "answered by orders");
    let waypoint = lab.machine("waypoint");
    push_workload(&lab, record(&waypoint, "vms"));
    let target = format!("{}:8080", orders.ip4);
    let waypoint = Envoy::waypoint(&lab, waypoint, &orders.ip4, &target);
    push_service(
        &lab,
        "1",
        Service {
            waypoint: gateway("vms", &waypoint.machine.ip4),
            ..service()
        },
    );
    assert_eq!(web.wait_get(URL), "answered by orders", "{}", waypoint.log());
    let headers = web.curl(&["-sSi", URL]);
    let headers = String::from_utf8_lossy(&headers.stdout);
    assert!(headers.contains("x-waypoint: passed"), "{headers}");

    // What it was asked, and by whom.
    wait_until(SOON, "the CONNECT to be logged", || !waypoint.connects().is_empty());
    let line = waypoint.connects().lines().next().unwrap().to_owned();
    assert!(line.starts_with("10.96.0.9:80 200 baggage="), "{line}");
    for part in [
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop",
        &format!("forwarded=for=\"{}:", web.ip4),
        &format!(";host={HOST}"),
        "network=- peer=spiffe://example.org/ns/shop/sa/orders",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }

    // Policy at orders is about the waypoint; what is denied there is an answer of the waypoint here.
    lab.script.policy("shop/no", Some(deny("waypoint")));
    wait_until(SOON, "the waypoint to be refused", || {
        let output = web.curl(&["-s", "-o", "/dev/null", "-w", "%{http_code}", URL]);
        output.stdout == b"503"
    });
    orders.wait_log(&[
        "access",
        "src.identity=\"spiffe://example.org/ns/shop/sa/waypoint\"",
        "shop/no",
    ]);
    lab.script.policy("shop/no", None);
    assert_eq!(web.wait_get(URL), "answered by orders");

    // Without it: direct.
    push_workload(&lab, endpoint(lab.recorded(&orders)));
    push_service(&lab, "2", service());
    wait_until(SOON, "the direct way", || {
        let output = web.curl(&["-sSi", URL]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("answered by orders") && !text.contains("x-waypoint")
    });
}

#[test]
fn envoy_as_the_gateway_of_another_network_is_passed() {
    if binary().is_none() {
        return;
    }
    let lab = Lab::start();
    let (web, orders) = (lab.member_named("web"), lab.member_named("orders"));
    let _nginx = orders.nginx(8080, "answered from afar");
    let east_west = lab.machine("eastwest");
    push_workload(&lab, record(&east_west, "afar"));
    // It serves the service, and nobody picks it where it stands.
    push_workload(
        &lab,
        Workload {
            capacity: Some(0),
            ..endpoint(lab.recorded(&orders))
        },
    );
    let east_west = Envoy::gateway(&lab, east_west, &format!("{HOST}:80"), &orders.ip4);
    // As istiod writes it of a network that it does not serve itself: nothing but how it is reached.
    push_workload(
        &lab,
        Workload {
            uid: "c2/SplitHorizonWorkload/shop/eastwest/orders".into(),
            name: "orders-afar".into(),
            namespace: "shop".into(),
            network: "afar".into(),
            network_gateway: gateway("afar", &east_west.machine.ip4),
            tunnel_protocol: TunnelProtocol::Hbone as i32,
            trust_domain: "example.org".into(),
            service_account: "eastwest".into(),
            ..endpoint(Workload::default())
        },
    );
    push_service(
        &lab,
        "1",
        Service {
            subject_alt_names: vec!["spiffe://example.org/ns/shop/sa/orders".into()],
            ..service()
        },
    );
    assert_eq!(web.wait_get(URL), "answered from afar", "{}", east_west.log());
    wait_until(SOON, "the CONNECT to be logged", || !east_west.connects().is_empty());
    let line = east_west.connects().lines().next().unwrap().to_owned();
    assert!(line.starts_with(&format!("{HOST}:80 200 ")), "{line}");
    assert!(line.contains(" network=- "), "the network is told inside only: {line}");
    orders.wait_log(&[
        "access",
        "src.identity=\"spiffe://example.org/ns/shop/sa/orders\"",
        "inbound",
    ]);
    assert!(web.log().contains("double-hbone"), "{}", web.log());
}
