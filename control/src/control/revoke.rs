//! Revocation: a host key and all its certificates are refused at once, the entry leaves the world, and members are told.

use std::collections::BTreeSet;

use tonic::Code;

use super::Control;
use crate::error::Refusal;
use crate::store::{Agent, CertificateRow, ResourceRow, now};

impl Control {
    /// Revokes an agent by its id or its workload's `namespace/name`; returns how many live certificates it held.
    pub async fn revoke_agent(&self, wanted: &str) -> Result<u32, Refusal> {
        let wanted = wanted.to_owned();
        let (id, certificates, refusal) = self
            .store
            .run(move |tx| {
                let mut agent = find(tx, &wanted)?;
                let id = agent.id.clone();
                agent.revoked_at.get_or_insert_with(now);
                agent.put(tx)?;
                let refusal = revoked(&agent);
                ResourceRow::delete_of_agent(tx, &id, "")?;
                let certificates = CertificateRow::revoked(tx, now())?;
                let count = certificates
                    .iter()
                    .find(|r| r.agent == id)
                    .map_or(0, |r| r.serials.len());
                Ok::<_, Refusal>((id, count, refusal))
            })
            .await?;
        self.refresh_refused()?;
        self.registry.end(&id, refusal);
        self.touch();
        tracing::info!(agent = id, certificates, "agent revoked");
        Ok(u32::try_from(certificates).unwrap_or(u32::MAX))
    }

    /// Notes which anchors an agent trusts by now, and lets a rotation go on when all do.
    pub async fn acknowledged_anchors(&self, agent: &str, anchors: &[String]) -> Result<(), Refusal> {
        let (id, held) = (agent.to_owned(), anchors.iter().cloned().collect::<BTreeSet<_>>());
        let changed = self
            .store
            .run(move |tx| {
                let Some(mut agent) = Agent::get(tx, &id)? else {
                    return Ok(false);
                };
                if agent.acked == held {
                    return Ok(false);
                }
                agent.acked = held;
                agent.put(tx)?;
                Ok::<_, crate::store::Error>(true)
            })
            .await?;
        if changed {
            self.advance_rotation().await?;
        }
        Ok(())
    }
}

fn find(tx: &rusqlite::Transaction<'_>, wanted: &str) -> Result<Agent, Refusal> {
    if let Some(agent) = Agent::get(tx, wanted)? {
        return Ok(agent);
    }
    if let Some((namespace, name)) = wanted.split_once('/') {
        let rows = ResourceRow::list(tx, "WorkloadEntry", namespace, name)?;
        if let Some(id) = rows.into_iter().find_map(|row| row.agent)
            && let Some(agent) = Agent::get(tx, &id)?
        {
            return Ok(agent);
        }
        let named =
            |a: &Agent| a.namespace == namespace && super::entry::entry_name(&a.workload_group, &a.address) == name;
        if let Some(agent) = Agent::list(tx)?.into_iter().rfind(named) {
            return Ok(agent);
        }
    }
    let message = format!("there is no agent {wanted:?}; `meshctl agents` lists them");
    Err(Refusal::new(Code::NotFound, "agent-unknown", message))
}

/// What a revoked member is told.
pub(crate) fn revoked(agent: &Agent) -> Refusal {
    if !agent.host_spki.is_empty() {
        return host_key_revoked();
    }
    let message = format!(
        "member {} is revoked; it comes back with a new join token, or with a JWT that is issued from now on",
        agent.id
    );
    Refusal::new(Code::PermissionDenied, "member-revoked", message)
}

/// What a revoked machine is told.
pub(crate) fn host_key_revoked() -> Refusal {
    Refusal::new(
        Code::PermissionDenied,
        "host-key-revoked",
        "this machine's host key is revoked; remove the agent's state directory and join with a new token",
    )
}
