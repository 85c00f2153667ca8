//! What every part of the agent may read: configuration, the world, the current certificate, live flows.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::world::{Workload, World};
use tokio::sync::watch;

use crate::certs::Credentials;
use crate::config::Config;
use crate::flows::Flows;
use crate::join::Membership;

/// Shared by all tasks of both runtimes; every field is cheap to read.
#[derive(Debug)]
pub struct Shared {
    pub config: Arc<Config>,
    /// Who we joined as; fixed until `leave`.
    pub membership: Membership,
    pub world: watch::Receiver<Arc<World>>,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub flows: Arc<Flows>,
}

impl Shared {
    /// The world as it is now.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    /// The certificate as it is now.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.borrow().clone()
    }

    /// Our own record in `world`.
    pub fn own_workload(&self, world: &World) -> Option<Arc<Workload>> {
        world
            .workload_named(&self.membership.namespace, &self.membership.workload_name)
            .cloned()
    }

    /// Our own addresses: of our record, or the one that we joined with.
    pub fn own_addresses(&self, world: &World) -> Vec<IpAddr> {
        self.own_workload(world)
            .map_or_else(|| vec![self.membership.address], |own| own.addresses.clone())
    }
}
