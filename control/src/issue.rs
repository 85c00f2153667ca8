//! Issuing to agents: every certificate is recorded before it is handed out. `IstioCertificateService` renews over mTLS.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_proto::istio::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use rusqlite::Transaction;
use tonic::{Code, Request, Response, Status};

use crate::ca::{Authority, public_key_of_csr};
use crate::control::{Control, lifetime};
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::store::{Agent, CertificateRow, now};

/// Shortest lifetime that may be asked for; less would expire before it is installed.
const SHORTEST: Duration = Duration::from_secs(10);

/// Issues a certificate for the key in `csr` with the agent's identity, and records it in the same transaction.
pub(crate) fn issue(
    tx: &Transaction<'_>,
    authority: &Authority,
    agent: &Agent,
    csr: &str,
    lifetime: Duration,
) -> Result<Vec<String>, Refusal> {
    let invalid = |e: &dyn std::fmt::Display| Refusal::new(Code::InvalidArgument, "csr-invalid", e.to_string());
    let spki = public_key_of_csr(csr).map_err(|e| invalid(&e))?;
    let identity =
        Identity::new(&authority.trust_domain, &agent.namespace, &agent.service_account).map_err(|e| invalid(&e))?;
    if agent.namespace == mesh_core::identity::CONTROL_NAMESPACE {
        let message = "no machine may have an identity in namespace mesh-system";
        return Err(Refusal::new(Code::PermissionDenied, "namespace-reserved", message));
    }
    let leaf = authority
        .issue(&spki, &identity, lifetime)
        .map_err(|e| Refusal::internal("signing failed", &e))?;
    CertificateRow {
        serial: leaf.serial.clone(),
        spki_sha256: leaf.spki_sha256.clone(),
        agent: agent.id.clone(),
        anchor: authority.signing().to_owned(),
        issued_at: now(),
        not_after: leaf.not_after,
    }
    .insert(tx)?;
    Ok(authority.chain(&leaf))
}

/// Renewal by mTLS with the current certificate.
#[derive(Clone)]
pub struct Certificates {
    control: Arc<Control>,
}

impl Certificates {
    /// The service of this control plane.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let agent = self.control.authenticate(&peer).await?;
        let request = request.into_inner();
        let longest = lifetime(&self.control.settings);
        let asked = u64::try_from(request.validity_duration)
            .ok()
            .filter(|seconds| *seconds > 0);
        let lifetime = asked.map_or(longest, |s| Duration::from_secs(s).clamp(SHORTEST, longest));
        let _steady = self.control.rotating.lock().await;
        let authority = self.control.authority();
        let (id, csr) = (agent.id.clone(), request.csr);
        let cert_chain = self
            .control
            .store
            .run(move |tx| {
                let agent = Agent::get(tx, &id)?.filter(|a| a.revoked_at.is_none());
                let agent = agent.ok_or_else(crate::control::revoke::host_key_revoked)?;
                issue(tx, &authority, &agent, &csr, lifetime)
            })
            .await?;
        tracing::info!(agent = agent.id, "certificate renewed");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
