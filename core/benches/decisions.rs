//! What one decision costs in a world of 100,000 workloads: applying one change, routing, authorizing, answering a name.
//!
//! Each number is the time of one call. Bars: a change well under 1 ms, a DNS answer at most 5 us.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_core::dns::{self, View};
use mesh_core::identity::Identity;
use mesh_core::outbound::{self, Own};
use mesh_core::policy::{self, Action, Connection, Match, Policy, Scope, StringMatch};
use mesh_core::world::convert::{self, Names};
use mesh_core::world::{Delta, World};
use mesh_proto::istio::workload as proto;

const WORKLOADS: u32 = 100_000;
const SERVICES: u32 = 10_000;

fn hostname(at: u32) -> String {
    format!("service-{at}.namespace-{}.mesh.internal", at % 100)
}

fn workload(at: u32) -> proto::Workload {
    let service = at % SERVICES;
    let ports = proto::PortList {
        ports: vec![proto::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
    };
    proto::Workload {
        uid: format!(
            "mesh/networking.istio.io/WorkloadEntry/namespace-{}/workload-{at}",
            service % 100
        ),
        name: format!("workload-{at}"),
        namespace: format!("namespace-{}", service % 100),
        addresses: vec![(0x0a00_0000 + at).to_be_bytes().to_vec()],
        tunnel_protocol: proto::TunnelProtocol::Hbone as i32,
        trust_domain: "mesh.internal".to_owned(),
        service_account: format!("service-{service}"),
        workload_name: format!("workload-{at}"),
        canonical_name: format!("service-{service}"),
        canonical_revision: "latest".to_owned(),
        cluster_id: "mesh".to_owned(),
        services: [(format!("namespace-{}/{}", service % 100, hostname(service)), ports)].into(),
        ..Default::default()
    }
}

fn service(at: u32) -> proto::Service {
    proto::Service {
        name: format!("service-{at}"),
        namespace: format!("namespace-{}", at % 100),
        hostname: hostname(at),
        addresses: vec![proto::NetworkAddress {
            address: (0xf0f0_0000 + at).to_be_bytes().to_vec(),
            ..Default::default()
        }],
        ports: vec![proto::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
        ..Default::default()
    }
}

fn policy(at: u32) -> Policy {
    let principal = StringMatch::Exact(format!("mesh.internal/ns/namespace-1/sa/service-{at}").into());
    Policy {
        key: format!("namespace-0/p{at}").into(),
        namespace: "namespace-0".into(),
        name: format!("p{at}").into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules: vec![vec![vec![Match {
            principals: vec![principal],
            ..Match::default()
        }]]],
    }
}

fn world(names: &mut Names) -> World {
    World::default().apply(Delta {
        workloads: (0..WORKLOADS)
            .map(|at| convert::workload(workload(at), names).unwrap())
            .collect(),
        services: (0..SERVICES)
            .map(|at| convert::service(service(at), names).unwrap())
            .collect(),
        policies: (0..20).map(policy).collect(),
        addresses_synced: true,
        policies_synced: true,
        ..Delta::default()
    })
}

/// An A query for `name`, as a resolver sends it.
fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn decisions(criterion: &mut Criterion) {
    let mut names = Names::default();
    let world = world(&mut names);
    let mut changed = convert::workload(workload(4711), &mut names).unwrap();
    changed.healthy = false;
    criterion.bench_function("world/apply one change of 100,000", |bench| {
        bench.iter_batched(
            || Delta {
                workloads: vec![changed.clone()],
                ..Delta::default()
            },
            |delta| black_box(world.apply(delta)),
            criterion::BatchSize::SmallInput,
        );
    });

    let own = Own {
        network: "",
        workload: None,
        namespace: "namespace-0",
        settled: true,
        ports: &[],
    };
    let vip: SocketAddr = "240.240.0.7:80".parse().unwrap();
    criterion.bench_function("outbound/route to a service of 10", |bench| {
        let mut seed = 0;
        bench.iter(|| {
            seed += 1;
            black_box(outbound::route(&world, &own, vip, seed, 3))
        });
    });

    let us = world.workload_at("", "10.0.0.0".parse().unwrap()).unwrap();
    let connection = Connection {
        identity: Some(Identity::new("mesh.internal", "namespace-1", "service-19").unwrap()),
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.0:8080".parse().unwrap(),
    };
    criterion.bench_function("policy/authorize by the last of 20", |bench| {
        bench.iter(|| black_box(policy::authorize(&world, us, &connection)));
    });

    let search = ["corp.example".to_owned(), "example".to_owned()];
    let view = View {
        network: "",
        namespace: "namespace-0",
        cluster_domain: "cluster.local",
        mesh_domain: "mesh.internal",
        search: &search,
    };
    for (what, name) in [
        ("a mesh name", hostname(7)),
        ("a public name", "www.example.com".to_owned()),
    ] {
        let query = query(&name);
        criterion.bench_function(&format!("dns/{what}"), |bench| {
            bench.iter(|| black_box(dns::decide(&query, &world, &view, 7, 1232)));
        });
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
