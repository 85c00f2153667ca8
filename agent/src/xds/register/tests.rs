//! Against a control plane that records what it is told.

use mesh_core::health::Verdict;
use mesh_proto::envoy::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::join::{ControlPlane, Membership};

/// What the control plane saw on its streams, which are numbered from 1.
#[derive(Debug, PartialEq)]
enum Seen {
    First(u32, Box<DeltaDiscoveryRequest>),
    /// A report, with its reason.
    Health(u32, Option<String>),
    Acknowledged(u32),
    Ended(u32),
}

/// How it answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// An empty response to the first request.
    Answers,
    /// Nothing, not even that it takes the call.
    Silent,
    /// It refuses the first stream, and answers the next.
    Refuses,
}

struct Control {
    manner: Manner,
    streams: std::sync::atomic::AtomicU32,
    seen: mpsc::UnboundedSender<Seen>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Control {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let number = 1 + self.streams.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if self.manner == Manner::Refuses && number == 1 {
            return Err(Status::failed_precondition("there is no WorkloadGroup shop/web"));
        }
        let (responses, outgoing) = mpsc::channel(8);
        let read = read(number, request.into_inner(), responses, self.seen.clone());
        if self.manner == Manner::Silent {
            read.await;
        } else {
            tokio::spawn(read);
        }
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

async fn read(
    number: u32,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    seen: mpsc::UnboundedSender<Seen>,
) {
    let mut is_first = true;
    while let Ok(Some(request)) = requests.message().await {
        let what = if std::mem::take(&mut is_first) {
            let response = DeltaDiscoveryResponse {
                type_url: request.type_url.clone(),
                nonce: "1".to_owned(),
                ..DeltaDiscoveryResponse::default()
            };
            let _ = responses.send(Ok(response)).await;
            Seen::First(number, Box::new(request))
        } else if request.type_url == type_url::HEALTH {
            Seen::Health(number, request.error_detail.map(|status| status.message))
        } else {
            assert_eq!((&*request.response_nonce, request.error_detail), ("1", None));
            Seen::Acknowledged(number)
        };
        let _ = seen.send(what);
    }
    let _ = seen.send(Seen::Ended(number));
}

/// A machine and its control plane.
struct Lab {
    health: watch::Sender<Health>,
    status: watch::Receiver<super::Status>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Lab {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::unbounded_channel();
        let control = Control {
            manner,
            streams: 0.into(),
            seen: sender,
        };
        let service = AggregatedDiscoveryServiceServer::new(control);
        let server = tonic::transport::Server::builder();
        tokio::spawn(server.serve_with_incoming(service, TcpListenerStream::new(listener)));
        let (health, health_watch) = watch::channel(Health::default());
        let (status_sender, status) = watch::channel(super::Status::default());
        let open = move |first| {
            let address = address.clone();
            async move {
                let channel = tonic::transport::Endpoint::from_shared(address)?.connect().await?;
                Stream::over(channel, &membership(), first).await
            }
        };
        tokio::spawn(run(node(), health_watch, open, status_sender));
        Self { health, status, seen }
    }

    fn set(&self, verdict: Verdict) {
        self.health.send_modify(|health| health.verdict = verdict);
    }

    /// The next that was seen but acknowledgements, which come when they come.
    async fn next(&mut self) -> Seen {
        loop {
            let seen = tokio::time::timeout(Duration::from_secs(20), self.seen.recv()).await;
            match seen.expect("something in time").unwrap() {
                Seen::Acknowledged(_) => {}
                other => return other,
            }
        }
    }
}

fn membership() -> Membership {
    Membership {
        agent_id: "a".into(),
        trust_domain: "example.org".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        workload_name: "web-10.0.0.1".into(),
        workload_group: "web".into(),
        network: String::new(),
        cluster_id: "c1".into(),
        dns_domain: "cluster.local".into(),
        address: "10.0.0.1".parse().unwrap(),
        control_addresses: vec![],
        ca_pins: vec![],
        control_plane: ControlPlane::default(),
    }
}

fn node() -> Node {
    Node {
        id: "ztunnel~10.0.0.1~web-10.0.0.1.shop~shop.svc.cluster.local".to_owned(),
        ..Node::default()
    }
}

async fn registers_only_in_rotation(manner: Manner) {
    let mut lab = Lab::start(manner).await;
    // Before the first verdict: registered, and nothing reported.
    assert_eq!(lab.next().await, Seen::First(1, Box::new(first(&node()))));
    lab.set(Verdict::Healthy);
    assert_eq!(lab.next().await, Seen::Health(1, None));
    lab.set(Verdict::Unhealthy("HTTP status 503".to_owned()));
    assert_eq!(lab.next().await, Seen::Health(1, Some("HTTP status 503".to_owned())));
    assert_eq!(lab.next().await, Seen::Ended(1));
    // Drained while it is ill: still no reason to come back.
    lab.health.send_modify(|health| health.draining = Some(7));
    lab.set(Verdict::Healthy);
    lab.health.send_modify(|health| health.draining = None);
    assert_eq!(lab.next().await, Seen::First(2, Box::new(first(&node()))));
    assert_eq!(lab.next().await, Seen::Health(2, None));
    lab.health.send_modify(|health| health.draining = Some(8));
    assert_eq!(lab.next().await, Seen::Health(2, Some("draining".to_owned())));
    assert_eq!(lab.next().await, Seen::Ended(2));
    let given_up = |status: &super::Status| *status == super::Status::default();
    lab.status.wait_for(given_up).await.unwrap();
}

#[tokio::test]
async fn a_machine_is_registered_only_while_it_is_in_rotation() {
    registers_only_in_rotation(Manner::Answers).await;
}

#[tokio::test]
async fn a_control_plane_that_says_nothing_hears_the_same() {
    registers_only_in_rotation(Manner::Silent).await;
}

#[tokio::test]
async fn what_is_answered_is_acknowledged() {
    let mut lab = Lab::start(Manner::Answers).await;
    assert_eq!(lab.next().await, Seen::First(1, Box::new(first(&node()))));
    let seen = tokio::time::timeout(Duration::from_secs(20), lab.seen.recv()).await;
    assert_eq!(seen.unwrap(), Some(Seen::Acknowledged(1)));
}

#[tokio::test]
async fn a_refusal_is_told_and_tried_again() {
    let mut lab = Lab::start(Manner::Refuses).await;
    let told = lab
        .status
        .wait_for(|status| status.error.is_some())
        .await
        .unwrap()
        .clone();
    assert!(
        !told.open
            && told
                .error
                .is_some_and(|text| text.contains("no WorkloadGroup shop/web"))
    );
    assert_eq!(lab.next().await, Seen::First(2, Box::new(first(&node()))));
    let answered = |status: &super::Status| status.open && status.error.is_none();
    lab.status.wait_for(answered).await.unwrap();
}

#[test]
fn nothing_is_reported_before_the_first_verdict() {
    assert_eq!(report(&Health::default()), None);
}
