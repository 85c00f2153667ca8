//! Renews the certificate, and takes up new trust anchors.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_core::rotation::{renew_at, retry_after};
use mesh_core::world::World;
use mesh_proto::istio::ca::IstioCertificateRequest;
use mesh_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::mesh::RecoverRequest;
use mesh_proto::mesh::join_service_client::JoinServiceClient;
use tokio::sync::watch;

use super::{Credentials, LIFETIME, Pem, key_and_request, random, unix};
use crate::channel;
use crate::config::Config;
use crate::join::{Membership, host_key};
use crate::state::State;

/// The task that owns the certificate.
#[derive(Debug)]
pub struct Renewal {
    pub config: Arc<Config>,
    pub membership: Membership,
    pub state: State,
    pub pem: Pem,
    pub publish: watch::Sender<Option<Arc<Credentials>>>,
    pub world: watch::Receiver<Arc<World>>,
}

impl Renewal {
    /// Runs until the agent stops.
    pub async fn run(mut self) {
        let mut failures = 0;
        self.take_up_anchors();
        loop {
            let wait = self.wait(failures);
            tokio::select! {
                () = tokio::time::sleep(wait) => {
                    match self.renew().await {
                        Ok(()) => failures = 0,
                        Err(error) => {
                            failures += 1;
                            self.warn(&error);
                        }
                    }
                }
                changed = self.world.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if self.take_up_anchors() {
                        failures = 0;
                    }
                }
            }
        }
    }

    fn wait(&self, failures: u32) -> Duration {
        let now = unix(SystemTime::now());
        let credentials = self.publish.borrow().clone();
        let Some(credentials) = credentials else {
            return Duration::from_secs(1);
        };
        if failures > 0 {
            return retry_after(failures, now, unix(credentials.not_after), random());
        }
        if self.signer_is_going() {
            return Duration::from_millis(random() % 2000);
        }
        // The same seed every time, so that the moment does not move with each look.
        let seed = u64::from_le_bytes(std::array::from_fn(|at| {
            credentials.serial.get(at).copied().unwrap_or(0)
        }));
        let at = renew_at(unix(credentials.not_before), unix(credentials.not_after), seed);
        // Looked at again at least once a minute: clocks jump.
        Duration::from_secs(at.saturating_sub(now).min(60)).max(Duration::from_millis(200))
    }

    /// Whether it is time; the wait may have been cut short.
    fn is_due(&self) -> bool {
        let Some(credentials) = self.publish.borrow().clone() else {
            return true;
        };
        let seed = u64::from_le_bytes(std::array::from_fn(|at| {
            credentials.serial.get(at).copied().unwrap_or(0)
        }));
        let at = renew_at(unix(credentials.not_before), unix(credentials.not_after), seed);
        unix(SystemTime::now()) >= at || self.signer_is_going()
    }

    /// During a rotation the control plane lists the anchor that signs first; a leaf of another one is renewed soon.
    fn signer_is_going(&self) -> bool {
        let Some(credentials) = self.publish.borrow().clone() else {
            return false;
        };
        let world = self.world.borrow().clone();
        let Some((_, anchors)) = world.trust_bundle() else {
            return false;
        };
        let (Some(first), Ok(leaf)) = (anchors.first(), credentials.key.end_entity_cert()) else {
            return false;
        };
        let Ok(roots) = super::root_store(std::slice::from_ref(first)) else {
            return false;
        };
        let Ok(parsed) = rustls::server::ParsedCertificate::try_from(leaf) else {
            return false;
        };
        let algorithms = crate::tls::provider().signature_verification_algorithms.all;
        let chain = credentials.key.cert.get(1..).unwrap_or_default();
        let now = rustls_pki_types::UnixTime::now();
        let signed = rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &roots, chain, now, algorithms);
        matches!(
            signed,
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer
            ))
        )
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        if !self.is_due() {
            return Ok(());
        }
        let credentials = self.publish.borrow().clone();
        let expired = credentials
            .as_ref()
            .is_none_or(|current| SystemTime::now() >= current.not_after);
        if let Some(command) = credentials
            .as_ref()
            .and_then(|one| self.membership.needs_bundle(one.not_after))
        {
            anyhow::bail!(
                "the certificate has expired, and istiod gives a new one only for a fresh bundle. Make it: {command}; then here: \
                 mesh-agent join --istio-bundle DIR"
            );
        }
        let identity = self.membership.identity()?;
        let (key, csr) = key_and_request(self.membership.istiod().map(|_| &identity))?;
        let chain = if expired {
            self.recover(csr).await?
        } else {
            self.ask(csr, credentials.as_deref()).await?
        };
        let mut pem = Pem::from_response(key, chain)?;
        let fresh = pem.credentials().context("the control plane's answer")?;
        if fresh.identity != identity {
            anyhow::bail!("the control plane signed for {} instead of {identity}", fresh.identity);
        }
        // Anchors that are held stay until the trust bundle says otherwise. istiod has none: each answer has all anchors.
        if self.membership.istiod().is_none() {
            for held in &self.pem.roots {
                if !pem.roots.contains(held) {
                    pem.roots.push(held.clone());
                }
            }
        }
        self.publish(pem)?;
        tracing::info!(target: "mesh_agent::certs", recovered = expired, "certificate renewed");
        Ok(())
    }

    async fn ask(&self, csr: String, credentials: Option<&Credentials>) -> anyhow::Result<Vec<String>> {
        let mut client = IstioCertificateServiceClient::new(self.connect(credentials).await?.channel().await?);
        let request = IstioCertificateRequest {
            csr,
            validity_duration: LIFETIME,
            metadata: None,
        };
        let request = self.membership.request(request)?;
        let response = tokio::time::timeout(CALL, client.create_certificate(request)).await??;
        Ok(response.into_inner().cert_chain)
    }

    /// The certificate expired while the machine was off: the host key stands for it.
    async fn recover(&self, csr: String) -> anyhow::Result<Vec<String>> {
        let connection = self.connect(None).await?;
        let host = host_key(&self.state)?.prove(&connection.exporter()?)?;
        let mut client = JoinServiceClient::new(connection.channel().await?);
        let request = RecoverRequest {
            host: Some(host),
            csr,
            agent_version: env!("CARGO_PKG_VERSION").into(),
        };
        let response = tokio::time::timeout(CALL, client.recover(request)).await??;
        Ok(response.into_inner().cert_chain)
    }

    async fn connect(&self, credentials: Option<&Credentials>) -> anyhow::Result<channel::Verified> {
        let server = self.membership.server(&self.pem.roots)?;
        let addresses = &self.membership.control_addresses;
        channel::connect(addresses, &server, credentials, &self.config.lookup()).await
    }

    /// Trusts exactly the anchors that the control plane announces; true when that changed something.
    fn take_up_anchors(&mut self) -> bool {
        let world = self.world.borrow_and_update().clone();
        let Some((domain, anchors)) = world.trust_bundle() else {
            return false;
        };
        if domain != self.membership.trust_domain || anchors == self.pem.roots.as_slice() {
            return false;
        }
        let pem = Pem {
            roots: anchors.to_vec(),
            ..self.pem.clone()
        };
        match self.publish(pem) {
            Ok(()) => tracing::info!(target: "mesh_agent::certs", anchors = anchors.len(), "trust anchors changed"),
            Err(error) => tracing::error!(target: "mesh_agent::certs", %error, "new trust anchors cannot be used"),
        }
        true
    }

    fn publish(&mut self, pem: Pem) -> anyhow::Result<()> {
        let credentials = pem.credentials()?;
        // A full disk must not keep a good certificate from being used; it is written again at the next renewal.
        if let Err(error) = pem.store(&self.state) {
            tracing::error!(target: "mesh_agent::certs", error = %format!("{error:#}"), "the certificate was not saved");
        }
        self.pem = pem;
        self.publish.send_replace(Some(Arc::new(credentials)));
        Ok(())
    }

    fn warn(&self, error: &anyhow::Error) {
        let left = self.publish.borrow().as_ref().map_or(0, |credentials| {
            credentials
                .not_after
                .duration_since(SystemTime::now())
                .map_or(0, |left| left.as_secs())
        });
        let error = format!("{error:#}");
        if self.needs_bundle() {
            tracing::error!(target: "mesh_agent::certs", %error, "this machine is out of the mesh until somebody acts");
        } else {
            tracing::warn!(target: "mesh_agent::certs", %error, seconds_left = left, "the certificate was not renewed");
        }
    }

    fn needs_bundle(&self) -> bool {
        let credentials = self.publish.borrow();
        let expires = credentials.as_ref().map(|credentials| credentials.not_after);
        expires.is_some_and(|at| self.membership.needs_bundle(at).is_some())
    }
}

const CALL: Duration = Duration::from_secs(10);
