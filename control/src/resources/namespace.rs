//! `v1` Namespace: labels that hold for everything in it. No resource needs its namespace to be declared.

use serde::{Deserialize, Deserializer, Serialize};

use super::check::Finding;
use super::meta::{DEFAULT_NAMESPACE, Meta};

/// `v1` Namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Namespace {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is; it is in no namespace itself.
    #[serde(deserialize_with = "in_none")]
    pub metadata: Meta,
    // What a Kubernetes server fills in.
    #[serde(default, skip_serializing, rename = "spec")]
    _spec: Option<serde::de::IgnoredAny>,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

impl Namespace {
    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        self.metadata.check_name(findings);
        if self.metadata.name.contains('.') {
            let message = "a namespace's name has no '.'";
            findings.push(Finding::new("metadata.name", message));
        }
        if !self.metadata.namespace.is_empty() {
            let message = "a Namespace is in no namespace";
            findings.push(Finding::new("metadata.namespace", message));
        }
    }
}

/// Metadata that names no namespace, which for others means the default one.
fn in_none<'de, D: Deserializer<'de>>(from: D) -> Result<Meta, D::Error> {
    let mut meta = Meta::deserialize(from)?;
    if meta.namespace == DEFAULT_NAMESPACE {
        meta.namespace.clear();
    }
    Ok(meta)
}
