//! Drives the delta-xDS session of `mesh_core` over gRPC, publishes each new world, and keeps the last good one on disk.

mod node;
pub mod register;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_core::health::Health;
use mesh_core::world::World;
use mesh_core::xds::Session;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_proto::snapshot::{Snapshot, TypeState};
use mesh_proto::{type_url, wkt};
use prost::Message as _;
use tokio::sync::watch;

use crate::certs::{Credentials, random, unix};
use crate::config::Config;
use crate::join::Membership;
use crate::metrics::xds as metrics;
use crate::state::{self, State};
use node::Purpose;
use stream::Stream;

/// How the session stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub connected: bool,
    /// Why not.
    pub error: Option<String>,
    pub reconnects: u64,
    /// When the world was last heard of, seconds since the epoch; of a snapshot, when it was taken.
    pub heard: Option<u64>,
    pub from_snapshot: bool,
    /// (resource, reason) that stand rejected.
    pub rejected: Vec<(String, String)>,
}

/// The task that owns the world.
#[derive(Debug)]
pub struct Xds {
    config: Arc<Config>,
    membership: Membership,
    state: State,
    session: Session,
    world: watch::Sender<Arc<World>>,
    status: watch::Sender<Status>,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    health: watch::Receiver<Health>,
    /// Our own record, as it came last.
    own: Option<Resource>,
    unsaved: bool,
}

impl Xds {
    /// Starts from the snapshot on disk, if there is one. `health` is what this stream reports, except to istiod, where another
    /// one does ([`register`]).
    pub fn new(
        config: Arc<Config>,
        membership: Membership,
        state: State,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        health: watch::Receiver<Health>,
    ) -> (Self, watch::Receiver<Arc<World>>, watch::Receiver<Status>) {
        let (world, world_watch) = watch::channel(Arc::default());
        let (status, status_watch) = watch::channel(Status::default());
        let session = Session::new(node::node(&membership, Purpose::World), types(&membership));
        let mut xds = Self {
            config,
            membership,
            state,
            session,
            world,
            status,
            credentials,
            health,
            own: None,
            unsaved: false,
        };
        if let Err(error) = xds.restore() {
            tracing::warn!(target: "mesh_agent::xds", error = %format!("{error:#}"), "the saved world is not usable; starting without");
        }
        (xds, world_watch, status_watch)
    }

    /// Runs until the agent stops.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            let ended = self.stream(&mut failures).await;
            self.save();
            metrics::ended(match &ended {
                Ok(()) => metrics::Ended::Complete,
                Err(_) if self.status.borrow().connected => metrics::Ended::Error,
                Err(_) => metrics::Ended::ConnectionError,
            });
            let error = ended
                .err()
                .map_or_else(|| "the control plane closed the stream".into(), |e| format!("{e:#}"));
            tracing::warn!(target: "mesh_agent::xds", %error, failures, "not connected to the control plane");
            self.status.send_modify(|status| {
                status.connected = false;
                status.error = Some(error);
                status.reconnects += 1;
            });
            tokio::time::sleep(pause(failures, random())).await;
            failures += 1;
        }
    }

    async fn stream(&mut self, failures: &mut u32) -> anyhow::Result<()> {
        let credentials = self.credentials.borrow().clone().context("there is no certificate")?;
        if let Some(command) = self.membership.needs_bundle(credentials.not_after) {
            anyhow::bail!(
                "the certificate has expired, so that istiod would refuse it; a fresh bundle is needed: {command}"
            );
        }
        let mut first = self.session.connected();
        // Never first: the control plane does not know us before.
        let mut health = self.membership.istiod().is_none().then(|| self.health.clone());
        let report = health
            .as_mut()
            .and_then(|health| register::report(&health.borrow_and_update()));
        first.extend(report);
        let mut stream = Stream::open(&self.config, &self.membership, &credentials, first).await?;
        let mut save = tokio::time::interval(SAVE);
        loop {
            tokio::select! {
                response = stream.next() => {
                    let Some(response) = response? else { return Ok(()) };
                    *failures = 0;
                    stream.send(self.handle(response).await).await?;
                }
                report = register::next_report(health.as_mut()) => {
                    stream.send(report).await?;
                }
                _ = save.tick() => self.save(),
            }
        }
    }

    /// Takes up a response; what it is answered with.
    async fn handle(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let is_bundle = response.type_url == type_url::TRUST_BUNDLE;
        let forbids = matches!(
            response.type_url.as_str(),
            type_url::AUTHORIZATION | type_url::REVOCATION
        );
        let bytes = response.resources.iter().filter_map(|one| one.resource.as_ref());
        metrics::message(&response.type_url, bytes.map(|any| any.value.len()).sum());
        let handled = self.session.handle(response);
        for (name, why) in &handled.rejected {
            tracing::warn!(target: "mesh_agent::xds", %name, %why, "resource rejected");
        }
        let next = Arc::new(self.world.borrow().apply(handled.delta));
        self.world.send_replace(next.clone());
        let own = self.own_record();
        let is_ours = own != self.own;
        self.own = own;
        self.unsaved = true;
        self.status.send_modify(|status| {
            status.connected = self.session.synced();
            status.error = None;
            status.heard = Some(unix(SystemTime::now()));
            status.from_snapshot = false;
            status.rejected = self
                .session
                .rejected()
                .map(|(_, name, why)| (name.into(), why.into()))
                .collect();
        });
        if forbids || is_ours {
            // Acknowledged means: in force after a crash as well. Addresses of others may wait for the next tick.
            self.save();
        }
        if is_bundle {
            self.wait_for_anchors(&next).await;
        }
        handled.reply
    }

    /// An ACK of the trust bundle says that we trust all of its anchors; so it waits until we do.
    async fn wait_for_anchors(&mut self, world: &World) {
        let Some((_, anchors)) = world.trust_bundle() else {
            return;
        };
        let trusted = self.credentials.wait_for(|credentials| {
            credentials
                .as_ref()
                .is_some_and(|one| anchors.iter().all(|anchor| one.root_pems.contains(anchor)))
        });
        let _ = tokio::time::timeout(Duration::from_secs(10), trusted).await;
    }

    fn restore(&mut self) -> anyhow::Result<()> {
        let Some(bytes) = self.state.read(state::WORLD)? else {
            return Ok(());
        };
        let snapshot = Snapshot::decode(bytes.as_slice())?;
        let taken_at = snapshot.taken_at.map(|at| u64::try_from(at.seconds).unwrap_or(0));
        let types = snapshot
            .types
            .into_iter()
            .map(|one| (one.type_url, one.resources))
            .collect();
        let world = World::default().apply(self.session.restore(types));
        self.world.send_replace(Arc::new(world));
        self.own = self.own_record();
        self.status.send_modify(|status| {
            status.heard = taken_at;
            status.from_snapshot = true;
        });
        Ok(())
    }

    /// Our own record as it came; of the world, or, out of rotation, where istiod has none of us, the last one: what comes in is
    /// served by it, also after a restart.
    fn own_record(&self) -> Option<Resource> {
        let Membership {
            namespace,
            workload_name,
            ..
        } = &self.membership;
        let world = self.world.borrow();
        match world.workload_named(namespace, workload_name) {
            Some(own) => self.session.held(type_url::ADDRESS, &own.uid),
            None if self.health.borrow().in_rotation() => None,
            None => self.own.clone(),
        }
    }

    fn save(&mut self) {
        if !self.unsaved || !self.session.synced() {
            return;
        }
        let types = self.session.snapshot().into_iter();
        let held = |own: &Resource| self.session.held(type_url::ADDRESS, &own.name).is_some();
        let mut lacking = self.own.clone().filter(|own| !held(own));
        let with_own = |(type_url, mut resources): (String, Vec<Resource>)| {
            if type_url == type_url::ADDRESS {
                resources.extend(lacking.take());
            }
            TypeState { type_url, resources }
        };
        let snapshot = Snapshot {
            taken_at: Some(wkt::Timestamp::from(SystemTime::now())),
            types: types.map(with_own).collect(),
        };
        match self.state.write(state::WORLD, &snapshot.encode_to_vec()) {
            Ok(()) => self.unsaved = false,
            Err(error) => {
                tracing::warn!(target: "mesh_agent::xds", error = %format!("{error:#}"), "the world was not saved")
            }
        }
    }
}

/// Full jitter: after a stream that was answered up to a second, for a control plane that goes lets go of all its agents at
/// once; then from 40 ms, doubled with each failure, up to 15 s (as ztunnel does it).
fn pause(failures: u32, random: u64) -> Duration {
    let most = match failures {
        0 => 1_000,
        _ => 20u64.saturating_mul(1 << failures.min(10)).min(15_000),
    };
    Duration::from_millis(10 + random % most)
}

/// What is subscribed to: istiod knows nothing of what mesh-control adds.
fn types(membership: &Membership) -> &'static [&'static str] {
    match membership.istiod() {
        None => &TYPES,
        Some(_) => &TYPES[..2],
    }
}

const TYPES: [&str; 5] = [
    type_url::ADDRESS,
    type_url::AUTHORIZATION,
    type_url::REVOCATION,
    type_url::TRUST_BUNDLE,
    type_url::PROBE,
];
/// How often a changed world is written to disk.
const SAVE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::pause;

    #[test]
    fn agents_do_not_come_back_all_at_once() {
        let longest = |failures| (0..20_000).map(|random| pause(failures, random).as_millis()).max();
        assert_eq!(longest(0), Some(10 + 999));
        assert_eq!(longest(1), Some(10 + 39));
        assert_eq!(longest(u32::MAX), Some(10 + 14_999));
        assert_eq!(pause(u32::MAX, 0).as_millis(), 10);
    }
}
