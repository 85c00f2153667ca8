//! The services that agents call, behind one port, chosen by the first part of the path.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_proto::envoy::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_proto::istio::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_proto::mesh::join_service_server::JoinServiceServer;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower::Service;

use crate::issue::Certificates;
use crate::join::Joins;
use crate::xds::Ads;

/// The services.
#[derive(Clone)]
pub(super) struct Routes {
    pub(super) certificates: IstioCertificateServiceServer<Certificates>,
    pub(super) discovery: AggregatedDiscoveryServiceServer<Ads>,
    pub(super) join: JoinServiceServer<Joins>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let name = request
            .uri()
            .path()
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        if name == <IstioCertificateServiceServer<Certificates> as NamedService>::NAME {
            Box::pin(self.certificates.call(request))
        } else if name == <AggregatedDiscoveryServiceServer<Ads> as NamedService>::NAME {
            Box::pin(self.discovery.call(request))
        } else if name == <JoinServiceServer<Joins> as NamedService>::NAME {
            Box::pin(self.join.call(request))
        } else {
            Box::pin(async move { Ok(Status::unimplemented(format!("no service {name:?} here")).into_http()) })
        }
    }
}
