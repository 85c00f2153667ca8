//! Everything of ours in the kernel: the device's addresses, policy rules, routes of captured prefixes, and the guard.
//!
//! All of it is found by name or number (device, table, priorities, protocol number), so that a restart takes over what
//! a killed agent left, and [`cleanup`] needs no state. What is left behind fails closed: the routes through the device
//! vanish with it, and the `unreachable` routes of worse metric stay.
//!
//! Calls block for as long as the kernel needs (microseconds; 100,000 prefixes take about a second): call them from a
//! blocking thread. They need CAP_NET_ADMIN and nothing else; no sysctl is written.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::policy::PlaintextRule;

use crate::config::{Capture, Config, Dns, OnFailure};

pub mod cleanup;
mod device;
pub mod guard;
mod netlink;
mod routes;
mod rules;

pub use cleanup::cleanup;
use device::Device;
use guard::{Guard, Nft};
use netlink::Netlink;
use routes::Routes;

/// Our routes and rules carry this protocol number (`ip route` shows `proto 109`), by which they are told from others'.
const PROTOCOL: u8 = 109;

/// Why the kernel does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("the address {address} is already on the device {device}: set {setting} to one that nobody uses")]
    AddressTaken {
        address: std::net::IpAddr,
        device: String,
        setting: &'static str,
    },
    #[error("{what}: {error}{}", hint(.error))]
    Netlink { what: String, error: io::Error },
    #[error("the device {0} is not there: it is made before the rest of the kernel's part")]
    NoDevice(String),
    #[error("`nft` cannot be run ({0}): install the package nftables")]
    NoNft(io::Error),
    #[error("nftables refused our table `inet mesh_agent`: {0}")]
    Nft(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (the agent needs CAP_NET_ADMIN)",
        _ => "",
    }
}

/// Our part of the kernel's state, installed.
#[derive(Debug)]
pub struct Kernel {
    netlink: Netlink,
    capture: Capture,
    dns: Dns,
    routes: Routes,
    guard: Guard,
    nft: Nft,
}

impl Kernel {
    /// Installs the guard, brings the device up with its addresses, then adds routes and rules, in this order, so that no
    /// address is unguarded and no rule leads to a table that is not ready. After an error nothing
    /// of this stays, unless an earlier run left something: that must not open because its successor fails. Takes over what an earlier run left: its prefixes stay captured (unreachable) until the first
    /// [`Self::update_prefixes`], and what it refused of plaintext stays refused until the first [`Self::update_guard`];
    /// where there was no earlier run `plaintext` is in force from the first moment.
    pub fn install(config: &Config, plaintext: &[PlaintextRule]) -> Result<Self, KernelError> {
        let mut netlink = Netlink::open()?;
        let left_behind = rules::are_there(&mut netlink, &config.capture)?;
        Self::try_install(netlink, config, plaintext).inspect_err(|_| {
            if !left_behind && let Err(error) = cleanup(config) {
                tracing::error!(target: "mesh_agent::kernel", %error, "what was begun in the kernel was not removed");
            }
        })
    }

    fn try_install(mut netlink: Netlink, config: &Config, plaintext: &[PlaintextRule]) -> Result<Self, KernelError> {
        let (capture, dns) = (config.capture.clone(), config.dns.clone());
        let device =
            Device::find(&mut netlink, &capture.tun)?.ok_or_else(|| KernelError::NoDevice(capture.tun.clone()))?;
        device::check_collisions(&mut netlink, &device, &capture, &dns)?;
        let mut guard = Guard::new(&capture, &dns, config.tunnel.listen.port());
        guard.set_plaintext(plaintext);
        if let Some(enforced) = Nft::enforced()? {
            guard.inherit(enforced);
        }
        let mut nft = Nft::default();
        nft.load(&guard.text())?;
        device.set_up(&mut netlink, &capture)?;
        let mut routes = Routes::take_over(&mut netlink, &capture, device.index)?;
        let kept = routes.prefixes();
        routes.update(&mut netlink, with_resolver(&dns, kept))?;
        Routes::install_callers(&mut netlink, &capture, device.index)?;
        rules::install(&mut netlink, &capture, &dns)?;
        Ok(Self {
            netlink,
            capture,
            dns,
            routes,
            guard,
            nft,
        })
    }

    /// What is captured now; at first, what an earlier run left.
    pub fn captured(&self) -> BTreeSet<IpNet> {
        self.routes.prefixes()
    }

    /// What of what is captured now is in none of `wanted`, but holds an address that one of our live connections goes to. Their
    /// packets must not leave in plain because the world forgets where they go.
    pub fn lingering(&self, wanted: &BTreeSet<IpNet>, live: &BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
        lingering(&self.captured(), &self.with_settings(wanted), live)
    }

    /// Captures exactly these prefixes, those of the settings, and the resolver's addresses. Only the difference is told to
    /// the kernel.
    pub fn update_prefixes(&mut self, prefixes: &BTreeSet<IpNet>) -> Result<(), KernelError> {
        let wanted = self.with_settings(prefixes);
        self.routes.update(&mut self.netlink, wanted)
    }

    fn with_settings(&self, prefixes: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let own = self.capture.prefixes.iter().copied();
        with_resolver(&self.dns, prefixes.iter().copied().chain(own).collect())
    }

    /// Whether what is enforced upon plaintext is what an earlier run enforced.
    pub fn inherits_guard(&self) -> bool {
        self.guard.inherits()
    }

    /// Enforces these rules upon plaintext connections from the network, for established ones too. One transaction;
    /// nothing is done when nothing changed.
    pub fn update_guard(&mut self, plaintext: &[PlaintextRule]) -> Result<(), KernelError> {
        self.guard.set_plaintext(plaintext);
        self.nft.load(&self.guard.text())
    }

    /// Makes our nftables table again when somebody else removed it; whether it was so.
    pub fn restore_guard(&mut self) -> Result<bool, KernelError> {
        self.nft.restore(&self.guard.text())
    }

    /// Packets that each policy accepted or refused since its rules were loaded.
    pub fn plaintext_counts(&self) -> Result<Vec<guard::Count>, KernelError> {
        self.nft.counts()
    }

    /// Removes everything, rules first, so that traffic goes its plain way from one moment to the next. For a clean stop;
    /// the device itself goes when its descriptor is closed.
    pub fn remove(mut self) -> Result<(), KernelError> {
        cleanup::remove(&mut self.netlink, &self.capture)
    }
}

/// The set with the resolver's addresses, in canonical form, and without what must never be captured.
fn with_resolver(dns: &Dns, prefixes: BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let resolver = [
        IpNet::from(IpAddr::V4(dns.resolver4)),
        IpNet::from(IpAddr::V6(dns.resolver6)),
    ];
    prefixes
        .into_iter()
        .chain(resolver)
        .map(|prefix| prefix.trunc())
        .filter(|prefix| !never(prefix))
        .collect()
}

fn lingering(captured: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>, live: &BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
    let around = |address: IpAddr| {
        let most = IpNet::from(address).max_prefix_len();
        (0..=most).filter_map(move |length| Some(IpNet::new(address, length).ok()?.trunc()))
    };
    let forgotten = |prefix: &IpNet| captured.contains(prefix) && !wanted.contains(prefix);
    live.iter().copied().flat_map(around).filter(forgotten).collect()
}

/// Loopback, multicast and link-local addresses belong to this machine or its wire; a mistaken world must not take them.
fn never(prefix: &IpNet) -> bool {
    let address = prefix.addr();
    match address {
        IpAddr::V4(four) => {
            prefix.prefix_len() > 0 && (four.is_loopback() || four.is_multicast() || four.is_link_local())
        }
        IpAddr::V6(six) => {
            prefix.prefix_len() > 0 && (six.is_loopback() || six.is_multicast() || six.is_unicast_link_local())
        }
    }
}

/// Whether unreachable routes are wanted.
fn fails_closed(capture: &Capture) -> bool {
    capture.on_failure == OnFailure::Closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefixes: &[&str]) -> BTreeSet<IpNet> {
        prefixes.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_resolver_is_always_captured_and_loopback_never() {
        let wanted = with_resolver(
            &Dns::default(),
            set(&["10.1.2.3/8", "127.0.0.0/8", "::1/128", "224.0.0.0/4", "fe80::/64"]),
        );
        assert_eq!(wanted, set(&["10.0.0.0/8", "100.64.100.53/32", "fd6d:6573:68::53/128"]));
    }

    #[test]
    fn what_lives_keeps_its_prefix() {
        let captured = set(&["10.0.0.1/32", "10.0.0.2/32", "10.1.0.0/16", "fd00::/64", "fd00::7/128"]);
        let live = |addresses: &[&str]| addresses.iter().map(|text| text.parse().unwrap()).collect();
        for (wanted, to, kept) in [
            (&["10.0.0.1/32"][..], &["10.0.0.2"][..], &["10.0.0.2/32"][..]),
            (&["10.0.0.2/32"], &["10.0.0.2"], &[]),
            (&[], &["10.1.2.3", "10.1.2.4", "10.9.9.9"], &["10.1.0.0/16"]),
            (&["fd00::7/128"], &["fd00::7"], &["fd00::/64"]),
            (&[], &[], &[]),
        ] {
            assert_eq!(
                lingering(&captured, &set(wanted), &live(to)),
                set(kept),
                "{wanted:?} {to:?}"
            );
        }
    }
}
