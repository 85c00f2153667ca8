//! The CA's anchors: which certificates members trust, and which of their keys signs. Keys are files, not rows.

use rusqlite::{Error, Row, Transaction, params};

/// What an anchor is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its key signs.
    Signing,
    /// Being distributed; its key signs once every agent acknowledged it.
    Next,
    /// Its key signed before; kept until what it signed is gone.
    Retiring,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Signing => "signing",
            Self::Next => "next",
            Self::Retiring => "retiring",
        }
    }
}

/// One anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnchorRow {
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// PEM.
    pub certificate: String,
    /// The same key, signed by the anchor before it: lets holders of only the old pin find a path. PEM.
    pub cross_signed: Option<String>,
    /// What it is there for.
    pub role: Role,
    /// Seconds since 1970.
    pub created_at: i64,
}

impl AnchorRow {
    /// Keeps it, replacing what was known of it.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        tx.execute(
            "INSERT INTO anchors (fingerprint, certificate, cross_signed, role, created_at) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (fingerprint) DO UPDATE SET cross_signed = ?3, role = ?4",
            params![self.fingerprint, self.certificate, self.cross_signed, self.role.as_str(), self.created_at],
        )?;
        Ok(())
    }

    /// All anchors, oldest first.
    pub fn list(tx: &Transaction<'_>) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(
            "SELECT fingerprint, certificate, cross_signed, role, created_at FROM anchors ORDER BY position",
        )?
        .query_map([], read)?
        .collect()
    }

    /// Changes its role.
    pub fn set_role(tx: &Transaction<'_>, fingerprint: &str, role: Role) -> Result<(), Error> {
        tx.execute(
            "UPDATE anchors SET role = ?2 WHERE fingerprint = ?1",
            [fingerprint, role.as_str()],
        )?;
        Ok(())
    }

    /// Forgets it.
    pub fn delete(tx: &Transaction<'_>, fingerprint: &str) -> Result<(), Error> {
        tx.execute("DELETE FROM anchors WHERE fingerprint = ?1", [fingerprint])?;
        Ok(())
    }
}

fn read(row: &Row<'_>) -> Result<AnchorRow, Error> {
    let role: String = row.get(3)?;
    Ok(AnchorRow {
        fingerprint: row.get(0)?,
        certificate: row.get(1)?,
        cross_signed: row.get(2)?,
        role: match role.as_str() {
            "next" => Role::Next,
            "retiring" => Role::Retiring,
            _ => Role::Signing,
        },
        created_at: row.get(4)?,
    })
}
