//! What each answer looks like.

use mesh_proto::mesh::{AgentInfo, CaStatusResponse, CreateTokenResponse, RefusedClone, StoredResource, TokenInfo};
use mesh_proto::wkt::Timestamp;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Failure;
use super::apply::named;
use super::arguments::Format;
use super::output::{self, Output, say};

pub(super) fn token(made: &CreateTokenResponse, output: &Output) -> Result<(), Failure> {
    let info = made.info.clone().unwrap_or_default();
    let mut value = token_value(&info);
    value["token"] = json!(made.token);
    if output.structured(&value)? {
        return Ok(());
    }
    output::note(&format!(
        "token {} for {}: {} use(s), until {}; give it to the machine: mesh-agent join < token",
        info.id,
        info.workload_group,
        info.max_uses,
        when(info.expires_at.as_ref())
    ));
    say(&made.token)
}

pub(super) fn tokens(tokens: &[TokenInfo], output: &Output) -> Result<(), Failure> {
    if output.structured(&tokens.iter().map(token_value).collect())? {
        return Ok(());
    }
    let row = |t: &TokenInfo| {
        vec![
            t.id.clone(),
            t.workload_group.clone(),
            t.state.clone(),
            format!("{}/{}", t.uses, t.max_uses),
            when(t.expires_at.as_ref()),
            t.cidrs.join(","),
        ]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    output.table(&["ID", "GROUP", "STATE", "USES", "EXPIRES", "FROM"], &rows)
}

fn token_value(t: &TokenInfo) -> Value {
    json!({
        "id": t.id, "workloadGroup": t.workload_group, "state": t.state, "uses": t.uses, "maxUses": t.max_uses, "cidrs": t.cidrs,
        "createdAt": when(t.created_at.as_ref()), "expiresAt": when(t.expires_at.as_ref()),
    })
}

pub(super) fn resources(found: &[StoredResource], single: bool, output: &Output) -> Result<(), Failure> {
    let values: Vec<Value> = found
        .iter()
        .filter_map(|r| serde_json::from_str(&r.json).ok())
        .collect();
    if output.format == Format::Yaml {
        // One document each, as `apply` takes them.
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                say("---")?;
            }
            output.structured(value)?;
        }
        return Ok(());
    }
    let value = match (single, values.as_slice()) {
        (true, [one]) => one.clone(),
        _ => Value::from(values),
    };
    if output.structured(&value)? {
        return Ok(());
    }
    let row = |r: &StoredResource| {
        vec![
            r.kind.clone(),
            r.namespace.clone(),
            r.name.clone(),
            when(r.updated_at.as_ref()),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    output.table(&["KIND", "NAMESPACE", "NAME", "UPDATED"], &rows)?;
    for one in found {
        for message in unmet(&one.json) {
            let name = named(&one.kind, &one.namespace, &one.name);
            output::note(&format!("{name}: {}", printable(&message)));
        }
    }
    Ok(())
}

/// What is not as a resource wants it: messages of conditions that are not true.
fn unmet(json: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(json).unwrap_or_default();
    let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let unmet = conditions.into_iter().filter(|one| one["status"] == "False");
    unmet
        .filter_map(|one| one["message"].as_str().map(str::to_owned))
        .collect()
}

pub(super) fn agents(agents: &[AgentInfo], output: &Output) -> Result<(), Failure> {
    if output.structured(&agents.iter().map(agent_value).collect())? {
        return Ok(());
    }
    let row = |a: &AgentInfo| {
        vec![
            a.id.clone(),
            match a.unhealthy.as_str() {
                "" => a.state.clone(),
                _ => format!("{}, unhealthy", a.state),
            },
            format!("{}/{}", a.namespace, a.workload),
            a.service_account.clone(),
            a.address.clone(),
            printable(&a.hostname),
            printable(&a.agent_version),
            when(a.last_seen.as_ref()),
            when(a.certificate_not_after.as_ref()),
            a.recoveries.to_string(),
            a.clones.len().to_string(),
        ]
    };
    let header = [
        "ID",
        "STATE",
        "WORKLOAD",
        "ACCOUNT",
        "ADDRESS",
        "HOST",
        "VERSION",
        "LAST SEEN",
        "CERTIFICATE UNTIL",
        "RECOVERIES",
        "CLONES",
    ];
    output.table(&header, &agents.iter().map(row).collect::<Vec<_>>())?;
    for agent in agents {
        if !agent.unhealthy.is_empty() {
            let reason = printable(&agent.unhealthy);
            output::note(&format!("{} is out of rotation: {reason}", agent.id));
        }
        if let Some(clone) = agent.clones.first() {
            let at = when(clone.at.as_ref());
            let host = printable(&clone.hostname);
            output::note(&format!(
                "clone of {} refused: from {} ({host}) at {at}",
                agent.id, clone.address
            ));
        }
    }
    Ok(())
}

fn agent_value(a: &AgentInfo) -> Value {
    let clone = |c: &RefusedClone| json!({ "address": c.address, "hostname": c.hostname, "at": when(c.at.as_ref()) });
    json!({
        "id": a.id, "state": a.state, "namespace": a.namespace, "workload": a.workload, "serviceAccount": a.service_account,
        "address": a.address, "hostname": a.hostname, "version": a.agent_version, "joinedAt": when(a.joined_at.as_ref()),
        "lastSeen": when(a.last_seen.as_ref()), "certificateNotAfter": when(a.certificate_not_after.as_ref()),
        "recoveries": a.recoveries, "clones": a.clones.iter().map(clone).collect::<Vec<_>>(),
        "acknowledgedAnchors": a.acknowledged_anchors,
        "unhealthy": (!a.unhealthy.is_empty()).then_some(&a.unhealthy),
    })
}

pub(super) fn ca(status: &CaStatusResponse, output: &Output) -> Result<(), Failure> {
    let anchors = status.anchors.iter().map(|a| {
        json!({ "fingerprint": a.fingerprint, "subject": a.subject, "notAfter": when(a.not_after.as_ref()), "signing": a.signing })
    });
    let value = json!({
        "phase": status.phase, "agents": status.agents, "acknowledged": status.acknowledged, "anchors": anchors.collect::<Vec<_>>(),
    });
    if output.structured(&value)? {
        return Ok(());
    }
    let (agents, acknowledged) = (status.agents, status.acknowledged);
    let phase = match status.phase.as_str() {
        "distributing" => format!("distributing: {acknowledged} of {agents} agent(s) acknowledged the new anchor"),
        "retiring" => "retiring: the new key signs; the old anchor goes when its certificates are renewed".to_owned(),
        other => format!("{other}: {agents} agent(s) hold a live certificate"),
    };
    say(&phase)?;
    let rows: Vec<Vec<String>> = status
        .anchors
        .iter()
        .map(|a| {
            let signing = if a.signing { "yes" } else { "" };
            vec![
                a.fingerprint.clone(),
                a.subject.clone(),
                when(a.not_after.as_ref()),
                signing.to_owned(),
            ]
        })
        .collect();
    output.table(&["FINGERPRINT", "SUBJECT", "NOT AFTER", "SIGNS"], &rows)
}

/// A time as RFC 3339; `-` when there is none.
fn when(time: Option<&Timestamp>) -> String {
    time.and_then(|t| OffsetDateTime::from_unix_timestamp(t.seconds).ok())
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_else(|| "-".to_owned())
}

/// A foreign text without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
