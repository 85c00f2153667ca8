//! What a certificate says of its holder.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use mesh_core::identity::Identity;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

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
}

impl PeerCertificate {
    /// Reads a DER certificate; `None` when it is none, or names nobody.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
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
        let serial = certificate.raw_serial();
        let zeros = serial.iter().take_while(|byte| **byte == 0).count();
        Some(Self {
            identities: identities.collect(),
            serial: serial[zeros..].to_vec(),
            spki_sha256: sha256(certificate.public_key().raw),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
        })
    }

    /// The peer's identity: the first of the exact shape.
    pub fn identity(&self) -> Option<&Identity> {
        self.identities.first()
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
