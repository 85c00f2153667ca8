//! Why a connection would or would not be: the decisions of both sides, taken without making it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::identity::Identity;
use crate::outbound::{Candidate, Own, Route, RouteFailure, Target, Way, route, route_stranger};
use crate::policy::{Connection, Decision, Verdict, authorize, judge_plaintext};
use crate::world::{Service, World};

/// Who asks for the connection.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// From where it looks at services and endpoints.
    pub own: Own<'a>,
    pub address: IpAddr,
    /// What it shows to a peer of the mesh; nothing, where it is no member.
    pub identity: Option<Identity>,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Why {
    pub service: Option<Arc<Service>>,
    /// The endpoints in the order in which they would be tried, each with what it would say.
    pub endpoints: Vec<Judged>,
    /// Why there is none.
    pub failure: Option<RouteFailure>,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Judged {
    pub candidate: Candidate,
    /// `None` where nobody of whom we know judges: an address that is not a workload's, the source itself, or whatever a
    /// waypoint or gateway stands before.
    pub verdict: Option<Verdict>,
}

impl Why {
    /// Whether the first endpoint would take the connection; a denial does not lead to another one.
    pub fn is_allowed(&self) -> bool {
        self.endpoints.first().is_some_and(Judged::is_allowed)
    }
}

impl Judged {
    /// Whether this endpoint would take the connection.
    pub fn is_allowed(&self) -> bool {
        self.verdict
            .as_ref()
            .is_none_or(|verdict| verdict.decision.is_allowed())
    }

    /// Keys of the policies that decide; none where the default does.
    pub fn policies(&self) -> Vec<Arc<str>> {
        match self.verdict.as_ref().map(|verdict| &verdict.decision) {
            Some(Decision::Allowed { policy }) => policy.iter().cloned().collect(),
            Some(Decision::Denied(denial)) => denial.policies().to_vec(),
            None => Vec::new(),
        }
    }
}

/// Decides as both sides would. `seed` and `attempts` as in [`route`].
pub fn why(world: &World, source: &Source<'_>, destination: SocketAddr, seed: u64, attempts: usize) -> Why {
    let member = source.identity.is_some();
    let decide = if member { route } else { route_stranger };
    match decide(world, &source.own, destination, seed, attempts) {
        Route::Fail(failure) => Why {
            service: None,
            endpoints: Vec::new(),
            failure: Some(failure),
        },
        Route::Endpoints { service, candidates } => Why {
            service,
            endpoints: candidates
                .into_iter()
                .map(|candidate| judged(world, source, candidate))
                .collect(),
            failure: None,
        },
    }
}

fn judged(world: &World, source: &Source<'_>, mut candidate: Candidate) -> Judged {
    let known = !candidate.via_waypoint && !matches!(candidate.way, Way::Double { .. });
    if source.identity.is_none() {
        // Whoever is no member comes in plain, whatever the endpoint speaks.
        candidate.way = Way::Plain;
    }
    let ours = |uid: &Arc<str>| source.own.workload.is_some_and(|own| own.uid == *uid);
    let judge = candidate.workload.as_ref().filter(|one| known && !ours(&one.uid));
    let verdict = judge.map(|workload| match candidate.way {
        Way::Plain => Verdict {
            decision: judge_plaintext(world, workload, source.address, candidate.target.port()),
            dry_run: Vec::new(),
        },
        Way::Tunnel { .. } | Way::Double { .. } => {
            let connection = Connection {
                identity: source.identity.clone(),
                source: SocketAddr::new(source.address, 0),
                destination: judged_at(&candidate.target),
            };
            authorize(world, workload, &connection)
        }
    });
    Judged { candidate, verdict }
}

/// The address of one that has only a name is not known before it is dialled; nothing but its port can be compared.
fn judged_at(target: &Target) -> SocketAddr {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), target.port());
    target.address().unwrap_or(nowhere)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::policy::{Action, Match, Policy, Scope, StringMatch};
    use crate::world::{Delta, fixture};

    fn deny(key: &str, principal: StringMatch) -> Policy {
        let one = Match {
            principals: vec![principal],
            ..Match::default()
        };
        policy(key, Action::Deny, one)
    }

    fn policy(key: &str, action: Action, one: Match) -> Policy {
        let (namespace, name) = key.split_once('/').unwrap();
        Policy {
            key: key.into(),
            namespace: namespace.into(),
            name: name.into(),
            scope: Scope::Global,
            action,
            dry_run: false,
            rules: vec![vec![vec![one]]],
        }
    }

    fn world(policies: Vec<Policy>) -> World {
        let mut orders = fixture::workload("orders", "10.0.0.2");
        orders.tunnel_protocol = crate::world::TunnelProtocol::Hbone;
        let delta = Delta {
            workloads: vec![fixture::workload("web", "10.0.0.1"), orders],
            policies,
            addresses_synced: true,
            policies_synced: true,
            ..Delta::default()
        };
        World::default().apply(delta)
    }

    fn ask(world: &World, identity: Option<Identity>) -> Why {
        let workload = world.workload_at("", "10.0.0.1".parse().unwrap()).unwrap().clone();
        let member = identity.is_some();
        let source = Source {
            own: Own {
                network: "",
                workload: member.then_some(&*workload),
                namespace: &workload.namespace,
                settled: true,
                ports: &[],
            },
            address: workload.addresses[0],
            identity,
        };
        why(world, &source, "10.0.0.2:80".parse().unwrap(), 1, 3)
    }

    fn web(world: &World) -> Identity {
        let web = world.workload_at("", "10.0.0.1".parse().unwrap()).unwrap();
        web.identity.clone()
    }

    #[test]
    fn a_denial_names_its_policy() {
        let open = world(vec![]);
        let answer = ask(&open, Some(web(&open)));
        assert!(answer.is_allowed());
        assert!(matches!(answer.endpoints[0].candidate.way, Way::Tunnel { .. }));
        let principal = web(&open).principal();
        let closed = world(vec![deny("root/no-web", StringMatch::Exact(principal.as_str().into()))]);
        let answer = ask(&closed, Some(web(&closed)));
        assert!(!answer.is_allowed());
        assert_eq!(answer.endpoints[0].policies(), ["root/no-web".into()]);
    }

    #[test]
    fn plaintext_is_judged_as_the_kernel_does() {
        let strict = Match {
            not_principals: vec![StringMatch::Presence],
            destination_ports: vec![80],
            ..Match::default()
        };
        let strict = world(vec![policy("root/strict", Action::Deny, strict)]);
        assert!(ask(&strict, Some(web(&strict))).is_allowed(), "through the mesh");
        let stranger = ask(&strict, None);
        assert!(!stranger.is_allowed());
        assert_eq!(stranger.endpoints[0].policies(), ["root/strict".into()]);
        assert_eq!(stranger.endpoints[0].candidate.way, Way::Plain);
    }

    #[test]
    fn what_nobody_judges_is_allowed() {
        let world = world(vec![]);
        let workload = world.workload_at("", "10.0.0.1".parse().unwrap()).unwrap().clone();
        let source = Source {
            own: Own {
                network: "",
                workload: Some(&workload),
                namespace: &workload.namespace,
                settled: true,
                ports: &[],
            },
            address: workload.addresses[0],
            identity: Some(workload.identity.clone()),
        };
        for destination in ["192.0.2.1:80", "10.0.0.1:80"] {
            let answer = why(&world, &source, destination.parse().unwrap(), 1, 3);
            assert!(
                answer.is_allowed() && answer.endpoints[0].verdict.is_none(),
                "{destination}"
            );
        }
    }

    #[test]
    fn behind_a_waypoint_that_one_decides_and_a_stranger_goes_past_it() {
        use crate::world::{Gateway, GatewayDestination, NetworkAddress};
        let closed = world(vec![deny("root/no-one", StringMatch::Presence)]);
        let mut orders = (**closed.workload_at("", "10.0.0.2".parse().unwrap()).unwrap()).clone();
        orders.waypoint = Some(Arc::new(Gateway {
            destination: GatewayDestination::Address(NetworkAddress {
                network: "".into(),
                address: "10.0.0.7".parse().unwrap(),
            }),
            port: 15008,
        }));
        let guarded = closed.apply(Delta {
            workloads: vec![orders, fixture::workload("waypoint", "10.0.0.7")],
            ..Delta::default()
        });
        let answer = ask(&guarded, Some(web(&guarded)));
        let endpoint = &answer.endpoints[0];
        assert!(endpoint.candidate.via_waypoint && endpoint.verdict.is_none());
        // What denies every identity does not deny one that shows none.
        let stranger = ask(&guarded, None);
        let endpoint = &stranger.endpoints[0];
        assert_eq!(
            (endpoint.candidate.via_waypoint, &endpoint.candidate.way),
            (false, &Way::Plain)
        );
        assert!(endpoint.verdict.is_some() && stranger.is_allowed());
    }
}
