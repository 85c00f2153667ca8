//! A refusal as callers see it: a gRPC code, a machine-readable word in `x-mesh-error`, and a sentence that says what to do.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Metadata key that carries [`Refusal::word`].
pub const ERROR_WORD: &str = "x-mesh-error";

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// Machine-readable, such as `token-expired`.
    pub word: &'static str,
    /// For people: what failed, why, what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal of this code, word and message.
    pub fn new(code: Code, word: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            word,
            message: message.into(),
        }
    }

    /// A fault of our own; the details go to the log, not to the caller.
    pub fn internal(what: &str, error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "{what}");
        Self::new(
            Code::Internal,
            "internal",
            format!("{what}; the control plane's log has the details"),
        )
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let (word, what) = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => (
                "disk-full",
                "the control plane's disk is full, and nothing was changed; free space below its data_dir, then try again",
            ),
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::SystemIoFailure) => (
                "disk-failed",
                "the control plane cannot write its data_dir, and nothing was changed; see its log, its disk and its permissions",
            ),
            _ => return Self::internal("the store failed", &error),
        };
        tracing::error!(%error, "{what}");
        Self::new(Code::Unavailable, word, what)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut metadata = MetadataMap::new();
        metadata.insert(ERROR_WORD, MetadataValue::from_static(refusal.word));
        Self::with_metadata(refusal.code, refusal.message, metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_does_is_named() {
        let of = |code| Refusal::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        for (code, word) in [
            (rusqlite::ffi::SQLITE_FULL, "disk-full"),
            (rusqlite::ffi::SQLITE_READONLY, "disk-failed"),
            (rusqlite::ffi::SQLITE_IOERR, "disk-failed"),
            (rusqlite::ffi::SQLITE_CORRUPT, "internal"),
        ] {
            assert_eq!(of(code).word, word);
        }
    }
}
