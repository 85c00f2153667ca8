//! Issuing to members: every certificate is recorded before it is handed out. `IstioCertificateService` renews over mTLS, and
//! gives data planes that bring a token their first certificate and every later one.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_proto::istio::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_proto::wkt::value::Kind;
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

/// Certificates for callers by mTLS with the current one, or by a token.
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
        let agent = self.control.caller(&peer, request.metadata()).await?;
        let request = request.into_inner();
        refuse_impersonation(&request)?;
        let longest = lifetime(&self.control.settings);
        let asked = u64::try_from(request.validity_duration)
            .ok()
            .filter(|seconds| *seconds > 0);
        let lifetime = asked.map_or(longest, |s| Duration::from_secs(s).clamp(SHORTEST, longest));
        let steady = self.control.rotating.lock().await;
        let authority = self.control.authority();
        let (id, csr, caller) = (agent.id.clone(), request.csr, agent.clone());
        let cert_chain = self
            .control
            .store
            .run(move |tx| {
                let agent = Agent::get(tx, &id)?.filter(|a| a.revoked_at.is_none());
                let mut agent = agent.ok_or_else(|| crate::control::revoke::revoked(&caller))?;
                let chain = issue(tx, &authority, &agent, &csr, lifetime)?;
                if agent.host_spki.is_empty() {
                    // It knows no trust bundle resource: it trusts the anchors that come with its certificate.
                    agent.acked = authority.anchors.iter().map(|a| a.row.fingerprint.clone()).collect();
                    agent.put(tx)?;
                }
                Ok::<_, Refusal>(chain)
            })
            .await?;
        drop(steady);
        if agent.host_spki.is_empty() {
            self.control.advance_rotation().await?;
        }
        tracing::info!(agent = agent.id, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A data plane for many workloads (ztunnel in shared mode) asks for the identities of others. Nobody may here.
fn refuse_impersonation(request: &IstioCertificateRequest) -> Result<(), Refusal> {
    let asked = request
        .metadata
        .as_ref()
        .and_then(|m| m.fields.get("ImpersonatedIdentity"));
    let empty = Some(Kind::StringValue(String::new()));
    if asked.is_none_or(|value| value.kind.is_none() || value.kind == empty) {
        return Ok(());
    }
    let message = "mesh-control issues to a caller its own identity only; run ztunnel with PROXY_MODE=dedicated, one per workload";
    Err(Refusal::new(Code::PermissionDenied, "impersonation", message))
}
