//! Resources: what operators applied, and the WorkloadEntries of agents.

use rusqlite::{Error, OptionalExtension, Row, Transaction, params};

/// Where a resource is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Such as `WorkloadEntry`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceRow {
    /// Where it is kept.
    pub key: ResourceKey,
    /// As it was applied.
    pub api_version: String,
    /// The whole resource.
    pub json: String,
    /// Counts its changes, from 1.
    pub version: u64,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Seconds since 1970.
    pub updated_at: i64,
    /// The agent whose registration it is; none when an operator applied it.
    pub agent: Option<String>,
}

impl ResourceRow {
    /// Keeps a resource; an existing one gets the next version. Nothing is written when nothing changed.
    /// Returns `created`, `configured` or `unchanged`.
    pub fn put(
        tx: &Transaction<'_>,
        key: &ResourceKey,
        api_version: &str,
        json: &str,
        agent: Option<&str>,
        now: i64,
    ) -> Result<&'static str, Error> {
        let known = Self::get(tx, key)?;
        if known
            .as_ref()
            .is_some_and(|k| k.json == json && k.agent.as_deref() == agent)
        {
            return Ok("unchanged");
        }
        tx.execute(
            "INSERT INTO resources (kind, namespace, name, api_version, json, version, created_at, updated_at, agent)
             VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?6, ?7)
             ON CONFLICT (kind, namespace, name) DO UPDATE SET api_version = ?4, json = ?5, version = version + 1, updated_at = ?6, agent = ?7",
            params![key.kind, key.namespace, key.name, api_version, json, now, agent],
        )?;
        Ok(if known.is_some() { "configured" } else { "created" })
    }

    /// The resource of this key.
    pub fn get(tx: &Transaction<'_>, key: &ResourceKey) -> Result<Option<Self>, Error> {
        tx.query_row(
            &format!("{SELECT} WHERE kind = ?1 AND namespace = ?2 AND name = ?3"),
            params![key.kind, key.namespace, key.name],
            read,
        )
        .optional()
    }

    /// All resources; an empty `kind`, `namespace` or `name` matches any.
    pub fn list(tx: &Transaction<'_>, kind: &str, namespace: &str, name: &str) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(&format!(
            "{SELECT} WHERE (?1 = '' OR kind = ?1) AND (?2 = '' OR namespace = ?2) AND (?3 = '' OR name = ?3) ORDER BY kind, namespace, name"
        ))?
        .query_map(params![kind, namespace, name], read)?
        .collect()
    }

    /// The registrations of an agent.
    pub fn of_agent(tx: &Transaction<'_>, agent: &str) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(&format!("{SELECT} WHERE agent = ?1"))?
            .query_map([agent], read)?
            .collect()
    }

    /// Resources whose JSON contains `text`.
    pub fn mentioning(tx: &Transaction<'_>, text: &str) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(&format!("{SELECT} WHERE instr(json, ?1) > 0"))?
            .query_map([text], read)?
            .collect()
    }

    /// Removes it; false when there was none.
    pub fn delete(tx: &Transaction<'_>, key: &ResourceKey) -> Result<bool, Error> {
        let sql = "DELETE FROM resources WHERE kind = ?1 AND namespace = ?2 AND name = ?3";
        Ok(tx.execute(sql, params![key.kind, key.namespace, key.name])? > 0)
    }

    /// Removes the registrations of an agent, except the one named; how many there were.
    pub fn delete_of_agent(tx: &Transaction<'_>, agent: &str, except: &str) -> Result<usize, Error> {
        tx.execute("DELETE FROM resources WHERE agent = ?1 AND name <> ?2", [agent, except])
    }
}

const SELECT: &str =
    "SELECT kind, namespace, name, api_version, json, version, created_at, updated_at, agent FROM resources";

fn read(row: &Row<'_>) -> Result<ResourceRow, Error> {
    Ok(ResourceRow {
        key: ResourceKey {
            kind: row.get(0)?,
            namespace: row.get(1)?,
            name: row.get(2)?,
        },
        api_version: row.get(3)?,
        json: row.get(4)?,
        version: row.get(5)?,
        created_at: row.get(6)?,
        updated_at: row.get(7)?,
        agent: row.get(8)?,
    })
}
