//! What is to be done with a connection that an application of ours opened (istio-wire section 3.1).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::world::{Service, Workload, World};

/// Who we are, to choose as ourselves.
#[derive(Clone, Debug)]
pub struct Own<'a> {
    pub network: &'a str,
    pub workload: Option<&'a Workload>,
    /// Namespace to look services up from.
    pub namespace: &'a str,
}

/// One way to reach a destination.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub workload: Option<Arc<Workload>>,
    /// Where the application of the far side listens.
    pub target: SocketAddr,
    pub way: Way,
}

/// How.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// A tunnel to `peer` (its HBONE port), whose certificate must show one of `identities`.
    Tunnel {
        peer: SocketAddr,
        identities: Vec<Identity>,
    },
    /// Plain TCP.
    Plain,
}

/// What was decided.
#[derive(Clone, Debug)]
pub enum Route {
    /// Try these in order, each at most once.
    Endpoints {
        service: Option<Arc<Service>>,
        candidates: Vec<Candidate>,
    },
    /// Not possible, and why.
    Fail(RouteFailure),
}

/// Why there is no way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteFailure {
    #[error("no healthy upstream: {0}")]
    NoHealthyUpstream(String),
    #[error("the service {0} has no port {1}")]
    NoSuchPort(String, u16),
    #[error("{0} is reached by a waypoint or gateway, which this version cannot use")]
    NeedsWaypoint(String),
}

/// Decides. `seed` chooses among equals; `attempts` bounds the candidates.
#[allow(unused_variables)]
pub fn route(world: &World, own: &Own<'_>, destination: SocketAddr, seed: u64, attempts: usize) -> Route {
    todo!()
}
