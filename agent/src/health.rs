//! Whether this machine is to be sent anything: the application is probed, an operator may drain, and the outcome is there for
//! all to read.

mod exec;
mod grpc;
mod http;
mod local;
pub mod sandbox;

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwapOption;
use mesh_core::health::{self, Health, Method, Probe, Tracker, Verdict};
use mesh_core::world::{Workload, World};
use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::shared::Shared;

/// Who says how the application is probed.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// mesh-control, by xDS.
    #[default]
    World,
    /// What the machine was joined with (the `readinessProbe` of istiod's mesh.yaml); none means that it is not probed.
    Fixed(Option<Arc<Probe>>),
}

/// How this machine stands. Cheap to read.
#[derive(Debug, Default)]
pub struct Standing {
    /// See [`Source`].
    pub source: Source,
    health: watch::Sender<Health>,
    /// The record by which we serve when the world has none of ours.
    kept: ArcSwapOption<Workload>,
}

impl Standing {
    /// As an earlier run left it.
    pub fn new(source: Source, draining: Option<u64>) -> Self {
        Self {
            source,
            health: watch::Sender::new(Health {
                draining,
                ..Health::default()
            }),
            kept: ArcSwapOption::empty(),
        }
    }

    /// As it is now.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Every change of it.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Drains since then, or no more.
    pub fn set_draining(&self, since: Option<u64>) {
        self.health.send_modify(|health| health.draining = since);
    }

    /// The last own record, while it stands for the one that the world lacks.
    pub fn kept(&self) -> Option<Arc<Workload>> {
        self.kept.load_full()
    }

    /// How the application is probed; `None` as long as nobody has said.
    pub fn probe(&self, world: &World) -> Option<Option<Arc<Probe>>> {
        match &self.source {
            Source::Fixed(probe) => Some(probe.clone()),
            Source::World => world.probe_synced().then(|| world.probe().cloned()),
        }
    }

    fn set_verdict(&self, verdict: Verdict) {
        self.health.send_if_modified(|health| {
            let differs = health.verdict != verdict;
            health.verdict = verdict;
            differs
        });
    }
}

/// Probes for ever, as the one who says so wants it at the time. A change starts anew; the verdict stays until the next one.
pub async fn run(shared: Arc<Shared>) {
    let mut world = shared.world.clone();
    loop {
        let wanted = shared.standing.probe(&world.borrow_and_update());
        let changed = async {
            // The sender lives as long as the agent.
            let another = |world: &Arc<World>| shared.standing.probe(world) != wanted;
            if world.wait_for(|world| another(world)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            never = keep_probing(&shared, wanted.clone()) => match never {},
            () = changed => {}
        }
    }
}

async fn keep_probing(shared: &Shared, probe: Option<Option<Arc<Probe>>>) -> Infallible {
    let probe = match probe {
        None => return std::future::pending().await,
        Some(None) => {
            shared.standing.set_verdict(Verdict::Healthy);
            return std::future::pending().await;
        }
        Some(Some(probe)) => probe,
    };
    tracing::info!(target: "mesh_agent::health", probe = probe.describe(), period = ?probe.period(), "probing the application");
    let mut tracker = Tracker::new(&probe);
    sleep(probe.initial_delay()).await;
    let mut tick = interval(probe.period());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let result = once(shared, &probe).await;
        counter!(PROBES, "result" => if result.is_ok() { "success" } else { "failure" }).increment(1);
        if let Some(verdict) = tracker.result(result) {
            match &verdict {
                Verdict::Unhealthy(reason) => {
                    tracing::warn!(target: "mesh_agent::health", reason, "the application is unhealthy");
                }
                _ => tracing::info!(target: "mesh_agent::health", "the application is healthy"),
            }
            shared.standing.set_verdict(verdict);
        }
    }
}

async fn once(shared: &Shared, probe: &Probe) -> Result<(), String> {
    match timeout(probe.timeout(), ask(shared, probe)).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", probe.timeout().as_secs())),
    }
}

async fn ask(shared: &Shared, probe: &Probe) -> anyhow::Result<()> {
    match probe.method().context("the probe names no method")? {
        Method::Tcp(tcp) => local::connect(shared, &tcp.host, tcp.port).await.map(drop),
        Method::Http(get) => http::get(local::connect(shared, &get.host, get.port).await?, get).await,
        Method::Grpc(grpc) => grpc::check(local::connect(shared, "", grpc.port).await?, grpc).await,
        Method::Exec(exec) => {
            if !shared.config.health.exec.contains(&exec.command) {
                bail!(
                    "the command {:?} may not be run: list it as it is in health.exec of agent.toml, and restart the agent",
                    exec.command
                );
            }
            exec::run(&exec.command, &sandbox::hidden(&shared.config)).await
        }
    }
}

/// Keeps our last record at hand, and the metric true.
pub fn keep(shared: &Shared, world: &World) {
    let in_rotation = shared.standing.health().in_rotation();
    let record = shared.recorded(world).cloned();
    let kept = health::kept(shared.standing.kept(), record.as_ref(), in_rotation);
    shared.standing.kept.store(kept);
    gauge!(HEALTHY).set(if in_rotation { 1.0 } else { 0.0 });
}

/// Does so with every change.
pub async fn follow(shared: Arc<Shared>) {
    let (mut world, mut health) = (shared.world.clone(), shared.standing.watch());
    loop {
        health.mark_unchanged();
        keep(&shared, &world.borrow_and_update());
        let gone = tokio::select! {
            changed = world.changed() => changed.is_err(),
            changed = health.changed() => changed.is_err(),
        };
        if gone {
            return;
        }
    }
}

/// 1 while others shall open connections to us.
pub const HEALTHY: &str = "mesh_agent_healthy";
/// Probes by result.
pub const PROBES: &str = "mesh_agent_probes_total";
