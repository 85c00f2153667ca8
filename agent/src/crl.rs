//! Certificate revocation lists (RFC 5280 5) from a file: read, checked against our anchors, and followed while we run.
//!
//! As ztunnel does it: a certificate that no list speaks of is good, and a list that is past its next update goes on to
//! count; `status` says so.

mod watch;

use std::sync::Arc;

use rustc_hash::FxHashSet;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::{IssuingDistributionPoint, ParsedExtension};
use x509_parser::prelude::{CertificateRevocationList, FromDer, RevokedCertificate, X509Certificate, X509Extension};

use crate::tls::{Issued, without_zeros};
pub use watch::CrlFile;

/// Why a list is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    #[error("it holds no CRL: neither PEM blocks \"X509 CRL\" nor DER")]
    Nothing,
    #[error("a PEM block cannot be read: {0}")]
    Pem(String),
    #[error("list {0} is not a CRL: {1}")]
    Unreadable(usize, String),
    #[error("the list of {0} is one of changes or of other issuers (RFC 5280 5.2.4, 5.2.5); give a complete one")]
    Partial(String),
    #[error(
        "the list of {0} is signed by none of our trust anchors or intermediates; give the CRL of the CA that this mesh trusts"
    )]
    Unverified(String),
}

/// One list, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    /// The issuer's name as text, for people.
    pub name: String,
    /// Seconds since the epoch; none when the issuer promised no further list.
    pub next_update: Option<u64>,
    /// The issuer's distinguished name, DER.
    issuer: Box<[u8]>,
    /// Without leading zeros.
    serials: FxHashSet<Box<[u8]>>,
}

impl Crl {
    /// How many certificates it revokes.
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether it revokes none.
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }
}

/// All lists that are in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crls {
    pub lists: Vec<Arc<Crl>>,
    /// What is wrong with the file as it is now; lists that it was to replace stay.
    pub problems: Vec<String>,
}

impl Crls {
    /// Whether a list of its issuer names this certificate.
    pub fn contains(&self, certificate: &Issued) -> bool {
        self.lists
            .iter()
            .any(|list| list.issuer == certificate.issuer && list.serials.contains(&certificate.serial))
    }

    /// What comes after these when the file holds `bytes`: its lists. While one of them cannot be used, the list in force of
    /// an issuer that has no other stays. `signers` are certificates whose keys may have signed them.
    pub fn next(&self, bytes: &[u8], signers: &[CertificateDer<'_>]) -> Self {
        let ders = match split(bytes) {
            Ok(ders) => ders,
            Err(error) => return self.with_problem(error.to_string()),
        };
        let mut next = Self::default();
        for (at, der) in ders.iter().enumerate() {
            match Crl::read(at + 1, der, signers) {
                Ok(list) => next.lists.push(Arc::new(list)),
                Err(error) => next.problems.push(error.to_string()),
            }
        }
        if !next.problems.is_empty() {
            let replaced = |held: &Arc<Crl>| next.lists.iter().any(|list| list.issuer == held.issuer);
            let kept: Vec<_> = self.lists.iter().filter(|held| !replaced(held)).cloned().collect();
            next.lists.extend(kept);
        }
        next
    }

    /// The same lists, when the file could not be used at all.
    pub fn with_problem(&self, problem: String) -> Self {
        Self {
            lists: self.lists.clone(),
            problems: vec![problem],
        }
    }
}

impl Crl {
    fn read(number: usize, der: &[u8], signers: &[CertificateDer<'_>]) -> Result<Self, CrlError> {
        let unreadable = |why: String| CrlError::Unreadable(number, why);
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("bytes follow its end".into()));
        }
        let name = list.issuer().to_string();
        if !is_complete(&list) {
            return Err(CrlError::Partial(name));
        }
        if !signers.iter().any(|signer| is_signed_by(&list, signer)) {
            return Err(CrlError::Unverified(name));
        }
        let serials = list.iter_revoked_certificates();
        Ok(Self {
            next_update: list.next_update().map(|at| u64::try_from(at.timestamp()).unwrap_or(0)),
            issuer: list.issuer().as_raw().into(),
            serials: serials.map(|one| without_zeros(one.raw_serial()).into()).collect(),
            name,
        })
    }
}

/// Whether all that it says is of its own issuer's certificates, and all there is to say: nothing critical is left unread.
fn is_complete(list: &CertificateRevocationList<'_>) -> bool {
    let known = |extension: &X509Extension<'_>| match extension.parsed_extension() {
        ParsedExtension::IssuingDistributionPoint(IssuingDistributionPoint { indirect_crl, .. }) => !indirect_crl,
        _ => !extension.critical,
    };
    let entry = |entry: &RevokedCertificate<'_>| entry.extensions().iter().all(|extension| !extension.critical);
    list.extensions().iter().all(known) && list.iter_revoked_certificates().all(entry)
}

/// Whether the holder of this certificate signed the list, and may sign lists (RFC 5280 6.3.3 f).
fn is_signed_by(list: &CertificateRevocationList<'_>, signer: &CertificateDer<'_>) -> bool {
    let Ok((_, signer)) = X509Certificate::from_der(signer) else {
        return false;
    };
    let may_sign = signer
        .key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()));
    may_sign
        && signer.subject().as_raw() == list.issuer().as_raw()
        && list.verify_signature(signer.public_key()).is_ok()
}

/// The lists of a file, DER. An empty file says that nothing is revoked.
fn split(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec()]);
    }
    let blocks = CertificateRevocationListDer::pem_slice_iter(bytes);
    let ders = blocks.map(|block| block.map(|der| der.as_ref().to_vec()));
    let ders: Vec<_> = ders
        .collect::<Result<_, _>>()
        .map_err(|error| CrlError::Pem(error.to_string()))?;
    if ders.is_empty() {
        Err(CrlError::Nothing)
    } else {
        Ok(ders)
    }
}

#[cfg(test)]
mod tests;
