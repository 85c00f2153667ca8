//! What agents report of their applications (Istio's `HealthInformation`), noted in their WorkloadEntries: it is published from
//! there, and goes with them.

use std::time::Duration;

use mesh_core::health::printable;
use mesh_proto::rpc::Status;

use super::Control;
use crate::error::Refusal;
use crate::resources::{Kind, Resource};
use crate::store::{Error, ResourceRow, now};

/// After a change, before the stream's next request is read.
const PAUSE: Duration = Duration::from_millis(100);

impl Control {
    /// Takes a report in: healthy, or the reason why not. An agent without an entry reports in vain.
    pub async fn reported_health(&self, agent: &str, report: Option<&Status>) -> Result<(), Refusal> {
        let (id, reason) = (agent.to_owned(), report.map(|status| printable(&status.message)));
        let (wanted, noted) = (id.clone(), reason.clone());
        let changed = self.store.run(move |tx| note(tx, &wanted, noted.as_deref())).await?;
        if changed {
            tracing::info!(agent = id, reason, "the health of an agent's workload changed");
            self.touch();
            // Everybody hears of a change. A stream that flaps slows itself down.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Whether anything changed by it.
fn note(tx: &rusqlite::Transaction<'_>, agent: &str, reason: Option<&str>) -> Result<bool, Error> {
    let mut changed = false;
    for row in ResourceRow::of_agent(tx, agent)? {
        let Ok(Resource::WorkloadEntry(mut entry)) = Resource::from_json(Kind::WorkloadEntry, &row.json) else {
            continue;
        };
        if entry.unhealthy() == reason {
            continue;
        }
        entry.set_unhealthy(reason);
        let json = Resource::WorkloadEntry(entry).to_json();
        ResourceRow::put(tx, &row.key, &row.api_version, &json, Some(agent), now())?;
        changed = true;
    }
    Ok(changed)
}
