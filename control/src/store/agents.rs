//! Agents: machines that joined, known by their host key.

use std::collections::BTreeSet;

use rusqlite::{Error, OptionalExtension, Row, Transaction, params};

/// A machine that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Hex of the first 8 bytes of SHA-256 of the host key's SubjectPublicKeyInfo.
    pub id: String,
    /// The host key's SubjectPublicKeyInfo, DER.
    pub host_spki: Vec<u8>,
    /// Namespace of its identity.
    pub namespace: String,
    /// Service account of its identity.
    pub service_account: String,
    /// Name of its WorkloadGroup (in `namespace`).
    pub workload_group: String,
    /// The address that was accepted at join.
    pub address: String,
    /// What it called itself; only for people.
    pub hostname: String,
    /// Its version; only for people.
    pub version: String,
    /// Seconds since 1970.
    pub joined_at: i64,
    /// Seconds since 1970.
    pub last_seen: i64,
    /// How often it came back by its host key alone.
    pub recoveries: u32,
    /// When it was revoked or left.
    pub revoked_at: Option<i64>,
    /// Fingerprints of the anchors that it acknowledged.
    pub acked: BTreeSet<String>,
    /// Where the token that it joined by said that the control plane is.
    pub control_addresses: Vec<String>,
}

/// A refused second connection with an agent's host key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clone {
    /// Where it came from.
    pub address: String,
    /// What it called itself.
    pub hostname: String,
    /// Seconds since 1970.
    pub at: i64,
}

/// Refused clones that are kept per agent.
const CLONES_KEPT: u32 = 16;

impl Agent {
    /// Keeps the agent, replacing what was known of it.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        tx.execute(
            "INSERT INTO agents (id, host_spki, namespace, service_account, workload_group, address, hostname, version, joined_at, last_seen, recoveries, revoked_at, acked, control_addresses)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (id) DO UPDATE SET namespace = ?3, service_account = ?4, workload_group = ?5, address = ?6, hostname = ?7,
             version = ?8, last_seen = ?10, recoveries = ?11, revoked_at = ?12, acked = ?13, control_addresses = ?14",
            params![
                self.id,
                self.host_spki,
                self.namespace,
                self.service_account,
                self.workload_group,
                self.address,
                self.hostname,
                self.version,
                self.joined_at,
                self.last_seen,
                self.recoveries,
                self.revoked_at,
                self.acked.iter().cloned().collect::<Vec<_>>().join(","),
                self.control_addresses.join(","),
            ],
        )?;
        Ok(())
    }

    /// The agent of this id.
    pub fn get(tx: &Transaction<'_>, id: &str) -> Result<Option<Self>, Error> {
        tx.query_row(&format!("{SELECT} WHERE id = ?1"), [id], read).optional()
    }

    /// All agents, in the order of joining.
    pub fn list(tx: &Transaction<'_>) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(&format!("{SELECT} ORDER BY joined_at, id"))?
            .query_map([], read)?
            .collect()
    }

    /// Records a refused clone, keeping the newest few.
    pub fn record_clone(tx: &Transaction<'_>, id: &str, clone: &Clone) -> Result<(), Error> {
        tx.execute(
            "INSERT INTO clones (agent, address, hostname, at) VALUES (?1, ?2, ?3, ?4)",
            params![id, clone.address, clone.hostname, clone.at],
        )?;
        tx.execute(
            "DELETE FROM clones WHERE agent = ?1 AND rowid NOT IN (SELECT rowid FROM clones WHERE agent = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2)",
            params![id, CLONES_KEPT],
        )?;
        Ok(())
    }

    /// Refused clones of this agent, newest first.
    pub fn clones(tx: &Transaction<'_>, id: &str) -> Result<Vec<Clone>, Error> {
        tx.prepare_cached("SELECT address, hostname, at FROM clones WHERE agent = ?1 ORDER BY at DESC, rowid DESC")?
            .query_map([id], |row| {
                Ok(Clone {
                    address: row.get(0)?,
                    hostname: row.get(1)?,
                    at: row.get(2)?,
                })
            })?
            .collect()
    }
}

const SELECT: &str = "SELECT id, host_spki, namespace, service_account, workload_group, address, hostname, version, joined_at, last_seen, recoveries, revoked_at, acked, control_addresses FROM agents";

fn read(row: &Row<'_>) -> Result<Agent, Error> {
    let acked: String = row.get(12)?;
    Ok(Agent {
        id: row.get(0)?,
        host_spki: row.get(1)?,
        namespace: row.get(2)?,
        service_account: row.get(3)?,
        workload_group: row.get(4)?,
        address: row.get(5)?,
        hostname: row.get(6)?,
        version: row.get(7)?,
        joined_at: row.get(8)?,
        last_seen: row.get(9)?,
        recoveries: row.get(10)?,
        revoked_at: row.get(11)?,
        acked: acked.split(',').filter(|a| a.len() == 64).map(str::to_owned).collect(),
        control_addresses: super::list(&row.get::<_, String>(13)?),
    })
}
