//! What is to be done with a connection that an application of ours opened (istio-wire section 3.1).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::balance;
use crate::identity::Identity;
use crate::world::{BalanceMode, IpFamilies, Service, TunnelProtocol, Workload, World};

/// Who we are, to choose as ourselves.
#[derive(Clone, Debug)]
pub struct Own<'a> {
    pub network: &'a str,
    pub workload: Option<&'a Workload>,
    /// Namespace to look services up from.
    pub namespace: &'a str,
}

/// One way to reach a destination.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub workload: Option<Arc<Workload>>,
    /// Where the application of the far side listens.
    pub target: SocketAddr,
    pub way: Way,
}

/// How.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// A tunnel to `peer` (its HBONE port), whose certificate must show one of `identities`.
    Tunnel {
        peer: SocketAddr,
        identities: Vec<Identity>,
    },
    /// Plain TCP.
    Plain,
}

/// What was decided.
#[derive(Clone, Debug)]
pub enum Route {
    /// Try these in order, each at most once.
    Endpoints {
        service: Option<Arc<Service>>,
        candidates: Vec<Candidate>,
    },
    /// Not possible, and why.
    Fail(RouteFailure),
}

/// Why there is no way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteFailure {
    #[error("no healthy upstream: {0}")]
    NoHealthyUpstream(String),
    #[error("the service {0} has no port {1}")]
    NoSuchPort(String, u16),
    #[error("{0} is reached by a waypoint or gateway, which this version cannot use")]
    NeedsWaypoint(String),
}

/// Decides. `seed` chooses among equals; `attempts` bounds the candidates.
pub fn route(world: &World, own: &Own<'_>, destination: SocketAddr, seed: u64, attempts: usize) -> Route {
    let address = destination.ip();
    if let Some(service) = world.service_at(own.network, address, own.namespace) {
        return to_service(world, own, service, destination, seed, attempts);
    }
    match world.workload_at(own.network, address) {
        Some(workload) if workload.has_waypoint => Route::Fail(RouteFailure::NeedsWaypoint(format!(
            "{}/{}",
            workload.namespace, workload.name
        ))),
        Some(workload) => {
            let way = way(own, workload, destination, None);
            let candidate = Candidate {
                workload: Some(workload.clone()),
                target: destination,
                way,
            };
            Route::Endpoints {
                service: None,
                candidates: vec![candidate],
            }
        }
        None => plain(None, destination),
    }
}

fn plain(service: Option<Arc<Service>>, destination: SocketAddr) -> Route {
    let candidate = Candidate {
        workload: None,
        target: destination,
        way: Way::Plain,
    };
    Route::Endpoints {
        service,
        candidates: vec![candidate],
    }
}

fn to_service(
    world: &World,
    own: &Own<'_>,
    service: &Arc<Service>,
    destination: SocketAddr,
    seed: u64,
    attempts: usize,
) -> Route {
    let hostname = || service.key.hostname.to_string();
    if service.has_waypoint {
        return Route::Fail(RouteFailure::NeedsWaypoint(hostname()));
    }
    if service.mode == BalanceMode::Passthrough {
        return plain(Some(service.clone()), destination);
    }
    if !service.ports.iter().any(|port| port.service_port == destination.port()) {
        return Route::Fail(RouteFailure::NoSuchPort(hostname(), destination.port()));
    }
    let all: Vec<_> = world.endpoints(&service.key).cloned().collect();
    let usable: Vec<_> = all
        .iter()
        .filter(|endpoint| *endpoint.network == *own.network && target(service, endpoint, destination).is_some())
        .cloned()
        .collect();
    if usable.is_empty() && all.iter().any(|endpoint| endpoint.has_network_gateway) {
        return Route::Fail(RouteFailure::NeedsWaypoint(hostname()));
    }
    let ordered = balance::order(service, own.workload, usable, seed, attempts);
    let candidates: Vec<_> = ordered
        .into_iter()
        .filter_map(|endpoint| {
            let target = target(service, &endpoint, destination)?;
            let way = way(own, &endpoint, target, Some(service));
            Some(Candidate {
                workload: Some(endpoint),
                target,
                way,
            })
        })
        .collect();
    if candidates.is_empty() {
        let why = format!(
            "{} of {} endpoints of {} can be used",
            0,
            all.len(),
            service.key.hostname
        );
        return Route::Fail(RouteFailure::NoHealthyUpstream(why));
    }
    Route::Endpoints {
        service: Some(service.clone()),
        candidates,
    }
}

fn way(own: &Own<'_>, workload: &Workload, target: SocketAddr, service: Option<&Service>) -> Way {
    let is_own = own.workload.is_some_and(|own| own.uid == workload.uid);
    if is_own || workload.tunnel_protocol == TunnelProtocol::None {
        return Way::Plain;
    }
    let alternatives = service
        .into_iter()
        .flat_map(|service| service.subject_alt_names.iter().cloned());
    let identities = std::iter::once(workload.identity.clone()).chain(alternatives).collect();
    Way::Tunnel {
        peer: SocketAddr::new(target.ip(), HBONE_PORT),
        identities,
    }
}

/// Address and port of an endpoint for a service's port: the endpoint's own port list first, then the service's.
fn target(service: &Service, endpoint: &Workload, destination: SocketAddr) -> Option<SocketAddr> {
    let wanted = destination.port();
    let own = endpoint
        .services
        .iter()
        .find(|(key, _)| *key == service.key)
        .map(|(_, ports)| ports);
    let find = |ports: &[crate::world::Port]| {
        ports
            .iter()
            .find(|port| port.service_port == wanted && port.target_port != 0)
            .map(|port| port.target_port)
    };
    let port = own.and_then(|ports| find(ports)).or_else(|| find(&service.ports))?;
    let allowed = |address: &&std::net::IpAddr| match service.ip_families {
        IpFamilies::V4Only => address.is_ipv4(),
        IpFamilies::V6Only => address.is_ipv6(),
        IpFamilies::Automatic | IpFamilies::Dual => true,
    };
    let addresses = || endpoint.addresses.iter().filter(allowed);
    let same = addresses().find(|address| address.is_ipv4() == destination.is_ipv4());
    same.or_else(|| addresses().next())
        .map(|address| SocketAddr::new(*address, port))
}

/// Where members listen for HBONE, on TCP and (ours) on UDP.
pub const HBONE_PORT: u16 = 15008;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::{endpoint, service, workload};
    use crate::world::{Delta, Port};

    fn world() -> World {
        let orders = service("orders", "240.240.0.1");
        let mut plain = endpoint(workload("plain", "10.0.0.3"), &orders);
        plain.tunnel_protocol = TunnelProtocol::None;
        plain.services[0].1.push(Port {
            service_port: 80,
            target_port: 9090,
            app_protocol: 0,
        });
        let mut far = endpoint(workload("far", "10.0.0.4"), &orders);
        far.network = "other".into();
        World::default().apply(Delta {
            workloads: vec![endpoint(workload("a", "10.0.0.2"), &orders), plain, far],
            services: vec![
                orders,
                service("empty", "240.240.0.2"),
                Service {
                    mode: BalanceMode::Passthrough,
                    ..service("ext", "192.0.2.0/24")
                },
            ],
            ..Delta::default()
        })
    }

    fn decide(destination: &str) -> Route {
        route(
            &world(),
            &Own {
                network: "",
                workload: None,
                namespace: "ns",
            },
            destination.parse().unwrap(),
            1,
            5,
        )
    }

    fn ways(destination: &str) -> Vec<(String, bool)> {
        match decide(destination) {
            Route::Endpoints { candidates, .. } => {
                let mut ways: Vec<_> = candidates
                    .iter()
                    .map(|c| (c.target.to_string(), c.way != Way::Plain))
                    .collect();
                ways.sort();
                ways
            }
            Route::Fail(failure) => vec![(failure.to_string(), false)],
        }
    }

    #[test]
    fn the_table() {
        assert_eq!(
            ways("240.240.0.1:80"),
            [("10.0.0.2:8080".into(), true), ("10.0.0.3:9090".into(), false)]
        );
        assert_eq!(
            ways("240.240.0.1:81"),
            [("the service orders has no port 81".into(), false)]
        );
        assert!(ways("240.240.0.2:80")[0].0.starts_with("no healthy upstream"));
        assert_eq!(ways("10.0.0.2:22"), [("10.0.0.2:22".into(), true)]);
        assert_eq!(ways("10.0.0.3:22"), [("10.0.0.3:22".into(), false)]);
        assert_eq!(ways("192.0.2.7:443"), [("192.0.2.7:443".into(), false)]);
        assert_eq!(ways("198.51.100.1:443"), [("198.51.100.1:443".into(), false)]);
    }

    #[test]
    fn a_tunnel_demands_the_identity_that_the_world_gives() {
        let Route::Endpoints { candidates, .. } = decide("10.0.0.2:22") else {
            panic!()
        };
        let Way::Tunnel { peer, identities } = &candidates[0].way else {
            panic!()
        };
        assert_eq!(*peer, "10.0.0.2:15008".parse().unwrap());
        assert_eq!(*identities, [Identity::new("mesh.internal", "ns", "a").unwrap()]);
    }

    #[test]
    fn a_connection_to_ourselves_is_plain() {
        let world = world();
        let own = world.workload_named("ns", "a").unwrap().clone();
        let own = Own {
            network: "",
            workload: Some(&own),
            namespace: "ns",
        };
        let Route::Endpoints { candidates, .. } = route(&world, &own, "10.0.0.2:80".parse().unwrap(), 1, 5) else {
            panic!()
        };
        assert_eq!(candidates[0].way, Way::Plain);
    }
}
