//! What is answered, and what is forwarded (as ztunnel does it).
//!
//! Names of mesh services are answered with authority; of the mesh's own domain nothing is ever asked elsewhere; everything
//! else is somebody else's and is forwarded as it came.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::mix::Mix;
use crate::world::World;

pub mod lookup;
mod message;
mod names;
#[cfg(test)]
mod tests;

use message::{Query, Read};
use names::Found;

/// Where the asking machine stands.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub network: &'a str,
    pub namespace: &'a str,
    /// Kubernetes' cluster domain, such as `cluster.local`.
    pub cluster_domain: &'a str,
    /// The mesh's own domain, such as `mesh.internal`.
    pub mesh_domain: &'a str,
    /// The machine's search list.
    pub search: &'a [String],
}

/// What to do with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this message.
    Answer(Vec<u8>),
    /// Ask the machine's resolvers, unchanged.
    Forward,
    /// Not a query that can be answered at all: drop it.
    Drop,
}

/// Decides on one DNS message. `seed` shuffles addresses; `max` is the most bytes that the answer may have, truncated with TC.
///
/// Below 65,535 (a stream's limit) the message is taken to have come by UDP: then the size that the query's EDNS announces,
/// or 512 without EDNS, bounds the answer as well.
pub fn decide(query: &[u8], world: &World, view: &View<'_>, seed: u64, max: usize) -> Action {
    let query = match message::read(query) {
        Read::Query(query) => query,
        Read::Malformed(answer) => return Action::Answer(answer),
        Read::Other => return Action::Forward,
        Read::Nothing => return Action::Drop,
    };
    let max = query.limit(max);
    let Some(name) = query.plain_name() else {
        return Action::Forward;
    };
    if query.kind() == RecordType::PTR {
        return reverse(&query, &name, world, view, max);
    }
    if let Some(found) = names::find(&name, world, view) {
        return Action::Answer(query.addresses(&addresses(&query, &found, world, view, seed), found.stripped(), max));
    }
    match names::below(&name, view.mesh_domain) {
        None => Action::Forward,
        // Not yet known is not unknown: let the client ask again.
        Some(_) if !world.addresses_synced() => Action::Answer(query.code(ResponseCode::ServFail)),
        // The domain itself and its namespaces exist, whoever lives in them.
        Some(0 | 1) => Action::Answer(query.code(ResponseCode::NoError)),
        Some(_) => Action::Answer(query.code(ResponseCode::NXDomain)),
    }
}

/// The addresses that a name of the mesh stands for, of both families; empty for a name that is not the mesh's.
pub fn resolve(name: &str, world: &World, view: &View<'_>) -> Vec<std::net::IpAddr> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    names::find(&name, world, view)
        .map_or_else(Vec::new, |found| names::addresses(found.service(), world, view.network))
}

/// SERVFAIL for a query whose forwarding failed; `None` when the query has no readable header.
pub fn servfail(query: &[u8]) -> Option<Vec<u8>> {
    match message::read(query) {
        Read::Query(query) => Some(query.code(ResponseCode::ServFail)),
        Read::Malformed(_) | Read::Other => message::bare(query, ResponseCode::ServFail),
        Read::Nothing => None,
    }
}

/// Addresses of the asked family, shuffled; none for other types, which a known name simply does not have.
fn addresses(query: &Query, found: &Found<'_>, world: &World, view: &View<'_>, seed: u64) -> Vec<std::net::IpAddr> {
    let wanted = match query.kind() {
        RecordType::A => true,
        RecordType::AAAA => false,
        _ => return vec![],
    };
    let mut addresses = names::addresses(found.service(), world, view.network);
    addresses.retain(|address| address.is_ipv4() == wanted);
    Mix::new(seed).shuffle(&mut addresses);
    addresses
}

/// The name behind a VIP.
fn reverse(query: &Query, name: &str, world: &World, view: &View<'_>, max: usize) -> Action {
    let service = query
        .reversed()
        .and_then(|address| world.service_at(view.network, address, view.namespace));
    match service {
        Some(service) if !service.key.hostname.starts_with('*') => query.pointer(&service.key.hostname, max),
        _ if names::below(name, view.mesh_domain).is_some() => Action::Answer(query.code(ResponseCode::NXDomain)),
        _ => Action::Forward,
    }
}
