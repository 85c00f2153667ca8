//! The only place where all parts meet: waiting to be joined, being a member, going down.

mod kernel_task;
mod member;
mod shard;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::status::View;
use crate::admin::{self, Admin, Command};
use crate::config::Config;
use crate::config::source::{self, Loaded};
use crate::pulse::Pulse;
use crate::ready::Ready;
use crate::state::State;
use crate::trace::Level;
use crate::{join, metrics, notify, trace};
use member::Member;

/// Runs the daemon until it is told to stop.
pub fn run(loaded: Loaded) -> anyhow::Result<()> {
    let level = trace::install(&loaded.config.log)?;
    // Control side: xDS, certificates, admin, metrics. The data plane has a thread of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut app = App::start(loaded, level).await?;
        app.serve().await
    })
}

#[derive(Debug)]
struct App {
    loaded: Loaded,
    config: Arc<Config>,
    state: State,
    ready: Ready,
    view: watch::Sender<Arc<View>>,
    commands: mpsc::Receiver<Command>,
    level: Level,
    signals: Signals,
    /// Of the data plane, while there is one.
    pulse: watch::Sender<Option<Pulse>>,
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

/// What ends a phase.
enum Next {
    Stop,
    /// By this command, if it was one, which is answered when the member runs.
    Joined(Option<Joining>),
    Left,
}

/// A `join` that waits for its answer.
#[derive(Debug)]
struct Joining {
    text: String,
    reply: oneshot::Sender<Result<String, String>>,
}

impl App {
    async fn start(loaded: Loaded, level: Level) -> anyhow::Result<Self> {
        let config = Arc::new(loaded.config.clone());
        let (view, view_watch) = watch::channel(Arc::new(View::Waiting { error: None }));
        let (sender, commands) = mpsc::channel(8);
        let ready = Ready::default();
        let admin = Admin {
            config: config.clone(),
            view: view_watch,
            commands: sender,
            ready: ready.clone(),
            metrics: metrics::install()?,
            level: level.clone(),
        };
        let listener = admin::bind(&config)?;
        admin::serve_ports(&admin).await?;
        tokio::spawn(admin::serve(admin, listener));
        let (pulse, pulse_watch) = watch::channel(None);
        tokio::spawn(watchdog(pulse_watch));
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        };
        let state = State::new(&config.paths.state);
        Ok(Self {
            loaded,
            config,
            state,
            ready,
            view,
            commands,
            level,
            signals,
            pulse,
        })
    }

    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut joining = None;
        loop {
            let next = match self.state.membership()? {
                Some(membership) => self.member(membership, joining.take()).await?,
                None => self.wait_to_be_joined().await,
            };
            match next {
                Next::Joined(asked) => joining = asked,
                Next::Left => {}
                Next::Stop => {
                    notify::stopping("stopped");
                    let _ = std::fs::remove_file(self.config.paths.run.join(admin::SOCKET));
                    return Ok(());
                }
            }
        }
    }

    /// Not joined: nothing of the machine's network is touched.
    async fn wait_to_be_joined(&mut self) -> Next {
        let _pending = self.ready.pending("join");
        self.view.send_replace(Arc::new(View::Waiting { error: None }));
        tracing::info!(target: "mesh_agent", "waiting to be joined; run: mesh-agent join");
        notify::ready("waiting to be joined; run: mesh-agent join");
        let credential = join::credential();
        let mut attempt = tokio::time::interval(ATTEMPT);
        loop {
            tokio::select! {
                _ = attempt.tick(), if credential.is_some() => {
                    if self.join_by_credential(credential.as_deref().unwrap_or_default()).await {
                        return Next::Joined(None);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Join { token, address, reply }) => {
                        if let Some(joining) = self.join(&token, address, reply).await {
                            return Next::Joined(Some(joining));
                        }
                    }
                    Some(Command::Leave { reply } | Command::Drain { reply, .. }) => {
                        drop(reply.send(Err("this machine has not joined".into())));
                    }
                    None => return Next::Stop,
                },
                _ = self.signals.terminate.recv() => return Next::Stop,
                _ = self.signals.interrupt.recv() => return Next::Stop,
                _ = self.signals.reload.recv() => self.reload(),
            }
        }
    }

    async fn join(
        &self,
        token: &str,
        address: Option<std::net::IpAddr>,
        reply: oneshot::Sender<Result<String, String>>,
    ) -> Option<Joining> {
        match join::join(&self.state, token, address, &self.config.lookup()).await {
            Ok(member) => {
                let text = format!(
                    "joined as {}/{} ({})",
                    member.namespace, member.workload_name, member.address
                );
                Some(Joining { text, reply })
            }
            Err(error) => {
                let _ = reply.send(Err(format!("{error:#}")));
                None
            }
        }
    }

    /// With the token that systemd holds for us, again and again: the control plane may not be there yet.
    async fn join_by_credential(&self, token: &str) -> bool {
        let joined = join::join(&self.state, token, None, &self.config.lookup()).await;
        if let Err(error) = &joined {
            let error = format!("the token of the systemd credential: {error:#}");
            tracing::warn!(target: "mesh_agent", %error, "not joined; trying again");
            notify::status(&error);
            self.view.send_replace(Arc::new(View::Waiting { error: Some(error) }));
        }
        joined.is_ok()
    }

    async fn member(&mut self, membership: join::Membership, joining: Option<Joining>) -> anyhow::Result<Next> {
        let mut member = match Member::start(&self.config, membership, &self.state, &self.ready).await {
            Ok(member) => member,
            Err(error) => {
                tell_failure(joining, &error).await;
                return Err(error);
            }
        };
        self.pulse.send_replace(Some(member.pulse()));
        self.view.send_replace(Arc::new(View::Member(member.view())));
        notify::ready(&format!("member {}", member.name()));
        if let Some(joining) = joining {
            let _ = joining.reply.send(Ok(joining.text));
        }
        let next = loop {
            tokio::select! {
                error = member.failed() => {
                    // What is in the kernel stays: captured traffic must not leave in plain.
                    return Err(error).context("the data plane failed");
                }
                command = self.commands.recv() => match command {
                    Some(Command::Join { token, address, reply }) => {
                        // Refused, unless only this helps.
                        if let Some(joining) = self.join(&token, address, reply).await {
                            self.pulse.send_replace(None);
                            member.hand_over().await?;
                            return Ok(Next::Joined(Some(joining)));
                        }
                    }
                    Some(Command::Drain { undo, reply }) => {
                        let done = member.drain(&self.state, undo).map_err(|error| format!("{error:#}"));
                        let _ = reply.send(done);
                    }
                    Some(Command::Leave { reply }) => {
                        let told = member.tell_leave().await;
                        member.stop(Duration::ZERO).await?;
                        self.pulse.send_replace(None);
                        self.state.forget()?;
                        let _ = reply.send(Ok(match told {
                            Ok(()) => "left the mesh".into(),
                            Err(error) => format!("left the mesh; the control plane could not be told ({error:#}), revoke the machine there"),
                        }));
                        return Ok(Next::Left);
                    }
                    None => break Next::Stop,
                },
                _ = self.signals.terminate.recv() => break Next::Stop,
                _ = self.signals.interrupt.recv() => break Next::Stop,
                _ = self.signals.reload.recv() => self.reload(),
            }
        };
        notify::stopping("draining");
        member.stop(DRAIN).await?;
        self.pulse.send_replace(None);
        Ok(next)
    }

    /// SIGHUP: what can be changed live is; the rest is named.
    fn reload(&mut self) {
        notify::reloading();
        match source::load(
            Some(&self.loaded.file)
                .filter(|file| file.exists())
                .map(|file| file.as_path()),
        ) {
            Ok(fresh) => {
                if let Err(error) = self.level.set(&fresh.config.log.level) {
                    tracing::error!(target: "mesh_agent", error = %format!("{error:#}"), "reload: log.level");
                }
                let mut same = fresh.config.clone();
                same.log = self.loaded.config.log.clone();
                if same != self.loaded.config {
                    tracing::warn!(target: "mesh_agent", "reload: only log.level changes live; restart for the rest");
                }
                self.loaded = fresh;
                tracing::info!(target: "mesh_agent", "configuration reloaded");
            }
            Err(error) => {
                tracing::error!(target: "mesh_agent", error = %format!("{error:#}"), "reload: the old configuration stays");
            }
        }
        notify::ready("configuration reloaded");
    }
}

/// Who asked to join hears that it worked and that the daemon ends all the same; the answer must leave before it does.
async fn tell_failure(joining: Option<Joining>, error: &anyhow::Error) {
    let Some(joining) = joining else { return };
    let text = format!(
        "{}, but the daemon cannot start, and tries again: {error:#}",
        joining.text
    );
    if joining.reply.send(Err(text)).is_ok() {
        tokio::time::sleep(ANSWER).await;
    }
}

/// Tells systemd that this runtime is alive, and the data plane's thread with it: when that hangs, systemd restarts us.
async fn watchdog(pulse: watch::Receiver<Option<Pulse>>) {
    let Some(interval) = notify::watchdog_interval() else {
        return;
    };
    let mut tick = tokio::time::interval(interval);
    loop {
        tick.tick().await;
        let age = pulse.borrow().as_ref().map(|pulse| pulse.age(Instant::now()));
        match age {
            Some(age) if age > interval => {
                tracing::error!(target: "mesh_agent", ?age, "the data plane makes no progress; systemd will restart the agent");
            }
            _ => notify::watchdog(),
        }
    }
}

/// How often a join by credential is tried.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Time for an answer on the admin socket to leave.
const ANSWER: Duration = Duration::from_millis(200);
/// How long live flows may go on after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);
