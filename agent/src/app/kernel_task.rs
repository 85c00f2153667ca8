//! The task that owns our part of the kernel, and keeps it true to the world.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use mesh_core::policy::{PlaintextRule, compile_plaintext};
use mesh_core::world::World;
use tokio::sync::watch;

use crate::kernel::Kernel;
use crate::shared::Shared;
use crate::xds;

/// See the module. It ends by [`Self::stop`].
#[derive(Debug)]
pub(super) struct KernelTask {
    stop: watch::Sender<Stop>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// What becomes of our part of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    Remove,
    /// It stays for who comes next.
    Leave,
}

impl KernelTask {
    /// Keeps captured prefixes and the packet filter true to the world. `captured` is how many prefixes are.
    pub(super) fn start(
        kernel: Kernel,
        shared: Arc<Shared>,
        mut xds: watch::Receiver<xds::Status>,
        captured: watch::Sender<usize>,
    ) -> Self {
        let (stop, mut stopped) = watch::channel(Stop::No);
        let task = tokio::spawn(async move {
            let mut world = shared.world.clone();
            let (mut kernel, mut lingers) = (kernel, false);
            let (mut look, mut failed) = (tokio::time::interval(LOOK), false);
            world.mark_changed();
            loop {
                tokio::select! {
                    _ = stopped.changed() => {
                        if *stopped.borrow() == Stop::Leave {
                            return Ok(());
                        }
                        tokio::task::spawn_blocking(move || kernel.remove()).await?.context("cleaning up the kernel")?;
                        return Ok(());
                    }
                    () = heard(&mut xds), if !shared.is_settled() => {
                        // From now on what the world does not name is no member's.
                        shared.settled.store(true, Ordering::Release);
                        world.mark_changed();
                    }
                    _ = look.tick() => {
                        let look = move || { let fails = restore(&mut kernel, failed); (kernel, fails) };
                        (kernel, failed) = tokio::task::spawn_blocking(look).await?;
                    }
                    () = tokio::time::sleep(LINGER), if lingers => world.mark_changed(),
                    changed = world.changed() => {
                        if changed.is_err() {
                            continue;
                        }
                        let now = world.borrow_and_update().clone();
                        let shared = shared.clone();
                        let update = move || { let prefixes = update(&mut kernel, &shared, &now); (kernel, prefixes) };
                        let (returned, prefixes) = tokio::task::spawn_blocking(update).await?;
                        kernel = returned;
                        lingers = prefixes.linger;
                        captured.send_replace(prefixes.count);
                    }
                }
            }
        });
        Self { stop, task }
    }

    /// Ends it.
    pub(super) async fn stop(self, how: Stop) -> anyhow::Result<()> {
        let _ = self.stop.send(how);
        self.task.await.context("the kernel task")?
    }
}

/// Whoever empties nftables opens what the guard closes: it is put back. Gives whether that failed; said once, until it works.
fn restore(kernel: &mut Kernel, failed: bool) -> bool {
    match kernel.restore_guard() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(target: "mesh_agent::kernel", "somebody removed our nftables table; it is back"),
        Err(error) => {
            if !failed {
                tracing::error!(target: "mesh_agent::kernel", %error, "our nftables table cannot be looked after");
            }
            return true;
        }
    }
    false
}

/// Sets capture up, with the packet filter of the world as it is.
pub(super) async fn install(shared: &Shared) -> anyhow::Result<Kernel> {
    let (config, plaintext) = (shared.config.clone(), plaintext_rules(shared, &shared.world()));
    // Netlink and nft calls block.
    tokio::task::spawn_blocking(move || Kernel::install(&config, &plaintext))
        .await?
        .context("setting up capture")
}

/// Resolves when the control plane has told all there is.
async fn heard(xds: &mut watch::Receiver<xds::Status>) {
    if xds.wait_for(|status| status.connected).await.is_err() {
        std::future::pending().await
    }
}

/// What is captured.
struct Prefixes {
    count: usize,
    /// Some only for connections that live, which end without a word to us here.
    linger: bool,
}

fn update(kernel: &mut Kernel, shared: &Shared, world: &World) -> Prefixes {
    let mut prefixes = world.captured_prefixes(&shared.membership.network, &shared.own_addresses(world));
    if !shared.is_settled() {
        // A saved world may be older than what the run before captured; nothing of that may leave in plain meanwhile.
        prefixes.extend(kernel.captured());
    }
    let lingering = kernel.lingering(&prefixes, &shared.flows.targets());
    let linger = !lingering.is_empty();
    prefixes.extend(lingering);
    if let Err(error) = kernel.update_prefixes(&prefixes) {
        tracing::error!(target: "mesh_agent::kernel", %error, "captured prefixes were not updated");
    }
    // Without a record of our own for a moment what was enforced stays so. And a saved world may be older than what the run
    // before a crash enforced: nothing of that is loosened before the control plane was heard.
    let known = shared.own_workload(world).is_some();
    if known
        && (shared.is_settled() || !kernel.inherits_guard())
        && let Err(error) = kernel.update_guard(&plaintext_rules(shared, world))
    {
        tracing::error!(target: "mesh_agent::kernel", %error, "the plaintext policy was not updated");
    }
    Prefixes {
        count: prefixes.len(),
        linger,
    }
}

/// What our policies say of plaintext; nothing while our own record is not known.
fn plaintext_rules(shared: &Shared, world: &World) -> Vec<PlaintextRule> {
    let own = shared.own_workload(world);
    own.map(|own| compile_plaintext(world, &own)).unwrap_or_default()
}

/// How often it is seen whether our nftables table is still there.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
/// How often it is seen whether the last of such connections has ended.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);
