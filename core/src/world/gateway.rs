//! Who stands between us and a destination: waypoints and gateways of other networks, and tunnels to an application.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NetworkAddress, Service, ServiceKey, Workload, World};

/// A waypoint, or the gateway of a network (WDS: `GatewayAddress`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    pub destination: GatewayDestination,
    /// Its HBONE port; 15008 where none was sent.
    pub port: u16,
}

/// How a gateway is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// A service, or a workload that has this hostname.
    Hostname(ServiceKey),
    /// A service's VIP, or a workload's address.
    Address(NetworkAddress),
}

/// How connections are handed to the application of a workload (WDS: `ApplicationTunnel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    /// Whether the application wants a PROXY protocol header (version 2).
    pub proxy: bool,
    /// Where it takes them; 0 is the port that the connection is for.
    pub port: u16,
}

/// What the world knows by the name of a gateway.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Hostname(key) => write!(f, "{}/{}:{}", key.namespace, key.hostname, self.port),
            GatewayDestination::Address(at) => match at.address {
                IpAddr::V4(v4) => write!(f, "{v4}:{}", self.port),
                IpAddr::V6(v6) => write!(f, "[{v6}]:{}", self.port),
            },
        }
    }
}

impl World {
    /// Who a gateway's name stands for, as seen from `namespace`: a service before a workload (as ztunnel does it).
    pub fn named(&self, gateway: &Gateway, namespace: &str) -> Option<Named<'_>> {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => self
                .service(key)
                .map(Named::Service)
                .or_else(|| self.workload_with_hostname(key).map(Named::Workload)),
            GatewayDestination::Address(at) => self
                .service_at(&at.network, at.address, namespace)
                .map(Named::Service)
                .or_else(|| self.workload_at(&at.network, at.address).map(Named::Workload)),
        }
    }

    /// Whether `workload` is the one, or one of those, that a gateway's name stands for: by identity and address.
    pub fn is_among(&self, gateway: &Gateway, workload: &Workload) -> bool {
        let same = |other: &Arc<Workload>| {
            let address = |one: &IpAddr| workload.addresses.contains(one);
            other.identity == workload.identity
                && other.network == workload.network
                && other.addresses.iter().any(address)
        };
        match self.named(gateway, &workload.namespace) {
            Some(Named::Service(service)) => self.endpoints(&service.key).any(same),
            Some(Named::Workload(other)) => same(other),
            None => false,
        }
    }
}
