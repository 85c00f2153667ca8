//! The stream that registers this machine with istiod, apart from the one that brings the world.
//!
//! istiod's WDS ignores health, and lets a registered machine go only when its stream ends. So this stream subscribes to
//! nothing, says how the machine is, and is closed while the machine is out of rotation; the world goes on over the other one,
//! whose node names no WorkloadGroup. Towards mesh-control one stream does both. Members of an istiod still have one stream for
//! both, too: nothing starts this one yet.

use std::time::Duration;

use anyhow::Context as _;
use mesh_core::health::Health;
use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::{rpc, type_url};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::pause;
use super::stream::broken;
use crate::certs::random;

/// Keeps the machine registered while it is in rotation, until the agent stops. `node` names the WorkloadGroup; `error` says
/// why there is no registration although there should be.
pub async fn run<C, F>(
    node: Node,
    mut health: watch::Receiver<Health>,
    connect: C,
    error: watch::Sender<Option<String>>,
) where
    C: Fn() -> F,
    F: Future<Output = anyhow::Result<Channel>>,
{
    let mut failures = 0;
    while health.wait_for(Health::in_rotation).await.is_ok() {
        let ended = match connect().await {
            Ok(channel) => {
                Registration::new(channel, &error)
                    .hold(&node, &mut health, &mut failures)
                    .await
            }
            Err(failed) => Err(failed),
        };
        let Err(failed) = ended else {
            tracing::info!(target: "mesh_agent::xds", "out of rotation: the registration is given up until the machine is back");
            error.send_replace(None);
            continue;
        };
        let failed = format!("{failed:#}");
        tracing::warn!(target: "mesh_agent::xds", error = failed, failures, "not registered with the control plane");
        error.send_replace(Some(failed));
        tokio::time::sleep(pause(failures, random())).await;
        failures += 1;
    }
}

/// One stream.
struct Registration<'a> {
    channel: Channel,
    error: &'a watch::Sender<Option<String>>,
}

impl<'a> Registration<'a> {
    fn new(channel: Channel, error: &'a watch::Sender<Option<String>>) -> Self {
        Self { channel, error }
    }

    /// Ends well when the machine leaves rotation, and badly when the stream breaks.
    async fn hold(self, node: &Node, health: &mut watch::Receiver<Health>, failures: &mut u32) -> anyhow::Result<()> {
        let now = health.borrow_and_update().clone();
        if !now.in_rotation() {
            return Ok(());
        }
        let (requests, outgoing) = mpsc::channel(32);
        requests.send(first(node)).await.context("queueing the first request")?;
        if let Some(report) = report(&now) {
            requests.send(report).await.context("queueing the first report")?;
        }
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel);
        // A server that has nothing to say need not answer before the machine leaves rotation.
        let call = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
        tokio::pin!(call);
        let mut responses: Option<Streaming<DeltaDiscoveryResponse>> = None;
        loop {
            tokio::select! {
                answer = &mut call, if responses.is_none() => {
                    responses = Some(answer.map_err(|status| broken(&status))?.into_inner());
                }
                response = next(&mut responses) => {
                    let response = response.map_err(|status| broken(&status))?;
                    let response = response.context("the control plane closed the stream")?;
                    *failures = 0;
                    self.error.send_replace(None);
                    requests.send(acknowledge(response)).await.context("the stream is gone")?;
                }
                report = next_report(Some(health)) => {
                    requests.send(report).await.context("the stream is gone")?;
                    if !health.borrow().in_rotation() {
                        break;
                    }
                }
            }
        }
        // Sidecars and gateways heed what was reported at once, ztunnels only the end of the stream: so first the one, then,
        // with the end of our requests, the other.
        *failures = 0;
        drop(requests);
        let end = async {
            if responses.is_none() {
                responses = call.await.ok().map(tonic::Response::into_inner);
            }
            while let Ok(Some(_)) = next(&mut responses).await {}
        };
        let _ = tokio::time::timeout(FAREWELL, end).await;
        Ok(())
    }
}

async fn next(
    responses: &mut Option<Streaming<DeltaDiscoveryResponse>>,
) -> Result<Option<DeltaDiscoveryResponse>, tonic::Status> {
    match responses {
        Some(responses) => responses.message().await,
        None => std::future::pending().await,
    }
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

/// For the last report to arrive.
const FAREWELL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
