//! Policies for sources without identity, compiled to (port, source prefix) rules for the kernel (docs/architecture.md).
//!
//! Not a translation of rules but of decisions: the prefixes that policies speak of cut the sources into regions inside which
//! every policy says the same, and the ordinary evaluator is asked once for each region and port. So it cannot disagree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::matching::Facts;
use super::{Applicable, Decision, Denial, Match};
use crate::world::{Workload, World};

/// Most source prefixes, and most questions (prefixes times ports), that are compiled; beyond, the ports are denied.
const MAX_REGIONS: usize = 4096;
const MAX_QUESTIONS: usize = 262_144;
/// Stands in [`PlaintextRule::policy`] when there are too many source prefixes to compile, and everything is denied.
pub const TOO_MANY_SOURCES: &str = "mesh-agent/too-many-source-prefixes";

/// What of plaintext may come in, for the kernel: decided per (port, source prefix).
///
/// In order, first hit wins; after the last rule everything is allowed. `sources: None` means any source. No source has
/// length 0 (the whole of one family is two halves), since interval sets of the kernel dislike it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextRule {
    pub sources: Option<Vec<IpNet>>,
    pub ports: Option<Vec<u16>>,
    pub allow: bool,
    /// The policy that says so.
    pub policy: Option<Arc<str>>,
}

/// Compiles the policies of `workload` for sources without identity into ordered rules (docs/architecture.md). Ports that the
/// workload does not declare are left alone unless a policy names them.
///
/// Where the workload has several addresses of one family, a source is allowed only if each of them allows it.
pub fn compile_plaintext(world: &World, workload: &Workload) -> Vec<PlaintextRule> {
    let applicable = Applicable::of(world, workload);
    let named: BTreeSet<u16> = applicable
        .matches()
        .flat_map(|one| one.destination_ports.iter().copied())
        .collect();
    let mut ports = declared_ports(world, workload);
    ports.extend(&named);
    if ports.is_empty() {
        return vec![];
    }
    if !world.policies_synced() {
        return vec![deny_all(ports, None)];
    }
    let classes = classes(ports.iter().copied(), &applicable);
    let regions = match regions(&applicable) {
        Some(regions) if regions.len() * classes.len() <= MAX_QUESTIONS => regions,
        _ => return vec![deny_all(ports, Some(TOO_MANY_SOURCES.into()))],
    };
    let mut alike: BTreeMap<Vec<Line>, Vec<u16>> = BTreeMap::new();
    for (asked, ports) in classes {
        alike
            .entry(lines(&applicable, workload, &regions, asked))
            .or_default()
            .extend(ports);
    }
    alike
        .into_iter()
        .flat_map(|(lines, ports)| printed(lines, ports))
        .collect()
}

/// What the kernel says, by [`compile_plaintext`], of a connection from `source` to this port.
pub fn judge_plaintext(world: &World, workload: &Workload, source: IpAddr, port: u16) -> Decision {
    let source = source.to_canonical();
    let rule = compile_plaintext(world, workload).into_iter().find(|rule| {
        let from = |sources: &Vec<IpNet>| sources.iter().any(|prefix| prefix.contains(&source));
        rule.sources.as_ref().is_none_or(from) && rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    });
    match rule {
        Some(rule) if !rule.allow => Decision::Denied(rule.policy.map_or(Denial::NotSynced, Denial::Explicit)),
        rule => Decision::Allowed {
            policy: rule.and_then(|rule| rule.policy),
        },
    }
}

/// A part of the sources in which all policies agree: those in `prefix` and in none of the others inside it.
struct Region {
    prefix: IpNet,
    /// One address of it.
    inside: IpAddr,
}

/// What is said of some sources. Ordered only to be a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    sources: Option<Vec<IpNet>>,
    allow: bool,
    policy: Option<Arc<str>>,
}

impl Applicable<'_> {
    fn matches(&self) -> impl Iterator<Item = &Match> {
        let enforced = self.policies.iter().filter(|policy| !policy.dry_run);
        enforced.flat_map(|policy| policy.rules.iter().flatten().flatten())
    }
}

/// Target ports of the workload's services.
fn declared_ports(world: &World, workload: &Workload) -> BTreeSet<u16> {
    let mut declared = BTreeSet::new();
    for (key, ports) in &workload.services {
        let of_service = world.service(key).map_or(&[][..], |service| &service.ports);
        // A service's own list speaks where the workload's does not (as ztunnel does it, "Target port").
        let unlisted = of_service
            .iter()
            .filter(|port| !ports.iter().any(|own| own.service_port == port.service_port));
        declared.extend(
            ports
                .iter()
                .chain(unlisted)
                .map(|port| port.target_port)
                .filter(|port| *port != 0),
        );
    }
    declared
}

/// Ports that no policy can tell apart, by the one that is asked for all of them.
fn classes(ports: impl Iterator<Item = u16>, applicable: &Applicable<'_>) -> BTreeMap<u16, Vec<u16>> {
    let told_apart: BTreeSet<u16> = applicable
        .matches()
        .flat_map(|one| one.destination_ports.iter().chain(&one.not_destination_ports).copied())
        .collect();
    let mut classes: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
    let mut rest = None;
    for port in ports {
        let asked = if told_apart.contains(&port) {
            port
        } else {
            *rest.get_or_insert(port)
        };
        classes.entry(asked).or_default().push(port);
    }
    classes
}

/// The regions, the narrowest prefixes first; `None` when there are too many.
fn regions(applicable: &Applicable<'_>) -> Option<Vec<Region>> {
    let mut prefixes = BTreeSet::from([whole_v4(), whole_v6()]);
    for one in applicable.matches() {
        for prefix in one.source_ips.iter().chain(&one.not_source_ips) {
            prefixes.insert(prefix.trunc());
        }
        if prefixes.len() > MAX_REGIONS {
            return None;
        }
    }
    // In this order a prefix comes right before all that lie in it.
    let mut sorted: Vec<IpNet> = prefixes.into_iter().collect();
    sorted.sort_by_key(|prefix| (prefix.network(), prefix.prefix_len()));
    let region = |at: usize| {
        let prefix = sorted[at];
        let nested = sorted[at + 1..]
            .iter()
            .take_while(|next| prefix.contains(&next.network()));
        Some(Region {
            prefix,
            inside: uncovered(prefix, nested)?,
        })
    };
    let mut regions: Vec<Region> = (0..sorted.len()).filter_map(region).collect();
    regions.sort_by_key(|region| std::cmp::Reverse(region.prefix.prefix_len()));
    Some(regions)
}

/// The first address of `prefix` that none of `nested` (in order) holds.
fn uncovered<'a>(prefix: IpNet, nested: impl Iterator<Item = &'a IpNet>) -> Option<IpAddr> {
    let mut candidate = prefix.network();
    for inner in nested {
        if inner.contains(&candidate) {
            candidate = following(inner.broadcast())?;
        } else if inner.network() > candidate {
            break;
        }
    }
    prefix.contains(&candidate).then_some(candidate)
}

fn following(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

/// What is said of `port`, region by region, shortened.
fn lines(applicable: &Applicable<'_>, workload: &Workload, regions: &[Region], port: u16) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for region in regions {
        let (allow, policy) = judged(applicable, workload, region.inside, port);
        match lines.last_mut() {
            // Neighbours in the order may be joined: which of them is asked first makes no difference.
            Some(last) if last.allow == allow && last.policy == policy => {
                last.sources.get_or_insert_default().push(region.prefix);
            }
            _ => lines.push(Line {
                sources: Some(vec![region.prefix]),
                allow,
                policy,
            }),
        }
    }
    // What is allowed after the last denial is allowed anyway.
    while lines.last().is_some_and(|line| line.allow) {
        lines.pop();
    }
    for line in &mut lines {
        line.sources = line.sources.take().and_then(simplified);
    }
    lines
}

fn judged(applicable: &Applicable<'_>, workload: &Workload, source: IpAddr, port: u16) -> (bool, Option<Arc<str>>) {
    let of_family = workload
        .addresses
        .iter()
        .filter(|own| own.to_canonical().is_ipv4() == source.is_ipv4())
        .copied();
    let mut own: Vec<IpAddr> = of_family.collect();
    if own.is_empty() {
        own.push(if source.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        });
    }
    let mut by = None;
    for destination in own {
        let facts = Facts::plaintext(source, destination, port);
        match applicable.decide(&facts, |policy| !policy.dry_run) {
            Decision::Allowed { policy } => by = policy,
            Decision::Denied(denial) => return (false, denial.policies().first().map(Arc::clone)),
        }
    }
    (true, by)
}

/// `None` for all sources; halves for the whole of one family; nothing that another prefix of the list holds.
fn simplified(mut sources: Vec<IpNet>) -> Option<Vec<IpNet>> {
    if sources.contains(&whole_v4()) && sources.contains(&whole_v6()) {
        return None;
    }
    sources.sort_by_key(|prefix| (prefix.network(), prefix.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::new();
    for prefix in sources {
        if kept.last().is_none_or(|last| !last.contains(&prefix)) {
            kept.push(prefix);
        }
    }
    Some(kept.into_iter().flat_map(halves).collect())
}

fn halves(prefix: IpNet) -> Vec<IpNet> {
    if prefix.prefix_len() > 0 {
        return vec![prefix];
    }
    prefix.subnets(1).map_or_else(|_| vec![prefix], Iterator::collect)
}

fn printed(lines: Vec<Line>, mut ports: Vec<u16>) -> impl Iterator<Item = PlaintextRule> {
    ports.sort_unstable();
    lines.into_iter().map(move |line| PlaintextRule {
        sources: line.sources,
        ports: Some(ports.clone()),
        allow: line.allow,
        policy: line.policy,
    })
}

fn deny_all(ports: BTreeSet<u16>, policy: Option<Arc<str>>) -> PlaintextRule {
    PlaintextRule {
        sources: None,
        ports: Some(ports.into_iter().collect()),
        allow: false,
        policy,
    }
}

fn whole_v4() -> IpNet {
    IpNet::V4(Ipv4Net::default())
}

fn whole_v6() -> IpNet {
    IpNet::V6(Ipv6Net::default())
}
