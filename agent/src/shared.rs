//! What every part of the agent may read: configuration, the world, the current certificate, live flows.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_core::outbound::HBONE_PORT;
use mesh_core::world::{Workload, World};
use tokio::sync::watch;

use crate::certs::Credentials;
use crate::config::Config;
use crate::flows::Flows;
use crate::health::Standing;
use crate::inbound::ways::Ways;
use crate::join::Membership;
use crate::tls::Revoked;
use crate::transports::Transports;

/// Shared by all tasks of both runtimes; every field is cheap to read.
#[derive(Debug)]
pub struct Shared {
    pub config: Arc<Config>,
    /// Who we joined as; fixed until `leave`.
    pub membership: Membership,
    pub world: watch::Receiver<Arc<World>>,
    /// Whose certificates are believed no more.
    pub revoked: Revoked,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub flows: Arc<Flows>,
    /// Whether the control plane was heard since the start.
    pub settled: AtomicBool,
    /// QUIC or TCP: what is remembered of each peer.
    pub transports: Transports,
    /// Where applications can be shown their caller's address.
    pub ways: Ways,
    /// How our application is, and whether we are drained.
    pub standing: Standing,
}

impl Shared {
    /// The world as it is now.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    /// Whether the control plane was heard since the start; before that, what an earlier run captured stays captured.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// The certificate as it is now.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.borrow().clone()
    }

    /// Trust domains whose members may connect: our own, and its aliases.
    pub fn trust_domains(&self) -> Vec<String> {
        let aliases = self.config.tunnel.trust_domain_aliases.iter().cloned();
        std::iter::once(self.membership.trust_domain.clone())
            .chain(aliases)
            .collect()
    }

    /// Our own record in `world`, or the last one, when we left rotation and the control plane forgot us for it.
    pub fn own_workload(&self, world: &World) -> Option<Arc<Workload>> {
        self.recorded(world).cloned().or_else(|| self.standing.kept())
    }

    /// Our own record as others see it.
    pub fn recorded<'a>(&self, world: &'a World) -> Option<&'a Arc<Workload>> {
        world.workload_named(&self.membership.namespace, &self.membership.workload_name)
    }

    /// Ports that no peer may name and nobody reaches through us: the agent's own, and DNS.
    pub fn own_ports(&self) -> [u16; 5] {
        let config = &self.config;
        [
            config.tunnel.listen.port(),
            HBONE_PORT,
            config.admin.metrics.port(),
            config.admin.ready.port(),
            53,
        ]
    }

    /// Our own addresses: of our record, or the one that we joined with.
    pub fn own_addresses(&self, world: &World) -> Vec<IpAddr> {
        self.own_workload(world)
            .map_or_else(|| vec![self.membership.address], |own| own.addresses.clone())
    }
}
