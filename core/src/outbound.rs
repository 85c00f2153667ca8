//! What is to be done with a connection that an application of ours opened (as ztunnel does it).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::balance::{self, Endpoint};
use crate::identity::Identity;
use crate::world::{BalanceMode, Service, TunnelProtocol, Workload, World};

/// Who we are, to choose as ourselves.
#[derive(Clone, Debug)]
pub struct Own<'a> {
    pub network: &'a str,
    pub workload: Option<&'a Workload>,
    /// Namespace to look services up from.
    pub namespace: &'a str,
    /// Whether the control plane was heard since the start. Before, an address that the world does not name may still be a
    /// member's, captured by an earlier run: it must not be reached in plain.
    pub settled: bool,
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
    #[error("nothing is known of {0} yet: the control plane was not heard since the start")]
    NotSettled(SocketAddr),
}

/// Port of HBONE and of HBONE/3 at every member.
pub const HBONE_PORT: u16 = 15008;

/// Decides. `seed` chooses among equals; `attempts` bounds the candidates.
///
/// A service VIP wins over a workload's address. What is neither goes its way in plain, unchanged, once the control plane
/// was heard.
pub fn route(world: &World, own: &Own<'_>, destination: SocketAddr, seed: u64, attempts: usize) -> Route {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    if let Some(service) = world.service_at(own.network, destination.ip(), own.namespace) {
        return to_service(world, own, service, destination, seed, attempts);
    }
    match world.workload_at(own.network, destination.ip()) {
        Some(workload) => to_workload(own, workload, destination),
        None if !own.settled => Route::Fail(RouteFailure::NotSettled(destination)),
        None => one_candidate(
            None,
            Candidate {
                workload: None,
                target: destination,
                way: Way::Plain,
            },
        ),
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
    let name = || format!("{}:{}", service.key.hostname, destination.port());
    if service.has_waypoint {
        return Route::Fail(RouteFailure::NeedsWaypoint(name()));
    }
    if service.mode == BalanceMode::Passthrough {
        let plain = Candidate {
            workload: None,
            target: destination,
            way: Way::Plain,
        };
        return one_candidate(Some(service), plain);
    }
    let found = balance::eligible(world, own, service, destination);
    if !found.port_known {
        return Route::Fail(RouteFailure::NoSuchPort(
            service.key.hostname.to_string(),
            destination.port(),
        ));
    }
    let ordered = balance::order(service, own, found.endpoints, seed, attempts.max(1));
    if !ordered.is_empty() {
        let candidates = ordered
            .into_iter()
            .map(|endpoint| candidate(own, Some(service), &endpoint));
        return Route::Endpoints {
            service: Some(Arc::clone(service)),
            candidates: candidates.collect(),
        };
    }
    Route::Fail(match found.remote {
        Some(network) => RouteFailure::NeedsWaypoint(format!("{} (in the network {network:?})", name())),
        None => RouteFailure::NoHealthyUpstream(name()),
    })
}

fn to_workload(own: &Own<'_>, workload: &Arc<Workload>, destination: SocketAddr) -> Route {
    let ours = is_own(own, workload);
    if workload.has_waypoint && !ours {
        return Route::Fail(RouteFailure::NeedsWaypoint(format!(
            "{}/{}",
            workload.namespace, workload.name
        )));
    }
    one_candidate(
        None,
        candidate(
            own,
            None,
            &Endpoint {
                workload,
                target: destination,
            },
        ),
    )
}

fn candidate(own: &Own<'_>, service: Option<&Arc<Service>>, endpoint: &Endpoint<'_>) -> Candidate {
    let workload = endpoint.workload;
    let way = match workload.tunnel_protocol {
        // A tunnel from us to ourselves would only be a detour.
        TunnelProtocol::Hbone if !is_own(own, workload) => Way::Tunnel {
            peer: SocketAddr::new(endpoint.target.ip(), HBONE_PORT),
            identities: identities(workload, service),
        },
        TunnelProtocol::Hbone | TunnelProtocol::None => Way::Plain,
    };
    Candidate {
        workload: Some(Arc::clone(workload)),
        target: endpoint.target,
        way,
    }
}

/// The workload's own, and what the service says of its endpoints besides.
fn identities(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<Identity> {
    let mut identities = vec![workload.identity.clone()];
    for also in service.into_iter().flat_map(|service| &service.subject_alt_names) {
        if !identities.contains(also) {
            identities.push(also.clone());
        }
    }
    identities
}

fn is_own(own: &Own<'_>, workload: &Workload) -> bool {
    own.workload.is_some_and(|us| us.uid == workload.uid)
}

fn one_candidate(service: Option<&Arc<Service>>, candidate: Candidate) -> Route {
    Route::Endpoints {
        service: service.map(Arc::clone),
        candidates: vec![candidate],
    }
}

#[cfg(test)]
mod tests;
