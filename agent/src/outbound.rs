//! One captured TCP connection from its SYN to its end: find the way, dial, answer the application, carry. UDP flows go the same
//! way (`udp`).

mod attempts;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::outbound::{Candidate, Own, Quic, Route, Way, route, route_udp};
use mesh_core::packet::{FlowKey, Protocol};
use mesh_core::policy::{Connection, Decision, authorize};
use mesh_core::world::{Service, World};

use crate::access;
use crate::capture::Flow;
use crate::copy::{End, Sink, Source, both_ways};
use crate::failure::{Failure, denial_policies};
use crate::flows::{Direction, Facts, Registered, Transport};
use crate::shared::Shared;
use crate::tunnel::Tunnels;
use crate::tunnel::header::fresh_trace;
use attempts::{Attempts, Opened};
pub use udp::serve as serve_udp;

/// Serves one flow to its end. Never fails: what goes wrong is told to the application, the log and the metrics.
pub async fn serve(shared: Arc<Shared>, tunnels: Tunnels, flow: Flow, seed: u64) {
    let started = Instant::now();
    let world = shared.world();
    let key = flow.key();
    let (service, candidates) = match decide(&shared, &world, key, seed) {
        Ok(found) => found,
        Err(failure) => {
            let facts = facts(&shared, &world, key, None, None);
            return refuse(&shared, flow, facts, started, &failure);
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
    let open = async |candidate: &Candidate, facts: &mut Facts| attempts.open(candidate, facts).await;
    let outcome = tokio::select! {
        outcome = attempts.run(&candidates, open) => Some(outcome),
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

fn decide(shared: &Shared, world: &World, key: FlowKey, seed: u64) -> Result<Found, Failure> {
    let workload = shared.own_workload(world);
    let own = Own {
        network: &shared.membership.network,
        workload: workload.as_deref(),
        namespace: &shared.membership.namespace,
        settled: shared.is_settled(),
        ports: &shared.own_ports(),
    };
    let route = match key.protocol {
        Protocol::Tcp => route,
        Protocol::Udp => route_udp,
    };
    match route(world, &own, key.destination, seed, shared.config.outbound.attempts) {
        Route::Endpoints { service, candidates } => Ok((service, candidates)),
        Route::Fail(failure) => Err(failure.into()),
    }
}

/// What is known before the far side answered.
fn facts(
    shared: &Shared,
    world: &World,
    key: FlowKey,
    service: Option<&Service>,
    candidate: Option<&Candidate>,
) -> Facts {
    let tunnel = candidate.and_then(|candidate| match &candidate.way {
        Way::Tunnel { hop, .. } | Way::Double { gateway: hop, .. } => hop.address.address(),
        Way::Plain => None,
    });
    let destination = key.destination;
    Facts {
        protocol: key.protocol,
        direction: Direction::Outbound,
        transport: candidate.map_or(Transport::Plain, expected_transport),
        source: key.source,
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
        trace: None,
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
