//! Waypoints and gateways: who is dialled, what is asked for, and whom we expect.

use proptest::prelude::*;

use super::*;
use crate::world::{Gateway, GatewayDestination, NetworkAddress, ServiceKey};

fn key(hostname: &str) -> ServiceKey {
    fixture::key(hostname)
}

fn by_name(hostname: &str) -> Arc<Gateway> {
    Arc::new(Gateway {
        destination: GatewayDestination::Hostname(key(hostname)),
        port: 15008,
    })
}

fn by_address(network: &str, address: &str) -> Arc<Gateway> {
    Arc::new(Gateway {
        destination: GatewayDestination::Address(NetworkAddress {
            network: network.into(),
            address: address.parse().unwrap(),
        }),
        port: 15008,
    })
}

fn serving(uid: &str, address: &str, hostname: &str) -> Workload {
    let mut workload = fixture::workload(uid, address);
    workload.services = vec![(key(hostname), vec![])];
    workload
}

/// The Service of a waypoint named `name`, with its HBONE port.
fn waypoint_service(name: &str, vip: &str) -> Service {
    let mut service = fixture::service(name, vip);
    service.ports = vec![fixture::port(15008, 15008)];
    service
}

fn orders_behind(waypoint: Arc<Gateway>) -> Service {
    Service {
        waypoint: Some(waypoint),
        ..orders()
    }
}

/// A workload of another network, whose gateway is at 192.0.2.1 there.
fn remote(mut workload: Workload) -> Workload {
    workload.network = "west".into();
    workload.network_gateway = Some(by_address("west", "192.0.2.1"));
    workload
}

fn gateway_pod() -> Workload {
    let mut pod = fixture::workload("gateway", "192.0.2.1");
    pod.network = "west".into();
    pod
}

/// (dialled, authority, identities by service account) of a tunnel.
fn tunnel(candidate: &Candidate) -> (String, String, Vec<&str>) {
    match &candidate.way {
        Way::Tunnel { hop, authority } => (
            hop.address.to_string(),
            authority.to_string(),
            accounts(&hop.identities),
        ),
        other => panic!("{other:?}"),
    }
}

/// (gateway, authority, gateway's identities, inner identities) of a double tunnel.
fn double(candidate: &Candidate) -> (String, String, Vec<&str>, Vec<&str>) {
    match &candidate.way {
        Way::Double {
            gateway,
            authority,
            identities,
        } => (
            gateway.address.to_string(),
            authority.to_string(),
            accounts(&gateway.identities),
            accounts(identities),
        ),
        other => panic!("{other:?}"),
    }
}

fn accounts(identities: &[Identity]) -> Vec<&str> {
    identities.iter().map(Identity::service_account).collect()
}

#[test]
fn a_service_is_reached_through_its_waypoint_however_that_is_named() {
    let mut waypoint = waypoint_service("waypoint", "240.240.0.7");
    waypoint.subject_alt_names = vec![Identity::new("mesh.internal", "shop", "also").unwrap()];
    let mut pod = serving("pod", "10.0.0.7", "waypoint");
    pod.addresses.push("fd00::7".parse().unwrap());
    let mut v6 = orders();
    v6.vips = vec![("".into(), "2001:2::1/128".parse().unwrap())];
    for (named, expected) in [
        (by_name("waypoint"), vec!["pod", "also"]),
        (by_address("", "240.240.0.7"), vec!["pod", "also"]),
        (by_address("", "10.0.0.7"), vec!["pod"]),
    ] {
        let services = vec![waypoint.clone(), orders_behind(named.clone())];
        let through = world(services, vec![pod.clone(), endpoint("a", "10.0.0.1")]);
        let found = candidates(routed(&through, None, VIP, 3));
        assert_eq!(found.len(), 1, "{named}");
        assert_eq!(
            tunnel(&found[0]),
            ("10.0.0.7:15008".into(), VIP.into(), expected),
            "{named}"
        );
        assert!(found[0].via_waypoint);
        assert_eq!(&*found[0].workload.as_ref().unwrap().uid, "pod");
        assert_eq!(address(&found[0]).to_string(), VIP);
    }
    // A waypoint by name is dialled in the family of the destination.
    v6.waypoint = Some(by_name("waypoint"));
    let found = candidates(routed(&world(vec![waypoint, v6], vec![pod]), None, "[2001:2::1]:80", 3));
    let (dialled, authority, _) = tunnel(&found[0]);
    assert_eq!(
        (dialled.as_str(), authority.as_str()),
        ("[fd00::7]:15008", "[2001:2::1]:80")
    );
}

#[test]
fn the_pods_of_a_waypoint_are_tried_in_turn_at_the_port_that_is_named() {
    let pods = ["10.0.0.6", "10.0.0.7"].map(|address| serving(address, address, "waypoint"));
    let mut ill = serving("ill", "10.0.0.8", "waypoint");
    ill.healthy = false;
    let waypoint = Gateway {
        port: 15443,
        ..(*by_name("waypoint")).clone()
    };
    let services = vec![
        waypoint_service("waypoint", "240.240.0.7"),
        orders_behind(Arc::new(waypoint)),
    ];
    let [one, two] = pods;
    let world = world(services, vec![one, two, ill]);
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let found = candidates(routed(&world, None, VIP, seed));
        let mut dialled: Vec<_> = found.iter().map(|one| tunnel(one).0).collect();
        firsts.insert(dialled[0].clone());
        dialled.sort();
        assert_eq!(dialled, ["10.0.0.6:15443", "10.0.0.7:15443"]);
    }
    assert_eq!(firsts.len(), 2, "either comes first");
}

#[test]
fn a_waypoint_that_cannot_be_used_is_never_bypassed() {
    let mut ill = serving("ill", "10.0.0.7", "waypoint");
    ill.healthy = false;
    let mut away = serving("away", "10.0.0.8", "waypoint");
    away.network = "nowhere".into();
    for pods in [vec![], vec![ill], vec![away]] {
        let mut workloads = vec![endpoint("a", "10.0.0.1")];
        workloads.extend(pods);
        let services = vec![
            waypoint_service("waypoint", "240.240.0.7"),
            orders_behind(by_name("waypoint")),
        ];
        for services in [services.clone(), services[1..].to_vec()] {
            let failure = failure(routed(&world(services, workloads.clone()), None, VIP, 0));
            let RouteFailure::UnknownWaypoint { destination, waypoint } = failure else {
                panic!("{failure}")
            };
            assert_eq!((destination.as_str(), waypoint.as_str()), (VIP, "shop/waypoint:15008"));
        }
    }
}

#[test]
fn weighted_waypoints_share_by_weight_and_unusable_ones_do_not_count() {
    let mut service = orders_behind(by_name("single"));
    service.weighted_waypoints = vec![
        (by_name("old"), 3),
        (by_name("gone"), 100),
        (by_name("off"), 0),
        (by_name("new"), 1),
    ];
    let names = ["old", "off", "new", "single"];
    let pods = |names: &[&str]| -> Vec<Workload> {
        let pod = |(at, name): (usize, &&str)| serving(name, &format!("10.0.1.{at}"), name);
        names.iter().enumerate().map(pod).collect()
    };
    let services = |service: &Service| {
        let mut all: Vec<_> = names.iter().map(|name| waypoint_service(name, "240.240.0.7")).collect();
        all.push(service.clone());
        all
    };
    let first = |world: &World, seed| {
        candidates(routed(world, None, VIP, seed))[0]
            .workload
            .as_ref()
            .unwrap()
            .uid
            .to_string()
    };
    let both = world(services(&service), pods(&names));
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..4000 {
        *counts.entry(first(&both, seed)).or_insert(0) += 1;
    }
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["new", "old"]);
    assert!((2850..3150).contains(&counts["old"]), "{counts:?}");
    // None of them usable: the single one stands in; without it, nothing does.
    let single = world(services(&service), pods(&["single", "off"]));
    assert_eq!(first(&single, 1), "single");
    service.waypoint = None;
    let none = world(services(&service), pods(&["single", "off"]));
    assert!(matches!(
        failure(routed(&none, None, VIP, 1)),
        RouteFailure::UnknownWaypoint { .. }
    ));
}

#[test]
fn a_workload_is_reached_through_its_waypoint() {
    let mut guarded = endpoint("guarded", "10.0.0.1");
    guarded.addresses.push("fd00::1".parse().unwrap());
    guarded.waypoint = Some(by_name("waypoint"));
    let pod = serving("pod", "10.0.0.7", "waypoint");
    let services = vec![waypoint_service("waypoint", "240.240.0.7"), orders()];
    let through = world(services.clone(), vec![guarded.clone(), pod.clone()]);
    for destination in ["10.0.0.1:5432", "[fd00::1]:5432"] {
        let found = candidates(routed(&through, None, destination, 0));
        let expected = ("10.0.0.7:15008".to_owned(), destination.to_owned(), vec!["pod"]);
        assert_eq!((tunnel(&found[0]), found[0].via_waypoint), (expected, true));
    }
    // What is addressed to the service passes the waypoint of the service alone, and it has none.
    let (dialled, authority, _) = tunnel(&candidates(routed(&through, None, VIP, 0))[0]);
    assert_eq!(
        (dialled.as_str(), authority.as_str()),
        ("10.0.0.1:15008", "10.0.0.1:8080")
    );
    // Ourselves we reach without it.
    let own = candidates(routed(&through, Some(&guarded), "10.0.0.1:5432", 0));
    assert_eq!(own[0].way, Way::Plain);
    let unknown = world(services[1..].to_vec(), vec![guarded.clone(), pod]);
    assert!(matches!(
        failure(routed(&unknown, None, "10.0.0.1:5432", 0)),
        RouteFailure::UnknownWaypoint { .. }
    ));
}

#[test]
fn a_waypoint_does_not_pass_itself_again() {
    let mut guarded = endpoint("guarded", "10.0.0.1");
    guarded.waypoint = Some(by_name("waypoint"));
    let pod = serving("pod", "10.0.0.7", "waypoint");
    let services = vec![
        waypoint_service("waypoint", "240.240.0.7"),
        orders_behind(by_name("waypoint")),
    ];
    let world = world(services, vec![guarded, pod.clone()]);
    let dialled = |us: &Workload, destination: &str| tunnel(&candidates(routed(&world, Some(us), destination, 0))[0]).0;
    for destination in ["10.0.0.1:5432", VIP] {
        assert_eq!(dialled(&pod, destination), "10.0.0.1:15008");
        // It takes both the identity and an address to be it.
        let mut other_address = pod.clone();
        (other_address.uid, other_address.addresses) = ("x".into(), vec!["10.0.0.99".parse().unwrap()]);
        assert_eq!(dialled(&other_address, destination), "10.0.0.7:15008");
        let mut other_identity = pod.clone();
        other_identity.uid = "x".into();
        other_identity.identity = Identity::new("mesh.internal", "shop", "x").unwrap();
        assert_eq!(dialled(&other_identity, destination), "10.0.0.7:15008");
    }
}

#[test]
fn an_endpoint_of_another_network_is_reached_through_its_gateway() {
    let mut service = orders();
    service.subject_alt_names = vec![Identity::new("mesh.internal", "shop", "also").unwrap()];
    let mut ill = remote(endpoint("ill", "10.0.0.3"));
    ill.healthy = false;
    // Without an address of its own, too: the gateway picks.
    let mut hidden = remote(endpoint("hidden", "10.0.0.4"));
    hidden.addresses.clear();
    let workloads = vec![remote(endpoint("a", "10.0.0.1")), hidden, ill, gateway_pod()];
    let found = candidates(routed(&world(vec![service], workloads), None, VIP, 0));
    assert_eq!(found.len(), 1, "both endpoints are behind one gateway: {found:?}");
    let authority = "orders.shop.mesh.internal:80".to_owned();
    let inner = vec!["a", "also", "hidden", "ill"];
    let expected = ("192.0.2.1:15008".to_owned(), authority, vec!["gateway"], inner);
    assert_eq!((double(&found[0]), found[0].via_waypoint), (expected, false));
    assert_eq!(&*found[0].workload.as_ref().unwrap().uid, "gateway");
}

#[test]
fn a_gateway_may_have_a_name_alone() {
    let mut pod = gateway_pod();
    pod.addresses.clear();
    pod.hostname = "lb.example.com".into();
    let mut far = remote(endpoint("a", "10.0.0.1"));
    far.network_gateway = Some(by_name("lb.example.com"));
    let found = candidates(routed(&world(vec![orders()], vec![far, pod]), None, VIP, 0)).remove(0);
    assert_eq!(found.unresolved(), Some("lb.example.com"));
    let found = found.resolved("192.0.2.9".parse().unwrap());
    let (gateway, authority, ..) = double(&found);
    assert_eq!(
        (gateway.as_str(), authority.as_str()),
        ("192.0.2.9:15008", "orders.shop.mesh.internal:80")
    );
}

#[test]
fn a_network_without_a_usable_gateway_is_named_and_costs_no_attempt() {
    let mut bare = remote(endpoint("a", "10.0.0.1"));
    bare.network_gateway = None;
    for far in [bare, remote(endpoint("a", "10.0.0.1"))] {
        let failed = failure(routed(&world(vec![orders()], vec![far.clone()]), None, VIP, 0));
        let expected = RouteFailure::NoGateway {
            destination: "orders.shop.mesh.internal:80".to_owned(),
            network: "west".to_owned(),
        };
        assert_eq!(failed, expected);
        let both = world(vec![orders()], vec![far, endpoint("near", "10.0.0.2")]);
        for seed in 0..20 {
            assert_eq!(uids(routed(&both, None, VIP, seed)), ["near"]);
        }
    }
}

#[test]
fn our_own_network_comes_first_and_failover_leaves_it() {
    let mut service = orders();
    service.mode = BalanceMode::Failover;
    service.preference = vec![Scope::Network];
    let workloads = vec![
        remote(endpoint("far", "10.0.0.1")),
        endpoint("near", "10.0.0.2"),
        gateway_pod(),
    ];
    let world = world(vec![service], workloads);
    for seed in 0..20 {
        assert_eq!(uids(routed(&world, None, VIP, seed)), ["near", "gateway"]);
    }
}

#[test]
fn a_waypoint_of_another_network_is_reached_through_that_ones_gateway() {
    let pod = remote(serving("pod", "10.0.0.7", "waypoint"));
    let services = vec![
        waypoint_service("waypoint", "240.240.0.7"),
        orders_behind(by_name("waypoint")),
    ];
    let mut guarded = endpoint("guarded", "10.0.0.1");
    guarded.waypoint = Some(by_name("waypoint"));
    let world = world(services, vec![guarded, pod, gateway_pod()]);
    let found = candidates(routed(&world, None, VIP, 0));
    let expected = (
        "192.0.2.1:15008".to_owned(),
        "orders.shop.mesh.internal:80".to_owned(),
        vec!["gateway"],
        vec!["guarded", "pod"],
    );
    assert_eq!((double(&found[0]), found[0].via_waypoint), (expected, true));
    // A gateway takes a service by name; a workload has none.
    assert!(matches!(
        failure(routed(&world, None, "10.0.0.1:80", 0)),
        RouteFailure::UnknownWaypoint { .. }
    ));
}

fn any_endpoint() -> impl Strategy<Value = Workload> {
    (0_u8..6, any::<bool>(), any::<bool>(), any::<bool>(), 0_u32..3).prop_map(|(at, far, healthy, hbone, capacity)| {
        let mut workload = endpoint(&format!("e{at}"), &format!("10.0.0.{}", at + 1));
        if far {
            workload = remote(workload);
        }
        if !hbone {
            workload.tunnel_protocol = TunnelProtocol::None;
        }
        (workload.healthy, workload.capacity) = (healthy, capacity);
        workload
    })
}

proptest! {
    #[test]
    fn whatever_the_world_says_ways_are_few_distinct_and_never_around_a_waypoint(
        endpoints in prop::collection::vec(any_endpoint(), 0..6),
        waypoint in any::<bool>(),
        pod in prop::option::of(any::<bool>()),
        gateway in any::<bool>(),
        seed in any::<u64>(),
        attempts in 0_usize..5,
    ) {
        let service = if waypoint { orders_behind(by_name("waypoint")) } else { orders() };
        let mut workloads = endpoints;
        workloads.extend(gateway.then(gateway_pod));
        workloads.extend(pod.map(|far| {
            let pod = serving("pod", "10.0.0.7", "waypoint");
            if far { remote(pod) } else { pod }
        }));
        let world = world(vec![service, waypoint_service("waypoint", "240.240.0.7")], workloads);
        let own = Own { network: "", workload: None, namespace: "shop", settled: true, ports: &[] };
        let Route::Endpoints { candidates, .. } = route(&world, &own, VIP.parse().unwrap(), seed, attempts) else {
            return Ok(());
        };
        prop_assert!((1..=attempts.max(1)).contains(&candidates.len()));
        for (at, one) in candidates.iter().enumerate() {
            prop_assert_eq!(one.via_waypoint, waypoint);
            prop_assert!(candidates[..at].iter().all(|other| other.target != one.target || other.way != one.way));
            let workload = one.workload.as_ref().unwrap();
            prop_assert!(workload.healthy && workload.capacity > 0);
            match &one.way {
                Way::Tunnel { hop, .. } => {
                    prop_assert_eq!(&*workload.network, "");
                    prop_assert!(hop.identities.contains(&workload.identity));
                }
                Way::Double { gateway, identities, .. } => {
                    prop_assert!(gateway.identities.contains(&workload.identity) && !identities.is_empty());
                }
                Way::Plain => prop_assert!(!waypoint && workload.network.is_empty()),
            }
        }
    }
}
