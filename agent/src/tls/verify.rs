//! Who may be at the other end of a tunnel. The chain is webpki's business; what is added here is whose certificate it is.

use std::sync::Arc;

use mesh_core::identity::Identity;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::judge::{Judge, Shown};
use super::{PeerCertificate, Revoked, RevokedBy};
use crate::flows::Direction;
use crate::metrics;

/// On the dialling side: one of the identities that the world gives for that endpoint, exactly.
#[derive(Debug)]
pub(super) struct OneOf {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) identities: Vec<Identity>,
    pub(super) revoked: Revoked,
}

impl Judge for OneOf {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), Error> {
        shown.chains_to(&self.roots)?;
        let peer = peer(shown.leaf, shown.intermediates, &self.revoked, Direction::Outbound)?;
        if peer
            .identities
            .iter()
            .any(|identity| self.identities.contains(identity))
        {
            return Ok(());
        }
        Err(identity_error(&peer, &format!("one of {:?}", names(&self.identities))))
    }
}

/// On the listening side: a member of one of our trust domains.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domains: Vec<String>,
    revoked: Revoked,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        trust_domains: Vec<String>,
        revoked: Revoked,
    ) -> Result<Self, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        let chain = chain.map_err(|error| Error::General(error.to_string()))?;
        Ok(Self {
            chain,
            trust_domains,
            revoked,
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let peer = peer(end_entity, intermediates, &self.revoked, Direction::Inbound)?;
        let ours = |identity: &Identity| {
            self.trust_domains
                .iter()
                .any(|domain| domain == identity.trust_domain())
        };
        if peer.identity().is_some_and(ours) {
            return Ok(verified);
        }
        Err(identity_error(&peer, &format!("a member of {:?}", self.trust_domains)))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The peer, unless it is revoked. `direction` is that of the flows that its tunnel would carry.
fn peer(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    revoked: &Revoked,
    direction: Direction,
) -> Result<PeerCertificate, Error> {
    let peer = PeerCertificate::parse_chain(end_entity, intermediates).ok_or(CertificateError::BadEncoding)?;
    match revoked.by(&peer) {
        None => return Ok(peer),
        Some(RevokedBy::Crl) => metrics::crl_rejected(direction),
        Some(RevokedBy::ControlPlane) => {}
    }
    Err(CertificateError::Revoked.into())
}

fn identity_error(peer: &PeerCertificate, expected: &str) -> Error {
    let shown = names(&peer.identities);
    Error::General(format!("identity mismatch: the peer is {shown:?}, expected {expected}"))
}

fn names(identities: &[Identity]) -> Vec<String> {
    identities.iter().map(ToString::to_string).collect()
}
