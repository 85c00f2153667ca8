//! A running member: the tasks of the control side, the shard, and our part of the kernel.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use mesh_core::own_record::Finding;
use mesh_core::world::World;
use mesh_proto::mesh::LeaveRequest;
use mesh_proto::mesh::join_service_client::JoinServiceClient;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::kernel_task::{self, KernelTask, Stop};
use super::shard::Shard;
use crate::admin::status;
use crate::certs::{Credentials, Pem, Renewal, unix};
use crate::channel;
use crate::config::Config;
use crate::crl::{CrlFile, Crls};
use crate::flows::Flows;
use crate::health::{self, Standing};
use crate::inbound::ways::Ways;
use crate::join::Membership;
use crate::pulse::Pulse;
use crate::ready::{Pending, Ready};
use crate::shared::Shared;
use crate::state::State;
use crate::tls::Revoked;
use crate::transports::Transports;
use crate::tun::Tun;
use crate::xds::{self, Xds, register};
use crate::{inbound, metrics, record};

/// See the module.
#[derive(Debug)]
pub(super) struct Member {
    config: Arc<Config>,
    shared: Arc<Shared>,
    xds: watch::Receiver<xds::Status>,
    captured: watch::Receiver<usize>,
    record: watch::Receiver<Vec<Finding>>,
    registration: watch::Receiver<register::Status>,
    shard: Shard,
    tasks: JoinSet<()>,
    kernel: KernelTask,
}

impl Member {
    /// Starts everything, top to bottom. From a snapshot on disk traffic is served before the control plane is there.
    pub(super) async fn start(
        config: &Arc<Config>,
        membership: Membership,
        state: &State,
        ready: &Ready,
    ) -> anyhow::Result<Self> {
        let waiting = ready.pending("world");
        let pem =
            Pem::load(state)?.context("the certificate is missing from the state directory; leave and join again")?;
        let credentials = pem.credentials().context("reading the certificate of this machine")?;
        let (publish, credentials) = watch::channel(Some(Arc::new(credentials)));
        let standing = Standing::new(probe_source(&membership)?, state.draining()?);
        let (xds, world, xds_status) = Xds::new(
            config.clone(),
            membership.clone(),
            state.clone(),
            credentials.clone(),
            standing.watch(),
        );
        let (crl_file, crls) = open_crl_file(config, &credentials);
        let shared = Arc::new(Shared {
            config: config.clone(),
            membership: membership.clone(),
            world: world.clone(),
            revoked: Revoked::new(world.clone(), crls),
            credentials,
            flows: Arc::<Flows>::default(),
            settled: AtomicBool::new(false),
            transports: Transports::new(config.tunnel.transport),
            ways: Ways::default(),
            standing,
        });

        health::keep(&shared, &world.borrow());
        let tun = Tun::open(&config.capture)?;
        let kernel = kernel_task::install(&shared).await?;
        let shard = Shard::start(shared.clone(), tun).await?;
        let (captured, captured_watch) = watch::channel(0);
        let kernel = KernelTask::start(kernel, shared.clone(), xds_status.clone(), captured);

        let mut tasks = JoinSet::new();
        tasks.spawn(xds.run());
        let (registered, registration) = watch::channel(register::Status::default());
        tasks.spawn(register::look_after(shared.clone(), registered));
        let renewal = Renewal {
            config: config.clone(),
            membership,
            state: state.clone(),
            pem,
            publish,
            world: world.clone(),
        };
        tasks.spawn(renewal.run());
        tasks.spawn(inbound::recheck(shared.clone()));
        if let Some(file) = crl_file {
            tasks.spawn(file.run());
        }
        tasks.spawn(become_ready(world, waiting));
        let (found, record) = watch::channel(Vec::new());
        tasks.spawn(record::look_after(shared.clone(), xds_status.clone(), found));
        tasks.spawn(health::run(shared.clone()));
        tasks.spawn(health::follow(shared.clone()));
        tasks.spawn(sample(shared.clone(), shard.stats.clone(), xds_status.clone()));
        Ok(Self {
            config: config.clone(),
            shared,
            xds: xds_status,
            captured: captured_watch,
            record,
            registration,
            shard,
            tasks,
            kernel,
        })
    }

    pub(super) fn view(&self) -> status::Member {
        status::Member {
            shared: self.shared.clone(),
            xds: self.xds.clone(),
            captured: self.captured.clone(),
            record: self.record.clone(),
            registration: self.registration.clone(),
        }
    }

    /// Beats while the data plane makes progress.
    pub(super) fn pulse(&self) -> Pulse {
        self.shard.pulse.clone()
    }

    pub(super) fn name(&self) -> String {
        format!(
            "{}/{}",
            self.shared.membership.namespace, self.shared.membership.workload_name
        )
    }

    /// Resolves when the agent cannot go on.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.shard.ended).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes this machine out of rotation, or back in; over restarts, until it is undone.
    pub(super) fn drain(&self, state: &State, undo: bool) -> anyhow::Result<String> {
        let standing = &self.shared.standing;
        let since = standing.health().draining;
        if undo {
            state.set_draining(None)?;
            standing.set_draining(None);
            return Ok(match since {
                Some(_) => "no longer draining: open for new connections".into(),
                None => "was not draining".into(),
            });
        }
        let since = since.unwrap_or_else(|| unix(SystemTime::now()));
        state.set_draining(Some(since))?;
        standing.set_draining(Some(since));
        Ok("draining: others are told to open new connections elsewhere; what lives goes on".into())
    }

    /// Asks the control plane to forget this machine. istiod does so by itself, some seconds after the stream has ended.
    pub(super) async fn tell_leave(&self) -> anyhow::Result<()> {
        let membership = &self.shared.membership;
        if membership.istiod().is_some() {
            return Ok(());
        }
        let credentials = self.shared.credentials().context("there is no certificate")?;
        let server = membership.server(&credentials.root_pems)?;
        let lookup = self.config.lookup();
        let connection = channel::connect(&membership.control_addresses, &server, Some(&credentials), &lookup).await?;
        let mut client = JoinServiceClient::new(connection.channel().await?);
        tokio::time::timeout(Duration::from_secs(5), client.leave(LeaveRequest {})).await??;
        Ok(())
    }

    /// A clean stop: peers are told, live flows may end within `drain`, and the kernel is as it was before.
    pub(super) async fn stop(mut self, drain: Duration) -> anyhow::Result<()> {
        self.shard.drain();
        let end = Instant::now() + drain;
        while self.shared.flows.any_may_finish() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.tasks.shutdown().await;
        self.kernel.stop(Stop::Remove).await?;
        finish(self.shard).await
    }

    /// Stops for a member that is started next, which takes over what is in the kernel: nothing opens between the two.
    pub(super) async fn hand_over(mut self) -> anyhow::Result<()> {
        self.tasks.shutdown().await;
        self.kernel.stop(Stop::Leave).await?;
        finish(self.shard).await
    }
}

/// Ends what is left of the shard's thread, which may block.
async fn finish(shard: Shard) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || shard.stop())
        .await
        .context("stopping the data plane")
}

/// mesh-control sends the probe with the world; istiod's is in the bundle that we joined with.
fn probe_source(membership: &Membership) -> anyhow::Result<health::Source> {
    let Some(istiod) = membership.istiod() else {
        return Ok(health::Source::World);
    };
    if istiod.readiness_probe.is_empty() {
        return Ok(health::Source::Fixed(None));
    }
    let probe =
        serde_json::from_str(&istiod.readiness_probe).context("the readinessProbe of the bundle's mesh.yaml")?;
    Ok(health::Source::Fixed(Some(Arc::new(probe))))
}

/// The CRLs, and the task that follows their file when the settings name one.
fn open_crl_file(
    config: &Config,
    credentials: &watch::Receiver<Option<Arc<Credentials>>>,
) -> (Option<CrlFile>, watch::Receiver<Arc<Crls>>) {
    let path = &config.tunnel.crl_file;
    if path.as_os_str().is_empty() {
        return (None, watch::channel(Arc::default()).1);
    }
    let (file, crls) = CrlFile::open(path.clone(), credentials.clone());
    (Some(file), crls)
}

async fn become_ready(mut world: watch::Receiver<Arc<World>>, waiting: Pending) {
    let _ = world
        .wait_for(|world| world.addresses_synced() && world.policies_synced())
        .await;
    drop(waiting);
    std::future::pending().await
}

async fn sample(shared: Arc<Shared>, stats: Arc<crate::capture::Stats>, xds: watch::Receiver<xds::Status>) {
    let mut tick = tokio::time::interval(metrics::SAMPLE);
    loop {
        tick.tick().await;
        metrics::sample(&metrics::Health {
            flows: shared.flows.clone(),
            stats: stats.clone(),
            not_after: shared.credentials().map(|credentials| credentials.not_after),
            xds_connected: xds.borrow().connected,
        });
    }
}
