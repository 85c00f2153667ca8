//! Which service a name stands for: exact names, Kubernetes' and our own short forms, wildcards, and search domains.

use std::net::IpAddr;
use std::sync::Arc;

use super::View;
use crate::world::{Service, Workload, World, preferred};

/// Most search domains that are tried (resolv.conf itself takes six or 32), and most addresses of one answer.
const MAX_SEARCH: usize = 32;
const MAX_ADDRESSES: usize = 1024;

/// A service, and the name that it was found by.
pub(super) struct Found<'a> {
    service: &'a Arc<Service>,
    /// The query without a search domain, when only that was known.
    stripped: Option<&'a str>,
}

impl<'a> Found<'a> {
    pub(super) fn service(&self) -> &'a Service {
        self.service
    }

    pub(super) fn stripped(&self) -> Option<&'a str> {
        self.stripped
    }
}

/// Tries `name`, then `name` less each search domain. `name` is in lower case and has no last dot.
pub(super) fn find<'a>(name: &'a str, world: &'a World, view: &View<'_>) -> Option<Found<'a>> {
    if let Some(service) = by_any_form(name, world, view) {
        return Some(Found {
            service,
            stripped: None,
        });
    }
    let stripped = view
        .search
        .iter()
        .take(MAX_SEARCH)
        .filter_map(|domain| without_domain(name, domain));
    let mut hits = stripped.filter_map(|name| {
        let service = by_any_form(name, world, view)?;
        Some(Found {
            service,
            stripped: Some(name),
        })
    });
    hits.next()
}

/// How many labels `name` has below `domain`; `None` when it is elsewhere.
pub(super) fn below(name: &str, domain: &str) -> Option<usize> {
    if domain.is_empty() {
        return None;
    }
    if name.eq_ignore_ascii_case(domain) {
        return Some(0);
    }
    without_domain(name, domain).map(|rest| rest.split('.').count())
}

/// Its VIPs in `network`; without any VIP (a headless service), the addresses of its eligible endpoints there.
pub(super) fn addresses(service: &Service, world: &World, network: &str) -> Vec<IpAddr> {
    if service.vips.is_empty() {
        return endpoint_addresses(service, world, network)
            .take(MAX_ADDRESSES)
            .collect();
    }
    let own = service
        .vips
        .iter()
        .filter(|(of, vip)| &**of == network && vip.prefix_len() == vip.max_prefix_len());
    own.map(|(_, vip)| vip.addr()).take(MAX_ADDRESSES).collect()
}

fn endpoint_addresses(service: &Service, world: &World, network: &str) -> impl Iterator<Item = IpAddr> {
    let eligible = move |endpoint: &&Arc<Workload>| {
        endpoint.capacity > 0 && (endpoint.healthy || service.allow_unhealthy) && &*endpoint.network == network
    };
    world
        .endpoints(&service.key)
        .filter(eligible)
        .flat_map(|endpoint| endpoint.addresses.iter().copied())
        .filter(|address| service.ip_families.allow(*address))
}

fn by_any_form<'a>(name: &str, world: &'a World, view: &View<'_>) -> Option<&'a Arc<Service>> {
    let exact = by_hostname(name, world, view);
    exact
        .or_else(|| by_short_form(name, world, view))
        .or_else(|| by_wildcard(name, world, view))
}

fn by_hostname<'a>(hostname: &str, world: &'a World, view: &View<'_>) -> Option<&'a Arc<Service>> {
    let named = world
        .services_by_hostname(hostname)
        .filter(|service| resolvable(service, world, view));
    preferred(named, view.namespace)
}

/// `a`, `a.b`, `a.b.svc`, `pod.a.b.svc` in Kubernetes' domain; `a`, `a.b` in ours.
fn by_short_form<'a>(name: &str, world: &'a World, view: &View<'_>) -> Option<&'a Arc<Service>> {
    let (namespace, cluster, mesh) = (view.namespace, view.cluster_domain, view.mesh_domain);
    let labels = name.split('.').count();
    let try_in = |domain: &str, hostname: String| {
        if domain.is_empty() {
            None
        } else {
            by_hostname(&hostname, world, view)
        }
    };
    match labels {
        1 => try_in(cluster, format!("{name}.{namespace}.svc.{cluster}"))
            .or_else(|| try_in(mesh, format!("{name}.{namespace}.{mesh}"))),
        2 => try_in(cluster, format!("{name}.svc.{cluster}")).or_else(|| try_in(mesh, format!("{name}.{mesh}"))),
        3 | 4 if name.ends_with(".svc") => try_in(cluster, format!("{name}.{cluster}")),
        3 => try_in(cluster, format!("{name}.svc.{cluster}")),
        _ => None,
    }
}

/// From the most specific wildcard to the least.
fn by_wildcard<'a>(name: &str, world: &'a World, view: &View<'_>) -> Option<&'a Arc<Service>> {
    let mut rest = name;
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some(service) = by_hostname(&format!("*.{parent}"), world, view) {
            return Some(service);
        }
        rest = parent;
    }
    None
}

/// A service that has no VIP, no endpoint and a name in nobody's domain of ours is only a note about somebody else's name.
fn resolvable(service: &Service, world: &World, view: &View<'_>) -> bool {
    let hostname = &*service.key.hostname;
    !service.vips.is_empty()
        || below(hostname, view.mesh_domain).is_some()
        || below(hostname, view.cluster_domain).is_some()
        || endpoint_addresses(service, world, view.network).next().is_some()
}

fn without_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let domain = domain.trim_matches('.');
    let cut = name.len().checked_sub(domain.len() + 1)?;
    let (head, tail) = name.split_at_checked(cut)?;
    let fits = !domain.is_empty() && !head.is_empty() && tail.as_bytes()[0] == b'.';
    (fits && tail[1..].eq_ignore_ascii_case(domain)).then_some(head)
}
