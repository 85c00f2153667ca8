//! What of plaintext may come in, as ordered rules that a packet filter can evaluate.
//!
//! The policies are asked, not translated: for each port that matters, and for each region of addresses in which no policy
//! tells two sources apart, one question to [`super::authorize`]. So the filter says what the policies say.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Connection, Decision, Denial, Match, applicable, authorize};
use crate::world::{Workload, World};

/// One rule; the first that fits decides, and what fits none is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextRule {
    pub port: u16,
    pub source: IpNet,
    /// `None`: allowed. Else the policies that deny, for a comment.
    pub denied_by: Option<Arc<str>>,
}

/// The rules for `workload`. Ports that it does not declare (ssh) are left alone unless a policy names them.
pub fn compile(world: &World, workload: &Workload) -> Vec<PlaintextRule> {
    let Some(own) = workload.addresses.first().copied() else {
        return Vec::new();
    };
    let (policies, _) = applicable(world, workload);
    let matches = || {
        policies
            .iter()
            .filter(|policy| !policy.dry_run)
            .flat_map(|policy| policy.rules.iter().flatten().flatten())
    };
    let named = matches().flat_map(|one| one.destination_ports.iter().chain(&one.not_destination_ports).copied());
    let mut ports: BTreeSet<u16> = declared_ports(world, workload).chain(named).collect();
    ports.remove(&0);

    let mut regions: BTreeSet<IpNet> = matches().flat_map(sources).collect();
    if regions.len() * ports.len() > MAX_RULES {
        // Too many to be told apart: nothing unidentified comes in.
        regions.clear();
        let denied = Some(Arc::from("too many source addresses in policies"));
        return all_sources()
            .into_iter()
            .flat_map(|source| deny(&ports, source, &denied))
            .collect();
    }
    regions.extend(all_sources());
    // Longest first, so that the first rule that fits is the most specific one.
    let mut regions: Vec<_> = regions.into_iter().collect();
    regions.sort_by_key(|region| std::cmp::Reverse(region.prefix_len()));

    let mut rules = Vec::new();
    for port in ports {
        let judged = regions
            .iter()
            .map(|region| (*region, judge(world, workload, own, port, *region, &regions)));
        let judged: Vec<_> = judged.filter_map(|(region, denied)| Some((region, denied?))).collect();
        if judged.iter().any(|(_, denied)| denied.is_some()) {
            rules.extend(judged.into_iter().map(|(source, denied_by)| PlaintextRule {
                port,
                source,
                denied_by,
            }));
        }
    }
    rules
}

fn deny<'a>(
    ports: &'a BTreeSet<u16>,
    source: IpNet,
    denied: &'a Option<Arc<str>>,
) -> impl Iterator<Item = PlaintextRule> + 'a {
    ports.iter().map(move |port| PlaintextRule {
        port: *port,
        source,
        denied_by: denied.clone(),
    })
}

/// Target ports of the services that the workload is an endpoint of.
pub fn declared_ports<'a>(world: &'a World, workload: &'a Workload) -> impl Iterator<Item = u16> + 'a {
    workload.services.iter().flat_map(|(key, own)| {
        let service = world.service(key).into_iter().flat_map(|service| service.ports.iter());
        own.iter().chain(service).map(|port| {
            if port.target_port == 0 {
                port.service_port
            } else {
                port.target_port
            }
        })
    })
}

fn sources(one: &Match) -> impl Iterator<Item = IpNet> + '_ {
    one.source_ips.iter().chain(&one.not_source_ips).map(IpNet::trunc)
}

fn all_sources() -> [IpNet; 2] {
    [
        IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    ]
}

/// Whether plaintext from a region is denied, and by what; `None` when smaller regions cover all of it.
fn judge(
    world: &World,
    workload: &Workload,
    own: IpAddr,
    port: u16,
    region: IpNet,
    regions: &[IpNet],
) -> Option<Option<Arc<str>>> {
    let source = representative(region, regions)?;
    let own = workload
        .addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv4() == source.is_ipv4())
        .unwrap_or(own);
    let connection = Connection {
        identity: None,
        source: SocketAddr::new(source, 0),
        destination: SocketAddr::new(own, port),
    };
    Some(match authorize(world, workload, &connection).decision {
        Decision::Allowed { .. } => None,
        Decision::Denied(denial) => Some(name(&denial)),
    })
}

/// An address of the region that is in none of the smaller ones.
fn representative(region: IpNet, regions: &[IpNet]) -> Option<IpAddr> {
    let mut inner: Vec<_> = regions
        .iter()
        .filter(|one| region.contains(*one) && **one != region)
        .collect();
    inner.sort_by_key(|one| one.network());
    let mut candidate = region.network();
    for one in inner {
        if one.contains(&candidate) {
            candidate = successor(one.broadcast())?;
        }
    }
    region.contains(&candidate).then_some(candidate)
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

fn name(denial: &Denial) -> Arc<str> {
    match denial {
        Denial::Explicit(key) | Denial::MissingPolicy(key) => key.clone(),
        Denial::NotAllowed(keys) => keys.join(",").into(),
        Denial::NotSynced => "policies not received yet".into(),
    }
}

/// Rules at the most: the filter's update is one transaction.
const MAX_RULES: usize = 4096;
