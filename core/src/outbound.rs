//! What is to be done with a connection that an application of ours opened (as ztunnel does it).

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::balance::{self, Endpoint, For};
use crate::identity::Identity;
use crate::world::{BalanceMode, Service, TunnelProtocol, Workload, World};

mod between;
mod way;

pub use way::{Authority, Candidate, Hop, Quic, Route, RouteFailure, Target, Way};

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
    /// Ports of the agent, which are reached by nobody through itself.
    pub ports: &'a [u16],
}

/// Port of HBONE and of HBONE/3 at every member.
pub const HBONE_PORT: u16 = 15008;

/// Decides. `seed` chooses among equals; `attempts` bounds the candidates.
///
/// A service VIP wins over a workload's address. What is neither goes its way in plain, unchanged, once the control plane
/// was heard.
pub fn route(world: &World, own: &Own<'_>, destination: SocketAddr, seed: u64, attempts: usize) -> Route {
    Router::new(world, own, destination, seed, attempts, false).route()
}

/// Decides for UDP. As in Istio no waypoint takes it, so none stands in its way.
pub fn route_udp(world: &World, own: &Own<'_>, destination: SocketAddr, seed: u64, attempts: usize) -> Route {
    route_stranger(world, own, destination, seed, attempts)
}

/// Decides for a source that is no member: no waypoint takes it, so none stands in its way.
pub(crate) fn route_stranger(
    world: &World,
    own: &Own<'_>,
    destination: SocketAddr,
    seed: u64,
    attempts: usize,
) -> Route {
    Router::new(world, own, destination, seed, attempts, true).route()
}

/// One decision.
struct Router<'a> {
    world: &'a World,
    own: &'a Own<'a>,
    destination: SocketAddr,
    seed: u64,
    attempts: usize,
    stranger: bool,
    /// Who may be at the end of a double tunnel to the service.
    inner: OnceCell<Vec<Identity>>,
}

type Decided = Result<(Option<Arc<Service>>, Vec<Candidate>), RouteFailure>;

impl<'a> Router<'a> {
    fn new(
        world: &'a World,
        own: &'a Own<'a>,
        destination: SocketAddr,
        seed: u64,
        attempts: usize,
        stranger: bool,
    ) -> Self {
        Self {
            world,
            own,
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
            seed,
            attempts: attempts.max(1),
            stranger,
            inner: OnceCell::new(),
        }
    }

    fn route(&self) -> Route {
        match self.decide() {
            Ok((service, candidates)) => Route::Endpoints { service, candidates },
            Err(failure) => Route::Fail(failure),
        }
    }

    fn decide(&self) -> Decided {
        let destination = self.destination;
        if destination.ip().is_loopback() && self.own.ports.contains(&destination.port()) {
            return Err(RouteFailure::SelfCall(destination));
        }
        if let Some(service) = self
            .world
            .service_at(self.own.network, destination.ip(), self.own.namespace)
        {
            return Ok((Some(Arc::clone(service)), self.to_service(service)?));
        }
        match self.world.workload_at(self.own.network, destination.ip()) {
            Some(workload) => Ok((None, self.to_workload(workload)?)),
            None if !self.own.settled => Err(RouteFailure::NotSettled(destination)),
            None => Ok((None, vec![self.unchanged()])),
        }
    }

    fn to_service(&self, service: &Arc<Service>) -> Result<Vec<Candidate>, RouteFailure> {
        if let Some(candidates) = self.to_waypoint_of(service) {
            return candidates;
        }
        if service.mode == BalanceMode::Passthrough {
            return Ok(vec![self.unchanged()]);
        }
        let (key, port) = (&service.key, self.destination.port());
        let mut found = balance::eligible(self.world, self.own, service, self.destination, For::Application);
        if !found.port_known {
            return Err(RouteFailure::NoSuchPort(key.hostname.to_string(), port));
        }
        self.drop_unreachable(&mut found);
        let remote_only = found.endpoints.is_empty();
        let ordered = balance::order(service, self.own, found.endpoints, self.seed, self.attempts);
        let ways = ordered.into_iter().map(|endpoint| match endpoint.target {
            Some(target) => vec![self.direct(endpoint.workload, target, Some(service))],
            None => self.to_gateway_of(endpoint.workload, service, false),
        });
        let candidates = in_turn(ways.collect(), self.attempts);
        if !candidates.is_empty() {
            return Ok(candidates);
        }
        let destination = format!("{}:{port}", key.hostname);
        Err(match found.remote {
            Some(network) if remote_only => RouteFailure::NoGateway {
                destination,
                network: network.to_string(),
            },
            _ => RouteFailure::NoHealthyUpstream(destination),
        })
    }

    fn to_workload(&self, workload: &Arc<Workload>) -> Result<Vec<Candidate>, RouteFailure> {
        if let Some(waypoint) = &workload.waypoint {
            // To ourselves no waypoint takes us.
            if !self.is_own(workload) && !self.are_we(waypoint) {
                return self.to_waypoint(waypoint, None);
            }
        }
        Ok(vec![self.direct(workload, Target::Address(self.destination), None)])
    }

    /// To an endpoint as it says that it is reached.
    fn direct(&self, workload: &Arc<Workload>, target: Target, service: Option<&Arc<Service>>) -> Candidate {
        let way = match workload.tunnel_protocol {
            // A tunnel from us to ourselves would only be a detour.
            TunnelProtocol::Hbone if !self.is_own(workload) => Way::Tunnel {
                hop: Hop {
                    address: target.with_port(HBONE_PORT),
                    identities: identities(workload, service),
                    quic: quic(workload),
                },
                authority: Authority::from(&target),
            },
            TunnelProtocol::Hbone | TunnelProtocol::None => Way::Plain,
        };
        Candidate {
            workload: Some(Arc::clone(workload)),
            target,
            way,
            via_waypoint: false,
        }
    }

    fn unchanged(&self) -> Candidate {
        Candidate {
            workload: None,
            target: Target::Address(self.destination),
            way: Way::Plain,
            via_waypoint: false,
        }
    }

    fn is_own(&self, workload: &Workload) -> bool {
        self.own.workload.is_some_and(|us| us.uid == workload.uid)
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

fn quic(workload: &Workload) -> Quic {
    match (workload.hbone3, workload.is_machine()) {
        (true, _) => Quic::Marked,
        (false, true) => Quic::Unknown,
        (false, false) => Quic::No,
    }
}

/// The first way of each endpoint, then the second of each, and so on: several endpoints may be behind one gateway, which
/// is tried once.
fn in_turn(ways: Vec<Vec<Candidate>>, attempts: usize) -> Vec<Candidate> {
    let mut chosen: Vec<Candidate> = Vec::with_capacity(attempts.min(ways.len()));
    let mut ways: Vec<_> = ways.into_iter().map(Vec::into_iter).collect();
    while chosen.len() < attempts {
        let mut left = false;
        for next in ways.iter_mut().filter_map(Iterator::next) {
            left = true;
            let known = |held: &Candidate| held.target == next.target && held.way == next.way;
            if chosen.len() < attempts && !chosen.iter().any(known) {
                chosen.push(next);
            }
        }
        if !left {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
