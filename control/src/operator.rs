//! The operator's calls: over the local socket (root or the server's own user), or with an operator token over TLS. A
//! workload certificate opens none of them.

mod access;
mod apply;
mod status;
mod tokens;

use std::collections::HashMap;
use std::sync::Arc;

pub use access::{OPERATOR_TOKEN_PREFIX, OperatorCredential};
use mesh_proto::mesh::operator_server::Operator;
use mesh_proto::mesh::{
    AgentInfo, ApplyRequest, ApplyResponse, CaRotateRequest, CaStatusRequest, CaStatusResponse,
    CreateOperatorTokenRequest, CreateOperatorTokenResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest,
    DeleteResponse, GetRequest, GetResponse, ListAgentsRequest, ListAgentsResponse, ListTokensRequest,
    ListTokensResponse, RefusedClone, RevokeAgentRequest, RevokeAgentResponse, RevokeTokenRequest, RevokeTokenResponse,
};
use tonic::{Request, Response, Status};

use crate::control::Control;
use crate::control::entry::entry_name;
use crate::error::Refusal;
use crate::resources::{Kind, Resource};
use crate::store::{Agent, CertificateRow, ResourceRow, now, timestamp};

/// The service.
#[derive(Clone)]
pub struct Operators {
    control: Arc<Control>,
}

impl Operators {
    /// The service of this control plane.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    async fn agents(&self) -> Result<Vec<AgentInfo>, Refusal> {
        let registry = self.control.registry.clone();
        self.control
            .store
            .run(move |tx| {
                let live = CertificateRow::newest_live(tx, now())?;
                let entries = ResourceRow::list(tx, Kind::WorkloadEntry.as_str(), "", "")?;
                let names = entries.into_iter().filter_map(|row| Some((row.agent?, row.key.name)));
                let names: HashMap<String, String> = names.collect();
                let unhealthy = unhealthy(tx)?;
                let mut infos = Vec::new();
                for agent in Agent::list(tx)? {
                    let clones = Agent::clones(tx, &agent.id)?;
                    let certificate = live.iter().find(|c| c.agent == agent.id);
                    let state = match (agent.revoked_at, registry.is_live(&agent.id)) {
                        (Some(_), _) => "revoked",
                        (None, true) => "connected",
                        (None, false) => "disconnected",
                    };
                    infos.push(AgentInfo {
                        workload: match names.get(&agent.id) {
                            Some(name) => name.clone(),
                            None if agent.workload_group.is_empty() => agent.hostname.clone(),
                            None => entry_name(&agent.workload_group, &agent.address),
                        },
                        unhealthy: unhealthy.get(&agent.id).cloned().unwrap_or_default(),
                        id: agent.id,
                        hostname: agent.hostname,
                        namespace: agent.namespace,
                        service_account: agent.service_account,
                        address: agent.address,
                        state: state.to_owned(),
                        joined_at: Some(timestamp(agent.joined_at)),
                        last_seen: Some(timestamp(agent.last_seen)),
                        certificate_not_after: certificate.map(|c| timestamp(c.not_after)),
                        agent_version: agent.version,
                        clones: clones
                            .into_iter()
                            .map(|c| RefusedClone {
                                address: c.address,
                                hostname: c.hostname,
                                at: Some(timestamp(c.at)),
                            })
                            .collect(),
                        recoveries: agent.recoveries,
                        acknowledged_anchors: agent.acked.into_iter().collect(),
                    });
                }
                Ok::<_, crate::store::Error>(infos)
            })
            .await
    }
}

/// By agent: why its workload is out of rotation.
fn unhealthy(tx: &rusqlite::Transaction<'_>) -> Result<HashMap<String, String>, crate::store::Error> {
    let rows = ResourceRow::list(tx, Kind::WorkloadEntry.as_str(), "", "")?;
    let of = |row: ResourceRow| match Resource::from_json(Kind::WorkloadEntry, &row.json) {
        Ok(Resource::WorkloadEntry(entry)) => Some((row.agent?, entry.unhealthy()?.to_owned())),
        _ => None,
    };
    Ok(rows.into_iter().filter_map(of).collect())
}

#[tonic::async_trait]
impl Operator for Operators {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        self.allow(&request).await?;
        Ok(Response::new(self.new_token(request.into_inner()).await?))
    }

    async fn list_tokens(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        self.allow(&request).await?;
        Ok(Response::new(self.all_tokens().await?))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        self.allow(&request).await?;
        self.end_token(request.into_inner().id).await?;
        Ok(Response::new(RevokeTokenResponse {}))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        self.allow(&request).await?;
        Ok(Response::new(self.apply_documents(request.into_inner()).await?))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        self.allow(&request).await?;
        Ok(Response::new(self.find_resources(request.into_inner()).await?))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        self.allow(&request).await?;
        self.delete_resource(request.into_inner()).await?;
        Ok(Response::new(DeleteResponse {}))
    }

    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        self.allow(&request).await?;
        let agents = self.agents().await?;
        Ok(Response::new(ListAgentsResponse { agents }))
    }

    async fn revoke_agent(
        &self,
        request: Request<RevokeAgentRequest>,
    ) -> Result<Response<RevokeAgentResponse>, Status> {
        self.allow(&request).await?;
        let certificates = self.control.revoke_agent(&request.into_inner().agent).await?;
        // Fewer agents to wait for.
        self.control.advance_rotation().await?;
        Ok(Response::new(RevokeAgentResponse { certificates }))
    }

    async fn ca_status(&self, request: Request<CaStatusRequest>) -> Result<Response<CaStatusResponse>, Status> {
        self.allow(&request).await?;
        Ok(Response::new(self.control.ca_status().await?))
    }

    async fn ca_rotate(&self, request: Request<CaRotateRequest>) -> Result<Response<CaStatusResponse>, Status> {
        self.allow(&request).await?;
        self.control.rotate(request.into_inner().force).await?;
        Ok(Response::new(self.control.ca_status().await?))
    }

    async fn create_operator_token(
        &self,
        request: Request<CreateOperatorTokenRequest>,
    ) -> Result<Response<CreateOperatorTokenResponse>, Status> {
        self.allow(&request).await?;
        let token = self.new_operator_token(request.into_inner()).await?;
        Ok(Response::new(CreateOperatorTokenResponse { token }))
    }
}
