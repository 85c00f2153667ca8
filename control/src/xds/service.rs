//! Delta ADS as a gRPC service: who may open a stream, and the task that feeds it.

use std::sync::Arc;

use mesh_proto::envoy::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::type_url;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::session::{Acknowledged, Session};
use super::snapshot::{Snapshot, XdsType};
use super::{Node, session};
use crate::control::Control;
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::registry::Live;
use crate::store::Agent;

/// The service.
#[derive(Clone)]
pub struct Ads {
    control: Arc<Control>,
}

impl Ads {
    /// The service of this control plane.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }
}

type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        // Before the stream exists: who is it? Its node comes with the first message.
        let agent = self.control.caller(&peer, request.metadata()).await?;
        let (sender, receiver) = mpsc::channel(2);
        let control = self.control.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            if let Err(refusal) = serve(&control, agent, &peer, &mut requests, &sender).await {
                tracing::info!(address = ?peer.address, word = refusal.word, %refusal, "xDS stream refused");
                let _ = sender.send(Err(refusal.into())).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Sender = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// Feeds one stream until it ends. The registration ends with it.
async fn serve(
    control: &Arc<Control>,
    agent: Agent,
    peer: &Peer,
    requests: &mut Streaming<DeltaDiscoveryRequest>,
    sender: &Sender,
) -> Result<(), Refusal> {
    let first = tokio::select! {
        first = requests.message() => first,
        () = sender.closed() => return Ok(()),
    };
    let Ok(Some(first)) = first else { return Ok(()) };
    let node = Node::read(first.node.as_ref())?;
    let (mut live, entry) = control.connect(agent, peer, &node).await?;
    let session = Session::of(&node, control.own_uids(&node, entry));
    let result = exchange(control, &mut live, session, first, requests, sender).await;
    control.disconnect(live).await;
    result
}

async fn exchange(
    control: &Arc<Control>,
    live: &mut Live,
    mut session: Session,
    first: DeltaDiscoveryRequest,
    requests: &mut Streaming<DeltaDiscoveryRequest>,
    sender: &Sender,
) -> Result<(), Refusal> {
    let mut snapshots = control.snapshots();
    take(control, live, &mut session, &first).await?;
    loop {
        if !push(&mut session, &mut snapshots, sender, live).await? {
            return Ok(());
        }
        tokio::select! {
            message = requests.message() => match message {
                Ok(Some(request)) => take(control, live, &mut session, &request).await?,
                Ok(None) | Err(_) => return Ok(()),
            },
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            refusal = live.ended() => return Err(refusal),
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Sends what is new; false when the stream is gone.
async fn push(
    session: &mut Session,
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    sender: &Sender,
    live: &mut Live,
) -> Result<bool, Refusal> {
    let snapshot = snapshots.borrow_and_update().clone();
    for response in session.poll(&snapshot) {
        tokio::select! {
            sent = sender.send(Ok(response)) => if sent.is_err() { return Ok(false) },
            refusal = live.ended() => return Err(refusal),
        }
    }
    Ok(true)
}

async fn take(
    control: &Arc<Control>,
    live: &Live,
    session: &mut session::Session,
    request: &DeltaDiscoveryRequest,
) -> Result<(), Refusal> {
    if request.type_url == type_url::HEALTH {
        return control
            .reported_health(live.agent(), request.error_detail.as_ref())
            .await;
    }
    let acknowledged = session
        .request(request)
        .map_err(|message| Refusal::new(Code::ResourceExhausted, "too-many-names", message))?;
    match acknowledged {
        Some(Acknowledged::Yes(XdsType::TrustBundle, anchors)) => {
            control.acknowledged_anchors(live.agent(), &anchors).await
        }
        Some(Acknowledged::No(xds_type, reason)) => {
            tracing::warn!(
                agent = live.agent(),
                r#type = xds_type.url(),
                reason,
                "the agent rejected an update"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}
