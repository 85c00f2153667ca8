//! One UDP flow of an application, from its first datagram to its end. As for TCP: find the way, open it, carry. Where the far
//! side takes no UDP in a tunnel it goes in plain, unless that is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::engine::Refusal;
use mesh_core::h3::code;
use mesh_core::outbound::{Candidate, Hop, Way};
use tokio::net::UdpSocket;

use super::attempts::{Attempts, dialled, note_peer, target, timeout_hint};
use super::{decide, facts, name_remote_policy};
use crate::access;
use crate::config::PlainUdp;
use crate::copy::{self, End, until_one_ends};
use crate::failure::Failure;
use crate::flows::{Facts, Transport};
use crate::metrics;
use crate::shared::Shared;
use crate::socket;
use crate::tunnel::header::fresh_trace;
use crate::tunnel::{ConnectHead, Datagrams, Tunnels};
use crate::udp::Flow;

/// An open way to the far side.
enum Opened {
    Tunnel(Box<Datagrams>),
    Plain(UdpSocket),
}

/// Serves one flow to its end. Never fails: what goes wrong is told to the application, the log and the metrics.
pub async fn serve(shared: Arc<Shared>, tunnels: Tunnels, flow: Flow, seed: u64) {
    let started = Instant::now();
    let (world, key) = (shared.world(), flow.key());
    let (service, candidates) = match decide(&shared, &world, key, seed) {
        Ok(found) => found,
        Err(failure) => {
            let facts = facts(&shared, &world, key, None, None);
            return refuse(&shared, flow, facts, started, failure).await;
        }
    };
    let attempts = Attempts {
        shared: &shared,
        tunnels: &tunnels,
        world: &world,
        service,
        key,
        trace: fresh_trace(),
    };
    let open = async |candidate: &Candidate, facts: &mut Facts| attempts.open_udp(candidate, facts).await;
    let outcome = tokio::select! {
        outcome = attempts.run(&candidates, open) => outcome,
        () = flow.ended() => Err((Failure::Abandoned, Box::new(attempts.facts(candidates.first())))),
    };
    match outcome {
        Ok((opened, facts)) => carry(&shared, flow, opened, facts).await,
        Err((failure, facts)) => refuse(&shared, flow, *facts, started, failure).await,
    }
}

impl Attempts<'_> {
    async fn open_udp(&self, candidate: &Candidate, facts: &mut Facts) -> Result<Opened, Failure> {
        match &candidate.way {
            Way::Plain => self.open_plain(candidate),
            Way::Tunnel { hop, authority } => {
                let (target, head) = (target(hop)?, self.head(authority, None));
                let head = ConnectHead {
                    udp_by: Some(target.peer.to_string()),
                    ..head
                };
                let limit = Duration::from_millis(self.shared.config.outbound.connect_timeout_ms);
                let dialled = tokio::time::timeout(limit, self.tunnels.dial_udp(&target, &head)).await;
                match dialled.map_err(|_| Failure::TunnelTimeout(timeout_hint(target.peer)))?? {
                    Some((end, peer)) => {
                        note_peer(facts, peer, self.world, &self.shared.membership.network);
                        Ok(Opened::Tunnel(Box::new(end)))
                    }
                    None => self.open_unencrypted(candidate, hop, facts),
                }
            }
            Way::Double { .. } => Err(Failure::Unreachable(
                "UDP is not carried through the gateway of another network".into(),
            )),
        }
    }

    fn open_plain(&self, candidate: &Candidate) -> Result<Opened, Failure> {
        let peer = dialled(&candidate.target)?;
        Ok(Opened::Plain(socket::udp_to(peer, self.shared.config.capture.mark)?))
    }

    /// To a member that takes no UDP in a tunnel.
    fn open_unencrypted(&self, candidate: &Candidate, hop: &Hop, facts: &mut Facts) -> Result<Opened, Failure> {
        if self.shared.config.udp.plain == PlainUdp::Refuse {
            return Err(Failure::Unencrypted(hop.address.to_string()));
        }
        facts.transport = Transport::Plain;
        facts.hbone = None;
        metrics::udp_unencrypted();
        self.open_plain(candidate)
    }
}

async fn refuse(shared: &Shared, flow: Flow, facts: Facts, started: Instant, failure: Failure) {
    let registered = shared.flows.register(facts.clone());
    let (forth, back) = (&registered.forth, &registered.back);
    access::closed(registered.id, &facts, forth, back, started.elapsed(), Some(&failure));
    drop(registered);
    if let Some(why) = told(&failure) {
        flow.refuse(why).await;
    }
}

async fn carry(shared: &Shared, flow: Flow, opened: Opened, facts: Facts) {
    let started = Instant::now();
    let mut registered = shared.flows.register(facts.clone());
    access::opened(registered.id, &facts);
    let application = End {
        source: flow.clone(),
        sink: flow.clone(),
    };
    let (forth, back) = (registered.forth.clone(), registered.back.clone());
    let copied = async {
        match opened {
            Opened::Tunnel(far) => until_one_ends(application, *far, &forth, &back).await,
            Opened::Plain(far) => until_one_ends(application, copy::udp::split(far, None), &forth, &back).await,
        }
    };
    let result = tokio::select! {
        biased;
        Ok(reason) = &mut registered.cut => Err(reason),
        result = copied => result,
    };
    let failure = match result {
        Ok(()) => None,
        Err(Failure::PeerReset(code::CONNECT_ERROR)) => Some(Failure::Refused("the far side says so".into())),
        Err(Failure::PolicyChangeRemote(None)) => Some(name_remote_policy(shared, &facts).await),
        Err(failure) => Some(failure.or_revoked(&shared.revoked, &facts)),
    };
    access::closed(
        registered.id,
        &facts,
        &forth,
        &back,
        started.elapsed(),
        failure.as_ref(),
    );
    drop(registered);
    if let Some(why) = failure.as_ref().and_then(told) {
        flow.refuse(why).await;
    }
}

/// What the application hears; nothing when its next datagram may have better luck.
fn told(failure: &Failure) -> Option<Refusal> {
    match failure {
        Failure::Abandoned | Failure::Stopping | Failure::PeerReset(_) => None,
        Failure::TunnelLost(_) | Failure::Revoked | Failure::Replaced { .. } => None,
        Failure::PolicyChange(_) | Failure::PolicyChangeRemote(_) => Some(Refusal::Denied),
        failure => Some(failure.refusal()),
    }
}
