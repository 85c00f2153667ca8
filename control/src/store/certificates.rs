//! Issued certificates: every one is recorded before it is handed out, so that it can be revoked.

use rusqlite::{Error, OptionalExtension, Transaction, params};

/// One issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// Big-endian, without leading zeros.
    pub serial: Vec<u8>,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    pub spki_sha256: Vec<u8>,
    /// Who got it.
    pub agent: String,
    /// Fingerprint of the anchor that it chains to.
    pub anchor: String,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// What members must not trust any more because of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// The agent.
    pub agent: String,
    /// Seconds since 1970.
    pub revoked_at: i64,
    /// Serials of its certificates that have not expired.
    pub serials: Vec<Vec<u8>>,
    /// SHA-256 of their SubjectPublicKeyInfos.
    pub spki_sha256: Vec<Vec<u8>>,
}

impl CertificateRow {
    /// Keeps it.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        tx.execute(
            "INSERT INTO certificates (serial, spki_sha256, agent, anchor, issued_at, not_after) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![self.serial, self.spki_sha256, self.agent, self.anchor, self.issued_at, self.not_after],
        )?;
        Ok(())
    }

    /// Whose certificate has this serial.
    pub fn agent_of(tx: &Transaction<'_>, serial: &[u8]) -> Result<Option<String>, Error> {
        tx.query_row("SELECT agent FROM certificates WHERE serial = ?1", [serial], |row| {
            row.get(0)
        })
        .optional()
    }

    /// The newest certificate of each unrevoked agent that still has a live one, at `now`.
    pub fn newest_live(tx: &Transaction<'_>, now: i64) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(
            "SELECT c.serial, c.spki_sha256, c.agent, c.anchor, c.issued_at, c.not_after FROM certificates c
             JOIN agents a ON a.id = c.agent WHERE a.revoked_at IS NULL AND c.not_after > ?1
             ORDER BY c.agent, c.issued_at, c.rowid",
        )?
        .query_map([now], |row| {
            Ok(Self {
                serial: row.get(0)?,
                spki_sha256: row.get(1)?,
                agent: row.get(2)?,
                anchor: row.get(3)?,
                issued_at: row.get(4)?,
                not_after: row.get(5)?,
            })
        })?
        .collect::<Result<Vec<_>, _>>()
        .map(newest_of_each_agent)
    }

    /// What must be refused at `now`: certificates of revoked agents that have not expired.
    pub fn revoked(tx: &Transaction<'_>, now: i64) -> Result<Vec<Revoked>, Error> {
        let mut found: Vec<Revoked> = Vec::new();
        let mut statement = tx.prepare_cached(
            "SELECT a.id, a.revoked_at, c.serial, c.spki_sha256 FROM certificates c JOIN agents a ON a.id = c.agent
             WHERE a.revoked_at IS NOT NULL AND c.not_after > ?1 ORDER BY a.id, c.serial",
        )?;
        let mut rows = statement.query([now])?;
        while let Some(row) = rows.next()? {
            let agent: String = row.get(0)?;
            if found.last().is_none_or(|last| last.agent != agent) {
                found.push(Revoked {
                    agent,
                    revoked_at: row.get(1)?,
                    ..Revoked::default()
                });
            }
            let (serial, spki): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
            if let Some(last) = found.last_mut() {
                last.serials.push(serial);
                if !last.spki_sha256.contains(&spki) {
                    last.spki_sha256.push(spki);
                }
            }
        }
        Ok(found)
    }

    /// Forgets certificates that expired before `before`.
    pub fn purge(tx: &Transaction<'_>, before: i64) -> Result<usize, Error> {
        tx.execute("DELETE FROM certificates WHERE not_after < ?1", [before])
    }
}

fn newest_of_each_agent(rows: Vec<CertificateRow>) -> Vec<CertificateRow> {
    let mut newest: Vec<CertificateRow> = Vec::new();
    for row in rows {
        match newest.last_mut() {
            Some(last) if last.agent == row.agent => *last = row,
            _ => newest.push(row),
        }
    }
    newest
}
