//! An HTTP probe (as Kubernetes does it): a status of 200 to 399 is success; a certificate is not verified, for nothing secret
//! is told and nothing but the status is believed.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::health::HttpGet;
use rustls::Error;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::tls::judge::{Judge, Shown, Verifier};
use crate::tls::provider;

/// Asks over this connection.
pub(super) async fn get(stream: TcpStream, get: &HttpGet) -> anyhow::Result<()> {
    let peer = stream.peer_addr()?;
    let request = request(get, &peer.to_string())?;
    if get.scheme() == "HTTP" {
        return exchange(stream, request).await;
    }
    let provider = provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::new(Anyone, provider))
        .with_no_client_auth();
    let handshake = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::from(peer.ip()), stream);
    exchange(handshake.await.context("the TLS handshake failed")?, request).await
}

fn request(get: &HttpGet, peer: &str) -> anyhow::Result<http::Request<Empty<Bytes>>> {
    let mut request = http::Request::get(get.path())
        .header(
            http::header::USER_AGENT,
            concat!("mesh-agent/", env!("CARGO_PKG_VERSION")),
        )
        .header(http::header::CONNECTION, "close");
    let own_host = get
        .http_headers
        .iter()
        .any(|header| header.name.eq_ignore_ascii_case("host"));
    if !own_host {
        request = request.header(http::header::HOST, peer);
    }
    for header in &get.http_headers {
        request = request.header(&header.name, &header.value);
    }
    request.body(Empty::new()).context("the probe's request")
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Empty<Bytes>>,
) -> anyhow::Result<()> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with us, also when the time is up.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let response = sender.send_request(request).await.context("no HTTP answer")?;
    match response.status().as_u16() {
        200..400 => Ok(()),
        status => bail!("HTTP status {status}"),
    }
}

/// Whoever it is, as long as it has the key of the certificate that it shows.
#[derive(Debug)]
struct Anyone;

impl Judge for Anyone {
    fn judge(&self, _shown: &Shown<'_>) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response, StatusCode};
    use hyper::service::service_fn;
    use mesh_core::health::Header;
    use tokio::net::TcpListener;

    /// Asks a server that answers 204 to what it expects, 503 to `/ill`, and 400 to anything else.
    async fn ask(get: &HttpGet, tls: bool) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let client = TcpStream::connect(listener.local_addr()?).await?;
        let (stream, _) = listener.accept().await?;
        let mut server = JoinSet::new();
        let address = listener.local_addr()?.to_string();
        server.spawn(async move {
            if tls {
                let stream = tokio_rustls::TlsAcceptor::from(Arc::new(server_config()))
                    .accept(stream)
                    .await;
                serve(stream.unwrap(), address).await;
            } else {
                serve(stream, address).await;
            }
        });
        super::get(client, get).await
    }

    async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, address: String) {
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
            let right_host = [Some(address.as_str()), Some("orders")].contains(&header("host"));
            let status = match request.uri().to_string().as_str() {
                "/" | "/ready?x=1" if right_host && header("x-probe") != Some("no") => StatusCode::NO_CONTENT,
                "/ill" => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_REQUEST,
            };
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = status;
            async move { anyhow::Ok(response) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), answer)
            .await;
    }

    /// Of nobody whom anybody trusts.
    fn server_config() -> rustls::ServerConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["elsewhere".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }

    fn probe(path: &str, headers: &[(&str, &str)]) -> HttpGet {
        let header = |(name, value): &(&str, &str)| Header {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        HttpGet {
            path: path.to_owned(),
            http_headers: headers.iter().map(header).collect(),
            ..HttpGet::default()
        }
    }

    #[tokio::test]
    async fn the_status_decides() {
        ask(&probe("", &[]), false).await.unwrap();
        ask(&probe("/ready?x=1", &[("Host", "orders"), ("X-Probe", "yes")]), false)
            .await
            .unwrap();
        let failed = ask(&probe("/ill", &[]), false).await.unwrap_err();
        assert_eq!(failed.to_string(), "HTTP status 503");
        assert!(ask(&probe("/", &[("X-Probe", "no")]), false).await.is_err());
    }

    #[tokio::test]
    async fn a_certificate_is_not_verified() {
        let mut get = probe("/", &[]);
        get.scheme = "https".to_owned();
        ask(&get, true).await.unwrap();
        let failed = ask(&get, false).await.unwrap_err();
        assert!(format!("{failed:#}").contains("TLS handshake"), "{failed:#}");
    }
}
