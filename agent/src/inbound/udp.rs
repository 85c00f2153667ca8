//! One CONNECT-UDP of a peer, once it is judged: its datagrams go to the application from a socket of their own.

use std::time::{Duration, Instant};

use mesh_core::connect::ResponseHead;
use mesh_core::inbound::Delivery;

use super::local::listener;
use super::refuse;
use crate::access;
use crate::copy::{self, until_one_ends};
use crate::failure::Failure;
use crate::flows::{Facts, Registered};
use crate::shared::Shared;
use crate::socket;
use crate::tunnel::Abort;
use crate::tunnel::header::baggage;
use crate::tunnel::listen::Request;

/// Serves it to its end: until either side ends it, nothing passes for a while, or policies change.
pub(super) async fn serve(
    shared: &std::sync::Arc<Shared>,
    request: Request,
    delivery: &Delivery,
    mut registered: Registered,
    facts: Facts,
) {
    let started = Instant::now();
    let socket = match open(shared, delivery) {
        Ok(socket) => socket,
        Err(failure) => {
            drop(registered);
            return refuse(shared, request, facts, started, failure).await;
        }
    };
    access::opened(registered.id, &facts);
    let abort = request.abort_code();
    let own = shared.own_workload(&shared.world());
    let response = ResponseHead {
        status: 200,
        baggage: own.as_deref().map(baggage),
        ..ResponseHead::default()
    };
    let (forth, back) = (registered.forth.clone(), registered.back.clone());
    let idle = Duration::from_millis(shared.config.udp.idle_timeout_ms);
    let carried = async {
        let tunnel = request.accept_udp(response).await?;
        // What ends the flow on our side without a word of its own is that nobody listens; the far side tells its application.
        abort.set(Abort::Connect);
        until_one_ends(tunnel, copy::udp::split(socket, Some(idle)), &forth, &back).await
    };
    tokio::pin!(carried);
    let result = tokio::select! {
        biased;
        Ok(reason) = &mut registered.cut => {
            let why = if let Failure::PolicyChange(_) = reason { Abort::Policy } else { Abort::Cancelled };
            abort.set(why);
            Err(reason)
        }
        result = &mut carried => result,
    };
    let failure = result.err().map(|failure| failure.or_revoked(&shared.revoked, &facts));
    access::closed(
        registered.id,
        &facts,
        &forth,
        &back,
        started.elapsed(),
        failure.as_ref(),
    );
}

fn open(shared: &Shared, delivery: &Delivery) -> Result<tokio::net::UdpSocket, Failure> {
    if delivery.to != delivery.judged || delivery.proxy.is_some() {
        return Err(Failure::Status {
            status: 503,
            reason: Some("an application tunnel takes no UDP".into()),
        });
    }
    let to = listener(shared, delivery.to);
    Ok(socket::udp_to(to, shared.config.capture.mark)?)
}
