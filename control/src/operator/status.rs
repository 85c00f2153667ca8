//! What is true of resources besides what was applied: their `status`, as Istio writes it, made when it is asked for.

use std::collections::BTreeMap;

use rusqlite::Transaction;
use serde_json::{Value, json};

use crate::config::Settings;
use crate::derive::{self, Unbound};
use crate::resources::{Kind, Resource};
use crate::store::{Error, ResourceKey, ResourceRow};

/// Which waypoint each object has that asks for one, or why none; and of Gateways, whether they can be one.
pub(super) fn bindings(
    tx: &Transaction<'_>,
    settings: &Settings,
) -> Result<BTreeMap<ResourceKey, Result<String, Unbound>>, Error> {
    // Most meshes have none, and need not be derived for nothing.
    let asked = !ResourceRow::mentioning(tx, derive::USE_WAYPOINT)?.is_empty();
    if !asked && ResourceRow::list(tx, Kind::Gateway.as_str(), "", "")?.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = ResourceRow::list(tx, "", "", "")?;
    let read = |row: &ResourceRow| Resource::from_json(Kind::find(&row.key.kind)?, &row.json).ok();
    let resources: Vec<Resource> = rows.iter().filter_map(read).collect();
    Ok(derive::waypoint_bindings(&derive::Input {
        trust_domain: &settings.trust_domain,
        dns_domain: &settings.dns_domain,
        cluster_id: &settings.cluster_id,
        resources: &resources,
        vips: &BTreeMap::new(),
    }))
}

/// Adds a condition to each of these rows of which there is something to say.
pub(super) fn add(tx: &Transaction<'_>, rows: &mut [ResourceRow], settings: &Settings) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let bindings = bindings(tx, settings)?;
    for row in rows {
        let Some(binding) = bindings.get(&row.key) else {
            continue;
        };
        let Ok(mut value) = serde_json::from_str::<Value>(&row.json) else {
            continue;
        };
        let condition = condition(&row.key.kind, binding);
        match value["status"]["conditions"].as_array_mut() {
            Some(known) => known.push(condition),
            None => value["status"] = json!({ "conditions": [condition] }),
        }
        row.json = value.to_string();
    }
    Ok(())
}

fn condition(kind: &str, binding: &Result<String, Unbound>) -> Value {
    let gateway = kind == Kind::Gateway.as_str();
    let kind = if gateway {
        "Programmed"
    } else {
        "istio.io/WaypointBound"
    };
    match binding {
        Ok(name) if gateway => {
            json!({ "type": kind, "status": "True", "reason": "Programmed", "message": format!("{name} can be used as a waypoint") })
        }
        Ok(name) => {
            json!({ "type": kind, "status": "True", "reason": "WaypointAccepted", "message": format!("Successfully attached to waypoint {name}") })
        }
        Err(unbound) => {
            json!({ "type": kind, "status": "False", "reason": unbound.reason, "message": unbound.message })
        }
    }
}
