//! The control plane's one shared value: settings, store, CA, live agents, and the published snapshot that follows the store.

pub(crate) mod entry;
mod health;
mod publish;
pub(crate) mod register;
pub(crate) mod revoke;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::{Notify, watch};
use tonic::Code;

use crate::auth::Issuers;
use crate::ca::{Authority, CaError, PeerCertificate};
use crate::config::Settings;
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::limits::Limits;
use crate::registry::Registry;
use crate::store::{Agent, CertificateRow, Store, now};
use crate::tls::{self, ServerTls};
use crate::xds::Snapshot;

/// Shared by all services and tasks.
pub struct Control {
    /// How it is set up.
    pub settings: Settings,
    /// What must survive.
    pub store: Store,
    /// Who has a stream.
    pub registry: Registry,
    /// Bounds on unauthenticated calls.
    pub limits: Limits,
    /// Whose JWTs are believed.
    pub issuers: Issuers,
    /// What tokens advertise; known once the listeners are bound.
    pub addresses: OnceLock<Vec<String>>,
    /// What operator tokens advertise.
    pub operator_addresses: OnceLock<Vec<String>>,
    authority: RwLock<Arc<Authority>>,
    tls: RwLock<ServerTls>,
    refused: RwLock<Arc<Refused>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    dirty: Notify,
    /// Serialises changes of the CA.
    pub(crate) rotating: tokio::sync::Mutex<()>,
}

/// Certificates that no handshake and no call accepts.
#[derive(Default)]
struct Refused {
    serials: HashSet<Vec<u8>>,
    spki_sha256: HashSet<Vec<u8>>,
}

impl Control {
    /// Opens the store and the CA, and publishes what is in them.
    pub fn open(settings: Settings, store: Store, issuers: Issuers) -> Result<Arc<Self>, CaError> {
        let authority = Arc::new(Authority::open(&settings, &store)?);
        let tls = tls::server(&authority, &settings)?;
        let control = Arc::new(Self {
            settings,
            store,
            registry: Registry::default(),
            limits: Limits::default(),
            issuers,
            addresses: OnceLock::new(),
            operator_addresses: OnceLock::new(),
            authority: RwLock::new(authority),
            tls: RwLock::new(tls),
            refused: RwLock::default(),
            snapshot: watch::Sender::new(Arc::default()),
            dirty: Notify::new(),
            rotating: tokio::sync::Mutex::new(()),
        });
        control.refresh_refused()?;
        let published = control.derive()?;
        control.snapshot.send_replace(Arc::new(published));
        Ok(control)
    }

    /// The CA as it is now.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another CA in place: certificates, handshakes and the trust bundle follow.
    pub fn replace_authority(&self, authority: Authority) -> Result<(), CaError> {
        let fresh = tls::server(&authority, &self.settings)?;
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.touch();
        Ok(())
    }

    /// Renews the control plane's own certificate.
    pub fn renew_own_certificate(&self) -> Result<(), CaError> {
        let fresh = tls::server(&self.authority(), &self.settings)?;
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// TLS for agents.
    pub fn agents_tls(&self) -> Arc<ServerConfig> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).agents.clone()
    }

    /// TLS for operators.
    pub fn operators_tls(&self) -> Arc<ServerConfig> {
        self.tls
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .operators
            .clone()
    }

    /// Published states, newest only.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Says that the store changed, so that a new state is published soon.
    pub fn touch(&self) {
        self.dirty.notify_one();
    }

    /// Whether a handshake may go on with this client certificate.
    pub fn admits(&self, certificate: &PeerCertificate) -> bool {
        let refused = self.refused.read().unwrap_or_else(PoisonError::into_inner).clone();
        !refused.serials.contains(&certificate.serial) && !refused.spki_sha256.contains(&certificate.spki_sha256)
    }

    /// The agent behind a call: it must come with a live, unrevoked workload certificate that we issued.
    pub async fn authenticate(&self, peer: &Peer) -> Result<Agent, Refusal> {
        let unauthenticated = |message: &str| Refusal::new(Code::Unauthenticated, "unauthenticated", message);
        let certificate = peer.certificate.clone().ok_or_else(|| {
            unauthenticated(
                "this call needs a workload certificate of this mesh as TLS client certificate, or a token as `authorization: Bearer`",
            )
        })?;
        if certificate.not_after <= now() {
            let message = "the workload certificate has expired; recover with the host key";
            return Err(Refusal::new(Code::Unauthenticated, "certificate-expired", message));
        }
        if !self.admits(&certificate) {
            let message = "the workload certificate is revoked; this machine must join again with a new token";
            return Err(Refusal::new(Code::Unauthenticated, "certificate-revoked", message));
        }
        let serial = certificate.serial.clone();
        let found = self
            .store
            .run(move |tx| match CertificateRow::agent_of(tx, &serial)? {
                Some(id) => Agent::get(tx, &id),
                None => Ok(None),
            })
            .await?;
        let agent =
            found.ok_or_else(|| unauthenticated("the certificate was not issued to an agent of this control plane"))?;
        if agent.revoked_at.is_some() {
            return Err(revoke::revoked(&agent));
        }
        let own = (certificate.identity.namespace(), certificate.identity.service_account());
        if own != (agent.namespace.as_str(), agent.service_account.as_str()) {
            return Err(unauthenticated(
                "the certificate is of an identity that this agent no longer has",
            ));
        }
        Ok(agent)
    }
}

/// Lifetime of issued certificates.
pub fn lifetime(settings: &Settings) -> Duration {
    Duration::from_secs(settings.certificate_lifetime_seconds)
}
