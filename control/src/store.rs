//! The store: one SQLite file, write-ahead log with full fsync, so that what was acknowledged survives `kill -9`.
//!
//! Every change is one transaction, and callers answer only after [`Store::write`] returned. Calls block for the length
//! of an fsync; from async code use [`Store::run`].

mod agents;
mod anchors;
mod certificates;
mod operators;
mod resources;
mod tokens;
pub mod vips;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use agents::{Agent, Clone};
pub use anchors::{AnchorRow, Role};
pub use certificates::{CertificateRow, Revoked};
pub use operators::OperatorToken;
pub use resources::{ResourceKey, ResourceRow};
pub use rusqlite::Error;
use rusqlite::{Connection, Transaction, TransactionBehavior};
pub use tokens::{TokenRow, TokenState};

/// Schema changes, in order; `user_version` counts those that were made.
const MIGRATIONS: &[&str] = &[include_str!("store/schema1.sql")];

/// A handle on the store; clones share one connection.
#[derive(Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
}

impl Store {
    /// Opens the file, makes it when absent, and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        Self::prepare(connection)
    }

    /// A store that lives in memory, for tests.
    pub fn in_memory() -> Result<Self, Error> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, Error> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made: usize = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        for migration in MIGRATIONS.iter().skip(made) {
            tx.execute_batch(migration)?;
        }
        if made < MIGRATIONS.len() {
            tx.pragma_update(None, "user_version", MIGRATIONS.len())?;
        }
        tx.commit()?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs `change` in one transaction and commits it when it returns `Ok`; on `Err` nothing of it stays.
    pub fn write<T, E: From<Error>>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = change(&tx)?;
        tx.commit()?;
        Ok(value)
    }

    /// [`Store::write`] on a thread where blocking is allowed.
    pub async fn run<T, E>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, crate::error::Refusal>
    where
        T: Send + 'static,
        E: From<Error> + Into<crate::error::Refusal> + Send + 'static,
    {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || store.write(change)).await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => Err(crate::error::Refusal::internal("a store task failed", &error)),
        }
    }
}

/// The parts of a comma-separated column.
fn list(text: &str) -> Vec<String> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Seconds since 1970 as the wire has them.
pub fn timestamp(seconds: i64) -> mesh_proto::wkt::Timestamp {
    mesh_proto::wkt::Timestamp { seconds, nanos: 0 }
}

#[cfg(test)]
mod tests;
