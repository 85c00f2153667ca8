//! Looks after our own record: what is wrong with it is logged once, and shown by `status`.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::own_record::{Expected, Finding, check};
use tokio::sync::watch;

use crate::shared::Shared;
use crate::xds;

/// Runs until the agent stops. At mesh-control there is nothing to look after: it makes the record itself, from the token.
pub async fn look_after(
    shared: Arc<Shared>,
    mut xds: watch::Receiver<xds::Status>,
    found: watch::Sender<Vec<Finding>>,
) {
    let mut world = shared.world.clone();
    while shared.membership.istiod().is_some() {
        if xds.wait_for(|status| status.connected).await.is_err() {
            return;
        }
        world.mark_unchanged();
        let now = findings(&shared);
        if now != *found.borrow() {
            // A record that is missing may be on its way: istiod makes it when we connect.
            if !now.is_empty() {
                tokio::time::sleep(GRACE).await;
            }
            publish(&shared, &xds, &found);
        }
        if world.changed().await.is_err() {
            return;
        }
    }
}

fn publish(shared: &Shared, xds: &watch::Receiver<xds::Status>, found: &watch::Sender<Vec<Finding>>) {
    let now = findings(shared);
    // An old world says nothing of today's record.
    if !xds.borrow().connected || now == *found.borrow() {
        return;
    }
    for finding in &now {
        tracing::warn!(target: "mesh_agent::record", %finding, "our own record is not right");
    }
    if now.is_empty() {
        tracing::info!(target: "mesh_agent::record", "our own record is right");
    }
    found.send_replace(now);
}

fn findings(shared: &Shared) -> Vec<Finding> {
    if !shared.standing.health().in_rotation() {
        // istiod has no record of us then, as it should be.
        return Vec::new();
    }
    let membership = &shared.membership;
    let Ok(identity) = membership.identity() else {
        return Vec::new();
    };
    let expected = Expected {
        namespace: &membership.namespace,
        name: &membership.workload_name,
        group: &membership.workload_group,
        network: &membership.network,
        address: membership.address,
        identity: &identity,
    };
    check(&shared.world(), &expected)
}

/// How long istiod may take to make a record.
const GRACE: Duration = Duration::from_secs(10);
