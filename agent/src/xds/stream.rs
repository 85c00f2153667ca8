//! One stream of delta xDS, and what it means when it is refused.

use anyhow::Context as _;
use mesh_core::istio;
use mesh_proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::certs::Credentials;
use crate::channel;
use crate::config::Config;
use crate::join::Membership;

/// An open stream, over a connection of its own. Dropping it closes both.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    membership: Membership,
}

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
        let client = AggregatedDiscoveryServiceClient::new(connected.channel().await?);
        let mut client = client.max_decoding_message_size(MAX_MESSAGE);
        let (requests, outgoing) = mpsc::channel(32);
        for request in first {
            requests.send(request).await.context("queueing the first requests")?;
        }
        let outgoing = membership.request(ReceiverStream::new(outgoing))?;
        let response = client.delta_aggregated_resources(outgoing).await;
        Ok(Self {
            requests,
            responses: response.map_err(|status| refused(&status, membership))?.into_inner(),
            membership: membership.clone(),
        })
    }

    /// The next response; `None` when the control plane closed the stream in peace.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<DeltaDiscoveryResponse>> {
        let response = self.responses.message().await;
        response.map_err(|status| refused(&status, &self.membership))
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
pub(super) fn broken(status: &Status) -> anyhow::Error {
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
