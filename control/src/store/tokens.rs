//! Join tokens: only a hash of the secret is kept, and each use binds one host key.

use rusqlite::{Error, OptionalExtension, Row, Transaction, params};

/// A join token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Public id, part of the token's text.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_sha256: Vec<u8>,
    /// `namespace/name` of the WorkloadGroup.
    pub workload_group: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Seconds since 1970.
    pub expires_at: i64,
    /// How many host keys may use it.
    pub max_uses: u32,
    /// Where the joining connection must come from; empty means anywhere.
    pub cidrs: Vec<String>,
    /// What it tells machines of where the control plane is.
    pub addresses: Vec<String>,
    /// Whether an operator revoked it.
    pub revoked: bool,
    /// How many host keys used it.
    pub uses: u32,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It can be used.
    Valid,
    /// Every use is bound to a host key.
    Spent,
    /// Its lifetime is over.
    Expired,
    /// An operator revoked it.
    Revoked,
}

impl TokenState {
    /// As `meshctl token list` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Spent => "spent",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl TokenRow {
    /// Its state at `now`.
    pub fn state(&self, now: i64) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if now >= self.expires_at {
            TokenState::Expired
        } else if self.uses >= self.max_uses {
            TokenState::Spent
        } else {
            TokenState::Valid
        }
    }

    /// Keeps a new token.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        tx.execute(
            "INSERT INTO tokens (id, secret_sha256, workload_group, created_at, expires_at, max_uses, cidrs, addresses) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                self.id,
                self.secret_sha256,
                self.workload_group,
                self.created_at,
                self.expires_at,
                self.max_uses,
                self.cidrs.join(","),
                self.addresses.join(","),
            ],
        )?;
        Ok(())
    }

    /// The token of this id.
    pub fn get(tx: &Transaction<'_>, id: &str) -> Result<Option<Self>, Error> {
        tx.query_row(&format!("{SELECT} WHERE t.id = ?1"), [id], read)
            .optional()
    }

    /// All tokens, newest first.
    pub fn list(tx: &Transaction<'_>) -> Result<Vec<Self>, Error> {
        tx.prepare_cached(&format!("{SELECT} ORDER BY t.created_at DESC, t.id"))?
            .query_map([], read)?
            .collect()
    }

    /// Marks the token revoked; false when there is none.
    pub fn revoke(tx: &Transaction<'_>, id: &str) -> Result<bool, Error> {
        Ok(tx.execute("UPDATE tokens SET revoked = 1 WHERE id = ?1", [id])? > 0)
    }

    /// Whether this host key already used the token.
    pub fn used_by(tx: &Transaction<'_>, id: &str, agent: &str) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM token_uses WHERE token = ?1 AND agent = ?2";
        Ok(tx.query_row(sql, [id, agent], |_| Ok(())).optional()?.is_some())
    }

    /// Whether this member came by any token of ours.
    pub fn is_held_by(tx: &Transaction<'_>, agent: &str) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM token_uses WHERE agent = ?1 LIMIT 1";
        Ok(tx.query_row(sql, [agent], |_| Ok(())).optional()?.is_some())
    }

    /// Binds one use to this host key; repeating it changes nothing.
    pub fn bind(tx: &Transaction<'_>, id: &str, agent: &str, now: i64) -> Result<(), Error> {
        tx.execute(
            "INSERT OR IGNORE INTO token_uses (token, agent, used_at) VALUES (?1, ?2, ?3)",
            params![id, agent, now],
        )?;
        Ok(())
    }

    /// Forgets tokens that expired before `before`.
    pub fn purge(tx: &Transaction<'_>, before: i64) -> Result<usize, Error> {
        tx.execute("DELETE FROM tokens WHERE expires_at < ?1", [before])
    }
}

const SELECT: &str = "SELECT t.id, t.secret_sha256, t.workload_group, t.created_at, t.expires_at, t.max_uses, t.cidrs, t.revoked, (SELECT count(*) FROM token_uses u WHERE u.token = t.id), t.addresses FROM tokens t";

fn read(row: &Row<'_>) -> Result<TokenRow, Error> {
    let cidrs: String = row.get(6)?;
    Ok(TokenRow {
        id: row.get(0)?,
        secret_sha256: row.get(1)?,
        workload_group: row.get(2)?,
        created_at: row.get(3)?,
        expires_at: row.get(4)?,
        max_uses: row.get(5)?,
        cidrs: super::list(&cidrs),
        addresses: super::list(&row.get::<_, String>(9)?),
        revoked: row.get(7)?,
        uses: row.get(8)?,
    })
}
