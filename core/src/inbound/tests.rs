//! What is delivered where, row by row, and what is refused with which status.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::world::{ApplicationTunnel, Delta, Gateway, GatewayDestination, fixture};

const OWN_PORTS: [u16; 5] = [15008, 15020, 15021, 15080, 53];

fn own() -> Workload {
    let mut own = fixture::workload("us", "10.0.0.1");
    own.addresses.push("fd00::1".parse().unwrap());
    own
}

fn world(services: Vec<Service>, workloads: Vec<Workload>) -> World {
    World::default().apply(Delta {
        services,
        workloads,
        ..Delta::default()
    })
}

fn asked(world: &World, own: &Workload, authority: &str, local: &str) -> Result<Delivery, TargetRefusal> {
    deliver(world, own, &connect(authority, local), &OWN_PORTS)
}

fn connect<'a>(authority: &'a str, local: &str) -> Asked<'a> {
    Asked {
        authority,
        forwarded: None,
        local: local.parse().unwrap(),
    }
}

/// (status, where to, judged, PROXY destination), each as text.
fn shown(answer: Result<Delivery, TargetRefusal>) -> (u16, String, String, String) {
    match answer {
        Ok(delivery) => (
            200,
            delivery.to.to_string(),
            delivery.judged.to_string(),
            delivery.proxy.map(|proxy| proxy.to_string()).unwrap_or_default(),
        ),
        Err(refusal) => (refusal.status(), String::new(), String::new(), String::new()),
    }
}

fn at(to: &str, judged: &str, proxy: &str) -> (u16, String, String, String) {
    (200, to.into(), judged.into(), proxy.into())
}

fn refused(status: u16) -> (u16, String, String, String) {
    (status, String::new(), String::new(), String::new())
}

#[test]
fn our_addresses_are_delivered_wherever_they_arrive() {
    for (authority, expected) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[fd00::1]:80", "[fd00::1]:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
    ] {
        // 192.168.0.1 is the inside of a 1:1 NAT, which no record names.
        for local in ["10.0.0.1", "fd00::1", "192.168.0.1"] {
            let answer = asked(&World::default(), &own(), authority, local);
            assert_eq!(shown(answer), at(expected, expected, ""));
        }
    }
}

#[test]
fn nobody_elses_addresses_and_no_port_of_ours_are() {
    for authority in [
        "127.0.0.1:80",
        "169.254.169.254:80",
        "10.0.0.2:80",
        "[::1]:80",
        "0.0.0.0:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        let refusal = asked(&World::default(), &own(), authority, "10.0.0.1").unwrap_err();
        assert!(
            matches!(refusal, TargetRefusal::NotOurAddress(_)) && refusal.status() == 400,
            "{authority}: {refusal:?}"
        );
    }
    for port in OWN_PORTS {
        let refusal = asked(&World::default(), &own(), &format!("10.0.0.1:{port}"), "10.0.0.1").unwrap_err();
        assert_eq!((refusal.status(), refusal), (503, TargetRefusal::OwnPort(port)));
    }
}

#[test]
fn what_is_no_authority_is_refused() {
    let long = format!("{}:80", "a.".repeat(130) + "a");
    for authority in [
        "",
        ":80",
        "10.0.0.1",
        "10.0.0.1:0",
        "10.0.0.1:99999",
        "orders",
        "orders:0",
        "orders:+80",
        "orders:",
        "or ders:80",
        "a..b:80",
        "10.0.0.256:80",
        "1234:80",
        "*.example:80",
        "fd00::1:80",
        "[fd00::1]",
        "[fd00::1%1]:80",
        "u@10.0.0.1:80",
        "u@orders:80",
        &long,
    ] {
        let refusal = asked(&World::default(), &own(), authority, "10.0.0.1").unwrap_err();
        assert!(
            matches!(refusal, TargetRefusal::Unparsable(_)) && refusal.status() == 400,
            "{authority}: {refusal:?}"
        );
    }
}

#[test]
fn a_service_by_name_is_delivered_at_the_port_that_it_means_here() {
    let mut named = fixture::service("named.shop", "240.240.0.2");
    named.ports = vec![fixture::port(80, 0), fixture::port(81, 0)];
    let services = vec![
        fixture::service("orders.shop", "240.240.0.1"),
        named,
        fixture::service("others.shop", "240.240.0.3"),
    ];
    let mut own = own();
    own.services = vec![
        (fixture::key("orders.shop"), vec![]),
        (fixture::key("named.shop"), vec![fixture::port(80, 9090)]),
        (fixture::key("late.shop"), vec![fixture::port(80, 9090)]),
    ];
    let world = world(services, vec![]);
    for (authority, local, expected) in [
        ("orders.shop:80", "10.0.0.1", at("10.0.0.1:8080", "10.0.0.1:8080", "")),
        ("Orders.Shop.:80", "10.0.0.1", at("10.0.0.1:8080", "10.0.0.1:8080", "")),
        ("orders.shop:80", "fd00::1", at("[fd00::1]:8080", "[fd00::1]:8080", "")),
        ("orders.shop:80", "fd00::2", at("[fd00::1]:8080", "[fd00::1]:8080", "")),
        (
            "orders.shop:80",
            "192.168.0.1",
            at("10.0.0.1:8080", "10.0.0.1:8080", ""),
        ),
        ("named.shop:80", "10.0.0.1", at("10.0.0.1:9090", "10.0.0.1:9090", "")),
        // Not a port of the service; a named one that we do not have; not ours; not received; not known.
        ("orders.shop:8080", "10.0.0.1", refused(503)),
        ("named.shop:81", "10.0.0.1", refused(503)),
        ("others.shop:80", "10.0.0.1", refused(503)),
        ("late.shop:80", "10.0.0.1", refused(503)),
        ("unknown.shop:80", "10.0.0.1", refused(503)),
    ] {
        assert_eq!(
            shown(asked(&world, &own, authority, local)),
            expected,
            "{authority} at {local}"
        );
    }
}

#[test]
fn a_service_by_name_is_the_one_of_our_namespace() {
    let mut foreign = fixture::service("orders.shop", "240.240.0.1");
    foreign.key.namespace = "a-first".into();
    foreign.ports[0].target_port = 1;
    let ours = fixture::service("orders.shop", "240.240.0.2");
    let mut own = own();
    own.services = vec![(foreign.key.clone(), vec![]), (ours.key.clone(), vec![])];
    let both = world(vec![foreign, ours.clone()], vec![]);
    let delivery = asked(&both, &own, "orders.shop:80", "10.0.0.1").unwrap();
    assert_eq!((delivery.to.port(), delivery.service), (8080, Some(ours.key)));
    // A name leads to no port of the agent either.
    let mut tricky = fixture::service("orders.shop", "240.240.0.2");
    tricky.ports[0].target_port = 15020;
    let refusal = asked(&world(vec![tricky], vec![]), &own, "orders.shop:80", "10.0.0.1").unwrap_err();
    assert_eq!(refusal, TargetRefusal::OwnPort(15020));
}

#[test]
fn an_application_tunnel_takes_what_is_for_others() {
    let mut orders = fixture::service("orders.shop", "240.240.0.1");
    orders.vips = vec![
        ("west".into(), "240.240.9.9/32".parse().unwrap()),
        ("".into(), "2001:2::1/128".parse().unwrap()),
        ("".into(), "240.240.0.1/32".parse().unwrap()),
    ];
    let mut v6 = fixture::service("v6.shop", "2001:2::2");
    v6.vips.push(("west".into(), "240.240.9.8/32".parse().unwrap()));
    let mut headless = fixture::service("headless.shop", "240.240.0.3");
    headless.vips.clear();
    let world = world(vec![orders, v6, headless], vec![]);
    let tunnelled = |proxy, port| Workload {
        application_tunnel: Some(ApplicationTunnel { proxy, port }),
        ..own()
    };
    let (waypoint, same_port, bare) = (tunnelled(true, 15088), tunnelled(true, 0), tunnelled(false, 15088));
    for (own, authority, local, expected) in [
        (
            &waypoint,
            "10.9.9.9:5432",
            "10.0.0.1",
            at("127.0.0.1:15088", "10.0.0.1:5432", "10.9.9.9:5432"),
        ),
        (
            &waypoint,
            "[fd00::9]:5432",
            "fd00::1",
            at("[::1]:15088", "[fd00::1]:5432", "[fd00::9]:5432"),
        ),
        (
            &waypoint,
            "10.0.0.1:80",
            "10.0.0.1",
            at("127.0.0.1:15088", "10.0.0.1:80", "10.0.0.1:80"),
        ),
        (
            &waypoint,
            "orders.shop:80",
            "10.0.0.1",
            at("127.0.0.1:15088", "10.0.0.1:8080", "240.240.0.1:80"),
        ),
        (
            &waypoint,
            "v6.shop:80",
            "10.0.0.1",
            at("127.0.0.1:15088", "10.0.0.1:8080", "[2001:2::2]:80"),
        ),
        (
            &same_port,
            "10.9.9.9:5432",
            "10.0.0.1",
            at("127.0.0.1:5432", "10.0.0.1:5432", "10.9.9.9:5432"),
        ),
        (
            &same_port,
            "orders.shop:80",
            "10.0.0.1",
            at("127.0.0.1:8080", "10.0.0.1:8080", "240.240.0.1:80"),
        ),
        (
            &bare,
            "10.9.9.9:5432",
            "10.0.0.1",
            at("10.0.0.1:15088", "10.0.0.1:5432", ""),
        ),
        (
            &bare,
            "headless.shop:80",
            "10.0.0.1",
            at("10.0.0.1:15088", "10.0.0.1:8080", ""),
        ),
        (&waypoint, "headless.shop:80", "10.0.0.1", refused(503)),
        (&waypoint, "unknown.shop:80", "10.0.0.1", refused(503)),
        (&waypoint, "10.9.9.9:15020", "10.0.0.1", refused(503)),
        (&tunnelled(true, 15020), "10.9.9.9:80", "10.0.0.1", refused(503)),
        (&waypoint, "nonsense", "10.0.0.1", refused(400)),
    ] {
        assert_eq!(
            shown(asked(&world, own, authority, local)),
            expected,
            "{authority} at {local}"
        );
    }
    let meant = asked(&world, &waypoint, "240.240.0.1:80", "10.0.0.1").unwrap().service;
    assert_eq!(meant, Some(fixture::key("orders.shop")));
}

#[test]
fn who_is_named_as_a_waypoint_but_has_no_application_for_it_says_so() {
    let waypoint = Arc::new(Gateway {
        destination: GatewayDestination::Hostname(fixture::key("waypoint.shop")),
        port: 15008,
    });
    let mut orders = fixture::service("orders.shop", "240.240.0.1");
    orders.waypoint = Some(Arc::clone(&waypoint));
    let mut canary = fixture::service("canary.shop", "240.240.0.2");
    canary.weighted_waypoints = vec![(Arc::clone(&waypoint), 1)];
    let mut guarded = fixture::workload("guarded", "10.0.0.7");
    guarded.waypoint = Some(waypoint);
    let mut own = own();
    own.services = vec![(fixture::key("waypoint.shop"), vec![])];
    let services = vec![orders, canary, fixture::service("waypoint.shop", "240.240.0.9")];
    let world = world(services, vec![guarded, own.clone()]);
    for authority in [
        "240.240.0.1:80",
        "orders.shop:80",
        "240.240.0.2:80",
        "canary.shop:80",
        "10.0.0.7:80",
    ] {
        let refusal = asked(&world, &own, authority, "10.0.0.1").unwrap_err();
        assert!(
            matches!(refusal, TargetRefusal::NotAWaypoint(_)) && refusal.status() == 400,
            "{authority}: {refusal:?}"
        );
    }
}

#[test]
fn the_service_that_was_meant_is_found() {
    let (mut one, mut two) = (
        fixture::service("one.shop", "240.240.0.1"),
        fixture::service("two.shop", "240.240.0.2"),
    );
    (one.ports[0].target_port, two.ports[0].target_port) = (8080, 9090);
    let mut own = own();
    own.services = vec![(one.key.clone(), vec![]), (two.key.clone(), vec![])];
    let world = world(vec![one.clone(), two.clone()], vec![]);
    let meant = |port: u16, forwarded| {
        let authority = format!("10.0.0.1:{port}");
        let asked = Asked {
            forwarded,
            ..connect(&authority, "10.0.0.1")
        };
        deliver(&world, &own, &asked, &[]).unwrap().service
    };
    assert_eq!(meant(8080, None), Some(one.key.clone()));
    assert_eq!(meant(9090, Some("for=\"10.0.0.1:2\"")), Some(two.key.clone()));
    assert_eq!(
        meant(9090, Some("for=\"10.0.0.1:2\";host=ONE.shop")),
        Some(one.key.clone())
    );
    assert_eq!(meant(9090, Some("Host=\"one.shop\", host=two.shop")), Some(one.key));
    // A name that is not ours says nothing.
    assert_eq!(meant(9090, Some("host=elsewhere")), Some(two.key));
    assert_eq!(meant(1, Some("=;host")), None);
}

#[test]
fn a_record_cannot_open_loopback() {
    let mut own = fixture::workload("us", "127.0.0.1");
    own.services = vec![(fixture::key("orders.shop"), vec![])];
    let world = world(vec![fixture::service("orders.shop", "240.240.0.1")], vec![]);
    assert_eq!(shown(asked(&world, &own, "127.0.0.1:80", "127.0.0.1")), refused(400));
    assert_eq!(shown(asked(&world, &own, "orders.shop:80", "127.0.0.1")), refused(503));
}

#[test]
fn another_network_is_another_name_of_it() {
    assert!(is_remote(Some("west"), "east") && is_remote(Some("west"), "") && is_remote(Some(""), "east"));
    assert!(!is_remote(Some("West"), "west") && !is_remote(None, "west") && !is_remote(Some(""), ""));
}

proptest! {
    #[test]
    fn whatever_is_asked_only_our_own_addresses_are_dialled(authority in ".{0,40}|[0-9a-f.:\\[\\]]{0,24}", local in any::<IpAddr>()) {
        let asked = Asked { authority: &authority, forwarded: Some(&authority), local };
        let own = own();
        if let Ok(delivery) = deliver(&World::default(), &own, &asked, &OWN_PORTS) {
            prop_assert!(own.addresses.contains(&delivery.to.ip()) && !OWN_PORTS.contains(&delivery.to.port()));
            prop_assert_eq!(delivery.to, delivery.judged);
        }
    }
}

#[test]
fn a_caller_is_shown_where_only_we_could_answer_it() {
    let mut plain = fixture::workload("plain", "10.0.0.4");
    plain.tunnel_protocol = crate::world::TunnelProtocol::None;
    let peers = [("peer", "10.0.0.2"), ("six", "fd00::2"), ("wire", "fe80::2")];
    let peers = peers.map(|(uid, address)| fixture::workload(uid, address));
    let world = world(vec![], [&peers[..], &[own(), plain]].concat());
    let shown = |address: &str, network: Option<&str>, to: &str| {
        let caller = Caller {
            address: address.parse().unwrap(),
            forwarded_network: network,
        };
        preserved(&world, &own(), "", caller, to.parse().unwrap()).map(|address| address.to_string())
    };
    for (address, network, to, expected) in [
        ("10.0.0.2", None, "10.0.0.1:80", Ok("10.0.0.2")),
        ("::ffff:10.0.0.2", None, "10.0.0.1:80", Ok("10.0.0.2")),
        ("fd00::2", None, "[fd00::1]:80", Ok("fd00::2")),
        ("10.0.0.2", Some(""), "10.0.0.1:80", Ok("10.0.0.2")),
        ("10.0.0.2", Some("far"), "10.0.0.1:80", Err(NotPreserved::RemoteNetwork)),
        ("10.0.0.2", None, "127.0.0.1:80", Err(NotPreserved::Loopback)),
        ("fd00::2", None, "[::1]:80", Err(NotPreserved::Loopback)),
        ("10.0.0.2", None, "[fd00::1]:80", Err(NotPreserved::Family)),
        ("fd00::2", None, "10.0.0.1:80", Err(NotPreserved::Family)),
        ("10.0.0.1", None, "10.0.0.1:80", Err(NotPreserved::OwnAddress)),
        ("fd00::1", None, "[fd00::9]:80", Err(NotPreserved::OwnAddress)),
        ("10.0.0.4", None, "10.0.0.1:80", Err(NotPreserved::NotCaptured)),
        ("10.0.0.5", None, "10.0.0.1:80", Err(NotPreserved::NotCaptured)),
        ("fe80::2", None, "[fd00::1]:80", Err(NotPreserved::NotCaptured)),
    ] {
        assert_eq!(
            shown(address, network, to).as_deref(),
            expected.as_ref().copied(),
            "{address} {network:?} {to}"
        );
    }
}
