//! A join through somebody in the middle: nothing of the token may leave before the control plane proved itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_agent::certs::Pem;
use mesh_agent::config::Config;
use mesh_agent::dns::Lookup;
use mesh_agent::join::join;
use mesh_agent::state::State;
use mesh_agent::tls::{PeerCertificate, provider};
use mesh_core::token::{BootstrapToken, encode};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt as _;

use crate::mesh::{Ca, run};

/// A TLS server with this certificate (and its CA's, as the control plane sends it): its port, and the bytes that clients
/// sent it after their handshake.
async fn server(pem: &Pem, ca: &Ca) -> (u16, Arc<AtomicUsize>) {
    let mut chain: Vec<_> = CertificateDer::pem_slice_iter(pem.chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    chain.push(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap());
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
    let key = CertifiedKey::from_der(chain, key, &provider()).unwrap();
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(key));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::<AtomicUsize>::default();
    let count = heard.clone();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    count.fetch_add(length, Ordering::Relaxed);
                }
            }
        }
    });
    (port, heard)
}

fn token(ca: &Ca, port: u16) -> String {
    let der = CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap();
    encode(&BootstrapToken {
        addresses: vec![format!("127.0.0.1:{port}")],
        ca_pins: vec![PeerCertificate::parse(&der).unwrap().spki_sha256.to_vec()],
        token_id: "t".into(),
        secret: vec![7; 32],
        trust_domain: "mesh.internal".into(),
        istio: None,
    })
}

#[test]
fn a_member_in_the_middle_learns_nothing() {
    run(async || {
        let ca = Ca::new();
        // A valid certificate of the right CA, but a workload's.
        let (port, heard) = server(&ca.member("web"), &ca).await;
        let dir = tempfile::tempdir().unwrap();
        let error = join(&State::new(dir.path()), &token(&ca, port), None, &unmarked())
            .await
            .unwrap_err();
        let said = format!("{error:#}");
        assert!(
            said.contains("not the control plane") && said.contains("nothing was sent"),
            "{said}"
        );
        assert_eq!(heard.load(Ordering::Relaxed), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left");
    });
}

#[test]
fn another_ca_in_the_middle_learns_nothing() {
    run(async || {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let reserved = theirs.leaf("spiffe://mesh.internal/ns/mesh-system/sa/mesh-control", 30);
        let (port, heard) = server(&reserved, &theirs).await;
        let dir = tempfile::tempdir().unwrap();
        let error = join(&State::new(dir.path()), &token(&ours, port), None, &unmarked())
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains("token pins"), "{error:#}");
        assert_eq!(heard.load(Ordering::Relaxed), 0);
    });
}

/// The counter-check: with the reserved identity the same server does hear the join.
#[test]
fn the_control_plane_itself_is_spoken_to() {
    run(async || {
        let ca = Ca::new();
        let reserved = ca.leaf("spiffe://mesh.internal/ns/mesh-system/sa/mesh-control", 30);
        let (port, heard) = server(&reserved, &ca).await;
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(dir.path());
        let joining = tokio::time::timeout(std::time::Duration::from_secs(20), async {
            let token = token(&ca, port);
            let lookup = unmarked();
            tokio::select! {
                _ = join(&state, &token, None, &lookup) => {}
                () = async { while heard.load(Ordering::Relaxed) == 0 { tokio::task::yield_now().await; } } => {}
            }
        });
        joining.await.unwrap();
        assert!(heard.load(Ordering::Relaxed) > 0);
    });
}

/// Setting a mark needs a capability, and nothing is captured here.
fn unmarked() -> Lookup {
    Lookup {
        mark: 0,
        ..Config::default().lookup()
    }
}
