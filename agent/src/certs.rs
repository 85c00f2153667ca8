//! The current certificate: read from disk, renewed at half life over mTLS with itself, published by a watch.

mod renewal;

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, bail};
use mesh_core::identity::Identity;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::state::{self, State};
use crate::tls::{PeerCertificate, provider};
pub use renewal::Renewal;

/// A certificate with its key and the anchors that peers are checked against. Immutable; a renewal publishes another.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub identity: Identity,
    pub key: Arc<CertifiedKey>,
    pub roots: Arc<RootCertStore>,
    /// PEM of the anchors, for `/config_dump` and the disk.
    pub root_pems: Vec<String>,
    /// Big-endian, no leading zeros.
    pub serial: Vec<u8>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// A key, a chain and anchors, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pem {
    pub key: String,
    pub chain: String,
    pub roots: Vec<String>,
}

impl Pem {
    /// From a CA's answer: leaf, intermediates, and last the root bundle (as istiod sends it).
    pub fn from_response(key: String, mut chain: Vec<String>) -> anyhow::Result<Self> {
        let bundle = chain
            .pop()
            .filter(|_| !chain.is_empty())
            .context("the CA sent no certificate or no anchors")?;
        let roots = split_bundle(&bundle)?;
        Ok(Self {
            key,
            chain: chain.join("\n"),
            roots,
        })
    }

    /// Reads what the state directory holds; `None` when a part is missing.
    pub fn load(state: &State) -> anyhow::Result<Option<Self>> {
        let text = |name| {
            anyhow::Ok(
                state
                    .read(name)?
                    .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            )
        };
        let (key, chain, roots) = (text(state::KEY)?, text(state::CERTIFICATE)?, text(state::ROOTS)?);
        let (Some(key), Some(chain), Some(roots)) = (key, chain, roots) else {
            return Ok(None);
        };
        Ok(Some(Self {
            key,
            chain,
            roots: split_bundle(&roots)?,
        }))
    }

    /// Writes it; the certificate last, so that a torn write leaves a pair that does not fit and is noticed.
    pub fn store(&self, state: &State) -> anyhow::Result<()> {
        state.write(state::ROOTS, self.roots.join("\n").as_bytes())?;
        state.write(state::KEY, self.key.as_bytes())?;
        state.write(state::CERTIFICATE, self.chain.as_bytes())
    }

    /// Checks that the parts fit together.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<_, _>>()?;
        let leaf = chain.first().context("there is no certificate")?;
        let facts = PeerCertificate::parse(leaf).context("the certificate is not readable")?;
        let identity = facts
            .identity()
            .cloned()
            .context("the certificate names no SPIFFE identity")?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("reading the key")?;
        let key = CertifiedKey::from_der(chain, key, &provider()).context("key and certificate do not fit")?;
        Ok(Credentials {
            identity,
            key: Arc::new(key),
            roots: Arc::new(root_store(&self.roots)?),
            root_pems: self.roots.clone(),
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }
}

/// Anchors from their PEM.
pub fn root_store(pems: &[String]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for pem in pems {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate?)?;
        }
    }
    if roots.is_empty() {
        bail!("there is no trust anchor");
    }
    Ok(roots)
}

/// One PEM certificate each.
pub fn split_bundle(bundle: &str) -> anyhow::Result<Vec<String>> {
    let end = "-----END CERTIFICATE-----";
    let pems: Vec<String> = bundle
        .split_inclusive(end)
        .map(str::trim)
        .filter(|part| part.ends_with(end))
        .map(|part| format!("{part}\n"))
        .collect();
    if pems.is_empty() {
        Err(anyhow!("the bundle holds no certificate"))
    } else {
        Ok(pems)
    }
}

/// A fresh P-256 key and a request for it, both PEM. mesh-control and istiod read nothing of it but the public key; other CAs
/// behind istiod's interface may want to see the identity too.
pub fn key_and_request(identity: Option<&Identity>) -> anyhow::Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    if let Some(identity) = identity {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into()?)];
    }
    let request = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.pem()?))
}

/// Seconds since the epoch.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Random bits for jitter.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// How long a certificate is asked for, in seconds; the control plane may give less.
pub const LIFETIME: i64 = 86_400;
