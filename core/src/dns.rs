//! What is answered, and what is forwarded (istio-wire section 4).

use crate::world::World;

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

/// Decides on one DNS message. `seed` shuffles addresses; `max` is the most bytes that the answer may have (UDP), truncated with TC.
#[allow(unused_variables)]
pub fn decide(query: &[u8], world: &World, view: &View<'_>, seed: u64, max: usize) -> Action {
    todo!()
}

/// SERVFAIL for a query whose forwarding failed; `None` when the query has no readable header.
#[allow(unused_variables)]
pub fn servfail(query: &[u8]) -> Option<Vec<u8>> {
    todo!()
}
