//! Live flows of this agent, for `status`, for the re-check when policies change, and for the drain.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mesh_core::identity::Identity;
use mesh_core::packet::Protocol;
use mesh_core::trace::TraceParent;
use mesh_core::world::{ServiceKey, Workload};
use serde::Serialize;
use slab::Slab;
use tokio::sync::oneshot;

use crate::copy::Count;
use crate::failure::Failure;
use crate::tls::PeerCertificate;

/// Which side's application opened the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// An application of ours.
    Outbound,
    /// A peer's.
    Inbound,
}

impl Direction {
    /// As logs and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What carries a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Transport {
    /// HTTP/3 over QUIC.
    #[serde(rename = "hbone3")]
    Hbone3,
    /// HTTP/2 over TCP.
    #[serde(rename = "hbone")]
    Hbone,
    /// HTTP/2 inside a tunnel to the gateway of another network.
    #[serde(rename = "double-hbone")]
    DoubleHbone,
    /// No tunnel.
    #[serde(rename = "plain")]
    Plain,
}

impl Transport {
    /// As logs and `status` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hbone3 => "hbone3",
            Self::Hbone => "hbone",
            Self::DoubleHbone => "double-hbone",
            Self::Plain => "plain",
        }
    }

    /// Istio's `connection_security_policy`.
    pub fn security_policy(self) -> &'static str {
        match self {
            Self::Hbone3 | Self::Hbone | Self::DoubleHbone => "mutual_tls",
            Self::Plain => "unknown",
        }
    }
}

/// The facts of one flow.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the applications speak.
    pub protocol: Protocol,
    pub direction: Direction,
    pub transport: Transport,
    /// The client.
    pub source: SocketAddr,
    /// Where the serving application listens.
    pub destination: SocketAddr,
    /// Outbound: where the application connected to, when that is a service's address.
    pub original: Option<SocketAddr>,
    /// The tunnel peer's address.
    pub hbone: Option<SocketAddr>,
    pub service: Option<ServiceKey>,
    /// The service's short name; that of its object, not the first part of its hostname.
    pub service_name: Option<Arc<str>>,
    pub source_workload: Option<Arc<Workload>>,
    pub destination_workload: Option<Arc<Workload>>,
    pub source_identity: Option<Identity>,
    pub destination_identity: Option<Identity>,
    /// Outbound: the workload at the tunnel peer's address, when the world named the peer's identity for it.
    pub endpoint: Option<Arc<Workload>>,
    /// The peer's, which may be revoked while the flow lives.
    pub peer_certificate: Option<Arc<PeerCertificate>>,
    /// What the CONNECT carries; `None` where there is none.
    pub trace: Option<TraceParent>,
}

/// One live flow, as others see it.
#[derive(Debug)]
pub struct Live {
    pub id: u64,
    pub facts: Facts,
    pub since: Instant,
    /// From the client to the server.
    pub forth: Arc<Count>,
    /// From the server to the client.
    pub back: Arc<Count>,
    cut: Option<oneshot::Sender<Failure>>,
}

/// All live flows.
#[derive(Debug, Default)]
pub struct Flows {
    live: Mutex<Slab<Live>>,
    next: std::sync::atomic::AtomicU64,
}

/// Registration of one live flow; dropping it removes the flow.
#[derive(Debug)]
pub struct Registered {
    flows: Arc<Flows>,
    slot: usize,
    /// The flow's id, unique in this process.
    pub id: u64,
    pub forth: Arc<Count>,
    pub back: Arc<Count>,
    /// Resolves when the flow must end at once, with the reason.
    pub cut: oneshot::Receiver<Failure>,
}

impl Flows {
    /// Adds a flow.
    pub fn register(self: &Arc<Self>, facts: Facts) -> Registered {
        let (cut, cut_receiver) = oneshot::channel();
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (forth, back) = (Arc::<Count>::default(), Arc::<Count>::default());
        let live = Live {
            id,
            facts,
            since: Instant::now(),
            forth: forth.clone(),
            back: back.clone(),
            cut: Some(cut),
        };
        let slot = self.lock().insert(live);
        Registered {
            flows: self.clone(),
            slot,
            id,
            forth,
            back,
            cut: cut_receiver,
        }
    }

    /// Cuts every flow for which `judge` gives a reason.
    pub fn cut_where(&self, mut judge: impl FnMut(&Facts) -> Option<Failure>) -> usize {
        let mut count = 0;
        for (_, live) in self.lock().iter_mut() {
            let Some(reason) = live.cut.is_some().then(|| judge(&live.facts)).flatten() else {
                continue;
            };
            if let Some(cut) = live.cut.take() {
                count += usize::from(cut.send(reason).is_ok());
            }
        }
        count
    }

    /// Shows each live flow to `look`.
    pub fn for_each(&self, mut look: impl FnMut(&Live)) {
        for (_, live) in self.lock().iter() {
            look(live);
        }
    }

    /// The addresses that our applications are connected to.
    pub fn targets(&self) -> BTreeSet<IpAddr> {
        let mut targets = BTreeSet::new();
        self.for_each(|live| {
            if live.facts.direction == Direction::Outbound {
                let target = live.facts.original.unwrap_or(live.facts.destination);
                targets.insert(target.ip().to_canonical());
            }
        });
        targets
    }

    /// How many flows live.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether a flow lives that has an end of its own to be waited for. UDP flows have none: they are over when nothing came
    /// for a while.
    pub fn any_may_finish(&self) -> bool {
        self.lock().iter().any(|(_, live)| live.facts.protocol == Protocol::Tcp)
    }

    /// Whether no flow lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slab<Live>> {
        self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.flows.lock().try_remove(self.slot);
    }
}
