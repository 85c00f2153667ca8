//! The candidates of one flow, tried in turn, until one of them is open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_core::outbound::{self, Authority, Candidate, Hop, Way};
use mesh_core::packet::FlowKey;
use mesh_core::trace::TraceParent;
use mesh_core::world::{Service, World};

use super::facts;
use crate::certs::random;
use crate::copy::End;
use crate::copy::tcp::{self, TcpSink, TcpSource};
use crate::failure::Failure;
use crate::flows::{Facts, Transport};
use crate::shared::Shared;
use crate::socket;
use crate::tunnel::{self, ConnectHead, Peer, StreamSink, StreamSource, Target, Tunnels, header};

/// An open way to the far side.
pub(super) enum Opened {
    Tunnel(End<StreamSource, StreamSink>),
    Plain(End<TcpSource, TcpSink>),
}

/// Tries candidates in turn; nothing was sent yet, so each may fail without harm.
pub(super) struct Attempts<'a> {
    pub(super) shared: &'a Shared,
    pub(super) tunnels: &'a Tunnels,
    pub(super) world: &'a World,
    pub(super) service: Option<Arc<Service>>,
    pub(super) key: FlowKey,
    /// Of all CONNECTs of this flow.
    pub(super) trace: TraceParent,
}

impl Attempts<'_> {
    pub(super) async fn run<T>(
        &self,
        candidates: &[Candidate],
        open: impl AsyncFn(&Candidate, &mut Facts) -> Result<T, Failure>,
    ) -> Result<(T, Facts), (Failure, Box<Facts>)> {
        let mut last = None;
        for candidate in candidates {
            let (candidate, found) = match self.resolve(candidate).await {
                Ok(resolved) => (resolved, Ok(())),
                Err(failure) => (candidate.clone(), Err(failure)),
            };
            let mut facts = self.facts(Some(&candidate));
            let opened = match found {
                Ok(()) => open(&candidate, &mut facts).await,
                Err(failure) => Err(failure),
            };
            match opened {
                Ok(opened) => return Ok((opened, facts)),
                Err(failure) => {
                    tracing::debug!(target: "mesh_agent::outbound", %failure, to = %candidate.target, "endpoint failed");
                    let retry = failure.is_retryable();
                    last = Some((failure, Box::new(facts)));
                    if !retry {
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let none = Failure::Unreachable("no endpoint to try".into());
            (none, Box::new(self.facts(None)))
        }))
    }

    pub(super) fn facts(&self, candidate: Option<&Candidate>) -> Facts {
        let facts = facts(self.shared, self.world, self.key, self.service.as_deref(), candidate);
        Facts {
            trace: (facts.transport != Transport::Plain).then_some(self.trace),
            ..facts
        }
    }

    /// With an address in the place of a name, where it has one: one of our own family first, any of those.
    async fn resolve(&self, candidate: &Candidate) -> Result<Candidate, Failure> {
        let Some(host) = candidate.unresolved() else {
            return Ok(candidate.clone());
        };
        let limit = Duration::from_millis(self.shared.config.outbound.connect_timeout_ms);
        let lookup = self.shared.config.lookup();
        // The port is the candidate's own; the look-up only wants one.
        let found = tokio::time::timeout(limit, lookup.resolve(&format!("{host}:0"))).await;
        let found = found.map_err(|_| Failure::Timeout(format!("no DNS server answered in time for {host}")))?;
        let mut found = found.map_err(|error| Failure::Unreachable(format!("{error:#}")))?;
        let same = |address: &SocketAddr| address.is_ipv4() == self.key.destination.is_ipv4();
        if found.iter().any(same) {
            found.retain(same);
        }
        let at = usize::try_from(random()).unwrap_or_default() % found.len().max(1);
        let address = found
            .get(at)
            .ok_or_else(|| Failure::Unreachable(format!("{host} has no address in DNS")))?;
        Ok(candidate.clone().resolved(address.ip()))
    }

    /// For a TCP connection.
    pub(super) async fn open(&self, candidate: &Candidate, facts: &mut Facts) -> Result<Opened, Failure> {
        match &candidate.way {
            Way::Plain => {
                let limit = Duration::from_millis(self.shared.config.outbound.connect_timeout_ms);
                let peer = dialled(&candidate.target)?;
                let stream = socket::connect(peer, self.shared.config.capture.mark, limit).await?;
                Ok(Opened::Plain(tcp::split(stream)))
            }
            Way::Tunnel { hop, authority } => {
                let target = target(hop)?;
                let head = self.head(authority, None);
                self.tunnel(target.peer, self.tunnels.dial(&target, &head), facts).await
            }
            Way::Double {
                gateway,
                authority,
                identities,
            } => {
                let gateway = target(gateway)?;
                self.tunnel(gateway.peer, self.through(&gateway, authority, identities), facts)
                    .await
            }
        }
    }

    /// What `dial` opens at `peer`, in time.
    async fn tunnel(
        &self,
        peer: SocketAddr,
        dial: impl Future<Output = Result<tunnel::Opened, Failure>>,
        facts: &mut Facts,
    ) -> Result<Opened, Failure> {
        let limit = Duration::from_millis(self.shared.config.outbound.connect_timeout_ms);
        let dialled = tokio::time::timeout(limit, dial).await;
        let (end, peer) = dialled.map_err(|_| Failure::TunnelTimeout(timeout_hint(peer)))??;
        note_peer(facts, peer, self.world, &self.shared.membership.network);
        Ok(Opened::Tunnel(end))
    }

    /// Through the gateway of another network, to one of `identities` that it picks.
    async fn through(
        &self,
        gateway: &Target,
        authority: &Authority,
        identities: &[Identity],
    ) -> Result<tunnel::Opened, Failure> {
        let outer = self.tunnels.dial(gateway, &self.head(authority, None)).await?;
        let inner = Target {
            identities: identities.to_vec(),
            ..gateway.clone()
        };
        let network = self.shared.membership.network.clone();
        let head = self.head(authority, Some(network));
        self.tunnels.dial_inside(outer, &inner, &head).await
    }

    pub(super) fn head(&self, authority: &Authority, forwarded_network: Option<String>) -> ConnectHead {
        let own = self.shared.own_workload(self.world);
        let host = self.service.as_ref().map(|service| &*service.key.hostname);
        let capture = &self.shared.config.capture;
        let tun = [capture.address4.into(), capture.address6.into()];
        let client = header::known_as(self.key.source, tun, &self.shared.own_addresses(self.world));
        ConnectHead {
            authority: authority.to_string(),
            baggage: own.as_deref().map(header::baggage),
            forwarded: Some(header::forwarded(client, host)),
            traceparent: Some(self.trace.to_string()),
            forwarded_network,
            udp_by: None,
        }
    }
}

pub(super) fn target(hop: &Hop) -> Result<Target, Failure> {
    Ok(Target {
        peer: dialled(&hop.address)?,
        identities: hop.identities.clone(),
        quic: hop.quic,
    })
}

pub(super) fn dialled(target: &outbound::Target) -> Result<SocketAddr, Failure> {
    let unresolved = || Failure::Unreachable(format!("the name of {target} was not resolved"));
    target.address().ok_or_else(unresolved)
}

pub(super) fn timeout_hint(peer: SocketAddr) -> String {
    format!(
        "{peer} did not answer in time; are TCP and UDP port {} open to it?",
        peer.port()
    )
}

pub(super) fn note_peer(facts: &mut Facts, peer: Peer, world: &World, network: &str) {
    let mut holders = world.workloads_at(network, peer.address.ip());
    facts.endpoint = holders.find(|one| world.names(one, &peer.identity)).cloned();
    facts.transport = peer.transport;
    facts.hbone = Some(peer.address);
    facts.destination_identity = Some(peer.identity);
    facts.peer_certificate = Some(peer.certificate);
}
