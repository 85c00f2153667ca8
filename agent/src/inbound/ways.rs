//! At which of our addresses applications can be reached out of the TUN device: tried, not assumed, because packet filters
//! and `rp_filter` of the machine decide it. Where it does not work, applications see this machine's own address as before.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::capture::Opener;
use crate::shared::Shared;

/// What is known; written by [`keep`], read by every inbound flow.
#[derive(Debug, Default)]
pub struct Ways {
    tried: Mutex<BTreeMap<IpAddr, Way>>,
    doubted: Notify,
}

/// One address.
#[derive(Clone, Debug)]
struct Way {
    /// Why it is closed.
    closed: Option<String>,
    at: Instant,
    doubted: bool,
}

impl Ways {
    /// Whether a flow in a caller's name can be opened to this address.
    pub fn is_open(&self, address: IpAddr) -> bool {
        let tried = self.lock();
        tried
            .get(&address.to_canonical())
            .is_some_and(|way| way.closed.is_none())
    }

    /// A flow to this address was not answered: it is tried again.
    pub fn doubt(&self, address: IpAddr) {
        if let Some(way) = self.lock().get_mut(&address.to_canonical()) {
            way.doubted = true;
            self.doubted.notify_one();
        }
    }

    /// Each address, with the reason where it is closed.
    pub fn shown(&self) -> Vec<(IpAddr, Option<String>)> {
        let tried = self.lock();
        tried
            .iter()
            .map(|(address, way)| (*address, way.closed.clone()))
            .collect()
    }

    /// What is to be tried now: what is new, doubted, or was closed for long. What is not in `own` is forgotten.
    fn due(&self, own: &[IpAddr]) -> Vec<IpAddr> {
        let own: Vec<_> = own.iter().map(IpAddr::to_canonical).collect();
        let mut tried = self.lock();
        tried.retain(|address, _| own.contains(address));
        let is_due = |address: &IpAddr| match tried.get(address) {
            None => true,
            Some(way) => way.doubted || way.closed.is_some() && way.at.elapsed() >= AGAIN,
        };
        own.into_iter().filter(is_due).collect()
    }

    /// Notes how it went, and tells when that is a change.
    fn note(&self, address: IpAddr, closed: Option<String>) {
        let way = Way {
            closed: closed.clone(),
            at: Instant::now(),
            doubted: false,
        };
        let before = self.lock().insert(address, way).map(|before| before.closed.is_some());
        match closed {
            Some(reason) if before != Some(true) => {
                tracing::warn!(target: "mesh_agent::inbound", %address, %reason, "applications will see this machine's address instead of the caller's (inbound.preserve_source)");
            }
            None if before != Some(false) => {
                tracing::info!(target: "mesh_agent::inbound", %address, "applications see the caller's address");
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Way>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps what is known true, unless the settings want none of it. Runs on the shard's thread.
pub async fn keep(shared: Arc<Shared>, opener: Opener) {
    if !shared.config.inbound.preserve_source {
        return;
    }
    let mut world = shared.world.clone();
    loop {
        let now = world.borrow_and_update().clone();
        for address in shared.ways.due(&shared.own_addresses(&now)) {
            let closed = try_out(&shared, &opener, address).await.err();
            shared.ways.note(address, closed);
        }
        tokio::select! {
            changed = world.changed() => if changed.is_err() { return },
            // Not more often, however many doubt.
            () = shared.ways.doubted.notified() => tokio::time::sleep(PAUSE).await,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Opens a flow to a listener of ours at this address, in the name of the resolver, which is always captured.
async fn try_out(shared: &Shared, opener: &Opener, address: IpAddr) -> Result<(), String> {
    let listener = TcpListener::bind((address, 0))
        .await
        .map_err(|error| format!("{address} is not an address of this machine that can be listened at: {error}"))?;
    let at = listener.local_addr().map_err(|error| error.to_string())?;
    let dns = &shared.config.dns;
    let caller: IpAddr = match address {
        IpAddr::V4(_) => dns.resolver4.into(),
        IpAddr::V6(_) => dns.resolver6.into(),
    };
    let accepted = async {
        let accept = async {
            while listener.accept().await?.1.ip() != caller {}
            Ok(())
        };
        tokio::time::timeout(LIMIT, accept)
            .await
            .unwrap_or_else(|late| Err(late.into()))
    };
    let tried: io::Result<_> = tokio::try_join!(opener.open(caller, at, LIMIT), accepted);
    tried.map(|_| ()).map_err(|error| {
        let device = &shared.config.capture.tun;
        format!(
            "packets that come in by the device {device} do not reach a listener at {address} ({error}): a packet filter of \
             this machine must accept what comes by {device}"
        )
    })
}

/// An application of this machine answers within microseconds.
const LIMIT: Duration = Duration::from_secs(2);
/// What was closed may be open after this.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two trials that a doubt asked for.
const PAUSE: Duration = Duration::from_secs(1);
