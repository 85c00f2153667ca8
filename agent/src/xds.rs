//! Drives the delta-xDS session of `mesh_core` over gRPC, publishes each new world, and keeps the last good one on disk.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_core::world::World;
use mesh_core::xds::Session;
use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::DeltaDiscoveryRequest;
use mesh_proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::snapshot::{Snapshot, TypeState};
use mesh_proto::{type_url, wkt};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::certs::{Credentials, random, root_store, unix};
use crate::channel::{self, Trust};
use crate::config::Config;
use crate::join::{Membership, hostname};
use crate::metrics::xds as metrics;
use crate::state::{self, State};

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
    unsaved: bool,
}

impl Xds {
    /// Starts from the snapshot on disk, if there is one.
    pub fn new(
        config: Arc<Config>,
        membership: Membership,
        state: State,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
    ) -> (Self, watch::Receiver<Arc<World>>, watch::Receiver<Status>) {
        let (world, world_watch) = watch::channel(Arc::default());
        let (status, status_watch) = watch::channel(Status::default());
        let session = Session::new(node(&membership), &TYPES);
        let mut xds = Self {
            config,
            membership,
            state,
            session,
            world,
            status,
            credentials,
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
            tokio::time::sleep(pause(failures)).await;
            failures += 1;
        }
    }

    async fn stream(&mut self, failures: &mut u32) -> anyhow::Result<()> {
        let credentials = self.credentials.borrow().clone().context("there is no certificate")?;
        let Membership {
            control_addresses,
            trust_domain,
            ..
        } = &self.membership;
        let trust = Trust::Roots(Arc::new(root_store(&credentials.root_pems)?));
        let lookup = self.config.lookup();
        let connected = channel::connect(control_addresses, trust_domain, &trust, Some(&credentials), &lookup).await?;
        let client = AggregatedDiscoveryServiceClient::new(connected.channel().await?);
        let mut client = client.max_decoding_message_size(MAX_MESSAGE);

        let (requests, outgoing) = mpsc::channel(32);
        for request in self.session.connected() {
            requests.send(request).await.context("queueing the first requests")?;
        }
        let response = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
        let mut responses = response.map_err(|status| refused(&status))?.into_inner();
        let mut save = tokio::time::interval(SAVE);
        loop {
            tokio::select! {
                response = responses.message() => {
                    let Some(response) = response.map_err(|status| refused(&status))? else { return Ok(()) };
                    *failures = 0;
                    self.handle(response, &requests).await?;
                }
                _ = save.tick() => self.save(),
            }
        }
    }

    async fn handle(
        &mut self,
        response: mesh_proto::envoy::discovery::DeltaDiscoveryResponse,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> anyhow::Result<()> {
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
        if forbids {
            // Acknowledged means: in force after a crash as well. Addresses may wait for the next tick.
            self.save();
        }
        if is_bundle {
            self.wait_for_anchors(&next).await;
        }
        requests.send(handled.reply).await.context("the stream is gone")
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
        self.status.send_modify(|status| {
            status.heard = taken_at;
            status.from_snapshot = true;
        });
        Ok(())
    }

    fn save(&mut self) {
        if !self.unsaved || !self.session.synced() {
            return;
        }
        let types = self.session.snapshot().into_iter();
        let snapshot = Snapshot {
            taken_at: Some(wkt::Timestamp::from(SystemTime::now())),
            types: types
                .map(|(type_url, resources)| TypeState { type_url, resources })
                .collect(),
        };
        match self.state.write(state::WORLD, &snapshot.encode_to_vec()) {
            Ok(()) => self.unsaved = false,
            Err(error) => {
                tracing::warn!(target: "mesh_agent::xds", error = %format!("{error:#}"), "the world was not saved")
            }
        }
    }
}

/// Full jitter between 10 ms and 15 s (as ztunnel does it).
fn pause(failures: u32) -> Duration {
    let most = 20u64.saturating_mul(1 << failures.min(10)).min(15_000);
    Duration::from_millis(10 + random() % most)
}

fn refused(status: &tonic::Status) -> anyhow::Error {
    let code = status
        .metadata()
        .get("x-mesh-error")
        .and_then(|code| code.to_str().ok());
    match code {
        Some("clone") => anyhow::anyhow!(
            "refused as a clone: another machine is connected with this machine's identity ({}); \
             run `mesh-agent leave` on the copy and join it with a token of its own",
            status.message()
        ),
        Some("host-key-revoked" | "certificate-revoked") => {
            anyhow::anyhow!("this machine was revoked: {}", status.message())
        }
        _ => {
            // The cause of a broken connection, such as a TLS alert, is further down.
            let mut causes = vec![format!("{}: {}", status.code(), status.message())];
            let mut cause = std::error::Error::source(status);
            while let Some(error) = cause {
                causes.push(error.to_string());
                cause = error.source();
            }
            let text = causes.join(": ");
            if text.contains("CertificateRevoked") {
                return anyhow::anyhow!("this machine was revoked; join again with a new token ({text})");
            }
            anyhow::anyhow!("{text}")
        }
    }
}

fn node(membership: &Membership) -> Node {
    let Membership {
        workload_name,
        namespace,
        address,
        ..
    } = membership;
    let text = |text: &str| wkt::Value {
        kind: Some(wkt::value::Kind::StringValue(text.into())),
    };
    let instance = format!("{:016x}", random());
    let fields = [
        ("NAME", workload_name.as_str()),
        ("NAMESPACE", namespace),
        ("SERVICE_ACCOUNT", &membership.service_account),
        ("AUTO_REGISTER_GROUP", &membership.workload_group),
        ("INSTANCE_IPS", &address.to_string()),
        ("NETWORK", &membership.network),
        ("CLUSTER_ID", &membership.cluster_id),
        ("MESH_AGENT_ID", &membership.agent_id),
        ("MESH_INSTANCE_ID", &instance),
        ("MESH_AGENT_VERSION", env!("CARGO_PKG_VERSION")),
        ("MESH_HOSTNAME", &hostname()),
    ]
    .map(|(name, value)| (name.to_owned(), text(value)));
    Node {
        id: format!("ztunnel~{address}~{workload_name}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(wkt::Struct {
            fields: fields.into_iter().collect(),
        }),
        user_agent_name: "mesh-agent".into(),
        user_agent_version: env!("CARGO_PKG_VERSION").into(),
        ..Node::default()
    }
}

const TYPES: [&str; 4] = [
    type_url::ADDRESS,
    type_url::AUTHORIZATION,
    type_url::REVOCATION,
    type_url::TRUST_BUNDLE,
];
/// How often a changed world is written to disk.
const SAVE: Duration = Duration::from_secs(2);
/// As ztunnel allows.
const MAX_MESSAGE: usize = 200 << 20;
