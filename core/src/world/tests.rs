use proptest::prelude::*;

use super::*;

/// A workload for tests, in namespace `ns`.
pub(crate) fn workload(name: &str, address: &str) -> Workload {
    Workload {
        uid: format!("mesh//{name}").into(),
        name: name.into(),
        namespace: "ns".into(),
        addresses: vec![address.parse().unwrap()],
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        identity: Identity::new("mesh.internal", "ns", name).unwrap(),
        node: "".into(),
        canonical_name: name.into(),
        canonical_revision: "".into(),
        workload_type: WORKLOAD_TYPE_POD,
        workload_name: name.into(),
        authorization_policies: Vec::new(),
        healthy: true,
        cluster_id: "mesh".into(),
        host_network: false,
        locality: Locality::default(),
        capacity: 1,
        services: Vec::new(),
        has_waypoint: false,
        has_network_gateway: false,
    }
}

/// A service for tests, in namespace `ns`, port 80 to 8080.
pub(crate) fn service(hostname: &str, vip: &str) -> Service {
    Service {
        name: hostname.into(),
        key: ServiceKey {
            namespace: "ns".into(),
            hostname: hostname.into(),
        },
        vips: vec![(
            "".into(),
            vip.parse::<IpAddr>().map_or_else(|_| vip.parse().unwrap(), IpNet::from),
        )],
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
        subject_alt_names: Vec::new(),
        mode: BalanceMode::Any,
        preference: Vec::new(),
        allow_unhealthy: false,
        ip_families: IpFamilies::Automatic,
        canonical: false,
        has_waypoint: false,
        private: false,
    }
}

/// The workload as an endpoint of a service.
pub(crate) fn endpoint(mut workload: Workload, service: &Service) -> Workload {
    workload.services.push((service.key.clone(), Vec::new()));
    workload
}

#[test]
fn endpoints_may_arrive_before_their_service() {
    let orders = service("orders", "240.240.0.1");
    let world = World::default().apply(Delta {
        workloads: vec![endpoint(workload("a", "10.0.0.1"), &orders)],
        ..Delta::default()
    });
    assert!(world.service_at("", "240.240.0.1".parse().unwrap(), "ns").is_none());
    let world = world.apply(Delta {
        services: vec![orders.clone()],
        ..Delta::default()
    });
    assert_eq!(world.endpoints(&orders.key).count(), 1);
    let world = world.apply(Delta {
        removed_addresses: vec!["mesh//a".into()],
        ..Delta::default()
    });
    assert_eq!(world.endpoints(&orders.key).count(), 0);
    let world = world.apply(Delta {
        removed_addresses: vec!["ns/orders".into()],
        ..Delta::default()
    });
    assert!(world.service_at("", "240.240.0.1".parse().unwrap(), "ns").is_none());
}

#[test]
fn ranges_come_after_exact_addresses_and_longest_first() {
    let world = World::default().apply(Delta {
        services: vec![
            service("wide", "240.0.0.0/8"),
            service("narrow", "240.240.0.0/16"),
            service("exact", "240.240.0.1"),
        ],
        ..Delta::default()
    });
    let at = |address: &str| {
        world
            .service_at("", address.parse().unwrap(), "ns")
            .map(|service| service.name.to_string())
    };
    assert_eq!(at("240.240.0.1").as_deref(), Some("exact"));
    assert_eq!(at("240.240.0.2").as_deref(), Some("narrow"));
    assert_eq!(at("240.1.0.2").as_deref(), Some("wide"));
    assert_eq!(at("10.0.0.1"), None);
}

#[test]
fn what_is_captured() {
    let mut plain = workload("plain", "10.0.0.2");
    plain.tunnel_protocol = TunnelProtocol::None;
    let mut host = workload("host", "10.0.0.3");
    host.host_network = true;
    let mut far = workload("far", "10.0.0.4");
    far.network = "other".into();
    let world = World::default().apply(Delta {
        workloads: vec![
            workload("a", "10.0.0.1"),
            plain,
            host,
            far,
            workload("evil", "127.0.0.1"),
            workload("own", "10.0.0.9"),
        ],
        services: vec![service("orders", "240.240.0.1")],
        ..Delta::default()
    });
    let captured = world.captured_prefixes("", &["10.0.0.9".parse().unwrap()]);
    let text: Vec<_> = captured.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["10.0.0.1/32", "240.240.0.1/32"]);
}

#[derive(Clone, Debug)]
enum Change {
    Workload(u8, u8, u8),
    RemoveWorkload(u8),
    Service(u8, u8),
    RemoveService(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0u8..6, 0u8..6, 0u8..4).prop_map(|(name, address, service)| Change::Workload(name, address, service)),
        (0u8..6).prop_map(Change::RemoveWorkload),
        (0u8..4, 0u8..4).prop_map(|(name, vip)| Change::Service(name, vip)),
        (0u8..4).prop_map(Change::RemoveService),
    ]
}

proptest! {
    /// Whatever the order of changes, the indexes say what a world made at once of the same things says.
    #[test]
    fn changes_lead_where_a_fresh_start_leads(changes in prop::collection::vec(change(), 0..40)) {
        let mut workloads = std::collections::BTreeMap::new();
        let mut services = std::collections::BTreeMap::new();
        let mut world = World::default();
        for change in changes {
            let mut delta = Delta::default();
            match change {
                Change::Workload(name, address, to) => {
                    let made = endpoint(workload(&name.to_string(), &format!("10.0.0.{address}")), &service(&to.to_string(), "240.240.0.0"));
                    workloads.insert(name, made.clone());
                    delta.workloads.push(made);
                }
                Change::RemoveWorkload(name) => {
                    workloads.remove(&name);
                    delta.removed_addresses.push(format!("mesh//{name}"));
                }
                Change::Service(name, vip) => {
                    let made = service(&name.to_string(), &format!("240.240.0.{vip}"));
                    services.insert(name, made.clone());
                    delta.services.push(made);
                }
                Change::RemoveService(name) => {
                    services.remove(&name);
                    delta.removed_addresses.push(format!("ns/{name}"));
                }
            }
            world = world.apply(delta);
        }
        let fresh = World::default().apply(Delta {
            workloads: workloads.into_values().collect(),
            services: services.into_values().collect(),
            ..Delta::default()
        });
        for number in 0..6 {
            let address: IpAddr = format!("10.0.0.{number}").parse().unwrap();
            prop_assert_eq!(world.workload_at("", address), fresh.workload_at("", address));
            prop_assert_eq!(world.workload_named("ns", &number.to_string()), fresh.workload_named("ns", &number.to_string()));
            let vip: IpAddr = format!("240.240.0.{number}").parse().unwrap();
            prop_assert_eq!(world.service_at("", vip, "ns").is_some(), fresh.service_at("", vip, "ns").is_some());
            let key = ServiceKey { namespace: "ns".into(), hostname: number.to_string().into() };
            prop_assert_eq!(world.endpoints(&key).collect::<Vec<_>>(), fresh.endpoints(&key).collect::<Vec<_>>());
        }
        prop_assert_eq!(world.captured_prefixes("", &[]), fresh.captured_prefixes("", &[]));
    }
}
