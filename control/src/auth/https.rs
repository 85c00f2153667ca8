//! One GET over TLS, for key sets: bounded in time and size, no redirects.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper::header::{ACCEPT, CACHE_CONTROL, HOST};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one GET may take.
const TIME: Duration = Duration::from_secs(10);

/// Whom to trust.
pub(super) struct Client {
    config: Arc<ClientConfig>,
}

/// What a GET gave.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// `max-age` of `cache-control`.
    pub(super) max_age: Option<Duration>,
}

impl Client {
    /// Trusts the certificates in this PEM file, or without one those that this machine trusts.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(path) => {
                let failed = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
                let found = CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))?;
                for certificate in found {
                    roots
                        .add(certificate.map_err(|e| failed(&e))?)
                        .map_err(|e| failed(&e))?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(match ca {
                Some(path) => format!("{} holds no certificate", path.display()),
                None => "this machine trusts no certificate; install ca-certificates or set jwks_ca".to_owned(),
            });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Gets `url`, of at most `longest` bytes.
    pub(super) async fn get(&self, url: &str, longest: usize) -> Result<Answer, String> {
        match tokio::time::timeout(TIME, self.exchange(url, longest)).await {
            Ok(answer) => answer.map_err(|e| format!("GET {url}: {e}")),
            Err(_) => Err(format!("GET {url}: no answer within {} s", TIME.as_secs())),
        }
    }

    async fn exchange(&self, url: &str, longest: usize) -> Result<Answer, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let uri: Uri = url.parse().map_err(|e| text(&e))?;
        let host = uri.host().ok_or("the URL has no host")?;
        let bare = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((bare, uri.port_u16().unwrap_or(443)))
            .await
            .map_err(|e| text(&e))?;
        let name = ServerName::try_from(bare.to_owned()).map_err(|e| text(&e))?;
        let tls = TlsConnector::from(self.config.clone())
            .connect(name, stream)
            .await
            .map_err(|e| text(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|e| text(&e))?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let request = hyper::Request::get(path)
            .header(HOST, uri.authority().map_or(host, |a| a.as_str()))
            .header(ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|e| text(&e))?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(|e| text(&e))?;
            if response.status() != hyper::StatusCode::OK {
                return Err(format!("the server answered {}", response.status()));
            }
            let control = response.headers().get(CACHE_CONTROL).and_then(|v| v.to_str().ok());
            let max_age = control.and_then(max_age);
            let body = Limited::new(response.into_body(), longest).collect();
            let body = body.await.map_err(|e| text(&e))?.to_bytes();
            Ok(Answer { body, max_age })
        };
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => return answer,
            ended = &mut connection => ended.map_err(|e| text(&e))?,
        }
        exchange.await
    }
}

fn max_age(control: &str) -> Option<Duration> {
    let mut parts = control.split(',').map(str::trim);
    let seconds = parts.find_map(|part| part.strip_prefix("max-age="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_control() {
        assert_eq!(max_age("public, max-age=300"), Some(Duration::from_secs(300)));
        assert_eq!(max_age("no-store"), None);
        assert_eq!(max_age("max-age=x"), None);
    }
}
