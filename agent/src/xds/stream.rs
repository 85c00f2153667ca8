//! One stream of delta xDS, and what it means when it is refused.

use std::fmt;
use std::pin::Pin;

use anyhow::Context as _;
use futures_util::{TryFutureExt as _, TryStreamExt as _};
use mesh_core::istio;
use mesh_proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::certs::Credentials;
use crate::channel;
use crate::config::Config;
use crate::join::Membership;

/// An open stream, over a connection of its own. Dropping it closes both.
pub(super) struct Stream {
    /// Dropping it ends our side in peace.
    pub(super) requests: Option<mpsc::Sender<DeltaDiscoveryRequest>>,
    responses: Responses,
    membership: Membership,
}

/// A control plane that has nothing to say takes the call only with its first response; that is waited for here, too.
type Responses = Pin<Box<dyn futures_util::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

impl Stream {
    /// Connects, and sends the first requests, each of which carries the node.
    pub(super) async fn open(
        config: &Config,
        membership: &Membership,
        credentials: &Credentials,
        first: Vec<DeltaDiscoveryRequest>,
    ) -> anyhow::Result<Self> {
        let server = membership.server(&credentials.root_pems)?;
        let addresses = &membership.control_addresses;
        let connected = channel::connect(addresses, &server, Some(credentials), &config.lookup()).await?;
        Self::over(connected.channel().await?, membership, first).await
    }

    /// Over this connection.
    pub(super) async fn over(
        channel: Channel,
        membership: &Membership,
        first: Vec<DeltaDiscoveryRequest>,
    ) -> anyhow::Result<Self> {
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (requests, outgoing) = mpsc::channel(32);
        for request in first {
            requests.send(request).await.context("queueing the first requests")?;
        }
        let outgoing = membership.request(ReceiverStream::new(outgoing))?;
        let call = async move { client.delta_aggregated_resources(outgoing).await };
        Ok(Self {
            requests: Some(requests),
            responses: Box::pin(call.map_ok(Response::into_inner).try_flatten_stream()),
            membership: membership.clone(),
        })
    }

    /// Sends another request.
    pub(super) async fn send(&mut self, request: DeltaDiscoveryRequest) -> anyhow::Result<()> {
        let requests = self.requests.as_ref().context("our side of the stream is closed")?;
        requests.send(request).await.context("the stream is gone")
    }

    /// The next response; `None` when the control plane closed the stream in peace. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<DeltaDiscoveryResponse>> {
        let response = self.responses.try_next().await;
        response.map_err(|status| refused(&status, &self.membership))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

fn refused(status: &Status, membership: &Membership) -> anyhow::Error {
    let code = status
        .metadata()
        .get("x-mesh-error")
        .and_then(|code| code.to_str().ok());
    match code {
        Some("clone") => anyhow::anyhow!(
            "refused as a clone: another machine is connected with this machine's identity ({}); \
             run `mesh-agent leave` on the copy and join it with a token of its own",
            status.message()
        ),
        Some("host-key-revoked" | "certificate-revoked") => {
            anyhow::anyhow!("this machine was revoked: {}", status.message())
        }
        _ if membership.istiod().is_some() => refused_by_istiod(status, membership),
        _ => broken(status),
    }
}

/// What its codes mean (istio: pilot/pkg/xds, pilot/pkg/autoregistration).
fn refused_by_istiod(status: &Status, membership: &Membership) -> anyhow::Error {
    let Membership {
        namespace,
        service_account,
        workload_group: group,
        cluster_id,
        ..
    } = membership;
    let message = status.message();
    match status.code() {
        Code::FailedPrecondition => anyhow::anyhow!(
            "istiod cannot register this machine ({message}): is there still a WorkloadGroup {namespace}/{group}?"
        ),
        Code::Unauthenticated | Code::PermissionDenied => anyhow::anyhow!(
            "istiod does not accept this machine as {namespace}/{service_account} ({message}): does the WorkloadGroup's \
             serviceAccount differ, or does istiod no longer know the CA of the certificate? If so, make a fresh bundle: {}",
            istio::fresh_bundle(namespace, group, cluster_id)
        ),
        _ => broken(status),
    }
}

/// The cause of a broken connection, such as a TLS alert, is further down.
fn broken(status: &Status) -> anyhow::Error {
    let mut causes = vec![format!("{}: {}", status.code(), status.message())];
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    let text = causes.join(": ");
    if text.contains("CertificateRevoked") {
        return anyhow::anyhow!("this machine was revoked; join again with a new token ({text})");
    }
    anyhow::anyhow!("{text}")
}

/// As ztunnel allows.
const MAX_MESSAGE: usize = 200 << 20;
