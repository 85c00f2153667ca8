//! Which way connections go, row by row of the table that routing follows.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::world::{ApplicationTunnel, Delta, Scope, fixture};

mod between;

const VIP: &str = "240.240.0.1:80";

fn endpoint(uid: &str, address: &str) -> Workload {
    let mut workload = fixture::workload(uid, address);
    workload.services = vec![(fixture::key("orders.shop.mesh.internal"), vec![])];
    workload
}

fn orders() -> Service {
    fixture::service("orders.shop.mesh.internal", "240.240.0.1")
}

fn world(services: Vec<Service>, workloads: Vec<Workload>) -> World {
    World::default().apply(Delta {
        services,
        workloads,
        addresses_synced: true,
        ..Delta::default()
    })
}

fn routed(world: &World, own: Option<&Workload>, destination: &str, seed: u64) -> Route {
    let own = Own {
        network: "",
        workload: own,
        namespace: "shop",
        settled: true,
        ports: &[15008, 53],
    };
    route(world, &own, destination.parse().unwrap(), seed, 3)
}

fn candidates(route: Route) -> Vec<Candidate> {
    match route {
        Route::Endpoints { candidates, .. } => candidates,
        Route::Fail(failure) => panic!("{failure}"),
    }
}

fn address(candidate: &Candidate) -> SocketAddr {
    candidate.target.address().unwrap()
}

fn uids(route: Route) -> Vec<String> {
    candidates(route)
        .iter()
        .map(|one| one.workload.as_ref().unwrap().uid.to_string())
        .collect()
}

fn failure(route: Route) -> RouteFailure {
    match route {
        Route::Fail(failure) => failure,
        Route::Endpoints { candidates, .. } => panic!("{candidates:?}"),
    }
}

#[test]
fn before_the_control_plane_was_heard_unknown_addresses_go_nowhere() {
    let destination = "192.0.2.1:443".parse().unwrap();
    let own = Own {
        network: "",
        workload: None,
        namespace: "shop",
        settled: false,
        ports: &[],
    };
    let route = route(&World::default(), &own, destination, 0, 3);
    assert_eq!(failure(route), RouteFailure::NotSettled(destination));
}

#[test]
fn unknown_addresses_go_plain() {
    let found = candidates(routed(&World::default(), None, "192.0.2.1:443", 0));
    assert_eq!(found.len(), 1);
    assert_eq!(
        (address(&found[0]), &found[0].way),
        ("192.0.2.1:443".parse().unwrap(), &Way::Plain)
    );
}

#[test]
fn a_vip_leads_to_its_endpoints_with_target_port_and_identities() {
    let mut service = orders();
    service.subject_alt_names = vec![Identity::new("mesh.internal", "shop", "other").unwrap()];
    let world = world(vec![service], vec![endpoint("a", "10.0.0.1")]);
    let found = candidates(routed(&world, None, VIP, 7));
    assert_eq!(address(&found[0]), "10.0.0.1:8080".parse().unwrap());
    let Way::Tunnel { hop, authority } = &found[0].way else {
        panic!("{found:?}")
    };
    assert_eq!(hop.address.to_string(), "10.0.0.1:15008");
    assert_eq!(authority.as_str(), "10.0.0.1:8080");
    assert_eq!(
        hop.identities.iter().map(Identity::service_account).collect::<Vec<_>>(),
        ["a", "other"]
    );
}

#[test]
fn weights_are_capacities_and_zero_is_never() {
    let mut heavy = endpoint("heavy", "10.0.0.1");
    heavy.capacity = 3;
    let mut never = endpoint("never", "10.0.0.3");
    never.capacity = 0;
    let world = world(vec![orders()], vec![heavy, endpoint("light", "10.0.0.2"), never]);
    let mut first_heavy = 0;
    for seed in 0..4000 {
        let uids = uids(routed(&world, None, VIP, seed));
        assert_eq!(uids.len(), 2, "each once: {uids:?}");
        assert!(!uids.contains(&"never".to_owned()));
        first_heavy += u32::from(uids[0] == "heavy");
    }
    assert!(
        (2850..3150).contains(&first_heavy),
        "{first_heavy} of 4000 instead of 3000"
    );
}

#[test]
fn unhealthy_endpoints_are_left_out_unless_allowed() {
    let mut ill = endpoint("ill", "10.0.0.1");
    ill.healthy = false;
    let strict = world(vec![orders()], vec![ill.clone()]);
    assert!(matches!(
        failure(routed(&strict, None, VIP, 0)),
        RouteFailure::NoHealthyUpstream(_)
    ));
    let mut service = orders();
    service.allow_unhealthy = true;
    assert_eq!(uids(routed(&world(vec![service], vec![ill]), None, VIP, 0)), ["ill"]);
}

#[test]
fn ports_are_resolved_or_refused() {
    let mut own_list = endpoint("a", "10.0.0.1");
    own_list.services[0].1 = vec![fixture::port(80, 9090)];
    let world = world(vec![orders()], vec![own_list]);
    assert_eq!(candidates(routed(&world, None, VIP, 0))[0].target.port(), 9090);
    let refused = failure(routed(&world, None, "240.240.0.1:81", 0));
    assert_eq!(
        refused,
        RouteFailure::NoSuchPort("orders.shop.mesh.internal".to_owned(), 81)
    );
}

#[test]
fn failover_goes_outward_and_strict_does_not() {
    let place = |mut workload: Workload, region: &str, zone: &str| {
        workload.locality.region = region.into();
        workload.locality.zone = zone.into();
        workload
    };
    let us = place(fixture::workload("us", "10.0.0.9"), "r1", "z1");
    let far = place(endpoint("far", "10.0.0.1"), "r2", "z1");
    let region = place(endpoint("region", "10.0.0.2"), "r1", "z2");
    let zone = place(endpoint("zone", "10.0.0.3"), "r1", "z1");
    let mut service = orders();
    service.preference = vec![Scope::Network, Scope::Region, Scope::Zone];
    service.mode = BalanceMode::Failover;
    let failover = world(vec![service.clone()], vec![far.clone(), region.clone(), zone]);
    for seed in 0..50 {
        assert_eq!(uids(routed(&failover, Some(&us), VIP, seed)), ["zone", "region", "far"]);
    }
    service.mode = BalanceMode::Strict;
    let strict = world(vec![service], vec![far, region]);
    assert!(matches!(
        failure(routed(&strict, Some(&us), VIP, 0)),
        RouteFailure::NoHealthyUpstream(_)
    ));
}

#[test]
fn passthrough_keeps_the_destination() {
    let mut service = orders();
    service.mode = BalanceMode::Passthrough;
    let found = candidates(routed(
        &world(vec![service], vec![endpoint("a", "10.0.0.1")]),
        None,
        VIP,
        0,
    ));
    assert_eq!((address(&found[0]), &found[0].way), (VIP.parse().unwrap(), &Way::Plain));
}

#[test]
fn a_workload_is_reached_as_it_says() {
    let mut plain = fixture::workload("plain", "10.0.0.2");
    plain.tunnel_protocol = TunnelProtocol::None;
    let us = fixture::workload("us", "10.0.0.9");
    let world = world(vec![], vec![fixture::workload("a", "10.0.0.1"), plain, us.clone()]);
    let way = |destination| candidates(routed(&world, Some(&us), destination, 0)).remove(0).way;
    assert!(matches!(way("10.0.0.1:5432"), Way::Tunnel { .. }));
    assert_eq!(way("10.0.0.2:5432"), Way::Plain);
    assert_eq!(way("10.0.0.9:5432"), Way::Plain, "to ourselves");
    assert!(matches!(way("[::ffff:10.0.0.1]:5432"), Way::Tunnel { .. }));
}

#[test]
fn our_own_ports_on_the_loopback_are_not_reached_through_us() {
    for refused in ["127.0.0.1:15008", "[::1]:53", "[::ffff:127.0.0.1]:15008"] {
        let destination: SocketAddr = refused.parse().unwrap();
        let canonical = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        assert_eq!(
            failure(routed(&World::default(), None, refused, 0)),
            RouteFailure::SelfCall(canonical)
        );
    }
    let found = candidates(routed(&World::default(), None, "127.0.0.1:8080", 0));
    assert_eq!(found[0].way, Way::Plain, "another port of the loopback");
}

#[test]
fn our_own_vip_leads_to_our_own_application() {
    let us = endpoint("us", "10.0.0.9");
    let world = world(vec![orders()], vec![us.clone()]);
    let found = candidates(routed(&world, Some(&us), VIP, 0));
    assert_eq!(
        (address(&found[0]), &found[0].way),
        ("10.0.0.9:8080".parse().unwrap(), &Way::Plain)
    );
}

#[test]
fn an_endpoint_that_has_no_tunnel_is_reached_in_plain() {
    let mut plain = endpoint("a", "10.0.0.1");
    plain.tunnel_protocol = TunnelProtocol::None;
    let found = candidates(routed(&world(vec![orders()], vec![plain]), None, VIP, 0));
    assert_eq!(
        (address(&found[0]), &found[0].way),
        ("10.0.0.1:8080".parse().unwrap(), &Way::Plain)
    );
}

#[test]
fn pods_of_a_headless_service_are_reached_by_their_addresses() {
    let mut headless = orders();
    headless.vips.clear();
    let mut pod = endpoint("db-0", "10.0.0.1");
    pod.addresses.push("fd00::1".parse().unwrap());
    let world = world(vec![headless], vec![pod]);
    for (destination, hop) in [
        ("10.0.0.1:5432", "10.0.0.1:15008"),
        ("[fd00::1]:5432", "[fd00::1]:15008"),
    ] {
        let found = candidates(routed(&world, None, destination, 0)).remove(0);
        let Way::Tunnel {
            hop: dialled,
            authority,
        } = &found.way
        else {
            panic!("{found:?}")
        };
        assert_eq!(
            (dialled.address.to_string().as_str(), authority.as_str()),
            (hop, destination)
        );
    }
}

#[test]
fn an_endpoint_with_a_name_alone_is_resolved_for_each_connection() {
    let mut named = endpoint("a", "10.0.0.1");
    named.addresses.clear();
    named.hostname = "db.example.com".into();
    let found = candidates(routed(&world(vec![orders()], vec![named.clone()]), None, VIP, 0)).remove(0);
    assert_eq!(found.unresolved(), Some("db.example.com"));
    assert_eq!(found.target.to_string(), "db.example.com:8080");
    let found = found.resolved("fd00::7".parse().unwrap());
    assert_eq!(found.unresolved(), None);
    let Way::Tunnel { hop, authority } = &found.way else {
        panic!("{found:?}")
    };
    // The peer may not know by which name others know it.
    assert_eq!(
        (hop.address.to_string().as_str(), authority.as_str()),
        ("[fd00::7]:15008", "[fd00::7]:8080")
    );

    named.tunnel_protocol = TunnelProtocol::None;
    let found = candidates(routed(&world(vec![orders()], vec![named]), None, VIP, 0)).remove(0);
    assert_eq!((found.unresolved(), &found.way), (Some("db.example.com"), &Way::Plain));
    assert_eq!(
        address(&found.resolved("10.0.0.7".parse().unwrap())).to_string(),
        "10.0.0.7:8080"
    );
}

#[test]
fn an_endpoint_without_any_address_is_nobody() {
    let mut nowhere = endpoint("a", "10.0.0.1");
    nowhere.addresses.clear();
    assert!(matches!(
        failure(routed(&world(vec![orders()], vec![nowhere]), None, VIP, 0)),
        RouteFailure::NoHealthyUpstream(_)
    ));
}

#[test]
fn a_named_port_is_the_endpoints_own_or_its_tunnels() {
    let mut service = orders();
    service.ports = vec![fixture::port(80, 0)];
    let bare = endpoint("a", "10.0.0.1");
    let mut tunnelled = bare.clone();
    tunnelled.application_tunnel = Some(ApplicationTunnel {
        proxy: true,
        port: 15088,
    });
    let port = |workload: Workload, destination: &str| match routed(
        &world(vec![service.clone()], vec![workload]),
        None,
        destination,
        0,
    ) {
        Route::Endpoints { candidates, .. } => Some(candidates[0].target.port()),
        Route::Fail(_) => None,
    };
    assert_eq!(port(bare, VIP), None);
    assert_eq!(port(tunnelled.clone(), VIP), Some(80));
    assert_eq!(port(tunnelled, "240.240.0.1:81"), None, "no port of the service");
}

#[test]
fn services_of_another_namespace_may_be_invisible() {
    let mut private = orders();
    private.key.namespace = "elsewhere".into();
    private.private = true;
    let found = candidates(routed(&world(vec![private], vec![]), None, VIP, 0));
    assert_eq!(
        (address(&found[0]).to_string().as_str(), &found[0].way),
        (VIP, &Way::Plain)
    );
}

#[test]
fn the_world_says_who_may_speak_quic() {
    let quic = |uid: &str, marked| {
        let mut workload = fixture::workload("a", "10.0.0.1");
        (workload.uid, workload.hbone3) = (uid.into(), marked);
        let found = candidates(routed(&world(vec![], vec![workload]), None, "10.0.0.1:80", 0)).remove(0);
        match found.way {
            Way::Tunnel { hop, .. } => hop.quic,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(quic("Kubernetes//Pod/shop/a", false), Quic::No);
    assert_eq!(
        quic("Kubernetes/networking.istio.io/WorkloadEntry/shop/a", false),
        Quic::Unknown
    );
    assert_eq!(
        quic("Kubernetes/networking.istio.io/ServiceEntry/shop/a/10.0.0.1", false),
        Quic::No
    );
    assert_eq!(
        quic("mesh/networking.istio.io/WorkloadEntry/shop/a", true),
        Quic::Marked
    );
}

#[test]
fn the_family_that_was_asked_for_comes_first() {
    let mut dual = endpoint("a", "10.0.0.1");
    dual.addresses.push("fd00::1".parse().unwrap());
    let mut service = orders();
    service.vips.push(("".into(), "2001:2::1/128".parse().unwrap()));
    let both = world(vec![service.clone()], vec![dual.clone()]);
    assert!(address(&candidates(routed(&both, None, "[2001:2::1]:80", 0))[0]).is_ipv6());
    assert!(address(&candidates(routed(&both, None, VIP, 0))[0]).is_ipv4());
    service.ip_families = crate::world::IpFamilies::V6Only;
    let only_v6 = world(vec![service], vec![dual]);
    assert!(address(&candidates(routed(&only_v6, None, VIP, 0))[0]).is_ipv6());
}
