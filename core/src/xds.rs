//! The delta-xDS session: versions, nonces, ACK and NACK, as ztunnel speaks it (istio-wire section 1.6).

use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use crate::world::Delta;

/// What one response led to.
#[derive(Debug)]
pub struct Handled {
    /// For [`crate::world::World::apply`].
    pub delta: Delta,
    /// ACK or NACK, to be sent.
    pub reply: DeltaDiscoveryRequest,
    /// (resource name, reason) of what was rejected.
    pub rejected: Vec<(String, String)>,
}

/// One session: outlives streams. See the module.
#[derive(Debug)]
pub struct Session {}

#[allow(unused_variables)]
impl Session {
    /// Subscribes to all of each type.
    pub fn new(node: Node, types: &[&'static str]) -> Self {
        todo!()
    }
    /// Requests to be sent first on a new stream, with the versions of what is held.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        todo!()
    }
    /// Takes one response.
    pub fn handle(&mut self, response: DeltaDiscoveryResponse) -> Handled {
        todo!()
    }
    /// Whether each type had a first response.
    pub fn synced(&self) -> bool {
        todo!()
    }
    /// Everything held, per type, for the disk.
    pub fn snapshot(&self) -> Vec<(String, Vec<Resource>)> {
        todo!()
    }
    /// Starts from what was on disk; what is not readable is left out.
    pub fn restore(&mut self, types: Vec<(String, Vec<Resource>)>) -> Delta {
        todo!()
    }
}
