//! Which endpoint of a service gets a connection (as ztunnel does it).
//!
//! First who is eligible (healthy, has the port, has an address that we can reach), then in which order: by locality where
//! the service asks for it, and by weight among equals.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mix::Mix;
use crate::outbound::{Own, Target};
use crate::world::{BalanceMode, IpFamilies, Scope, Service, Workload, World};

/// An endpoint that may be chosen.
#[derive(Clone, Debug)]
pub struct Endpoint<'a> {
    pub workload: &'a Arc<Workload>,
    /// Where it listens for what it is wanted for; `None` in another network, where only that one's gateway knows.
    pub target: Option<Target>,
}

/// What an endpoint is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// To serve the connection itself.
    Application,
    /// To pass it on. Its port need not be one of the service: the record that names the waypoint says it.
    Waypoint,
    /// To pass it on into its own network, whichever that is.
    Gateway,
}

/// Who may be chosen, and what is known of those who may not.
#[derive(Clone, Debug, Default)]
pub struct Eligible<'a> {
    pub endpoints: Vec<Endpoint<'a>>,
    /// Healthy endpoints in other networks, of which no gateway is known: the network of the first.
    pub remote: Option<Arc<str>>,
    /// Whether anybody serves the port, reachable or not.
    pub port_known: bool,
}

/// The eligible endpoints of `service` for a connection to `destination` (its VIP and service port), in uid order.
pub fn eligible<'a>(
    world: &'a World,
    own: &Own<'_>,
    service: &Service,
    destination: SocketAddr,
    purpose: For,
) -> Eligible<'a> {
    let port = destination.port();
    let mut found = Eligible {
        port_known: service.ports.iter().any(|listed| listed.service_port == port),
        ..Eligible::default()
    };
    for workload in world.endpoints(&service.key) {
        let target_port = match (target_port(service, workload, port), purpose) {
            (Some(target_port), _) => target_port,
            (None, For::Waypoint | For::Gateway) => port,
            (None, For::Application) => continue,
        };
        found.port_known = true;
        if workload.capacity == 0 || !(workload.healthy || service.allow_unhealthy) {
            continue;
        }
        let target = if is_remote(own, workload, purpose) {
            if workload.network_gateway.is_none() {
                found.remote.get_or_insert_with(|| Arc::clone(&workload.network));
                continue;
            }
            None
        } else {
            let Some(target) = target(workload, service.ip_families, destination.ip(), target_port) else {
                continue;
            };
            Some(target)
        };
        found.endpoints.push(Endpoint { workload, target });
    }
    found
}

/// A workload that was named itself, without a service, as an endpoint at `destination`.
pub fn only<'a>(
    own: &Own<'_>,
    workload: &'a Arc<Workload>,
    destination: SocketAddr,
    purpose: For,
) -> Option<Endpoint<'a>> {
    if is_remote(own, workload, purpose) {
        return Some(Endpoint { workload, target: None });
    }
    let target = target(workload, IpFamilies::Automatic, destination.ip(), destination.port())?;
    let target = Some(target);
    Some(Endpoint { workload, target })
}

/// At most `attempts` of `endpoints`, each once, in the order in which they are to be tried.
///
/// Weights are capacities. With FAILOVER nearer ones come first, and farther ones only when the nearer are used up; with
/// STRICT only those that are as near as asked for.
pub fn order<'a>(
    service: &Service,
    own: &Own<'_>,
    endpoints: Vec<Endpoint<'a>>,
    seed: u64,
    attempts: usize,
) -> Vec<Endpoint<'a>> {
    let mut mix = Mix::new(seed);
    match service.mode {
        BalanceMode::Any | BalanceMode::Passthrough => weighted(endpoints, &mut mix, attempts),
        BalanceMode::Strict => {
            let full = full_rank(&service.preference);
            let near = endpoints
                .into_iter()
                .filter(|one| rank(&service.preference, own, one.workload) == full);
            weighted(near.collect(), &mut mix, attempts)
        }
        BalanceMode::Failover => {
            let mut tiers: std::collections::BTreeMap<usize, Vec<Endpoint<'a>>> = std::collections::BTreeMap::new();
            for endpoint in endpoints {
                tiers
                    .entry(rank(&service.preference, own, endpoint.workload))
                    .or_default()
                    .push(endpoint);
            }
            let mut chosen = Vec::new();
            for tier in tiers.into_values().rev() {
                let wanted = attempts - chosen.len();
                if wanted == 0 {
                    break;
                }
                chosen.extend(weighted(tier, &mut mix, wanted));
            }
            chosen
        }
    }
}

/// Whether only the gateway of its network reaches it. A gateway itself is where others reach it.
fn is_remote(own: &Own<'_>, workload: &Workload, purpose: For) -> bool {
    purpose != For::Gateway && &*workload.network != own.network
}

/// The endpoint's own list, else the service's; where both leave it open, an application behind a tunnel of its own takes
/// every port of the service at one.
pub(crate) fn target_port(service: &Service, workload: &Workload, port: u16) -> Option<u16> {
    let entry = |ports: &[crate::world::Port]| ports.iter().find(|listed| listed.service_port == port).copied();
    let number = |listed: crate::world::Port| (listed.target_port != 0).then_some(listed.target_port);
    let own = workload.ports_of(&service.key).and_then(entry).and_then(number);
    own.or_else(|| {
        let listed = entry(&service.ports)?;
        let tunnelled = || workload.application_tunnel.is_some_and(|tunnel| tunnel.port != 0);
        number(listed).or_else(|| tunnelled().then_some(port))
    })
}

/// An address of the endpoint, else its name, which is resolved for each connection.
fn target(workload: &Workload, families: IpFamilies, requested: IpAddr, port: u16) -> Option<Target> {
    if let Some(address) = address(workload, families, requested) {
        return Some(Target::Address(SocketAddr::new(address, port)));
    }
    let host = &workload.hostname;
    (!host.is_empty()).then(|| Target::Name {
        host: Arc::clone(host),
        port,
    })
}

/// The requested address if the workload owns it, else one that the service's families allow, of the same family first.
fn address(workload: &Workload, families: IpFamilies, requested: IpAddr) -> Option<IpAddr> {
    if workload.addresses.contains(&requested) {
        return Some(requested);
    }
    let same = |address: &&IpAddr| address.is_ipv4() == requested.is_ipv4();
    let mut candidates = workload.addresses.iter().filter(|address| families.allow(**address));
    let first = candidates.next()?;
    if same(&first) {
        return Some(*first);
    }
    Some(*candidates.find(same).unwrap_or(first))
}

/// How many of the preferred scopes, from the first on, the endpoint shares with us. When the first is NETWORK, missing it
/// does not end the count, and having it weighs more than all others together.
fn rank(preference: &[Scope], own: &Own<'_>, endpoint: &Workload) -> usize {
    let mut rank = 0;
    for (at, scope) in preference.iter().enumerate() {
        let network_first = at == 0 && *scope == Scope::Network;
        match shares(*scope, own, endpoint) {
            true if network_first => rank += preference.len(),
            true => rank += 1,
            false if network_first => {}
            false => break,
        }
    }
    rank
}

fn full_rank(preference: &[Scope]) -> usize {
    match preference.first() {
        Some(Scope::Network) => 2 * preference.len() - 1,
        _ => preference.len(),
    }
}

fn shares(scope: Scope, own: &Own<'_>, endpoint: &Workload) -> bool {
    if scope == Scope::Network {
        return own.network == &*endpoint.network;
    }
    let Some(us) = own.workload else { return false };
    match scope {
        Scope::Region => us.locality.region == endpoint.locality.region,
        Scope::Zone => us.locality.zone == endpoint.locality.zone,
        Scope::Subzone => us.locality.subzone == endpoint.locality.subzone,
        // Machines outside Kubernetes have no node: two of them are not one and the same.
        Scope::Node => us.uid == endpoint.uid || (!us.node.is_empty() && us.node == endpoint.node),
        Scope::Cluster => us.cluster_id == endpoint.cluster_id,
        Scope::Network => true,
    }
}

/// Draws without replacement, by capacity.
fn weighted<'a>(mut from: Vec<Endpoint<'a>>, mix: &mut Mix, attempts: usize) -> Vec<Endpoint<'a>> {
    let weight = |endpoint: &Endpoint<'_>| u64::from(endpoint.workload.capacity);
    let mut total: u64 = from.iter().map(weight).sum();
    let mut chosen = Vec::with_capacity(attempts.min(from.len()));
    while chosen.len() < attempts && !from.is_empty() {
        let mut ticket = mix.below(total);
        let holder = from
            .iter()
            .position(|endpoint| match ticket.checked_sub(weight(endpoint)) {
                Some(left) => {
                    ticket = left;
                    false
                }
                None => true,
            });
        let Some(at) = holder else { break }; // Only where all weights are 0.
        let endpoint = from.swap_remove(at);
        total -= weight(&endpoint);
        chosen.push(endpoint);
    }
    chosen
}
