//! A gRPC probe: `grpc.health.v1.Health/Check` in plaintext (as Kubernetes does it).

use std::sync::{Arc, Mutex};

use anyhow::{anyhow, bail};
use hyper_util::rt::TokioIo;
use mesh_core::health::Grpc;
use mesh_proto::health::HealthCheckRequest;
use mesh_proto::health::health_check_response::ServingStatus;
use mesh_proto::health::health_client::HealthClient;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

/// Asks over this connection.
pub(super) async fn check(stream: TcpStream, grpc: &Grpc) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://{}", stream.peer_addr()?))?;
    let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or_else(|| std::io::Error::other("the connection was used up")) }
    });
    let channel = endpoint.connect_with_connector(connector).await?;
    let request = HealthCheckRequest {
        service: grpc.service.clone(),
    };
    let answer = HealthClient::new(channel)
        .max_decoding_message_size(LARGEST)
        .check(request)
        .await;
    let answer = answer.map_err(|status| anyhow!("gRPC status {:?}: {}", status.code(), status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => bail!("the service says {}", other.as_str_name()),
    }
}

/// An answer is one number.
const LARGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::health::HealthCheckResponse;
    use mesh_proto::health::health_server::{Health, HealthServer};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    struct Server;

    #[tonic::async_trait]
    impl Health for Server {
        async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
            let status = match request.into_inner().service.as_str() {
                "" => ServingStatus::Serving,
                "ill" => ServingStatus::NotServing,
                _ => return Err(Status::not_found("no such service")),
            };
            Ok(Response::new(HealthCheckResponse { status: status.into() }))
        }
    }

    #[tokio::test]
    async fn serving_is_healthy_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder();
        tokio::spawn(server.serve_with_incoming(HealthServer::new(Server), TcpListenerStream::new(listener)));
        for (service, outcome) in [
            ("", None),
            ("ill", Some("NOT_SERVING")),
            ("other", Some("no such service")),
        ] {
            let probe = Grpc {
                port: 1,
                service: service.to_owned(),
            };
            let result = check(TcpStream::connect(address).await.unwrap(), &probe).await;
            let failure = result.err().map(|error| format!("{error:#}"));
            match outcome {
                None => assert_eq!(failure, None),
                Some(part) => assert!(failure.as_ref().is_some_and(|text| text.contains(part)), "{failure:?}"),
            }
        }
    }
}
