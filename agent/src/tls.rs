//! TLS of mesh tunnels: TLS 1.3, both sides with certificates, identities compared exactly, no resumption.

pub mod judge;
mod peer;
mod revoked;
mod verify;

use std::sync::Arc;

use mesh_core::identity::Identity;
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::sign::SingleCertAndKey;

use crate::certs::Credentials;
use judge::Verifier;
pub use peer::{Issued, PeerCertificate, sha256, without_zeros};
pub use revoked::{Revoked, RevokedBy};
use verify::{ClientVerifier, OneOf};

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/3, over QUIC.
    H3,
    /// HTTP/2, over TCP.
    H2,
}

impl Alpn {
    /// The protocol's name (RFC 7301).
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::H3 => b"h3",
            Self::H2 => b"h2",
        }
    }

    fn provider(self) -> Arc<CryptoProvider> {
        let mut provider = (*provider()).clone();
        if self == Self::H2 {
            // Istio's proxies offer AES alone.
            provider
                .cipher_suites
                .retain(|suite| suite.suite() != CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        }
        Arc::new(provider)
    }
}

/// AES first, for speed; X25519MLKEM768 preferred.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    Arc::new(provider)
}

/// For dialling a peer that must show one of `identities`; an empty list fails every handshake.
pub fn client(
    credentials: &Credentials,
    identities: Vec<Identity>,
    revoked: Revoked,
    alpn: Alpn,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = alpn.provider();
    let judge = OneOf {
        roots: credentials.roots.clone(),
        identities,
        revoked,
    };
    let verifier = Verifier::new(judge, provider.clone());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config.enable_sni = false;
    // A resumed session would skip today's certificate check.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// For peers of one of `trust_domains`.
pub fn server(
    credentials: &Credentials,
    trust_domains: Vec<String>,
    revoked: Revoked,
    alpn: Alpn,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = alpn.provider();
    let verifier = ClientVerifier::new(credentials.roots.clone(), provider.clone(), trust_domains, revoked)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}
