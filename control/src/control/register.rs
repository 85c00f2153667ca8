//! Registration: an agent's stream makes its WorkloadEntry, and the entry goes when the agent stays away.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Transaction;
use tonic::Code;

use super::Control;
use super::entry::entry_of;
use crate::derive;
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::join::address::{accept, held_by_another};
use crate::registry::Live;
use crate::resources::{Kind, Resource, WorkloadEntry, WorkloadGroup};
use crate::store::{Agent, Clone as RefusedClone, ResourceKey, ResourceRow, TokenRow, now};
use crate::xds::Node;

/// After a start of ours, how much longer than the grace period agents have to come back: their reconnects back off to 15 s.
const RETURN: Duration = Duration::from_secs(20);

/// Why a workload with a probe is out of rotation at first.
const NO_REPORT: &str = "its probe has not reported yet";

impl Control {
    /// Takes a stream in: checks what it claims, refuses clones, and registers the workload when it asks for that.
    /// Returns also the name of the WorkloadEntry that was made, empty when none was.
    pub async fn connect(self: &Arc<Self>, agent: Agent, peer: &Peer, node: &Node) -> Result<(Live, String), Refusal> {
        check_claims(&agent, node)?;
        let Some(live) = self.registry.connect(&agent.id, &node.instance) else {
            return Err(self.refuse_clone(&agent, peer, node).await);
        };
        let (node, id) = (node.clone(), agent.id.clone());
        let source = peer.address.map(|a| a.ip());
        let registered = self.store.run(move |tx| register(tx, &agent, &node, source)).await;
        let entry = match registered {
            Ok(entry) => entry,
            Err(refusal) => {
                self.disconnect(live).await;
                return Err(refusal);
            }
        };
        tracing::info!(agent = id, address = ?peer.address, "agent connected");
        self.touch();
        Ok((live, entry))
    }

    /// Uids that a stream's own workload may have: by the name that it claims, and by the entry that was made for it.
    pub fn own_uids(&self, node: &Node, entry: String) -> Vec<String> {
        let names = [node.name.clone(), entry].into_iter().filter(|name| !name.is_empty());
        names
            .map(|name| derive::entry_uid(&self.settings.cluster_id, &node.namespace, &name))
            .collect()
    }

    /// Lets a stream go; its entry stays for the grace period.
    pub async fn disconnect(self: &Arc<Self>, live: Live) {
        if !self.registry.disconnect(&live) {
            return;
        }
        let id = live.agent().to_owned();
        tracing::info!(agent = id, "agent disconnected");
        let seen = id.clone();
        let noted = self.store.run(move |tx| {
            let agent = Agent::get(tx, &seen)?;
            agent.map_or(Ok(()), |mut agent| {
                agent.last_seen = now();
                agent.put(tx)
            })
        });
        if let Err(error) = noted.await {
            tracing::warn!(agent = id, %error, "cannot note when the agent was last seen");
        }
        let control = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(control.settings.grace_seconds)).await;
            control.remove_if_gone(&id).await;
        });
    }

    /// After a start: entries of agents that do not come back go.
    pub async fn sweep_after_start(self: Arc<Self>) {
        let agents = match self.store.run(Agent::list).await {
            Ok(agents) => agents,
            Err(error) => return tracing::error!(%error, "cannot list agents"),
        };
        tokio::time::sleep(Duration::from_secs(self.settings.grace_seconds) + RETURN).await;
        for agent in agents {
            self.remove_if_gone(&agent.id).await;
        }
    }

    async fn remove_if_gone(&self, agent: &str) {
        if self.registry.is_live(agent) {
            return;
        }
        let (id, registry) = (agent.to_owned(), self.registry.clone());
        let removed = self.store.run(move |tx| {
            // Once more, inside: a stream that came meanwhile has registered again, or waits for this.
            if registry.is_live(&id) {
                return Ok(0);
            }
            ResourceRow::delete_of_agent(tx, &id, "")
        });
        match removed.await {
            Ok(0) => {}
            Ok(_) => {
                tracing::info!(agent, "the agent stayed away; its WorkloadEntry is removed");
                self.touch();
            }
            Err(error) => tracing::error!(agent, %error, "cannot remove the agent's WorkloadEntry"),
        }
    }

    async fn refuse_clone(&self, agent: &Agent, peer: &Peer, node: &Node) -> Refusal {
        let clone = RefusedClone {
            address: peer.address.map(|a| a.ip().to_string()).unwrap_or_default(),
            hostname: node.hostname.clone(),
            at: now(),
        };
        tracing::warn!(
            agent = agent.id,
            address = clone.address,
            hostname = clone.hostname,
            "refused a clone"
        );
        let id = agent.id.clone();
        let recorded = self.store.run(move |tx| Agent::record_clone(tx, &id, &clone));
        if let Err(error) = recorded.await {
            return error;
        }
        Refusal::new(
            Code::PermissionDenied,
            "clone",
            "another machine is connected with this machine's host key (a copied disk?); if this is the copy, remove the agent's state directory and join with a new token",
        )
    }
}

fn check_claims(agent: &Agent, node: &Node) -> Result<(), Refusal> {
    let account = &node.service_account;
    let fits = node.namespace == agent.namespace && (account.is_empty() || *account == agent.service_account);
    if fits {
        return Ok(());
    }
    let message = format!(
        "the stream claims {}/{account} (node metadata NAMESPACE, SERVICE_ACCOUNT; ztunnel's POD_NAMESPACE), but it is authenticated as {}/{}",
        node.namespace, agent.namespace, agent.service_account
    );
    Err(Refusal::new(Code::PermissionDenied, "identity-mismatch", message))
}

/// Makes or refreshes the agent's WorkloadEntry, and notes that the agent was seen. Returns the entry's name, empty for none.
fn register(tx: &Transaction<'_>, agent: &Agent, node: &Node, source: Option<IpAddr>) -> Result<String, Refusal> {
    // Read again: it may have been revoked, or have acknowledged an anchor, since it was authenticated.
    let known = Agent::get(tx, &agent.id)?.filter(|agent| agent.revoked_at.is_none());
    let mut agent = known.ok_or_else(|| super::revoke::revoked(agent))?;
    agent.last_seen = now();
    for (kept, new) in [
        (&mut agent.version, &node.version),
        (&mut agent.hostname, &node.hostname),
    ] {
        if !new.is_empty() {
            kept.clone_from(new);
        }
    }
    if agent.host_spki.is_empty() && !node.group.is_empty() {
        adopt(tx, &mut agent, node, source)?;
    }
    agent.put(tx)?;
    if node.group.is_empty() {
        if agent.host_spki.is_empty() {
            ResourceRow::delete_of_agent(tx, &agent.id, "")?;
        }
        return Ok(String::new());
    }
    let group = group_of(tx, &agent)?;
    if node.group != group.metadata.name {
        let message = format!(
            "the stream asks for WorkloadGroup {}, but the agent joined {}",
            node.group, group.metadata.name
        );
        return Err(Refusal::new(Code::PermissionDenied, "identity-mismatch", message));
    }
    let address = agent
        .address
        .parse()
        .map_err(|e| Refusal::internal("the agent's address cannot be read", &e))?;
    if let Some(holder) = held_by_another(tx, address, &agent.id)? {
        let message = format!("address {address} is held by {holder}; remove that, or join with --address");
        return Err(Refusal::new(Code::FailedPrecondition, "address-taken", message));
    }
    let entry = Resource::WorkloadEntry(with_health(tx, entry_of(&agent, &group, node), &agent, &group)?);
    let key = entry.key();
    ResourceRow::delete_of_agent(tx, &agent.id, &key.name)?;
    ResourceRow::put(tx, &key, entry.api_version(), &entry.to_json(), Some(&agent.id), now())?;
    Ok(key.name)
}

/// A member by token did not join: its group and its address come with its stream, as Istio's auto-registration has it.
fn adopt(tx: &Transaction<'_>, agent: &mut Agent, node: &Node, source: Option<IpAddr>) -> Result<(), Refusal> {
    // A join token fixes the group; a JWT fixes only the identity.
    if !TokenRow::is_held_by(tx, &agent.id)? {
        agent.workload_group.clone_from(&node.group);
    }
    let group = group_of(tx, agent)?;
    let wanted = &group.spec.template.service_account;
    if !wanted.is_empty() && *wanted != agent.service_account {
        let message = format!(
            "WorkloadGroup {}/{} is for service account {wanted}, but the stream's token is of {}",
            agent.namespace, agent.workload_group, agent.service_account
        );
        return Err(Refusal::new(Code::PermissionDenied, "identity-mismatch", message));
    }
    let source = source.ok_or_else(|| Refusal::internal("no peer address", &"not a TCP connection"))?;
    agent.address = accept(tx, &node.address, source, &group, &agent.id)?.to_string();
    Ok(())
}

/// The agent's WorkloadGroup; gone means that it may not come back.
pub(crate) fn group_of(tx: &Transaction<'_>, agent: &Agent) -> Result<WorkloadGroup, Refusal> {
    find_group(tx, &agent.namespace, &agent.workload_group)
}

/// A WorkloadGroup by name.
pub(crate) fn find_group(tx: &Transaction<'_>, namespace: &str, name: &str) -> Result<WorkloadGroup, Refusal> {
    let key = ResourceKey {
        kind: Kind::WorkloadGroup.as_str().to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let row = ResourceRow::get(tx, &key)?;
    let group = row.and_then(|row| Resource::from_json(Kind::WorkloadGroup, &row.json).ok());
    if let Some(Resource::WorkloadGroup(group)) = group {
        return Ok(group);
    }
    let message = format!("there is no WorkloadGroup {namespace}/{name}; an operator must apply it");
    Err(Refusal::new(Code::FailedPrecondition, "group-unknown", message))
}

/// What is known of the health stays known over a reconnect. A new workload that is probed waits for its first report.
fn with_health(
    tx: &Transaction<'_>,
    mut entry: WorkloadEntry,
    agent: &Agent,
    group: &WorkloadGroup,
) -> Result<WorkloadEntry, Refusal> {
    let rows = ResourceRow::of_agent(tx, &agent.id)?;
    let known = rows.iter().find(|row| row.key.name == entry.metadata.name);
    match known.map(|row| Resource::from_json(Kind::WorkloadEntry, &row.json)) {
        Some(Ok(Resource::WorkloadEntry(known))) => entry.status = known.status,
        _ if group.spec.probe.is_some() => entry.set_unhealthy(Some(NO_REPORT)),
        _ => {}
    }
    Ok(entry)
}
