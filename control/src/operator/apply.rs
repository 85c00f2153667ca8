//! Applying, getting and deleting resources. Applying is all or nothing.

use mesh_proto::mesh::{
    AppliedResource, ApplyRequest, ApplyResponse, DeleteRequest, GetRequest, GetResponse, Problem, SourceDocument,
    StoredResource,
};
use tonic::Code;

use super::{Operators, status};
use crate::config::Settings;
use crate::error::Refusal;
use crate::resources::{Kind, Resource};
use crate::store::{Agent, Error, ResourceKey, ResourceRow, now, timestamp};

/// Documents of one call.
const DOCUMENTS: usize = 20_000;

impl Operators {
    pub(super) async fn apply_documents(&self, request: ApplyRequest) -> Result<ApplyResponse, Refusal> {
        if request.documents.len() > DOCUMENTS {
            let message = format!("more than {DOCUMENTS} documents in one call; apply them in parts");
            return Err(Refusal::new(Code::InvalidArgument, "invalid", message));
        }
        let (resources, problems) = parse(&request.documents);
        if !problems.is_empty() {
            return Ok(ApplyResponse {
                problems,
                ..ApplyResponse::default()
            });
        }
        let dry_run = request.dry_run;
        let settings = self.control.settings.clone();
        let put = move |tx: &rusqlite::Transaction<'_>| put(tx, &resources, dry_run, &settings);
        let response = self.control.store.run(put).await?;
        if !dry_run {
            self.control.touch();
            let groups = response
                .applied
                .iter()
                .filter(|a| a.kind == Kind::WorkloadGroup.as_str());
            for group in groups.filter(|a| a.action == "configured") {
                self.register_anew(&group.namespace, &group.name).await?;
            }
        }
        Ok(response)
    }

    pub(super) async fn find_resources(&self, request: GetRequest) -> Result<GetResponse, Refusal> {
        let kind = if request.kind.is_empty() {
            ""
        } else {
            kind_of(&request.kind)?.as_str()
        };
        let settings = self.control.settings.clone();
        let found = move |tx: &rusqlite::Transaction<'_>| {
            let mut rows = ResourceRow::list(tx, kind, &request.namespace, &request.name)?;
            status::add(tx, &mut rows, &settings)?;
            Ok::<_, Error>(rows)
        };
        let rows = self.control.store.run(found).await?;
        let stored = |row: ResourceRow| StoredResource {
            kind: row.key.kind,
            namespace: row.key.namespace,
            name: row.key.name,
            api_version: row.api_version,
            json: row.json,
            updated_at: Some(timestamp(row.updated_at)),
        };
        Ok(GetResponse {
            resources: rows.into_iter().map(stored).collect(),
        })
    }

    pub(super) async fn delete_resource(&self, request: DeleteRequest) -> Result<(), Refusal> {
        let kind = kind_of(&request.kind)?;
        let key = ResourceKey {
            kind: kind.as_str().to_owned(),
            namespace: if kind.is_namespaced() {
                request.namespace
            } else {
                String::new()
            },
            name: request.name,
        };
        let wanted = key.clone();
        let deleted = self
            .control
            .store
            .run(move |tx| {
                let deleted = ResourceRow::delete(tx, &wanted)?;
                if deleted && wanted.kind == Kind::WorkloadGroup.as_str() {
                    delete_registrations(tx, &wanted)?;
                }
                Ok::<_, Error>(deleted)
            })
            .await?;
        if deleted {
            self.control.touch();
            if key.kind == Kind::WorkloadGroup.as_str() {
                self.register_anew(&key.namespace, &key.name).await?;
            }
            return Ok(());
        }
        let message = format!("there is no {} {}/{}", key.kind, key.namespace, key.name);
        Err(Refusal::new(Code::NotFound, "resource-unknown", message))
    }

    /// Ends the streams of a group's agents, which come back at once and are registered as the group now says.
    async fn register_anew(&self, namespace: &str, group: &str) -> Result<(), Refusal> {
        let agents = self.control.store.run(Agent::list).await?;
        for agent in agents
            .iter()
            .filter(|a| a.namespace == namespace && a.workload_group == group)
        {
            let message = "the agent's WorkloadGroup changed; reconnect to be registered anew";
            let refusal = Refusal::new(Code::Unavailable, "group-changed", message);
            self.control.registry.end(&agent.id, refusal);
        }
        Ok(())
    }
}

fn kind_of(text: &str) -> Result<Kind, Refusal> {
    Kind::find(text).ok_or_else(|| {
        let known: Vec<_> = Kind::ALL.iter().map(|k| k.as_str()).collect();
        let message = format!("there is no kind {text:?}; kinds are {}", known.join(", "));
        Refusal::new(Code::InvalidArgument, "kind-unknown", message)
    })
}

/// Entries of the group's agents go with the group, as in Istio.
fn delete_registrations(tx: &rusqlite::Transaction<'_>, group: &ResourceKey) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM resources WHERE agent IN (SELECT id FROM agents WHERE namespace = ?1 AND workload_group = ?2)",
        [&group.namespace, &group.name],
    )?;
    Ok(())
}

fn parse(documents: &[SourceDocument]) -> (Vec<(SourceDocument, Resource)>, Vec<Problem>) {
    let (mut resources, mut problems) = (Vec::<(SourceDocument, Resource)>::new(), Vec::new());
    for document in documents {
        match Resource::parse(document) {
            Ok(None) => {}
            Ok(Some(resource)) => {
                if let Some((first, _)) = resources.iter().find(|(_, r)| r.key() == resource.key()) {
                    let message = format!("the same resource stands at {}:{} too", first.file, first.line);
                    problems.push(problem(document, "metadata.name", message));
                }
                resources.push((document.clone(), resource));
            }
            Err(found) => problems.extend(found),
        }
    }
    (resources, problems)
}

fn problem(document: &SourceDocument, field: &str, message: String) -> Problem {
    Problem {
        file: document.file.clone(),
        line: document.line,
        column: 1,
        field: field.to_owned(),
        message,
    }
}

/// Writes everything; a dry run takes it back in the same breath.
fn put(
    tx: &rusqlite::Transaction<'_>,
    resources: &[(SourceDocument, Resource)],
    dry_run: bool,
    settings: &Settings,
) -> Result<ApplyResponse, Refusal> {
    if dry_run {
        tx.execute_batch("SAVEPOINT dry_run")?;
    }
    let mut applied = Vec::new();
    for (document, resource) in resources {
        let key = resource.key();
        let known = ResourceRow::get(tx, &key)?;
        if known.is_some_and(|k| k.agent.is_some()) {
            let message = format!(
                "{}:{}: {}/{} is the registration of an agent, which it keeps up to date itself; change its WorkloadGroup instead",
                document.file, document.line, key.namespace, key.name
            );
            return Err(Refusal::new(Code::FailedPrecondition, "registered", message));
        }
        let action = ResourceRow::put(tx, &key, resource.api_version(), &resource.to_json(), None, now())?;
        applied.push(AppliedResource {
            kind: key.kind,
            namespace: key.namespace,
            name: key.name,
            action: action.to_owned(),
        });
    }
    let warnings = warnings(tx, resources, settings)?;
    if dry_run {
        tx.execute_batch("ROLLBACK TO dry_run; RELEASE dry_run")?;
    }
    Ok(ApplyResponse {
        applied,
        problems: Vec::new(),
        warnings,
    })
}

/// What of the resources has no effect as things stand.
fn warnings(
    tx: &rusqlite::Transaction<'_>,
    resources: &[(SourceDocument, Resource)],
    settings: &Settings,
) -> Result<Vec<Problem>, Error> {
    let bindings = status::bindings(tx, settings)?;
    let of = |(document, resource): &(SourceDocument, Resource)| {
        let unbound = bindings.get(&resource.key())?.as_ref().err()?;
        let field = match resource.kind() {
            Kind::Gateway => "spec.addresses",
            _ => "metadata.labels",
        };
        Some(problem(document, field, unbound.message.clone()))
    };
    Ok(resources.iter().filter_map(of).collect())
}
