//! What a certificate says of its holder.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use mesh_core::identity::Identity;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// By what a CRL names a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The issuer's distinguished name, DER.
    pub issuer: Box<[u8]>,
    /// Big-endian, without leading zeros.
    pub serial: Box<[u8]>,
}

impl Issued {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        Self {
            issuer: certificate.issuer().as_raw().into(),
            serial: without_zeros(certificate.raw_serial()).into(),
        }
    }
}

/// The facts of a leaf that matter to us. Parsing one does not verify it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Each URI SAN of the exact SPIFFE shape, in order.
    pub identities: Vec<Identity>,
    /// Big-endian, without leading zeros.
    pub serial: Vec<u8>,
    pub spki_sha256: [u8; 32],
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// The leaf, then each intermediate that came with it.
    pub chain: Vec<Issued>,
}

impl PeerCertificate {
    /// Reads a DER certificate; `None` when it is none, or names nobody.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate
            .extensions()
            .iter()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => Some(san.general_names.iter()),
                _ => None,
            });
        let identities = names.flatten().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.parse().ok(),
            _ => None,
        });
        let time = |time: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        Some(Self {
            identities: identities.collect(),
            serial: without_zeros(certificate.raw_serial()).to_vec(),
            spki_sha256: sha256(certificate.public_key().raw),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
            chain: vec![Issued::of(&certificate)],
        })
    }

    /// The same of a leaf with the intermediates that its holder sent along, each of which may be revoked as well.
    pub fn parse_chain(leaf: &[u8], intermediates: &[CertificateDer<'_>]) -> Option<Self> {
        let mut peer = Self::parse(leaf)?;
        for der in intermediates {
            let (_, intermediate) = X509Certificate::from_der(der).ok()?;
            peer.chain.push(Issued::of(&intermediate));
        }
        Some(peer)
    }

    /// The peer's identity: the first of the exact shape.
    pub fn identity(&self) -> Option<&Identity> {
        self.identities.first()
    }
}

/// A serial number as it is compared: DER puts a zero before a high bit.
pub fn without_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
