//! An issuer's JSON Web Key Set: from a file, or from a URL, read again before it is stale. What was read stays in use while a
//! later reading fails.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use tokio::sync::Notify;

use super::https;
use crate::config::JwtIssuer;

/// How long a file's content, or a URL's without `cache-control`, is taken for fresh.
const FRESH: Duration = Duration::from_secs(60);
/// Bounds on what a URL's `cache-control` may say of that.
const FRESHEST: Duration = Duration::from_secs(3600);
/// Shortest time between two readings, however often unknown keys are asked for.
const BETWEEN: Duration = Duration::from_secs(5);
/// Longest pause after failures; it begins with [`BETWEEN`] and doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest key set, in bytes.
const LONGEST: usize = 1 << 20;

/// The keys of one issuer.
pub(super) struct Keys {
    source: Source,
    state: RwLock<Result<Arc<JwkSet>, String>>,
    wanted: Notify,
}

enum Source {
    File(PathBuf),
    Url(https::Client, String),
}

impl Keys {
    /// Where they come from; those of a file are read at once.
    pub(super) fn open(settings: &JwtIssuer) -> Result<Self, String> {
        let (source, first) = match (&settings.jwks_file, &settings.jwks_uri) {
            (Some(path), _) => (Source::File(path.clone()), Ok(Arc::new(read(path)?))),
            (None, Some(uri)) => {
                let client = https::Client::new(settings.jwks_ca.as_deref())?;
                (
                    Source::Url(client, uri.clone()),
                    Err("they were not fetched yet".to_owned()),
                )
            }
            (None, None) => return Err("it has neither jwks_file nor jwks_uri".to_owned()),
        };
        Ok(Self {
            source,
            state: RwLock::new(first),
            wanted: Notify::new(),
        })
    }

    /// The keys, or why there are none.
    pub(super) fn current(&self) -> Result<Arc<JwkSet>, String> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for an earlier reading than is due.
    pub(super) fn ask(&self) {
        self.wanted.notify_one();
    }

    /// Reads the keys again and again.
    pub(super) async fn follow(self: Arc<Self>, issuer: String) {
        let mut pause = BETWEEN;
        loop {
            let wait = match self.fetch().await {
                Ok((keys, fresh)) => {
                    *self.state.write().unwrap_or_else(PoisonError::into_inner) = Ok(Arc::new(keys));
                    pause = BETWEEN;
                    fresh
                }
                Err(error) => {
                    tracing::warn!(
                        issuer,
                        error,
                        "cannot read the issuer's keys; those that were read stay in use"
                    );
                    let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                    if state.is_err() {
                        *state = Err(error);
                    }
                    drop(state);
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::time::sleep(BETWEEN).await;
            let _ = tokio::time::timeout(wait.saturating_sub(BETWEEN), self.wanted.notified()).await;
        }
    }

    async fn fetch(&self) -> Result<(JwkSet, Duration), String> {
        match &self.source {
            Source::File(path) => {
                let path = path.clone();
                let keys = tokio::task::spawn_blocking(move || read(&path));
                Ok((keys.await.map_err(|e| e.to_string())??, FRESH))
            }
            Source::Url(client, uri) => {
                let answer = client.get(uri, LONGEST).await?;
                let fresh = answer.max_age.map_or(FRESH, |age| age.clamp(FRESH, FRESHEST));
                Ok((parse(&answer.body).map_err(|e| format!("{uri}: {e}"))?, fresh))
            }
        }
    }
}

fn read(path: &std::path::Path) -> Result<JwkSet, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    parse(&bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<JwkSet, String> {
    let keys: JwkSet = serde_json::from_slice(bytes).map_err(|e| format!("this is not a JSON Web Key Set: {e}"))?;
    if keys.keys.is_empty() {
        return Err("the key set is empty".to_owned());
    }
    Ok(keys)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
