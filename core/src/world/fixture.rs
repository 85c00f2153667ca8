//! Small workloads and services for tests.

use std::sync::Arc;

use super::{IpFamilies, Locality, Port, Service, ServiceKey, TunnelProtocol, Workload};
use crate::identity::Identity;

/// An HBONE workload in namespace `shop` with service account `{uid}`.
pub(crate) fn workload(uid: &str, address: &str) -> Workload {
    Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        addresses: vec![address.parse().unwrap()],
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        identity: Identity::new("mesh.internal", "shop", uid).unwrap(),
        node: "".into(),
        canonical_name: uid.into(),
        canonical_revision: "latest".into(),
        workload_type: 2,
        workload_name: uid.into(),
        authorization_policies: vec![],
        healthy: true,
        cluster_id: "mesh".into(),
        host_network: false,
        locality: Locality::default(),
        capacity: 1,
        services: vec![],
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        hbone3: false,
    }
}

/// A service in namespace `shop`, port 80 to 8080.
pub(crate) fn service(hostname: &str, vip: &str) -> Service {
    Service {
        name: hostname.split('.').next().unwrap_or_default().into(),
        key: key(hostname),
        vips: vec![("".into(), vip.parse::<std::net::IpAddr>().unwrap().into())],
        ports: vec![port(80, 8080)],
        subject_alt_names: vec![],
        mode: super::BalanceMode::Any,
        preference: vec![],
        allow_unhealthy: false,
        ip_families: IpFamilies::Automatic,
        canonical: false,
        waypoint: None,
        weighted_waypoints: vec![],
        private: false,
    }
}

pub(crate) fn key(hostname: &str) -> ServiceKey {
    ServiceKey {
        namespace: "shop".into(),
        hostname: Arc::from(hostname),
    }
}

pub(crate) fn port(service_port: u16, target_port: u16) -> Port {
    Port {
        service_port,
        target_port,
        app_protocol: 0,
    }
}
