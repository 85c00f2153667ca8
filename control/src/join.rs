//! Joining: a token and proof of the host key become a first certificate; a host key alone brings a machine back.

pub(crate) mod address;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use mesh_proto::mesh::join_service_server::JoinService;
use mesh_proto::mesh::{HostProof, JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RecoverRequest};
use rusqlite::Transaction;
use tonic::{Code, Request, Response, Status};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use crate::ca::{Authority, hex};
use crate::control::entry::entry_name;
use crate::control::register::{find_group, group_of};
use crate::control::revoke::host_key_revoked;
use crate::control::{Control, lifetime};
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::issue::issue;
use crate::resources::WorkloadGroup;
use crate::store::{Agent, TokenRow, now};
use crate::token;

/// What the host key signs before the TLS exporter's 32 bytes.
const PROOF: &[u8] = b"mesh-agent-join-v1";
/// Longest hostname and version that are kept, in bytes.
const TEXT: usize = 253;

/// The service.
#[derive(Clone)]
pub struct Joins {
    control: Arc<Control>,
}

/// A call whose host key is proven.
struct Proven {
    agent: String,
    spki: Vec<u8>,
    source: IpAddr,
}

impl Joins {
    /// The service of this control plane.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// Lets a call through the rate bounds and checks its proof of the host key.
    fn prove(&self, peer: &Peer, host: Option<HostProof>) -> Result<Proven, Refusal> {
        let source = peer
            .address
            .ok_or_else(|| Refusal::internal("no peer address", &"not a TCP connection"))?
            .ip();
        self.control.limits.admit(source, Instant::now())?;
        let invalid = |message: &str| Refusal::new(Code::InvalidArgument, "host-proof", message);
        let host = host.ok_or_else(|| invalid("the host key's proof is missing"))?;
        let (rest, spki) =
            SubjectPublicKeyInfo::from_der(&host.public_key).map_err(|_| invalid("the host key cannot be read"))?;
        if !rest.is_empty() {
            return Err(invalid("the host key cannot be read"));
        }
        let exporter = peer
            .exporter
            .ok_or_else(|| Refusal::internal("no TLS exporter", &"not TLS"))?;
        let message = [PROOF, &exporter].concat();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &spki.subject_public_key.data)
            .verify(&message, &host.signature)
            .map_err(|_| {
                invalid("the host key's signature does not fit this connection (a proxy that ends TLS in between?)")
            })?;
        let id = hex(&digest(&SHA256, &host.public_key).as_ref()[..8]);
        Ok(Proven {
            agent: id,
            spki: host.public_key,
            source,
        })
    }

    fn response(&self, agent: &Agent, group: &WorkloadGroup, cert_chain: Vec<String>) -> JoinResponse {
        let settings = &self.control.settings;
        JoinResponse {
            cert_chain,
            agent_id: agent.id.clone(),
            trust_domain: settings.trust_domain.clone(),
            namespace: agent.namespace.clone(),
            service_account: agent.service_account.clone(),
            workload_name: entry_name(&agent.workload_group, &agent.address),
            workload_group: agent.workload_group.clone(),
            network: group.spec.template.network.clone(),
            cluster_id: settings.cluster_id.clone(),
            dns_domain: settings.dns_domain.clone(),
            address: agent.address.clone(),
            // What is configured may have changed since the token was made; what is only guessed may not be reachable.
            control_addresses: match settings.addresses.is_empty() {
                true => agent.control_addresses.clone(),
                false => settings.addresses.clone(),
            },
        }
    }
}

#[tonic::async_trait]
impl JoinService for Joins {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let mut request = request.into_inner();
        let proven = self.prove(&peer, request.host.take())?;
        let _steady = self.control.rotating.lock().await;
        let authority = self.control.authority();
        let lifetime = lifetime(&self.control.settings);
        let (agent, group, chain) = self
            .control
            .store
            .run(move |tx| {
                let (agent, group) = admit(tx, &proven, &request)?;
                let chain = issue(tx, &authority, &agent, &request.csr, lifetime)?;
                Ok::<_, Refusal>((agent, group, chain))
            })
            .await
            .inspect_err(
                |refusal| tracing::info!(address = ?peer.address, word = refusal.word, %refusal, "join refused"),
            )?;
        tracing::info!(
            agent = agent.id,
            address = agent.address,
            group = agent.workload_group,
            "agent joined"
        );
        Ok(Response::new(self.response(&agent, &group, chain)))
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let mut request = request.into_inner();
        let proven = self.prove(&peer, request.host.take())?;
        let _steady = self.control.rotating.lock().await;
        let authority: Arc<Authority> = self.control.authority();
        let lifetime = lifetime(&self.control.settings);
        let (agent, group, chain) = self
            .control
            .store
            .run(move |tx| {
                let found = Agent::get(tx, &proven.agent)?.filter(|a| a.host_spki == proven.spki);
                let mut agent = found.ok_or_else(|| {
                    let message = "this control plane does not know this machine's host key; join with a token";
                    Refusal::new(Code::NotFound, "host-key-unknown", message)
                })?;
                if agent.revoked_at.is_some() {
                    return Err(host_key_revoked());
                }
                let group = group_of(tx, &agent)?;
                agent.recoveries = agent.recoveries.saturating_add(1);
                agent.last_seen = now();
                agent.version = clip(&request.agent_version);
                agent.put(tx)?;
                let chain = issue(tx, &authority, &agent, &request.csr, lifetime)?;
                Ok((agent, group, chain))
            })
            .await?;
        tracing::info!(
            agent = agent.id,
            recoveries = agent.recoveries,
            "agent recovered by its host key"
        );
        Ok(Response::new(self.response(&agent, &group, chain)))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let agent = self.control.authenticate(&peer).await?;
        self.control.revoke_agent(&agent.id).await?;
        Ok(Response::new(LeaveResponse {}))
    }
}

/// Checks token, host key and address, and binds them together. Nothing is written when anything is refused.
fn admit(tx: &Transaction<'_>, proven: &Proven, request: &JoinRequest) -> Result<(Agent, WorkloadGroup), Refusal> {
    let token = token::check(tx, &request.token_id, &request.secret, &proven.agent, proven.source)?;
    let known = Agent::get(tx, &proven.agent)?;
    if known.as_ref().is_some_and(|a| a.revoked_at.is_some()) {
        return Err(host_key_revoked());
    }
    let (namespace, name) = token.workload_group.split_once('/').unwrap_or_default();
    let group = find_group(tx, namespace, name)?;
    if let Some(other) = known
        .as_ref()
        .filter(|a| a.namespace != namespace || a.workload_group != name)
    {
        let message = format!(
            "this machine already joined WorkloadGroup {}/{}; leave first: `mesh-agent leave`",
            other.namespace, other.workload_group
        );
        return Err(Refusal::new(Code::FailedPrecondition, "already-joined", message));
    }
    let address = address::accept(tx, &request.address, proven.source, &group, &proven.agent)?;
    let agent = Agent {
        id: proven.agent.clone(),
        host_spki: proven.spki.clone(),
        namespace: namespace.to_owned(),
        service_account: group.spec.template.account().to_owned(),
        workload_group: name.to_owned(),
        address: address.to_string(),
        hostname: clip(&request.hostname),
        version: clip(&request.agent_version),
        joined_at: known.as_ref().map_or_else(now, |a| a.joined_at),
        last_seen: now(),
        recoveries: known.as_ref().map_or(0, |a| a.recoveries),
        revoked_at: None,
        acked: known.map(|a| a.acked).unwrap_or_default(),
        control_addresses: token.addresses.clone(),
    };
    agent.put(tx)?;
    TokenRow::bind(tx, &token.id, &agent.id, now())?;
    Ok((agent, group))
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT).collect()
}
