//! The dump as istioctl reads it: the structs beside have the fields and types of its Go ones, all of them demanded.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mesh_core::policy::{Action, Match, Policy, Scope, StringMatch};
use mesh_core::transport::Preference;
use mesh_core::world::{Delta, ServiceKey, World, convert};
use mesh_proto::istio::workload as proto;
use serde_json::Value;
use tokio::sync::watch;

use super::*;
use crate::certs::{Credentials, Pem};
use crate::flows::{Direction, Facts, Flows, Registered, Transport};
use crate::join::Membership;
use crate::shared::Shared;
use crate::tls::Revoked;
use crate::transports::Transports;
use crate::xds;
use istioctl::{Cert, CertsDump, PolicyMatch, State, ZtunnelPolicy, ZtunnelService, ZtunnelWorkload};

mod istioctl;

fn gateway(destination: proto::gateway_address::Destination) -> proto::GatewayAddress {
    proto::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: 15008,
    }
}

fn waypoint() -> proto::GatewayAddress {
    gateway(proto::gateway_address::Destination::Hostname(
        proto::NamespacedHostname {
            namespace: "shop".into(),
            hostname: "waypoint.example.com".into(),
        },
    ))
}

fn workload() -> proto::Workload {
    let ports = |service_port| proto::PortList {
        ports: vec![proto::Port {
            service_port,
            target_port: 8080,
            ..proto::Port::default()
        }],
    };
    proto::Workload {
        uid: "c1//pod/shop/orders-1".into(),
        name: "orders-1".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 2], vec![0xfd; 16]],
        hostname: "orders-1.shop".into(),
        network: "net1".into(),
        tunnel_protocol: proto::TunnelProtocol::Hbone as i32,
        trust_domain: "mesh.internal".into(),
        service_account: "orders".into(),
        node: "node1".into(),
        waypoint: Some(waypoint()),
        network_gateway: Some(gateway(proto::gateway_address::Destination::Address(
            proto::NetworkAddress {
                network: "net1".into(),
                address: vec![10, 0, 0, 9],
                length: None,
            },
        ))),
        application_tunnel: Some(proto::ApplicationTunnel {
            protocol: proto::application_tunnel::Protocol::Proxy as i32,
            port: 15088,
        }),
        canonical_name: "orders".into(),
        canonical_revision: "v1".into(),
        workload_type: proto::WorkloadType::Pod as i32,
        workload_name: "orders".into(),
        authorization_policies: vec!["shop/all".into()],
        cluster_id: "c1".into(),
        locality: Some(proto::Locality {
            region: "north".into(),
            zone: "a".into(),
            subzone: "1".into(),
        }),
        services: [("shop/orders.example.com", 80), ("shop/late.example.com", 81)]
            .map(|(key, port)| (key.to_owned(), ports(port)))
            .into(),
        ..proto::Workload::default()
    }
}

fn service() -> proto::Service {
    let address = |address: Vec<u8>, length| proto::NetworkAddress {
        network: "net1".into(),
        address,
        length,
    };
    proto::Service {
        name: "orders".into(),
        namespace: "shop".into(),
        hostname: "orders.example.com".into(),
        addresses: vec![address(vec![240, 0, 0, 1], None), address(vec![10, 9, 0, 0], Some(16))],
        ports: vec![proto::Port {
            service_port: 80,
            target_port: 8080,
            ..proto::Port::default()
        }],
        waypoint: Some(waypoint()),
        weighted_waypoints: vec![proto::WeightedWaypoint {
            destination: Some(waypoint()),
            weight: 3,
        }],
        subject_alt_names: vec!["spiffe://mesh.internal/ns/shop/sa/also".into()],
        load_balancing: Some(proto::LoadBalancing {
            routing_preference: vec![proto::load_balancing::Scope::Zone as i32],
            mode: proto::load_balancing::Mode::Failover as i32,
            health_policy: proto::load_balancing::HealthPolicy::AllowAll as i32,
        }),
        ip_families: proto::IpFamilies::Dual as i32,
        canonical: true,
        visibility: proto::service::Visibility::Namespace as i32,
        ..proto::Service::default()
    }
}

fn policy() -> Policy {
    let text = |text: &str| Arc::<str>::from(text);
    let full = Match {
        namespaces: vec![StringMatch::Exact(text("shop"))],
        not_namespaces: vec![StringMatch::Prefix(text("kube-"))],
        principals: vec![StringMatch::Suffix(text("/sa/web"))],
        not_principals: vec![StringMatch::Presence],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        not_source_ips: vec!["10.1.0.0/16".parse().unwrap()],
        destination_ips: vec!["fd00::/8".parse().unwrap()],
        not_destination_ips: vec!["fd01::/16".parse().unwrap()],
        destination_ports: vec![8080],
        not_destination_ports: vec![22],
        service_accounts: vec![(text("shop"), text("web"))],
        not_service_accounts: vec![(text("shop"), text("bad"))],
    };
    Policy {
        key: "shop/all".into(),
        namespace: "shop".into(),
        name: "all".into(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        dry_run: true,
        rules: vec![vec![vec![full, Match::default()]]],
    }
}

fn world() -> World {
    let mut names = convert::Names::default();
    let plain = proto::Workload {
        uid: "c1//plain".into(),
        namespace: "shop".into(),
        status: proto::WorkloadStatus::Unhealthy as i32,
        ..proto::Workload::default()
    };
    World::default().apply(Delta {
        workloads: [workload(), plain]
            .map(|one| convert::workload(one, &mut names).unwrap())
            .into(),
        services: vec![convert::service(service(), &mut names).unwrap()],
        policies: vec![policy()],
        ..Delta::default()
    })
}

/// A root, and a leaf under an intermediate.
fn credentials() -> (Pem, Credentials) {
    let ca = |name: &str| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params, rcgen::KeyPair::generate().unwrap())
    };
    let ((root, root_key), (middle, middle_key)) = (ca("root"), ca("middle"));
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = rcgen::Issuer::new(root, root_key);
    let middle_pem = middle.signed_by(&middle_key, &root).unwrap().pem();
    let middle = rcgen::Issuer::new(middle, middle_key);
    let (key, mut params) = (
        rcgen::KeyPair::generate().unwrap(),
        rcgen::CertificateParams::new(Vec::new()).unwrap(),
    );
    let uri = "spiffe://mesh.internal/ns/shop/sa/orders".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]));
    params.not_before = time::macros::datetime!(2026-01-02 03:04:05 UTC);
    params.not_after = time::macros::datetime!(2096-01-02 03:04:05 UTC);
    let leaf = params.signed_by(&key, &middle).unwrap().pem();
    let pem = Pem {
        key: key.serialize_pem(),
        chain: format!("{leaf}{middle_pem}"),
        roots: vec![root_pem],
    };
    let credentials = pem.credentials().unwrap();
    (pem, credentials)
}

fn flow(direction: Direction) -> Facts {
    let outbound = direction == Direction::Outbound;
    Facts {
        protocol: mesh_core::packet::Protocol::Tcp,
        direction,
        transport: Transport::Hbone3,
        source: "10.0.0.2:40000".parse().unwrap(),
        destination: "10.0.0.3:8080".parse().unwrap(),
        original: outbound.then(|| "240.0.0.1:80".parse().unwrap()),
        hbone: Some("10.0.0.3:15008".parse().unwrap()),
        service: Some(ServiceKey {
            namespace: "shop".into(),
            hostname: "orders.example.com".into(),
        }),
        service_name: None,
        source_workload: None,
        destination_workload: None,
        source_identity: None,
        destination_identity: None,
        endpoint: None,
        peer_certificate: None,
        trace: None,
    }
}

/// A member with a world of everything and a flow each way; the latter live as long as their registrations.
fn member(credentials: Credentials) -> (View, [Registered; 2]) {
    let membership = Membership {
        agent_id: "agent1".into(),
        trust_domain: "mesh.internal".into(),
        namespace: "shop".into(),
        service_account: "orders".into(),
        workload_name: "orders-1".into(),
        workload_group: "orders".into(),
        network: "net1".into(),
        cluster_id: "c1".into(),
        dns_domain: "mesh.internal".into(),
        address: "10.0.0.2".parse().unwrap(),
        control_addresses: vec![],
        ca_pins: vec![],
        control_plane: Default::default(),
    };
    let world = watch::channel(Arc::new(world())).1;
    let shared = Arc::new(Shared {
        config: Arc::default(),
        membership,
        revoked: Revoked::new(world.clone(), watch::channel(Arc::default()).1),
        world,
        credentials: watch::channel(Some(Arc::new(credentials))).1,
        flows: Arc::<Flows>::default(),
        settled: AtomicBool::new(true),
        transports: Transports::new(Preference::Auto),
        ways: crate::inbound::ways::Ways::default(),
        standing: crate::health::Standing::default(),
    });
    let flows = [Direction::Inbound, Direction::Outbound].map(|direction| shared.flows.register(flow(direction)));
    let member = Member {
        shared,
        xds: watch::channel(xds::Status::default()).1,
        captured: watch::channel(0).1,
        record: watch::channel(Vec::new()).1,
        registration: watch::channel(Default::default()).1,
    };
    (View::Member(member), flows)
}

#[test]
fn the_shape_is_ztunnels() {
    let (view, _flows) = member(credentials().1);
    let mut dump: Value = serde_json::from_slice(&render(&view).unwrap()).unwrap();
    // These differ from build to build, and from run to run.
    for key in ["config", "version", "certificates"] {
        assert!(!dump.as_object_mut().unwrap().remove(key).unwrap().is_null(), "{key}");
    }
    let golden: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(dump, golden, "\n{}", serde_json::to_string_pretty(&dump).unwrap());
}

#[test]
fn istioctl_finds_every_field() {
    let (pem, credentials) = credentials();
    let (view, _flows) = member(credentials);
    let bytes = render(&view).unwrap();
    let dump: Value = serde_json::from_slice(&bytes).unwrap();
    let read = |at: &str| dump.pointer(at).unwrap_or_else(|| panic!("{at} in {dump}")).clone();

    let workload: ZtunnelWorkload = serde_json::from_value(read("/workloads/1")).unwrap();
    assert_eq!(
        (workload.status.as_str(), workload.protocol.as_str()),
        ("Healthy", "HBONE")
    );
    let service: ZtunnelService = serde_json::from_value(read("/services/0")).unwrap();
    // It finds a waypoint by its service's `namespace/hostname`, or by one of its VIPs.
    assert_eq!(service.waypoint.destination, "shop/waypoint.example.com");
    assert_eq!(workload.waypoint.destination, "shop/waypoint.example.com");
    assert_eq!(workload.network_gateway.destination, "net1/10.0.0.9");
    let endpoint = &service.endpoints[&workload.uid];
    assert_eq!((&endpoint.workload_uid, endpoint.port[&80]), (&workload.uid, 8080));
    let policy: ZtunnelPolicy = serde_json::from_value(read("/policies/0")).unwrap();
    let full: PolicyMatch = serde_json::from_value(policy.rules[0][0][0].clone()).unwrap();
    assert_eq!(full.namespaces[0].exact.as_deref(), Some("shop"));
    assert_eq!(full.not_principals[0].presence, Some(vec![]));

    let certificates: CertsDump = serde_json::from_value(read("/certificates/0")).unwrap();
    assert_eq!(
        (certificates.state.as_str(), certificates.cert_chain.len()),
        ("Available", 2)
    );
    let leaf = &certificates.cert_chain[0];
    assert_eq!(
        leaf.serial_number,
        (1u128 << 64).to_string(),
        "decimal, as Go's big.Int reads it"
    );
    assert_eq!(
        (leaf.valid_from.as_str(), leaf.expiration_time.as_str()),
        ("2026-01-02T03:04:05Z", "2096-01-02T03:04:05Z")
    );
    use base64::Engine as _;
    let text = |one: &Cert| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&one.pem).unwrap();
        String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
    };
    let chain: String = certificates.cert_chain.iter().map(text).collect();
    assert_eq!(chain, pem.chain.replace("\r\n", "\n"));
    assert_eq!(text(&certificates.root_certs[0]), pem.roots[0].replace("\r\n", "\n"));
    assert!(!String::from_utf8(bytes).unwrap().contains("PRIVATE"));

    let states: BTreeMap<String, State> = serde_json::from_value(read("/workloadState")).unwrap();
    let state = &states[&workload.uid];
    assert_eq!((state.state.as_str(), state.info.name.as_str()), ("Up", "orders-1"));
    assert_eq!(state.connections.inbound[0].original_dst, "orders.example.com");
    let outbound = &state.connections.outbound[0];
    assert_eq!(
        (outbound.original_dst.as_str(), outbound.actual_dst.as_str()),
        ("240.0.0.1:80", "10.0.0.3:15008")
    );
}

#[test]
fn without_a_certificate_or_a_membership() {
    let (view, _flows) = member(credentials().1);
    let View::Member(mut member) = view else { unreachable!() };
    Arc::get_mut(&mut member.shared).unwrap().credentials = watch::channel(None).1;
    let dump: Value = serde_json::from_slice(&render(&View::Member(member)).unwrap()).unwrap();
    let certificates: CertsDump = serde_json::from_value(dump["certificates"][0].clone()).unwrap();
    assert!(certificates.state.starts_with("Unavailable") && certificates.cert_chain.is_empty());
    assert_eq!(certificates.identity, "spiffe://mesh.internal/ns/shop/sa/orders");

    let dump: Value = serde_json::from_slice(&render(&View::Waiting { error: None }).unwrap()).unwrap();
    for key in ["workloads", "services", "policies", "certificates"] {
        assert_eq!(dump[key], Value::Array(vec![]), "{key}");
    }
}
