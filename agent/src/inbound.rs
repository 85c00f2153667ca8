//! One CONNECT of a peer: who is it, is the target ours, may it, deliver to the application; and the re-check of what lives
//! when policies change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::baggage::Baggage;
use mesh_core::connect::ResponseHead;
use mesh_core::inbound::{Asked, Delivery, deliver, is_remote};
use mesh_core::packet::Protocol;
use mesh_core::policy::{Connection, Decision, Denial, Verdict, authorize};
use mesh_core::trace::TraceParent;
use mesh_core::world::{Workload, World};

use crate::access;
use crate::capture::Opener;
use crate::copy::{End, both_ways};
use crate::failure::{Failure, denial_policies};
use crate::flows::{Direction, Facts, Registered};
use crate::shared::Shared;
use crate::tunnel::Abort;
use crate::tunnel::header::{baggage, fresh_trace};
use crate::tunnel::listen::Request;

mod local;
mod udp;
pub mod ways;

use local::{LocalSink, LocalSource, Wanted};

/// Serves one request to its end. Without an opener every application sees our own address.
pub async fn serve(shared: Arc<Shared>, opener: Option<Opener>, request: Request) {
    let started = Instant::now();
    let world = shared.world();
    let own = shared.own_workload(&world);
    let mut facts = facts(&shared, &world, &request, own.clone());
    let delivery = match find_target(&shared, &world, own.as_deref(), &request, &facts) {
        Ok(delivery) => delivery,
        Err(failure) => return refuse(&shared, request, facts, started, failure).await,
    };
    facts.destination = delivery.judged;
    facts.service.clone_from(&delivery.service);
    let service = facts.service.as_ref().and_then(|key| world.service(key));
    facts.service_name = service.map(|service| service.name.clone());
    // Registered first and judged after, so that no change of policy falls between.
    let mut registered = shared.flows.register(facts.clone());
    if let Err(failure) = judge(&shared, &facts) {
        drop(registered);
        return refuse(&shared, request, facts, started, failure).await;
    }
    if request.is_udp() {
        return udp::serve(&shared, request, &delivery, registered, facts).await;
    }
    let wanted = Wanted {
        world: &world,
        own: own.as_deref(),
        delivery: &delivery,
        facts: &facts,
        forwarded_network: request.head.as_ref().and_then(|head| head.forwarded_network.as_deref()),
    };
    let application = match local::connect(&shared, opener.as_ref(), wanted).await {
        Ok(application) => application,
        Err(error) => {
            drop(registered);
            return refuse(&shared, request, facts, started, error.into()).await;
        }
    };
    access::opened(registered.id, &facts);
    let failure = carry(own.as_deref(), request, application, &mut registered).await.err();
    let failure = failure.map(|failure| failure.or_revoked(&shared.revoked, &facts));
    let (forth, back) = (&registered.forth, &registered.back);
    access::closed(registered.id, &facts, forth, back, started.elapsed(), failure.as_ref());
}

async fn carry(
    own: Option<&Workload>,
    request: Request,
    application: End<LocalSource, LocalSink>,
    registered: &mut Registered,
) -> Result<(), Failure> {
    let abort = request.abort_code();
    let response = ResponseHead {
        status: 200,
        baggage: own.map(baggage),
        ..ResponseHead::default()
    };
    let tunnel = request.accept(response).await?;
    let (forth, back) = (registered.forth.clone(), registered.back.clone());
    // What ends the flow on our side without a word of its own is the application.
    abort.set(Abort::Connect);
    let copy = both_ways(tunnel, application, &forth, &back);
    tokio::pin!(copy);
    tokio::select! {
        biased;
        Ok(reason) = &mut registered.cut => {
            if let Failure::PolicyChange(_) = reason {
                abort.set(Abort::Policy);
            }
            Err(reason)
        }
        result = &mut copy => result,
    }
}

fn find_target(
    shared: &Shared,
    world: &World,
    own: Option<&Workload>,
    request: &Request,
    facts: &Facts,
) -> Result<Delivery, Failure> {
    let status = |status, reason: &str| Failure::Status {
        status,
        reason: Some(reason.into()),
    };
    let own = own.ok_or_else(|| status(503, "unknown-workload"))?;
    let head = request.head.as_ref().ok_or_else(|| status(400, "not a CONNECT"))?;
    let asked = Asked {
        authority: &head.authority,
        forwarded: head.forwarded.as_deref(),
        local: facts.destination.ip(),
    };
    Ok(deliver(world, own, &asked, &shared.own_ports())?)
}

fn judge(shared: &Shared, facts: &Facts) -> Result<(), Failure> {
    let world = shared.world();
    let Some(own) = shared.own_workload(&world) else {
        return Err(Failure::Status {
            status: 503,
            reason: Some("unknown-workload".into()),
        });
    };
    let Verdict { decision, dry_run } = authorize(&world, &own, &connection(facts));
    for (policy, action) in dry_run {
        access::dry_run(&policy, action, facts);
    }
    match decision {
        Decision::Allowed { .. } => Ok(()),
        Decision::Denied(denial) => Err(Failure::Denied(denial)),
    }
}

fn connection(facts: &Facts) -> Connection {
    Connection {
        identity: facts.source_identity.clone(),
        source: facts.source,
        destination: facts.destination,
    }
}

fn facts(shared: &Shared, world: &World, request: &Request, own: Option<Arc<Workload>>) -> Facts {
    let peer = &request.peer;
    let recorded = shared.own_addresses(world).first().copied();
    let local = peer.reached.or(recorded).unwrap_or(shared.membership.address);
    Facts {
        protocol: if request.is_udp() { Protocol::Udp } else { Protocol::Tcp },
        direction: Direction::Inbound,
        transport: peer.transport,
        source: peer.address,
        destination: SocketAddr::new(local, 0),
        original: None,
        hbone: Some(SocketAddr::new(local, shared.config.tunnel.listen.port())),
        service: None,
        service_name: None,
        source_workload: caller(shared, world, request),
        destination_workload: own,
        source_identity: Some(peer.identity.clone()),
        destination_identity: shared.credentials().map(|credentials| credentials.identity.clone()),
        endpoint: None,
        peer_certificate: Some(peer.certificate.clone()),
        trace: Some(trace(request)),
    }
}

/// The caller's id, so that its log line and ours are found by the same; a fresh one where it sent none that is valid.
fn trace(request: &Request) -> TraceParent {
    let header = request.head.as_ref().and_then(|head| head.traceparent.as_deref());
    header
        .and_then(|header| header.parse().ok())
        .unwrap_or_else(fresh_trace)
}

/// The workload that calls, for telemetry: the one at its address; of another network, where addresses mean something else,
/// what it says of itself.
fn caller(shared: &Shared, world: &World, request: &Request) -> Option<Arc<Workload>> {
    let (head, network) = (request.head.as_ref(), &shared.membership.network);
    if !is_remote(head.and_then(|head| head.forwarded_network.as_deref()), network) {
        return world.workload_at(network, request.peer.address.ip()).cloned();
    }
    let said = Baggage::parse(head.and_then(|head| head.baggage.as_deref()).unwrap_or_default());
    Some(Arc::new(Workload::described(&said, request.peer.identity.clone())))
}

/// Tells the peer, the log and the metrics.
async fn refuse(shared: &Arc<Shared>, request: Request, facts: Facts, started: Instant, failure: Failure) {
    let registered = shared.flows.register(facts.clone());
    let (forth, back) = (&registered.forth, &registered.back);
    access::closed(registered.id, &facts, forth, back, started.elapsed(), Some(&failure));
    let _ = tokio::time::timeout(ANSWER, request.reject(answer(&failure))).await;
}

fn answer(failure: &Failure) -> ResponseHead {
    let unreachable = |reason: &str| ResponseHead {
        status: 503,
        reason: Some(reason.into()),
        ..ResponseHead::default()
    };
    match failure {
        Failure::Denied(Denial::NotSynced) => unreachable("not-synced"),
        Failure::Denied(denial) => ResponseHead {
            status: 401,
            policy: Some(denial_policies(denial)),
            ..ResponseHead::default()
        },
        Failure::Target(refusal) => ResponseHead {
            status: refusal.status(),
            ..ResponseHead::default()
        },
        Failure::Status { status, reason } => ResponseHead {
            status: *status,
            reason: reason.clone(),
            ..ResponseHead::default()
        },
        Failure::Refused(_) | Failure::ApplicationReset => unreachable("refused"),
        Failure::Timeout(_) => unreachable("timeout"),
        _ => unreachable("unreachable"),
    }
}

/// Judges live flows again whenever the world or a CRL changes, and cuts what may not be any more.
pub async fn recheck(shared: Arc<Shared>) {
    let mut revoked = shared.revoked.clone();
    while revoked.changed().await.is_ok() {
        let now = shared.world();
        let own = shared.own_workload(&now);
        let cut = shared.flows.cut_where(|facts| {
            let peer = facts.peer_certificate.as_ref();
            if peer.is_some_and(|peer| shared.revoked.by(peer).is_some()) {
                return Some(Failure::Revoked);
            }
            match facts.direction {
                Direction::Inbound => forbidden(&now, own.as_deref(), facts),
                Direction::Outbound => replaced(&now, facts),
            }
        });
        if cut > 0 {
            tracing::info!(target: "mesh_agent::inbound", cut, "live flows were cut: policy, attachment or revocation changed");
        }
    }
}

fn forbidden(world: &World, own: Option<&Workload>, facts: &Facts) -> Option<Failure> {
    // Without a record of our own for a moment (the control plane restarts) what lives goes on.
    match authorize(world, own?, &connection(facts)).decision {
        Decision::Denied(denial) => Some(Failure::PolicyChange(denial)),
        Decision::Allowed { .. } => None,
    }
}

/// The peer was right when it was dialled; it is not when its address is somebody else's by now. An address that is nobody's
/// any more may be back in a moment, and proves nothing.
fn replaced(world: &World, facts: &Facts) -> Option<Failure> {
    let (endpoint, peer) = (facts.endpoint.as_ref()?, facts.hbone?);
    let then = facts.destination_identity.as_ref()?;
    let holders = || world.workloads_at(&endpoint.network, peer.ip());
    let now = holders().next()?;
    (!holders().any(|one| world.names(one, then))).then(|| Failure::Replaced {
        peer,
        now: now.identity.to_string(),
        then: then.to_string(),
    })
}

/// Time to answer a refused request.
const ANSWER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
