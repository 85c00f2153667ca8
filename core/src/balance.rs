//! Which endpoints of a service get a connection, in which order (istio-wire section 3.1): locality modes, then weighted
//! random by capacity, without replacement.

use std::sync::Arc;

use crate::world::{BalanceMode, Scope, Service, Workload};

/// Orders the endpoints that may be used, best first, at most `most`. `own` is where we are; `seed` chooses among equals.
pub fn order(
    service: &Service,
    own: Option<&Workload>,
    mut endpoints: Vec<Arc<Workload>>,
    seed: u64,
    most: usize,
) -> Vec<Arc<Workload>> {
    endpoints.retain(|endpoint| endpoint.capacity > 0 && (endpoint.healthy || service.allow_unhealthy));
    match service.mode {
        BalanceMode::Any | BalanceMode::Passthrough => {}
        BalanceMode::Strict => {
            let full = full_rank(&service.preference);
            endpoints.retain(|endpoint| own.is_some_and(|own| rank(&service.preference, own, endpoint) == full));
        }
        BalanceMode::Failover => return failover(service, own, endpoints, seed, most),
    }
    weighted(endpoints, seed, most)
}

/// Best rank first; the next rank only once the better ones are used up.
fn failover(
    service: &Service,
    own: Option<&Workload>,
    mut endpoints: Vec<Arc<Workload>>,
    seed: u64,
    most: usize,
) -> Vec<Arc<Workload>> {
    let rank_of = |endpoint: &Workload| own.map_or(0, |own| rank(&service.preference, own, endpoint));
    let mut ordered = Vec::new();
    while ordered.len() < most {
        let Some(best) = endpoints.iter().map(|endpoint| rank_of(endpoint)).max() else {
            break;
        };
        let (first, rest) = endpoints.into_iter().partition(|endpoint| rank_of(endpoint) == best);
        endpoints = rest;
        ordered.extend(weighted(first, seed, most - ordered.len()));
    }
    ordered
}

/// How many scopes in a row are equal. With NETWORK first, a mismatch does not stop the walk, and a match outweighs all the
/// others.
fn rank(preference: &[Scope], own: &Workload, endpoint: &Workload) -> usize {
    let mut rank = 0;
    for (at, scope) in preference.iter().enumerate() {
        let same = is_same(*scope, own, endpoint);
        if at == 0 && *scope == Scope::Network {
            rank += if same { preference.len() } else { 0 };
            continue;
        }
        if !same {
            break;
        }
        rank += 1;
    }
    rank
}

fn full_rank(preference: &[Scope]) -> usize {
    let network = usize::from(preference.first() == Some(&Scope::Network));
    preference.len() - network + network * preference.len()
}

fn is_same(scope: Scope, own: &Workload, endpoint: &Workload) -> bool {
    let (a, b) = (&own.locality, &endpoint.locality);
    match scope {
        Scope::Region => a.region == b.region,
        Scope::Zone => a.zone == b.zone,
        Scope::Subzone => a.subzone == b.subzone,
        Scope::Node => own.node == endpoint.node,
        Scope::Cluster => own.cluster_id == endpoint.cluster_id,
        Scope::Network => own.network == endpoint.network,
    }
}

/// Weighted random order without replacement.
fn weighted(mut endpoints: Vec<Arc<Workload>>, seed: u64, most: usize) -> Vec<Arc<Workload>> {
    let mut random = seed;
    let mut chosen = Vec::with_capacity(most.min(endpoints.len()));
    while chosen.len() < most && !endpoints.is_empty() {
        let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.capacity)).sum();
        random = random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        // High bits: the low ones of such a generator are poor.
        let mut left = u64::try_from((u128::from(random) * u128::from(total)) >> 64).unwrap_or(0);
        let at = endpoints.iter().position(|endpoint| {
            let weight = u64::from(endpoint.capacity);
            let here = left < weight;
            left = left.saturating_sub(weight);
            here
        });
        chosen.push(endpoints.swap_remove(at.unwrap_or(0)));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Locality;
    use crate::world::tests::{service, workload};

    fn at(name: &str, region: &str, zone: &str, capacity: u32) -> Arc<Workload> {
        let mut workload = workload(name, "10.0.0.1");
        workload.locality = Locality {
            region: region.into(),
            zone: zone.into(),
            subzone: "".into(),
        };
        workload.capacity = capacity;
        Arc::new(workload)
    }

    #[test]
    fn capacity_is_a_weight_and_zero_is_never() {
        let service = service("s", "240.240.0.1");
        let mut heavy = 0;
        for seed in 0..10_000u64 {
            let endpoints = vec![at("light", "", "", 1), at("never", "", "", 0), at("heavy", "", "", 3)];
            let order = order(&service, None, endpoints, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), 9);
            assert_eq!(order.len(), 2);
            heavy += u32::from(&*order[0].name == "heavy");
        }
        assert!((7200..7800).contains(&heavy), "{heavy} of 10000");
    }

    #[test]
    fn failover_takes_the_nearest_first_and_strict_nothing_else() {
        let mut service = service("s", "240.240.0.1");
        service.preference = vec![Scope::Network, Scope::Region, Scope::Zone];
        service.mode = BalanceMode::Failover;
        let own = at("own", "eu", "a", 1);
        let mut far = (*at("far-network", "eu", "a", 1)).clone();
        far.network = "other".into();
        let endpoints = vec![
            Arc::new(far),
            at("other", "us", "a", 1),
            at("near", "eu", "a", 1),
            at("region", "eu", "b", 1),
        ];
        let names = |order: Vec<Arc<Workload>>| order.iter().map(|one| one.name.to_string()).collect::<Vec<_>>();
        let all = order(&service, Some(&own), endpoints.clone(), 7, 9);
        assert_eq!(names(all), ["near", "region", "other", "far-network"]);
        service.mode = BalanceMode::Strict;
        assert_eq!(names(order(&service, Some(&own), endpoints.clone(), 7, 9)), ["near"]);
        assert!(order(&service, None, endpoints, 7, 9).is_empty());
    }

    #[test]
    fn unhealthy_ones_only_where_the_service_says_so() {
        let mut service = service("s", "240.240.0.1");
        let mut sick = (*at("sick", "", "", 1)).clone();
        sick.healthy = false;
        let endpoints = vec![Arc::new(sick)];
        assert!(order(&service, None, endpoints.clone(), 1, 3).is_empty());
        service.allow_unhealthy = true;
        assert_eq!(order(&service, None, endpoints, 1, 3).len(), 1);
    }
}
