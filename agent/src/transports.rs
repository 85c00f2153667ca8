//! What this agent remembers of its peers' transports, for all of its parts.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mesh_core::outbound::Quic;
use mesh_core::transport::{Memory, Plan, Preference, Why};
use serde::Serialize;

/// See the module.
#[derive(Debug)]
pub struct Transports {
    memory: Mutex<Memory>,
    started: Instant,
}

/// One peer, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub peer: SocketAddr,
    /// What new streams take.
    pub transport: &'static str,
    pub why: &'static str,
    /// Seconds since that changed.
    pub for_seconds: u64,
}

impl Transports {
    /// Nothing is known yet.
    pub fn new(preference: Preference) -> Self {
        Self {
            memory: Mutex::new(Memory::new(preference)),
            started: Instant::now(),
        }
    }

    /// The time that the other calls take and give.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// See [`Memory::plan`].
    pub fn plan(&self, peer: SocketAddr, quic: Quic) -> Plan {
        self.memory().plan(peer, quic, self.now())
    }

    /// See [`Memory::may_try_quic`].
    pub fn may_try_quic(&self, peer: SocketAddr, planned: Duration) -> bool {
        self.memory().may_try_quic(peer, planned)
    }

    /// See [`Memory::has_quic`].
    pub fn has_quic(&self, peer: SocketAddr) -> bool {
        self.memory().has_quic(peer)
    }

    /// See [`Memory::worked`].
    pub fn worked(&self, peer: SocketAddr) {
        self.memory().worked(peer, self.now());
    }

    /// See [`Memory::failed`].
    pub fn failed(&self, peer: SocketAddr, why: Why) {
        tracing::info!(target: "mesh_agent::tunnel", %peer, why = why.text(), "new streams go over TCP");
        self.memory().failed(peer, why, self.now());
    }

    /// See [`Memory::offered`].
    pub fn offered(&self, peer: SocketAddr) {
        self.memory().offered(peer, self.now());
    }

    /// What is known, by address.
    pub fn shown(&self) -> Vec<Shown> {
        let now = self.now();
        let memory = self.memory();
        let shown = memory.all().map(|known| Shown {
            peer: known.peer,
            transport: if known.quic { "quic" } else { "tcp" },
            why: known.why.text(),
            for_seconds: now.saturating_sub(known.since).as_secs(),
        });
        shown.collect()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
