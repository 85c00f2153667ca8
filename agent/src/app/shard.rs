//! The data plane: one thread, one single-threaded runtime, one TUN queue with its engine, its tunnels, and all the
//! flows between them.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;

use crate::capture::{Capture, Captured, Replies, Stats};
use crate::certs::random;
use crate::dns::Resolver;
use crate::inbound::ways;
use crate::pulse::Pulse;
use crate::shared::Shared;
use crate::tun::Tun;
use crate::tunnel::{Tunnels, listen};
use crate::udp::Udp;
use crate::{inbound, outbound};

/// A running shard. Dropping it stops it at once.
#[derive(Debug)]
pub(super) struct Shard {
    stop: watch::Sender<Phase>,
    thread: Option<thread::JoinHandle<()>>,
    /// Beats while the thread makes progress.
    pub(super) pulse: Pulse,
    /// Counts of the engine.
    pub(super) stats: Arc<Stats>,
    /// Resolves when the thread ends, with what went wrong.
    pub(super) ended: oneshot::Receiver<anyhow::Error>,
}

/// What a shard is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Peers are told to go elsewhere; what lives goes on.
    Draining,
    Stopped,
}

impl Shard {
    /// Starts the thread around an open device; waits until it serves.
    pub(super) async fn start(shared: Arc<Shared>, tun: Tun) -> anyhow::Result<Self> {
        let (stop, phase) = watch::channel(Phase::Serving);
        let (started, is_started) = oneshot::channel();
        let (ended, ended_receiver) = oneshot::channel();
        let pulse = Pulse::default();
        let beats = pulse.clone();
        let thread = thread::Builder::new().name("shard-0".into()).spawn(move || {
            let result = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("starting the data plane's runtime")
                .and_then(|runtime| {
                    LocalSet::new().block_on(&runtime, async {
                        tokio::task::spawn_local(beats.keep());
                        serve(shared, tun, started, phase).await
                    })
                });
            if let Err(error) = result {
                let _ = ended.send(error);
            }
        })?;
        let Ok(stats) = is_started.await else {
            return Err(ended_receiver.await.context("the data plane did not start")?);
        };
        Ok(Self {
            stop,
            thread: Some(thread),
            pulse,
            stats,
            ended: ended_receiver,
        })
    }

    /// No new streams of peers; what lives goes on.
    pub(super) fn drain(&self) {
        self.stop.send_replace(Phase::Draining);
    }

    /// Ends the thread: flows that live are reset, and peers are told.
    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(Phase::Stopped);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(
    shared: Arc<Shared>,
    tun: Tun,
    started: oneshot::Sender<Arc<Stats>>,
    mut phase: watch::Receiver<Phase>,
) -> anyhow::Result<()> {
    let seed: [u8; 32] = std::array::from_fn(|at| random().to_le_bytes()[at % 8]);
    let (capture, replies) = Capture::new(tun, &shared.config.capture, seed).context("taking over the TUN device")?;
    let tunnels = Tunnels::bind(shared.clone())?;
    let resolver = Resolver::new(shared.clone(), "/etc/resolv.conf", random());
    let serve_inbound = {
        let (shared, opener) = (shared.clone(), capture.opener());
        move |request| inbound::serve(shared.clone(), Some(opener.clone()), request)
    };
    tokio::task::spawn_local(listen::run(tunnels.clone(), serve_inbound));
    tokio::task::spawn_local(ways::keep(shared.clone(), capture.opener()));
    let _ = started.send(capture.stats());

    let on = {
        let (shared, tunnels) = (shared.clone(), tunnels.clone());
        let udp = Udp::new(&shared.config.udp, replies.clone());
        move |captured| dispatch(&shared, &tunnels, &resolver, &replies, &udp, captured)
    };
    let captured = capture.run(on);
    tokio::pin!(captured);
    loop {
        tokio::select! {
            error = &mut captured => return Err(error).context("the TUN device is lost"),
            changed = phase.changed() => {
                let now = *phase.borrow_and_update();
                if changed.is_err() || now == Phase::Stopped {
                    break;
                }
                tunnels.drain();
            }
        }
    }
    tunnels.close();
    // Peers shall hear of it.
    let _ = tokio::time::timeout(FAREWELL, tunnels.idle()).await;
    Ok(())
}

fn dispatch(
    shared: &Arc<Shared>,
    tunnels: &Tunnels,
    resolver: &Resolver,
    replies: &Replies,
    udp: &Udp,
    captured: Captured,
) {
    match captured {
        Captured::Tcp(flow) if resolver.serves(flow.key().destination) => {
            tokio::task::spawn_local(resolver.clone().stream(flow));
        }
        Captured::Tcp(flow) => {
            tokio::task::spawn_local(outbound::serve(shared.clone(), tunnels.clone(), flow, random()));
        }
        Captured::Datagram { key, payload } if resolver.serves(key.destination) => {
            tokio::task::spawn_local(resolver.clone().datagram(key, payload, replies.clone()));
        }
        Captured::Datagram { key, payload } => {
            if let Some(flow) = udp.captured(key, payload) {
                tokio::task::spawn_local(outbound::serve_udp(shared.clone(), tunnels.clone(), flow, random()));
            }
        }
    }
}

/// Time for closing packets to leave.
const FAREWELL: Duration = Duration::from_millis(500);
