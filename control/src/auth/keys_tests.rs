#![allow(clippy::unwrap_used)]
use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const KEYS: &str =
    "{\"keys\": [{\"kty\": \"RSA\", \"kid\": \"one\", \"n\": \"AQAB\", \"e\": \"AQAB\"}, {\"kty\": \"new\"}]}";

/// A server at https://localhost:PORT/ that gives `answer` to every request; and a file with the CA of its certificate.
async fn serve(answer: String) -> (String, tempfile::NamedTempFile) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let issuer = Issuer::from_ca_cert_der(ca.der(), ca_key).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/keys", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && tls.read_buf(&mut request).await.is_ok_and(|n| n > 0) {}
            let _ = tls.write_all(answer.as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    });
    (url, file)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn fetch(url: &str, ca: &tempfile::NamedTempFile) -> Result<(JwkSet, Duration), String> {
    let settings = JwtIssuer {
        issuer: "a".into(),
        jwks_uri: Some(url.to_owned()),
        jwks_ca: Some(ca.path().to_owned()),
        ..JwtIssuer::default()
    };
    let keys = Keys::open(&settings).unwrap();
    assert!(keys.current().is_err(), "nothing is believed before the first reading");
    keys.fetch().await
}

#[tokio::test]
async fn a_url_is_read_as_long_as_it_says() {
    for (headers, expected) in [
        ("cache-control: max-age=600\r\n", 600),
        ("cache-control: max-age=1\r\n", 60),
        ("cache-control: max-age=1000000\r\n", 3600),
        ("", 60),
    ] {
        let (url, ca) = serve(answer("200 OK", headers, KEYS)).await;
        let (keys, fresh) = fetch(&url, &ca).await.unwrap();
        assert!(keys.find("one").is_some());
        assert_eq!(fresh, Duration::from_secs(expected), "{headers}");
    }
}

#[tokio::test]
async fn what_is_no_key_set_is_refused_with_the_reason() {
    let long = format!("{{\"keys\": [], \"x\": \"{}\"}}", "x".repeat(LONGEST));
    for (answer, part) in [
        (answer("404 Not Found", "", KEYS), "404"),
        (answer("302 Found", "location: https://localhost/\r\n", ""), "302"),
        (answer("200 OK", "", "<html>"), "not a JSON Web Key Set"),
        (answer("200 OK", "", "{\"keys\": []}"), "empty"),
        (answer("200 OK", "", &long), "limit"),
        (String::new(), "GET https://localhost"),
    ] {
        let (url, ca) = serve(answer).await;
        let error = fetch(&url, &ca).await.unwrap_err();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let (url, _own) = serve(answer("200 OK", "", KEYS)).await;
    let (_, other) = serve(String::new()).await;
    let error = fetch(&url, &other).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = |path: &std::path::Path| {
        let settings = JwtIssuer {
            jwks_file: Some(path.to_owned()),
            ..JwtIssuer::default()
        };
        Keys::open(&settings).map(|_| ()).unwrap_err()
    };
    assert!(open(std::path::Path::new("/nonexistent/keys")).contains("/nonexistent/keys"));
    assert!(open(file.path()).contains(&file.path().display().to_string()));
}
