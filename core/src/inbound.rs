//! What is to be done with a CONNECT that a peer sent us (design section 5, "Inbound target").

use std::net::SocketAddr;

use crate::world::Workload;

/// Why a CONNECT target is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetRefusal {
    #[error("the authority {0:?} is not ADDRESS:PORT")]
    Unparsable(String),
    #[error("{0} is not an address of this workload")]
    NotOurAddress(SocketAddr),
    #[error("port {0} is one of the agent's own")]
    OwnPort(u16),
}

/// Where a CONNECT is delivered.
#[allow(unused_variables)]
pub fn target(authority: &str, own: &Workload, own_ports: &[u16]) -> Result<SocketAddr, TargetRefusal> {
    todo!()
}
