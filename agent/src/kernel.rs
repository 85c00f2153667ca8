//! What is ours in the kernel, and only that: two policy rules and their companions, one routing table, one nftables table.
//! Everything is found by name or number, so that what a crashed agent left is taken over, and `cleanup` needs no state.

mod guard;
mod netlink;

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Context as _;
use ipnet::IpNet;
use mesh_core::policy::plaintext::PlaintextRule;

use crate::config::{Config, OnFailure};
use netlink::Netlink;

/// Our part of the kernel's state. Dropping it leaves everything in place (fail closed); see [`Kernel::remove`].
#[derive(Debug)]
pub struct Kernel {
    config: Config,
    netlink: Netlink,
    device: u32,
    prefixes: BTreeSet<IpNet>,
    plaintext: Vec<PlaintextRule>,
}

impl Kernel {
    /// Installs rules, the resolver's routes and the guard around an open TUN device. What an earlier agent left is taken
    /// over without a moment in which captured traffic could leave in plain.
    pub async fn install(config: &Config) -> anyhow::Result<Self> {
        let netlink = Netlink::open().context("opening a netlink socket")?;
        let capture = &config.capture;
        let device = netlink.device(&capture.tun).await?;
        netlink.check_collision(device, &[capture.address4.into(), config.dns.resolver4.into()]).await?;
        if let Err(error) = netlink.add_address6(device, capture.address6).await {
            tracing::warn!(target: "mesh_agent::kernel", %error, "no IPv6 on the TUN device: IPv6 is not captured");
        }
        guard::apply(&guard::table(config, &[])).await?;
        let mut kernel =
            Self { config: config.clone(), netlink, device, prefixes: BTreeSet::new(), plaintext: Vec::new() };
        // Unreachable routes of an earlier run stand until the new prefixes are known.
        kernel.prefixes = kernel.netlink.unreachable_prefixes(capture.table).await?;
        let found: Vec<IpNet> = kernel.prefixes.iter().copied().collect();
        let resolvers = [IpAddr::from(config.dns.resolver4), IpAddr::from(config.dns.resolver6)].map(IpNet::from);
        kernel.netlink.add_routes(capture, device, resolvers.iter().chain(&found)).await?;
        kernel.prefixes.extend(resolvers);
        for rule in netlink::rules(config) {
            kernel.netlink.add_rule(&rule).await?;
        }
        Ok(kernel)
    }

    /// Captures exactly these prefixes (and the resolvers): the difference is told to the kernel, one message a route.
    pub async fn update_prefixes(&mut self, mut wanted: BTreeSet<IpNet>) -> anyhow::Result<()> {
        let resolvers = [IpAddr::from(self.config.dns.resolver4), IpAddr::from(self.config.dns.resolver6)];
        wanted.extend(resolvers.map(IpNet::from));
        wanted.extend(self.config.capture.prefixes.iter().map(IpNet::trunc));
        let capture = &self.config.capture;
        self.netlink.add_routes(capture, self.device, wanted.difference(&self.prefixes)).await?;
        self.netlink.remove_routes(capture, self.device, self.prefixes.difference(&wanted)).await?;
        self.prefixes = wanted;
        Ok(())
    }

    /// What of plaintext may come in.
    pub async fn update_plaintext(&mut self, rules: Vec<PlaintextRule>) -> anyhow::Result<()> {
        if rules != self.plaintext {
            guard::apply(&guard::table(&self.config, &rules)).await?;
            self.plaintext = rules;
        }
        Ok(())
    }

    /// Prefixes that are captured now.
    pub fn prefixes(&self) -> usize {
        self.prefixes.len()
    }

    /// Takes everything of ours out of the kernel: only on a clean stop.
    pub async fn remove(self) -> anyhow::Result<()> {
        cleanup(&self.config).await.map(drop)
    }
}

/// Takes out whatever of ours is found, by name and number; says what that was.
pub async fn cleanup(config: &Config) -> anyhow::Result<Vec<String>> {
    let netlink = Netlink::open().context("opening a netlink socket")?;
    let mut removed = Vec::new();
    // Rules first: then nothing looks our table up any more.
    let rules = netlink.remove_rules(config).await?;
    let routes = netlink.flush_table(config.capture.table).await?;
    for (count, what) in [(rules, "policy rules"), (routes, "routes")] {
        if count > 0 {
            removed.push(format!("{count} {what}"));
        }
    }
    if guard::remove().await? {
        removed.push(format!("nftables table inet {}", guard::TABLE));
    }
    Ok(removed)
}

/// Whether captured prefixes have a second route that stands when the device is gone.
fn closed_on_failure(capture: &crate::config::Capture) -> bool {
    capture.on_failure == OnFailure::Closed
}
