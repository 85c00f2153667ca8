//! The stream that registers this machine with istiod, apart from the one that brings the world.
//!
//! istiod's WDS ignores health, and lets a registered machine go only when its stream ends. So this stream subscribes to
//! nothing, says how the machine is, and is closed while the machine is out of rotation; the world goes on over the other one,
//! whose node names no WorkloadGroup. Towards mesh-control one stream does both.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_core::health::Health;
use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::{rpc, type_url};
use tokio::sync::watch;

use super::node::{Purpose, node};
use super::pause;
use super::stream::Stream;
use crate::certs::random;
use crate::shared::Shared;

/// How the registration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The stream is open, and was not refused so far.
    pub open: bool,
    /// Why there is none although there should be.
    pub error: Option<String>,
}

/// Keeps a member of istiod's mesh registered while it is in rotation, until the agent stops. At mesh-control the stream of the
/// world does it.
pub async fn look_after(shared: Arc<Shared>, status: watch::Sender<Status>) {
    if shared.membership.istiod().is_none() {
        return;
    }
    let node = node(&shared.membership, Purpose::Registration);
    let open = async |first| {
        let credentials = shared.credentials().context("there is no certificate")?;
        Stream::open(&shared.config, &shared.membership, &credentials, first).await
    };
    run(node, shared.standing.watch(), open, status).await;
}

/// `node` names the WorkloadGroup; `open` opens a stream with the first requests that it is given.
async fn run<O, F>(node: Node, mut health: watch::Receiver<Health>, open: O, status: watch::Sender<Status>)
where
    O: Fn(Vec<DeltaDiscoveryRequest>) -> F,
    F: Future<Output = anyhow::Result<Stream>>,
{
    let mut failures = 0;
    while health.wait_for(Health::in_rotation).await.is_ok() {
        let now = health.borrow_and_update().clone();
        if !now.in_rotation() {
            continue;
        }
        let first = std::iter::once(first(&node)).chain(report(&now)).collect();
        let ended = match open(first).await {
            Ok(stream) => {
                status.send_modify(|status| status.open = true);
                hold(stream, &mut health, &mut failures, &status).await
            }
            Err(failed) => Err(failed),
        };
        let Err(failed) = ended else {
            tracing::info!(target: "mesh_agent::xds", "out of rotation: the registration is given up until the machine is back");
            status.send_replace(Status::default());
            continue;
        };
        let failed = format!("{failed:#}");
        tracing::warn!(target: "mesh_agent::xds", error = failed, failures, "not registered with the control plane");
        status.send_replace(Status {
            open: false,
            error: Some(failed),
        });
        tokio::time::sleep(pause(failures, random())).await;
        failures += 1;
    }
}

/// Ends well when the machine leaves rotation, and badly when the stream breaks.
async fn hold(
    mut stream: Stream,
    health: &mut watch::Receiver<Health>,
    failures: &mut u32,
    status: &watch::Sender<Status>,
) -> anyhow::Result<()> {
    // A control plane that has nothing to say refuses soon, and else stays silent.
    let unrefused = tokio::time::sleep(UNREFUSED);
    tokio::pin!(unrefused);
    loop {
        tokio::select! {
            () = &mut unrefused, if status.borrow().error.is_some() => {
                status.send_modify(|status| status.error = None);
            }
            response = stream.next() => {
                let response = response?.context("the control plane closed the stream")?;
                *failures = 0;
                status.send_modify(|status| status.error = None);
                stream.send(acknowledge(response)).await?;
            }
            report = next_report(Some(health)) => {
                stream.send(report).await?;
                if !health.borrow().in_rotation() {
                    break;
                }
            }
        }
    }
    // Sidecars and gateways heed what was reported at once, ztunnels only the end of the stream: so first the one, then, with the
    // end of our requests, the other.
    *failures = 0;
    stream.requests = None;
    let end = async { while let Ok(Some(_)) = stream.next().await {} };
    let _ = tokio::time::timeout(FAREWELL, end).await;
    Ok(())
}

/// Both ways at once means: subscribed to nothing (as ztunnel does it on demand).
fn first(node: &Node) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node.clone()),
        type_url: type_url::ADDRESS.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

fn acknowledge(response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url,
        response_nonce: response.nonce,
        ..DeltaDiscoveryRequest::default()
    }
}

/// What is told of this machine's health: without an error it is healthy. Nothing before the first verdict.
pub(super) fn report(health: &Health) -> Option<DeltaDiscoveryRequest> {
    let error_detail = health.report()?.err().map(|reason| rpc::Status {
        code: tonic::Code::Unavailable as i32,
        message: reason.to_owned(),
        details: vec![],
    });
    Some(DeltaDiscoveryRequest {
        type_url: type_url::HEALTH.to_owned(),
        error_detail,
        ..DeltaDiscoveryRequest::default()
    })
}

/// The report of the next change.
pub(super) async fn next_report(health: Option<&mut watch::Receiver<Health>>) -> DeltaDiscoveryRequest {
    let Some(health) = health else {
        return std::future::pending().await;
    };
    while health.changed().await.is_ok() {
        if let Some(report) = report(&health.borrow_and_update()) {
            return report;
        }
    }
    std::future::pending().await
}

/// After this long without a refusal the last error is over.
const UNREFUSED: Duration = Duration::from_secs(5);
/// For the last report to arrive.
const FAREWELL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
