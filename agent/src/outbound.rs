//! One captured TCP connection from its SYN to its end: find the way, dial, answer the application, carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::identity::Identity;
use mesh_core::outbound::{self, Authority, Candidate, Hop, Own, Quic, Route, Way, route};
use mesh_core::policy::{Connection, Decision, authorize};
use mesh_core::world::{Service, World};

use crate::access;
use crate::capture::Flow;
use crate::certs::random;
use crate::copy::tcp::{self, TcpSink, TcpSource};
use crate::copy::{End, Sink, Source, both_ways};
use crate::failure::{Failure, denial_policies};
use crate::flows::{Direction, Facts, Registered, Transport};
use crate::shared::Shared;
use crate::socket;
use crate::tunnel::{self, ConnectHead, Peer, StreamSink, StreamSource, Target, Tunnels, header};

/// Serves one flow to its end. Never fails: what goes wrong is told to the application, the log and the metrics.
pub async fn serve(shared: Arc<Shared>, tunnels: Tunnels, flow: Flow, seed: u64) {
    let started = Instant::now();
    let world = shared.world();
    let client = flow.key().source;
    let destination = flow.key().destination;
    let decided = decide(&shared, &world, destination, seed);
    let (service, candidates) = match decided {
        Ok(found) => found,
        Err(failure) => {
            let facts = facts(&shared, &world, client, destination, None, None);
            return refuse(&shared, flow, facts, started, &failure);
        }
    };

    let mut attempts = Attempts {
        shared: &shared,
        tunnels: &tunnels,
        world: &world,
        service,
        client,
        destination,
    };
    let outcome = tokio::select! {
        outcome = attempts.run(&candidates) => Some(outcome),
        () = flow.abandoned() => None,
    };
    match outcome {
        Some(Ok((opened, facts))) => carry(&shared, flow, opened, facts).await,
        Some(Err((failure, facts))) => refuse(&shared, flow, *facts, started, &failure),
        None => {
            let facts = attempts.facts(candidates.first());
            refuse(&shared, flow, facts, started, &Failure::Abandoned);
        }
    }
}

type Found = (Option<Arc<Service>>, Vec<Candidate>);

fn decide(shared: &Shared, world: &World, destination: SocketAddr, seed: u64) -> Result<Found, Failure> {
    let workload = shared.own_workload(world);
    let own = Own {
        network: &shared.membership.network,
        workload: workload.as_deref(),
        namespace: &shared.membership.namespace,
        settled: shared.is_settled(),
        ports: &shared.own_ports(),
    };
    match route(world, &own, destination, seed, shared.config.outbound.attempts) {
        Route::Endpoints { service, candidates } => Ok((service, candidates)),
        Route::Fail(failure) => Err(failure.into()),
    }
}

/// An open way to the far side.
enum Opened {
    Tunnel(End<StreamSource, StreamSink>),
    Plain(End<TcpSource, TcpSink>),
}

/// Tries candidates in turn; nothing was sent yet, so each may fail without harm.
struct Attempts<'a> {
    shared: &'a Shared,
    tunnels: &'a Tunnels,
    world: &'a World,
    service: Option<Arc<Service>>,
    client: SocketAddr,
    destination: SocketAddr,
}

impl Attempts<'_> {
    async fn run(&mut self, candidates: &[Candidate]) -> Result<(Opened, Facts), (Failure, Box<Facts>)> {
        let mut last = None;
        for candidate in candidates {
            let (candidate, found) = match self.resolve(candidate).await {
                Ok(resolved) => (resolved, Ok(())),
                Err(failure) => (candidate.clone(), Err(failure)),
            };
            let mut facts = self.facts(Some(&candidate));
            let opened = match found {
                Ok(()) => self.open(&candidate, &mut facts).await,
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

    fn facts(&self, candidate: Option<&Candidate>) -> Facts {
        let service = self.service.as_deref();
        facts(
            self.shared,
            self.world,
            self.client,
            self.destination,
            service,
            candidate,
        )
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
        let same = |address: &SocketAddr| address.is_ipv4() == self.destination.is_ipv4();
        if found.iter().any(same) {
            found.retain(same);
        }
        let at = usize::try_from(random()).unwrap_or_default() % found.len().max(1);
        let address = found
            .get(at)
            .ok_or_else(|| Failure::Unreachable(format!("{host} has no address in DNS")))?;
        Ok(candidate.clone().resolved(address.ip()))
    }

    async fn open(&self, candidate: &Candidate, facts: &mut Facts) -> Result<Opened, Failure> {
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

    fn head(&self, authority: &Authority, forwarded_network: Option<String>) -> ConnectHead {
        let own = self.shared.own_workload(self.world);
        let host = self.service.as_ref().map(|service| &*service.key.hostname);
        ConnectHead {
            authority: authority.to_string(),
            baggage: own.as_deref().map(header::baggage),
            forwarded: Some(header::forwarded(self.client, host)),
            traceparent: Some(header::fresh_traceparent()),
            forwarded_network,
        }
    }
}

fn target(hop: &Hop) -> Result<Target, Failure> {
    Ok(Target {
        peer: dialled(&hop.address)?,
        identities: hop.identities.clone(),
        quic: hop.quic,
    })
}

fn dialled(target: &outbound::Target) -> Result<SocketAddr, Failure> {
    let unresolved = || Failure::Unreachable(format!("the name of {target} was not resolved"));
    target.address().ok_or_else(unresolved)
}

fn timeout_hint(peer: SocketAddr) -> String {
    format!(
        "{peer} did not answer in time; are TCP and UDP port {} open to it?",
        peer.port()
    )
}

fn note_peer(facts: &mut Facts, peer: Peer, world: &World, network: &str) {
    let mut holders = world.workloads_at(network, peer.address.ip());
    facts.endpoint = holders.find(|one| world.names(one, &peer.identity)).cloned();
    facts.transport = peer.transport;
    facts.hbone = Some(peer.address);
    facts.destination_identity = Some(peer.identity);
    facts.peer_certificate = Some(peer.certificate);
}

/// What is known before the far side answered.
fn facts(
    shared: &Shared,
    world: &World,
    source: SocketAddr,
    destination: SocketAddr,
    service: Option<&Service>,
    candidate: Option<&Candidate>,
) -> Facts {
    let tunnel = candidate.and_then(|candidate| match &candidate.way {
        Way::Tunnel { hop, .. } | Way::Double { gateway: hop, .. } => hop.address.address(),
        Way::Plain => None,
    });
    Facts {
        direction: Direction::Outbound,
        transport: candidate.map_or(Transport::Plain, expected_transport),
        source,
        destination: candidate
            .and_then(|candidate| candidate.target.address())
            .unwrap_or(destination),
        original: (service.is_some() || candidate.is_none()).then_some(destination),
        hbone: tunnel,
        service: service.map(|service| service.key.clone()),
        service_name: service.map(|service| service.name.clone()),
        source_workload: shared.own_workload(world),
        destination_workload: candidate.and_then(|candidate| candidate.workload.clone()),
        source_identity: shared.credentials().map(|credentials| credentials.identity.clone()),
        destination_identity: None,
        endpoint: None,
        peer_certificate: None,
    }
}

/// Before a peer answered; after that the tunnel says.
fn expected_transport(candidate: &Candidate) -> Transport {
    match &candidate.way {
        Way::Plain => Transport::Plain,
        Way::Double { .. } => Transport::DoubleHbone,
        Way::Tunnel { hop, .. } if hop.quic == Quic::Marked => Transport::Hbone3,
        Way::Tunnel { .. } => Transport::Hbone,
    }
}

/// The application sees why, and so do the log and the metrics.
fn refuse(shared: &Shared, flow: Flow, facts: Facts, started: Instant, failure: &Failure) {
    flow.refuse(failure.refusal());
    let registered = shared.flows.register(facts.clone());
    let (forth, back) = (&registered.forth, &registered.back);
    access::closed(registered.id, &facts, forth, back, started.elapsed(), Some(failure));
}

async fn carry(shared: &Arc<Shared>, flow: Flow, opened: Opened, facts: Facts) {
    let started = Instant::now();
    let mut registered = shared.flows.register(facts.clone());
    access::opened(registered.id, &facts);
    let result = match (flow.accept(), opened) {
        (Ok(application), Opened::Tunnel(far)) => copy(&mut registered, application, far).await,
        (Ok(application), Opened::Plain(far)) => copy(&mut registered, application, far).await,
        (Err(failure), _) => Err(failure),
    };
    let failure = match result {
        Ok(()) => None,
        Err(Failure::PolicyChangeRemote(None)) => Some(name_remote_policy(shared, &facts).await),
        Err(failure) => Some(failure.or_revoked(&shared.revoked, &facts)),
    };
    let (forth, back) = (&registered.forth, &registered.back);
    access::closed(registered.id, &facts, forth, back, started.elapsed(), failure.as_ref());
}

async fn copy<AR: Source, AW: Sink, BR: Source, BW: Sink>(
    registered: &mut Registered,
    application: End<AR, AW>,
    far: End<BR, BW>,
) -> Result<(), Failure> {
    let (forth, back) = (registered.forth.clone(), registered.back.clone());
    tokio::select! {
        biased;
        Ok(reason) = &mut registered.cut => Err(reason),
        result = both_ways(application, far, &forth, &back) => result,
    }
}

/// After its 200 the far side can only reset with a code; which policy it was, our own world tells, a moment later perhaps.
async fn name_remote_policy(shared: &Shared, facts: &Facts) -> Failure {
    let mut world = shared.world.clone();
    let named = async {
        loop {
            let now = world.borrow_and_update().clone();
            if let Some(policies) = denied_by(shared, facts, &now) {
                return policies;
            }
            if world.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    Failure::PolicyChangeRemote(tokio::time::timeout(NAMING, named).await.ok())
}

fn denied_by(shared: &Shared, facts: &Facts, world: &World) -> Option<String> {
    let workload = world.workload(&facts.destination_workload.as_ref()?.uid)?;
    let connection = Connection {
        identity: facts.source_identity.clone(),
        source: SocketAddr::new(shared.membership.address, 0),
        destination: facts.destination,
    };
    match authorize(world, workload, &connection).decision {
        Decision::Denied(denial) => Some(denial_policies(&denial)),
        Decision::Allowed { .. } => None,
    }
}

/// How long our world may take to hear of a policy that the far side acted on already.
const NAMING: Duration = Duration::from_secs(1);
