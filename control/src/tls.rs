//! The servers' TLS: version 1.3 only, no resumption (a resumed session would skip today's certificate check), and for agents
//! an optional client certificate that must chain to a current anchor when it is given.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::Identity;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::ca::{Authority, CaError};

/// Both servers' configurations, made for one own certificate.
pub struct ServerTls {
    /// For agents: client certificate optional, but verified.
    pub agents: Arc<ServerConfig>,
    /// For operators: client certificates are not asked for.
    pub operators: Arc<ServerConfig>,
}

/// Issues the control plane's own certificate, with the reserved identity, and builds both configurations on it.
pub fn server(authority: &Authority, lifetime: Duration) -> Result<ServerTls, CaError> {
    let invalid = |e: &dyn std::fmt::Display| CaError::Invalid(format!("the control plane's own certificate: {e}"));
    let identity = Identity::control_plane(&authority.trust_domain).map_err(|e| invalid(&e))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = authority.issue(&key.subject_public_key_info(), &identity, lifetime)?;
    let chain = authority.server_chain(&leaf);
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));

    let mut roots = RootCertStore::empty();
    for anchor in &authority.anchors {
        roots.add(anchor.der.clone()).map_err(|e| invalid(&e))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| invalid(&e))?;
    let builder = || {
        ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| invalid(&e))
    };
    let agents = builder()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key());
    let operators = builder()?.with_no_client_auth().with_single_cert(chain, key());
    Ok(ServerTls {
        agents: finish(agents.map_err(|e| invalid(&e))?),
        operators: finish(operators.map_err(|e| invalid(&e))?),
    })
}

fn finish(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}
