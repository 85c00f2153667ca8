//! Who stands between us and a destination: waypoints, and gateways of other networks.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Authority, Candidate, Endpoint, Hop, Quic, RouteFailure, Router, Target, Way, balance, identities};
use crate::balance::{Eligible, For};
use crate::identity::Identity;
use crate::mix::Mix;
use crate::world::{Gateway, GatewayDestination, Named, Service, Workload};

/// One pod of a waypoint or gateway, and the service that names it.
struct Between<'a> {
    endpoint: Endpoint<'a>,
    service: Option<&'a Arc<Service>>,
}

impl<'a> Router<'a> {
    /// Through the waypoint of a service; `None` when it has none, or when that is ourselves.
    ///
    /// Of weighted ones the seed draws one by weight; those that cannot be used do not count. Where none of them can, the
    /// single one stands in. A service that names any waypoint is never reached around it.
    pub(super) fn to_waypoint_of(&self, service: &Arc<Service>) -> Option<Result<Vec<Candidate>, RouteFailure>> {
        let mut named = waypoints(service);
        let first = named.next()?;
        if self.stranger || self.are_we(first) || named.any(|waypoint| self.are_we(waypoint)) {
            return None;
        }
        let mut weighted: Vec<_> = service.weighted_waypoints.iter().filter(|one| one.1 > 0).collect();
        let mut mix = Mix::new(self.seed ^ WEIGHTED);
        while !weighted.is_empty() {
            let (waypoint, _) = weighted.swap_remove(draw(&weighted, &mut mix));
            if let Ok(candidates) = self.to_waypoint(waypoint, Some(service)) {
                return Some(Ok(candidates));
            }
        }
        Some(match &service.waypoint {
            Some(single) => self.to_waypoint(single, Some(service)),
            None => Err(self.unusable(first)),
        })
    }

    /// Through a waypoint, to the destination as our application named it. One in another network is reached through that
    /// one's gateway, which needs a service's name.
    pub(super) fn to_waypoint(
        &self,
        waypoint: &Gateway,
        service: Option<&Arc<Service>>,
    ) -> Result<Vec<Candidate>, RouteFailure> {
        let ways = self.between(waypoint, For::Waypoint).into_iter().map(|one| {
            let workload = one.endpoint.workload;
            match (one.endpoint.target, service) {
                (Some(address), _) => vec![Candidate {
                    workload: Some(Arc::clone(workload)),
                    target: Target::Address(self.destination),
                    way: Way::Tunnel {
                        hop: Hop {
                            address,
                            identities: identities(workload, one.service),
                            quic: if workload.hbone3 { Quic::Marked } else { Quic::No },
                        },
                        authority: Authority::from(&Target::Address(self.destination)),
                    },
                    via_waypoint: true,
                }],
                (None, Some(service)) => self.to_gateway_of(workload, service, true),
                (None, None) => Vec::new(),
            }
        });
        let candidates = super::in_turn(ways.collect(), self.attempts);
        if candidates.is_empty() {
            return Err(self.unusable(waypoint));
        }
        Ok(candidates)
    }

    fn unusable(&self, waypoint: &Gateway) -> RouteFailure {
        RouteFailure::UnknownWaypoint {
            destination: self.destination.to_string(),
            waypoint: waypoint.to_string(),
        }
    }

    /// Leaves out endpoints of other networks whose gateway leads nowhere, so that no attempt is spent on them.
    pub(super) fn drop_unreachable(&self, found: &mut Eligible<'a>) {
        let mut seen: Vec<(&Gateway, bool)> = Vec::new();
        found.endpoints.retain(|endpoint| {
            let Some(gateway) = endpoint.workload.network_gateway.as_deref() else {
                return true;
            };
            if endpoint.target.is_some() {
                return true;
            }
            let known = seen.iter().find(|(one, _)| *one == gateway).map(|(_, usable)| *usable);
            let usable = known.unwrap_or_else(|| {
                let usable = !self.between(gateway, For::Gateway).is_empty();
                seen.push((gateway, usable));
                usable
            });
            if !usable {
                found
                    .remote
                    .get_or_insert_with(|| Arc::clone(&endpoint.workload.network));
            }
            usable
        });
    }

    /// Through the gateway of the network that `workload` is in, to the service by name; nothing when there is none.
    pub(super) fn to_gateway_of(
        &self,
        workload: &Workload,
        service: &Arc<Service>,
        via_waypoint: bool,
    ) -> Vec<Candidate> {
        let Some(gateway) = &workload.network_gateway else {
            return Vec::new();
        };
        let candidate = |one: Between<'_>| {
            Some(Candidate {
                workload: Some(Arc::clone(one.endpoint.workload)),
                target: Target::Address(self.destination),
                way: Way::Double {
                    gateway: Hop {
                        address: one.endpoint.target?,
                        identities: identities(one.endpoint.workload, one.service),
                        quic: Quic::No,
                    },
                    authority: Authority::of_host(&service.key.hostname, self.destination.port()),
                    identities: self.inner_identities(service).to_vec(),
                },
                via_waypoint,
            })
        };
        let pods = self.between(gateway, For::Gateway).into_iter();
        pods.filter_map(candidate).collect()
    }

    /// Whether a waypoint is ourselves: what it sends on does not pass it again.
    pub(super) fn are_we(&self, waypoint: &Gateway) -> bool {
        let us = self.own.workload;
        self.stranger || us.is_some_and(|us| self.world.is_among(waypoint, us))
    }

    /// The pods behind a gateway's name, in the order in which they are to be tried. One that is named by its address is
    /// wanted at that; one that is named by hostname, at an address of the destination's family.
    fn between(&self, gateway: &Gateway, purpose: For) -> Vec<Between<'a>> {
        let address = match &gateway.destination {
            GatewayDestination::Hostname(_) => self.destination.ip(),
            GatewayDestination::Address(at) => at.address,
        };
        let at = SocketAddr::new(address, gateway.port);
        match self.world.named(gateway, self.own.namespace) {
            Some(Named::Service(service)) => {
                let found = balance::eligible(self.world, self.own, service, at, purpose);
                let seed = self.seed ^ BETWEEN;
                let ordered = balance::order(service, self.own, found.endpoints, seed, self.attempts);
                let service = Some(service);
                ordered
                    .into_iter()
                    .map(|endpoint| Between { endpoint, service })
                    .collect()
            }
            Some(Named::Workload(workload)) => {
                let endpoint = balance::only(self.own, workload, at, purpose);
                let service = None;
                endpoint
                    .map(|endpoint| Between { endpoint, service })
                    .into_iter()
                    .collect()
            }
            None => Vec::new(),
        }
    }

    /// Whom the gateway of another network may pick for a service: any of its endpoints, healthy in our eyes or not, or its
    /// waypoint. What the service says of them (`subject_alt_names`) is empty for most.
    fn inner_identities(&self, service: &Service) -> &[Identity] {
        self.inner.get_or_init(|| {
            let mut all: Vec<Identity> = service.subject_alt_names.clone();
            all.extend(self.world.endpoints(&service.key).map(|one| one.identity.clone()));
            for waypoint in waypoints(service) {
                match self.world.named(waypoint, self.own.namespace) {
                    Some(Named::Service(of)) => {
                        all.extend(of.subject_alt_names.iter().cloned());
                        all.extend(self.world.endpoints(&of.key).map(|one| one.identity.clone()));
                    }
                    Some(Named::Workload(one)) => all.push(one.identity.clone()),
                    None => {}
                }
            }
            all.sort_unstable();
            all.dedup();
            all
        })
    }
}

fn waypoints(service: &Service) -> impl Iterator<Item = &Arc<Gateway>> {
    let weighted = service.weighted_waypoints.iter().map(|(waypoint, _)| waypoint);
    service.waypoint.iter().chain(weighted)
}

/// Whose turn it is, by weight.
fn draw(among: &[&(Arc<Gateway>, u32)], mix: &mut Mix) -> usize {
    let total = among.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut ticket = mix.below(total);
    let holder = among.iter().position(|(_, weight)| {
        let ours = ticket < u64::from(*weight);
        ticket = ticket.saturating_sub(u64::from(*weight));
        ours
    });
    holder.unwrap_or(0)
}

/// Told apart from the seed that draws endpoints, so that one draw does not decide the other.
const WEIGHTED: u64 = 0x7761_7970_6f69_6e74;
const BETWEEN: u64 = 0x6265_7477_6565_6e00;
