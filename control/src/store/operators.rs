//! Operator tokens: only a hash of the secret is kept.

use rusqlite::{Error, OptionalExtension, Transaction, params};

/// A credential for the operator's calls over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorToken {
    /// Whom it was made for; creating one of the same name again replaces it.
    pub name: String,
    /// SHA-256 of the secret.
    pub secret_sha256: Vec<u8>,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Seconds since 1970.
    pub expires_at: i64,
}

impl OperatorToken {
    /// Keeps it, replacing one of the same name.
    pub fn put(&self, tx: &Transaction<'_>) -> Result<(), Error> {
        tx.execute(
            "INSERT OR REPLACE INTO operator_tokens (name, secret_sha256, created_at, expires_at) VALUES (?1, ?2, ?3, ?4)",
            params![self.name, self.secret_sha256, self.created_at, self.expires_at],
        )?;
        Ok(())
    }

    /// Name of the live token whose secret hashes to this. The hash of a random secret may be looked up directly: timing
    /// tells nothing about the secret itself.
    pub fn authenticate(tx: &Transaction<'_>, secret_sha256: &[u8], now: i64) -> Result<Option<String>, Error> {
        tx.query_row(
            "SELECT name FROM operator_tokens WHERE secret_sha256 = ?1 AND expires_at > ?2",
            params![secret_sha256, now],
            |row| row.get(0),
        )
        .optional()
    }
}
