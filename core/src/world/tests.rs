//! A world changed step by step is the world built at once; and what converts is what was meant.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_proto::istio::workload as proto;
use proptest::prelude::*;

use super::convert::{self, Invalid, Names};
use super::*;
use crate::policy::{Action, Policy, Scope as PolicyScope};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Step {
    Workload(Workload),
    Service(Service),
    Policy(Policy),
    RemoveAddress(String),
    RemovePolicy(String),
    Revoke(String, Vec<u8>),
    Unrevoke(String),
}

fn any_workload() -> impl Strategy<Value = Workload> {
    (
        0..4_usize,
        0..3_u8,
        0..3_u8,
        0..3_usize,
        any::<(bool, bool, bool)>(),
        0..4_usize,
    )
        .prop_map(|(uid, address, second, network, (pod, hbone, host), service)| {
            let mut workload = fixture::workload(NAMES[uid], &format!("10.0.0.{address}"));
            workload.addresses.push(format!("10.0.0.{second}").parse().unwrap());
            workload.network = ["", "n1", "n2"][network].into();
            workload.workload_type = if pod { 2 } else { 0 };
            workload.tunnel_protocol = if hbone {
                TunnelProtocol::Hbone
            } else {
                TunnelProtocol::None
            };
            workload.host_network = host;
            workload.hostname = ["", NAMES[0], NAMES[1]][usize::from(second)].into();
            workload.services = vec![(fixture::key(NAMES[service]), vec![])];
            workload
        })
}

fn any_service() -> impl Strategy<Value = Service> {
    (0..4_usize, 0..3_u8, 0..3_u8, any::<(bool, bool)>(), 24..=32_u8).prop_map(
        |(host, vip, namespace, (canonical, private), length)| {
            let mut service = fixture::service(NAMES[host], &format!("10.1.0.{vip}"));
            service.vips[0].1 = format!("10.1.0.{vip}/{length}").parse().unwrap();
            service.key.namespace = ["shop", "other", "third"][usize::from(namespace)].into();
            service.canonical = canonical;
            service.private = private;
            service
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (0..4_usize, 0..3_u8).prop_map(|(name, scope)| Policy {
        key: format!("shop/{}", NAMES[name]).into(),
        namespace: "shop".into(),
        name: NAMES[name].into(),
        scope: [
            PolicyScope::Global,
            PolicyScope::Namespace,
            PolicyScope::WorkloadSelector,
        ][usize::from(scope)],
        action: Action::Deny,
        dry_run: false,
        rules: vec![],
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let name = || prop::sample::select(NAMES.to_vec());
    prop_oneof![
        4 => any_workload().prop_map(Step::Workload),
        3 => any_service().prop_map(Step::Service),
        2 => any_policy().prop_map(Step::Policy),
        2 => name().prop_map(|name| Step::RemoveAddress(name.to_owned())),
        2 => (name(), prop::sample::select(vec!["shop", "other"]))
            .prop_map(|(name, namespace)| Step::RemoveAddress(format!("{namespace}/{name}"))),
        1 => name().prop_map(|name| Step::RemovePolicy(format!("shop/{name}"))),
        1 => (name(), 0..3_u8).prop_map(|(name, serial)| Step::Revoke(name.to_owned(), vec![serial])),
        1 => name().prop_map(|name| Step::Unrevoke(name.to_owned())),
    ]
}

/// The same, kept in plain maps.
#[derive(Default)]
struct Model {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<ServiceKey, Service>,
    policies: BTreeMap<String, Policy>,
    revoked: BTreeMap<String, Vec<u8>>,
}

impl Model {
    fn take(&mut self, step: Step) -> Delta {
        let mut delta = Delta::default();
        match step {
            Step::Workload(workload) => {
                self.workloads.insert(workload.uid.to_string(), workload.clone());
                delta.workloads.push(workload);
            }
            Step::Service(service) => {
                self.services.insert(service.key.clone(), service.clone());
                delta.services.push(service);
            }
            Step::Policy(policy) => {
                self.policies.insert(policy.key.to_string(), policy.clone());
                delta.policies.push(policy);
            }
            Step::RemoveAddress(name) => {
                self.workloads.remove(&name);
                if let Some((namespace, hostname)) = name.split_once('/') {
                    self.services.remove(&ServiceKey {
                        namespace: namespace.into(),
                        hostname: hostname.into(),
                    });
                }
                delta.removed_addresses.push(name);
            }
            Step::RemovePolicy(key) => {
                self.policies.remove(&key);
                delta.removed_policies.push(key);
            }
            Step::Revoke(name, serial) => {
                self.revoked.insert(name.clone(), serial.clone());
                delta.revocations.push((
                    name,
                    Revocation {
                        serials: vec![serial],
                        spki_sha256: vec![],
                    },
                ));
            }
            Step::Unrevoke(name) => {
                self.revoked.remove(&name);
                delta.removed_revocations.push(name);
            }
        }
        delta
    }

    fn rebuilt(&self) -> World {
        let revocation = |serial: &Vec<u8>| Revocation {
            serials: vec![serial.clone()],
            spki_sha256: vec![],
        };
        World::default().apply(Delta {
            workloads: self.workloads.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            policies: self.policies.values().cloned().collect(),
            revocations: self
                .revoked
                .iter()
                .map(|(name, serial)| (name.clone(), revocation(serial)))
                .collect(),
            ..Delta::default()
        })
    }

    /// Each question to the world, answered by walking through everything.
    fn check(&self, world: &World) {
        let networks = ["", "n1", "n2"];
        for (network, last) in networks
            .into_iter()
            .flat_map(|network| (0..4).map(move |last| (network, last)))
        {
            let address: IpAddr = format!("10.0.0.{last}").parse().unwrap();
            let best = self
                .workloads
                .values()
                .filter(|one| !one.host_network && &*one.network == network && one.addresses.contains(&address))
                .min_by_key(|one| (one.address_rank(), one.uid.clone()));
            assert_eq!(world.workload_at(network, address).map(|one| &**one), best);
        }
        for host in NAMES {
            let key = fixture::key(host);
            let endpoints: Vec<_> = self
                .workloads
                .values()
                .filter(|one| one.ports_of(&key).is_some())
                .collect();
            assert_eq!(world.endpoints(&key).map(|one| &**one).collect::<Vec<_>>(), endpoints);
            let called = self.workloads.values().filter(|one| &*one.hostname == host);
            let best = called.min_by_key(|one| (one.address_rank(), one.uid.clone()));
            assert_eq!(world.workload_with_hostname(&key).map(|one| &**one), best);
            let named: Vec<_> = self
                .services
                .values()
                .filter(|one| &*one.key.hostname == host)
                .collect();
            assert_eq!(
                world.services_by_hostname(host).map(|one| &**one).collect::<Vec<_>>(),
                named
            );
        }
        let of_namespace: BTreeSet<_> = world
            .policies_of_namespace("shop")
            .map(|one| one.key.to_string())
            .collect();
        let expected = self
            .policies
            .values()
            .filter(|one| one.scope != PolicyScope::WorkloadSelector);
        assert_eq!(of_namespace, expected.map(|one| one.key.to_string()).collect());
        for serial in 0..3_u8 {
            let revoked = self.revoked.values().any(|held| held == &[serial]);
            // Zero is an empty serial once leading zeros are gone.
            assert_eq!(world.is_revoked(&[0, serial], &[9; 32]), revoked);
        }
    }

    fn check_vips(&self, world: &World) {
        for (last, namespace) in (0..4).flat_map(|last| ["shop", "other", "third"].map(move |ns| (last, ns))) {
            let address: IpAddr = format!("10.1.0.{last}").parse().unwrap();
            let holds = |one: &&Service| one.vips[0].1.contains(&address) && one.visible_from(namespace);
            let exact = |one: &Service| one.vips[0].1.prefix_len() == 32;
            let order = |one: &&Service| {
                let foreign = &*one.key.namespace != namespace;
                let length = one.vips[0].1.prefix_len();
                (!exact(one), foreign, u8::MAX - length, !one.canonical, one.key.clone())
            };
            let best = self.services.values().filter(holds).min_by_key(order);
            assert_eq!(
                world.service_at("", address, namespace).map(|one| &**one),
                best,
                "{address} {namespace}"
            );
        }
    }
}

proptest! {
    #[test]
    fn steps_and_rebuilding_agree(steps in prop::collection::vec(any_step(), 0..40)) {
        let mut model = Model::default();
        let mut world = World::default();
        for step in steps {
            let before = format!("{world:?}");
            let next = world.apply(model.take(step));
            prop_assert_eq!(before, format!("{world:?}"), "the old value is as it was");
            world = next;
            model.check(&world);
            model.check_vips(&world);
        }
        prop_assert_eq!(format!("{world:?}"), format!("{:?}", model.rebuilt()));
    }
}

#[test]
fn what_is_captured() {
    let mut plain = fixture::workload("plain", "10.0.0.2");
    plain.tunnel_protocol = TunnelProtocol::None;
    let mut host = fixture::workload("host", "10.0.0.3");
    host.host_network = true;
    let mut remote = fixture::workload("remote", "10.0.0.4");
    remote.network = "elsewhere".into();
    let mut wide = fixture::service("wide", "10.9.0.0");
    wide.vips[0].1 = "10.9.0.0/16".parse().unwrap();
    let world = World::default().apply(Delta {
        workloads: vec![
            fixture::workload("peer", "10.0.0.1"),
            plain,
            host,
            remote,
            fixture::workload("us", "10.0.0.9"),
            fixture::workload("odd", "127.0.0.1"),
            fixture::workload("v6", "fd00::1"),
        ],
        services: vec![fixture::service("orders", "240.240.0.1"), wide],
        ..Delta::default()
    });
    let captured: Vec<_> = world
        .captured_prefixes("", &["10.0.0.9".parse().unwrap()])
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        captured,
        ["10.0.0.1/32", "10.9.0.0/16", "240.240.0.1/32", "fd00::1/128"]
    );
    for (address, expected) in [
        ("10.0.0.1", true),
        ("::ffff:10.0.0.1", true),
        ("fd00::1", true),
        ("127.0.0.1", false),
        ("240.240.0.1", false),
        ("10.0.0.77", false),
    ] {
        assert_eq!(world.captures("", address.parse().unwrap()), expected, "{address}");
    }
    for workload in world
        .workloads()
        .filter(|workload| workload.tunnel_protocol != TunnelProtocol::Hbone)
    {
        assert!(workload.addresses.iter().all(|address| !world.captures("", *address)));
    }
}

#[test]
fn an_agent_finds_itself_before_its_service_came() {
    let mut us = fixture::workload("us", "10.0.0.9");
    us.services = vec![(fixture::key("late"), vec![])];
    let world = World::default().apply(Delta {
        workloads: vec![us],
        ..Delta::default()
    });
    assert!(world.workload_named("shop", "us").is_some());
    assert!(world.service(&fixture::key("late")).is_none());
    assert_eq!(world.endpoints(&fixture::key("late")).count(), 1);
}

fn sent() -> proto::Workload {
    proto::Workload {
        uid: "u".to_owned(),
        name: "n".to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    }
}

#[test]
fn defaults_are_those_of_wds() {
    let workload = convert::workload(sent(), &mut Names::default()).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!(
        (&*workload.cluster_id, workload.capacity, workload.healthy),
        ("Kubernetes", 1, true)
    );
}

#[test]
fn impossible_workloads_are_refused() {
    let refused = |change: fn(&mut proto::Workload)| {
        let mut workload = sent();
        change(&mut workload);
        convert::workload(workload, &mut Names::default()).unwrap_err()
    };
    assert_eq!(refused(|one| one.uid.clear()), Invalid::Missing("uid"));
    assert!(matches!(
        refused(|one| one.addresses = vec![vec![1; 5]]),
        Invalid::Address { length: 5, .. }
    ));
    assert!(matches!(
        refused(|one| one.tunnel_protocol = 2),
        Invalid::Unsupported { .. }
    ));
    assert!(matches!(
        refused(|one| one.tunnel_protocol = 9),
        Invalid::Unsupported { .. }
    ));
    assert!(matches!(
        refused(|one| one.namespace = "a/b".to_owned()),
        Invalid::Identity(_)
    ));
    let with_port = |key: &str, port| (key.to_owned(), proto::PortList { ports: vec![port] });
    let port = |service_port, target_port| proto::Port {
        service_port,
        target_port,
        app_protocol: 0,
    };
    for (entry, what) in [
        (with_port("nohost", port(80, 80)), "key"),
        (with_port("ns/host", port(0, 80)), "service port 0"),
        (with_port("ns/host", port(80, 70_000)), "large target port"),
    ] {
        let mut workload = sent();
        workload.services = [entry].into();
        assert!(convert::workload(workload, &mut Names::default()).is_err(), "{what}");
    }
}

#[test]
fn services_keep_what_can_be_meant() {
    let sent = proto::Service {
        namespace: "ns".to_owned(),
        hostname: "h".to_owned(),
        subject_alt_names: vec!["h.example".to_owned(), "spiffe://td/ns/a/sa/b".to_owned()],
        addresses: vec![proto::NetworkAddress {
            network: String::new(),
            address: vec![10, 1, 2, 3],
            length: Some(16),
        }],
        ..Default::default()
    };
    let service = convert::service(sent.clone(), &mut Names::default()).unwrap();
    assert_eq!(service.subject_alt_names.len(), 1);
    assert_eq!(service.vips[0].1.to_string(), "10.1.0.0/16");
    let mut wrong = sent;
    wrong.addresses[0].length = Some(33);
    assert!(matches!(
        convert::service(wrong, &mut Names::default()),
        Err(Invalid::Prefix { .. })
    ));
}

#[test]
fn who_stands_between_is_kept_and_shared() {
    use proto::gateway_address::Destination;
    let gateway = |destination, port| proto::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: port,
    };
    let named = |hostname: &str| {
        Destination::Hostname(proto::NamespacedHostname {
            namespace: "ns".to_owned(),
            hostname: hostname.to_owned(),
        })
    };
    let address = |bytes: Vec<u8>| {
        Destination::Address(proto::NetworkAddress {
            network: "west".to_owned(),
            address: bytes,
            length: None,
        })
    };
    let mut names = Names::default();
    let workload = proto::Workload {
        waypoint: Some(gateway(named("waypoint"), 0)),
        network_gateway: Some(gateway(address(vec![192, 0, 2, 1]), 15443)),
        application_tunnel: Some(proto::ApplicationTunnel {
            protocol: proto::application_tunnel::Protocol::Proxy.into(),
            port: 15088,
        }),
        extensions: ["other", mesh_proto::extension::HBONE3]
            .map(|name| proto::Extension {
                name: name.to_owned(),
                config: None,
            })
            .to_vec(),
        ..sent()
    };
    let one = convert::workload(workload.clone(), &mut names).unwrap();
    let waypoint = one.waypoint.clone().unwrap();
    assert_eq!(waypoint.to_string(), "ns/waypoint:15008");
    assert_eq!(one.network_gateway.as_ref().unwrap().to_string(), "192.0.2.1:15443");
    assert_eq!(
        one.application_tunnel,
        Some(ApplicationTunnel {
            proxy: true,
            port: 15088
        })
    );
    assert!(one.hbone3 && !convert::workload(sent(), &mut names).unwrap().hbone3);
    let service = proto::Service {
        hostname: "h".to_owned(),
        waypoint: workload.waypoint.clone(),
        weighted_waypoints: vec![proto::WeightedWaypoint {
            destination: workload.waypoint,
            weight: 7,
        }],
        ..Default::default()
    };
    let service = convert::service(service, &mut names).unwrap();
    assert!(Arc::ptr_eq(&waypoint, &service.weighted_waypoints[0].0), "held once");
    assert_eq!((service.waypoint, service.weighted_waypoints[0].1), (Some(waypoint), 7));

    // One that names nobody would let traffic go past it.
    for wrong in [
        proto::GatewayAddress::default(),
        gateway(named(""), 0),
        gateway(named("waypoint"), 70_000),
        gateway(address(vec![1, 2, 3]), 0),
    ] {
        let workload = proto::Workload {
            waypoint: Some(wrong),
            ..sent()
        };
        assert!(convert::workload(workload, &mut names).is_err());
    }
    for (protocol, port) in [(9, 0), (1, 70_000)] {
        let workload = proto::Workload {
            application_tunnel: Some(proto::ApplicationTunnel { protocol, port }),
            ..sent()
        };
        assert!(convert::workload(workload, &mut names).is_err());
    }
}
