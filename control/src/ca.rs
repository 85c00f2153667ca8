//! The certificate authority: its anchors, the key that signs, and the leaves that it issues.
//!
//! A made CA keeps each key in `{data_dir}/ca/{fingerprint}.key` (mode 0600) and its anchors in the store; a plugged CA
//! is three files of the operator's. [`crate::rotation`] decides when the key that signs changes.

mod keys;
mod leaf;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
pub(crate) use leaf::random;
pub use leaf::{Leaf, PeerCertificate, public_key_of_csr};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::config::Settings;
use crate::store::{AnchorRow, Role, Store, now};

/// How far `NotBefore` is back-dated, for clocks that run late.
pub const BACKDATE: Duration = Duration::from_secs(300);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Why the CA cannot work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("CA: {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// Something in a file or certificate does not fit.
    #[error("CA: {0}")]
    Invalid(String),
    /// Making or signing a certificate failed.
    #[error("CA: {0}")]
    Sign(#[from] rcgen::Error),
    /// The store failed.
    #[error("CA: {0}")]
    Store(#[from] crate::store::Error),
}

/// A certificate that members trust.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// What the store says of it.
    pub row: AnchorRow,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// SHA-256 of its SubjectPublicKeyInfo: the pin that tokens carry.
    pub pin: Vec<u8>,
    /// For people.
    pub subject: String,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// The CA as it is now; a change makes a new value.
pub struct Authority {
    /// Identities are issued in this trust domain.
    pub trust_domain: String,
    /// Oldest first.
    pub anchors: Vec<Anchor>,
    /// Whether the files are the operator's, so that nothing of them is changed here.
    pub plugged: bool,
    issuer: Issuer<'static, KeyPair>,
    /// Fingerprint of the anchor that leaves chain to.
    signing: String,
    /// Between leaf and anchor, PEM.
    intermediates: Vec<String>,
}

impl Authority {
    /// Opens the CA; makes it on first start.
    pub fn open(settings: &Settings, store: &Store) -> Result<Self, CaError> {
        if let Some(files) = &settings.ca {
            return Self::plugged(settings, files, store);
        }
        let rows = store.write(AnchorRow::list)?;
        if rows.is_empty() {
            let row = new_root(settings, Role::Signing)?;
            store.write(|tx| row.put(tx))?;
            return Self::from_rows(settings, vec![row]);
        }
        Self::from_rows(settings, rows)
    }

    /// The CA of these anchors, with the key of the one that signs.
    pub fn from_rows(settings: &Settings, rows: Vec<AnchorRow>) -> Result<Self, CaError> {
        let anchors = rows.into_iter().map(Anchor::read).collect::<Result<Vec<_>, _>>()?;
        let invalid =
            || CaError::Invalid("no anchor in the store signs; restore the data directory from a backup".into());
        let signing = anchors
            .iter()
            .find(|a| a.row.role == Role::Signing)
            .ok_or_else(invalid)?;
        let key = keys::read(&keys::path(settings, &signing.row.fingerprint))?;
        if !signing.holds_key(&key) {
            return Err(CaError::Invalid(
                "the CA's key file does not belong to its certificate".into(),
            ));
        }
        let retiring = anchors.iter().any(|a| a.row.role == Role::Retiring);
        Ok(Self {
            trust_domain: settings.trust_domain.clone(),
            issuer: Issuer::from_ca_cert_der(&signing.der, key)?,
            signing: signing.row.fingerprint.clone(),
            intermediates: signing.row.cross_signed.iter().filter(|_| retiring).cloned().collect(),
            plugged: false,
            anchors,
        })
    }

    fn plugged(settings: &Settings, files: &crate::config::PluggedCa, store: &Store) -> Result<Self, CaError> {
        let key = keys::read(&files.key)?;
        let roots = keys::certificates(&files.root)?;
        let chain = files
            .chain
            .as_deref()
            .map(keys::certificates)
            .transpose()?
            .unwrap_or_default();
        let mut anchors = Vec::new();
        for der in &roots {
            anchors.push(Anchor::read(AnchorRow {
                fingerprint: hex(digest(&SHA256, der).as_ref()),
                certificate: pem_of(der),
                cross_signed: None,
                role: Role::Next,
                created_at: now(),
            })?);
        }
        let issuing = match chain.first() {
            Some(first) => Anchor::read(AnchorRow {
                fingerprint: hex(digest(&SHA256, first).as_ref()),
                certificate: pem_of(first),
                cross_signed: None,
                role: Role::Signing,
                created_at: now(),
            })?,
            None => anchors.iter().find(|a| a.holds_key(&key)).cloned().ok_or_else(|| {
                CaError::Invalid(format!(
                    "the key in {} belongs to no certificate in {}",
                    files.key.display(),
                    files.root.display()
                ))
            })?,
        };
        if !issuing.holds_key(&key) {
            let message = "the key does not belong to the first certificate of the chain";
            return Err(CaError::Invalid(message.into()));
        }
        let at = if chain.is_empty() {
            anchors
                .iter()
                .position(|a| a.row.fingerprint == issuing.row.fingerprint)
        } else {
            let top = chain.last().unwrap_or(&issuing.der);
            anchors.iter().position(|a| leaf::is_signed_by(top, &a.der))
        };
        let at =
            at.ok_or_else(|| CaError::Invalid("the chain does not end at a certificate of the root file".into()))?;
        anchors[at].row.role = Role::Signing;
        store.write(|tx| {
            for old in AnchorRow::list(tx)? {
                AnchorRow::delete(tx, &old.fingerprint)?;
            }
            anchors.iter().try_for_each(|a| a.row.put(tx))
        })?;
        Ok(Self {
            trust_domain: settings.trust_domain.clone(),
            issuer: Issuer::from_ca_cert_der(&issuing.der, key)?,
            signing: anchors[at].row.fingerprint.clone(),
            intermediates: chain.iter().map(|c| pem_of(c)).collect(),
            plugged: true,
            anchors,
        })
    }

    /// Fingerprint of the anchor that leaves chain to.
    pub fn signing(&self) -> &str {
        &self.signing
    }

    /// The pins that tokens carry: of every anchor, the signing one first.
    pub fn pins(&self) -> Vec<Vec<u8>> {
        let (mut first, rest): (Vec<_>, Vec<_>) = self.anchors.iter().partition(|a| a.row.fingerprint == self.signing);
        first.extend(rest);
        first.into_iter().map(|a| a.pin.clone()).collect()
    }

    /// All anchors, PEM, concatenated: the last element of a certificate response.
    pub fn bundle(&self) -> String {
        self.anchors.iter().map(|a| a.row.certificate.as_str()).collect()
    }

    /// What a holder of `leaf` gets: leaf, intermediates, and last the anchors.
    pub fn chain(&self, leaf: &Leaf) -> Vec<String> {
        let mut chain = vec![leaf.pem.clone()];
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.bundle());
        chain
    }

    /// What the control plane's own server presents: leaf, intermediates, and the anchors (a joining agent knows only a pin).
    pub fn server_chain(&self, leaf: &Leaf) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![leaf.der.clone()];
        let middle = self
            .intermediates
            .iter()
            .filter_map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
        chain.extend(middle);
        let trusted = self.anchors.iter().filter(|a| a.row.role != Role::Next || self.plugged);
        chain.extend(trusted.map(|a| a.der.clone()));
        chain
    }
}

impl Anchor {
    fn read(row: AnchorRow) -> Result<Self, CaError> {
        let invalid = |e: &dyn std::fmt::Display| CaError::Invalid(format!("anchor {}: {e}", row.fingerprint));
        let der = CertificateDer::from_pem_slice(row.certificate.as_bytes()).map_err(|e| invalid(&e))?;
        let (pin, subject, not_after) = {
            let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|e| invalid(&e))?;
            (
                digest(&SHA256, cert.public_key().raw).as_ref().to_vec(),
                cert.subject().to_string(),
                cert.validity().not_after.timestamp(),
            )
        };
        Ok(Self {
            row,
            der,
            pin,
            subject,
            not_after,
        })
    }

    fn holds_key(&self, key: &KeyPair) -> bool {
        use rcgen::PublicKeyData;
        digest(&SHA256, &key.subject_public_key_info()).as_ref() == self.pin.as_slice()
    }
}

/// A new root: its key is on disk, fsynced, before this returns; the row is for the caller to keep.
pub fn new_root(settings: &Settings, role: Role) -> Result<AnchorRow, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = root_params(settings, &key).self_signed(&key)?;
    let fingerprint = hex(digest(&SHA256, certificate.der()).as_ref());
    keys::write(&keys::path(settings, &fingerprint), key.serialize_pem().as_bytes())?;
    Ok(AnchorRow {
        fingerprint,
        certificate: certificate.pem(),
        cross_signed: None,
        role,
        created_at: now(),
    })
}

/// The key of `next`, signed by the key of `signing`: a path for those who only know `signing`. PEM.
pub fn cross_sign(settings: &Settings, next: &AnchorRow, signing: &Anchor) -> Result<String, CaError> {
    let old_key = keys::read(&keys::path(settings, &signing.row.fingerprint))?;
    let new_key = keys::read(&keys::path(settings, &next.fingerprint))?;
    let issuer = Issuer::from_ca_cert_der(&signing.der, old_key)?;
    Ok(root_params(settings, &new_key).signed_by(&new_key, &issuer)?.pem())
}

/// Removes the key of an anchor that is no more.
pub fn forget_key(settings: &Settings, fingerprint: &str) {
    let path = keys::path(settings, fingerprint);
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the key of a retired anchor");
    }
}

/// Parameters that depend on nothing but the key, so that a cross-signed certificate names the same subject.
fn root_params(settings: &Settings, key: &KeyPair) -> CertificateParams {
    use rcgen::PublicKeyData;
    let pin = hex(digest(&SHA256, &key.subject_public_key_info()).as_ref());
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, settings.trust_domain.as_str());
    name.push(DnType::CommonName, format!("mesh root {}", &pin[..8]));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - BACKDATE).into();
    params.not_after = (SystemTime::now() + ROOT_LIFETIME).into();
    params.serial_number = Some(leaf::random_serial().into());
    params
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn pem_of(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|i| &text[i..text.len().min(i + 64)])
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests;
