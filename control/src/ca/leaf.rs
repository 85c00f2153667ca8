//! Leaves: what is issued for a public key, and what is read from a certificate that a peer presents.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use mesh_core::identity::Identity;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509CertificationRequest};

use super::{Authority, BACKDATE, CaError};

/// An issued certificate.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// PEM.
    pub pem: String,
    /// DER.
    pub der: CertificateDer<'static>,
    /// Big-endian without leading zeros.
    pub serial: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: Vec<u8>,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Authority {
    /// Issues a certificate for `spki` (DER); nothing else of the asker's wishes goes into it.
    pub fn issue(&self, spki: &[u8], identity: &Identity, lifetime: Duration) -> Result<Leaf, CaError> {
        self.issue_with(spki, identity, lifetime, &[])
    }

    /// The same for a server that is also called by name or address: clients other than ours look for those.
    pub fn issue_with(
        &self,
        spki: &[u8],
        identity: &Identity,
        lifetime: Duration,
        names: &[SanType],
    ) -> Result<Leaf, CaError> {
        let key = SubjectPublicKeyInfo::from_der(spki)?;
        let serial = random_serial();
        let end = SystemTime::now() + lifetime;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into()?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.subject_alt_names.extend_from_slice(names);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (SystemTime::now() - BACKDATE).into();
        params.not_after = end.into();
        params.serial_number = Some(serial.clone().into());
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            serial,
            spki_sha256: digest(&SHA256, spki).as_ref().to_vec(),
            not_after: end
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        })
    }
}

/// The public key (SubjectPublicKeyInfo, DER) of a PEM PKCS#10 request whose own signature holds.
pub fn public_key_of_csr(pem: &str) -> Result<Vec<u8>, CaError> {
    let invalid = |what: &str| CaError::Invalid(format!("the certificate request {what}"));
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| invalid("is not PEM"))?;
    let (rest, csr) = X509CertificationRequest::from_der(&block.contents).map_err(|_| invalid("is not PKCS#10"))?;
    if !rest.is_empty() {
        return Err(invalid("has trailing bytes"));
    }
    csr.verify_signature()
        .map_err(|_| invalid("is not signed by its own key"))?;
    let spki = csr.certification_request_info.subject_pki.raw.to_vec();
    SubjectPublicKeyInfo::from_der(&spki).map_err(|_| invalid("has a key of an unsupported kind; use ECDSA P-256"))?;
    Ok(spki)
}

/// A verified certificate of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Big-endian without leading zeros.
    pub serial: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: Vec<u8>,
    /// Its only URI name.
    pub identity: Identity,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl PeerCertificate {
    /// Reads a leaf. `None` when it has not exactly one URI name, or that is no SPIFFE ID of our shape.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let names = cert.subject_alternative_name().ok()??;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return None;
        };
        let serial = cert.raw_serial();
        let start = serial.iter().position(|b| *b != 0).unwrap_or(serial.len());
        Some(Self {
            serial: serial[start..].to_vec(),
            spki_sha256: digest(&SHA256, cert.public_key().raw).as_ref().to_vec(),
            identity: uri.parse().ok()?,
            not_after: cert.validity().not_after.timestamp(),
        })
    }
}

/// Whether `issuer`'s key signed `certificate`.
pub(super) fn is_signed_by(certificate: &[u8], issuer: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) = (
        X509Certificate::from_der(certificate),
        X509Certificate::from_der(issuer),
    ) else {
        return false;
    };
    certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// 16 random bytes: positive, and without a leading zero.
pub(super) fn random_serial() -> Vec<u8> {
    let mut serial: [u8; 16] = random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial.to_vec()
}

/// Random bytes from the system. A system without randomness cannot run a CA: the process ends.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        tracing::error!("the system gives no random bytes");
        std::process::abort();
    }
    bytes
}
